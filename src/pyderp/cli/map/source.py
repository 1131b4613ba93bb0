"""What the commands of `pyderp map` share: arguments, reading of maps, and output."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from pyderp.cli.connect_options import seconds, value
from pyderp.cli.output import Output, escaped
from pyderp.cli.process import Refused, log_to_stderr, run_command
from pyderp.errors import ConfigError, ConnectError, InvalidMap
from pyderp.mapio.sources import LoadedMap, MapWays, load_map
from pyderp.maps.derpmap import DERPMap
from pyderp.maps.formats import MapKind
from pyderp.maps.yamltext import headscale_yaml
from pyderp.net.tlscontext import TLSConfig

__all__ = ["AsJson", "Ca", "Cache", "Form", "Source", "Target", "Timeout", "label", "load"]
__all__ += ["run", "ways", "written"]

_KINDS: Final = tuple(kind.value for kind in MapKind)
_TARGETS: Final = ("json", "headscale", "policy")
_SOURCE: Final = (
    "The map: a file, - for standard input, or a URL: of a map, or https://HOST[:PORT] of a relay "
    "that runs."
)


def _kind(text: str) -> str:
    if text not in _KINDS:
        raise typer.BadParameter(f"want one of {', '.join(_KINDS)}")
    return text


def _target(text: str) -> str:
    if text not in _TARGETS:
        raise typer.BadParameter(f"want one of {', '.join(_TARGETS)}")
    return text


Source = Annotated[str, typer.Argument(metavar="FILE|URL|-", help=_SOURCE, show_default=False)]
Form = Annotated[
    str | None,
    value(
        "FORM",
        "Form of the map: json; policy, a policy file with derpMap; headscale, its YAML; relay.  "
        "[default: detected]",
        "--from",
        callback=lambda text: None if text is None else _kind(text),
        show_default=False,
    ),
]
Target = Annotated[
    str,
    value(
        "FORM",
        "Form to print: json; headscale, a file for derp.paths; policy, the member derpMap for a "
        "policy file.",
        "--to",
        callback=_target,
    ),
]
Cache = Annotated[
    Path | None,
    value(
        "FILE",
        "Keep the last good copy of a map from a URL in this file, and use it while the URL cannot "
        "be fetched.",
        envvar="PYDERP_MAP_CACHE",
    ),
]
Ca = Annotated[
    Path | None,
    value("FILE", "Authorities to trust beside the system's; PEM, or one in DER.", "--ca"),
]
Timeout = Annotated[float, seconds("Limit for one URL, and for each step with a relay.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print a JSON object.")]


def ways(ca: Path | None, timeout: float, **more: Any) -> MapWays:
    """Returns how to fetch maps, from the flags."""
    tls = TLSConfig() if ca is None else TLSConfig(extra_roots=(ca,))
    return MapWays(timeout=timeout, tls=tls, **more)


async def load(
    output: Output, source: str, form: str | None, how: MapWays, *, cache: Path | None = None
) -> LoadedMap:
    """Read a map; its warnings are printed on standard error.

    Raises:
        Refused: it cannot be read or fetched, or is no map.
    """
    kind = None if form is None else MapKind(form)
    try:
        loaded = await load_map(source, kind=kind, ways=how, cache=cache)
    except (ConfigError, ConnectError, InvalidMap) as e:
        raise Refused(str(e)) from e
    for warning in loaded.warnings:
        output.note(f"{loaded.origin}: {warning}")
    return loaded


def run(work: Callable[[Output], Awaitable[int]], *, as_json: bool) -> None:
    """Run a command to its end; exits with the number that it returns, or 2 for `Refused`."""
    log_to_stderr("brief")
    output = Output(as_json=as_json)

    async def main() -> int:
        return await work(output)

    run_command(main, output)


def written(derp_map: DERPMap, form: str) -> str:
    """Returns a map as text, in the form json, headscale or policy."""
    if form == "headscale":
        return headscale_yaml(derp_map)
    text = derp_map.to_json(pretty=True)
    return f'"derpMap": {text},' if form == "policy" else text


def label(text: str) -> str:
    """Returns text of a map for a terminal; `-` if it is empty."""
    return escaped(text) or "-"
