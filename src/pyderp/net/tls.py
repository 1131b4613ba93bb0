"""TLS over any link: the handshake, its verification, and the stream that follows.

On the ssl module's memory buffers rather than the event loop's TLS, so that it works over
every `Link` (TLS inside TLS, too), and so that nothing can be sent before all is verified.
"""

from __future__ import annotations

import datetime
import logging
import ssl
from dataclasses import dataclass
from typing import Final, Protocol

from pyderp.errors import CertificateError, FailureReason, TLSError, raisable, without_frames
from pyderp.net.link import NO_RECEIVER, LayeredLink, Link, Receiver
from pyderp.net.settings import NetworkSettings
from pyderp.net.tlscontext import TLSConfig, client_context
from pyderp.net.verify import (
    UNNAMED,
    Rule,
    describe,
    make_rule,
    presented_chain,
    self_signed_issuer,
    verify_by_program,
)
from pyderp.text import is_alert, name_words, openssl_words

__all__ = ["HealthTracker", "TLSConfig", "TLSState", "TlsLink", "start_tls"]

_log = logging.getLogger("pyderp.tls")

_SLICE: Final = 16 * 1024
"""A memory buffer of OpenSSL never shrinks again."""
_RECORD: Final = 16 * 1024
"""The most plaintext that a record has (RFC 8446, section 5.1)."""
_NAME_ALERTS: Final = {
    "TLSV1_ALERT_INTERNAL_ERROR": "internal error",
    "TLSV1_UNRECOGNIZED_NAME": "unrecognized name",
}
"""OpenSSL's names of what relays answer to a server name that is not theirs."""
_HANDSHAKE_OR_ALERT: Final = (0x16, 0x15)
"""Types of the record that a TLS server may begin with."""


def _reason(error: ssl.SSLError) -> FailureReason:
    return FailureReason.TLS_REFUSED if is_alert(error) else FailureReason.TLS_FAILED


class HealthTracker(Protocol):
    """Told how the certificates of servers fare, as `health.Tracker` in Go."""

    def set_tls_error(self, server_name: str, error: Exception | None) -> None:
        """The connection to a server looks intercepted; `None`: its last one does not."""


@dataclass(frozen=True)
class TLSState:
    """What a handshake agreed on."""

    version: str
    """Such as `TLSv1.3`."""

    cipher: str
    """OpenSSL's name of the cipher suite."""

    server_name: str
    """The host name or IP address that the client asked for."""

    peer_chain: tuple[bytes, ...]
    """Certificates as the server presented them, DER. Its own is first, a relay's meta
    certificate last."""


async def start_tls(
    link: Link,
    *,
    server_name: str,
    cert_name: str = "",
    insecure: bool = False,
    config: TLSConfig,
    settings: NetworkSettings,
    health: HealthTracker | None = None,
) -> TlsLink:
    """Begin TLS 1.2 or 1.3 on a link, which then belongs to the new one, also when this fails.

    Nothing is sent but the handshake until the certificate has passed all checks. There is
    no time limit here.

    Args:
        link: connected and not started.
        server_name, cert_name, insecure: as `make_rule`. A host name is sent in the handshake.
        config: which authorities to trust, and functions of the program.
        settings: `keylog_file` and `verbose_tls` hold here.
        health: called after each verification.

    Raises:
        PinMismatch: not the certificate that `cert_name` pins.
        CertificateError: the certificate is not trusted, or is for another name or time.
        TLSError: the other side does not speak TLS, or not as we do, or hung up.
        ConfigError: a file in `config` or `settings` cannot be used.
        OSError: the link broke.
    """
    try:
        rule = make_rule(server_name, cert_name=cert_name, insecure=insecure)
        context = client_context(
            config, chain=rule.chain, hostname=rule.hostname, keylog_file=settings.keylog_file
        )
        handshake = _Handshake(link, context, rule, config)
        try:
            await handshake.run()
        except CertificateError as e:
            handshake.report(health, e, verbose=settings.verbose_tls)
            raise
        handshake.report(health, None, verbose=settings.verbose_tls)
        return handshake.finish()
    except BaseException:
        link.abort()
        raise


class _Handshake:
    """The time until a certificate is verified."""

    def __init__(self, link: Link, context: ssl.SSLContext, rule: Rule, config: TLSConfig) -> None:
        self._link = link
        self._rule = rule
        self._verify = config.verify
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._first = b""
        """What the server began with."""
        name = rule.server_name
        try:
            # For an address OpenSSL compares that and sends no name.
            # None sends no name, but is only for what compares none: `ssl` would skip that.
            host = name if name or rule.hostname else None
            self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=host)
        except TypeError as e:  # it has a null byte
            raise TLSError(f"{name!r} cannot be a server's name: {e}") from e
        except ValueError as e:
            raise TLSError(f"{name!r} cannot be a server's name: {name_words(e)}") from e

    async def run(self) -> None:
        """Exchange what the handshake needs, and verify."""
        while not self._step():
            if self._outgoing.pending:
                self._link.write(self._outgoing.read())
            data = await self._link.read()
            if not data:
                raise self._error("closed during the TLS handshake")
            self._first = self._first or data[:1]
            self._incoming.write(data)
        # Our last message of the handshake has not left yet, if this fails.
        chain = presented_chain(self._tls)
        self._rule.check(chain, now=datetime.datetime.now(datetime.UTC))
        if self._verify is not None:
            verify_by_program(self._verify, self._rule.server_name, chain)

    def _step(self) -> bool:
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return False
        except ssl.SSLError as e:
            if self._outgoing.pending:
                self._link.write(self._outgoing.read())  # the alert
            if isinstance(e, ssl.SSLCertVerificationError):
                raise self._rule.explain(e, presented_chain(self._tls)) from e
            raise self._failure(e) from e
        return True

    def _failure(self, error: ssl.SSLError) -> TLSError:
        if self._first and self._first[0] not in _HANDSHAKE_OR_ALERT:
            text = "the server does not speak TLS on this port"
            return self._error(text, reason=FailureReason.NO_TLS)
        reason = error.reason
        if reason in ("UNSUPPORTED_PROTOCOL", "TLSV1_ALERT_PROTOCOL_VERSION"):
            text = "the server speaks neither TLS 1.2 nor TLS 1.3"
            return self._error(text, reason=FailureReason.TLS_REFUSED)
        if reason in _NAME_ALERTS:
            whom = "this name" if self._rule.server_name else "a client that names no server"
            return self._error(
                f"TLS handshake failed: the server ended it with the alert "
                f"{_NAME_ALERTS[reason]!r}, as Go's relay does if it has no certificate for "
                f"{whom}: check the name, HostName in a map",
                reason=FailureReason.TLS_NAME,
            )
        text = f"TLS handshake failed: {openssl_words(error)}"
        return self._error(text, reason=_reason(error))

    def _error(self, text: str, *, reason: FailureReason | None = None) -> TLSError:
        rule = self._rule
        return TLSError(f"{rule.server}: {text}", reason=reason, host=rule.server_name, short=text)

    def report(
        self, health: HealthTracker | None, error: CertificateError | None, *, verbose: bool
    ) -> None:
        """Report what verification found."""
        chain = presented_chain(self._tls)
        if verbose:
            _log.info("%s: %s", self._rule.server, error or "certificate accepted")
            for number, der in enumerate(chain):
                _log.info("%s: certificate %d: %s", self._rule.server, number, describe(der))
        if health is None:
            return
        problem = None
        # A pinned certificate signs itself as a rule, which tells nothing.
        if error is not None and chain and self._rule.pin is None:
            issuer = self_signed_issuer(chain[0])
            if issuer is not None:
                problem = CertificateError(
                    f"likely intercepted connection; certificate is self-signed by {issuer}"
                )
        health.set_tls_error(self._rule.server_name, problem)

    def finish(self) -> TlsLink:
        """The stream behind the handshake."""
        if self._outgoing.pending:
            self._link.write(self._outgoing.read())
        return TlsLink(
            self._link, self._tls, self._incoming, self._outgoing, self._rule.server_name
        )


class TlsLink(LayeredLink):
    """A verified TLS connection over another link; made by `start_tls`."""

    def __init__(
        self,
        lower: Link,
        tls: ssl.SSLObject,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        server_name: str,
    ) -> None:
        super().__init__(lower)
        self._tls = tls
        self._incoming = incoming
        self._outgoing = outgoing
        self._receiver: Receiver  # from `start` on, and the link below brings nothing before
        self._ended = False
        """Over, whatever else comes: by a close alert, an error or `abort`."""
        self._error: TLSError | None = None
        cipher = tls.cipher()
        self.state = TLSState(
            version=tls.version() or "",
            cipher=cipher[0] if cipher else "",
            server_name=server_name,
            peer_chain=presented_chain(tls),
        )

    # Called by the link below

    def data_received(self, data: bytes) -> None:
        plain = self._decrypt(data)
        if plain:
            self._receiver.data_received(plain)
        if self._ended:
            self._lower.abort()

    def connection_lost(self, error: Exception | None) -> None:
        """The link below ended; without a close alert that is an end, too (so in Go)."""
        receiver, self._receiver = self._receiver, NO_RECEIVER
        receiver.connection_lost(self._error if self._ended else error)

    def writable(self) -> None:
        self._receiver.writable()

    def _decrypt(self, data: bytes) -> bytes:
        """The plaintext that is complete now."""
        records: list[bytes] = []
        for start in range(0, len(data) or 1, _SLICE):
            if self._ended:
                break
            self._incoming.write(data[start : start + _SLICE])
            try:
                self._read_records(records)
            except ssl.SSLWantReadError:
                pass  # the rest is an incomplete record
            except ssl.SSLError as e:
                self._fail(e)
        # Whatever OpenSSL has to say by itself, such as an alert.
        if self._outgoing.pending:
            self._lower.write(self._outgoing.read())
        return records[0] if len(records) == 1 else b"".join(records)

    def _read_records(self, records: list[bytes]) -> None:
        # Asking for what is not there costs an exception. No record is left half read: `_RECORD`
        # is as much as one can hold.
        while self._incoming.pending:
            record = self._tls.read(_RECORD)
            if not record:  # a close alert
                self._ended = True
                return
            records.append(record)

    def _fail(self, error: ssl.SSLError) -> None:
        self._ended = True
        name = self.state.server_name or UNNAMED
        self._error = TLSError(f"{name}: TLS: {openssl_words(error)}", reason=_reason(error))
        self._error.__cause__ = without_frames(error)

    # Called by us

    async def read(self) -> bytes:
        """Some bytes; `b""` at the end of the stream.

        Raises:
            TLSError: what came is not TLS, or was tampered with.
            OSError: the link below broke.
        """
        data = b""
        while not (plain := self._decrypt(data)):
            if self._error is not None:
                raise raisable(self._error)
            if self._ended or not (data := await self._lower.read()):
                return b""
        return plain

    def start(self, receiver: Receiver) -> None:
        self._receiver = receiver
        self.data_received(b"")
        self._lower.start(self)

    def write(self, data: bytes) -> None:
        """Encrypt and send, in one write to the link below."""
        if self._ended or not data:
            return
        try:
            self._tls.write(data)  # all of it, in as many records as it takes
        except ssl.SSLError as e:
            self._fail(e)
            self._lower.abort()
        else:
            self._lower.write(self._outgoing.read())

    def abort(self) -> None:
        """Close the link below, without a close alert (so does `close`, as in Go)."""
        self._ended = True
        self._lower.abort()
