"""The optional native part, `pyderp-fast`: looked for at the start, and used in one version only.

Two places use it: the TLS of a connection (`server.conn.engines`) and the inner loop of the lane
(`relay.lane`). Each has its twin in Python, which is used where the native part is missing.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable
from enum import StrEnum
from typing import Any, Final, Protocol, TypeAlias, cast

from pyderp.errors import ConfigError

__all__ = ["API_VERSION", "NativeModule", "NativeUse", "Run", "Walk", "installed_version", "load"]

log = logging.getLogger("pyderp.native")

API_VERSION: Final = 1
"""What `pyderp_fast.API_VERSION` must be."""

Run: TypeAlias = tuple[bytes, bytes, int]
"""Neighbouring RecvPacket frames to one destination: its key, their bytes, how many they are."""

Walk: TypeAlias = Callable[[bytearray, int, int, bytes], tuple[int, list[Run], int, int, int]]
"""Makes RecvPacket frames of the SendPacket frames at a position of a buffer, in place.

It takes the buffer, the position, the end of what there is, and the sender's key. It stops at the
first frame that is something else, incomplete, or of a length that no SendPacket has. It returns
that position, the runs, and how many packets they have, how many bytes these, and how many of
them are disco.
"""
_NEEDED: Final = ("VERSION", "walk", "Tls", "TlsConfig", "TlsError")


class NativeUse(StrEnum):
    """Whether the native part is used."""

    AUTO = "auto"
    """If it is installed."""
    ON = "on"
    """It must be there."""
    OFF = "off"


class RustlsConfig(Protocol):
    """Certificate and settings of the server's side of TLS."""


class NativeModule(Protocol):
    """What is used of `pyderp_fast`."""

    API_VERSION: int
    VERSION: str
    TlsError: type[Exception]
    walk: Walk

    def TlsConfig(  # noqa: N802 (a class there)
        self, chain: bytes, key: bytes, *, alpn: str
    ) -> RustlsConfig:
        """Take a certificate; raises `TlsError` for one that it refuses."""

    def Tls(self, config: RustlsConfig, *, alpn: bool = True) -> Any:  # noqa: N802 (a class there)
        """Begin a session; returns what is a `RecordLayer` of `pyderp.server.conn.records`."""


def load(use: NativeUse) -> NativeModule | None:
    """The native part; `None`: everything is done in Python.

    Raises:
        ConfigError: it must be there, and is missing or of another version.
    """
    if use is NativeUse.OFF:
        return None
    module, problem = _find()
    if use is NativeUse.ON and problem:
        raise ConfigError("{} is on, but {problem}", settings=("native",), problem=problem)
    if problem:
        log.debug("%s; TLS and the lane run in Python", problem)
    return module


def installed_version() -> str:
    """The version of the native part that `NativeUse.AUTO` would use; empty: none."""
    module, _ = _find()
    return "" if module is None else module.VERSION


def _find() -> tuple[NativeModule | None, str]:
    """The module, or why there is none."""
    try:
        module = cast("NativeModule", importlib.import_module("pyderp_fast"))
    except Exception as e:  # whatever another module of that name does
        return None, f"pyderp-fast cannot be loaded: {str(e) or type(e).__name__}"
    found = getattr(module, "API_VERSION", None)
    if found != API_VERSION:
        return None, f"pyderp-fast has API version {found}, and this pyderp needs {API_VERSION}"
    missing = [name for name in _NEEDED if not hasattr(module, name)]
    if missing:
        return None, f"pyderp-fast has no {', '.join(missing)}"
    return module, ""
