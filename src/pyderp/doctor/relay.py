"""Group `relay`: which keys the relay admits, and whether packets pass between two clients."""

from __future__ import annotations

import asyncio
import os
import statistics
import time
from typing import Final

from pyderp.client.client import Client
from pyderp.doctor.advice import explain, reason_of
from pyderp.doctor.carry import Carried, carry, stay_idle, welcome
from pyderp.doctor.finding import Check, Seen, failed, ok, skipped, warned
from pyderp.doctor.visit import Visit
from pyderp.errors import DerpError, FailureReason, LoginRefused, without_frames
from pyderp.keys import KEY_LEN
from pyderp.tasks import cancel_and_wait
from pyderp.wire.frames import FRAME_HEADER_LEN, MAX_PACKET_SIZE
from pyderp.wire.messages import ServerInfo

__all__ = ["checks"]

_SHARE: Final = 0.8
"""The share of a check's time limit for packets, so that it can still report how many arrived."""
_PATIENCE: Final = 2.0
"""Many or large packets have this multiple of the time before they count as lost."""
_BURST: Final = 30
"""Packets at once: relays queue 32 for each client, and may drop more."""
_BURST_SIZE: Final = 1200
_SPEED_SIZE: Final = 8 * 1024
_SPEED_WINDOW: Final = 28
"""224 KiB in flight; relays queue 256 KiB, or 32 packets."""
_PINGS: Final = 3
_SLOW: Final = 125_000
"""A lower rate is reported as a warning; bytes per second (1 Mbit/s)."""
_LOG: Final = "look at the relay's log and at derp_packets_dropped in its metrics"
_SLOW_LINE: Final = (
    "a slow line, or a limit of the relay ({rate_config}) or of a proxy in front of it: compare "
    "with a run from another network"
)
_TIMEOUTS: Final = (
    "relays send a keep-alive every 60 s: raise the timeouts for idle connections of the proxy in "
    "front (nginx: proxy_read_timeout and proxy_send_timeout; HAProxy: timeout tunnel, client and "
    "server), of NAT and of firewalls"
)
_IDLE: Final = 70.0
"""Seconds that are added to the time limit of the check of idle connections."""
_PATH: Final = (
    f"small packets pass: {_SLOW_LINE}; or the path drops large ones (MTU: let ICMP pass, clamp "
    f"the MSS); or the relay drops them: {_LOG}"
)


async def _admission(visit: Visit) -> Seen:
    """Log in with keys that are new to the relay, and keep the two clients for later checks."""
    if not visit.upgraded and not visit.websocket:
        return skipped("not checked, as neither an upgrade nor a websocket works")
    one, other = visit.keep(visit.client()), visit.keep(visit.client())
    try:
        visit.info = await _welcome_both(one, other)
    except LoginRefused as e:
        return await _as_known(visit, without_frames(e))
    visit.pair = (one, other)
    how = "" if visit.upgraded else ", in a websocket"
    flag = _key_flag(visit)
    untried = f"; {flag} was not used, as it was not needed" if flag else ""
    return ok(f"open: admits a key that is new to it{how}{untried}", open=True)


async def _welcome_both(one: Client, other: Client) -> ServerInfo:
    """Log in both clients at the same time; raises the errors of `welcome`."""
    second = asyncio.create_task(welcome(other), name="doctor logs in")
    try:
        info = await welcome(one)
        await second
        return info
    finally:
        await cancel_and_wait((second,))
        del second  # A task may hold an error, whose traceback holds this frame.


async def _as_known(visit: Visit, refusal: LoginRefused) -> Seen:
    """Log in again after a refusal, with the key or mesh key of the settings, if there is one."""
    settings = visit.settings
    if settings.key is None and settings.mesh_key is None:
        return warned(
            "the relay closed the connection after the login of a new key: it admits known keys "
            "only, or is broken",
            "to check further, give {mesh_key} FILE, or {key} FILE with a key that the relay "
            "knows; if it should admit all keys, its log says why it closed the connection",
            open=False,
        )
    flag = _key_flag(visit)
    if visit.subject.target.tls and not visit.verified:
        return warned(
            "the relay closed the connection after the login of a new key",
            f"{flag} is not used, as the certificate is not trusted: see tls.chain",
            open=False,
        )
    one = visit.keep(visit.client(key=settings.key, mesh_key=settings.mesh_key))
    try:
        visit.info = await welcome(one)
    except LoginRefused:
        seen = explain(refusal)
        text = f"the relay closed the connection after each login, also after that with {flag}"
        return failed(text, seen.advice, open=False)
    other = one
    if settings.mesh_key is not None:
        other = visit.keep(visit.client(mesh_key=settings.mesh_key))
        await welcome(other)
    visit.pair = (one, other)
    return ok(f"admits known keys only, and that of {flag} is one", open=False)


def _key_flag(visit: Visit) -> str:
    """Return the flag that the operator gave a key or mesh key by; empty: none."""
    if visit.settings.mesh_key is not None:
        return "{mesh_key}"
    return "{key}" if visit.settings.key is not None else ""


async def _packet(visit: Visit) -> Seen:
    if visit.pair is None:
        return skipped("not checked, as the relay admitted no client")
    one, other = visit.pair
    done = await _carry(visit, one, other, [os.urandom(64)])
    if not _is_complete(done):
        return _lost(visit, done, "a packet of 64 bytes", _advice_without_packets(visit))
    back = await _carry(visit, other, one, [os.urandom(64)])
    if not _is_complete(back):
        return _lost(
            visit, back, "a packet of 64 bytes, the way back", _advice_without_packets(visit)
        )
    text = f"both ways, in {done.seconds * 1000:.1f} and {back.seconds * 1000:.1f} ms"
    return ok(text, seconds=[done.seconds, back.seconds])


async def _large(visit: Visit) -> Seen:
    one, other = _pair(visit)
    burst = _allowed(visit)
    if burst is not None and burst < MAX_PACKET_SIZE + FRAME_HEADER_LEN + KEY_LEN:
        return warned(
            f"packets of 64 KiB exceed the limit that the relay announces: {burst} bytes at once",
            "raise the burst of the relay's rate limit to at least 65,573 bytes",
            burst=burst,
        )
    done = await _carry(visit, one, other, [os.urandom(MAX_PACKET_SIZE)], patience=_PATIENCE)
    if not _is_complete(done):
        seen = _lost(visit, done, "a packet of 64 KiB", _PATH)
        visit.stuck = "" if done.arrived else "relay.large"
        return seen
    if _took_long(visit, done):
        return warned(f"64 KiB took {done.seconds:.1f} s", _SLOW_LINE, seconds=done.seconds)
    return ok(f"64 KiB in {done.seconds * 1000:.1f} ms", seconds=done.seconds)


async def _bursts(visit: Visit) -> Seen:
    one, other = _pair(visit)
    burst = _allowed(visit)
    if burst is not None and burst < 2 * _BURST * _BURST_SIZE:
        return skipped(f"not checked, as the relay allows only {burst} bytes at once")
    rounds = 10 if visit.settings.deep else 2
    seconds: list[float] = []
    for _ in range(rounds):
        packets = [os.urandom(_BURST_SIZE) for _ in range(_BURST)]
        done = await _carry(visit, one, other, packets, window=_BURST, patience=_PATIENCE)
        what = f"a burst of {_BURST} packets of {_BURST_SIZE} bytes"
        if not _is_complete(done):
            return _lost(visit, done, what, _PATH)
        visit.stuck = ""
        seconds.append(done.seconds)
        if _took_long(visit, done):
            return warned(f"{what} took {done.seconds:.1f} s", _SLOW_LINE, seconds=seconds)
    text = f"{rounds} times {_BURST} packets, complete and in order"
    return ok(text, seconds=seconds)


async def _limits(visit: Visit) -> Seen:
    info = visit.info
    if info is None:
        return skipped("nothing was announced")
    rate, burst = info.token_bucket_bytes_per_second, info.token_bucket_bytes_burst
    data = {"bytes_per_second": rate, "burst_bytes": burst}
    if not rate and not burst:
        return ok("none announced", **data)
    text = f"{_rate(rate)} for each client, {burst} bytes at once"
    if rate and rate < _SLOW:
        return warned(text, "less than most uses need: see the relay's {rate_config}", **data)
    return ok(text, **data)


async def _speed(visit: Visit) -> Seen:
    one, other = _pair(visit)
    deep = visit.settings.deep
    limit = visit.settings.timeout * _SHARE
    try:
        async with asyncio.timeout(limit):
            pings = [await one.ping() for _ in range(_PINGS * (4 if deep else 1))]
    except TimeoutError:
        return _ended(visit, TimeoutError(f"no pong within {limit:g} s"), "a ping")
    except DerpError as e:
        return _ended(visit, without_frames(e), "a ping")
    through = await _carry(visit, one, other, [os.urandom(64)])
    if not _is_complete(through):
        return _lost(visit, through, "a packet of 64 bytes", f"{_SLOW_LINE}; or {_LOG}")
    ping = statistics.median(pings)
    text = f"round trip {ping * 1000:.1f} ms, {through.seconds * 1000:.1f} ms to a peer"
    data: dict[str, object] = {"round_trip": ping, "to_peer": through.seconds}
    if _allowed(visit) is not None:
        # A measurement would show the limit, and use up what the relay allows this machine.
        return ok(f"{text}; throughput not measured, as the relay limits it", **data)
    done = await _throughput(visit, one, other)
    if not done.arrived or done.error is not None or not done.intact:
        return _lost(visit, done, f"{done.sent} packets of {_SPEED_SIZE} bytes", _PATH)
    rate = done.bytes_arrived / done.seconds if done.seconds else 0.0
    data |= {"bytes": done.bytes_arrived, "bytes_per_second": round(rate)}
    text = f"{text}; {_rate(rate)} with at most 224 KiB in flight"
    if done.arrived < done.sent:
        lost = f"{done.sent - done.arrived} of {done.sent} packets did not arrive in time"
        return warned(f"{text}, and {lost}", f"{_SLOW_LINE}; or {_LOG}", **data)
    if rate < _SLOW:
        return warned(text, _SLOW_LINE, **data)
    return ok(text, **data)


async def _idle(visit: Visit) -> Seen:
    """Check that an idle connection stays open from one keep-alive of the relay to the next."""
    one, other = _pair(visit)
    seconds = visit.settings.idle
    began = time.perf_counter()
    try:
        await stay_idle(one, other, seconds)
    except (DerpError, OSError) as e:
        without_frames(e)
        lived = time.perf_counter() - began
        return failed(f"closed after {lived:.1f} s without a packet", _TIMEOUTS, seconds=lived)
    done = await _carry(visit, one, other, [os.urandom(64)])
    if not _is_complete(done):
        return _lost(visit, done, f"a packet after {seconds:g} s without one", _TIMEOUTS)
    return ok(f"still connected after {seconds:g} s without a packet", seconds=seconds)


async def _throughput(visit: Visit, source: Client, target: Client) -> Carried:
    """Send batches of four times as many packets each, until one takes long enough to measure.

    Returns the result of the last batch.
    """
    enough, most = (2.0, 32 * 1024) if visit.settings.deep else (0.2, 512)
    limit = visit.settings.timeout * _SHARE
    packet = os.urandom(_SPEED_SIZE)
    count = 8
    while True:
        batch = [packet] * count
        done = await carry(
            source, target, batch, window=_SPEED_WINDOW, limit=limit, late=visit.late
        )
        if not _is_complete(done) or done.seconds > enough or count >= most:
            return done
        count *= 4


async def _carry(
    visit: Visit,
    source: Client,
    target: Client,
    packets: list[bytes],
    *,
    window: int = 1,
    patience: float = 1.0,
) -> Carried:
    limit = visit.settings.timeout * _SHARE * patience
    return await carry(source, target, packets, window=window, limit=limit, late=visit.late)


def _pair(visit: Visit) -> tuple[Client, Client]:
    if visit.pair is None:
        raise LoginRefused("no client is logged in")
    return visit.pair


def _allowed(visit: Visit) -> int | None:
    """Return the bytes at once that the relay announced as its limit; `None`: no limit."""
    info = visit.info
    limited = info is not None and info.token_bucket_bytes_per_second
    return info.token_bucket_bytes_burst if info is not None and limited else None


def _is_complete(done: Carried) -> bool:
    return done.error is None and done.intact and 0 < done.arrived == done.sent


def _took_long(visit: Visit, done: Carried) -> bool:
    """Return whether packets took longer than a check normally may, although all arrived."""
    return done.seconds > visit.settings.timeout * _SHARE


def _advice_or_check(visit: Visit, advice: str) -> str:
    """Return the advice, or the name of an earlier check since which no packet has arrived.

    That check has the advice already.
    """
    return f"see {visit.stuck}" if visit.stuck else advice


def _advice_without_packets(visit: Visit) -> str:
    """Return the advice if not even a small packet arrives."""
    if len(visit.relay_keys) > 1:
        return "the two clients may be at different relays: see http.identity"
    return f"the relay accepts packets and does not deliver them: {_LOG}"


def _lost(visit: Visit, done: Carried, what: str, advice: str) -> Seen:
    data = {"sent": done.sent, "arrived": done.arrived}
    if done.error is not None:
        return _ended(visit, done.error, what, **data)
    if not done.intact:
        return failed(f"{what}: what arrived is not what was sent", _LOG, **data)
    text = f"{what}: {done.arrived} of {done.sent} arrived"
    return failed(text, _advice_or_check(visit, advice), **data)


def _ended(visit: Visit, error: Exception, what: str, **data: object) -> Seen:
    """Return the failure of a check that an error ended after both clients were logged in."""
    seen = explain(error)
    advice = seen.advice
    if reason_of(error) is FailureReason.TIMEOUT:
        # The usual advice is to check the address, but the login has shown that it is right.
        advice = f"{_SLOW_LINE}; or {_LOG}"
    return failed(f"{what}: {seen.text}", _advice_or_check(visit, advice), **data, **seen.data)


def _rate(bytes_per_second: float) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if bytes_per_second >= size:
            return f"{bytes_per_second / size:.1f} {unit}/s"
    return f"{bytes_per_second:.0f} B/s"


_PAIR: Final = ("relay.admission",)


def checks(*, deep: bool) -> tuple[Check[Visit], ...]:
    """Return the checks of this group. They run one after the other: each loads the connection."""
    order = (
        ("packet", _packet, 2.0),
        ("large", _large, _PATIENCE),
        ("burst", _bursts, 10.0 if deep else 4.0),
        ("limits", _limits, 1.0),
        ("speed", _speed, 4.0 if deep else 2.0),
    )
    ways = (("http.upgrade", "http.websocket"),)
    made = [Check(name="relay.admission", run=_admission, needs=ways)]
    for name, run, times in order:
        needs = _PAIR if name in ("packet", "limits") else ("relay.packet",)
        before = (made[-1].name, "http.identity") if name == "packet" else (made[-1].name,)
        made.append(Check(name=f"relay.{name}", run=run, needs=needs, after=before, times=times))
    if deep:
        last = (made[-1].name,)
        made.append(
            Check(name="relay.idle", run=_idle, needs=("relay.packet",), after=last, extra=_IDLE)
        )
    return tuple(made)
