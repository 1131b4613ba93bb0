"""What to do about an error: a line for each kind, for people at a command line."""

from __future__ import annotations

import re
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

__all__ = ["advice", "notes"]

_NAME: Final = (
    "the certificate is for another name: put that name into the URL, or give it with --cert-name"
)
_NAME_OF_NODE: Final = (
    "the certificate is for another name than the map says: the node's CertName has to be that "
    "name; tell who made the map"
)
_UNKNOWN: Final = (
    "nobody known vouches for the certificate: give --ca FILE with it or its issuer, or --pin "
    "with its SHA-256, from who runs the relay; otherwise someone may be listening in"
)
_UNKNOWN_OF_NODE: Final = (
    "nobody known vouches for the certificate: give --ca FILE with it or its issuer, or put "
    "sha256-raw: and its SHA-256 into the map as the node's CertName, from who runs the relay; "
    "otherwise someone may be listening in"
)
_OF_NODE: Final = {_NAME: _NAME_OF_NODE, _UNKNOWN: _UNKNOWN_OF_NODE}
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
_PROXY_LOGIN: Final = (
    "the proxy wants a login, or another one: check user and password of the proxy, as in "
    "--proxy http://USER:PASSWORD@HOST:PORT"
)
_PROXY_REFUSES: Final = (
    "the proxy works, but cannot or does not want to reach the relay: check host and port, or ask "
    "who runs the proxy; --websocket may get through"
)
_PROXY_AWAY: Final = f"the proxy cannot be reached: {_FIX_PROXY}"
_PROXY_SILENT: Final = f"the proxy does not answer in time: {_FIX_PROXY}"
_CUT: Final = (
    "the connection was cut: try again; a firewall or proxy in between may do that, and with "
    "http:// a port that is for TLS: then write https://"
)
_USE_HTTPS: Final = "this port is for TLS: write https://"
_MAP: Final = (
    "the map is wrong, or not for this client: tell who made it; --region takes another region"
)
_MAP_PROBLEMS: Final = (
    "no nodes for ",
    "no non-STUNOnly nodes",
    "explicitly disabled for node",
    ": DERPPort ",
    ": HostName ",
)

_TIMEOUT: Final = (
    "no answer in time: check host and port; a firewall may swallow the packets, and a proxy "
    "may be needed (--proxy); --connect-timeout waits longer"
)
_NO_RELAY: Final = "what answers there is no DERP relay: check host, port and path (/derp)"
_NO_HTTP: Final = f"{_NO_RELAY}; or, with http://, the port is for TLS: then write https://"

_A_PROXY: Final = re.compile(r"\bproxy (https?|socks5h?)://")
_LOGIN: Final = re.compile(r": 40[17]\b|authentication (failure|methods)", re.IGNORECASE)
_REFUSES: Final = re.compile(
    # Statuses of HTTP; what SOCKS5 knows (RFC 1928, section 6), in python-socks' words.
    r"CONNECT to \S+: (403|404|5\d\d)\b"
    r"|not allowed by ruleset|(network|host) unreachable|connection refused|TTL expired",
    re.IGNORECASE,
)


def advice(error: Exception, *, from_map: bool = False) -> list[str]:
    """What to do, a line for each different cause; empty if the error says it all.

    Args:
        from_map: a DERP map says where the relay is, and not a URL.
    """
    found: dict[str, None] = {}
    silent_proxy = bool(notes(error))
    for cause in _causes(error):
        line = _advise(cause)
        if silent_proxy and line == _TIMEOUT:
            line = _PROXY_SILENT
        if line is not None:
            found[_OF_NODE.get(line, line) if from_map else line] = None
    return list(found)


def notes(error: Exception) -> list[str]:
    """What was noted on the way about errors from which this one came."""
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


def _advise(error: Exception) -> str | None:
    for kind, tell in _RULES:
        if isinstance(error, kind):
            return tell(error)
    return None


def _pin(error: Exception) -> str:
    if "multiple certs" in str(error):
        return (
            "a pin works only for a relay that sends a single certificate, and this one sends "
            "several: leave the pin out, and give --ca FILE if its issuer is not known"
        )
    return (
        "the relay has another certificate than the pinned one: if it was renewed, get the new "
        "pin from who runs it; otherwise someone is in between, so do not go on"
    )


def _certificate(error: Exception) -> str:
    text = str(error).partition("; it is for ")[0].lower()
    for words, line in _CERTIFICATE:
        if words in text:
            return line
    return _UNKNOWN


def _tls(error: Exception) -> str:
    if "does not speak TLS" in str(error):
        return "this port is without TLS: write http:// if you trust the way, or another port"
    return "no TLS with what answers here: check the port, and that nothing in between cuts it off"


def _rejected(error: Exception) -> str:
    assert isinstance(error, UpgradeRejected)
    status = error.status
    if status == HTTPStatus.BAD_REQUEST and "https" in error.body.lower():
        return _USE_HTTPS
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
    text = str(error)
    if _LOGIN.search(text):
        return _PROXY_LOGIN
    if _REFUSES.search(text):
        return _PROXY_REFUSES
    return _FIX_PROXY


def _network(error: Exception) -> str:
    causes = list(_chain(error))
    text = str(error)
    if any(problem in text for problem in _MAP_PROBLEMS):
        return _MAP
    if _A_PROXY.search(text):
        return _PROXY_SILENT if "within" in text else _PROXY_AWAY
    if any(isinstance(e, TimeoutError) for e in causes) or "within" in text:
        return _TIMEOUT
    if any(isinstance(e, ConnectionRefusedError) for e in causes):
        return "nothing listens there: check host and port, and that the relay runs"
    if any(isinstance(e, socket.gaierror) for e in causes) or "look-up of" in text:
        return "the name is not known: check its spelling, and this machine's DNS"
    if any(isinstance(e, ConnectionError) for e in causes):
        return _CUT
    return "the relay cannot be reached from here: check host, port and this machine's network"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        if isinstance(error, BaseExceptionGroup):
            for each in error.exceptions:
                yield from _chain(each)
        error = error.__cause__


def _no_relay(error: Exception) -> str:
    text = str(error)
    if "is not HTTP" in text or "without an answer" in text:
        return _NO_HTTP
    return _NO_RELAY


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
