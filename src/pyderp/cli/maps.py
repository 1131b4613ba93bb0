"""A region of a DERP map in a file, or from standard input."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Final

from pyderp.cli.stdin import read_stdin
from pyderp.errors import ConfigError, InvalidMap
from pyderp.maps.derpmap import DERPMap
from pyderp.maps.region import DERPRegion

__all__ = ["STDIN", "read_region"]

log = logging.getLogger("pyderp.cli")

STDIN: Final = Path("-")
_MAX_MAP: Final = 16 * 1024 * 1024


def read_region(path: Path, wanted: str | None) -> DERPRegion:
    """A region of the map in a file; `-`: standard input. What is odd in the map is logged.

    Args:
        wanted: id or code; `None`: the only one there is.

    Raises:
        ConfigError: the file cannot be read, or has no such region.
        InvalidMap: there are errors in the map, in whichever region.
    """
    derp_map = _read_map(path)
    try:
        warnings = derp_map.check()
    except InvalidMap as e:
        raise InvalidMap(f"the DERP map {path} is wrong: {e}") from e
    for warning in warnings:
        log.info("DERP map %s: %s", path, warning)
    return _choose(derp_map, wanted, path)


def _read_map(path: Path) -> DERPMap:
    try:
        text = read_stdin(_MAX_MAP) if path == STDIN else path.read_bytes()
    except OSError as e:
        raise ConfigError(f"cannot read the DERP map {path}: {e.strerror}") from e
    try:
        return DERPMap.from_json(text)
    except InvalidMap as e:
        raise InvalidMap(f"DERP map {path}: {e}") from e


def _choose(derp_map: DERPMap, wanted: str | None, path: Path) -> DERPRegion:
    regions = list(derp_map.regions.values())
    if wanted is None and len(regions) == 1:
        return regions[0]
    region = None if wanted is None else derp_map.region(wanted)
    if region is None:
        there = ", ".join(f"{r.region_id} ({r.region_code})" for r in regions) or "none"
        problem = "give --region" if wanted is None else f"it has no region {wanted!r}"
        raise ConfigError(f"DERP map {path}: {problem}; its regions: {there}")
    return region
