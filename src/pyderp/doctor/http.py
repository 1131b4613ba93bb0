"""Group `http`: the upgrade to DERP, and the pages that clients request from a relay."""

from __future__ import annotations

import secrets
import time
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Final

from pyderp.addresses import bracketed, format_address, ip_literal
from pyderp.client.login import Login, over_http, over_stream, over_websocket
from pyderp.doctor.advice import words_of
from pyderp.doctor.finding import Check, Seen, failed, ok, skipped, warned
from pyderp.doctor.httpask import NotHttp, Reply, ask_upgrade, get
from pyderp.doctor.visit import Visit
from pyderp.errors import (
    BadUpgrade,
    DerpError,
    DialError,
    FailureReason,
    RemoteProtocolError,
    UpgradeRejected,
)
from pyderp.keys import NodePrivate, NodePublic
from pyderp.text import printable
from pyderp.wire.client import ClientState
from pyderp.wire.frames import PROTOCOL_VERSION
from pyderp.wire.http import WEBSOCKET_STATUS
from pyderp.wire.login import ClientInfo

__all__ = ["checks"]

_LATENCY: Final = "/derp/latency-check"
_CAPTIVE: Final = "/generate_204"
_SKEW: Final = 60.0
"""Clocks may differ by this many seconds without a warning."""
_PROXY_ADVICE: Final = (
    "let the proxy pass the upgrade on: HTTP/1.1 to the relay, and the headers Upgrade and "
    "Connection (nginx: proxy_http_version 1.1, proxy_set_header Upgrade $http_upgrade, "
    "proxy_set_header Connection upgrade)"
)


def _login() -> Login:
    return Login(NodePrivate.generate(), ClientInfo(version=PROTOCOL_VERSION))


async def _upgrade(visit: Visit) -> Seen:
    """Upgrade as a client does that does not know the relay's key; `http.proxy` uses the answer."""
    target = visit.subject.target
    link = await visit.stream()
    began = time.perf_counter()
    try:
        try:
            reply = await ask_upgrade(link, target.host_header, target.request_target)
        except NotHttp as e:
            visit.http2 = e.http2
            if not e.http2:
                raise
            return failed(str(e), "see http.proxy", reason=e.reason.value)
        visit.upgrade = reply
        if reply.status != HTTPStatus.SWITCHING_PROTOCOLS:
            words = printable(" ".join(reply.body.decode("utf-8", "replace").split()), 80)
            text = f"answered with {reply.status}, not 101: {words}"
            return failed(text, _advice_of(reply), status=reply.status)
        done = await over_stream(link, _login(), received=reply.rest)
        seconds = time.perf_counter() - began
        key = done.session.server_key
        visit.note_key(key, "the upgrade")
        assert key is not None
        visit.upgraded = True
        text = f"101, relay {key.short()}, in {seconds * 1000:.1f} ms"
        return ok(text, key=str(key), seconds=seconds)
    finally:
        link.abort()


def _advice_of(reply: Reply) -> str:
    if 300 <= reply.status < 400:
        where = printable(reply.header("location"), 80)
        return f"a redirect to {where}: clients follow no redirects; check scheme, host and path"
    if _serves_no_derp(reply):
        return (
            "the relay runs without DERP ({no_derp}), and no client can connect: serve DERP there, "
            "or set STUNOnly for this node in the map"
        )
    if reply.status in WEBSOCKET_STATUS:
        return "see http.proxy"
    if reply.status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        return "a server in front asks for a login, which clients do not have, or refuses clients"
    if reply.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return "the proxy in front does not reach the relay, or the relay has an error: see its log"
    return "the server is a web site and not a relay: check host, port and path"


def _serves_no_derp(reply: Reply) -> bool:
    # Go's relay and pyderp's answer so at /derp if they do not serve DERP.
    return reply.status == HTTPStatus.NOT_FOUND and b"derp server disabled" in reply.body


async def _proxy(visit: Visit) -> Seen:
    """Find out what is in front of the relay, and whether it blocks the upgrade."""
    reply = visit.upgrade
    if visit.http2:
        return failed(
            "the server speaks HTTP/2 only, although the client did not offer it",
            "let the server speak HTTP/1.1 on this port: DERP is an upgrade of HTTP/1.1, and "
            "clients do not offer HTTP/2 (ALPN)",
        )
    if reply is None:
        return skipped("not checked, as there was no answer in HTTP")
    front = reply.front
    named = f" ({front})" if front else ""
    if reply.status == HTTPStatus.SWITCHING_PROTOCOLS:
        return ok(f"lets the upgrade pass{named}" if front else "none seen", front=front)
    if reply.status == HTTPStatus.HTTP_VERSION_NOT_SUPPORTED:
        text = f"the server does not accept HTTP/1.1{named}"
        return failed(text, "let the server speak HTTP/1.1 on this port", front=front)
    if reply.status not in WEBSOCKET_STATUS or _serves_no_derp(reply):
        return skipped(f"the answer does not show whether a proxy is in front{named}", front=front)
    # Go's relay and pyderp's answer so to a request without the header Upgrade.
    if b"requires connection upgrade" in reply.body:
        text = f"a relay answers, but a proxy removed the header Upgrade{named}"
        return failed(text, _PROXY_ADVICE, front=front)
    text = f"the server that answers {reply.status} blocks upgrades, or is not a relay{named}"
    return failed(text, _PROXY_ADVICE, front=front)


async def _fast_start(visit: Visit) -> Seen:
    """Send request and login together; the relay must answer without HTTP (`Derp-Fast-Start`)."""
    if visit.meta is None or not visit.meta[1] or visit.meta[0].is_zero():
        return skipped("no meta certificate under TLS 1.3, so clients wait for the HTTP answer")
    link = await visit.stream()
    began = time.perf_counter()
    try:
        login = _login()
        await over_http(
            link, visit.subject.target, login, known=visit.meta, refused=lambda error: error
        )
        # `over_http` does not wait for the greeting, and its session, which knows the key from the
        # meta certificate, skips it. The greeting shows the key that the relay itself has.
        greeting = login.session(None)
        while greeting.state is ClientState.GREETING:
            data = await link.read()
            if not data:
                raise ConnectionError("the relay closed the connection without a greeting")
            greeting.receive_data(data)
    except RemoteProtocolError as e:
        return failed(
            f"the meta certificate offers a fast start, but the relay answers something else: {e}",
            "the server that terminates TLS has the relay's meta certificate, but is not the "
            "relay: let the relay terminate TLS",
        )
    finally:
        link.abort()
    seconds = time.perf_counter() - began
    key = greeting.server_key
    visit.note_key(key, "a fast start")
    if key != visit.meta[0]:
        return failed(
            f"the key in the meta certificate is {visit.meta[0].short()}, that of the relay "
            f"{_short(key)}",
            "the meta certificate is that of another relay: restart the server that terminates TLS",
        )
    return ok(f"greeting in {seconds * 1000:.1f} ms, without waiting for HTTP", seconds=seconds)


def _short(key: NodePublic | None) -> str:
    return "none" if key is None else key.short()


async def _websocket(visit: Visit) -> Seen:
    link = await visit.stream()
    began = time.perf_counter()
    try:
        done = await over_websocket(link, visit.subject.target, _login())
    except UpgradeRejected as e:
        return warned(
            f"refused: {e.status}",
            "clients in browsers, and those whose proxies pass websockets only, cannot connect; "
            "not every relay supports websockets",
            status=e.status,
        )
    except (BadUpgrade, ConnectionError) as e:
        text = "not every relay supports websockets; clients in browsers need them"
        return warned(words_of(e), text)
    finally:
        link.abort()
    seconds = time.perf_counter() - began
    visit.websocket = True
    visit.note_key(done.session.server_key, "a websocket")
    return ok(f"open and logged in after {seconds * 1000:.1f} ms", seconds=seconds)


async def _latency(visit: Visit) -> Seen:
    target = visit.subject.target
    link = await visit.stream()
    began = time.perf_counter()
    try:
        reply = await get(link, target.host_header, _LATENCY)
    finally:
        link.abort()
    seconds = time.perf_counter() - began
    _note_date(visit, reply)
    if reply.status != HTTPStatus.OK:
        return warned(
            f"{_LATENCY} is answered with {reply.status}",
            "clients whose network blocks UDP measure latency with this page: let the proxy in "
            "front pass it on",
            status=reply.status,
        )
    return ok(f"200 in {seconds * 1000:.1f} ms", seconds=seconds)


def _note_date(visit: Visit, reply: Reply) -> None:
    text = reply.header("date")
    try:
        then = parsedate_to_datetime(text).timestamp() if text else None
    except (ValueError, OverflowError):
        then = None
    if then is not None:
        visit.date = (then, visit.settings.now())


async def _clock(visit: Visit) -> Seen:
    if visit.date is None:
        return skipped("the answers have no date")
    relay_time, local_time = visit.date
    # The header has whole seconds, rounded down: half a second is the mean of what is missing.
    skew = relay_time + 0.5 - local_time
    data = {"seconds": round(skew, 1)}
    if abs(skew) <= _SKEW:
        return ok(f"within {max(1, round(abs(skew)))} s of this machine's", **data)
    way = "ahead of" if skew > 0 else "behind"
    return warned(
        f"{_span(abs(skew))} {way} this machine's",
        "set the clock that is wrong (NTP): certificates and logins depend on it",
        **data,
    )


def _span(seconds: float) -> str:
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


async def _port_80(visit: Visit) -> Seen:
    """Ask as clients do that look for captive portals: 204 with the challenge is wanted."""
    subject = visit.subject
    host = subject.node.host_name
    port = subject.http_port
    challenge = f"ts_{host if ip_literal(host) is None else secrets.token_hex(4)}"[:60]
    promised = subject.wants_port_80 is True
    try:
        link = await visit.tcp(port=port)
    except DialError as e:
        if e.reason not in (FailureReason.REFUSED, FailureReason.TIMEOUT):
            raise
        return _no_port_80(f"port {port} is closed: {e.reason.value}", promised)
    try:
        name = bracketed(host) if port == 80 else format_address(host, port)
        asked = f"{_CAPTIVE}?t={int(visit.settings.now())}"
        headers = [("X-Tailscale-Challenge", challenge), ("Cache-Control", "no-cache")]
        reply = await get(link, name, asked, headers=headers)
    except (ConnectionError, NotHttp) as e:
        return _no_port_80(f"port {port}: {words_of(e)}", promised)
    finally:
        link.abort()
    _note_date(visit, reply)
    return _judge_204(reply, port, challenge, promised)


def _judge_204(reply: Reply, port: int, challenge: str, promised: bool) -> Seen:
    if reply.status == HTTPStatus.NO_CONTENT:
        if reply.header("x-tailscale-response") == f"response {challenge}":
            return ok(f"port {port}: 204, with the challenge")
        text = f"port {port}: 204, without the challenge: the answer is not from a relay"
        return _no_port_80(text, promised)
    text = f"port {port}: {_CAPTIVE} is answered with {reply.status}"
    if reply.status == HTTPStatus.NOT_FOUND:
        return _no_port_80(text, promised)
    where = printable(reply.header("location"), 80)
    advice = (
        "if it works from other networks, a captive portal or proxy of this network answers; "
        "otherwise another web server has the port"
    )
    make = failed if promised else warned
    return make(f"{text} to {where}" if where else text, advice, status=reply.status)


def _no_port_80(text: str, promised: bool) -> Seen:
    if promised:
        advice = "the map has CanPort80: open port 80 ({http_port}), or correct the map"
        return failed(text, advice)
    return skipped(text, "clients cannot use this relay to detect captive portals")


async def _identity(visit: Visit) -> Seen:
    """Check that all connections lead to one relay: packets do not pass between different ones."""
    target = visit.subject.target
    for _ in range(5 if visit.settings.deep else 2):
        link = await visit.stream()
        try:
            reply = await ask_upgrade(link, target.host_header, target.request_target)
            done = await over_stream(link, _login(), received=reply.rest)
        except DerpError as e:
            return failed(f"one of several connections fails: {e}", _ONE_RELAY)
        finally:
            link.abort()
        visit.note_key(done.session.server_key, "a further connection")
    keys = [str(key) for key in visit.relay_keys]
    if len(keys) > 1:
        shown = "; ".join(f"{key.short()} in {where}" for key, where in visit.relay_keys.items())
        return failed(f"{len(keys)} relays answer: {shown}", _ONE_RELAY, keys=keys)
    return ok("each connection led to the same relay", keys=keys)


_ONE_RELAY: Final = (
    "do not put relays behind a load balancer: give each relay its own node in the map, in one "
    "region, and connect them as a mesh"
)
_HTTP: Final = ("http.upgrade",)


def checks(*, tls: bool) -> tuple[Check[Visit], ...]:
    """Return the checks of this group, for a relay with or without TLS."""
    base = ("tls.handshake",) if tls else ("tcp.any",)
    made = [
        Check(name="http.upgrade", run=_upgrade, needs=base),
        Check(name="http.proxy", run=_proxy, needs=base, after=_HTTP),
    ]
    if tls:
        made.append(Check(name="http.faststart", run=_fast_start, needs=base, after=("tls.meta",)))
    return (
        *made,
        Check(name="http.websocket", run=_websocket, needs=base),
        Check(name="http.latency", run=_latency, needs=base),
        Check(name="http.clock", run=_clock, needs=base, after=("http.latency", "http.port80")),
        Check(name="http.port80", run=_port_80, needs=("tcp.any",)),
        Check(
            name="http.identity",
            run=_identity,
            needs=_HTTP,
            after=("http.websocket", "http.faststart", "tls.meta"),
        ),
    )
