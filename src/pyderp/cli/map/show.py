"""`pyderp map show` and `pyderp map convert`: a map as a table, as JSON, in another form."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Final

from pyderp.cli.map.source import (
    AsJson,
    Ca,
    Cache,
    Form,
    Source,
    Target,
    Timeout,
    label,
    load,
    run,
    ways,
    written,
)
from pyderp.cli.output import Output, print_line
from pyderp.defaults import HTTPS_PORT, STUN_PORT
from pyderp.mapio.sources import LoadedMap
from pyderp.maps.derpmap import DERPMap
from pyderp.maps.formats import MapKind
from pyderp.maps.region import PIN_PREFIX, DERPNode, DERPRegion
from pyderp.text import counted

__all__ = ["CONVERT_EPILOG", "CONVERT_HELP", "SHOW_EPILOG", "SHOW_HELP", "convert", "show"]

SHOW_HELP: Final = (
    "Show the regions and nodes of a DERP map; or ask a relay that runs, and show the map for it."
)
SHOW_EPILOG: Final = """**Examples**

The map that headscale makes of its files and URLs:

`pyderp map show /etc/headscale/config.yaml`

The map for a relay, by asking the relay without a login:

`pyderp map show https://derp.example.com`

**Exit status**: 0; 2 if there is no map that can be read.
"""
CONVERT_HELP: Final = (
    "Print a DERP map in another form. Unknown members are kept; comments are not."
)
CONVERT_EPILOG: Final = """**Examples**

`pyderp map convert derp.yaml --to json > map.json`

`pyderp map convert map.json --to headscale > /etc/headscale/derp.yaml`

The member `derpMap` for a policy file:

`pyderp map convert https://headscale.example.com/derpmap --to policy`

**Exit status**: 0; 2 if there is no map that can be read.
"""


def show(
    source: Source,
    form: Form = None,
    cache: Cache = None,
    ca: Ca = None,
    timeout: Timeout = 10.0,
    as_json: AsJson = False,
) -> None:
    """The command; `SHOW_HELP` says what it does."""

    async def work(output: Output) -> int:
        loaded = await load(output, source, form, ways(ca, timeout), cache=cache)
        if as_json:
            print_line(_as_json(loaded))
        else:
            for line in _lines(loaded):
                print_line(line)
        return 0

    run(work, as_json=as_json)


def _as_json(loaded: LoadedMap) -> str:
    return json.dumps(
        {
            "origin": loaded.origin,
            "kind": loaded.kind.value,
            "copied": None if loaded.copied is None else loaded.copied.isoformat(),
            "warnings": list(loaded.warnings),
            "map": json.loads(loaded.map.to_json()),
        }
    )


def _lines(loaded: LoadedMap) -> Iterator[str]:
    derp_map = loaded.map
    nodes = sum(len(region.nodes) for region in derp_map.regions.values())
    regions = counted(len(derp_map.regions), "region")
    yield f"{label(loaded.origin)}: {regions}, {counted(nodes, 'node')}"
    if derp_map.omit_default_regions:
        yield "without Tailscale's own regions"
    scores = derp_map.home_params.region_score if derp_map.home_params is not None else None
    for number, region in sorted(derp_map.regions.items()):
        yield ""
        yield _heading(number, region, (scores or {}).get(number))
        rows = [_row(node) for node in region.nodes] or [["no nodes"]]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            yield f"  {'  '.join(cells)}".rstrip()


def _heading(number: int, region: DERPRegion, score: float | None) -> str:
    parts = [f"{number} {label(region.region_code)}"]
    if region.region_name:
        parts.append(label(region.region_name))
    if region.no_measure_no_home:
        parts.append("never home")
    if region.avoid:
        parts.append("avoided")
    if score is not None:
        parts.append(f"latency times {score:g}")
    return ", ".join(parts)


def _row(node: DERPNode) -> list[str]:
    stun = "no STUN" if node.stun_port < 0 else f"STUN {node.stun_port or STUN_PORT}"
    remarks = []
    if node.cert_name.startswith(PIN_PREFIX):
        remarks.append(f"pin {label(node.cert_name.removeprefix(PIN_PREFIX))[:12]}…")
    elif node.cert_name:
        remarks.append(f"certificate for {label(node.cert_name)}")
    if node.can_port_80:
        remarks.append("port 80")
    if node.insecure_for_tests:
        remarks.append("certificate not verified")
    if node.stun_test_ip:
        remarks.append(f"STUN at {label(node.stun_test_ip)}")
    return [
        label(node.name),
        label(node.host_name),
        "no DERP" if node.stun_only else f"port {node.derp_port or HTTPS_PORT}",
        stun,
        f"IPv4 {label(node.ipv4) if node.ipv4 else 'by name'}",
        f"IPv6 {label(node.ipv6) if node.ipv6 else 'by name'}",
        ", ".join(remarks),
    ]


def convert(
    source: Source,
    to: Target,
    form: Form = None,
    cache: Cache = None,
    ca: Ca = None,
    timeout: Timeout = 10.0,
) -> None:
    """The command; `CONVERT_HELP` says what it does."""

    async def work(output: Output) -> int:
        loaded = await load(output, source, form, ways(ca, timeout), cache=cache)
        if loaded.has_comments:
            output.note(f"{loaded.origin}: it has comments or trailing commas, which are not kept")
        for warning in _lost(loaded.map, to):
            output.note(f"{loaded.origin}: {warning}")
        if loaded.kind is MapKind.POLICY and to == "policy":
            output.note(f"{loaded.origin}: only derpMap is printed, not the rest of the policy")
        print_line(written(loaded.map, to))
        return 0

    run(work, as_json=False)


def _lost(derp_map: DERPMap, to: str) -> Iterator[str]:
    """Yields a warning for each setting of the map that the form cannot express."""
    if to != "headscale":
        return
    if derp_map.omit_default_regions:
        yield (
            "headscale does not look at omitdefaultregions: give `urls: []` in its config.yaml "
            "instead"
        )
    if derp_map.home_params is not None:
        yield "headscale does not hand out homeparams"
