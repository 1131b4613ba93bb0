"""Group `relay`: which keys are let in, and whether packets really pass between two clients."""

from __future__ import annotations

import asyncio
import os
import statistics
from typing import Final

from pyderp.client.client import Client
from pyderp.doctor.advice import explain
from pyderp.doctor.carry import Carried, carry, welcome
from pyderp.doctor.finding import Check, Seen, failed, ok, skipped, warned
from pyderp.doctor.visit import Visit
from pyderp.errors import LoginRefused, without_frames
from pyderp.keys import KEY_LEN
from pyderp.tasks import cancel_and_wait
from pyderp.wire.frames import FRAME_HEADER_LEN, MAX_PACKET_SIZE
from pyderp.wire.messages import ServerInfo

__all__ = ["checks"]

_SHARE: Final = 0.8
"""Of a check's limit, so that it can still say how much arrived."""
_BURST: Final = 30
"""Packets at once: relays queue 32 for each client, and may drop what is more."""
_BURST_SIZE: Final = 1200
_SPEED_SIZE: Final = 8 * 1024
_SPEED_WINDOW: Final = 28
"""224 KiB on their way; relays queue 256 KiB, or 32 packets."""
_PINGS: Final = 3
_SLOW: Final = 125_000
"""Bytes a second (1 Mbit/s), below which a limit is worth a warning."""
_LOG: Final = "look at the relay's log and at derp_packets_dropped in its metrics"


async def _admission(visit: Visit) -> Seen:
    """Log in with a key that the relay has never seen, and make the pair for what follows."""
    if not visit.upgraded and not visit.websocket:
        return skipped("not checked, as neither an upgrade nor a websocket works")
    one, other = visit.keep(visit.client()), visit.keep(visit.client())
    try:
        visit.info = await _welcome_both(one, other)
    except LoginRefused as e:
        return await _as_known(visit, without_frames(e))
    visit.pair = (one, other)
    how = "" if visit.upgraded else ", in a websocket"
    return ok(f"open: lets in a key that is new to it{how}", open=True)


async def _welcome_both(one: Client, other: Client) -> ServerInfo:
    """Log both in, at once; raises as `welcome`."""
    second = asyncio.create_task(welcome(other), name="doctor logs in")
    try:
        info = await welcome(one)
        await second
        return info
    finally:
        await cancel_and_wait((second,))
        del second  # it may hold an error, which holds this frame


async def _as_known(visit: Visit, refusal: LoginRefused) -> Seen:
    """After a refusal: again with a key that should be admitted, if there is one."""
    settings = visit.settings
    if settings.key is None and settings.mesh_key is None:
        return warned(
            "hung up after the login of a new key: it admits known keys only, or is broken",
            "give --mesh-key FILE, or --key FILE with a key that it knows, to look further; if it "
            "is to be open, its log says why it hung up",
            open=False,
        )
    flag = "--mesh-key" if settings.mesh_key is not None else "--key"
    if visit.subject.target.tls and not visit.verified:
        return warned(
            "hung up after the login of a new key",
            f"{flag} is not used, as the certificate is not trusted: see tls.chain",
            open=False,
        )
    one = visit.keep(visit.client(key=settings.key, mesh_key=settings.mesh_key))
    try:
        visit.info = await welcome(one)
    except LoginRefused:
        seen = explain(refusal)
        text = f"hung up after each login, that with {flag} too"
        return failed(text, seen.advice, open=False)
    other = one
    if settings.mesh_key is not None:
        other = visit.keep(visit.client(mesh_key=settings.mesh_key))
        await welcome(other)
    visit.pair = (one, other)
    return ok(f"admits known keys only, and the one of {flag}", open=False)


async def _packet(visit: Visit) -> Seen:
    if visit.pair is None:
        return skipped("not checked, as no client was let in")
    one, other = visit.pair
    done = await _carry(visit, one, other, [os.urandom(64)])
    if not _whole(done):
        return _lost(done, "a packet of 64 bytes")
    back = await _carry(visit, other, one, [os.urandom(64)])
    if not _whole(back):
        return _lost(back, "a packet of 64 bytes, the way back")
    text = f"both ways, in {done.seconds * 1000:.1f} and {back.seconds * 1000:.1f} ms"
    return ok(text, seconds=[done.seconds, back.seconds])


async def _large(visit: Visit) -> Seen:
    one, other = _pair(visit)
    burst = _allowed(visit)
    if burst is not None and burst < MAX_PACKET_SIZE + FRAME_HEADER_LEN + KEY_LEN:
        return warned(
            f"packets of 64 KiB exceed the limit that the relay announces: {burst} bytes at once",
            "raise the burst of the relay's rate limit to 65,573 bytes at least",
            burst=burst,
        )
    done = await _carry(visit, one, other, [os.urandom(MAX_PACKET_SIZE)])
    if not _whole(done):
        return _lost(done, "a packet of 64 KiB")
    return ok(f"64 KiB in {done.seconds * 1000:.1f} ms", seconds=done.seconds)


async def _bursts(visit: Visit) -> Seen:
    one, other = _pair(visit)
    burst = _allowed(visit)
    if burst is not None and burst < 2 * _BURST * _BURST_SIZE:
        return skipped(f"more than the relay allows: {burst} bytes at once")
    rounds = 10 if visit.settings.deep else 2
    seconds: list[float] = []
    for _ in range(rounds):
        packets = [os.urandom(_BURST_SIZE) for _ in range(_BURST)]
        done = await _carry(visit, one, other, packets, window=_BURST)
        if not _whole(done):
            return _lost(done, f"a burst of {_BURST} packets of {_BURST_SIZE} bytes")
        seconds.append(done.seconds)
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
        return warned(text, "less than most uses need: see the relay's --rate-config", **data)
    return ok(text, **data)


async def _speed(visit: Visit) -> Seen:
    one, other = _pair(visit)
    deep = visit.settings.deep
    pings = [await one.ping() for _ in range(_PINGS * (4 if deep else 1))]
    through = await _carry(visit, one, other, [os.urandom(64)])
    if not _whole(through):
        return _lost(through, "a packet of 64 bytes")
    ping = statistics.median(pings)
    text = f"round trip {ping * 1000:.1f} ms, {through.seconds * 1000:.1f} ms to a peer"
    data: dict[str, object] = {"round_trip": ping, "to_peer": through.seconds}
    if _allowed(visit) is not None:
        return ok(f"{text}; throughput not measured, as the relay limits it", **data)
    done = await _throughput(visit, one, other)
    if not done.arrived or done.error is not None or not done.intact:
        return _lost(done, f"{done.sent} packets of {_SPEED_SIZE} bytes")
    rate = done.bytes_arrived / done.seconds if done.seconds else 0.0
    data |= {"bytes": done.bytes_arrived, "bytes_per_second": round(rate)}
    text = f"{text}; {_rate(rate)} with at most 224 KiB on the way"
    if done.arrived < done.sent:
        lost = f"{done.sent - done.arrived} of {done.sent} packets did not arrive in time"
        return warned(
            f"{text}, and {lost}", f"a slow line, or a relay that drops them: {_LOG}", **data
        )
    return ok(text, **data)


async def _throughput(visit: Visit, source: Client, target: Client) -> Carried:
    """Ever more packets, until they take long enough to be measured by; the last batch counts."""
    enough, most = (2.0, 32 * 1024) if visit.settings.deep else (0.2, 512)
    limit = visit.settings.timeout * _SHARE
    packet = os.urandom(_SPEED_SIZE)
    count = 8
    while True:
        batch = [packet] * count
        done = await carry(source, target, batch, window=_SPEED_WINDOW, limit=limit)
        if not _whole(done) or done.seconds > enough or count >= most:
            return done
        count *= 4


async def _carry(
    visit: Visit, source: Client, target: Client, packets: list[bytes], *, window: int = 1
) -> Carried:
    limit = visit.settings.timeout * _SHARE
    return await carry(source, target, packets, window=window, limit=limit)


def _pair(visit: Visit) -> tuple[Client, Client]:
    if visit.pair is None:
        raise LoginRefused("no client is logged in")
    return visit.pair


def _allowed(visit: Visit) -> int | None:
    """Bytes at once that the relay announces; `None`: any number."""
    info = visit.info
    limited = info is not None and info.token_bucket_bytes_per_second
    return info.token_bucket_bytes_burst if info is not None and limited else None


def _whole(done: Carried) -> bool:
    return done.error is None and done.intact and 0 < done.arrived == done.sent


def _lost(done: Carried, what: str) -> Seen:
    data = {"sent": done.sent, "arrived": done.arrived}
    if done.error is not None:
        seen = explain(done.error)
        return failed(f"{what}: {seen.text}", seen.advice, **data, **seen.data)
    if not done.intact:
        return failed(f"{what}: what arrived is not what was sent", _LOG, **data)
    text = f"{what}: {done.arrived} of {done.sent} arrived"
    return failed(text, f"the relay takes packets and does not deliver them: {_LOG}", **data)


def _rate(bytes_per_second: float) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if bytes_per_second >= size:
            return f"{bytes_per_second / size:.1f} {unit}/s"
    return f"{bytes_per_second:.0f} B/s"


_PAIR: Final = ("relay.admission",)


def checks(*, deep: bool) -> tuple[Check[Visit], ...]:
    """The checks of this group; one after the other, as one would disturb another."""
    order = (
        ("packet", _packet, 2.0),
        ("large", _large, 1.0),
        ("burst", _bursts, 4.0 if deep else 2.0),
        ("limits", _limits, 1.0),
        ("speed", _speed, 4.0 if deep else 2.0),
    )
    ways = (("http.upgrade", "http.websocket"),)
    made = [Check(name="relay.admission", run=_admission, needs=ways)]
    for name, run, times in order:
        needs = _PAIR if name in ("packet", "limits") else ("relay.packet",)
        before = made[-1].name
        made.append(Check(name=f"relay.{name}", run=run, needs=needs, after=(before,), times=times))
    return tuple(made)
