"""`pyderp netcheck`: what this network lets through to the relays of a DERP map."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import ipaddress
import logging
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, TypeAlias

import typer

from pyderp.addresses import parse_address
from pyderp.cli.connect_options import seconds, value
from pyderp.cli.output import Output, print_line
from pyderp.cli.parameters import whole_number
from pyderp.cli.process import Refused, log_to_stderr, run_command
from pyderp.client.config import ClientConfig
from pyderp.errors import ConfigError, ConnectError, InvalidMap
from pyderp.mapio.sources import MapWays, load_map
from pyderp.maps.derpmap import DERPMap
from pyderp.net.settings import NetworkSettings
from pyderp.net.tlscontext import TLSConfig, client_context
from pyderp.netcheck.checker import Netcheck
from pyderp.netcheck.config import NetcheckConfig
from pyderp.netcheck.relaying import check_relaying
from pyderp.netcheck.report import RelayResult, Report
from pyderp.netcheck.text import report_text

__all__ = ["EPILOG", "HELP", "bind_of", "netcheck"]

HELP: Final = (
    "Measure what this network lets through to the relays of a DERP map: UDP, IPv4, IPv6, "
    "latencies, the nearest region."
)
BIND_VARIABLE: Final = "TS_DEBUG_NETCHECK_UDP_BIND"

EPILOG: Final = """**Examples**

What `tailscale netcheck` reports, for your own map:

`pyderp netcheck derpmap.json`

Whether the relays also relay packets, which latencies do not show:

`pyderp netcheck derpmap.json --relay`

For a script, a JSON object for each run, every minute:

`pyderp netcheck derpmap.json --json --every 60`

The exit status is 0 if a relay answered and, with `--relay`, all relay packets; 1 if not; 2 if the
command line or the map cannot be used.
"""

_LONGEST_PAUSE: Final = 86_400.0
"""Seconds; a longer one is a mistake."""

_Map: TypeAlias = Annotated[
    str,
    typer.Argument(
        metavar="MAP",
        help="DERP map: a file (JSON, headscale's YAML or a policy file), its URL, or -: "
        "standard input.",
        show_default=False,
    ),
]
_Relay: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--relay",
        help="Also log in to each relay with two new keys, and send a packet between them; "
        "measure up to 100 regions.",
    ),
]
_Format: TypeAlias = Annotated[
    str | None,
    value(
        "json|json-line",
        "The report as JSON with the names that `tailscale netcheck` uses: indented, or on one "
        "line.",
        "--format",
    ),
]
_Every: TypeAlias = Annotated[
    float | None,
    seconds(
        "Measure again and again, with this pause; runs after the first are shorter.",
        most=_LONGEST_PAUSE,
    ),
]
_Verbose: TypeAlias = Annotated[
    bool,
    typer.Option(
        "-v",
        "--verbose",
        help="Measure up to 100 regions, show their ids, and log to standard error.",
    ),
]


def netcheck(
    source: _Map,
    relay: _Relay = False,
    json: Annotated[bool, typer.Option("--json", help="As --format=json-line.")] = False,
    form: _Format = None,
    every: _Every = None,
    bind_address: Annotated[
        str, value("IP", "Send STUN from this address.  [default: any]", show_default=False)
    ] = "",
    bind_port: Annotated[
        int, whole_number("N", "Send STUN from this UDP port.  [default: any]", show_default=False)
    ] = 0,
    ca: Annotated[
        Path | None,
        value("FILE", "Certificates to trust beside the system's; PEM, or one in DER."),
    ] = None,
    verbose: _Verbose = False,
) -> None:
    """The command; `HELP` says what it does."""
    log_to_stderr("text" if verbose else "brief")
    logging.getLogger("pyderp").setLevel(logging.INFO if verbose else logging.WARNING)
    if form not in (None, "json", "json-line"):
        raise typer.BadParameter(f"--format {form}: want json or json-line")
    shape = form or ("json-line" if json else None)
    output = Output(as_json=False)

    async def work() -> int:
        try:
            config = _settings(bind_address, bind_port, ca, verbose)
            config = dataclasses.replace(config, all_regions=relay)
            loaded = await load_map(source, ways=MapWays(tls=config.tls, settings=config.network))
            if not loaded.map.regions:
                raise ConfigError(f"DERP map {loaded.origin}: it has no region")
            unusable = _unusable(loaded.map)
            if len(unusable) == len(loaded.map.regions):
                errors = "; ".join(error for each in unusable.values() for error in each)
                raise InvalidMap(f"the DERP map {loaded.origin} is wrong: {errors}")
        except (ConfigError, ConnectError, InvalidMap) as e:
            raise Refused(str(e)) from e
        for warning in loaded.warnings:
            output.note(f"{loaded.origin}: {warning}")
        derp_map = loaded.map
        return await _Command(config, derp_map, relay, shape, output).run(every)

    run_command(work, output, from_map=True)


def _unusable(derp_map: DERPMap) -> dict[int, tuple[str, ...]]:
    """Returns what is wrong with each region that `ping` would refuse to connect to."""
    found = {
        key: tuple(DERPMap(regions={key: region}).problems().errors)
        for key, region in derp_map.regions.items()
    }
    return {key: errors for key, errors in found.items() if errors}


def bind_of(address: str, port: int, environment: str) -> tuple[str, int]:
    """Returns host and port to send STUN from: those of the flags, or else of the environment.

    Raises:
        ConfigError: address or port is invalid.
    """
    if address:
        try:
            ipaddress.ip_address(address)
        except ValueError:
            raise ConfigError(f'invalid bind address: "{address}"') from None
    if not 0 <= port <= 65535:
        raise ConfigError(f"invalid bind port number: {port}")
    if address or port or not environment:
        return address, port
    try:
        return parse_address(environment)
    except ConfigError as e:
        raise ConfigError(f"{BIND_VARIABLE}: {e}") from None


def _settings(address: str, port: int, ca: Path | None, verbose: bool) -> NetcheckConfig:
    host, number = bind_of(address, port, os.environ.get(BIND_VARIABLE, ""))
    tls = TLSConfig()
    if ca is not None:
        tls = TLSConfig(extra_roots=(ca,))
        try:
            client_context(tls, chain=True, hostname=True, keylog_file="")
        except ConfigError as e:
            raise ConfigError(f"--ca: {str(e).removeprefix('extra_roots: ')}") from e
    return NetcheckConfig(
        bind_host=host,
        bind_port=number,
        tls=tls,
        network=NetworkSettings.from_environment(),
        verbose=verbose,
    )


class _Progress:
    """A progress line on standard error, if that is a terminal."""

    def __init__(self) -> None:
        self._shown = sys.stderr is not None and sys.stderr.isatty()
        self._length = 0

    def show(self, text: str) -> None:
        """Show what is being done; an empty text removes the line."""
        if self._shown:
            with contextlib.suppress(OSError):
                print(f"\r{text:<{self._length}}\r{text}", end="", file=sys.stderr, flush=True)  # noqa: T201 (a command's progress)
            self._length = len(text)


@dataclass
class _Command:
    config: NetcheckConfig
    derp_map: DERPMap
    relay: bool
    shape: str | None
    output: Output

    async def run(self, every: float | None) -> int:
        """Measure, once or until Ctrl-C, and print; returns the exit status of the last run."""
        progress = _Progress()
        async with Netcheck(self.config) as checker:
            checker.on_progress = lambda text: progress.show(f"measuring: {text}")
            while True:
                try:
                    report = await checker.run(self.derp_map)
                    if self.relay:
                        await self._relay(report, progress)
                except asyncio.CancelledError:
                    progress.show("")
                    partial = checker.partial_report()
                    if partial is not None:
                        partial.notes.append("interrupted: this is what was measured so far")
                        self._print(partial)
                    raise
                progress.show("")
                self._print(report)
                if every is None:
                    return self._status(report)
                await asyncio.sleep(every)

    async def _relay(self, report: Report, progress: _Progress) -> None:
        relayed = report.relayed = {}
        total = sum(
            not node.stun_only for region in self.derp_map.regions.values() for node in region.nodes
        )
        done = 0

        def on_result(region: int, result: RelayResult) -> None:
            nonlocal done
            done += 1
            relayed.setdefault(region, []).append(result)
            progress.show(f"relaying: {done} of {total}")

        config = ClientConfig(tls=self.config.tls, network=self.config.network, app_name="pyderp")
        await check_relaying(self.derp_map, config, on_result=on_result)

    def _print(self, report: Report) -> None:
        for note in report.notes:
            self.output.note(note)
        if self.shape is None:
            print_line(report_text(report, self.derp_map, verbose=self.config.verbose))
        else:
            print_line(report.to_json(indent=self.shape == "json"))

    def _status(self, report: Report) -> int:
        results = [each for found in (report.relayed or {}).values() for each in found]
        return 0 if report.region_latency and all(each.relays for each in results) else 1
