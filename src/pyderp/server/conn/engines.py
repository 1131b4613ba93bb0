"""TLS engines: each makes the record layer of a connection for a ClientHello.

An engine chooses the certificate. No other code depends on which engine runs.
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
"""The fatal alert `internal_error` (RFC 8446 §6.2) before encryption, as the ssl engine sends."""
_OFFERS_HTTP: Final = len(HTTP).to_bytes(1) + HTTP.encode()
"""HTTP/1.1 in the list of protocols of a ClientHello (RFC 7301 §3.1)."""


class Engine(Protocol):
    """Makes the record layers of a relay's connections.

    Attributes:
        name: `ssl` or `rustls`.
    """

    name: str

    def records(self, local_address: str, data: bytes) -> RecordLayer | None:
        """Make the record layer of a connection; the caller passes it `data` next.

        Args:
            local_address: the relay's IP address that the client connected to.
            data: the client's first bytes: at least one complete record, or no TLS at all.

        Returns:
            `None` while the ClientHello is incomplete.

        Raises:
            RemoteProtocolError: a malformed ClientHello.
        """


class SSLEngine:
    """TLS by the ssl module: OpenSSL, or what Python was built with.

    Args:
        contexts: make the `ssl` contexts with the certificates.
        server_name: the relay's name; a ClientHello that contains it is not parsed here.
    """

    name = "ssl"

    def __init__(self, contexts: ServerContexts, server_name: bytes = b"") -> None:
        self._contexts = contexts
        self._server_name = server_name

    def records(self, local_address: str, data: bytes) -> RecordLayer | None:
        """Choose the context (`Engine.records`).

        OpenSSL itself calls back for the certificate of a name. Two cases must be handled before:
        a certificate authority that checks this relay gets a certificate made for it, and for a
        name that is not ASCII the ssl module would print a traceback.
        """
        contexts = self._contexts
        # Nearly all clients ask for the right name. OpenSSL recognises what is not TLS.
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
    """TLS by rustls, in `pyderp-fast`. The ssl module serves certificates that rustls refuses.

    Args:
        native: the module `pyderp_fast`.
        contexts: have the certificates.
        server_name: the relay's name, if the certificate is for a name.
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
        # Weak keys: after a renewal the old configuration goes with its last connection.
        self._configs: WeakKeyDictionary[Credential, RustlsConfig | None] = WeakKeyDictionary()
        """`None`: rustls refuses the certificate."""

    def records(self, local_address: str, data: bytes) -> RecordLayer | None:
        """Choose the certificate (`Engine.records`)."""
        contexts = self._contexts
        if data[0] != HANDSHAKE_RECORD:
            # OpenSSL's errors distinguish plain HTTP from other protocols.
            return self._ssl.records(local_address, data)
        # Nearly all clients send this extension, and their ClientHello need not be parsed. If its
        # bytes are elsewhere in the ClientHello, the client gets the relay's certificate for
        # another name, and refuses it.
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
            # A refusal is cached as None, so that it is logged once.
            if credential not in self._configs:
                config = self._configs[credential] = self._config(credential, challenge=challenge)
            if config is None:
                return SSLRecords(self._contexts.filled(credential, challenge=challenge))
        # A client that offers only other protocols is served, without a protocol.
        records: RecordLayer = self._native.Tls(config, alpn=alpn)
        return records

    def _config(self, credential: Credential, *, challenge: bool) -> RustlsConfig | None:
        meta = b"" if challenge else self._contexts.meta
        # OpenSSL accepts this old PEM label; rustls would silently skip such a block.
        chain = credential.chain.replace(b" X509 CERTIFICATE-----", b" CERTIFICATE-----")
        chain = chain.rstrip() + b"\n" + meta
        try:
            return self._native.TlsConfig(
                chain, credential.key, alpn=ACME_TLS if challenge else HTTP
            )
        except self._native.TlsError as e:
            names = ", ".join(credential.info.names)
            text = "rustls refuses the certificate of %s, so the ssl module serves it: %s"
            log.warning(text, names, e)
            return None


class RefusedRecords:
    """A `RecordLayer` that fails at the first bytes, for a client that gets no certificate.

    Args:
        alert: the bytes to write.
        failure: the reason.
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
    """Whether the first record contains the complete ClientHello."""
    record, message = int.from_bytes(data[3:5]), int.from_bytes(data[6:9])
    return message + 4 <= record


def _server_name_extension(name: bytes) -> bytes:
    """Return the extension server_name of a ClientHello that asks for a name (RFC 6066 §3)."""
    size = len(name)
    head = (0).to_bytes(2), (size + 5).to_bytes(2), (size + 3).to_bytes(2), b"\0", size.to_bytes(2)
    return b"".join(head) + name
