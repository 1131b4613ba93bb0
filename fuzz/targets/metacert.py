"""The certificates that a relay presents: `pyderp.wire.metacert.scan_chain_untrusted`.

An input is a chain: each certificate has its length before it, as two bytes.
"""

from __future__ import annotations

from typing import Final

from pyderp.wire.metacert import scan_chain_untrusted

__all__ = ["TOKENS", "one_input"]

TOKENS: Final = (
    b"derpkey",
    b"\x06\x03\x55\x04\x03\x13\x47",
    b"\x30\x82",
    b"\x30\x80",
    b"\x30\x84\xff\xff\xff\xff",
    b"\xa0\x03\x02\x01\x02",
    b"\x02\x01\x02",
    b"\x02\x02\x01\x00",
    b"\x02\x00",
    b"0123456789abcdef" * 4,
    b"0" * 64,
)


def _chain(data: bytes) -> list[bytes]:
    chain: list[bytes] = []
    pos = 0
    while pos < len(data):
        start = pos + 2
        pos = start + int.from_bytes(data[pos:start])
        chain.append(data[start:pos])
    return chain


def one_input(data: bytes) -> None:
    """Scan a chain: the result must be that of the first certificate that fits by itself."""
    chain = _chain(data)
    found = scan_chain_untrusted(chain)
    singly = (scan_chain_untrusted((der,)) for der in chain)
    assert found == next((one for one in singly if one is not None), None)
    if found is not None:
        key, version = found
        assert len(key.raw) == 32
        assert 0 <= version <= 255
