"""The metrics of a relay that `derper` lacks; their names begin with `pyderp_`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from pyderp.server.site.series import Series
from pyderp.server.site.view import RelayView

__all__ = ["own_series"]

# attribute of the counters, meaning
_RELAY: Final = (
    ("protocol_errors", "Connections closed as the peer broke the protocol."),
    ("watchers_closed", "Mesh peers closed as too many presence changes waited for them."),
    (
        "mesh_keys_not_noted",
        "PeerPresent of another relay that were not noted, as it had as many keys as it may.",
    ),
    (
        "sources_not_noted",
        "Forwarded packets whose new source was not noted, as a bound was reached.",
    ),
    (
        "watch_repeats_ignored",
        "WatchConns ignored as a whole picture waited for that watcher already.",
    ),
)
_ADMISSION: Final = (
    ("allowed", "Clients let in."),
    ("denied", "Clients turned away."),
    ("cache_hits", "Clients that a remembered answer decided about."),
    ("queries", "Questions to tailscaled, the admission URL or a function."),
    ("errors", "Questions that brought no usable answer."),
    ("failed_open", "Clients let in as nobody reached the admission URL."),
    ("crowded", "Clients turned away as too many were asked about at once."),
    ("revoked", "Keys whose connections were closed as they are no longer allowed."),
)


def own_series(view: RelayView) -> Iterator[Series]:
    """All of them, now. Those of a part that the relay does not have are missing."""
    counters = view.router.counters
    yield Series(
        "gauge_pyderp_connections",
        "Open connections, logged in or not.",
        len(view.protocols()),
    )
    yield Series(
        "pyderp_connections_ended_total",
        "Connections that ended, by why.",
        {(reason.value,): count for reason, count in counters.ends.items()},
        ("reason",),
    )
    for name, help_text in _RELAY:
        value: int = getattr(counters, name)
        yield Series(f"pyderp_{name}_total", help_text, value)
    if view.accepts is not None:
        yield Series(
            "pyderp_connections_shed_total",
            "Connections closed at once, as file descriptors ran out.",
            view.accepts.shed,
        )
    if view.limits is not None:
        yield Series(
            "gauge_pyderp_rate_limited_connections",
            "Connections that are not read from at the moment, as they exceed their limit.",
            len(view.limits.waiting),
        )
    yield from _admission(view)
    yield from _certificates(view)
    yield from _mesh(view)


def _admission(view: RelayView) -> Iterator[Series]:
    if view.admission is not None:
        for name, help_text in _ADMISSION:
            value: int = getattr(view.admission.counters, name)
            yield Series(f"pyderp_admission_{name}_total", help_text, value)


def _certificates(view: RelayView) -> Iterator[Series]:
    expiry: dict[tuple[str, ...], float] = {}
    for certificate in view.certificates():
        end = certificate.not_after.timestamp()
        for name in certificate.names:
            expiry[(name,)] = min(end, expiry.get((name,), end))
    if expiry:
        yield Series(
            "gauge_pyderp_certificate_expiry_timestamp_seconds",
            "When the certificate for a name expires, in seconds since 1970.",
            expiry,
            ("name",),
        )


def _mesh(view: RelayView) -> Iterator[Series]:
    if view.mesh is None:
        return
    links = [link for link in view.mesh.status() if not link.is_self]
    yield Series(
        "gauge_pyderp_mesh_link_up",
        "Whether the link to another relay is up.",
        {(link.host,): int(link.connected) for link in links},
        ("host",),
    )
    yield Series(
        "gauge_pyderp_mesh_link_peers",
        "Clients of another relay.",
        {(link.host,): link.peers for link in links},
        ("host",),
    )
