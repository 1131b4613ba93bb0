"""Settings that are wrong by themselves, told with the place where each was given."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from pyderp.addresses import parse_address, parse_ip, unix_path
from pyderp.cli.relayflags.settings import Problems, Settings
from pyderp.config import ACMETLS, AdmissionConfig, RelayConfig
from pyderp.errors import ConfigError
from pyderp.relay.bootstrap import BootstrapName
from pyderp.server.mesh.hosts import parse_mesh_host

__all__ = ["check_singles"]

_LOOKS_LIKE_IP: Final = re.compile(r"[0-9.]+")


def check_singles(settings: Settings, problems: Problems) -> None:
    """Look at each setting that can be judged alone.

    Args:
        problems: takes what is wrong; nothing else is told of such a setting.
    """
    for name, check in _CHECKS.items():
        value = settings[name]
        if not value or name in problems.failed:
            continue
        try:
            check(value)
        except ConfigError as e:
            problems.failed.add(name)
            problems.found.append(ConfigError(f"{settings.place(name)}: {e}"))


def _address(value: str) -> None:
    if unix_path(value) is None:
        parse_address(value)


def _hostname(value: str) -> None:
    if _LOOKS_LIKE_IP.fullmatch(value) and parse_ip(value) is None:
        raise ConfigError(f"{value!r} is no IP address, and no name ends in a number")


def _url(value: str) -> None:
    AdmissionConfig(url=value)


def _home(value: str) -> None:
    RelayConfig(home=value)


def _mesh(value: tuple[str, ...]) -> None:
    for each in value:
        parse_mesh_host(each)


def _bootstrap(value: tuple[str, ...]) -> None:
    for each in value:
        BootstrapName.parse(each)


def _directory(value: str) -> None:
    ACMETLS(certdir=Path(), hostname="", directory=value)


def _eab_key(value: str) -> None:
    # Not at the top: the other commands begin without it.
    from pyderp.certs.check import eab_key

    eab_key(value)


_CHECKS: Final[Mapping[str, Callable[[Any], None]]] = {
    "address": _address,
    "hostname": _hostname,
    "verify-client-url": _url,
    "mesh-with": _mesh,
    "home": _home,
    "bootstrap-dns-names": _bootstrap,
    "unpublished-bootstrap-dns-names": _bootstrap,
    "acme-directory": _directory,
    "acme-eab-key": _eab_key,
}
