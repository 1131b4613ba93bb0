"""A relay's connection leaves nothing, at any stage and for any cause.

A stage at which it ends, a cause and a transport make a case. The collector is off, so a cycle
shows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, TypeAlias

import pytest

import pyderp
from pyderp import ManualTLS, RelayConfig
from tests import leftovers
from tests.admission.fakes import STALL
from tests.server.dial import drained, hang_up, until_gone
from tests.server.ways import way as way_of

from .causes import CAUSES, causes_of
from .controller import Controller
from .stages import BALANCER, STAGES, V1, Place, Stage, trusting_loopback

MakePlace: TypeAlias = Callable[[str, str], Place]

_LOOPS: Final = ("asyncio", "uvloop")
_READ_AGAIN: Final = (
    "pyderp.admission.verdict.Memory",
    "pyderp.certs.credential.CertificateInfo",
    "pyderp.certs.credential.Credential",
    "pyderp.secretfiles.FileStamp",
    "pyderp.keys.NodePublic",
    "pyderp.relay.limits.RateBucket",
    "pyderp.relay.limits.RateBuckets",
    "pyderp.relay.limits.RateConfig",
    "pyderp.relay.limits.RateLimit",
)
"""Objects that replace earlier settings, and those that a limit keeps."""
_LIBRARIES: Final = ("aiohttp",)
"""It leaves a cycle for each connection that the server closed."""


def loops(way: str) -> tuple[str, ...]:
    """The loops differ below TLS and websockets, so these need only one loop."""
    if way.endswith("plain"):
        return _LOOPS
    return ("asyncio",) if way.endswith(("tls1.2", "websocket")) else ("uvloop",)


def cases() -> Iterator[tuple[str, str, str, str]]:
    for name, stage in STAGES.items():
        for way in stage.ways:
            for loop in loops(way):
                for cause in causes_of(stage, way):
                    yield loop, way, name, cause


@pytest.fixture
def place(tmp_path: Path, tls: ManualTLS) -> Iterator[MakePlace]:
    """Makes the place for a stage on a transport."""
    made: list[Place] = []

    def make(stage: str, way: str) -> Place:
        config, via = way_of(way.removeprefix(BALANCER), tls)
        behind = way.startswith(BALANCER)
        via.before = V1 if behind else b""
        found = Place(tmp_path, via)
        made.append(found)
        if STAGES[stage].controlled:
            found.controller = Controller((STALL,))
        settings = {**(trusting_loopback() if behind else {}), **STAGES[stage].settings(found)}
        found.config = RelayConfig(tls=config.tls, **settings)
        return found

    yield make
    for each in made:
        if each.controller is not None:
            each.controller.stop()


async def one_ending(place: Place, stage: Stage, cause: str) -> None:
    if cause == "revoked":
        place.allow(True)
        place.relay.reload()
    line = await stage.reach(place)
    await CAUSES[cause](place, line)
    if stage.see is not None:
        await stage.see(place)
    if not line.writer.is_closing():
        await drained(line.reader)
        await hang_up(line.writer)
    for other in line.others:
        await other.aclose()
    del line
    await until_gone(place.relay)


@pytest.mark.parametrize(("on_loop", "way", "stage", "cause"), list(cases()), indirect=["on_loop"])
async def test_nothing_is_left_of_a_connection(
    way: str, stage: str, cause: str, place: MakePlace
) -> None:
    where = place(stage, way)

    async with pyderp.Relay(where.config) as where.relay:
        await one_ending(where, STAGES[stage], cause)
        async with leftovers.none_left(
            but=_READ_AGAIN if STAGES[stage].rereads or cause == "revoked" else (),
            libraries=_LIBRARIES if where.controller is not None else (),
        ):
            await one_ending(where, STAGES[stage], cause)
