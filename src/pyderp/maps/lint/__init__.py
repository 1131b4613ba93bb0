"""Rules that find mistakes in a DERP map. Each finding has a place in the map and advice."""

from __future__ import annotations

from collections.abc import Sequence

from pyderp.maps.derpmap import DERPMap
from pyderp.maps.formats import MapKind
from pyderp.maps.lint.finding import RULES, Finding, Severity, families, node_path, region_path
from pyderp.maps.lint.nodes import of_node
from pyderp.maps.lint.regions import of_region
from pyderp.maps.lint.text import of_tree
from pyderp.maps.lint.whole import of_map, of_names

__all__ = ["RULES", "Finding", "Severity", "by_severity", "families", "lint", "node_path"]
__all__ += ["region_path"]


def lint(
    derp_map: DERPMap,
    tree: object = None,
    *,
    kind: MapKind | None = None,
    urls: Sequence[str] | None = None,
) -> list[Finding]:
    """Return all findings, the most severe first, each severity in the order of the map.

    Args:
        tree: the map's JSON as `gojson.parse` returns it. It keeps repeated names and nulls, which
            `derp_map` does not have any more.
        kind: the form of the map's text: a control server adds Tailscale's regions to those of a
            policy, and headscale adds other sources to a file. `None`: clients get only this map.
        urls: the URLs in headscale's `config.yaml`, if the map is from there.
    """
    found = [*of_tree(tree, kind), *of_map(derp_map, kind, urls), *of_names(derp_map)]
    for number, region in derp_map.regions.items():
        found += of_region(number, region)
        for index, node in enumerate(region.nodes):
            found += of_node(node, number, node_path(number, index))
    return by_severity(found)


def by_severity(found: list[Finding]) -> list[Finding]:
    """Return findings with the most severe first, in their order within a severity."""
    order = list(Severity)
    return sorted(found, key=lambda finding: order.index(finding.severity))
