"""Advice about an error, for users of a command line: a line for each reason."""

from __future__ import annotations

from collections.abc import Iterator
from http import HTTPStatus
from typing import Final

from pyderp.errors import (
    BadUpgrade,
    ConnectError,
    ConnectionClosed,
    FailureReason,
    LoginRefused,
    RemoteProtocolError,
    TLSError,
    UpgradeRejected,
)
from pyderp.net.tcp import failure_reason
from pyderp.wire.http import WEBSOCKET_STATUS

__all__ = ["advice", "login_refused", "notes"]

_FIX_PROXY: Final = (
    "check --proxy, or HTTPS_PROXY, HTTP_PROXY and ALL_PROXY in the environment; NO_PROXY exempts"
)
_NO_RELAY: Final = "the server that answers is not a DERP relay: check host, port and path (/derp)"
_USE_HTTPS: Final = "this port is for TLS: write https://"
_NO_DERP: Final = (
    "this relay serves no DERP (--no-derp), only probes and perhaps STUN: use another relay, or "
    "ask its operator"
)
_ENDED: Final = "the relay ended the connection: try again; its log may say why"
_REFUSED: Final = (
    "ask the relay's operator whether it admits this key, which --key FILE keeps; the relay's log "
    "says why it closed the connection"
)
_STATUS: Final = {
    HTTPStatus.NOT_FOUND: "no relay at this path: a relay's URL usually ends in /derp",
    HTTPStatus.OK: "a web site answers here, not a relay: check host, port and path (/derp)",
    HTTPStatus.UNAUTHORIZED: "the relay, or a proxy before it, wants a login: ask its operator",
    HTTPStatus.FORBIDDEN: "the relay, or a proxy before it, refuses you: ask its operator",
    HTTPStatus.PROXY_AUTHENTICATION_REQUIRED: (
        "a proxy wants a login: give --proxy http://USER:PASSWORD@HOST:PORT"
    ),
    HTTPStatus.NETWORK_AUTHENTICATION_REQUIRED: (
        "this network wants a login before it lets anything through: open any http:// page in a "
        "browser, log in there, and try again"
    ),
    HTTPStatus.TOO_MANY_REQUESTS: "too many connections from here: wait a while",
}
_BY_REASON: Final = {
    FailureReason.BAD_MAP: (
        "the map is wrong, or not for this client: tell its author; --region takes another region"
    ),
    FailureReason.TIMEOUT: (
        "no answer in time: check host and port; a firewall may drop the packets, and a proxy may "
        "be needed (--proxy); --connect-timeout waits longer"
    ),
    FailureReason.REFUSED: "nothing listens there: check host and port, and that the relay runs",
    FailureReason.UNKNOWN_NAME: (
        "the name is not known: check its spelling, and this machine's DNS"
    ),
    FailureReason.CUT: (
        "the connection was cut: try again; a firewall or proxy in between may do that, and with "
        "http:// a port that is for TLS: then write https://"
    ),
    FailureReason.UNREACHABLE: (
        "the relay cannot be reached from here: check host, port and this machine's network"
    ),
    FailureReason.PROXY_TIMEOUT: f"the proxy does not answer in time: {_FIX_PROXY}",
    FailureReason.PROXY_UNREACHABLE: f"the proxy cannot be reached: {_FIX_PROXY}",
    FailureReason.PROXY_LOGIN: (
        "the proxy wants a login, or another one: check user and password of the proxy, as in "
        "--proxy http://USER:PASSWORD@HOST:PORT"
    ),
    FailureReason.PROXY_LOGIN_UNKNOWN: (
        "the proxy accepts only logins that pyderp does not know; pyderp knows Basic: run a local "
        "proxy that logs in to it, and name that with --proxy, or ask the proxy's operator to let "
        "connections to the relay pass"
    ),
    FailureReason.PROXY_REFUSED: (
        "the proxy works, but cannot reach the relay or refuses to: check host and port, or ask "
        "the proxy's operator; --websocket may get through"
    ),
    FailureReason.PROXY_BROKEN: _FIX_PROXY,
    FailureReason.NO_TLS: (
        "this port does not speak TLS: write http:// if you trust the network, or another port"
    ),
    FailureReason.TLS_NAME: (
        "the server has no certificate for this name: put the relay's own name into the URL, or "
        "into the map as HostName; if it is that name, the relay's log says why it has none"
    ),
    FailureReason.TLS_REFUSED: (
        "the server speaks TLS, and refuses this client or cannot do TLS 1.2 or 1.3: check host "
        "and port, and ask its operator; its log may say why"
    ),
    FailureReason.TLS_FAILED: (
        "TLS fails with the server that answers: check the port, and whether a firewall or proxy "
        "in between cuts the connection"
    ),
    FailureReason.CERTIFICATE_NOT_YET_VALID: (
        "check this machine's clock; the certificate begins later"
    ),
    FailureReason.CERTIFICATE_EXPIRED: (
        "the certificate has expired, or this machine's clock is wrong: tell the relay's operator"
    ),
    FailureReason.CERTIFICATE_OTHER_NAME: (
        "the certificate is for another name: put that name into the URL, or give it with "
        "--cert-name"
    ),
    FailureReason.CERTIFICATE_UNUSABLE: (
        "no client should accept this certificate, whatever issuers it trusts: tell the relay's "
        "operator that it has to be replaced"
    ),
    FailureReason.CERTIFICATE_UNTRUSTED: (
        "the certificate is of no trusted issuer: give --ca FILE with it or its issuer, or --pin "
        "with its SHA-256, as the relay's operator has them; otherwise the connection may be "
        "intercepted"
    ),
    FailureReason.PIN_OTHER_CERTIFICATE: (
        "the relay has another certificate than the pinned one: if it was renewed, get the new "
        "pin from the relay's operator; otherwise the connection is intercepted, so do not go on"
    ),
    FailureReason.PIN_OF_SEVERAL: (
        "a pin works only for a relay that sends a single certificate, and this one sends "
        "several: leave the pin out, and give --ca FILE if its issuer is not known"
    ),
    FailureReason.NO_HTTP: (
        f"{_NO_RELAY}; or, with http://, the port is for TLS: then write https://"
    ),
    FailureReason.NO_DERP: _NO_RELAY,
}
_OF_PINNED: Final = {
    # `--pin` and `--cert-name` exclude each other.
    FailureReason.CERTIFICATE_OTHER_NAME: (
        "the certificate is for another name: put the certificate's name or the relay's IP address "
        "into the URL; --pin cannot be combined with --cert-name"
    ),
}
_OF_NODE: Final = {
    # Where a map says what the certificate is for, and not the URL or a flag.
    FailureReason.CERTIFICATE_OTHER_NAME: (
        "the certificate is for another name than the map says: the node's CertName has to be "
        "that name; tell the map's author"
    ),
    FailureReason.CERTIFICATE_UNTRUSTED: (
        "the certificate is of no trusted issuer: give --ca FILE with it or its issuer, or put "
        "sha256-raw: and its SHA-256 into the map as the node's CertName, as the relay's operator "
        "has them; otherwise the connection may be intercepted"
    ),
}


def advice(error: Exception, *, from_map: bool = False, pinned: bool = False) -> list[str]:
    """Returns what to do, a line for each different cause; empty if the error says it all.

    Args:
        from_map: a DERP map says where the relay is, and not a URL.
        pinned: the command line has the certificate's hash, `--pin`.
    """
    lines = _BY_REASON | (_OF_NODE if from_map else _OF_PINNED if pinned else {})
    silent_proxy = bool(notes(error))
    found: dict[str, None] = {}
    for cause in _causes(error):
        reason = _reason(cause)
        if silent_proxy and reason is FailureReason.TIMEOUT:
            reason = FailureReason.PROXY_TIMEOUT
        if isinstance(cause, UpgradeRejected):
            found[_rejected(cause)] = None
        elif isinstance(cause, LoginRefused):
            found[_REFUSED] = None
        elif isinstance(cause, ConnectionClosed):
            found[_ENDED] = None
        elif reason is not None:
            found[lines[reason]] = None
    return list(found)


def login_refused(error: Exception) -> bool:
    """Whether all that was tried ended with a refused login."""
    return all(isinstance(cause, LoginRefused) for cause in _causes(error))


def notes(error: Exception) -> list[str]:
    """Returns the notes of this error and of all errors that led to it."""
    found: dict[str, None] = {}
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        each = waiting.pop()
        if each is None or id(each) in seen:
            continue
        seen.add(id(each))
        found |= dict.fromkeys(getattr(each, "__notes__", ()))
        waiting += [each.__cause__, each.__context__]
        if isinstance(each, BaseExceptionGroup):
            waiting += each.exceptions
        if isinstance(each, ConnectError):
            waiting += each.attempts
    return list(found)


def _causes(error: Exception) -> Iterator[Exception]:
    if isinstance(error, ConnectError) and error.attempts:
        for attempt in error.attempts:
            yield from _causes(attempt)
    else:
        yield error


def _reason(error: Exception) -> FailureReason | None:
    if isinstance(error, TLSError | BadUpgrade):
        return error.reason
    if isinstance(error, RemoteProtocolError):
        return FailureReason.NO_DERP
    return failure_reason(error) if isinstance(error, OSError) else None


def _rejected(error: UpgradeRejected) -> str:
    status = error.status
    if error.asks_for_tls:
        return _USE_HTTPS
    if error.serves_no_derp:
        return _NO_DERP
    if status in _STATUS:
        return _STATUS[HTTPStatus(status)]
    if 300 <= status < 400:
        return "the answer is a redirect: try https://, and the URL that it leads to"
    if status >= 500 and status not in WEBSOCKET_STATUS:
        return "the relay, or a proxy before it, has failed: try later, or tell its operator"
    if error.websocket:
        return (
            "the server that answers does not pass websockets either: a proxy before the relay "
            "must pass the headers Upgrade and Connection, by HTTP/1.1; ask its operator, and "
            "check the path (/derp)"
        )
    # Without --no-websocket a websocket would have been tried after these.
    how = "leave out --no-websocket" if status in WEBSOCKET_STATUS else "try --websocket"
    return (
        f"the server that answers does not pass the upgrade to DERP: {how}, since more proxies "
        "pass a websocket, and check the path (/derp)"
    )
