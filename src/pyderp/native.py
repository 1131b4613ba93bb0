"""Finds and loads the optional native part, `pyderp-fast`, of the one API version that fits.

Two places use it: the TLS of a connection (`server.conn.engines`) and the inner loop of the lane
(`relay.lane`). Each also exists in Python, which runs where the native part is missing.
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
"""The value of `pyderp_fast.API_VERSION` that this pyderp can use."""

Run: TypeAlias = tuple[bytes, bytes, int]
"""Neighbouring RecvPacket frames to one destination: its key, their bytes, their number."""

Walk: TypeAlias = Callable[[bytearray, int, int, bytes], tuple[int, list[Run], int, int, int]]
"""Turns the SendPacket frames at a position of a buffer into RecvPacket frames, in place.

It takes the buffer, the position, the end of the received bytes, and the sender's key. It stops at
the first frame that is another one, incomplete, or of a length that no SendPacket has. It returns
that position, the runs, the number of packets in them, the bytes of these packets, and the number
of disco packets.
"""
_NEEDED: Final = ("VERSION", "walk", "Tls", "TlsConfig", "TlsError")


class NativeUse(StrEnum):
    """Whether the native part is used."""

    AUTO = "auto"
    """Used if it is installed."""
    ON = "on"
    """Required: `load` raises if it is missing."""
    OFF = "off"


class RustlsConfig(Protocol):
    """Certificate and settings of the relay's side of TLS."""


class NativeModule(Protocol):
    """The members of `pyderp_fast` that pyderp uses."""

    API_VERSION: int
    VERSION: str
    TlsError: type[Exception]
    walk: Walk

    def TlsConfig(  # noqa: N802 (a class there)
        self, chain: bytes, key: bytes, *, alpn: str
    ) -> RustlsConfig:
        """Take a certificate; raise `TlsError` if it cannot be used."""

    def Tls(self, config: RustlsConfig, *, alpn: bool = True) -> Any:  # noqa: N802 (a class there)
        """Begin a session; return a `RecordLayer` of `pyderp.server.conn.records`."""


def load(use: NativeUse) -> NativeModule | None:
    """Returns the native part, or `None` if TLS and the lane are to run in Python.

    Raises:
        ConfigError: `use` is ON, and it is missing or of another version.
    """
    if use is NativeUse.OFF:
        return None
    module, problem = _find()
    if use is NativeUse.ON and problem:
        raise ConfigError(
            "{} is on, but {problem}; run make fast in pyderp's source, or give {}",
            settings=("native", "native=auto"),
            problem=problem,
        )
    if problem:
        log.debug("%s; TLS and the lane run in Python", problem)
    return module


def installed_version() -> str:
    """Returns the version of the native part that `NativeUse.AUTO` would use; empty if none."""
    module, _ = _find()
    return "" if module is None else module.VERSION


def _find() -> tuple[NativeModule | None, str]:
    """Returns the module and an empty text, or `None` and why it cannot be used."""
    try:
        module = cast("NativeModule", importlib.import_module("pyderp_fast"))
    except Exception as e:  # any: another module of that name may do anything when imported
        return None, f"pyderp-fast cannot be loaded: {str(e) or type(e).__name__}"
    found = getattr(module, "API_VERSION", None)
    if found != API_VERSION:
        return None, f"pyderp-fast has API version {found}, and this pyderp needs {API_VERSION}"
    missing = [name for name in _NEEDED if not hasattr(module, name)]
    if missing:
        return None, f"pyderp-fast has no {', '.join(missing)}"
    return module, ""
