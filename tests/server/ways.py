"""The ways to reach a relay, which must all behave alike."""

from __future__ import annotations

import ssl

from pyderp import ManualTLS, RelayConfig

from .certificates import trusting_nobody
from .dial import Via

NAME = "derp.example.com"
KINDS = ["plain", "tls1.2", "tls1.3", "websocket", "websocket over tls"]


def over_tls(version: ssl.TLSVersion | None = None) -> Via:
    """Connect over TLS with the right server name, and accept any certificate."""
    context = trusting_nobody()
    if version is not None:
        context.minimum_version = context.maximum_version = version
    return Via(tls=context, server_name=NAME)


def way(kind: str, tls: ManualTLS) -> tuple[RelayConfig, Via]:
    """Return a relay's settings and how to reach it."""
    if kind == "plain":
        return RelayConfig(), Via()
    if kind == "websocket":
        return RelayConfig(), Via(websocket=True)
    via = over_tls(ssl.TLSVersion.TLSv1_2 if kind == "tls1.2" else ssl.TLSVersion.TLSv1_3)
    via.websocket = kind.startswith("websocket")
    return RelayConfig(tls=tls), via
