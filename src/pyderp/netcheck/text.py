"""A report as text in the layout of `tailscale netcheck`, with the protocols of each region."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from pyderp.maps.derpmap import DERPMap
from pyderp.maps.region import DERPRegion
from pyderp.netcheck.plan import MS
from pyderp.netcheck.report import Report, Way
from pyderp.text import printable

__all__ = ["go_duration", "report_text"]

_STEP = MS // 10


def report_text(report: Report, derp_map: DERPMap, *, verbose: bool = False) -> str:
    """Return the text of a report; its time is in the time zone of this machine.

    Args:
        verbose: include the ids of regions.
    """
    return "\n".join(_lines(report, derp_map, verbose))


def _lines(report: Report, derp_map: DERPMap, verbose: bool) -> Iterator[str]:
    yield ""
    yield "Report:"
    yield f"\t* Time: {_local_time(report.now)}"
    yield f"\t* UDP: {_truth(report.udp)}"
    yield f"\t* IPv4: {_ipv4(report)}"
    yield f"\t* IPv6: {_ipv6(report)}"
    yield f"\t* MappingVariesByDestIP: {_truth(report.mapping_varies_by_dest_ip)}"
    yield "\t* PortMapping: not checked"
    if report.captive_portal is not None:
        yield f"\t* CaptivePortal: {_truth(report.captive_portal)}"
    if report.region_latency:
        yield f"\t* Nearest DERP: {_nearest(report, derp_map)}"
        yield "\t* DERP latency:"
        yield from _regions(report, derp_map, verbose)
    else:
        yield "\t* Nearest DERP: unknown (no response to latency probes)"
        if report.relayed is not None:
            yield "\t* DERP relaying:"
            yield from _regions(report, derp_map, verbose)


def _truth(value: bool | None) -> str:
    return "" if value is None else str(value).lower()


def _ipv4(report: Report) -> str:
    return f"yes, {report.global_v4}" if report.global_v4 else "(no addr found)"


def _ipv6(report: Report) -> str:
    if report.global_v6:
        return f"yes, {report.global_v6}"
    if report.ipv6:
        return "(no addr found)"
    return "no, but OS has support" if report.os_has_ipv6 else "no, unavailable in OS"


def _nearest(report: Report, derp_map: DERPMap) -> str:
    home = report.preferred_derp
    if not home:
        return "[none]"
    region = derp_map.regions.get(home)
    return f"{home} (region not found in map)" if region is None else printable(region.region_name)


def _regions(report: Report, derp_map: DERPMap, verbose: bool) -> Iterator[str]:
    def order(region: DERPRegion) -> tuple[bool, int, int]:
        latency = report.region_latency.get(region.region_id)
        return latency is None, latency or 0, region.region_id

    for region in sorted(derp_map.regions.values(), key=order):
        latency = report.region_latency.get(region.region_id)
        measured = "" if latency is None else go_duration(latency)
        name = printable(region.region_name)
        if verbose:
            name = f"derp{region.region_id}, {name}"
        line = f"\t\t- {printable(region.region_code):>3}: {measured:<7} ({name})"
        facts = ", ".join(_facts(report, region))
        yield f"{line}  {facts}" if facts else line


def _facts(report: Report, region: DERPRegion) -> Iterator[str]:
    ways = report.ways.get(region.region_id, set())
    for way in Way:
        if way in ways:
            yield f"answers {way.value}"
    for result in (report.relayed or {}).get(region.region_id, ()):
        node = f"{printable(result.node)} " if len(region.nodes) > 1 else ""
        if result.relays:
            yield f"{node}relays packets ({go_duration(result.latency)})"
        else:
            yield f"{node}RELAYS NOTHING: {printable(result.error)}"


def _local_time(nanoseconds: int) -> str:
    seconds, rest = divmod(nanoseconds, 1000 * MS)
    local = datetime.fromtimestamp(seconds).astimezone()
    fraction = f"{rest:09}".rstrip("0")
    zone = local.strftime("%z")
    zone = "Z" if zone == "+0000" else f"{zone[:3]}:{zone[3:5]}"
    return f"{local:%Y-%m-%d %H:%M:%S}{'.' if fraction else ''}{fraction}{zone}"


def go_duration(nanoseconds: int) -> str:
    """Return a latency, rounded to 0.1 ms, as Go writes durations below a minute."""
    rounded = (nanoseconds + _STEP // 2) // _STEP * _STEP
    if rounded == 0:
        return "0s"
    for unit, size in (("s", 1000 * MS), ("ms", MS), ("µs", 1000)):
        if rounded >= size:
            whole, rest = divmod(rounded, size)
            fraction = f"{rest:0{len(str(size)) - 1}}".rstrip("0")
            return f"{whole}.{fraction}{unit}" if fraction else f"{whole}{unit}"
    raise AssertionError("a tenth of a millisecond is more than a microsecond")
