"""Bytes on the TLS port, by each engine: `pyderp.server.conn.engines`.

The first byte says what comes before the payload: nothing, or the complete handshake of a valid
client, so that the payload is records that were not encrypted with the keys of the session. The
next four bytes are the sizes of chunks.
"""

from __future__ import annotations

import contextlib
import ssl
from datetime import UTC, datetime, timedelta
from typing import Final

from cryptography import x509

from fuzz.targets._input import cut, split_input
from pyderp.certs import CertificateSource, ServerContexts
from pyderp.certs.credential import Credential
from pyderp.certs.leaf import self_signed
from pyderp.errors import RemoteProtocolError
from pyderp.native import NativeUse, load
from pyderp.server.conn.engines import Engine, RustlsEngine, SSLEngine
from pyderp.server.conn.records import RecordLayer

__all__ = ["TOKENS", "one_input"]

NAME: Final = "derp.example.com"
TOKENS: Final = (
    b"\x14\x03\x03\x00\x01\x01",
    b"\x15\x03\x03\x00\x02\x02\x28",
    b"\x16\x03\x01",
    b"\x17\x03\x03\x00\x20",
    b"\x17\x03\x03\x41\x00",
    b"\x18\x03\x03\x00\x03\x01\x40\x00",
    b"\x01\x00\x00\xc0\x03\x03",
    b"\x08http/1.1",
    b"\x00\x2b\x00\x03\x02\x03\x04",
    b"\x00\x00\x00\x15\x00\x13\x00\x00\x10derp.example.com",
    b"GET / HTTP/1.1\r\n\r\n",
)
_ROOM: Final = 64 * 1024
_MAX_ALERT: Final = 256
_MAX_FLIGHT: Final = 8 * 1024


class _Source(CertificateSource):
    """One certificate for all names."""

    def __init__(self) -> None:
        now = datetime.now(UTC)
        lifetime = now - timedelta(days=1), now + timedelta(days=1)
        self._credential = self_signed(NAME, x509.DNSName(NAME), lifetime, ())

    def credential(self, local_address: str, server_name: str | None) -> Credential | None:
        return self._credential if server_name == NAME else None


def _engines() -> list[Engine]:
    contexts = ServerContexts(_Source(), b"")
    engines: list[Engine] = [SSLEngine(contexts, NAME.encode())]
    native = load(NativeUse.AUTO)
    if native is not None:
        engines.append(RustlsEngine(native, contexts, NAME.encode()))
    return engines


_ENGINES: Final = _engines()


def _client() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


_CLIENT: Final = _client()


def _feed(records: RecordLayer, data: bytes) -> int:
    return records.feed(memoryview(bytearray(data)), memoryview(bytearray(_ROOM)))


def _established(engine: Engine) -> RecordLayer:
    """Returns the record layer of a connection after its handshake."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = _CLIENT.wrap_bio(incoming, outgoing, server_hostname=NAME)
    records: RecordLayer | None = None
    while True:
        with contextlib.suppress(ssl.SSLWantReadError):
            client.do_handshake()
        data = outgoing.read()
        if not data:
            assert records is not None
            return records
        records = records or engine.records("", data)
        assert records is not None
        _feed(records, data)
        incoming.write(records.output())


def _play(engine: Engine, payload: bytes, sizes: bytes, *, established: bool) -> None:
    records = _established(engine) if established else None
    hello = b""
    for piece in cut(payload, sizes):
        data = piece
        if records is None:
            hello += piece
            if len(hello) < 5:
                continue
            records, data = engine.records("", hello), hello
            if records is None:
                continue
        filled = _feed(records, data)
        assert filled == 0, "bytes that were never encrypted were decrypted"
        # Bytes that are no handshake are answered by an alert at most.
        assert len(records.output()) <= (_MAX_ALERT if established else _MAX_FLIGHT)
        if records.failure:
            assert records.failure.isprintable()
            return
        if records.is_closed:
            break
    if records is not None:
        assert len(records.close()) <= _MAX_ALERT


def one_input(data: bytes) -> None:
    """Feed each engine; it may fail, end or wait for more, but not raise anything else."""
    mode, sizes, payload = split_input(data)
    for engine in _ENGINES:
        with contextlib.suppress(RemoteProtocolError):
            _play(engine, payload, sizes, established=bool(mode & 1))
