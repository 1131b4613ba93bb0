"""A run in virtual time: what is sent when, what ends it, and the report."""

from __future__ import annotations

import pytest

from pyderp.maps.derpmap import DERPMap
from pyderp.netcheck import core
from pyderp.netcheck.commands import RunOptions
from pyderp.netcheck.core import is_full_due
from pyderp.netcheck.home import History
from pyderp.netcheck.plan import MS, Family
from pyderp.netcheck.report import Report, Way

from .maps import map_of, node, region, report
from .virtual import OURS, VirtualNetwork

V4, V6 = Family.V4, Family.V6
ONE = map_of(region(1))
TWO = map_of(region(1), region(2))
FIVE = map_of(*(region(n) for n in range(1, 6)))
PORT_80 = map_of(region(1, node(1, can_port_80=True)), region(2, node(2, can_port_80=True)))
BOTH = RunOptions()


def all_of(
    derp_map: DERPMap, *families: Family, first: float = 10
) -> dict[tuple[str, Family], float]:
    """Every node answers; region n after n times so many milliseconds."""
    return {
        (each.name, family): first * number
        for number, found in derp_map.regions.items()
        for each in found.nodes
        for family in families or (V4,)
    }


def test_a_region_that_answers_ends_the_run() -> None:
    """Go's TestBasic: the second request waits no longer than for the first answer."""
    net = VirtualNetwork(stun=all_of(ONE))
    found = net.run(ONE)
    assert net.log == ["0 stun 1a v4"]
    assert net.took == 10
    assert found.udp
    assert found.ipv4
    assert found.ipv4_can_send
    assert not found.ipv6
    assert not found.ipv6_can_send
    assert found.region_latency == found.region_v4_latency == {1: 10 * MS}
    assert found.region_v6_latency == {}
    assert found.global_v4 == "198.51.100.7:40000"
    assert list(found.global_v4_counters) == [found.global_v4]
    assert found.mapping_varies_by_dest_ip is None
    assert found.captive_portal is None
    assert found.ways == {1: {Way.STUN}}


def test_both_families_are_measured() -> None:
    net = VirtualNetwork(stun=all_of(ONE, V4, V6))
    found = net.run(ONE, BOTH)
    assert net.said("stun") == ["0 stun 1a v4", "0 stun 1a v6"]
    assert found.ipv4
    assert found.ipv6
    assert found.ipv6_can_send
    assert found.global_v6 == f"[{OURS[V6]}]:40000"
    assert found.region_v6_latency == {1: 10 * MS}


def test_lost_requests_are_sent_again() -> None:
    """After 100 and 200 ms; the least latency counts."""
    net = VirtualNetwork(stun=all_of(ONE), lost=lambda _, number: number < 3)
    found = net.run(ONE)
    assert net.said("stun") == ["0 stun 1a v4", "100 stun 1a v4", "200 stun 1a v4"]
    assert net.took == 210
    assert found.region_latency == {1: 10 * MS}


def test_an_answer_after_the_retransmit_counts() -> None:
    net = VirtualNetwork(stun=all_of(ONE, first=150))
    found = net.run(ONE)
    assert net.said("stun") == ["0 stun 1a v4", "100 stun 1a v4"]
    assert net.took == 150
    assert found.region_latency == {1: 150 * MS}


@pytest.mark.parametrize(("ports", "varies"), [((1, 1), False), ((1, 2), True)])
def test_the_second_answer_shows_whether_the_mapping_varies(
    ports: tuple[int, int], varies: bool
) -> None:
    net = VirtualNetwork(
        stun=all_of(TWO), mapped_port=lambda probe, _: ports[probe.node.region_id - 1]
    )
    found = net.run(TWO)
    assert found.mapping_varies_by_dest_ip is varies
    assert found.global_v4.endswith(":1")


def test_a_mapping_that_varied_once_varies() -> None:
    """Go's TestMultiGlobalAddressMapping: the first address, and those seen more than once."""
    ports = iter([1, 2, 3, 3, 3])
    net = VirtualNetwork(stun=all_of(FIVE, first=1), mapped_port=lambda *_: next(ports))
    found = net.run(FIVE)
    assert found.mapping_varies_by_dest_ip
    counts = found.global_v4_counters
    assert {text.rpartition(":")[2]: n for text, n in counts.items()} == {"1": 1, "2": 1, "3": 3}
    assert found.global_v4.endswith(":1")


def test_three_regions_end_a_run() -> None:
    """Others get twice the time of the slowest of the three."""
    stun = {("1a", V4): 10.0, ("2a", V4): 20.0, ("3a", V4): 30.0, ("4a", V4): 85.0}
    net = VirtualNetwork(stun=stun)
    found = net.run(FIVE)
    assert net.took == 30 + 2 * 30
    assert set(found.region_latency) == {1, 2, 3, 4}
    net = VirtualNetwork(stun=stun | {("4a", V4): 95.0})
    assert set(net.run(FIVE).region_latency) == {1, 2, 3}


@pytest.mark.parametrize("more", [{"verbose": True}, {"all_regions": True}])
def test_three_regions_do_not_end_a_verbose_run(more: dict[str, bool]) -> None:
    """Nor one that measures relaying, as each region is to be shown."""
    net = VirtualNetwork(stun=all_of(FIVE, first=100))
    found = net.run(FIVE, RunOptions(have_v6=False, **more))
    assert set(found.region_latency) == {1, 2, 3, 4, 5}
    assert net.took == 500


def test_an_incremental_run_waits_once_the_time_of_the_slowest() -> None:
    last = report({1: 10, 2: 20, 3: 30}, v4={1: 10})
    stun = {("1a", V4): 10.0, ("2a", V4): 20.0, ("3a", V4): 30.0}
    net = VirtualNetwork(stun=stun, lost=lambda probe, _: probe.node.name == "4a")
    net.run(FIVE, last=last, home=4)  # home, which does not answer, keeps the run going
    assert net.took == 60


def test_a_silent_region_costs_the_whole_stun_phase() -> None:
    """As in Go; the page on differences says what would be better."""
    net = VirtualNetwork(stun={("1a", V4): 10.0})
    found = net.run(TWO)
    assert net.took == 3000
    assert found.region_latency == {1: 10 * MS}
    assert not net.said("https")


def test_requests_that_add_nothing_are_not_sent() -> None:
    """The region has a latency by IPv6, and whether the mapping varies is known."""
    stun = {("1a", V6): 5.0, ("2a", V4): 10.0, ("3a", V4): 10.0}
    net = VirtualNetwork(stun=stun | {("2a", V6): 5.0, ("3a", V6): 5.0})
    net.run(map_of(region(1), region(2), region(3)), BOTH)
    assert not net.said("100 stun 1a v4")


# UDP blocked


def test_without_udp_all_regions_are_measured_by_https_and_icmp() -> None:
    net = VirtualNetwork(https={1: 50, 2: 1200}, icmp={1: 20})
    found = net.run(TWO)
    assert net.said("https") == ["3000 https 1", "3000 https 2"]
    assert net.said("icmp") == ["3000 icmp 1", "3000 icmp 2", "4000 icmp stops"]
    assert not found.udp
    assert found.ipv4
    assert found.icmpv4
    assert found.region_latency == {1: 20 * MS, 2: 1200 * MS}
    assert found.region_v4_latency == {}
    assert found.ways == {1: {Way.HTTPS, Way.ICMP}, 2: {Way.HTTPS}}
    assert net.took == 4200


def test_blocked_udp_as_in_go() -> None:
    """TestWorksWhenUDPBlocked: a node for STUN only, so nothing else can be measured."""
    net = VirtualNetwork()
    found = net.run(map_of(region(1, node(1, stun_only=True))))
    assert net.took == 3000
    assert found == Report(os_has_ipv6=True, ipv4_can_send=True)


def test_a_relay_that_answers_https_slowly_ends_with_the_run() -> None:
    net = VirtualNetwork(https={1: 5000})
    found = net.run(ONE)
    assert net.took == 5000
    assert found.region_latency == {}


def test_failed_https_leaves_no_latency() -> None:
    net = VirtualNetwork(https={1: -5})
    assert net.run(ONE).region_latency == {}
    assert net.took == 4000  # ICMP took its second


@pytest.mark.parametrize("name", ["avoid", "no_measure_no_home"])
def test_some_regions_have_no_fallback(name: str) -> None:
    derp_map = map_of(region(1, **{name: True}), region(2))
    net = VirtualNetwork(https={2: 10}, icmp={2: 10})
    net.run(derp_map)
    assert net.said("https") == ["3000 https 2"]


def test_a_node_without_stun_gets_no_icmp() -> None:
    net = VirtualNetwork(https={1: 10})
    net.run(map_of(region(1, node(1, stun_port=-1))))
    assert not net.said("icmp")


def test_an_answer_during_the_fallback_counts() -> None:
    net = VirtualNetwork(stun={("1a", V4): 3010.0}, https={1: 100})
    found = net.run(ONE)
    assert found.udp
    assert found.region_latency == {1: 100 * MS}
    assert found.region_v4_latency == {1: 3010 * MS}


def test_with_stun_only_nothing_else_is_sent() -> None:
    net = VirtualNetwork(https={1: 10})
    found = net.run(PORT_80, RunOptions(have_v6=False, only_stun=True))
    assert net.took == 3000
    assert not net.said("https") + net.said("icmp") + net.said("captive")
    assert found.captive_portal is None


def test_with_tcp_443_only_https_and_the_captive_portal_are_tested() -> None:
    """No STUN phase and no ICMP; the captive portal is tested as in Go."""
    net = VirtualNetwork(https={1: 10, 2: 250}, captive=(5, False))
    found = net.run(PORT_80, RunOptions(have_v6=False, only_tcp_443=True))
    assert net.log == ["0 https 1", "0 https 2", "200 captive 192.0.2.10 192.0.2.20"]
    assert found.region_latency == {1: 10 * MS, 2: 250 * MS}
    assert found.captive_portal is False


# Captive portal


def test_no_portal_is_tested_if_stun_answers_first() -> None:
    net = VirtualNetwork(stun=all_of(PORT_80), captive=(1, True))
    assert net.run(PORT_80).captive_portal is None
    assert not net.said("captive")


def test_a_verbose_run_tests_for_a_portal_in_any_case() -> None:
    net = VirtualNetwork(stun=all_of(PORT_80), captive=(50, False))
    found = net.run(PORT_80, RunOptions(have_v6=False, verbose=True))
    assert found.captive_portal is False
    assert net.took == 250


@pytest.mark.parametrize("outcome", [True, False])
def test_a_portal_is_tested_after_200_ms_and_awaited(outcome: bool) -> None:
    net = VirtualNetwork(stun=all_of(PORT_80, first=150), captive=(1000, outcome))
    found = net.run(PORT_80, home=2)
    assert net.said("captive") == ["200 captive 192.0.2.20 192.0.2.10"]  # home first
    assert found.captive_portal is outcome
    assert net.took == 1200


def test_an_incremental_run_tests_for_no_portal() -> None:
    net = VirtualNetwork(stun=all_of(PORT_80, first=300))
    net.run(PORT_80, last=report({1: 300}, v4={1: 300}))
    assert not net.said("captive")


def test_without_an_interface_there_is_no_portal() -> None:
    net = VirtualNetwork()
    found = net.run(PORT_80, RunOptions(have_v4=False, have_v6=False, have_interface=False))
    assert found.captive_portal is False


def test_a_map_without_port_80_leaves_the_portal_unknown() -> None:
    net = VirtualNetwork(stun=all_of(ONE, first=300))
    assert net.run(ONE).captive_portal is None
    assert net.took == 300


# Bounds


def test_nothing_outlives_the_run() -> None:
    """Go's TestReportTimeouts: each phase fits in the run, and a run ends even if all checks
    hang."""
    assert core.OVERALL >= core.STUN_PHASE + core.ICMP_PHASE
    assert core.OVERALL >= core.HTTPS_PHASE
    net = VirtualNetwork()
    net.run(PORT_80)  # no answer to anything, and none of the checks ends
    assert net.took == 5000


def test_a_map_without_regions_ends_at_once() -> None:
    net = VirtualNetwork()
    assert net.run(map_of()).region_latency == {}
    assert net.took <= 200


def test_ten_thousand_regions_do_not_prolong_a_run() -> None:
    """Three that answer end the run, and no request is sent twice before its time."""
    derp_map = map_of(*(region(n, node(1, 0, region_id=n, name=f"{n}a")) for n in range(1, 10_001)))
    net = VirtualNetwork(stun={("9998a", V4): 5.0, ("9999a", V4): 5.0, ("10000a", V4): 5.0})
    found = net.run(derp_map)
    assert net.took == 15
    assert net.sent == 10_000
    assert len(found.region_latency) == 3
    silent = VirtualNetwork()
    silent.run(derp_map)
    assert silent.sent == 30_000
    assert silent.took == 5000


def test_recent_reports_cover_all_regions() -> None:
    """Go's TestRecentReportsRetainFullNetcheck: sixty runs, one a minute."""
    history = History()
    net = VirtualNetwork(stun=all_of(FIVE, first=1))
    last_full = None
    recent: list[Report] = []
    full = 0
    for minute in range(60):
        net.now = minute * 60_000 * MS
        last = history.last
        if is_full_due(last, last_full, net.now):
            last_full, last = net.now, None
            full += 1
            found = net.run(FIVE, RunOptions(have_v6=False, verbose=True), home=history.home)
        else:
            found = net.run(FIVE, last=last, home=history.home)
        found.now = net.now
        history.add(found)
        recent = [r for r in [*recent, found] if net.now - r.now <= 305_000 * MS]
        assert {number for r in recent for number in r.region_latency} == {1, 2, 3, 4, 5}
    assert full == 10


@pytest.mark.parametrize(
    ("udp", "portal", "age", "full"),
    [
        (True, None, 300_000, False),
        (True, None, 300_001, True),
        (False, None, 1, False),
        (False, False, 1, False),
        (False, True, 1, True),
        (True, True, 1, False),
    ],
)
def test_when_a_full_run_is_due(udp: bool, portal: bool | None, age: int, full: bool) -> None:
    last = Report(udp=udp, captive_portal=portal)
    assert is_full_due(last, 5, 5 + age * MS) is full
    assert is_full_due(None, 5, 6)
    assert is_full_due(last, None, 6)
