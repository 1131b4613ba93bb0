"""Whether files and ports can be used, found out without making anything."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from pyderp.addresses import parse_ip
from pyderp.admission.allowlist import read_allow_list
from pyderp.admission.verdict import AdmissionCounters
from pyderp.aio.limits import read_rate_config
from pyderp.aio.listeners import stun_host
from pyderp.aio.meshhost import parse_mesh_host
from pyderp.aio.sockets import is_left_over, listen, parse_address, unix_path
from pyderp.aio.stun import stun_sockets
from pyderp.certs import make_certificates
from pyderp.certs.expiry import EXPIRES_SOON
from pyderp.certs.leaf import utc_now
from pyderp.certs.manual import certificate_paths
from pyderp.cli.relayflags.plan import Plan
from pyderp.cli.relayflags.settings import Problems
from pyderp.cli.relayflags.showmap import STUN_HIDDEN, stun_hidden
from pyderp.config import ACMETLS, HealthRecipients, ManualTLS, RelayConfig
from pyderp.errors import ConfigError
from pyderp.keyfile import load_or_create_key
from pyderp.keys import NodePrivate

__all__ = [
    "ask_tailscaled",
    "check_content",
    "check_files",
    "check_ports",
    "check_tailscaled",
    "read_key",
]

_HEALTH_TO_ALL: Final = (
    "--health=all: a single Health frame takes a tailscale-rs node off the relay until its process "
    "restarts; --health=known sends them to clients that are known to take them"
)
_SIDE: Final = "; this is the plain HTTP beside TLS, --http-port=-1 does without"


def check_files(plan: Plan, problems: Problems) -> list[str]:
    """Check all files that a relay needs; gives a line for each that is fine.

    Args:
        problems: takes what is wrong.
    """
    checks = (_key_file, _certificate, _rate_config, _allowed_keys, _mesh_hosts)
    lines = []
    for check in checks:
        with problems.collect():
            lines.append(check(plan))
    return [line for line in lines if line]


def read_key(path: Path) -> NodePrivate | None:
    """The key in a file; `None`: there is no such file, but one can be made.

    Raises:
        ConfigError: it cannot be read or made.
    """
    if _exists(path):
        return load_or_create_key(path)
    _check_can_make(path.parent, f"the key file {path}")
    return None


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError as e:
        raise ConfigError(f"cannot look for {path}: {e.strerror}") from e


def _check_can_make(folder: Path, what: str) -> None:
    there = folder.absolute()
    while not _exists(there):
        there = there.parent
    if not there.is_dir():
        raise ConfigError(f"cannot make {what}: {there} is no directory")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ConfigError(f"cannot make {what}: no permission to write in {there}")


def _key_file(plan: Plan) -> str:
    if "key_file" in plan.missing:
        return ""
    if plan.key_file is None:
        return "key: a new one, in memory"
    key = read_key(plan.key_file)
    return f"key file {plan.key_file}: " + (
        "made at the first start" if key is None else f"key {key.public}"
    )


def _certificate(plan: Plan) -> str:
    tls = plan.config.tls
    if "tls" in plan.missing:
        return ""
    if tls is None:
        return "no TLS: plain HTTP"
    if isinstance(tls, ACMETLS):
        _check_can_make(tls.certdir, f"certificates in {tls.certdir}")
        return f"certificate for {tls.hostname}: from {tls.directory}, kept in {tls.certdir}"
    files = certificate_paths(tls.certdir, tls.hostname)
    if parse_ip(tls.hostname) is not None and not all(map(_exists, files)):
        _check_can_make(tls.certdir, f"the self-signed certificate {files[0]}")
        return f"certificate {files[0]}: self-signed, made at the first start"
    (info,) = make_certificates(tls, NodePrivate.generate().public).certificates()
    return f"certificate {files[0]}: for {tls.hostname}, until {info.not_after:%Y-%m-%d}"


def check_tailscaled(config: RelayConfig) -> str:
    """Whether the tailscaled to ask is there and logged in; gives a line if so.

    Raises:
        ConfigError: it is not. A relay would start, and let nobody in.
    """
    return asyncio.run(ask_tailscaled(config))


async def ask_tailscaled(config: RelayConfig) -> str:
    """As `check_tailscaled`, on the running loop."""
    if not config.admission.tailscaled:
        return ""
    # Not at the top: it brings an HTTP library with it.
    from pyderp.admission.tailscaled import Tailscaled, default_socket

    path = config.admission.tailscaled_socket or default_socket()
    daemon = Tailscaled(path, AdmissionCounters())
    try:
        key = await daemon.own_key()
    finally:
        await daemon.aclose()
    if isinstance(key, str):
        raise ConfigError(
            f"tailscaled at {path} cannot be asked about clients: {key}; start it and log in, or "
            "name its socket with --socket"
        )
    return f"tailscaled at {path}"


def _rate_config(plan: Plan) -> str:
    path = plan.config.rate_config
    if path is None:
        return ""
    read_rate_config(path)
    return f"rate limits {path}"


def _allowed_keys(plan: Plan) -> str:
    path = plan.config.admission.keys_file
    return "" if path is None else f"allowed keys {path}: {len(read_allow_list(path))}"


def _mesh_hosts(plan: Plan) -> str:
    hosts = [parse_mesh_host(text).label for text in plan.config.mesh_with]
    return f"mesh with {', '.join(hosts)}" if hosts else ""


def check_content(plan: Plan, problems: Problems) -> list[str]:
    """Look at what a relay would start with, though not do well; gives a line for each doubt.

    Args:
        problems: takes what clients would refuse.
    """
    lines: list[str] = []
    # What cannot be read was told by `check_files`.
    with contextlib.suppress(ConfigError):
        lines += _unknown_limits(plan)
    with problems.collect():
        lines += _expiry(plan)
    lines += plan.config.idle_app_names()
    if plan.config.health is HealthRecipients.ALL:
        lines.append(_HEALTH_TO_ALL)
    if stun_hidden(plan):
        lines.append(STUN_HIDDEN)
    return lines


def _unknown_limits(plan: Plan) -> Iterator[str]:
    path = plan.config.rate_config
    if path is not None and (ignored := read_rate_config(path).ignored):
        yield f"rate limits {path}: unknown and passed over: {', '.join(ignored)}"


def _expiry(plan: Plan) -> Iterator[str]:
    tls = plan.config.tls
    if not isinstance(tls, ManualTLS):
        return
    file, *_ = files = certificate_paths(tls.certdir, tls.hostname)
    if not all(map(_exists, files)):
        return
    now = utc_now()
    for info in make_certificates(tls, NodePrivate.generate().public).certificates():
        told = f"certificate {file}: clients that check refuse it"
        if now >= info.not_after:
            raise ConfigError(f"{told}: it expired on {info.not_after:%Y-%m-%d %H:%M UTC}")
        if now < info.not_before:
            raise ConfigError(f"{told} before {info.not_before:%Y-%m-%d %H:%M UTC}")
        if info.remaining(now) < EXPIRES_SOON:
            yield f"{told} from {info.not_after:%Y-%m-%d %H:%M UTC} on; renew it"


def check_ports(plan: Plan, problems: Problems) -> list[str]:
    """Check that all ports can be listened on; gives a line for each that can.

    Args:
        problems: takes what is wrong.
    """
    if "address" in plan.missing:
        return []
    config = plan.config
    lines = []
    host = ""
    path = unix_path(config.address)
    with problems.collect():
        if path is not None:
            _check_unix(path)
        else:
            host, port = parse_address(config.address)
            _check_tcp(host, port, config, "")
        lines.append(f"listening on {config.address}")
    if config.tls is not None and config.tls.http_port is not None:
        with problems.collect():
            _check_tcp(host, config.tls.http_port, config, _SIDE)
            lines.append(f"plain HTTP on port {config.tls.http_port}")
    if config.stun_port is not None:
        with problems.collect():
            lines.append(_check_stun(config, stun_if_free=plan.stun_if_free))
    return lines


def _check_tcp(host: str, port: int, config: RelayConfig, advice: str) -> None:
    try:
        listen(host, port, reuse_port=config.reuse_port).close()
    except ConfigError as e:
        raise ConfigError(f"{e}{advice}") from e


def _check_unix(path: Path) -> None:
    if not _exists(path.parent):
        raise ConfigError(f"cannot listen on unix:{path}: {path.parent} does not exist")
    _check_can_make(path.parent, f"the socket {path}")
    is_left_over(path)


def _check_stun(config: RelayConfig, *, stun_if_free: bool) -> str:
    assert config.stun_port is not None
    try:
        for sock in stun_sockets(stun_host(config), config.stun_port, reuse_port=config.reuse_port):
            sock.close()
    except ConfigError as e:
        if not stun_if_free:
            raise
        return f"no STUN: {e}"
    return f"STUN on UDP port {config.stun_port}"
