"""The flags of the commands that connect to a relay, and the client made from them."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import inspect
import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final
from urllib.parse import urlsplit, urlunsplit

import typer

from pyderp import defaults
from pyderp.cli.input import read_private_key, read_region
from pyderp.cli.output import Output
from pyderp.cli.parameters import seconds, value
from pyderp.cli.process import Refused, log_to_stderr, run_command
from pyderp.client.client import Client
from pyderp.client.config import ClientConfig, parse_url, pin_name
from pyderp.errors import ClientClosed, ConfigError, ConnectionClosed, InvalidKey, InvalidMap
from pyderp.keys import NodePublic, read_mesh_key
from pyderp.maps.region import DERPNode, DERPRegion
from pyderp.net.settings import NetworkSettings, parse_proxy
from pyderp.net.tls import TLSConfig
from pyderp.net.tlscontext import client_context
from pyderp.wire.messages import Message, ServerInfo

__all__ = ["ConnectOptions", "ReportingClient", "admitted", "seconds", "split_targets"]
__all__ += ["trusted", "value", "wanted_certificate", "with_connect_options"]

log = logging.getLogger("pyderp.cli")

_REGION: Final = 900
"""Id of the region that is made for a URL; ids from 900 on are for private use."""


class ReportingClient(Client):
    """A client that reports each connection that ends, after all its messages were received."""

    on_end: Callable[[ConnectionClosed], None] | None = None
    """Called with the reason."""
    _admitted = 0
    """The generation whose ServerInfo came last."""
    _admission: asyncio.Event | None = None

    async def recv_with_generation(self) -> tuple[Message, int]:
        """Receive as `Client` does; reports ends, and notes when the relay admits this client."""
        try:
            message, generation = await super().recv_with_generation()
        except ClientClosed:
            raise
        except ConnectionClosed as e:
            if self.on_end is not None:
                self.on_end(e)
            raise
        if isinstance(message, ServerInfo):
            self._admitted = generation
            if self._admission is not None:
                self._admission.set()
        return message, generation

    async def admission(self) -> None:
        """Wait until the relay has answered the last login; another task must receive meanwhile."""
        self._admission = self._admission or asyncio.Event()
        while self._admitted != self.generation:
            self._admission.clear()
            await self._admission.wait()


async def admitted(client: ReportingClient, receiving: asyncio.Task[Any]) -> None:
    """Wait as `ReportingClient.admission`; raises the error with which `receiving` ends."""
    waiting = asyncio.create_task(client.admission(), name="pyderp: waiting for admission")
    try:
        await asyncio.wait({waiting, receiving}, return_when=asyncio.FIRST_COMPLETED)
        if receiving.done():
            receiving.result()
    finally:
        waiting.cancel()


@dataclass(frozen=True, kw_only=True)
class ConnectOptions:
    """Which relay to connect to, with which key, and how."""

    key: Annotated[
        Path | None,
        value(
            "FILE",
            "File of our private key, as `pyderp key new` makes it.  [default: a new key]",
            envvar="PYDERP_KEY",
            show_default=False,
        ),
    ] = None
    derp_map: Annotated[
        Path | None,
        value(
            "FILE|-",
            "Connect to a region of this DERP map (JSON; -: standard input), without a URL.",
        ),
    ] = None
    region: Annotated[
        str | None, value("N|CODE", "Which region of the map; not needed if it has only one.")
    ] = None
    proxy: Annotated[
        str | None,
        value(
            "URL",
            "Proxy for the connection: http://, https://, socks5:// or socks5h://, "
            "[user:password@]host:port.  [default: ALL_PROXY, if it is SOCKS5; before it "
            "HTTPS_PROXY with --derp-map, --pin, --cert-name, --insecure, --ipv6 or --websocket, "
            "or HTTP_PROXY with --websocket and http://; NO_PROXY exempts]",
            show_default=False,
        ),
    ] = None
    websocket: Annotated[
        bool | None,
        typer.Option(
            "--websocket/--no-websocket",
            help="DERP inside a websocket, which more proxies let pass; or never.  [default: if "
            "the upgrade to DERP is answered with 400, 404, 426 or 501]",
            show_default=False,
        ),
    ] = None
    ca: Annotated[
        Path | None,
        value("FILE", "Certificates to trust beside the system's; PEM, or one in DER."),
    ] = None
    pin: Annotated[
        str | None,
        value(
            "[sha256-raw:]HEX",
            "SHA-256 of the relay's certificate. It is then the only one accepted, from any "
            "issuer; a DNS name in the URL must be in it.",
        ),
    ] = None
    cert_name: Annotated[
        str | None, value("NAME", "The name that the relay's certificate is for, if not the URL's.")
    ] = None
    insecure: Annotated[
        bool,
        typer.Option(
            "--insecure",
            help="Accept any certificate, so that any machine in between can pose as the relay. "
            "For tests.",
        ),
    ] = False
    mesh_key: Annotated[
        Path | None, value("FILE", "File of the relay's mesh key, 64 hex digits.")
    ] = None
    ipv6: Annotated[bool, typer.Option("--ipv6", help="IPv6 gets a head start over IPv4.")] = False
    connect_timeout: Annotated[
        float, seconds("Limit for connecting as a whole: names, proxy, TCP, TLS, login.")
    ] = defaults.CONNECT_TIMEOUT
    json: Annotated[
        bool, typer.Option("--json", help="One JSON object a line on standard output.")
    ] = False
    verbose: Annotated[
        bool, typer.Option("-v", "--verbose", help="Log to standard error what happens.")
    ] = False

    def run(
        self, url: str | None, work: Callable[[ReportingClient, Output], Coroutine[Any, Any, int]]
    ) -> None:
        """Run a command with the client and the output that were asked for; see `run_command`.

        Args:
            url: `None`: the map says where to connect.
            work: the command. Nothing is connected before it.
        """
        log_to_stderr("text" if self.verbose else "brief")
        logging.getLogger("pyderp").setLevel(logging.DEBUG if self.verbose else logging.WARNING)
        output = Output(as_json=self.json)

        async def main() -> int:
            try:
                client = self._client(url)
            except (ConfigError, InvalidMap) as e:
                raise Refused(str(e).removeprefix("derphttp.NewClient: ")) from e
            async with client:
                return await work(client, output)

        run_command(main, output, from_map=self.derp_map is not None, pinned=self.pin is not None)

    def _client(self, url: str | None) -> ReportingClient:
        target = self._map_region(url) if self.derp_map is not None else self._url(url)
        private_key = None if self.key is None else read_private_key(self.key)
        config = ClientConfig(
            mesh_key=None if self.mesh_key is None else read_mesh_key(self.mesh_key),
            app_name="pyderp",
            tls=trusted(self.ca),
            network=self._network(url),
            websocket=self.websocket,
            prefer_ipv6=(lambda: True) if self.ipv6 else None,
            connect_timeout=self.connect_timeout,
        )
        if isinstance(target, str):
            client = ReportingClient.for_url(target, private_key=private_key, config=config)
        else:
            client = ReportingClient.for_region(target, private_key=private_key, config=config)
        assert isinstance(client, ReportingClient)
        return client

    def _network(self, url: str | None) -> NetworkSettings:
        settings = NetworkSettings.from_environment()
        if self.proxy is not None:
            try:
                parse_proxy(self.proxy)  # so that an invalid one is an error before all else
            except ConfigError as e:
                raise ConfigError(f"--{e}") from None  # "proxy: …"
            settings = dataclasses.replace(settings, proxy=self.proxy)
        if url is not None and self._node_flags:
            # The environment may turn TLS off for regions; for this one, the URL decides.
            settings = dataclasses.replace(settings, use_derp_http=not parse_url(url).tls)
        return settings

    @property
    def _node_flags(self) -> list[str]:
        """The flags in use that say of the relay what a node of a map says."""
        flags = {
            "--pin": self.pin,
            "--cert-name": self.cert_name,
            "--insecure": self.insecure,
            "--ipv6": self.ipv6,
        }
        return [flag for flag, value in flags.items() if value]

    def _url(self, url: str | None) -> str | DERPRegion:
        if url is None:
            raise typer.BadParameter("give the relay's URL, or --derp-map FILE with --region")
        if self.region is not None:
            raise typer.BadParameter("--region needs --derp-map, the map that has the region")
        url = _with_path(url)
        return self._url_region(url) if self._node_flags else url

    def _url_region(self, url: str) -> DERPRegion:
        """Returns a region with only the URL's relay: the client has these settings per node."""
        target = parse_url(url)
        flags = ", ".join(self._node_flags)
        if target.request_target != "/derp" or target.userinfo is not None:
            raise typer.BadParameter(f"{flags}: only with a URL like https://HOST[:PORT]/derp")
        if not target.tls and self._node_flags != ["--ipv6"]:
            raise typer.BadParameter(f"{flags}: only with https://, as http:// has no certificate")
        if self.insecure:
            if self.pin is not None or self.cert_name is not None:
                raise typer.BadParameter("--insecure accepts any: not with --pin or --cert-name")
            log.warning("--insecure: any machine in between can pose as the relay")
        node = DERPNode(
            name=target.host,
            region_id=_REGION,
            host_name=target.host,
            derp_port=target.port,
            cert_name=wanted_certificate(self.pin, self.cert_name),
            insecure_for_tests=self.insecure,
        )
        return DERPRegion(region_id=_REGION, region_code=target.text, nodes=(node,))

    def _map_region(self, url: str | None) -> DERPRegion:
        assert self.derp_map is not None
        flags = [flag for flag in self._node_flags if flag != "--ipv6"]
        if url is not None:
            raise typer.BadParameter("give a URL or --derp-map, not both")
        if flags:
            raise typer.BadParameter(
                f"{', '.join(flags)}: not with --derp-map, whose nodes have CertName for that"
            )
        return read_region(self.derp_map, self.region)


def trusted(ca: Path | None) -> TLSConfig:
    """Returns the TLS settings with the certificates of `--ca`.

    Raises:
        ConfigError: the file cannot be used.
    """
    if ca is None:
        return TLSConfig()
    config = TLSConfig(extra_roots=(ca,))
    try:
        # The context is cached, and used again to connect.
        client_context(config, chain=True, hostname=True, keylog_file="")
    except ConfigError as e:
        raise ConfigError(f"--ca: {str(e).removeprefix('extra_roots: ')}") from e
    return config


def wanted_certificate(pin: str | None, cert_name: str | None) -> str:
    """Returns `--pin` or `--cert-name` as a map's `CertName`; empty: neither is given.

    Raises:
        typer.BadParameter: both are given, or the pin is invalid.
    """
    if pin is None:
        return cert_name or ""
    if cert_name is not None:
        raise typer.BadParameter("--pin and --cert-name: give one of them")
    try:
        return pin_name(pin)
    except ConfigError as e:
        raise typer.BadParameter(f"--{e}") from None  # "pin: …"


def with_connect_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the flags of `ConnectOptions` to a command, which gets them as `options`."""
    own = inspect.signature(command, eval_str=True).parameters.values()
    shared = list(inspect.signature(ConnectOptions, eval_str=True).parameters.values())

    @functools.wraps(command)
    def run(**values: Any) -> None:
        options = ConnectOptions(**{p.name: values.pop(p.name) for p in shared})
        command(options=options, **values)

    rest = [p.replace(kind=p.KEYWORD_ONLY) for p in own if p.name != "options"]
    vars(run)["__signature__"] = inspect.Signature(rest + shared)  # typer reads both
    run.__annotations__ = {p.name: p.annotation for p in rest + shared}
    return run


def split_targets(targets: list[str]) -> tuple[str | None, NodePublic | None]:
    """Tell apart the arguments `[URL] [PEER]`: a peer begins with `nodekey:`.

    Raises:
        typer.BadParameter: there are too many arguments, or the peer is invalid.
    """
    urls = [t for t in targets if not t.startswith("nodekey:")]
    peers = [t for t in targets if t.startswith("nodekey:")]
    if len(urls) > 1:
        # A URL is not quoted: it may have a password.
        what = repr(urls[1]) if urls[1].isalnum() else "the second URL"
        raise typer.BadParameter(f"{what} is not a peer: want nodekey: and 64 hex digits")
    if len(peers) > 1:
        raise typer.BadParameter(f"one peer too many: {peers[1]}")
    try:
        peer = NodePublic.parse(peers[0]) if peers else None
    except InvalidKey as e:
        raise typer.BadParameter(f"PEER: {e}") from e
    return (urls[0] if urls else None), peer


def _with_path(url: str) -> str:
    """Returns the URL; one without a path gets that of relays, `/derp`."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return url  # the client reports the error
    if parts.netloc and parts.path in ("", "/") and not parts.query:
        return urlunsplit(parts._replace(path="/derp"))
    return url
