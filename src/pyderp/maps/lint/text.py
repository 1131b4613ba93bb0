"""Rules about the text of a map, which its reader has forgotten: names that it has twice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from pyderp import gojson
from pyderp.maps.lint.finding import Finding
from pyderp.maps.mapjson import parse_id

__all__ = ["of_tree"]


def of_tree(tree: object) -> Iterator[Finding]:
    """Names that a JSON text has twice; its readers use the last, without a word."""
    if not isinstance(tree, gojson.Object):
        return
    yield from _repeated(tree, "", by_id=False)
    for name, value in tree.items():
        if gojson.same_name(name) != "regions" or not isinstance(value, gojson.Object):
            continue
        yield from _repeated(value, "Regions", by_id=True)
        for key, region in value.items():
            if isinstance(region, gojson.Object):
                path = f'Regions["{key}"]'
                yield from _repeated(region, path, by_id=False)
                yield from _repeated_in_nodes(region, path)


def _repeated_in_nodes(region: gojson.Object, path: str) -> Iterator[Finding]:
    for name, nodes in region.items():
        if gojson.same_name(name) == "nodes" and isinstance(nodes, list):
            for index, node in enumerate(nodes):
                if isinstance(node, gojson.Object):
                    yield from _repeated(node, f"{path}.Nodes[{index}]", by_id=False)


def _repeated(value: gojson.Object, path: str, *, by_id: bool) -> Iterator[Finding]:
    names = [str(parse_id(name)) if by_id else gojson.same_name(name) for name, _ in value.pairs]
    for same, count in Counter(names).items():
        if count > 1:
            last = max(at for at, name in enumerate(names) if name == same)
            shown = value.pairs[last][0]
            where = f'{path}["{shown}"]' if by_id else f"{path}.{shown}" if path else shown
            yield Finding(
                rule="duplicate-key",
                path=where,
                text=f"it is here {count} times; clients use the last and ignore the others",
                advice="remove all but one",
            )
