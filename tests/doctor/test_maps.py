"""Group `map`: mistakes in the map itself."""

from __future__ import annotations

from pyderp.doctor import maps
from pyderp.doctor.finding import Finding
from pyderp.doctor.runner import run_checks
from pyderp.maps.derpmap import DERPMap

from .support import FAIL, OK, WARN, run

NODE = {"Name": "900a", "RegionID": 900, "HostName": "a.example"}


async def look(**region: object) -> Finding:
    document = {
        "Regions": {"900": {"RegionID": 900, "RegionCode": "lab", "Nodes": [NODE], **region}}
    }
    found: list[Finding] = []
    derp_map = DERPMap.from_json(document)
    await run_checks(maps.CHECKS, derp_map, "map", limit=5, report=found.append)
    (finding,) = found
    return finding


def test_a_good_map_is_ok_and_mistakes_are_found() -> None:
    async def main() -> None:
        good = await look()
        assert (good.result, good.seen.text) == (OK, "1 region, 1 node")
        avoided = await look(Avoid=True)
        assert avoided.result is WARN
        assert "Avoid is set for 900" in avoided.seen.text
        other = await look(RegionID=901)
        assert other.result is FAIL
        assert "region 900" in other.seen.text
        many = await look(Nodes=[NODE] * 10)
        assert many.result is FAIL
        assert many.seen.text.endswith("more")

    run(main())
