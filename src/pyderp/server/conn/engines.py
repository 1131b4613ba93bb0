"""TLS engines: from a ClientHello to the record layer of a connection.

An engine chooses the certificate and makes the records. Nothing else asks which engine runs.
"""

from __future__ import annotations

import logging
from typing import Final, Protocol
from weakref import WeakKeyDictionary

from pyderp.certs.context import ACME_TLS, HTTP, ServerContexts
from pyderp.certs.credential import Credential
from pyderp.native import NativeModule, RustlsConfig
from pyderp.server.conn.records import NO_CERTIFICATE, RecordLayer, SSLRecords
from pyderp.wire.clienthello import parse_client_hello_untrusted

__all__ = ["HANDSHAKE_RECORD", "Engine", "RustlsEngine", "SSLEngine"]

log = logging.getLogger("pyderp.tls")

HANDSHAKE_RECORD: Final = 22
"""First byte of a record with a part of the handshake."""
_REFUSE_NAME: Final = bytes((21, 3, 3, 0, 2, 2, 80))
"""The fatal alert `internal_error` (RFC 8446 §6.2), as `REFUSE_NAME`; nothing is encrypted yet."""
_OFFERS_HTTP: Final = len(HTTP).to_bytes(1) + HTTP.encode()
"""How a ClientHello offers the protocol (RFC 7301 §3.1)."""


class Engine(Protocol):
    """Makes the record layers of a relay's connections.

    Attributes:
        name: of the library below it.
    """

    name: str

    def records(self, local_address: str, data: bytes) -> RecordLayer | None:
        """The records of a connection, which take `data` next.

        Args:
            local_address: the relay's own IP address that the client connected to.
            data: the first bytes of the client: a whole record, or more of them, or no TLS.

        Returns:
            `None` while the ClientHello is not whole.

        Raises:
            RemoteProtocolError: it is no ClientHello.
        """


class SSLEngine:
    """TLS by the ssl module: OpenSSL, or what Python was built with.

    Args:
        contexts: have the certificates.
        server_name: what clients ask for; a ClientHello with it needs no second look.
    """

    name = "ssl"

    def __init__(self, contexts: ServerContexts, server_name: bytes = b"") -> None:
        self._contexts = contexts
        self._server_name = server_name

    def records(self, local_address: str, data: bytes) -> RecordLayer | None:
        """Choose the context (`Engine.records`).

        OpenSSL asks for the certificate when it knows the name. But an authority that checks
        this relay needs a certificate of its own. And the ssl module prints a traceback for a
        name that is not ASCII, which a client may send at will.
        """
        contexts = self._contexts
        # Nearly all ask for the right name. OpenSSL knows what is no TLS.
        name = self._server_name
        if data[0] == HANDSHAKE_RECORD and (
            contexts.challenge_pending or not name or name not in data
        ):
            if parse_client_hello_untrusted(data) is None:
                return None
            if contexts.challenge_pending:
                challenge = contexts.challenge_context(memoryview(data))
                if challenge is not None:
                    return SSLRecords(challenge)
        return SSLRecords(contexts.context(local_address))


class RustlsEngine:
    """TLS by rustls, in `pyderp-fast`; what it cannot do is left to the ssl module.

    Args:
        native: the module.
        contexts: have the certificates.
        server_name: what clients ask for, if the certificate is for a name.
    """

    name = "rustls"

    def __init__(
        self, native: NativeModule, contexts: ServerContexts, server_name: bytes = b""
    ) -> None:
        self._native = native
        self._contexts = contexts
        self._ssl = SSLEngine(contexts, server_name)
        self._server_name = server_name.decode()
        self._extension = _server_name_extension(server_name)
        self._configs: WeakKeyDictionary[Credential, RustlsConfig | None] = WeakKeyDictionary()
        """`None`: rustls refuses it."""

    def records(self, local_address: str, data: bytes) -> RecordLayer | None:
        """Choose the certificate (`Engine.records`)."""
        contexts = self._contexts
        if data[0] != HANDSHAKE_RECORD:
            return self._ssl.records(local_address, data)
        if self._extension in data and not contexts.challenge_pending and _is_whole(data):
            name, offers_http = self._server_name, _OFFERS_HTTP in data
        else:
            hello = parse_client_hello_untrusted(data)
            if hello is None:
                return None
            if contexts.challenge_pending:
                credential = contexts.source.challenge_credential(memoryview(data))
                if credential is not None:
                    return self._of(credential, alpn=True, challenge=True)
            name, offers_http = hello.server_name, HTTP.encode() in hello.protocols
        credential = contexts.source.credential(local_address, name or None)
        if credential is None:
            return RefusedRecords(_REFUSE_NAME, NO_CERTIFICATE)
        return self._of(credential, alpn=offers_http)

    def _of(self, credential: Credential, *, alpn: bool, challenge: bool = False) -> RecordLayer:
        config = self._configs.get(credential)
        if config is None:
            if credential not in self._configs:
                config = self._configs[credential] = self._config(credential, challenge=challenge)
            if config is None:
                return SSLRecords(self._contexts.filled(credential, challenge=challenge))
        # A client that offers other protocols only is served all the same, without any.
        records: RecordLayer = self._native.Tls(config, alpn=alpn)
        return records

    def _config(self, credential: Credential, *, challenge: bool) -> RustlsConfig | None:
        meta = b"" if challenge else self._contexts.meta
        # OpenSSL knows this old name too; rustls would pass such a block over, whatever is in it.
        chain = credential.chain.replace(b" X509 CERTIFICATE-----", b" CERTIFICATE-----")
        chain = chain.rstrip() + b"\n" + meta
        try:
            return self._native.TlsConfig(
                chain, credential.key, alpn=ACME_TLS if challenge else HTTP
            )
        except self._native.TlsError as e:
            names = ", ".join(credential.info.names)
            log.warning("rustls refuses the certificate of %s, the ssl module has it: %s", names, e)
            return None


class RefusedRecords:
    """A `RecordLayer` that has failed before it began.

    Args:
        alert: the bytes to write.
        failure: why.
    """

    is_closed = False
    version = ""

    def __init__(self, alert: bytes, failure: str) -> None:
        self.news = False
        self.failure = ""
        self._alert = alert
        self._reason = failure

    def feed(self, encrypted: memoryview, room: memoryview) -> int:
        """Fail (`RecordLayer.feed`)."""
        self.news = True
        self.failure = self._reason
        return 0

    def seal(self, chunks: list[bytes]) -> bytes:
        """There is no session (`RecordLayer.seal`)."""
        return b""

    def output(self) -> bytes:
        """The alert, once (`RecordLayer.output`)."""
        alert, self._alert = self._alert, b""
        return alert

    def close(self) -> bytes:
        """There is no session (`RecordLayer.close`)."""
        return b""

    def unsent_size(self, outer: int, plain: int, encrypted: int) -> int:
        """Nothing was sealed (`RecordLayer.unsent_size`)."""
        return 0


def _is_whole(data: bytes) -> bool:
    """Whether the first record has the whole ClientHello."""
    record, message = int.from_bytes(data[3:5]), int.from_bytes(data[6:9])
    return message + 4 <= record


def _server_name_extension(name: bytes) -> bytes:
    """How a ClientHello asks for a name (RFC 6066 §3): the whole extension server_name."""
    size = len(name)
    head = (0).to_bytes(2), (size + 5).to_bytes(2), (size + 3).to_bytes(2), b"\0", size.to_bytes(2)
    return b"".join(head) + name
