"""Loads a DERP map from any source: a file, a URL, headscale or a running relay (`load_map`)."""

from __future__ import annotations

import asyncio
import dataclasses
import re
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from pyderp import gojson
from pyderp.defaults import STUN_PORT
from pyderp.errors import ConfigError, ConnectError, DerpError, InvalidMap, without_frames
from pyderp.mapio.cache import CachedMap, UnusableCopy, read_cache, write_cache
from pyderp.mapio.running import describe_relay
from pyderp.maps.derpmap import DERPMap, own_map
from pyderp.maps.formats import MAX_MAP, MapKind, MapText, read_map_text
from pyderp.maps.headscale import HeadscaleConfig
from pyderp.net.dns import Resolver
from pyderp.net.fetch import Fetched, fetch, shown_url
from pyderp.net.settings import NetworkSettings
from pyderp.net.tlscontext import TLSConfig
from pyderp.tasks import in_own_thread

__all__ = ["LoadedMap", "MapWays", "is_url", "load_map"]

_NOT_MODIFIED: Final = 304
_OK: Final = 200
_RELAY_PATHS: Final = ("", "/", "/derp")
_STDIN: Final = "-"
_SCHEME: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


@dataclass(frozen=True, kw_only=True)
class MapWays:
    """How `load_map` fetches maps."""

    timeout: float = 10.0
    """Seconds for one URL, or for one running relay."""

    tls: TLSConfig = dataclasses.field(default_factory=TLSConfig)
    """Which authorities are trusted."""

    settings: NetworkSettings | None = None
    """Proxies and other settings of connections; `None`: from the environment."""

    resolver: Resolver | None = None
    """Looks up host names; `None`: the system does."""

    stun_port: int = STUN_PORT
    """UDP port of STUN on which a running relay is asked."""


@dataclass(frozen=True, kw_only=True)
class LoadedMap:
    """A map, and where it is from."""

    map: DERPMap
    origin: str
    """The file, or the URL without user and password, as messages show it."""

    kind: MapKind
    warnings: tuple[str, ...] = ()
    """What may be wrong with the source, a sentence each. `lint` checks the map itself."""

    tree: object = None
    """The map as Python objects, of the shape that its JSON has, also if it was YAML. Objects are
    `gojson.Object`, whose `pairs` keep repeated names. `None`: the map describes a relay."""

    urls: tuple[str, ...] | None = None
    """The URLs in headscale's `config.yaml`; `None`: the map is not from one."""

    has_comments: bool = False
    """The text has comments or trailing commas, which are not part of JSON."""

    etag: str = ""
    """The ETag of a URL: `load_map(…, previous=…)` sends it to the server."""

    copied: datetime | None = None
    """Set if the URL could not be loaded and this is the kept copy: when the server last sent or
    confirmed that copy."""


def is_url(source: str | Path) -> bool:
    """Return whether a source is a URL, and not a file."""
    return isinstance(source, str) and source.lower().startswith(("http://", "https://"))


async def load_map(
    source: str | Path,
    *,
    kind: MapKind | None = None,
    ways: MapWays | None = None,
    cache: Path | None = None,
    previous: LoadedMap | None = None,
) -> LoadedMap:
    """Load the DERP map of a file, a URL, headscale, a policy file or a running relay.

    A URL without a path, or with the path `/derp`, is that of a running relay: the map is then
    made from its answers. headscale's `config.yaml` may name files and URLs, which are loaded,
    too. The values of the map are not checked: see `DERPMap.problems` and `pyderp.maps.lint`.

    Args:
        source: a path, `-` for standard input, or a URL with `http://` or `https://`.
        kind: the form of the text; `None`: find it out.
        ways: how to fetch.
        cache: for a URL: keep the last good copy in this file. If the URL cannot be loaded or is
            not a map any more, the copy is returned with a warning. Its ETag saves fetching a map
            that has not changed.
        previous: what this function returned for the same URL: it is returned again if the server
            confirms that the map has not changed.

    Raises:
        InvalidMap: the source is not a map; the error begins with the origin.
        ConfigError: the file cannot be read, or the URL, proxies or certificates cannot be used.
        ConnectError: the URL or relay cannot be reached, or answers with an error; `attempts` has
            the network's error.
    """
    ways = ways or MapWays()
    if not is_url(source):
        if not str(source):
            raise ConfigError("no DERP map is given: give a file, a URL, or - for standard input")
        if isinstance(source, str) and _SCHEME.match(source):
            raise ConfigError(f"{shown_url(source)}: want http:// or https://, or a file")
        if cache is not None:
            raise ConfigError(f"{source} is not a URL: copies are kept of maps at URLs only")
        return await _load_file(Path(source), kind, ways)
    url = str(source)
    if kind is MapKind.RELAY or (kind is None and _is_relay(url)):
        return await _load_relay(url, ways)
    return await _load_url(url, kind, ways, cache, previous)


def _is_relay(url: str) -> bool:
    try:
        parts = urlsplit(url)
    except ValueError:
        return False
    return parts.path in _RELAY_PATHS and not parts.query


async def _load_file(path: Path, kind: MapKind | None, ways: MapWays) -> LoadedMap:
    if kind is MapKind.RELAY:
        raise ConfigError(f"{path}: want the URL of a relay, https://HOST[:PORT]")
    origin = "standard input" if str(path) == _STDIN else str(path)
    try:
        # In a thread, as reading from a FIFO or a terminal may wait without end.
        data = await in_own_thread(lambda: _read(path), name="pyderp reads a map")
    except OSError as e:
        raise ConfigError(f"cannot read the DERP map {origin}: {e.strerror or e}") from e
    text = _read_text(data, kind, origin)
    if text.config is not None:
        return await _load_config(text.config, path.parent, origin, ways)
    return _loaded(text, origin)


def _read(path: Path) -> bytes:
    if str(path) == _STDIN:
        if sys.stdin is None:
            raise ConfigError("standard input is closed")
        with open(sys.stdin.fileno(), "rb", closefd=False) as file:
            return file.read(MAX_MAP + 1)
    with path.open("rb") as file:
        return file.read(MAX_MAP + 1)


def _read_text(data: bytes, kind: MapKind | None, origin: str) -> MapText:
    try:
        return read_map_text(data, kind)
    except InvalidMap as e:
        raise InvalidMap(f"{origin}: {e}") from None


def _loaded(text: MapText, origin: str, *, etag: str = "") -> LoadedMap:
    return LoadedMap(
        map=text.map,
        origin=origin,
        kind=text.kind,
        warnings=text.warnings,
        tree=text.tree,
        has_comments=text.has_comments,
        etag=etag,
    )


async def _load_config(
    config: HeadscaleConfig, folder: Path, origin: str, ways: MapWays
) -> LoadedMap:
    """Return the map that headscale merges from its files, URLs and embedded relay."""
    sources = [folder / path for path in config.paths]
    parts = [await _part(path, origin, ways) for path in sources]
    parts += [await _part(url, origin, ways) for url in config.urls]
    regions: dict[str, object] = {}
    warnings: list[str] = []
    for part in parts:
        warnings += [f"{part.origin}: {warning}" for warning in part.warnings]
        _merge(regions, part.tree)
    if config.own_region is not None:
        regions[str(config.own_region["RegionID"])] = config.own_region
    if not regions:
        warnings.append("the section derp has no regions: headscale does not start")
    tree = gojson.Object([("Regions", gojson.Object(list(regions.items())))])
    return LoadedMap(
        map=DERPMap.from_json(tree),
        origin=origin,
        kind=MapKind.HEADSCALE,
        warnings=tuple(warnings),
        tree=tree,
        urls=config.urls,
    )


async def _part(source: str | Path, origin: str, ways: MapWays) -> LoadedMap:
    kind = None if is_url(source) else MapKind.HEADSCALE
    try:
        if isinstance(source, str):
            return await _load_url(source, kind, ways, None, None)
        part = await load_map(source, kind=kind, ways=ways)
    except ConfigError as e:
        raise ConfigError(f"{origin}: derp: {e}") from e
    return part


def _merge(regions: dict[str, object], tree: object) -> None:
    """Add the regions of a map: each replaces an earlier one with its id, and null removes it."""
    for name, value in tree.items() if isinstance(tree, gojson.Object) else ():
        if gojson.same_name(name) == "regions" and isinstance(value, gojson.Object):
            for number, region in value.items():
                if region is None:
                    regions.pop(str(int(number)), None)
                else:
                    regions[str(int(number))] = region


async def _load_relay(url: str, ways: MapWays) -> LoadedMap:
    origin = shown_url(url)
    try:
        async with asyncio.timeout(ways.timeout):
            node, warnings = await describe_relay(
                url,
                tls=ways.tls,
                settings=ways.settings,
                resolver=ways.resolver,
                stun_port=ways.stun_port,
            )
    except TimeoutError as e:
        text = f"{origin}: the relay did not answer within {ways.timeout:g} s"
        raise ConnectError(text, attempts=[without_frames(e)]) from e
    return LoadedMap(map=own_map(node), origin=origin, kind=MapKind.RELAY, warnings=tuple(warnings))


async def _load_url(
    url: str,
    kind: MapKind | None,
    ways: MapWays,
    cache: Path | None,
    previous: LoadedMap | None,
) -> LoadedMap:
    origin = shown_url(url)
    copy, unusable = None, ""
    try:
        copy = read_cache(cache, origin) if cache is not None else None
    except UnusableCopy as e:
        unusable = str(e)
    # The ETag belongs to the text that a 304 stands for: that of the copy, if there is one.
    etag = copy.etag if copy else previous.etag if previous else ""
    try:
        answer = await _fetch(url, etag, origin, ways)
        if answer.status == _NOT_MODIFIED and copy is None and previous is not None:
            return previous
        if answer.status == _NOT_MODIFIED and copy is not None:
            text, etag = copy.text, copy.etag
        else:
            text, etag = answer.body.decode("utf-8", "replace"), answer.header("etag")
        loaded = _loaded(_read_text(text.encode(), kind, origin), origin, etag=etag)
    except (ConnectError, InvalidMap) as e:
        if copy is None:
            raise _with_reason(e, unusable) from e.__cause__
        return _from_copy(copy, kind, origin, e)
    if cache is not None:
        loaded = _keep(cache, loaded, text)
    return loaded


async def _fetch(url: str, etag: str, origin: str, ways: MapWays) -> Fetched:
    headers = [("Accept", "application/json")] + ([("If-None-Match", etag)] if etag else [])
    try:
        answer = await fetch(
            url,
            headers=headers,
            limit=MAX_MAP,
            seconds=ways.timeout,
            settings=ways.settings,
            tls=ways.tls,
            resolver=ways.resolver,
        )
    except ConfigError:
        raise
    except (DerpError, OSError) as e:
        text = str(e) if origin in str(e) else f"{origin}: {e}"
        raise ConnectError(text, attempts=[without_frames(e)]) from e
    if answer.status == _OK or (answer.status == _NOT_MODIFIED and etag):
        return answer
    raise ConnectError(f"{origin}: the server answers {answer.status} {answer.reason}".rstrip())


def _with_reason(error: ConnectError | InvalidMap, why: str) -> ConnectError | InvalidMap:
    """Return the URL's error, followed by why the copy cannot be used, if there is a copy."""
    if not why:
        return error
    text = f"{error}; {why}"
    if isinstance(error, ConnectError):
        return ConnectError(text, attempts=error.attempts)
    return InvalidMap(text)


def _from_copy(
    copy: CachedMap, kind: MapKind | None, origin: str, error: ConnectError | InvalidMap
) -> LoadedMap:
    try:
        loaded = _loaded(_read_text(copy.text.encode(), kind, origin), origin, etag=copy.etag)
    except InvalidMap as e:
        # Possible although the copy was a map when it was written: now `kind` is another form.
        raise _with_reason(error, f"the copy cannot be used: {e}") from None
    when = f"{copy.fetched:%Y-%m-%d %H:%M} UTC"
    warning = f"the map cannot be loaded now, so this is the copy of {when}: {error}"
    return dataclasses.replace(loaded, warnings=(*loaded.warnings, warning), copied=copy.fetched)


def _keep(cache: Path, loaded: LoadedMap, text: str) -> LoadedMap:
    copy = CachedMap(url=loaded.origin, etag=loaded.etag, fetched=datetime.now(UTC), text=text)
    try:
        write_cache(cache, copy)
    except OSError as e:
        warning = f"cannot keep a copy in {cache}: {e.strerror or e}"
        return dataclasses.replace(loaded, warnings=(*loaded.warnings, warning))
    return loaded
