"""Carries out a relay's settings: runs the relay, checks the settings, or shows its DERP map."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import sys
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

import pyderp
from pyderp.addresses import format_address
from pyderp.cli.interrupts import stop_with
from pyderp.cli.output import print_error, print_line
from pyderp.cli.process import (
    LogHandler,
    errors_seen,
    json_line,
    leave_soon,
    log_to_stderr,
    log_unraisable,
    loop_factory,
)
from pyderp.cli.relay.layers import Settings
from pyderp.cli.relay.plan import StartPlan, checked_plan
from pyderp.cli.relay.showmap import (
    NO_DERP,
    STUN_HIDDEN,
    map_command,
    node_of,
    public_node,
    show_map,
    stun_hidden,
)
from pyderp.config import ManualTLS, RelayConfig
from pyderp.errors import ConfigError, DerpError
from pyderp.keys import load_or_create_key
from pyderp.maps import mapjson
from pyderp.maps.region import node_json
from pyderp.server.app.listeners import Listeners, Supervisor, inherited_listeners, open_listeners
from pyderp.server.app.relay import Relay
from pyderp.server.conn.accept import log_accept_errors
from pyderp.server.conn.kernel import raise_file_limit
from pyderp.server.trouble import Part, Trouble
from pyderp.text import printable

__all__ = ["carry_out"]

log = logging.getLogger("pyderp.relay")

_LONGEST_TROUBLE: Final = 300
"""Characters of a degraded part in the status that systemd shows."""


def carry_out(load: Callable[[], Settings], log_format: str | None = None) -> None:
    """Do what the settings ask for: usually, run a relay until a signal.

    Args:
        load: reads the settings; called again on SIGHUP.
        log_format: how to log an error in reading them; once read, their own setting counts.

    Raises:
        ConfigError: the settings cannot be used. With a JSON log, the error is logged instead,
            and the process exits with 1.
    """
    settings = None
    try:
        settings = load()
        log_format = settings["log-format"]
        _carry_out(settings, load)
    except DerpError as e:
        text = str(e) if settings is None else settings.explain(e)
        if log_format == "json":
            print_error(json_line(logging.ERROR, log.name, text))
            sys.exit(1)
        if isinstance(e, ConfigError):
            raise ConfigError(text) from e
        raise


def _carry_out(settings: Settings, load: Callable[[], Settings]) -> None:
    if settings["version"]:
        print_line(f"pyderp {pyderp.__version__}")
        return
    handler = log_to_stderr(settings["log-format"])
    _set_level(settings["log-level"])
    if settings["check"]:
        # Not at the top: a relay that serves needs little of what this imports.
        from pyderp.cli.relay.check import check_all

        check_all(settings)
        return
    plan = checked_plan(settings)
    if settings["show-map"]:
        print_line(show_map(node_of(plan), settings["show-map"]))
        return
    _run(settings["loop"], lambda: _serve(plan, load, _Surroundings(handler)))


def _set_level(level: str) -> None:
    logging.getLogger().setLevel(level.upper())
    # The client logs each attempt to reach a relay of the mesh, and the mesh logs them as well.
    logging.getLogger("pyderp.client").setLevel(max(logging.WARNING, logging.getLogger().level))


# Running


@dataclass
class _Surroundings:
    """What can fail outside the relay while it serves."""

    log: LogHandler | None = None
    settings_error: str = ""
    """Why the current settings are not in use; empty: they are."""

    def troubles(self) -> Iterator[Trouble]:
        if self.settings_error:
            yield Trouble(Part.SETTINGS, f"the old settings stay in use: {self.settings_error}")
        if self.log is not None and self.log.trouble:
            yield Trouble(Part.LOG, self.log.trouble)


def _run(kind: str, main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    factory = loop_factory(kind)
    raise_file_limit()
    _quiet_collector()
    log_unraisable()
    with contextlib.ExitStack() as end, asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main())
        end.callback(leave_soon().cancel)


def _quiet_collector() -> None:
    # A relay makes few cycles and many objects that live as long as a connection. Looking
    # at all of them again and again costs a sixth of the CPU of a connect (bench row 8).
    gc.freeze()
    gc.enable()
    gc.set_threshold(50_000, 20, 50)


async def _serve(
    plan: StartPlan, load: Callable[[], Settings], around: _Surroundings | None = None
) -> None:
    around = around or _Surroundings()
    loop = asyncio.get_running_loop()
    log_accept_errors(loop)
    stop: asyncio.Future[float] = loop.create_future()
    relay: Relay | None = None
    supervisor = Supervisor()

    def on_stop(signum: int) -> None:
        stop.set_result(loop.time())
        supervisor.stopping()
        log.info(
            "%s: stopping; clients are being closed within %g s",
            signal.Signals(signum).name,
            (plan if relay is None else relay).config.drain,
        )

    def on_reload() -> None:
        # A relay that stops must not tell the manager that it is ready again.
        if relay is not None and not stop.done():
            supervisor.reloading()
            around.settings_error = _reload(relay, load)
            supervisor.ready(_status(relay))

    def on_loop(work: Callable[..., None], *args: int) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: it has stopped
            loop.call_soon_threadsafe(work, *args)

    stop_with(partial(on_loop, on_stop), _exit_at_once, ignored_too=True)
    with contextlib.suppress(AttributeError):
        # Not `loop.add_signal_handler`: a signal that comes while the loop is being closed would
        # be written to a pipe that is closed already.
        signal.signal(signal.SIGHUP, lambda *_: on_loop(on_reload))
    relay, listeners = await _start(plan, around)
    with _key_file_open(plan):
        _announce(relay, plan)
        probe = asyncio.create_task(_probe_tailscaled(plan.config), name="pyderp: ask tailscaled")
        if not stop.done():
            supervisor.ready(_status(relay))
            supervisor.watch(partial(_status, relay))
        signalled = await stop
        probe.cancel()
        await asyncio.wait([probe])
        if relay.config.reuse_port:
            await listeners.queues_empty()
        # Under full load a turn of the loop takes a tenth of a second, and some turns have passed
        # since the signal.
        await relay.aclose(drain=max(0.0, signalled + relay.config.drain - loop.time()))
        supervisor.close()
    log.info("stopped")


def _key_file_open(plan: StartPlan) -> contextlib.AbstractContextManager[object]:
    """Keep the key file open while the relay serves: by it `--check` finds this process."""
    if plan.key_file is None or not plan.key_file.is_file():
        return contextlib.nullcontext()
    return plan.key_file.open("rb")


def _exit_at_once(signum: int) -> int:
    with contextlib.suppress(RuntimeError):  # the signal came while a line was being written
        log.warning("%s again: exiting at once", signal.Signals(signum).name)
        logging.shutdown()
    return 0


async def _probe_tailscaled(config: RelayConfig) -> None:
    if not config.admission.tailscaled:
        return
    from pyderp.cli.relay.check import ask_tailscaled

    try:
        await ask_tailscaled(config)
    except ConfigError as e:
        log.warning("no client can be admitted: %s", e)


async def _start(plan: StartPlan, around: _Surroundings) -> tuple[Relay, Listeners]:
    config, listeners = _listen(plan)
    try:
        relay = Relay(_with_key(plan, config), listeners=listeners, more_troubles=around.troubles)
        await relay.start()
    except BaseException:
        listeners.close()
        raise
    return relay, listeners


def _listen(plan: StartPlan) -> tuple[RelayConfig, Listeners]:
    given = inherited_listeners()
    try:
        return plan.config, open_listeners(plan.config, given)
    except ConfigError as e:
        config = replace(plan.config, stun_port=None)
        if given is not None or not plan.stun_if_free or config == plan.config:
            raise
        listeners = open_listeners(config)
        listeners.stun_trouble = f"no STUN: {e}"
        log.warning("%s", listeners.stun_trouble)
        return config, listeners


def _with_key(plan: StartPlan, config: RelayConfig) -> RelayConfig:
    """Returns the config with the relay's key. A new key is made only after all other checks."""
    if plan.key_file is None:
        return config
    if not os.path.exists(plan.key_file):
        from pyderp.cli.relay.check import check_files, read_key

        read_key(plan.key_file)
        settings = Settings({})
        check_files(plan, settings)
        settings.check()
        log.info("a new key is made: %s", plan.key_file)
    return replace(config, private_key=load_or_create_key(plan.key_file))


def _reload(relay: Relay, load: Callable[[], Settings]) -> str:
    """Returns why the current settings are not in use; empty: they are."""
    try:
        settings = load()
        plan = checked_plan(settings)
        config = replace(plan.config, private_key=relay.config.private_key)
        if relay.config.stun_port is None and plan.stun_if_free:
            config = replace(config, stun_port=None)
        with errors_seen() as errors:
            relay.reload(config)
    except ConfigError as e:
        log.error("settings not reloaded, the old ones stay in use: %s", e)
        relay.reload()
        return str(e)
    _set_level(settings["log-level"])
    if errors:
        log.warning("settings reloaded, but not all: %s", "; ".join(errors))
    else:
        log.info("settings reloaded")
    return ""


def _status(relay: Relay) -> str:
    """Returns a line for the service manager, which begins with what does not work."""
    found = [printable(each.text, _LONGEST_TROUBLE) for each in relay.troubles()]
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    return f"DEGRADED: {found[0]}{more}; {_where(relay)}" if found else _where(relay)


def _where(relay: Relay) -> str:
    text = f"listening on {_endpoint(relay.address)}"
    # A Unix socket is for a proxy in front, and clients use the proxy's URL.
    return text if relay.address[0].startswith("unix:") else f"{text}, {relay.url}"


def _announce(relay: Relay, plan: StartPlan) -> None:
    config = relay.config
    log.info("relay key %s", relay.public_key)
    log.info("%s", _where(relay))
    if tls := config.tls:
        origin = "from files" if isinstance(tls, ManualTLS) else "by ACME"
        log.info("TLS for %s, with a certificate %s", tls.hostname, origin)
    else:
        log.info("no TLS, plain HTTP: %s", plan.transport.plain)
    if plan.transport.warning:
        log.warning("%s", plan.transport.warning)
    if relay.http_address is not None:
        log.info("redirecting plain HTTP on %s", _endpoint(relay.http_address))
    if relay.metrics_address is not None:
        log.info("/debug/ on %s only", _endpoint(relay.metrics_address))
    native = relay.native_version
    log.info("native part %s", f"pyderp-fast {native}" if native else "not used")
    log.info("mesh key %s", "set" if config.mesh_key else "not set: no client has mesh rights")
    stun = relay.stun_addresses
    stun_port = stun[0][1] if stun else None
    if node := public_node(plan, relay.map_node, stun_port):
        kind = "self-signed certificate; node" if node.cert_name else "node"
        log.info("%s for a DERP map: %s", kind, mapjson.dump(node_json(node)))
        if sys.stdout is not None and sys.stdout.isatty():
            print_line(show_map(node, "all"))
        else:
            command = map_command(plan, _endpoint(relay.address), stun_port)
            log.info("to print complete DERP maps, run: %s", command)
        if stun and stun_hidden(plan):
            log.warning("%s", STUN_HIDDEN)
    if not config.derp:
        log.warning("%s", NO_DERP)
    elif config.admission.open:
        but = ", but for those in the deny file" if config.admission.any else ""
        log.warning("this relay admits every client that can reach it%s", but)


def _endpoint(address: tuple[str, int]) -> str:
    return address[0] if address[0].startswith("unix:") else format_address(*address)
