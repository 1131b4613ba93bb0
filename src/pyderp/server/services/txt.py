"""TXT records, which the system's resolver does not tell. Imports dnspython: load it if needed."""

from __future__ import annotations

import dns.asyncresolver
import dns.exception
import dns.resolver
from dns.rdtypes.ANY.TXT import TXT

from pyderp.errors import DialError, NameNotFound

__all__ = ["system_txt"]

_NONE = (dns.resolver.NXDOMAIN, dns.resolver.NoAnswer, dns.exception.SyntaxError)
"""Errors that say that there is none: the last one is about names that can be none."""
_LIFETIME = 10.0
"""Seconds for all name servers and attempts together."""


async def system_txt(name: str, *, resolver: dns.asyncresolver.Resolver | None = None) -> list[str]:
    """The strings of a name's TXT records, one text for each record.

    Args:
        name: taken as it is, without the system's search list.
        resolver: by default one with the system's name servers as they are now.

    Raises:
        NameNotFound: there are none.
        DialError: it cannot be found out.
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
