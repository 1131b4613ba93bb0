"""Turns the error that ended a check into a failure with advice for the relay's operator."""

from __future__ import annotations

import errno
from typing import Final

from pyderp.doctor.finding import Seen, failed
from pyderp.errors import (
    BadUpgrade,
    ConnectError,
    DerpError,
    FailureReason,
    LoginRefused,
    RemoteProtocolError,
    TLSError,
    UpgradeRejected,
)
from pyderp.net.tcp import failure_reason
from pyderp.text import system_words

__all__ = ["explain", "no_such_family", "reason_of", "words_of"]

_PROXY: Final = "check the proxy that the environment variables name"
_BY_REASON: Final = {
    FailureReason.BAD_MAP: "correct the node in the map",
    FailureReason.TIMEOUT: (
        "no answer: is the address right, is the machine up, and does a firewall drop the packets?"
    ),
    FailureReason.REFUSED: (
        "nothing listens at this address and port: does the relay run, and does it listen on this "
        "address (`ss -tlnp`)?"
    ),
    FailureReason.UNKNOWN_NAME: "check the spelling of the name, and this machine's DNS",
    FailureReason.CUT: (
        "the connection was closed early: look at the relay's log, or, if that has nothing about "
        "it, at the server or firewall in front of the relay"
    ),
    FailureReason.UNREACHABLE: (
        "this machine has no route to the relay: check the address and this machine's routes"
    ),
    FailureReason.PROXY_TIMEOUT: _PROXY,
    FailureReason.PROXY_UNREACHABLE: _PROXY,
    FailureReason.PROXY_LOGIN: _PROXY,
    FailureReason.PROXY_LOGIN_UNKNOWN: _PROXY,
    FailureReason.PROXY_REFUSED: _PROXY,
    FailureReason.PROXY_BROKEN: _PROXY,
    FailureReason.NO_TLS: (
        "the server does not speak TLS: is this the right port, and does the relay have a "
        "certificate ({certmode}, {hostname})?"
    ),
    FailureReason.TLS_NAME: (
        "the server has no certificate for this name: connect by the name that its certificate is "
        "for, or check {hostname} of the relay"
    ),
    FailureReason.TLS_REFUSED: (
        "the server refuses the TLS of clients, which use TLS 1.2 or 1.3 without a client "
        "certificate: correct the settings of the server that terminates TLS"
    ),
    FailureReason.TLS_FAILED: "look at the relay's log, which says why it ended the handshake",
    FailureReason.CERTIFICATE_NOT_YET_VALID: "check the clocks of this machine and of the relay",
    FailureReason.CERTIFICATE_EXPIRED: (
        "renew the certificate; the relay's log says why it was not renewed"
    ),
    FailureReason.CERTIFICATE_OTHER_NAME: (
        "get a certificate for the name that clients connect to, or put the certificate's name "
        "into the map as CertName ({cert_name})"
    ),
    FailureReason.CERTIFICATE_UNUSABLE: (
        "get another certificate: clients refuse this one, whichever authorities they trust"
    ),
    FailureReason.CERTIFICATE_UNTRUSTED: (
        "get a certificate from an authority that clients trust, and send its whole chain; for a "
        "self-signed one put its pin into the map as CertName ({pin}); for an authority of your "
        "own give {ca} FILE"
    ),
    FailureReason.PIN_OTHER_CERTIFICATE: (
        "if the relay has a new certificate, put its pin into the map; if not, the connection is "
        "intercepted"
    ),
    FailureReason.PIN_OF_SEVERAL: "remove the pin, or let the relay send only its own certificate",
    FailureReason.NO_HTTP: "the server is not a relay: check the port",
    FailureReason.NO_DERP: "the server is not a relay: check host, port and path (/derp)",
}
_REFUSED: Final = (
    "the relay's log says why it closed the connection; if it admits known keys only, give "
    "{mesh_key} FILE or {key} FILE"
)
_NO_WAY: Final = (errno.ENETUNREACH, errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)


def explain(error: Exception) -> Seen:
    """Return the failure of a check that an error ended, with the reason in `data`."""
    cause = _first(error)
    reason = reason_of(cause)
    if isinstance(cause, LoginRefused):
        return failed(str(cause), _REFUSED, reason="login refused")
    text = words_of(cause)
    if isinstance(cause, UpgradeRejected):
        return failed(text, _BY_REASON[FailureReason.NO_DERP], status=cause.status)
    if reason is None:
        return failed(text, "look at the relay's log")
    return failed(text, _BY_REASON[reason], reason=reason.value)


def words_of(error: Exception) -> str:
    """Return the text of an error, without the number and class name of a system error."""
    if isinstance(error, OSError) and not isinstance(error, DerpError):
        return system_words(error)
    return str(error) or type(error).__name__


def reason_of(error: Exception) -> FailureReason | None:
    """Return why connecting failed, or `None` if the error has no reason."""
    if isinstance(error, TLSError | BadUpgrade):
        return error.reason
    if isinstance(error, RemoteProtocolError):
        return FailureReason.NO_DERP
    return failure_reason(error) if isinstance(error, OSError) else None


def _first(error: Exception) -> Exception:
    """Return the error of the first of several failed attempts; later ones often only repeat it."""
    while isinstance(error, ConnectError) and error.attempts:
        error = error.attempts[0]
    return error


def no_such_family(error: BaseException) -> bool:
    """Return whether the error means that this machine has no route for the address family.

    Most often the family is IPv6.
    """
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in _NO_WAY:
            return True
        seen = seen.__cause__
    return False
