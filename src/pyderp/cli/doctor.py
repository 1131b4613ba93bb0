"""`pyderp doctor`: check whether a relay, or all relays of a DERP map, work."""

from __future__ import annotations

import asyncio
import dataclasses
import datetime
import itertools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Final, TypeAlias

import typer

from pyderp.cli.connect_options import seconds, trusted, value, wanted_certificate
from pyderp.cli.doctorlines import PROBLEMS, Notes, Report, line_of, values_of
from pyderp.cli.input import read_private_key
from pyderp.cli.output import Output, escaped
from pyderp.cli.parameters import whole_number
from pyderp.cli.process import Refused, log_to_stderr, run_command
from pyderp.doctor.examination import Examination, Region
from pyderp.doctor.finding import Finding, Result
from pyderp.doctor.target import Single, TargetKind, kind_of, regions_of, relay_region
from pyderp.doctor.visit import Settings
from pyderp.errors import ConfigError, ConnectError, InvalidMap
from pyderp.keys import read_mesh_key
from pyderp.mapio.sources import LoadedMap, MapWays, load_map
from pyderp.maps.derpmap import DERPMap
from pyderp.net.settings import NetworkSettings

__all__ = ["EPILOG", "HELP", "doctor"]

log = logging.getLogger("pyderp.doctor")

HELP: Final = """Check whether a relay works, or all relays of a DERP map: names, TCP, TLS, HTTP,
STUN, and packets that are really relayed.

Prints a line for each check: ok, warn, fail or skip, what was seen, and what to do next. Connects
directly, without proxies. The exit status is 0 if all is well, 1 if there are warnings, and 2 if
something fails (or, as with every command, if the command line or the map cannot be used).
"""

EPILOG: Final = """**Examples**

A relay: by its name, by its URL, by address and pin:

`pyderp doctor derp.example.com`

`pyderp doctor https://derp.example.com:8443/derp`

`pyderp doctor 203.0.113.7:8443 --pin HEX`

All relays of a map, more thoroughly, also whether those of a region are meshed:

`pyderp doctor derpmap.json --deep`

For cron, which sends a mail only if something is printed:

`pyderp doctor derpmap.json --quiet`

Every minute, where later runs print only what has changed:

`pyderp doctor derp.example.com --watch --every 60`
"""

_Target: TypeAlias = Annotated[
    str,
    typer.Argument(
        metavar="URL|MAP|HOST",
        help="A relay: https://HOST[:PORT][/derp] or HOST[:PORT]; or a DERP map: a file, its "
        "URL, or - for standard input.",
        show_default=False,
    ),
]
_Region: TypeAlias = Annotated[
    str | None, value("N|CODE", "Only this region of the map.", show_default=False)
]
_Deep: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--deep", help="More thoroughly: more connections and packets, and an idle minute."
    ),
]
_Watch: TypeAlias = Annotated[
    bool, typer.Option("--watch", help="Repeat until Ctrl-C, and print what changes.")
]
_Every: TypeAlias = Annotated[
    float | None, seconds("With --watch: from one run to the next.  [default: 60]", least=1)
]
_Quiet: TypeAlias = Annotated[
    bool, typer.Option("-q", "--quiet", help="Print warnings and failures only.")
]
_Timeout: TypeAlias = Annotated[
    float, seconds("Limit for one check; a few checks may take several times this.", least=0.1)
]
_Key: TypeAlias = Annotated[
    Path | None,
    value(
        "FILE",
        "File of a private key that the relay admits and that no node uses now; for a relay that "
        "does not admit every key.",
        show_default=False,
    ),
]
_MeshKey: TypeAlias = Annotated[
    Path | None, value("FILE", "File of the relay's mesh key; with it the relay admits any key.")
]
_CA: TypeAlias = Annotated[
    Path | None, value("FILE", "Certificates to trust beside the system's; PEM, or one in DER.")
]
_Pin: TypeAlias = Annotated[
    str | None, value("[sha256-raw:]HEX", "SHA-256 of the certificate; as CertName in a map.")
]
_CertName: TypeAlias = Annotated[
    str | None, value("NAME", "The name that the certificate is for; as CertName in a map.")
]
_Insecure: TypeAlias = Annotated[
    bool, typer.Option("--insecure", help="Accept any certificate, with a warning.")
]
_StunPort: TypeAlias = Annotated[
    int | None,
    whole_number("PORT", "UDP port of STUN; -1: none.  [default: 3478]", least=-1, most=65535),
]
_HttpPort: TypeAlias = Annotated[
    int, whole_number("PORT", "Port of plain HTTP, for /generate_204.", least=1, most=65535)
]
_MaxNodes: TypeAlias = Annotated[
    int, whole_number("N", "Check at most this many nodes of a map.", least=1)
]
_Json: TypeAlias = Annotated[
    bool, typer.Option("--json", help="One JSON object a line on standard output.")
]
_Verbose: TypeAlias = Annotated[
    bool, typer.Option("-v", "--verbose", help="Log to standard error what happens.")
]


def doctor(
    target: _Target,
    region: _Region = None,
    deep: _Deep = False,
    watch: _Watch = False,
    every: _Every = None,
    quiet: _Quiet = False,
    timeout: _Timeout = 5.0,
    key: _Key = None,
    mesh_key: _MeshKey = None,
    ca: _CA = None,
    pin: _Pin = None,
    cert_name: _CertName = None,
    insecure: _Insecure = False,
    stun_port: _StunPort = None,
    http_port: _HttpPort = 80,
    max_nodes: _MaxNodes = 200,
    json: _Json = False,
    verbose: _Verbose = False,
) -> None:
    """The command; `HELP` says what it does."""
    log_to_stderr("text" if verbose else "brief")
    logging.getLogger("pyderp").setLevel(logging.DEBUG if verbose else logging.WARNING)
    if every is not None and not watch:
        raise typer.BadParameter("--every needs --watch")
    output = Output(as_json=json)
    single = _single(pin, cert_name, insecure, http_port, stun_port)
    is_map = kind_of(target) is TargetKind.MAP
    if is_map:
        _refuse_node_flags(pin=pin, cert_name=cert_name, insecure=insecure, stun_port=stun_port)
    elif region is not None:
        raise typer.BadParameter("--region needs a DERP map, and not a relay")

    async def main() -> int:
        try:
            notes = Notes(output, silent=quiet)
            settings = _settings(timeout, deep, ca, key, mesh_key, notes)
            source = _Source(target, region, single, max_nodes, notes, MapWays(tls=settings.tls))
            await source.load()
        except (ConfigError, InvalidMap, ConnectError) as e:
            raise Refused(str(e)) from e
        session = _Session(source, settings, output, quiet=quiet, as_json=json)
        if watch:
            await session.watch(60.0 if every is None else every)
        return await session.once()

    run_command(main, output, from_map=is_map)


def _single(
    pin: str | None, cert_name: str | None, insecure: bool, http_port: int, stun_port: int | None
) -> Single:
    """Returns what the flags say about a relay that is not in a map."""
    wanted = wanted_certificate(pin, cert_name)
    if insecure and wanted:
        raise typer.BadParameter("--insecure accepts any: not with --pin or --cert-name")
    return Single(
        cert_name=wanted, insecure=insecure, http_port=http_port, stun_port=stun_port or 0
    )


def _settings(
    timeout: float,
    deep: bool,
    ca: Path | None,
    key: Path | None,
    mesh_key: Path | None,
    notes: Notes,
) -> Settings:
    return Settings(
        timeout=timeout,
        deep=deep,
        tls=trusted(ca),
        key=None if key is None else read_private_key(key),
        mesh_key=None if mesh_key is None else read_mesh_key(mesh_key),
        network=_network(notes),
    )


def _refuse_node_flags(**flags: object) -> None:
    given = [f"--{name.replace('_', '-')}" for name, each in flags.items() if each]
    if given:
        raise typer.BadParameter(f"{', '.join(given)}: not with a DERP map, whose nodes say that")


def _network(notes: Notes) -> NetworkSettings:
    """Returns the environment's settings without its proxies; a note says so if it has some."""
    found = NetworkSettings.from_environment()
    proxies = [name.upper() for name in ("https_proxy", "all_proxy") if getattr(found, name)]
    if proxies:
        notes.note(f"the checks connect directly, and not through {' and '.join(proxies)}")
    return dataclasses.replace(found, https_proxy="", http_proxy="", all_proxy="", proxy="")


@dataclass
class _Source:
    """Where the regions come from; a map is read again for each run."""

    target: str
    region: str | None
    single: Single
    max_nodes: int
    notes: Notes
    ways: MapWays
    regions: Sequence[Region] = ()
    left_out: int = 0
    _loaded: LoadedMap | None = None

    @property
    def derp_map(self) -> DERPMap | None:
        """The map, if the target is one."""
        return None if self._loaded is None else self._loaded.map

    async def load(self) -> None:
        """Read the target.

        Raises:
            ConfigError, InvalidMap, ConnectError: it cannot be used, or not be fetched.
        """
        if kind_of(self.target) is TargetKind.RELAY:
            self.regions = [relay_region(self.target, self.single)]
            return
        again = self._loaded is not None
        self._loaded = await load_map(self.target, ways=self.ways, previous=self._loaded)
        if not again:
            for warning in self._loaded.warnings:
                self.notes.note(f"{self._loaded.origin}: {warning}")
        found = regions_of(self._loaded.map, self.region, http_port=self.single.http_port)
        self.regions, self.left_out = _first_nodes(found, self.max_nodes)

    async def load_again(self) -> None:
        """Read the target again; if its map cannot be used any more, the last one stays in use."""
        if self.target == "-":
            return
        try:
            await self.load()
        except (ConfigError, InvalidMap, ConnectError) as e:
            self.notes.map_stays(e)
        else:
            self.notes.map_is_good()


def _first_nodes(regions: Sequence[Region], most: int) -> tuple[list[Region], int]:
    """Returns the regions with at most so many nodes together, and how many nodes are left out."""
    kept: list[Region] = []
    count = 0
    for region in regions:
        subjects = region.subjects[: max(0, most - count)]
        if subjects:
            kept.append(dataclasses.replace(region, subjects=subjects))
        count += len(region.subjects)
    return kept, max(0, count - most)


@dataclass
class _Session:
    """The runs of the checks, and what they print."""

    source: _Source
    settings: Settings
    output: Output
    quiet: bool
    as_json: bool
    before: dict[tuple[str, str], Result] = field(default_factory=dict)
    """Results of the last run of `watch`."""

    async def once(self) -> int:
        """Run once, and print all findings; returns the exit status."""
        report = self._report(self._shown)
        await report.run()
        return report.summarize()

    async def watch(self, every: float) -> None:
        """Run every so many seconds until cancelled; later runs print only what changed."""
        loop = asyncio.get_running_loop()
        for number in itertools.count():
            began = loop.time()
            log.debug("round %d begins", number + 1)
            report = self._report(self._changed if number else self._shown)
            await report.run()
            if not number:
                report.summarize()
            else:
                self._vanished({subject for subject, _ in report.found})
            self.before = {key: finding.result for key, finding in report.found.items()}
            await asyncio.sleep(began + every - loop.time())
            await self.source.load_again()

    def _report(self, show: Callable[[Finding, bool], None]) -> Report:
        return Report(
            Examination(self.source.regions, self.settings, self.source.derp_map),
            self.output,
            show,
            progress=not self.as_json,
            left_out=self.source.left_out,
            quiet=self.quiet and not self.as_json,
        )

    def _shown(self, finding: Finding, several: bool) -> None:
        if not self.quiet or finding.result in PROBLEMS:
            self.output.result("check", line_of(finding, several), **values_of(finding))

    def _changed(self, finding: Finding, several: bool) -> None:
        before = self.before.get(finding.key)
        if before is finding.result:
            return
        was = "new" if before is None else before.value
        # Checks that a failure makes the doctor skip, and that are ok after it, are left out for
        # people: the line about the failure implies them.
        if self.as_json or not {before, finding.result} <= {Result.SKIP, Result.OK}:
            self._print_change(was, line_of(finding, several), **values_of(finding))

    def _vanished(self, subjects: set[str]) -> None:
        """Print the nodes and regions of the last round that are missing in this one."""
        for subject in dict.fromkeys(subject for subject, _ in self.before):
            if subject not in subjects:
                text = escaped(f"gone  {subject}  the map does not have it any more")
                self._print_change("there", text, subject=subject, result="gone")

    def _print_change(self, was: str, text: str, **values: object) -> None:
        now = datetime.datetime.now().astimezone()
        line = f"{now:%Y-%m-%d %H:%M:%S}  {was} -> {text}"
        self.output.result("change", line, before=was, **values)
