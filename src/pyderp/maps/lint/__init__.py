"""What is wrong with a DERP map, or only looks right: rules, each with its place and a remedy."""

from __future__ import annotations

from pyderp.maps.derpmap import DERPMap
from pyderp.maps.lint.finding import RULES, Finding, Severity, families, node_path, region_path
from pyderp.maps.lint.nodes import of_node
from pyderp.maps.lint.regions import of_region
from pyderp.maps.lint.text import of_tree
from pyderp.maps.lint.whole import of_map, of_names

__all__ = ["RULES", "Finding", "Severity", "by_severity", "families", "lint", "node_path"]
__all__ += ["region_path"]


def lint(derp_map: DERPMap, tree: object = None) -> list[Finding]:
    """All that rules find, the worst first, in the order of the map.

    Args:
        tree: the map's JSON as `gojson.parse` makes it; only there repeated names can be seen.
    """
    found = [*of_tree(tree), *of_map(derp_map), *of_names(derp_map)]
    for number, region in derp_map.regions.items():
        found += of_region(number, region)
        for index, node in enumerate(region.nodes):
            found += of_node(node, number, node_path(number, index))
    return by_severity(found)


def by_severity(found: list[Finding]) -> list[Finding]:
    """The worst first; else in their order."""
    order = list(Severity)
    return sorted(found, key=lambda finding: order.index(finding.severity))
