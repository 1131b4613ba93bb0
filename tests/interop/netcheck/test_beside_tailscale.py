"""On the same network, `pyderp netcheck` and `tailscale netcheck` report the same.

The relays are Go's of both versions, and pyderp's.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from tests.interop.tailscaled.processes import daemon, quiet_environment

from .network import FAR, MIDDLE, NAT, NEAR, Network, facts, latencies, network

log = logging.getLogger(__name__)
pytestmark = pytest.mark.timeout(300)

TOLERANCE = 20.0
"""Milliseconds between the two latencies of a region."""
ATTEMPTS = 6
"""A busy machine delays answers of one of the two, even so much that they come too late to count;
in one of these runs it does not. From the second on they do not keep each other busy."""
ALL = [NEAR, MIDDLE, FAR]
UDP = "meta l4proto udp"
NO_V6 = "ip6 version 6 drop"
"""Which family reaches a relay first by TCP is a race, and the report contains its outcome."""


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    with network(tmp_path_factory.mktemp("netcheck")) as running:
        yield running


def both(net: Network, *, at_once: bool = True) -> tuple[dict[str, Any], dict[str, Any]]:
    """Both reports, measured at the same time or one after the other."""
    if not at_once:
        return net.ours(), net.theirs()
    with ThreadPoolExecutor(2) as pool:
        ours, theirs = pool.submit(net.ours), pool.submit(net.theirs)
        return ours.result(), theirs.result()


class Shortest(dict[tuple[str, int], float]):
    """The shortest latency of each region in several runs: a busy machine only makes it longer."""

    def note(self, report: dict[str, Any]) -> None:
        for key in ("RegionLatency", "RegionV4Latency", "RegionV6Latency"):
            for region, latency in latencies(report, key).items():
                self[key, region] = min(latency, self.get((key, region), latency))

    def is_close(self, other: Shortest) -> bool:
        """Whether both know the same regions, with latencies within the tolerance."""
        return self.keys() == other.keys() and all(
            abs(latency - other[each]) < TOLERANCE for each, latency in self.items()
        )


def compare(net: Network, **want: Any) -> dict[str, Any]:
    """Check that both report the same, and this; returns pyderp's last report."""
    shortest, their_shortest = Shortest(), Shortest()
    for attempt in range(1, ATTEMPTS + 1):
        ours, theirs = both(net, at_once=attempt == 1)
        shortest.note(ours)
        their_shortest.note(theirs)
        found = facts(ours)
        log.info("attempt %d: %s %s", attempt, latencies(ours), latencies(theirs))
        agree = found == facts(theirs) and want.items() <= found.items()
        if agree and shortest.is_close(their_shortest):
            return ours
        if attempt == ATTEMPTS:
            assert found == facts(theirs)
            assert {name: found[name] for name in want} == want
            pytest.fail(f"latencies differ too much: {shortest} {their_shortest}")
    raise AssertionError("there were no attempts")


def test_an_open_network_is_reported_alike(net: Network) -> None:
    ours = compare(
        net,
        UDP=True,
        IPv4=True,
        IPv6=True,
        RegionLatency=ALL,
        RegionV4Latency=ALL,
        RegionV6Latency=ALL,
        PreferredDERP=NEAR,
        GlobalV4="10.81.9.2",
        GlobalV6="[fd81:9::2]",
    )
    assert latencies(ours)[FAR] > 149


def without_measurements(text: str) -> list[str]:
    """The lines of a report without times, ports, latencies, and pyderp's additions."""
    lines = []
    for line in text.splitlines():
        if "PortMapping" in line or "CaptivePortal" in line:
            continue
        line = re.sub(r"(Time: ).*", r"\1", line)
        line = re.sub(r":\d{4,5}$", ":PORT", line)
        line = re.sub(r"(- +r\d: )[0-9.]+(?:ms|µs) *", r"\1", line)
        lines.append(re.sub(r"(\(Region \d\))  answers .*", r"\1", line))
    return lines


def test_the_text_has_the_same_layout(net: Network) -> None:
    """On an open network, and on one that lets nothing through."""
    for rules in ((), ("drop",)):
        with net.rules(*rules):
            ours, theirs = net.text().stdout, net.their_text()
        assert without_measurements(ours) == without_measurements(theirs)
        assert ("Nearest DERP: Region 1" in ours) == (not rules)


Scenario = Callable[[Network], AbstractContextManager[None]]
SCENARIOS: dict[str, tuple[Scenario, dict[str, Any]]] = {
    "ipv4 only": (
        lambda net: net.without(6),
        {"IPv4": True, "IPv6": False, "OSHasIPv6": True, "RegionV4Latency": ALL},
    ),
    "ipv6 only": (
        lambda net: net.without(4),
        {"IPv4": False, "IPv6": True, "RegionV6Latency": ALL, "RegionV4Latency": []},
    ),
    "ipv6 is dropped": (
        lambda net: net.rules(NO_V6),
        {"IPv4": True, "IPv6": False, "IPv6CanSend": True, "RegionV6Latency": []},
    ),
    "udp blocked": (
        # An echo to the other relays would take no longer than to the near one.
        lambda net: net.rules(
            NO_V6, f"{UDP} drop", "ip daddr != 10.81.1.2 icmp type echo-request drop"
        ),
        {"UDP": False, "IPv4": True, "ICMPv4": True, "RegionLatency": ALL, "PreferredDERP": NEAR},
    ),
    "udp and icmp blocked": (
        lambda net: net.rules(NO_V6, f"{UDP} drop", "icmp type echo-request drop"),
        {"UDP": False, "ICMPv4": False, "RegionLatency": ALL, "PreferredDERP": NEAR},
    ),
    "all blocked": (
        lambda net: net.rules("drop"),
        {"UDP": False, "IPv4": False, "RegionLatency": [], "PreferredDERP": 0},
    ),
    "the near relay is dead": (
        lambda net: net.rules("ip daddr 10.81.1.2 drop", "ip6 daddr fd81:1::2 drop"),
        {"RegionLatency": [MIDDLE, FAR], "PreferredDERP": MIDDLE},
    ),
    "one relay only answers STUN": (
        lambda net: net.rules("tcp dport 443 reject with tcp reset"),
        {"UDP": True, "RegionLatency": ALL, "PreferredDERP": NEAR},
    ),
    "a nat that keeps the port": (
        lambda net: net.rules(f"nat iifname to9 snat ip to {NAT}"),
        {"MappingVariesByDestIP": False, "GlobalV4": NAT, "GlobalV6": "[fd81:9::2]"},
    ),
    "a nat with a port for each destination": (
        lambda net: net.rules(
            f"nat iifname to9 meta l4proto udp snat ip to {NAT}:20000-60000 fully-random"
        ),
        {"MappingVariesByDestIP": True, "GlobalV4": NAT},
    ),
}


@pytest.mark.parametrize("name", SCENARIOS)
def test_each_network_is_reported_alike(net: Network, name: str) -> None:
    scenario, want = SCENARIOS[name]
    with scenario(net):
        compare(net, **want)


def test_a_captive_portal_is_reported_alike(net: Network, tmp_path: Path) -> None:
    """UDP is blocked, and a web server answers requests to port 80."""
    server = [sys.executable, "-m", "http.server", "8080", "--directory", str(tmp_path)]
    env = quiet_environment(tmp_path)
    with (
        daemon(net.router, server, tmp_path / "portal.log", env) as portal,
        net.rules(
            NO_V6,
            f"{UDP} drop",
            "icmp type echo-request drop",
            "dnat ip daddr 10.81.1.0/22 tcp dport 80 redirect to :8080",
        ),
    ):
        portal.wait_for("a web server", lambda: net.router.listens_on(8080))
        compare(net, CaptivePortal=True, UDP=False)


def test_a_loss_of_one_packet_in_five_is_reported_alike(net: Network) -> None:
    """In nine of ten runs, as lost requests are sent again.

    The family by which a region answered may differ: a region with a latency is not asked again.
    """
    seen = []
    with net.rules(f"{UDP} numgen random mod 100 < 20 drop"):
        for _ in range(10):
            found, theirs = (facts(report) for report in both(net))
            for name in ("RegionV4Latency", "RegionV6Latency"):
                del found[name], theirs[name]
            seen.append(found == theirs or (found, theirs))
    assert seen.count(True) >= 9, seen


def test_a_relay_that_answers_stun_and_relays_nothing_is_found(net: Network) -> None:
    """Its latencies are good; only --relay finds it."""
    with net.rules(
        "ip daddr 10.81.1.2 tcp dport 443 drop", "ip6 daddr fd81:1::2 tcp dport 443 drop"
    ):
        plain, relay = net.text(), net.text("--relay")
        report = net.ours("--relay")
    assert (plain.returncode, relay.returncode) == (0, 1)
    assert "Nearest DERP: Region 1" in plain.stdout
    near, middle, far = (
        next(line for line in relay.stdout.splitlines() if f"(Region {number})" in line)
        for number in (1, 2, 3)
    )
    assert "answers STUN, RELAYS NOTHING: " in near
    for line in (middle, far):
        assert "answers STUN, relays packets (" in line
    relays = {region: found[0]["Relays"] for region, found in report["RegionRelays"].items()}
    assert relays == {"901": False, "902": True, "903": True}


def test_without_ping_sockets_the_report_has_a_note(net: Network) -> None:
    net.client.write_sysctl("ipv4/ping_group_range", "1 0")
    try:
        with net.rules(f"{UDP} drop"):
            ours = net.ours()
    finally:
        net.client.write_sysctl("ipv4/ping_group_range", "0 2147483647")
    assert not ours["ICMPv4"]
    assert sorted(latencies(ours)) == ALL
    (note,) = [note for note in ours["Notes"] if "ICMP" in note]
    assert "net.ipv4.ping_group_range" in note
