"""Group `map`: whether clients can use the DERP map."""

from __future__ import annotations

from typing import Final

from pyderp.doctor.finding import Check, Seen, failed, ok, warned
from pyderp.maps.derpmap import DERPMap
from pyderp.text import counted

__all__ = ["CHECKS"]

_SHOWN: Final = 3
"""The most mistakes that are printed; a map may have thousands."""
_LINT: Final = "`pyderp map lint` checks more of the map"


async def _valid(derp_map: DERPMap) -> Seen:
    problems = derp_map.problems()
    nodes = sum(len(region.nodes) for region in derp_map.regions.values())
    data = {"regions": len(derp_map.regions), "nodes": nodes, "errors": list(problems.errors)}
    if problems.errors:
        shown = "; ".join(problems.errors[:_SHOWN])
        more = len(problems.errors) - _SHOWN
        text = f"{shown}; and {more} more" if more > 0 else shown
        return failed(text, f"correct the map; {_LINT}", **data)
    avoided = [key for key, region in derp_map.regions.items() if region.avoid]
    if avoided:
        text = f"Avoid is set for {', '.join(map(str, avoided[:_SHOWN]))}"
        advice = "it is deprecated, and such a region may still become home: set NoMeasureNoHome"
        return warned(text, f"{advice}; {_LINT}", **data)
    return ok(f"{counted(len(derp_map.regions), 'region')}, {counted(nodes, 'node')}", **data)


CHECKS: Final[tuple[Check[DERPMap], ...]] = (Check(name="map.valid", run=_valid),)
