"""`load_map` reads a map from any place."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import threading
from pathlib import Path
from typing import Any

import pytest

from pyderp.errors import ConfigError, ConnectError, InvalidMap
from pyderp.mapio.sources import LoadedMap, MapWays, load_map
from pyderp.maps.derpmap import DERPMap
from pyderp.maps.formats import MapKind
from pyderp.maps.region import DERPNode, DERPRegion
from pyderp.net.settings import NetworkSettings

from .serving import raw_server, serving

NODE = DERPNode(name="900a", region_id=900, host_name="derp.example.com")
LAB = DERPMap(
    regions={
        900: DERPRegion(region_id=900, region_code="lab", region_name="Lab", nodes=(NODE,)),
    }
)
JSON = LAB.to_json().encode()
OTHER = DERPMap(regions={901: DERPRegion(region_id=901)})
DIRECT = NetworkSettings()


def load(source: str | Path, **more: Any) -> LoadedMap:
    more.setdefault("ways", MapWays(settings=DIRECT))
    return asyncio.run(load_map(source, **more))


def written(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


# Files


def test_a_map_is_read_from_a_file(tmp_path: Path) -> None:
    path = written(tmp_path / "map.json", JSON)
    for source in (path, str(path)):
        loaded = load(source)
        assert (loaded.map, loaded.kind, loaded.origin) == (LAB, MapKind.JSON, str(path))
        assert loaded.warnings == ()
        assert loaded.copied is None


def test_a_map_is_read_from_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    read, write = os.pipe()
    os.write(write, JSON)
    os.close(write)
    with open(read) as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        loaded = load("-")
    assert (loaded.map, loaded.origin) == (LAB, "standard input")


@pytest.mark.parametrize("what", ["missing", "folder"])
def test_a_file_that_cannot_be_read_is_an_error(tmp_path: Path, what: str) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(ConfigError, match=r"^cannot read the DERP map .*/(missing|folder): \w"):
        load(tmp_path / what)


def test_an_error_in_a_file_begins_with_its_name(tmp_path: Path) -> None:
    path = written(tmp_path / "map.json", '{"Regions": {"900": {"Nodes": [{"DERPPort": "x"}]}}}')
    with pytest.raises(InvalidMap) as caught:
        load(path)
    assert str(caught.value) == (
        f'{path}: Regions["900"].Nodes[0].DERPPort: want an integer, got a string'
    )


def test_only_maps_from_urls_have_copies(tmp_path: Path) -> None:
    path = written(tmp_path / "map.json", JSON)
    with pytest.raises(ConfigError, match="is not a URL: copies are kept of maps at URLs only"):
        load(path, cache=tmp_path / "cache")


# URLs


def test_a_map_is_read_from_a_url() -> None:
    with serving(body=JSON, headers={"ETag": '"1"'}) as server:
        loaded = load(server.url)
    assert (loaded.map, loaded.kind, loaded.origin) == (LAB, MapKind.JSON, server.url)
    assert loaded.etag == '"1"'
    assert server.requests[0]["accept"] == "application/json"


def test_an_unchanged_map_is_not_sent_again() -> None:
    """The server answers 304, and the map that was there before is returned."""
    with serving(body=JSON, headers={"ETag": '"1"'}) as server:
        first = load(server.url)
        assert load(server.url, previous=first) is first
        assert server.requests[1]["if-none-match"] == '"1"'
        server.body, server.headers = OTHER.to_json().encode(), {"ETag": '"2"'}
        assert load(server.url, previous=first).map == OTHER


def test_the_etag_of_the_copy_avoids_sending_it_again(tmp_path: Path) -> None:
    cache = tmp_path / "cache.json"
    with serving(body=JSON, headers={"ETag": '"1"'}) as server:
        load(server.url, cache=cache)
        server.body = b"not sent"
        again = load(server.url, cache=cache)
    assert (again.map, again.warnings, again.copied) == (LAB, (), None)
    assert cache.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("trouble", ["gone", "404", "no map", "another shape"])
def test_the_last_good_copy_is_used_with_a_warning(tmp_path: Path, trouble: str) -> None:
    cache = tmp_path / "cache.json"
    with serving(body=JSON) as server:
        load(server.url, cache=cache)
        if trouble == "404":
            server.status = 404
        elif trouble == "no map":
            server.body = b"<html>Log in to the hotel</html>"
        elif trouble == "another shape":
            server.body = b'{"Regions": []}'
        if trouble != "gone":
            loaded = load(server.url, cache=cache)
    if trouble == "gone":
        loaded = load(server.url, cache=cache)
    assert loaded.map == LAB
    assert loaded.copied is not None
    (warning,) = loaded.warnings
    assert warning.startswith("the map cannot be loaded now, so this is the copy of ")
    assert f" UTC: {server.url}" in warning
    assert json.loads(cache.read_text())["map"] == JSON.decode()


def test_a_copy_of_another_url_is_not_used(tmp_path: Path) -> None:
    cache = tmp_path / "cache.json"
    with serving(body=JSON) as server:
        load(server.url, cache=cache)
    with (
        serving(status=500) as other,
        pytest.raises(ConnectError, match=r"answers 500.*; .* is the copy of another URL"),
    ):
        load(other.url, cache=cache)
    with serving(body=JSON) as third:
        assert load(third.url, cache=cache).warnings == ()
        assert json.loads(cache.read_text())["url"] == third.url


def test_the_error_of_a_damaged_copy_says_so(tmp_path: Path) -> None:
    cache = tmp_path / "cache.json"
    with serving(body=JSON) as server:
        load(server.url, cache=cache)
    cache.write_text(json.dumps(json.loads(cache.read_text()) | {"map": 1}))
    with pytest.raises(ConnectError, match=r"efused.*; the copy in .* is damaged"):
        load(server.url, cache=cache)


def test_a_file_that_is_no_copy_is_not_overwritten(tmp_path: Path) -> None:
    mine = tmp_path / "map.json"
    mine.write_bytes(JSON)
    with serving(body=JSON) as server, pytest.raises(ConfigError, match="is not a copy of a map"):
        load(server.url, cache=mine)
    assert mine.read_bytes() == JSON
    assert server.requests == []


def test_a_copy_that_cannot_be_kept_is_a_warning(tmp_path: Path) -> None:
    with serving(body=JSON) as server:
        loaded = load(server.url, cache=tmp_path / "missing" / "cache.json")
    assert loaded.map == LAB
    assert "cannot keep a copy in" in loaded.warnings[0]


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        ({"status": 404}, "the server answers 404 Not Found"),
        ({"status": 304}, "the server answers 304 Not Modified"),
        ({"body": b"<html>"}, "neither JSON nor YAML"),
        ({"status": 302, "headers": {"Location": "/map"}}, "more than 10 redirects"),
        ({"status": 302, "headers": {"Location": "ftp://x/"}}, "redirected to ftp://x/: want"),
    ],
)
def test_a_url_without_a_map_is_an_error(answer: dict[str, Any], error: str) -> None:
    with serving(**answer) as server, pytest.raises((ConnectError, InvalidMap)) as caught:
        load(server.url)
    assert str(caught.value).startswith(server.url)
    assert error in str(caught.value)


def test_a_password_in_a_url_is_sent_and_never_shown() -> None:
    with serving(body=JSON) as server:
        url = server.url.replace("//", "//me:secret@")
        assert load(url).origin == server.url
        server.status = 403
        with pytest.raises(ConnectError) as caught:
            load(url)
    assert "secret" not in str(caught.value)
    assert server.requests[0]["authorization"] == "Basic bWU6c2VjcmV0"


def _endless(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        connection.sendall(b" " * 65536)


def test_an_answer_without_end_is_bounded() -> None:
    with raw_server(_endless) as url, pytest.raises(ConnectError, match="more than 16777216 b"):
        load(url)


def test_an_answer_that_does_not_come_is_bounded_in_time() -> None:
    silent = threading.Event()

    def say_nothing(_: socket.socket) -> None:
        silent.wait(60)

    with raw_server(say_nothing) as url:
        with pytest.raises(ConnectError, match=r"no whole answer within 0\.2 s"):
            load(url, ways=MapWays(settings=DIRECT, timeout=0.2))
        silent.set()


@pytest.mark.parametrize("junk", [b"", b"SSH-2.0-x\r\n", b"HTTP/1.1 200 OK\r\n" * 10])
def test_junk_is_an_error(junk: bytes) -> None:
    with raw_server(lambda c: c.sendall(junk)) as url, pytest.raises(ConnectError) as caught:
        load(url)
    assert str(caught.value).startswith(url)


def test_a_server_that_refuses_connections_is_an_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(ConnectError, match=rf"^http://127\.0\.0\.1:{port}/map: .*refused") as e:
        load(f"http://127.0.0.1:{port}/map")
    assert len(e.value.attempts) == 1


# headscale


def test_a_config_of_headscale_is_read(tmp_path: Path) -> None:
    """Its files, then its URLs, then its own relay; a later region wins, null removes one."""
    written(tmp_path / "a.yaml", "regions:\n  1: {regionid: 1, regioncode: a}\n  2: {regionid: 2}")
    written(tmp_path / "b.yaml", "regions:\n  2: null\n  3: {regionid: 3, regioncode: b}")
    with serving(body=b'{"Regions": {"3": {"RegionID": 3, "RegionCode": "url"}}}') as server:
        config = f"""
server_url: https://hs.example.com
derp:
  server: {{enabled: true, region_id: 999, region_code: hs, stun_listen_addr: "0.0.0.0:3479"}}
  urls: [{server.url}]
  paths: [a.yaml, {tmp_path}/b.yaml]
"""
        loaded = load(written(tmp_path / "config.yaml", config))
    assert loaded.kind is MapKind.HEADSCALE
    codes = {number: region.region_code for number, region in loaded.map.regions.items()}
    assert codes == {1: "a", 3: "url", 999: "hs"}
    (node,) = loaded.map.regions[999].nodes
    assert (node.name, node.host_name, node.derp_port, node.stun_port) == (
        "999",
        "hs.example.com",
        443,
        3479,
    )


def test_a_missing_part_of_a_config_is_an_error(tmp_path: Path) -> None:
    path = written(tmp_path / "config.yaml", "derp: {paths: [gone.yaml], urls: []}")
    with pytest.raises(ConfigError, match=r"config\.yaml: derp: cannot read .*gone\.yaml"):
        load(path)


def test_a_config_without_regions_is_a_warning(tmp_path: Path) -> None:
    loaded = load(written(tmp_path / "config.yaml", "derp: {paths: [], urls: []}"))
    assert loaded.map == DERPMap()
    assert "has no regions" in loaded.warnings[0]
