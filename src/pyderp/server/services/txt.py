"""Looks up TXT records, which the system's resolver cannot do.

It imports dnspython, so import this module only if it is needed.
"""

from __future__ import annotations

import dns.asyncresolver
import dns.exception
import dns.resolver
from dns.rdtypes.ANY.TXT import TXT

from pyderp.errors import DialError, NameNotFound

__all__ = ["system_txt"]

_NONE = (dns.resolver.NXDOMAIN, dns.resolver.NoAnswer, dns.exception.SyntaxError)
"""Errors which mean that there is no record. The last one means that the name is malformed."""
_LIFETIME = 10.0
"""Seconds for all name servers and attempts together."""


async def system_txt(name: str, *, resolver: dns.asyncresolver.Resolver | None = None) -> list[str]:
    """Return a name's TXT records, one text for each record.

    Args:
        name: the full name; the system's search list is not used.
        resolver: by default a new one with the current name servers of the system.

    Raises:
        NameNotFound: the name has no TXT record.
        DialError: the look-up failed.
    """
    try:
        if resolver is None:
            resolver = dns.asyncresolver.Resolver()
        answer = await resolver.resolve(name, "TXT", lifetime=_LIFETIME)
    except (dns.exception.DNSException, OSError) as e:
        error = NameNotFound if isinstance(e, _NONE) else DialError
        raise error(f"look-up of {name!r}: {str(e) or type(e).__name__}") from e
    records = [record for record in answer if isinstance(record, TXT)]
    return [b"".join(record.strings).decode(errors="replace") for record in records]
