"""From the values of all flags to a `RelayConfig`, and what to do beside."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pyderp import defaults
from pyderp.addresses import is_loopback
from pyderp.cli.relayflags.certificate import tls_settings
from pyderp.cli.relayflags.settings import Problems, Settings
from pyderp.cli.relayflags.singles import check_singles
from pyderp.cli.relayflags.startflags import CERTIFICATE_FLAGS
from pyderp.cli.relayflags.state import default_key_file, derper_key_file
from pyderp.cli.relayflags.table import FLAGS
from pyderp.config import (
    AdmissionConfig,
    BootstrapDNSConfig,
    DebugAccess,
    RelayConfig,
)
from pyderp.errors import ConfigError, InvalidKey
from pyderp.keyfile import read_mesh_key, read_regular, warn_if_open
from pyderp.keys import MeshKey

__all__ = ["Plan", "make_plan"]

log = logging.getLogger("pyderp.relay")

_MESH_KEY_VARIABLE: Final = "TAILSCALE_DERPER_MESH_KEY"
_MAX_SECRET: Final = 4096
_STUN: Final = ("stun", "stun-host", "stun-port")
_USES: Final = {
    "tls": {"address", "hostname", *(flag.name for flag in CERTIFICATE_FLAGS)},
    "mesh_key": {"mesh-psk-file", "mesh-with"},
    "debug": {"debug-key-file"},
    "key_file": {"key-file"},
}


@dataclass(frozen=True)
class Plan:
    """What a command line asks for.

    Args:
        config: the relay's settings, without its key.
        key_file: file of that; `None`: a new key in memory.
        stun_if_free: do without STUN if its port is taken, as nobody asked for it and nobody
            but this machine could use it.
        public_name: what clients connect to, also if something in front ends TLS; may be empty.
        public_port: the port that they use; `None`: the relay's own.
        missing: parts that are not as asked for, since something is wrong there.
    """

    config: RelayConfig
    key_file: Path | None
    stun_if_free: bool
    public_name: str
    public_port: int | None = None
    missing: frozenset[str] = frozenset()


def make_plan(
    settings: Settings, problems: Problems, environment: Mapping[str, str] = os.environ
) -> Plan | None:
    """What the settings ask for, without the parts that are wrong; `None`: nothing makes sense.

    Args:
        problems: takes all that is wrong.
    """
    check_singles(settings, problems)
    address = _address(settings, problems)
    values = _simple_values(settings, problems)
    parts: dict[str, Callable[[], Any]] = {
        "tls": lambda: tls_settings(settings, address, environment),
        "mesh_key": lambda: _mesh_key(settings, environment),
        "admission": lambda: AdmissionConfig(**_below(values, "admission")),
        "debug": lambda: DebugAccess(**_below(values, "debug"), key=_debug_key(settings)),
        "bootstrap_dns": lambda: BootstrapDNSConfig(**_below(values, "bootstrap_dns")),
        "key_file": lambda: _key_file(settings, environment),
    }
    problems.found += [ConfigError(text) for text in _refused(settings, problems)]
    made: dict[str, Any] = {}
    for name, make in parts.items():
        with problems.collect(*_uses(name)), settings.located():
            made[name] = make()
    missing = frozenset(parts.keys() - made.keys())
    if "address" in problems.failed:
        missing |= {"address"}
    _warn(settings)
    key_file = made.pop("key_file", None)
    if "mesh_key" in missing:
        values["mesh_with"] = ()
    if settings["proxy-protocol"] and not settings["trusted-proxy"]:
        values["proxy_protocol"] = False
    simple = {name: value for name, value in values.items() if "." not in name}
    with problems.collect(), settings.located():
        config = RelayConfig(
            address=address,
            stun_port=_stun_port(settings, address),
            dev=settings["dev"],
            **simple,
            **made,
        )
        return Plan(
            config,
            key_file,
            stun_if_free=not settings.given(*_STUN) and (settings["dev"] or is_loopback(address)),
            public_name=settings["hostname"] or "",
            public_port=settings["public-port"],
            missing=missing,
        )
    return None


def _uses(part: str) -> set[str]:
    """The settings that a part is made of."""
    return _USES.get(part, set()) | {
        flag.name for flag in FLAGS if flag.setting.startswith(f"{part}.")
    }


def _warn(settings: Settings) -> None:
    if settings.in_file("acme-eab-key"):
        warn_if_open(settings["config-file"])


def _address(settings: Settings, problems: Problems) -> str:
    if settings["dev"] and settings.derper:
        return f":{defaults.DEV_PORT}"  # whatever was given, as derper
    given: str = "" if "address" in problems.failed else settings["address"] or ""
    dev = f"127.0.0.1:{defaults.DEV_PORT}"
    return given or (dev if settings["dev"] else f":{defaults.HTTPS_PORT}")


def _simple_values(settings: Settings, problems: Problems) -> dict[str, Any]:
    return {
        flag.setting: flag.default if flag.name in problems.failed else settings[flag.name]
        for flag in FLAGS
        if flag.setting
    }


def _below(values: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """Those of one part."""
    return {
        name.partition(".")[2]: value
        for name, value in values.items()
        if name.startswith(f"{prefix}.")
    }


def _refused(settings: Settings, problems: Problems) -> Iterator[str]:
    if settings["secrets-url"]:
        yield (
            f"{settings.place('secrets-url')}: fetching the mesh key from setec is not built; put "
            f"it into a file and give {settings.flag('mesh-psk-file')}"
        )
    if settings["ace"]:
        yield f"{settings.place('ace')}: the ACE proxy is not built; leave it out"
    trusted = settings["trusted-proxy"] or "trusted-proxy" in problems.failed
    if settings["proxy-protocol"] and not trusted:
        yield (
            f"{settings.place('proxy-protocol')} needs {settings.flag('trusted-proxy')}: the "
            "networks of the proxies whose word is taken"
        )


def _mesh_key(settings: Settings, environment: Mapping[str, str]) -> MeshKey | None:
    file: Path | None = settings["mesh-psk-file"]
    text = environment.get(_MESH_KEY_VARIABLE, "")
    if settings["dev"] and text and (settings.derper or file is None):
        try:
            return MeshKey.parse(text)
        except InvalidKey as e:
            raise ConfigError(f"{_MESH_KEY_VARIABLE} in the environment: {e}") from None
    if file is not None and not (settings["dev"] and settings.derper):
        return read_mesh_key(file)
    if settings["mesh-with"]:
        raise ConfigError(
            f"{settings.flag('mesh-with')} needs {settings.flag('mesh-psk-file')}=FILE, the key "
            f"that all relays of the mesh share, or for development {_MESH_KEY_VARIABLE} in the "
            "environment"
        )
    return None


def _key_file(settings: Settings, environment: Mapping[str, str]) -> Path | None:
    given: Path | None = settings["key-file"]
    if settings["dev"]:
        return None if settings.derper else given
    if given is not None:
        return given
    if settings.derper:
        return derper_key_file()
    return default_key_file(environment)


def _debug_key(settings: Settings) -> str:
    file: Path | None = settings["debug-key-file"]
    if file is None:
        return ""
    try:
        key = read_regular(file, _MAX_SECRET).decode().strip()
    except (OSError, UnicodeDecodeError) as e:
        reason = e.strerror if isinstance(e, OSError) else "it is not text"
        raise ConfigError(f"cannot read the debug key file {file}: {reason}") from None
    if not key:
        raise ConfigError(f"the debug key file {file} is empty; put a secret into it")
    warn_if_open(file)
    return key


def _stun_port(settings: Settings, address: str) -> int | None:
    on_socket = address.startswith("unix:") and not settings.given(*_STUN)
    port: int = settings["stun-port"]
    return None if on_socket or not settings["stun"] else port
