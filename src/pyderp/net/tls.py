"""TLS over any link: the handshake, its verification, and the stream that follows.

It uses the ssl module's memory buffers (`MemoryBIO`) and not the event loop's TLS, for two
reasons: it works over every `Link`, so TLS inside TLS to an HTTPS proxy works, too; and nothing
but the handshake can be sent before the certificate has passed all checks.
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
"""Bytes that are written to a memory buffer at a time: OpenSSL never makes it smaller again."""
_RECORD: Final = 16 * 1024
"""The most plaintext that a record has (RFC 8446, section 5.1)."""
_NAME_ALERTS: Final = {
    "TLSV1_ALERT_INTERNAL_ERROR": "internal error",
    "TLSV1_UNRECOGNIZED_NAME": "unrecognized name",
}
"""OpenSSL's names of the alerts that relays send if they have no certificate for the name."""
_HANDSHAKE_OR_ALERT: Final = (0x16, 0x15)
"""Types of the records that a TLS server may send first."""


def _reason(error: ssl.SSLError) -> FailureReason:
    return FailureReason.TLS_REFUSED if is_alert(error) else FailureReason.TLS_FAILED


class HealthTracker(Protocol):
    """Takes the results of certificate checks, as `health.Tracker` in Go."""

    def set_tls_error(self, server_name: str, error: Exception | None) -> None:
        """Take the result of a check: an error if the connection looks intercepted, or `None`."""


@dataclass(frozen=True)
class TLSState:
    """The results of a handshake."""

    version: str
    """OpenSSL's name of the version, such as `TLSv1.3`."""

    cipher: str
    """OpenSSL's name of the cipher suite."""

    server_name: str
    """The host name or IP address that the client asked for."""

    peer_chain: tuple[bytes, ...]
    """The certificates that the server presented, DER, in its order: its own first, a relay's meta
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

    Only the handshake is sent until the certificate has passed all checks. There is no time limit
    here.

    Args:
        link: connected and not started.
        server_name, cert_name, insecure: as for `make_rule`. A host name is sent in the handshake.
        config: which authorities to trust, and functions of the program.
        settings: `keylog_file` and `verbose_tls` are used.
        health: called after each verification.

    Raises:
        PinMismatch: the certificate is not the one that `cert_name` pins.
        CertificateError: the certificate is not trusted, or is for another name or time.
        TLSError: the server does not speak TLS 1.2 or 1.3, sent an alert, or closed.
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
    """A handshake, from its first message until the certificate is verified."""

    def __init__(self, link: Link, context: ssl.SSLContext, rule: Rule, config: TLSConfig) -> None:
        self._link = link
        self._rule = rule
        self._verify = config.verify
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._first = b""
        """The first byte that the server sent."""
        name = rule.server_name
        try:
            # Of an IP address OpenSSL sends no name, and compares the address. `None` sends no
            # name either, but then `ssl` compares none: so it is used only where the rule compares
            # none. An empty name that should be compared makes `wrap_bio` fail.
            host = name if name or rule.hostname else None
            self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=host)
        except TypeError as e:  # the name contains a null byte
            raise TLSError(f"{name!r} cannot be a server's name: {e}") from e
        except ValueError as e:
            raise TLSError(f"{name!r} cannot be a server's name: {name_words(e)}") from e

    async def run(self) -> None:
        """Exchange the messages of the handshake, and verify the certificate.

        The link has no reader of its own yet: this task reads and writes in turn.
        """
        while not self._step():
            if self._outgoing.pending:
                self._link.write(self._outgoing.read())
            data = await self._link.read()
            if not data:
                raise self._error("closed during the TLS handshake")
            self._first = self._first or data[:1]
            self._incoming.write(data)
        # OpenSSL has verified chain and name by now, if the rule says so. Under TLS 1.3 the
        # client's last message is still in `_outgoing`, and `finish` sends it: if a check here
        # fails, the server never sees a complete handshake.
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
            # The alert that OpenSSL has made: the server's log then says why the client closed.
            if self._outgoing.pending:
                self._link.write(self._outgoing.read())
            if isinstance(e, ssl.SSLCertVerificationError):
                raise self._rule.explain(e, presented_chain(self._tls)) from e
            raise self._failure(e) from e
        return True

    def _failure(self, error: ssl.SSLError) -> TLSError:
        # OpenSSL reports a plain HTTP answer as a wrong TLS version. The first byte of the answer
        # shows that the server does not speak TLS.
        if self._first and self._first[0] not in _HANDSHAKE_OR_ALERT:
            text = "the server does not speak TLS on this port"
            return self._error(text, reason=FailureReason.NO_TLS)
        reason = error.reason
        if reason in ("UNSUPPORTED_PROTOCOL", "TLSV1_ALERT_PROTOCOL_VERSION"):
            text = "the server speaks neither TLS 1.2 nor TLS 1.3"
            return self._error(text, reason=FailureReason.TLS_REFUSED)
        if reason in _NAME_ALERTS:
            name = "this name" if self._rule.server_name else "a client that names no server"
            return self._error(
                f"TLS handshake failed: the server ended it with the alert "
                f"{_NAME_ALERTS[reason]!r}, as Go's relay does if it has no certificate for "
                f"{name}: check the name, HostName in a map",
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
        """Log and report the result of the verification."""
        chain = presented_chain(self._tls)
        if verbose:
            _log.info("%s: %s", self._rule.server, error or "certificate accepted")
            for number, der in enumerate(chain):
                _log.info("%s: certificate %d: %s", self._rule.server, number, describe(der))
        if health is None:
            return
        problem = None
        # Firewalls that intercept TLS present certificates of an authority of their own. With a
        # pin, a self-signed certificate is normal, so that it is not a sign of one.
        if error is not None and chain and self._rule.pin is None:
            issuer = self_signed_issuer(chain[0])
            if issuer is not None:
                problem = CertificateError(
                    f"likely intercepted connection; certificate is self-signed by {issuer}"
                )
        health.set_tls_error(self._rule.server_name, problem)

    def finish(self) -> TlsLink:
        """Send the client's last message; return the link for application data."""
        if self._outgoing.pending:
            self._link.write(self._outgoing.read())
        # Application data that came with the server's last message is in `_incoming` already.
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
        self._receiver: Receiver  # set by `start`; the link below delivers nothing before
        self._ended = False
        """Whether a close alert, an error or `abort` has ended it; later bytes are ignored."""
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
        """Report the end of the link below. Without a close alert it is a clean end, as in Go.

        DERP has frames with lengths, so that a cut connection cannot pass for a shorter stream.
        """
        receiver, self._receiver = self._receiver, NO_RECEIVER
        receiver.connection_lost(self._error if self._ended else error)

    def writable(self) -> None:
        self._receiver.writable()

    def _decrypt(self, data: bytes) -> bytes:
        """Returns the plaintext of the records that are complete now."""
        records: list[bytes] = []
        # Also once for `b""`, as `_incoming` may hold records that came with the handshake.
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
        # Messages that OpenSSL makes by itself, such as an alert or the answer to a key update.
        if self._outgoing.pending:
            self._lower.write(self._outgoing.read())
        return records[0] if len(records) == 1 else b"".join(records)

    def _read_records(self, records: list[bytes]) -> None:
        # `pending` is asked first, because a read without data raises an exception, which costs
        # more than the look. No record is left half read, as none holds more than `_RECORD`.
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

    # Called by the user of the link

    async def read(self) -> bytes:
        """Returns bytes, or `b""` at the end of the stream.

        Raises:
            TLSError: the bytes that came are not TLS, or were changed on the way.
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
            # A memory buffer has no limit, so OpenSSL takes all of it, in several records.
            self._tls.write(data)
        except ssl.SSLError as e:
            self._fail(e)
            self._lower.abort()
        else:
            self._lower.write(self._outgoing.read())

    def abort(self) -> None:
        """Close the link below, without a close alert; `close` sends none either, as in Go."""
        self._ended = True
        self._lower.abort()
