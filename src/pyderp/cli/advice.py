"""What to do about an error: a line for each kind, for people at a command line."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from http import HTTPStatus
from typing import Final

from pyderp.errors import (
    BadUpgrade,
    CertificateError,
    ConnectError,
    ConnectionClosed,
    DialError,
    PinMismatch,
    ProxyError,
    RemoteProtocolError,
    TLSError,
    UpgradeRejected,
)

__all__ = ["advice"]

_NAME: Final = (
    "the certificate is for another name: put that name into the URL, or give it with --cert-name"
)
_CERTIFICATE: Final = (
    # What the error says, and what follows.
    ("not yet valid", "check this machine's clock; the certificate begins later"),
    ("expired", "the certificate is too old, or this machine's clock is wrong: tell who runs it"),
    ("mismatch", _NAME),
    ("not valid for", _NAME),
    ("does not match server name", _NAME),
)
_STATUS: Final = {
    HTTPStatus.NOT_FOUND: "no relay at this path: its URL ends in /derp as a rule",
    HTTPStatus.OK: "a web site answers here, and no relay: check host, port and path (/derp)",
    HTTPStatus.UNAUTHORIZED: "the relay, or a proxy before it, wants a login: ask who runs it",
    HTTPStatus.FORBIDDEN: "the relay, or a proxy before it, lets you not in: ask who runs it",
    HTTPStatus.PROXY_AUTHENTICATION_REQUIRED: (
        "a proxy wants a login: give --proxy http://USER:PASSWORD@HOST:PORT"
    ),
    HTTPStatus.TOO_MANY_REQUESTS: "too many connections from here: wait a while",
}
_FIX_PROXY: Final = (
    "check --proxy, or HTTPS_PROXY, HTTP_PROXY and ALL_PROXY in the environment; NO_PROXY exempts"
)


def advice(error: Exception) -> list[str]:
    """What to do, a line for each different cause; empty if the error says it all."""
    found: dict[str, None] = {}
    for cause in _causes(error):
        line = _advise(cause)
        if line is not None:
            found[line] = None
    return list(found)


def _causes(error: Exception) -> Iterator[Exception]:
    if isinstance(error, ConnectError) and error.attempts:
        for attempt in error.attempts:
            yield from _causes(attempt)
    else:
        yield error


def _advise(error: Exception) -> str | None:
    for kind, tell in _RULES:
        if isinstance(error, kind):
            return tell(error)
    return None


def _pin(_: Exception) -> str:
    return (
        "the relay has another certificate than the pinned one: if it was renewed, get the new "
        "pin from who runs it; otherwise someone is in between, so do not go on"
    )


def _certificate(error: Exception) -> str:
    text = str(error).partition("; it is for ")[0].lower()
    for words, line in _CERTIFICATE:
        if words in text:
            return line
    return (
        "nobody known vouches for the certificate: give --ca FILE with it or its issuer, or --pin "
        "with its SHA-256, from who runs the relay; otherwise someone may be listening in"
    )


def _tls(error: Exception) -> str:
    if "does not speak TLS" in str(error):
        return "this port is without TLS: write http:// if you trust the way, or another port"
    return "no TLS with what answers here: check the port, and that nothing in between cuts it off"


def _rejected(error: Exception) -> str:
    assert isinstance(error, UpgradeRejected)
    status = error.status
    if status in _STATUS:
        return _STATUS[HTTPStatus(status)]
    if 300 <= status < 400:
        return "the answer is a redirect: try https://, and the URL that it leads to"
    if status >= 500:
        return "the relay, or a proxy before it, is in trouble: try later, or tell who runs it"
    return (
        "what answers does not let the upgrade to DERP pass: try --websocket, which more proxies "
        "let pass, and check the path (/derp)"
    )


def _proxy(error: Exception) -> str:
    if "407" in str(error):
        return _STATUS[HTTPStatus.PROXY_AUTHENTICATION_REQUIRED]
    return _FIX_PROXY


def _network(error: Exception) -> str:
    causes = list(_chain(error))
    text = str(error)
    if any(isinstance(e, TimeoutError) for e in causes) or "within" in text:
        return _timeout(error)
    if any(isinstance(e, ConnectionRefusedError) for e in causes):
        return "nothing listens there: check host and port, and that the relay runs"
    if any(isinstance(e, socket.gaierror) for e in causes) or "look-up of" in text:
        return "the name is not known: check its spelling, and this machine's DNS"
    if any(isinstance(e, ConnectionError) for e in causes):
        return "the connection was cut: try again; a firewall or proxy in between may do that"
    return "the relay cannot be reached from here: check host, port and this machine's network"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        if isinstance(error, BaseExceptionGroup):
            for each in error.exceptions:
                yield from _chain(each)
        error = error.__cause__


def _timeout(_: Exception) -> str:
    return (
        "no answer in time: check host and port; a firewall may swallow the packets, and a proxy "
        "may be needed (--proxy); --connect-timeout waits longer"
    )


def _no_relay(_: Exception) -> str:
    return "what answers there is no DERP relay: check host, port and path (/derp)"


def _closed(_: Exception) -> str:
    return "the relay ended the connection: try again; its log may say why"


_RULES: Final[tuple[tuple[type[Exception], Callable[[Exception], str]], ...]] = (
    # Subclasses before their parents.
    (PinMismatch, _pin),
    (CertificateError, _certificate),
    (TLSError, _tls),
    (UpgradeRejected, _rejected),
    (BadUpgrade, _no_relay),
    (RemoteProtocolError, _no_relay),
    (ProxyError, _proxy),
    (DialError, _network),
    (ConnectionClosed, _closed),
    (OSError, _network),
)
