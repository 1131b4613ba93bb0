"""A report as JSON with Go's names, and as text with Go's layout."""

from __future__ import annotations

import json

import pytest

from pyderp.netcheck.plan import MS
from pyderp.netcheck.report import RelayResult, Report, Way, rfc3339
from pyderp.netcheck.text import go_duration, report_text

from .maps import map_of, region

NOW = 1_795_303_201_606_360_819
GO_S = (
    '{"Now":"2026-11-21T23:20:01.606360819Z","UDP":true,"IPv6":false,"IPv4":true,'
    '"IPv6CanSend":false,"IPv4CanSend":true,"OSHasIPv6":true,"ICMPv4":false,'
    '"MappingVariesByDestIP":false,"UPnP":null,"PMP":null,"PCP":null,"PreferredDERP":901,'
    '"RegionLatency":{"900":335692,"901":176223},"RegionV4Latency":{"900":335692,"901":176223},'
    '"RegionV6Latency":{},"GlobalV4Counters":{"127.0.0.1:33031":2},"GlobalV6Counters":null,'
    '"GlobalV4":"127.0.0.1:33031","GlobalV6":"","CaptivePortal":false}'
)
"""What `tailscale netcheck --format=json-line` printed, but for the port mapping."""


def sample() -> Report:
    return Report(
        now=NOW,
        udp=True,
        ipv4=True,
        ipv4_can_send=True,
        os_has_ipv6=True,
        mapping_varies_by_dest_ip=False,
        preferred_derp=901,
        region_latency={901: 176223, 900: 335692},
        region_v4_latency={901: 176223, 900: 335692},
        global_v4_counters={"127.0.0.1:33031": 2},
        global_v4="127.0.0.1:33031",
        captive_portal=False,
    )


def test_json_has_the_names_of_go() -> None:
    assert sample().to_json() == GO_S
    assert json.loads(sample().to_json(indent=True)) == json.loads(GO_S)
    assert sample().to_json(indent=True).startswith('{\n\t"Now": ')


def test_regions_are_sorted_as_texts() -> None:
    """As Go's encoder does."""
    found = Report(region_latency={2: 1, 10: 1, 1: 1})
    assert list(json.loads(found.to_json())["RegionLatency"]) == ["1", "10", "2"]


def test_members_that_go_lacks_come_last() -> None:
    found = sample()
    found.relayed = {
        900: [RelayResult("900a", relays=True, latency=5)],
        901: [RelayResult("901a", relays=False, error="no")],
    }
    found.notes.append("a note")
    members = json.loads(found.to_json())
    assert list(members)[-2:] == ["RegionRelays", "Notes"]
    assert members["RegionRelays"] == {
        "900": [{"Node": "900a", "Relays": True, "Latency": 5}],
        "901": [{"Node": "901a", "Relays": False, "Error": "no"}],
    }
    assert members["Notes"] == ["a note"]


@pytest.mark.parametrize(
    ("nanoseconds", "text"),
    [
        (1_700_000_000_000_000_000, "2023-11-14T22:13:20Z"),
        (1_700_000_000_120_000_000, "2023-11-14T22:13:20.12Z"),
        (1_700_000_000_000_000_001, "2023-11-14T22:13:20.000000001Z"),
    ],
)
def test_times_are_rfc_3339(nanoseconds: int, text: str) -> None:
    assert rfc3339(nanoseconds) == text


@pytest.mark.parametrize(
    ("nanoseconds", "text"),
    [
        (0, "0s"),
        (49_999, "0s"),
        (50_000, "100µs"),
        (949_999, "900µs"),
        (950_000, "1ms"),
        (1_250_000, "1.3ms"),
        (12_000_000, "12ms"),
        (999_949_999, "999.9ms"),
        (999_950_000, "1s"),
        (1_500_000_000, "1.5s"),
        (1_000_100_000, "1.0001s"),
    ],
)
def test_durations_are_go_s(nanoseconds: int, text: str) -> None:
    """`Round(100µs).String()`."""
    assert go_duration(nanoseconds) == text


MAP = map_of(
    region(900, region_code="lab", region_name="Lab"),
    region(901, region_code="lab2", region_name="Lab Two"),
    region(902, region_code="xxx", region_name="Dead"),
)


def lines(report: Report, *, verbose: bool = False) -> list[str]:
    return report_text(report, MAP, verbose=verbose).split("\n")


def test_text_of_a_report() -> None:
    found = sample()
    found.ways = {900: {Way.STUN}, 901: {Way.ICMP, Way.HTTPS}}
    shown = lines(found)
    assert shown[:2] == ["", "Report:"]
    assert shown[2].startswith("\t* Time: 2026-11-2")
    assert ".606360819" in shown[2]
    assert shown[3:] == [
        "\t* UDP: true",
        "\t* IPv4: yes, 127.0.0.1:33031",
        "\t* IPv6: no, but OS has support",
        "\t* MappingVariesByDestIP: false",
        "\t* PortMapping: not checked",
        "\t* CaptivePortal: false",
        "\t* Nearest DERP: Lab Two",
        "\t* DERP latency:",
        "\t\t- lab2: 200µs   (Lab Two)  answers HTTPS, answers ICMP",
        "\t\t- lab: 300µs   (Lab)  answers STUN",
        "\t\t- xxx:         (Dead)",
    ]
    assert "\t\t- xxx:         (derp902, Dead)" in lines(found, verbose=True)


def test_text_of_an_empty_report() -> None:
    shown = lines(Report(now=NOW))
    assert shown[3:] == [
        "\t* UDP: false",
        "\t* IPv4: (no addr found)",
        "\t* IPv6: no, unavailable in OS",
        "\t* MappingVariesByDestIP: ",
        "\t* PortMapping: not checked",
        "\t* Nearest DERP: unknown (no response to latency probes)",
    ]


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"preferred_derp": 0}, "\t* Nearest DERP: [none]"),
        ({"preferred_derp": 7}, "\t* Nearest DERP: 7 (region not found in map)"),
        ({"ipv6": True}, "\t* IPv6: (no addr found)"),
        ({"global_v6": "[2001:db8::1]:5"}, "\t* IPv6: yes, [2001:db8::1]:5"),
        ({"mapping_varies_by_dest_ip": True}, "\t* MappingVariesByDestIP: true"),
    ],
)
def test_each_value_has_its_line(values: dict[str, object], line: str) -> None:
    found = sample()
    for name, value in values.items():
        setattr(found, name, value)
    assert line in lines(found)


def test_relaying_regions_are_distinguished_from_answering_ones() -> None:
    """Of a region with several nodes each is named."""
    derp_map = map_of(region(1), region(2, *region(2).nodes, *region(3).nodes))
    found = Report(now=NOW, region_latency={1: MS}, ways={1: {Way.STUN}})
    found.relayed = {
        1: [RelayResult("1a", relays=False, error="it does \x1b[1mnothing")],
        2: [RelayResult("2a", relays=True, latency=3 * MS), RelayResult("3a", relays=False)],
    }
    shown = report_text(found, derp_map)
    assert "(Region 1)  answers STUN, RELAYS NOTHING: it does \\x1b[1mnothing" in shown
    assert "(Region 2)  2a relays packets (3ms), 3a RELAYS NOTHING: " in shown
