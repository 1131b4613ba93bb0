"""DERP, Tailscale's relay protocol, in Python: a client, a relay, the wire protocol, keys."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    __version__: str
    from pyderp.client.backoff import is_transient
    from pyderp.client.client import Client
    from pyderp.client.config import ClientConfig
    from pyderp.client.mesh import watch_mesh
    from pyderp.client.sealed import SealedPeer
    from pyderp.client.stats import ClientStats
    from pyderp.config import (
        ACMETLS,
        AdmissionConfig,
        BootstrapDNSConfig,
        DebugAccess,
        Decide,
        HealthRecipients,
        ManualTLS,
        RelayConfig,
        TLSSettings,
    )
    from pyderp.errors import (
        BadBox,
        BadMagic,
        BadUpgrade,
        CertificateError,
        ClientClosed,
        ConfigError,
        ConnectError,
        ConnectionClosed,
        DerpError,
        DialError,
        FrameTooLarge,
        InvalidKey,
        InvalidMap,
        LocalProtocolError,
        NameNotFound,
        NotConnected,
        PinMismatch,
        ProtocolError,
        ProxyError,
        RemoteProtocolError,
        SealError,
        TLSError,
        UnexpectedFrame,
        UpgradeRejected,
    )
    from pyderp.keys import MeshKey, NodePrivate, NodePublic
    from pyderp.maps.derpmap import DERPMap, HomeParams, MapProblems
    from pyderp.maps.region import DERPNode, DERPRegion
    from pyderp.net.dns import DNSCache
    from pyderp.net.settings import NetworkSettings
    from pyderp.net.tls import HealthTracker, TLSConfig, TLSState
    from pyderp.server.app.relay import Relay
    from pyderp.wire.frames import PeerGoneReason, PeerPresentFlags
    from pyderp.wire.messages import (
        Health,
        KeepAlive,
        Message,
        PeerGone,
        PeerPresent,
        Ping,
        Pong,
        ReceivedPacket,
        Restarting,
        ServerInfo,
    )

__all__ = [
    "ACMETLS",
    "AdmissionConfig",
    "BadBox",
    "BadMagic",
    "BadUpgrade",
    "BootstrapDNSConfig",
    "CertificateError",
    "Client",
    "ClientClosed",
    "ClientConfig",
    "ClientStats",
    "ConfigError",
    "ConnectError",
    "ConnectionClosed",
    "DERPMap",
    "DERPNode",
    "DERPRegion",
    "DNSCache",
    "DebugAccess",
    "Decide",
    "DerpError",
    "DialError",
    "FrameTooLarge",
    "Health",
    "HealthRecipients",
    "HealthTracker",
    "HomeParams",
    "InvalidKey",
    "InvalidMap",
    "KeepAlive",
    "LocalProtocolError",
    "ManualTLS",
    "MapProblems",
    "MeshKey",
    "Message",
    "NameNotFound",
    "NetworkSettings",
    "NodePrivate",
    "NodePublic",
    "NotConnected",
    "PeerGone",
    "PeerGoneReason",
    "PeerPresent",
    "PeerPresentFlags",
    "PinMismatch",
    "Ping",
    "Pong",
    "ProtocolError",
    "ProxyError",
    "ReceivedPacket",
    "Relay",
    "RelayConfig",
    "RemoteProtocolError",
    "Restarting",
    "SealError",
    "SealedPeer",
    "ServerInfo",
    "TLSConfig",
    "TLSError",
    "TLSSettings",
    "TLSState",
    "UnexpectedFrame",
    "UpgradeRejected",
    "is_transient",
    "watch_mesh",
]

_NAMES: Final = {
    "pyderp.server.app.relay": "Relay",
    "pyderp.client.backoff": "is_transient",
    "pyderp.client.client": "Client",
    "pyderp.client.config": "ClientConfig",
    "pyderp.client.mesh": "watch_mesh",
    "pyderp.client.sealed": "SealedPeer",
    "pyderp.client.stats": "ClientStats",
    "pyderp.config": (
        "ACMETLS AdmissionConfig BootstrapDNSConfig DebugAccess Decide HealthRecipients "
        "ManualTLS RelayConfig TLSSettings "
    ),
    "pyderp.maps.derpmap": "DERPMap HomeParams MapProblems",
    "pyderp.maps.region": "DERPNode DERPRegion",
    "pyderp.errors": (
        "BadBox BadMagic BadUpgrade CertificateError ClientClosed ConfigError "
        "ConnectError ConnectionClosed DerpError DialError FrameTooLarge InvalidKey "
        "InvalidMap LocalProtocolError NameNotFound NotConnected PinMismatch ProtocolError "
        "ProxyError RemoteProtocolError SealError TLSError UnexpectedFrame UpgradeRejected "
    ),
    "pyderp.keys": "MeshKey NodePrivate NodePublic",
    "pyderp.net.dns": "DNSCache",
    "pyderp.net.settings": "NetworkSettings",
    "pyderp.net.tls": "HealthTracker TLSConfig TLSState",
    "pyderp.wire.frames": "PeerGoneReason PeerPresentFlags",
    "pyderp.wire.messages": (
        "Health KeepAlive Message PeerGone PeerPresent Ping Pong ReceivedPacket "
        "Restarting ServerInfo "
    ),
}
"""Module → its names that are public here. They are imported when first asked for: clients do
without the relay, which needs Linux's sockets, and pytest loads our plugin in everybody's runs."""

_HOMES: Final = {name: home for home, names in _NAMES.items() for name in names.split()}


if not TYPE_CHECKING:  # where it would make every name look defined

    def __getattr__(name: str) -> object:
        if name == "__version__":
            from importlib.metadata import PackageNotFoundError, version

            try:
                found = version("pyderp")
            except PackageNotFoundError:  # a source tree that was never installed
                found = "0.0.0"
        elif name in _HOMES:
            found = getattr(import_module(_HOMES[name]), name)
        else:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = found
        return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})
