"""`pyderp relay`: flags in, a running relay out. Names are `derper`'s, in GNU spelling."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import sys
from collections.abc import Callable, Coroutine
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from pyderp import defaults
from pyderp.aio.relay import Relay
from pyderp.aio.sockets import format_address, parse_address
from pyderp.config import ManualTLS, RelayConfig
from pyderp.errors import ConfigError
from pyderp.keyfile import load_or_create_key, read_mesh_key
from pyderp.keys import NodePrivate

log = logging.getLogger("pyderp.relay")

EPILOG = """**Examples**

A relay on this machine only, for trying things out:

`pyderp relay --dev`

With a certificate that you have, in /etc/derp/derp.example.com.crt and .key:

`pyderp relay --certmode=manual --certdir=/etc/derp --hostname=derp.example.com -c relay.key`

By IP address, with a self-signed certificate that is made and pinned; the log has the map node:

`pyderp relay -a :8443 --certmode=manual --certdir=./certs --hostname=203.0.113.7 -c ./relay.key`
"""

DEFAULT_KEY_FILE = Path("/var/lib/derper/derper.key")


class CertMode(StrEnum):
    """Where the certificate comes from."""

    MANUAL = "manual"
    LETSENCRYPT = "letsencrypt"


class LoopKind(StrEnum):
    """Which event loop runs the relay."""

    AUTO = "auto"
    UVLOOP = "uvloop"
    ASYNCIO = "asyncio"


class LogLevel(StrEnum):
    """How much is logged."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


def relay(
    dev: Annotated[
        bool,
        typer.Option(
            "--dev",
            help="Defaults for trying things out: plain HTTP on 127.0.0.1:3340, a new key in "
            "memory. Every other flag still counts.",
        ),
    ] = False,
    address: Annotated[
        str | None,
        typer.Option(
            "-a",
            "--address",
            metavar="ADDR",
            envvar="PYDERP_ADDRESS",
            help="Where to listen: IP:PORT, [IPv6]:PORT or :PORT for all addresses. "
            "TLS if the port is 443 or --certmode is given. Port 0: any free one.  "
            "[default: :443; with --dev 127.0.0.1:3340]",
            show_default=False,
        ),
    ] = None,
    key_file: Annotated[
        Path | None,
        typer.Option(
            "-c",
            "--config",
            metavar="FILE",
            envvar="PYDERP_KEY_FILE",
            help="File of the relay's key, in derper's form; made if missing.  "
            f"[default: {DEFAULT_KEY_FILE} as root; with --dev a new key in memory]",
            show_default=False,
        ),
    ] = None,
    hostname: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|IP",
            envvar="PYDERP_HOSTNAME",
            help="What the certificate is for. For an IP address a self-signed one is made.",
        ),
    ] = None,
    certmode: Annotated[
        CertMode | None,
        typer.Option(envvar="PYDERP_CERTMODE", help="Where the certificate comes from."),
    ] = None,
    certdir: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            envvar="PYDERP_CERTDIR",
            help="Directory of HOSTNAME.crt and HOSTNAME.key.",
        ),
    ] = None,
    http_port: Annotated[
        int,
        typer.Option(
            min=-1,
            max=65535,
            envvar="PYDERP_HTTP_PORT",
            help="Beside TLS: plain HTTP for captive-portal checks and redirects. -1: none.",
        ),
    ] = 80,
    mesh_psk_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            envvar="PYDERP_MESH_PSK_FILE",
            help="The mesh key, 64 hex digits. Who has it may watch, forward and close clients.",
        ),
    ] = None,
    tcp_keepalive_time: Annotated[
        float,
        typer.Option(
            min=0, metavar="SECONDS", help="Silence before TCP keepalive probes. 0: none."
        ),
    ] = float(defaults.TCP_KEEPALIVE_TIME),
    tcp_user_timeout: Annotated[
        float,
        typer.Option(
            min=0, metavar="SECONDS", help="TCP_USER_TIMEOUT of connections. 0: the system's."
        ),
    ] = defaults.TCP_USER_TIMEOUT,
    tcp_notsent_lowat: Annotated[
        int,
        typer.Option(
            min=0,
            metavar="BYTES",
            help="Bytes that the kernel may hold unsent for a client before packets wait here, "
            "where old ones are dropped. 0: the system's.",
        ),
    ] = defaults.TCP_NOTSENT_LOWAT,
    tcp_write_timeout: Annotated[
        float,
        typer.Option(
            min=0,
            metavar="SECONDS",
            help="Close a client that takes no byte for so long. 0: never.",
        ),
    ] = defaults.WRITE_TIMEOUT,
    drain: Annotated[
        float,
        typer.Option(
            min=0,
            metavar="SECONDS",
            envvar="PYDERP_DRAIN",
            help="When stopping, spread the closing of connections over so long. 0: at once.",
        ),
    ] = defaults.DRAIN,
    loop: Annotated[
        LoopKind,
        typer.Option(envvar="PYDERP_LOOP", help="The event loop; auto: uvloop if installed."),
    ] = LoopKind.AUTO,
    log_level: Annotated[
        LogLevel, typer.Option(envvar="PYDERP_LOG_LEVEL", help="How much is logged, to stderr.")
    ] = LogLevel.INFO,
) -> None:
    """Run a DERP relay."""
    logging.basicConfig(
        level=log_level.upper(), format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr
    )
    address = address or (f"127.0.0.1:{defaults.DEV_PORT}" if dev else f":{defaults.HTTPS_PORT}")
    config = RelayConfig(
        address=address,
        tls=_tls(address, certmode, certdir, hostname, http_port),
        mesh_key=None if mesh_psk_file is None else read_mesh_key(mesh_psk_file),
        # Last: it may make a file, and none should be made for flags that do not fit together.
        private_key=_private_key(key_file, dev),
        write_timeout=tcp_write_timeout,
        tcp_keepalive_time=tcp_keepalive_time,
        tcp_user_timeout=tcp_user_timeout,
        tcp_notsent_lowat=tcp_notsent_lowat,
        drain=drain,
    )
    _run(loop, lambda: _serve(config))


def _private_key(key_file: Path | None, dev: bool) -> NodePrivate | None:
    if key_file is None:
        if dev:
            return None
        if os.geteuid() != 0:
            raise ConfigError(
                "-c FILE is missing: where to keep the relay's key. Give a path (the file is made "
                "if missing), or --dev for a key in memory"
            )
        key_file = DEFAULT_KEY_FILE
        log.info("no -c given: the key is kept in %s", key_file)
    return load_or_create_key(key_file)


def _tls(
    address: str,
    certmode: CertMode | None,
    certdir: Path | None,
    hostname: str | None,
    http_port: int,
) -> ManualTLS | None:
    _, port = parse_address(address)
    if certmode is None and port != defaults.HTTPS_PORT:
        if certdir is not None or hostname is not None:
            log.warning("no TLS on port %d without --certmode: --certdir, --hostname unused", port)
        return None
    if certmode is None:
        raise ConfigError(
            "port 443 needs a certificate: give --certmode=manual with --certdir and --hostname, "
            "another port with -a for plain HTTP, or --dev to try things out"
        )
    if certmode is not CertMode.MANUAL:
        raise ConfigError(
            "certificates by ACME (--certmode=letsencrypt) are not built yet; get one with another "
            "ACME client and use --certmode=manual --certdir=DIR, or give an IP address as "
            "--hostname for a self-signed one"
        )
    if certdir is None:
        raise ConfigError("--certmode=manual needs --certdir=DIR, the directory of the certificate")
    if hostname is None:
        raise ConfigError(
            "--certmode=manual needs --hostname, the name that the certificate is for"
        )
    return ManualTLS(
        certdir=certdir, hostname=hostname, http_port=None if http_port < 0 else http_port
    )


def _run(kind: LoopKind, main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    factory = None
    if kind is not LoopKind.ASYNCIO:
        try:
            import uvloop

            factory = uvloop.new_event_loop
        except ImportError:
            if kind is LoopKind.UVLOOP:
                raise ConfigError(
                    "uvloop is not installed; install it, or use --loop=asyncio"
                ) from None
    _quiet_collector()
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main())


def _quiet_collector() -> None:
    # A relay makes few cycles and many objects that live as long as a connection. Looking
    # at all of them again and again costs a sixth of the CPU of a connect (bench row 8).
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


async def _serve(config: RelayConfig) -> None:
    relay = Relay(config)
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()

    def on_stop(signum: int) -> None:
        if stop.is_set():
            log.warning("%s again: exiting at once", signal.Signals(signum).name)
            logging.shutdown()
            os._exit(0)
        log.info(
            "%s: stopping; clients are told and closed within %g s",
            signal.Signals(signum).name,
            config.drain,
        )
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, on_stop, number)
    with contextlib.suppress(AttributeError):
        loop.add_signal_handler(signal.SIGHUP, relay.reload)
    await relay.start()
    _announce(relay)
    await stop.wait()
    await relay.aclose(drain=config.drain)
    log.info("stopped")


def _announce(relay: Relay) -> None:
    config = relay.config
    log.info("relay key %s", relay.public_key)
    log.info("listening on %s, %s", format_address(*relay.address), relay.url)
    if relay.http_address is not None:
        log.info("redirecting plain HTTP on %s", format_address(*relay.http_address))
    if relay.map_node is not None:
        log.info("self-signed certificate; node for a DERP map: %s", relay.map_node)
    log.info("mesh key %s", "set" if config.mesh_key else "not set: no client has mesh rights")
    log.warning("this relay admits every client that can reach it")
