"""DERP, Tailscale's relay protocol, in Python: a client, a relay, the wire protocol, keys."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pyderp.client.client import Client as Client
    from pyderp.client.config import ClientConfig as ClientConfig
    from pyderp.client.config import ClientStats as ClientStats
    from pyderp.client.connect import dial_region_tls as dial_region_tls
    from pyderp.client.mesh import watch_mesh as watch_mesh
    from pyderp.client.reconnect import is_transient as is_transient
    from pyderp.client.sealed import SealedPeer as SealedPeer
    from pyderp.config import ACMETLS as ACMETLS
    from pyderp.config import AdmissionConfig as AdmissionConfig
    from pyderp.config import BootstrapDNSConfig as BootstrapDNSConfig
    from pyderp.config import DebugAccess as DebugAccess
    from pyderp.config import Decide as Decide
    from pyderp.config import HealthRecipients as HealthRecipients
    from pyderp.config import ManualTLS as ManualTLS
    from pyderp.config import RelayConfig as RelayConfig
    from pyderp.config import TLSSettings as TLSSettings
    from pyderp.errors import BadBox as BadBox
    from pyderp.errors import BadMagic as BadMagic
    from pyderp.errors import BadUpgrade as BadUpgrade
    from pyderp.errors import CertificateError as CertificateError
    from pyderp.errors import ClientClosed as ClientClosed
    from pyderp.errors import ConfigError as ConfigError
    from pyderp.errors import ConnectError as ConnectError
    from pyderp.errors import ConnectionClosed as ConnectionClosed
    from pyderp.errors import DerpError as DerpError
    from pyderp.errors import DialError as DialError
    from pyderp.errors import FailureReason as FailureReason
    from pyderp.errors import FrameTooLarge as FrameTooLarge
    from pyderp.errors import InvalidKey as InvalidKey
    from pyderp.errors import InvalidMap as InvalidMap
    from pyderp.errors import LocalProtocolError as LocalProtocolError
    from pyderp.errors import LoginRefused as LoginRefused
    from pyderp.errors import MissingExtra as MissingExtra
    from pyderp.errors import NameNotFound as NameNotFound
    from pyderp.errors import NotConnected as NotConnected
    from pyderp.errors import PinMismatch as PinMismatch
    from pyderp.errors import ProtocolError as ProtocolError
    from pyderp.errors import ProxyError as ProxyError
    from pyderp.errors import RemoteProtocolError as RemoteProtocolError
    from pyderp.errors import SealError as SealError
    from pyderp.errors import TLSError as TLSError
    from pyderp.errors import UnexpectedFrame as UnexpectedFrame
    from pyderp.errors import UpgradeRejected as UpgradeRejected
    from pyderp.keys import MeshKey as MeshKey
    from pyderp.keys import NodePrivate as NodePrivate
    from pyderp.keys import NodePublic as NodePublic
    from pyderp.maps.derpmap import DERPMap as DERPMap
    from pyderp.maps.derpmap import HomeParams as HomeParams
    from pyderp.maps.derpmap import MapProblems as MapProblems
    from pyderp.maps.region import DERPNode as DERPNode
    from pyderp.maps.region import DERPRegion as DERPRegion
    from pyderp.net.dns import DNSCache as DNSCache
    from pyderp.net.settings import NetworkSettings as NetworkSettings
    from pyderp.net.tls import HealthTracker as HealthTracker
    from pyderp.net.tls import TLSConfig as TLSConfig
    from pyderp.net.tls import TLSState as TLSState
    from pyderp.server.app.relay import Relay as Relay
    from pyderp.wire.frames import PeerGoneReason as PeerGoneReason
    from pyderp.wire.frames import PeerPresentFlags as PeerPresentFlags
    from pyderp.wire.messages import Health as Health
    from pyderp.wire.messages import KeepAlive as KeepAlive
    from pyderp.wire.messages import Message as Message
    from pyderp.wire.messages import PeerGone as PeerGone
    from pyderp.wire.messages import PeerPresent as PeerPresent
    from pyderp.wire.messages import Ping as Ping
    from pyderp.wire.messages import Pong as Pong
    from pyderp.wire.messages import ReceivedPacket as ReceivedPacket
    from pyderp.wire.messages import Restarting as Restarting
    from pyderp.wire.messages import ServerInfo as ServerInfo

__version__ = "0.1.0"
"""The version of the package, which `pyproject.toml` reads from here. At run time the package's
metadata would say the same, but takes 5 ms to read."""

_NAMES: Final = {
    "pyderp.server.app.relay": "Relay",
    "pyderp.client.client": "Client",
    "pyderp.client.config": "ClientConfig ClientStats",
    "pyderp.client.connect": "dial_region_tls",
    "pyderp.client.mesh": "watch_mesh",
    "pyderp.client.reconnect": "is_transient",
    "pyderp.client.sealed": "SealedPeer",
    "pyderp.config": (
        "ACMETLS AdmissionConfig BootstrapDNSConfig DebugAccess Decide HealthRecipients "
        "ManualTLS RelayConfig TLSSettings "
    ),
    "pyderp.maps.derpmap": "DERPMap HomeParams MapProblems",
    "pyderp.maps.region": "DERPNode DERPRegion",
    "pyderp.errors": (
        "BadBox BadMagic BadUpgrade CertificateError ClientClosed ConfigError "
        "ConnectError ConnectionClosed DerpError DialError FailureReason FrameTooLarge InvalidKey "
        "InvalidMap LocalProtocolError LoginRefused MissingExtra NameNotFound NotConnected "
        "PinMismatch ProtocolError ProxyError RemoteProtocolError SealError TLSError "
        "UnexpectedFrame UpgradeRejected "
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
"""Module → its names that are public here: those imported above for type checkers. At run time
a module is imported when one of its names is first used. So clients work where the relay cannot,
which needs Linux's sockets, and pytest, which loads the plugin wherever pyderp is installed,
starts fast."""

_HOMES: Final = {name: home for home, names in _NAMES.items() for name in names.split()}


if not TYPE_CHECKING:  # type checkers know the imports above, and no other names
    __all__ = sorted(_HOMES)

    def __getattr__(name: str) -> object:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        found = getattr(import_module(_HOMES[name]), name)
        globals()[name] = found
        return found


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
