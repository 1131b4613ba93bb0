"""The meta certificate: a relay sends its DERP key inside the TLS handshake.

It is a self-signed certificate at the end of the chain. Its common name is `derpkey` and the
relay's key, its serial number the protocol version. Clients do not verify it: under TLS 1.3 the
handshake authenticates the whole chain. A client that finds it saves a round trip (fast start).

X.509 allows 64 characters in a common name and this one has 71, so X.509 libraries warn or refuse.
That is why this module writes and reads DER itself.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable
from typing import Final

import nacl.bindings

from pyderp.errors import InvalidKey
from pyderp.keys import NodePublic
from pyderp.wire.frames import PROTOCOL_VERSION

__all__ = [
    "META_NAME_PREFIX",
    "common_name_untrusted",
    "make_meta_certificate",
    "scan_chain_untrusted",
]

META_NAME_PREFIX: Final = "derpkey"
"""Start of a meta certificate's common name."""

_VALIDITY: Final = datetime.timedelta(days=30)
_OID_COMMON_NAME: Final = bytes.fromhex("0603550403")
_ED25519: Final = bytes.fromhex("300506032b6570")
"""AlgorithmIdentifier 1.3.101.112."""
_BASIC_CONSTRAINTS: Final = bytes.fromhex("300c0603551d130101ff04023000")
"""2.5.29.19, critical, CA false."""
_MAX_SERIAL: Final = 255


def make_meta_certificate(server: NodePublic, *, now: datetime.datetime) -> bytes:
    """Make a meta certificate in DER; its Ed25519 key is not kept.

    Args:
        now: time with its zone; the certificate is valid from 30 days before to 30 days after.
    """
    public, private = nacl.bindings.crypto_sign_keypair()
    common_name = _der(0x13, (META_NAME_PREFIX + server.untyped_hex()).encode("ascii"))
    name = _der(0x30, _der(0x31, _der(0x30, _OID_COMMON_NAME, common_name)))
    body = _der(
        0x30,
        _der(0xA0, _der(0x02, b"\x02")),  # version 3
        _der(0x02, bytes((PROTOCOL_VERSION,))),  # serial number
        _ED25519,
        name,  # issuer
        _der(0x30, _utc_time(now - _VALIDITY), _utc_time(now + _VALIDITY)),
        name,  # subject
        _der(0x30, _ED25519, _der(0x03, b"\0" + public)),
        _der(0xA3, _der(0x30, _BASIC_CONSTRAINTS)),
    )
    signature = nacl.bindings.crypto_sign(body, private)[: nacl.bindings.crypto_sign_BYTES]
    return _der(0x30, body, _ED25519, _der(0x03, b"\0" + signature))


def _der(tag: int, *parts: bytes) -> bytes:
    contents = b"".join(parts)
    size = len(contents)
    if size < 0x80:
        return bytes((tag, size)) + contents
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes((tag, 0x80 | len(length))) + length + contents


def _utc_time(when: datetime.datetime) -> bytes:
    utc = when.astimezone(datetime.UTC)
    return _der(0x17, utc.strftime("%y%m%d%H%M%SZ").encode("ascii"))


def scan_chain_untrusted(chain: Iterable[bytes]) -> tuple[NodePublic, int] | None:
    """Find the meta certificate in a presented chain.

    Expiry and signature are not checked. Use it under TLS 1.3 only: in older versions the chain is
    not encrypted.

    Args:
        chain: DER certificates as presented.

    Returns:
        (relay key, protocol version) of the first meta certificate, or `None`. With version 0
        or a zero key there is no fast start.
    """
    for der in chain:
        found = _serial_and_name(der)
        if found is None:
            continue
        serial, name = found
        if not name.startswith(META_NAME_PREFIX) or serial > _MAX_SERIAL:
            continue
        try:
            return NodePublic.parse_untyped(name.removeprefix(META_NAME_PREFIX)), serial
        except InvalidKey:
            continue
    return None


def common_name_untrusted(der: bytes) -> str:
    """Return the common name of a certificate's subject, also one that X.509 libraries refuse.

    Args:
        der: a presented certificate; may be malformed.

    Returns:
        the name; empty if there is none, if it is not ASCII, or if the certificate is malformed.
    """
    found = _serial_and_name(der)
    return "" if found is None else found[1]


def _serial_and_name(der: bytes) -> tuple[int, str] | None:
    try:
        body = _contents(der, 0x30)
        tbs = _contents(body, 0x30)
        tag, start, end = _element(tbs, 0)
        if tag == 0xA0:  # [0] version, absent in v1
            tag, start, end = _element(tbs, end)
        if tag != 0x02:
            return None
        serial = int.from_bytes(tbs[start:end], "big", signed=True)
        # signature, issuer, validity, subject
        for _ in range(3):
            _, _, end = _element(tbs, end)
        tag, start, end = _element(tbs, end)
        if tag != 0x30 or serial < 0:
            return None
        return serial, _common_name(tbs[start:end])
    except (IndexError, ValueError):
        return None


def _common_name(subject: bytes) -> str:
    at = subject.find(_OID_COMMON_NAME)
    if at < 0:
        return ""
    _, start, end = _element(subject, at + len(_OID_COMMON_NAME))
    return subject[start:end].decode("ascii")


def _contents(data: bytes, want: int) -> bytes:
    tag, start, end = _element(data, 0)
    if tag != want:
        raise ValueError("another DER tag")
    return data[start:end]


def _element(data: bytes, pos: int) -> tuple[int, int, int]:
    """Return the tag of the DER element at `pos`, and where its contents start and end."""
    tag, length, start = data[pos], data[pos + 1], pos + 2
    if length & 0x80:
        count = length & 0x7F
        if not 1 <= count <= 4:
            raise ValueError("DER length")
        length = int.from_bytes(data[start : start + count], "big")
        start += count
    end = start + length
    if end > len(data):
        raise ValueError("DER element is cut")
    return tag, start, end
