"""Tailscale's own Go clients drive pyderp's relay, and Go's ``derper`` for comparison.

The scenarios are in ``go/``. The clients of each version of Go run them against ``derper`` of
the same version and against pyderp's, so that what a scenario expects of pyderp is known to be
what Go's does; where relays differ, the scenario has the reason.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final, NamedTuple

import pytest

from .gopeer import GOPEER, NEWER_GOPEER, Scenario, play
from .relays import NEWER, OLDER, Kind, Setup, each_derper

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .relays import Relay

pytestmark = pytest.mark.timeout(120)


class Pair(NamedTuple):
    """A relay, and the program with Go's clients that drives it."""

    kind: Kind
    program: str

    def __str__(self) -> str:
        """Return the name by which test identifiers call it."""
        return f"{self.kind}-{self.program}"


PAIRS: Final = (
    Pair(OLDER, GOPEER),
    Pair(NEWER, NEWER_GOPEER),
    Pair("pyderp", GOPEER),
    Pair("pyderp", NEWER_GOPEER),
)


class Transport(NamedTuple):
    """A transport to a relay: how the relay is set up, and the flags of the client."""

    setup: Setup
    flags: tuple[str, ...] = ()


TRANSPORTS = {
    "http": Transport("plain"),
    "https": Transport("named"),
    "tls12": Transport("named", ("-tls12",)),
    "pin": Transport("pinned"),
    "ws": Transport("plain", ("-mode", "ws")),
    "wss": Transport("named", ("-mode", "ws")),
}

EVERYWHERE = ["sendrecv", "sizes", "reconnect", "watchers", "login", "badlogin", "badframes"]
"""Run on every transport."""

ON_EACH_STREAM = [
    "send_self",
    "ping",
    "pingflood",
    "unknown_dest",
    "peergone",
    "duplicates",
    "forward",
    "closepeer",
    "meshrights",
    "notepreferred",
    "unknownframes",
    "fragments",
    "bursts",
    "many",
]
"""Run once on plain TCP, TLS and websocket each."""

BY_HAND = ["upgrade", "faststart", "httpanswers", "wshandshake", "wsframes"]
"""Written to the socket byte by byte, so the only choice is with or without TLS."""

CASES = [
    *((name, transport) for name in EVERYWHERE for transport in TRANSPORTS),
    *((name, transport) for name in ON_EACH_STREAM for transport in ("http", "https", "ws")),
    *((name, transport) for name in BY_HAND for transport in ("http", "https")),
    ("watchloop", "http"),
    ("watchloop", "https"),
    ("wslimit", "ws"),
    *(
        pytest.param("slowreader", transport, marks=pytest.mark.slow)
        for transport in ("http", "https", "ws")
    ),
]


@pytest.fixture(scope="module")
def mute_clients(
    relays: Callable[[Kind, Setup], Relay],
) -> Iterator[Callable[[Pair], Scenario]]:
    """Clients that do not log in, for ten seconds during which the other tests can run."""
    started: dict[Pair, Scenario] = {}

    def mute_client(pair: Pair) -> Scenario:
        if pair not in started:
            relay = relays(pair.kind, "plain")
            started[pair] = Scenario(relay, "mutelogin", program=pair.program)
        return started[pair]

    yield mute_client
    for scenario in started.values():
        scenario.kill()


@pytest.fixture(params=PAIRS, ids=str)
def pair(request: pytest.FixtureRequest, mute_clients: Callable[[Pair], Scenario]) -> Pair:
    """The relay under test, or one that it is compared with, and the clients."""
    chosen: Pair = request.param
    mute_clients(chosen)
    return chosen


def flags_for(kind: Kind, transport: Transport) -> list[str]:
    """Return the client's flags; pyderp's relay takes and sends any legal size by websocket."""
    full = ["-expect-ws-full"] if kind == "pyderp" else []
    return [*transport.flags, *full]


@pytest.mark.parametrize(("name", "transport"), CASES)
def test_scenario(
    pair: Pair, name: str, transport: str, relays: Callable[[Kind, Setup], Relay]
) -> None:
    """The scenario's expectations hold."""
    way = TRANSPORTS[transport]
    relay = relays(pair.kind, way.setup)
    facts = play(relay, name, flags_for(pair.kind, way), program=pair.program)
    assert facts.get("websocket", transport in {"ws", "wss"}) is (transport in {"ws", "wss"})


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_the_transport_is_the_requested_one(
    pair: Pair, transport: str, relays: Callable[[Kind, Setup], Relay]
) -> None:
    """Websocket is websocket, TLS 1.3 starts fast, TLS 1.2 does not."""
    way = TRANSPORTS[transport]
    facts = play(relays(pair.kind, way.setup), "sendrecv", way.flags, program=pair.program)
    assert len(bytes.fromhex(facts["server_key"])) == 32
    expected = {
        "http": {"transport": "derp", "websocket": False},
        "https": {"transport": "tls", "tls_version": "TLS 1.3", "fast_start": True},
        # The meta certificate is sent, but TLS 1.2 does not encrypt it: no fast start.
        "tls12": {"tls_version": "TLS 1.2", "meta_cert": True, "fast_start": False},
        "pin": {"tls_version": "TLS 1.3", "fast_start": True, "sni": ""},
        "ws": {"transport": "websocket", "websocket": True},
        "wss": {"transport": "websocket", "websocket": True},
    }[transport]
    assert {name: facts[name] for name in expected} == expected


@pytest.mark.parametrize("program", [GOPEER, NEWER_GOPEER])
def test_wrong_pin_is_refused(program: str, relays: Callable[[Kind, Setup], Relay]) -> None:
    """The pin that the other tests use is really compared."""
    relay = replace(relays(OLDER, "pinned"), pin="sha256-raw:" + 64 * "0")
    with pytest.raises(AssertionError, match="cert hash does not match"):
        play(relay, "sendrecv", program=program)


def test_second_departure_of_a_peer(pair: Pair, relays: Callable[[Kind, Setup], Relay]) -> None:
    """Go's relay sends PeerGone once a connection; pyderp's sends it every time."""
    facts = play(relays(pair.kind, "plain"), "peergone", program=pair.program)
    assert facts["second_departure_told"] is (pair.kind == "pyderp")


def test_every_size_arrives_whole(pair: Pair, relays: Callable[[Kind, Setup], Relay]) -> None:
    """Every packet size around a buffer limit, and a sample of those between."""
    # `gopeer -scenario everysize` without a stride sends all 65537 sizes: 2 GB, a few seconds.
    flags = ["-stride", "97"]
    facts = play(relays(pair.kind, "plain"), "everysize", flags, program=pair.program)
    assert facts["packets"] > 8000


@pytest.mark.slow
def test_mute_client_is_dropped_after_ten_seconds(
    pair: Pair, mute_clients: Callable[[Pair], Scenario]
) -> None:
    """The relay closes a client that sends nothing, or half a ClientInfo."""
    mute_clients(pair).facts()


@each_derper
def test_home_gauge(derper: Kind, relays: Callable[[Kind, Setup], Relay]) -> None:
    """Home notes move derper's gauge."""
    play(relays(derper, "plain"), "homegauge")
