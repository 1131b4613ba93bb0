"""Makes a `RelayConfig`, and what else a start needs, from the values of all flags."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

from pyderp import defaults
from pyderp.addresses import is_loopback, parse_address, parse_ip, unix_path
from pyderp.certs.context import authority_context
from pyderp.cli.relay.flags import DERPER_HOSTNAME, FLAGS, PARTS
from pyderp.cli.relay.layers import Settings
from pyderp.cli.relay.transport import TRANSPORT_FLAGS, Transport, transport_of
from pyderp.config import ACMETLS, ManualTLS, RelayConfig, TLSSettings
from pyderp.config.rules import RULES, about, check_setting
from pyderp.config.tls import GOOGLE, LETSENCRYPT, LETSENCRYPT_STAGING
from pyderp.errors import ConfigError, InvalidKey, setting_name
from pyderp.keys import MeshKey, read_mesh_key
from pyderp.secretfiles import read_secret, warn_if_open

__all__ = ["StartPlan", "checked_plan", "make_plan"]

log = logging.getLogger("pyderp.relay")

_T = TypeVar("_T")

DERPER_KEY_FILE: Final = Path("/var/lib/derper/derper.key")
"""Where `derper` keeps its key if root runs it."""
_MESH_KEY_VARIABLE: Final = "TAILSCALE_DERPER_MESH_KEY"
_MAX_DEBUG_KEY: Final = 4096
_STUN: Final = ("stun", "stun-host", "stun-port")
_MADE_HERE: Final = {"address", "private_key", "mesh_key", "debug.key", "stun_port"}
"""Settings that are not the value of a flag as it stands."""


@dataclass(frozen=True)
class StartPlan:
    """What a command line asks for.

    Args:
        config: the relay's settings, without its key.
        key_file: file of the key; `None`: a new key in memory.
        stun_if_free: run without STUN if its port is taken, as no flag asks for STUN and only this
            machine could use it.
        public_name: what clients connect to, also if a proxy in front ends TLS; may be empty.
        public_port: the port that clients use; `None`: the relay's own.
        transport: whether the relay speaks TLS; if not, why.
        missing: parts that `config` lacks, since their settings are wrong.
    """

    config: RelayConfig
    key_file: Path | None
    stun_if_free: bool
    public_name: str
    public_port: int | None = None
    missing: frozenset[str] = frozenset()
    transport: Transport = field(default_factory=Transport)


def checked_plan(settings: Settings) -> StartPlan:
    """Returns the plan that the settings ask for.

    Raises:
        ConfigError: something is wrong; its text is the first problem and the number of others.
    """
    plan = make_plan(settings)
    settings.check()
    assert plan is not None
    return plan


def make_plan(settings: Settings) -> StartPlan | None:
    """Returns the plan that the settings ask for, without the parts that are wrong.

    What is wrong is added to the settings' problems.

    Returns:
        `None`: no plan can be made.
    """
    _check_each(settings)
    missing = {"address"} & settings.failed
    address = _address(settings)
    values = _values(settings)
    tls = values.pop("tls")
    made: dict[str, Any] = {}
    transport = Transport()
    with settings.collect():
        transport = transport_of(settings.only(TRANSPORT_FLAGS), address)
    for part, flags, make in (
        ("tls", tuple(missing), lambda: None if transport.plain else _tls(settings, tls, address)),
        ("mesh_key", ("mesh-psk-file",), lambda: _mesh_key(settings)),
        ("debug_key", ("debug-key-file",), lambda: _debug_key(settings)),
        ("key_file", ("key-file",), lambda: _key_file(settings)),
    ):
        made[part] = None
        missing.add(part)
        with settings.collect(*flags):
            made[part] = make()
            missing.discard(part)
    if settings.in_file("acme-eab-key"):
        warn_if_open(settings["config-file"])
    values["debug"]["key"] = made["debug_key"] or ""
    top = values.pop("")
    top |= {part: _build(PARTS[part], each, settings) for part, each in values.items()}
    top |= {
        "address": address,
        "tls": made["tls"],
        "mesh_key": made["mesh_key"],
        "stun_port": _stun_port(settings, address),
    }
    config = _build(RelayConfig, top, settings)
    if config is None:
        return None
    return StartPlan(
        config,
        made["key_file"],
        stun_if_free=not settings.given(*_STUN) and (settings["dev"] or is_loopback(address)),
        public_name=settings["hostname"] or "",
        public_port=settings["public-port"],
        missing=frozenset(missing),
        transport=transport,
    )


def _build(kind: Callable[..., _T], values: dict[str, Any], settings: Settings) -> _T | None:
    """Make a part of the configuration; values that are wrong are noted and left out."""
    while True:
        try:
            return kind(**values)
        except ConfigError as e:
            settings.note(e)
            wrong = values.keys() & {setting_name(each) for each in e.settings}
            if not wrong:
                return None
            values = {name: value for name, value in values.items() if name not in wrong}


def _values(settings: Settings) -> dict[str, dict[str, Any]]:
    """Returns the values that were given, by the part of `RelayConfig` that has the setting."""
    values: dict[str, dict[str, Any]] = {part: {} for part in ("", *PARTS)}
    for flag in FLAGS:
        if flag.setting and flag.name in settings and flag.setting not in _MADE_HERE:
            part, _, name = flag.setting.rpartition(".")
            # For TLS wrong values stay in: then no TLS settings are made at all.
            if part == "tls" or flag.name not in settings.failed:
                values[part][name] = settings[flag.name]
    return values


def _check_each(settings: Settings) -> None:
    """Check each value by itself. Later problems of a value that is wrong are not noted."""
    for flag in FLAGS:
        value = settings[flag.name]
        if value and (flag.setting in RULES or flag.setting in _READERS):
            with settings.collect(flag.name), about(flag.setting):
                check_setting(flag.setting, value)
                if read := _READERS.get(flag.setting):
                    read(value)
    if settings["secrets-url"]:
        advice = f"put it into a file and give {settings.flag('mesh-psk-file')}"
        text = f"fetching the mesh key from setec is not built; {advice}"
        settings.note(ConfigError(text, settings=("secrets-url",)))
    if settings["ace"]:
        settings.note(ConfigError("the ACE proxy is not built; leave it out", settings=("ace",)))


def _check_mesh_hosts(hosts: Sequence[str]) -> None:
    if hosts:
        # Not at the top: it imports the client, which a relay without a mesh does not need.
        from pyderp.server.mesh.hosts import parse_mesh_host

        for host in hosts:
            parse_mesh_host(host)


_READERS: Final[Mapping[str, Callable[[Any], object]]] = {
    "address": lambda address: unix_path(address) or parse_address(address),
    "metrics_address": parse_address,
    "mesh_with": _check_mesh_hosts,
}
"""Functions that read a setting later, for the rules that only they check."""


def _address(settings: Settings) -> str:
    if settings["dev"] and settings.derper:
        return f":{defaults.DEV_PORT}"  # as derper, which then ignores -a
    if settings["address"] and "address" not in settings.failed:
        return str(settings["address"])
    return f"127.0.0.1:{defaults.DEV_PORT}" if settings["dev"] else f":{defaults.HTTPS_PORT}"


def _stun_port(settings: Settings, address: str) -> int | None:
    on_socket = address.startswith("unix:") and not settings.given(*_STUN)
    port: int = settings["stun-port"]
    return None if on_socket or not settings["stun"] else port


# Certificate


def _tls(settings: Settings, values: dict[str, Any], address: str) -> TLSSettings:
    """Returns what the flags say about the certificate.

    Args:
        values: those for `ManualTLS` and `ACMETLS`.

    Raises:
        ConfigError: flags are missing, or do not fit together.
    """
    if not (hostname := settings["hostname"]):
        raise _no_hostname(settings, address)
    is_ip = parse_ip(hostname) is not None
    by_hostname = "manual" if is_ip and not settings["acme-ip-certs"] else "letsencrypt"
    mode = settings["certmode"] or by_hostname
    has_files = settings.given("cert-file", "cert-key-file")
    if has_files and not settings.given("certmode"):
        mode = "manual"
    for name in ("cert-file", "cert-key-file", "any-server-name"):
        if mode != "manual" and settings[name]:
            raise ConfigError("{} needs {}", settings=(name, "certmode=manual"))
    certdir: Path = settings["certdir"] or _certificates(settings)
    http_port = None if settings["http-port"] < 0 else settings["http-port"]
    if mode == "manual":
        return _manual_tls(settings, hostname, certdir, http_port)
    if hostname == DERPER_HOSTNAME and not settings.given("hostname"):
        raise ConfigError(
            "{} is missing: derper's default, {name}, is a name that only Tailscale gets a "
            "certificate for",
            settings=("tls.hostname",),
            name=DERPER_HOSTNAME,
        )
    values |= {"certdir": certdir, "hostname": hostname, "http_port": http_port}
    tls = ACMETLS(**values | {"directory": _directory(settings, mode)})
    if tls.ca_file is not None:
        authority_context(tls.ca_file)
    return tls


def _manual_tls(
    settings: Settings, hostname: str, certdir: Path, http_port: int | None
) -> ManualTLS:
    if settings["acme-ip-certs"]:
        raise ConfigError(
            "{} needs {}; it is manual", settings=("tls.ip_certs", "certmode=letsencrypt")
        )
    named = settings.given("certdir", "cert-file", "cert-key-file")
    if not named and settings["certdir"] is None and parse_ip(hostname) is None:
        raise ConfigError(
            "{} needs {}=DIR, the directory of the certificate",
            settings=("certmode=manual", "tls.certdir"),
        )
    return ManualTLS(
        certdir=certdir,
        hostname=hostname,
        http_port=http_port,
        cert_file=settings["cert-file"],
        cert_key_file=settings["cert-key-file"],
        any_server_name=bool(settings["any-server-name"]),
    )


def _certificates(settings: Settings) -> Path:
    """Returns the directory of certificates if no flag names it."""
    if file := settings["cert-file"] or settings["cert-key-file"]:
        return Path(file).parent
    return _state_directory("the certificates", "--certdir DIR") / "certs"


def _no_hostname(settings: Settings, address: str) -> ConfigError:
    if settings.given("certmode"):
        return ConfigError(
            "{} needs {}, the name that the certificate is for",
            settings=(f"certmode={settings['certmode']}", "tls.hostname"),
        )
    for name in ("cert-file", "cert-key-file"):
        if settings.given(name):
            return ConfigError(
                "{} needs {}, a name or IP address that the certificate is for",
                settings=(name, "tls.hostname"),
            )
    return ConfigError(
        "TLS on {address} needs a certificate: give --hostname=NAME for one from Let's Encrypt, "
        "--hostname=IP for a self-signed one, --certmode=manual with --certdir for your own, "
        "--no-tls for plain HTTP behind a proxy, or --dev to try things out",
        settings=("address", "tls.hostname"),
        address=address,
    )


def _directory(settings: Settings, mode: str) -> str:
    directory: str = settings["acme-directory"] or ""
    if settings["acme-staging"]:
        text = "{} is Let's Encrypt's; it does not go with "
        if directory:
            raise ConfigError(text + "{}", settings=("acme-staging", "acme-directory"))
        if mode == "gcp":
            raise ConfigError(text + "certmode gcp", settings=("acme-staging", "certmode"))
        return LETSENCRYPT_STAGING
    return directory or (GOOGLE if mode == "gcp" else LETSENCRYPT)


# Files


def _mesh_key(settings: Settings) -> MeshKey | None:
    file: Path | None = settings["mesh-psk-file"]
    text = os.environ.get(_MESH_KEY_VARIABLE, "")
    if settings["dev"] and text and (settings.derper or file is None):
        try:
            return MeshKey.parse(text)
        except InvalidKey as e:
            raise ConfigError(f"{_MESH_KEY_VARIABLE} in the environment: {e}") from None
    if file is not None and not (settings["dev"] and settings.derper):
        return read_mesh_key(file)
    return None


def _debug_key(settings: Settings) -> str:
    file: Path | None = settings["debug-key-file"]
    if file is None:
        return ""
    key = read_secret(file, "debug key file", _MAX_DEBUG_KEY).strip()
    if not key:
        raise ConfigError(f"the debug key file {file} is empty; put a secret into it")
    return key


def _key_file(settings: Settings) -> Path | None:
    given: Path | None = settings["key-file"]
    if settings["dev"]:
        return None if settings.derper else given
    if given is not None:
        return given
    as_root = os.geteuid() == 0
    if settings.derper:
        if not as_root:
            raise ConfigError(
                "-c FILE is missing: where to keep the relay's key; it is made if missing"
            )
        return DERPER_KEY_FILE
    # If root has run derper here, the relay takes over its key.
    if as_root and not os.environ.get("STATE_DIRECTORY") and DERPER_KEY_FILE.exists():
        return DERPER_KEY_FILE
    return _state_directory("the relay's key", "-c FILE") / "relay.key"


def _state_directory(what: str, flag: str) -> Path:
    """Returns the directory for files that are kept over restarts.

    Args:
        what: what is to be kept there, for the error.
        flag: the flag that names another place, for the error.

    Raises:
        ConfigError: this user has no such directory.
    """
    # systemd sets it for a unit with StateDirectory=; several are separated by colons.
    if given := os.environ.get("STATE_DIRECTORY", "").partition(":")[0]:
        return Path(given)
    if os.geteuid() == 0:
        return Path("/var/lib/pyderp")
    home = os.environ.get("XDG_STATE_HOME", "")
    if not home and (user := os.environ.get("HOME", "")):
        home = f"{user}/.local/state"
    if not home.startswith("/"):
        raise ConfigError(
            f"there is no place to keep {what}: {flag} is missing, and neither STATE_DIRECTORY, "
            "XDG_STATE_HOME nor HOME is set"
        )
    return Path(home, "pyderp")
