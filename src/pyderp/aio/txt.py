"""TXT records, which the system's resolver does not tell. Imports dnspython: load it if needed."""

from __future__ import annotations

import dns.asyncresolver
import dns.exception
from dns.rdtypes.ANY.TXT import TXT

from pyderp.errors import DialError

__all__ = ["system_txt"]

_LIFETIME = 10.0
"""Seconds for all name servers and attempts together."""


async def system_txt(name: str, *, resolver: dns.asyncresolver.Resolver | None = None) -> list[str]:
    """The strings of a name's TXT records, one text for each record.

    Args:
        name: taken as it is, without the system's search list.
        resolver: by default one with the system's name servers as they are now.

    Raises:
        DialError: there are none, or nobody tells.
    """
    try:
        if resolver is None:
            resolver = dns.asyncresolver.Resolver()
        answer = await resolver.resolve(name, "TXT", lifetime=_LIFETIME)
    except (dns.exception.DNSException, OSError) as e:
        raise DialError(f"look-up of {name!r}: {str(e) or type(e).__name__}") from e
    records = [record for record in answer if isinstance(record, TXT)]
    return [b"".join(record.strings).decode(errors="replace") for record in records]
