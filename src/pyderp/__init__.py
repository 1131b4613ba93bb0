"""DERP, Tailscale's relay protocol, in Python: a relay, its wire protocol, its keys."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from pyderp.aio.relay import Relay
from pyderp.config import ManualTLS, RelayConfig
from pyderp.errors import (
    BadBox,
    BadMagic,
    BadUpgrade,
    ConfigError,
    DerpError,
    FrameTooLarge,
    InvalidKey,
    LocalProtocolError,
    ProtocolError,
    RemoteProtocolError,
    UnexpectedFrame,
)
from pyderp.keys import MeshKey, NodePrivate, NodePublic

__all__ = [
    # .errors
    "BadBox",
    "BadMagic",
    "BadUpgrade",
    "ConfigError",
    "DerpError",
    "FrameTooLarge",
    "InvalidKey",
    "LocalProtocolError",
    # .config
    "ManualTLS",
    # .keys
    "MeshKey",
    "NodePrivate",
    "NodePublic",
    "ProtocolError",
    # .aio.relay
    "Relay",
    # .config
    "RelayConfig",
    "RemoteProtocolError",
    "UnexpectedFrame",
]

try:
    __version__ = version("pyderp")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0.0.0"
