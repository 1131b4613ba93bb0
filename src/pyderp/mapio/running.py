"""Makes the node of a map that describes a running relay, from the relay's answers."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from pyderp.addresses import IPAddress, bracketed
from pyderp.defaults import HTTPS_PORT, STUN_PORT
from pyderp.errors import (
    CertificateError,
    ConfigError,
    ConnectError,
    DerpError,
    InvalidMap,
    RemoteProtocolError,
    without_frames,
)
from pyderp.mapio.port80 import HTTP_PORT, ask_port_80
from pyderp.mapio.stunprobe import answers_stun
from pyderp.maps.derpmap import own_node
from pyderp.maps.region import PIN_PREFIX, DERPNode
from pyderp.net.dial import dial_host
from pyderp.net.dns import Resolver, lookup
from pyderp.net.fetch import shown_url
from pyderp.net.settings import NetworkSettings
from pyderp.net.tls import TlsLink, start_tls
from pyderp.net.tlscontext import TLSConfig
from pyderp.wire.http import DERP_PATH
from pyderp.wire.metacert import META_NAME_PREFIX, common_name_untrusted
from pyderp.wire.upgrade import UpgradeReply, upgrade_request

__all__ = ["describe_relay"]

_STUN_TIMEOUT: Final = 2.0
"""Seconds for an answer to STUN: seven requests."""
_HTTP_TIMEOUT: Final = 3.0
"""Seconds for an answer on port 80."""
_PINNED: Final = (
    "the certificate is from no trusted authority, so the map has the pin of the one that was "
    "presented just now: compare it with the pin in the relay's log"
)


@dataclass(frozen=True)
class _Relay:
    host: str
    port: int
    tls: TLSConfig
    settings: NetworkSettings
    resolver: Resolver | None
    shown: str


async def describe_relay(
    url: str,
    *,
    tls: TLSConfig | None = None,
    settings: NetworkSettings | None = None,
    resolver: Resolver | None = None,
    stun_port: int = STUN_PORT,
    http_port: int = HTTP_PORT,
) -> tuple[DERPNode, list[str]]:
    """Connect to a relay as a client does, without logging in, and describe it as a node.

    The node has the host name and port of the URL; a pin in `CertName`, if the certificate is from
    no trusted authority; `STUNPort`, if that port answers; and `CanPort80`, if HTTP there passes
    the check for captive portals. A relay does not tell its STUN port or its other names and
    addresses, so these cannot be found out. TCP, TLS and HTTP have no time limit here: the caller
    sets one.

    Args:
        url: `https://HOST[:PORT]`, with or without `/derp`.
        stun_port: UDP port to ask.
        http_port: TCP port to ask; clients use 80 only.

    Returns:
        the node, as `own_node` returns it, and warnings for the user of the map, a sentence each.

    Raises:
        ConfigError: the URL is not of this form.
        InvalidMap: no map can have this relay, as it has no TLS.
        ConnectError: there is no relay, or its certificate can be neither verified nor pinned.
    """
    relay = _parse(url, tls, settings, resolver)
    # First of all: STUN and HTTP are of no use if no relay answers at this URL.
    cert_name, addresses = await _connect_once(relay)
    stun, port_80 = await asyncio.gather(
        _stun(addresses, stun_port), _has_port_80(relay, http_port)
    )
    node = own_node(
        relay.host,
        cert_name=cert_name,
        derp_port=relay.port,
        stun_port=stun_port if any(stun.values()) else None,
    )
    warnings = [_PINNED] if cert_name else []
    warnings += _about_stun(stun, stun_port)
    return dataclasses.replace(node, can_port_80=port_80), warnings


async def _connect_once(relay: _Relay) -> tuple[str, list[IPAddress]]:
    """Return the relay's `CertName` and addresses.

    Raises:
        ConnectError: there is no relay, or its certificate can be neither verified nor pinned.
    """
    try:
        return await _cert_name(relay), await lookup(relay.host, resolver=relay.resolver)
    except (ConnectError, ConfigError):
        raise
    except (DerpError, OSError) as e:
        raise ConnectError(f"{relay.shown}: {e}", attempts=[without_frames(e)]) from e


def _parse(
    url: str, tls: TLSConfig | None, settings: NetworkSettings | None, resolver: Resolver | None
) -> _Relay:
    shown = shown_url(url)
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as e:
        raise ConfigError(f"{shown}: {e}") from None
    if parts.scheme == "http":
        raise InvalidMap(
            f"{shown}: clients connect to the relays of a DERP map with TLS, and http:// has "
            "none: give the https:// URL that clients use"
        )
    if parts.scheme != "https" or not host or port == 0:
        raise ConfigError(f"{shown}: want https://HOST[:PORT]")
    settings = NetworkSettings.from_environment() if settings is None else settings
    return _Relay(host, port or HTTPS_PORT, tls or TLSConfig(), settings, resolver, shown)


async def _connect(relay: _Relay, *, insecure: bool = False) -> TlsLink:
    link = await dial_host(
        relay.host, relay.port, settings=relay.settings, resolver=relay.resolver, scheme="wss"
    )
    return await start_tls(
        link,
        server_name=relay.host,
        insecure=insecure,
        config=relay.tls,
        settings=relay.settings,
    )


async def _cert_name(relay: _Relay) -> str:
    """Return the pin, or an empty text if the certificate is trusted; also ask for DERP.

    After a refused certificate it connects again without verification, to read the certificate.
    """
    try:
        link = await _connect(relay)
        cert_name = ""
    except CertificateError as e:
        link = await _connect(relay, insecure=True)
        try:
            cert_name = _pin(link, without_frames(e))
        except BaseException:
            link.abort()
            raise
    try:
        await _ask_for_derp(link, relay)
    finally:
        link.abort()
    return cert_name


def _pin(link: TlsLink, refusal: CertificateError) -> str:
    """Return the pin of the presented certificate, if clients accept it by a pin.

    Raises:
        CertificateError: they do not; this is `refusal`.
    """
    chain = link.state.peer_chain
    own = [der for der in chain if not common_name_untrusted(der).startswith(META_NAME_PREFIX)]
    # Clients accept a pin for a single certificate only. The relay's meta certificate, which holds
    # its key, is not counted.
    if len(own) != 1 or own[0] != chain[0]:
        raise refusal
    return PIN_PREFIX + hashlib.sha256(own[0]).hexdigest()


async def _ask_for_derp(link: TlsLink, relay: _Relay) -> None:
    host = bracketed(relay.host)
    name = host if relay.port == HTTPS_PORT else f"{host}:{relay.port}"
    link.write(upgrade_request(name, DERP_PATH, user_agent="pyderp"))
    reply = UpgradeReply()
    try:
        while reply.receive_data(await link.read()) is None:
            pass
    except RemoteProtocolError as e:
        text = f"{relay.shown}: the server there is not a DERP relay: {e}"
        raise ConnectError(text, attempts=[without_frames(e)]) from e


async def _stun(addresses: list[IPAddress], port: int) -> dict[IPAddress, bool]:
    answers = await asyncio.gather(
        *(answers_stun(address, port, seconds=_STUN_TIMEOUT) for address in addresses)
    )
    return dict(zip(addresses, answers, strict=True))


def _about_stun(stun: dict[IPAddress, bool], port: int) -> list[str]:
    silent = [str(address) for address, answered in stun.items() if not answered]
    if not any(stun.values()):
        return [
            f"no answer to STUN from {', '.join(silent)}, UDP port {port}: the map has STUNPort "
            "-1 (no STUN). If the relay uses another port, write it in STUNPort"
        ]
    return [
        f"no answer to STUN from {address}, although another address answers" for address in silent
    ]


async def _has_port_80(relay: _Relay, port: int) -> bool:
    """Return whether the check for captive portals passes on an HTTP port."""
    answer = await ask_port_80(
        relay.host,
        port,
        seconds=_HTTP_TIMEOUT,
        settings=relay.settings,
        resolver=relay.resolver,
    )
    return not answer.fault
