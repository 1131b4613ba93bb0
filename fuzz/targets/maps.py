"""The text of a DERP map: `pyderp.maps.formats.read_map_text`.

Mode 0: the reader finds out the form; 1 to 3: JSON, a policy, headscale's YAML. A map that was
read can be checked, and written as JSON and as YAML, and is the same when it is read again.
"""

from __future__ import annotations

from typing import Final

from pyderp.errors import InvalidMap
from pyderp.maps.formats import MapKind, read_map_text
from pyderp.maps.lint import lint
from pyderp.maps.yamltext import headscale_yaml

__all__ = ["TOKENS", "one_input"]

_KINDS: Final = (None, MapKind.JSON, MapKind.POLICY, MapKind.HEADSCALE)

TOKENS: Final = (
    b'"derpMap":',
    b'{"Regions":{"900":',
    b'"Nodes":[{"Name":"900a",',
    b'"HostName":"',
    b'"STUNPort":-1',
    b'"Latitude":1e999',
    b'"HomeParams":{"RegionScore":{"900":0.5}}',
    b"regions:\n  900:\n",
    b"    nodes:\n    - name: a\n",
    b"&a ",
    b"*a",
    b"<<: *a\n",
    b"!!str ",
    b"--- \n",
    b"// x\n",
    b"/* x */",
    b",}",
    b"[" * 100,
    b"null",
    b"\\ud800",
    b"\xef\xbb\xbf",
    b"0x1f",
    b"9223372036854775808",
)


def one_input(data: bytes) -> None:
    """Read a map, check it, write it, and read it again."""
    try:
        read = read_map_text(data[1:], _KINDS[data[0] & 3] if data else None)
    except InvalidMap:
        return
    lint(read.map, read.tree)
    again = read_map_text(read.map.to_json(pretty=True).encode(), MapKind.JSON)
    assert again.map == read.map
    assert again.map.to_json() == read.map.to_json()
    if not read.map.keep_regions:
        yaml = read_map_text(headscale_yaml(read.map).encode(), MapKind.HEADSCALE)
        assert yaml.map == read.map
