"""Rules about the text of a map, which `DERPMap` does not keep: repeated names, and nulls."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from pyderp import gojson
from pyderp.maps.formats import MapKind
from pyderp.maps.lint.finding import FIRST_OWN, Finding
from pyderp.maps.mapjson import parse_id

__all__ = ["of_tree"]


def of_tree(tree: object, kind: MapKind | None = None) -> Iterator[Finding]:
    """Yield findings about names that an object has twice, and about regions and nodes of null.

    Args:
        kind: the form of the text: in a policy and for headscale, null removes a region.
    """
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
                yield from _in_nodes(region, path)
            elif region is None:
                yield _null_region(key, kind)


def _null_region(key: str, kind: MapKind | None) -> Finding:
    path = f'Regions["{key}"]'
    number = parse_id(key)
    removes = kind is MapKind.HEADSCALE or (
        kind is MapKind.POLICY and number is not None and number < FIRST_OWN
    )
    if removes:
        source = "an earlier source of headscale" if kind is MapKind.HEADSCALE else "Tailscale"
        return Finding(
            rule="null-region",
            path=path,
            text=f"null removes the region {key} of {source}",
            advice="remove the line to keep that region",
        )
    return Finding(
        rule="null-member",
        path=path,
        text="the region is null: clients ignore it, and other programs may fail",
        advice="write the region, or remove its id",
    )


def _in_nodes(region: gojson.Object, path: str) -> Iterator[Finding]:
    for name, nodes in region.items():
        if gojson.same_name(name) == "nodes" and isinstance(nodes, list):
            for index, node in enumerate(nodes):
                where = f"{path}.Nodes[{index}]"
                if isinstance(node, gojson.Object):
                    yield from _repeated(node, where, by_id=False)
                elif node is None:
                    yield Finding(
                        rule="null-member",
                        path=where,
                        text="the node is null: pyderp ignores it, and Tailscale's clients fail",
                        advice="write the node, or remove it",
                    )


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
                text=f"it is in the map {count} times: clients use the last and ignore the others",
                advice="remove all but one",
            )
