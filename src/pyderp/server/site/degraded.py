"""Collects the troubles of a relay: the parts that do not work at the moment.

The debug page, `/debug/check`, the metrics and the service manager all use this list. Each part
keeps its own state; nothing is stored here.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

from pyderp.server.site.view import RelayView
from pyderp.server.trouble import Part, Trouble

__all__ = ["parts_in_use", "troubles"]


def troubles(view: RelayView) -> list[Trouble]:
    """Return all troubles, without a request to another program; empty if there are none."""
    return [*_troubles(view)]


def _troubles(view: RelayView) -> Iterator[Trouble]:
    now = datetime.fromtimestamp(view.wall(), UTC)
    for state in view.certificate_states():
        if text := state.trouble(now):
            yield Trouble(Part.CERTIFICATE, text)
    for text in () if view.admission is None else view.admission.troubles():
        yield Trouble(Part.ADMISSION, text)
    for link in () if view.mesh is None else view.mesh.status():
        if not (link.connected or link.is_self):
            why = link.error or "connecting"
            yield Trouble(Part.MESH, f"mesh link to {link.host} is down: {why}")
    if text := view.stun_trouble():
        yield Trouble(Part.STUN, text)
    if view.limits is not None and view.limits.trouble:
        yield Trouble(Part.RATE_CONFIG, view.limits.trouble)
    yield from view.more_troubles()


def parts_in_use(view: RelayView) -> Iterator[Part]:
    """Yield the parts that this relay has, and those of the program that runs it."""
    yield from (Part.SETTINGS, Part.LOG, Part.STUN)
    if view.config.tls is not None:
        yield Part.CERTIFICATE
    if view.admission is not None:
        yield Part.ADMISSION
    if view.mesh is not None:
        yield Part.MESH
    if view.limits is not None:
        yield Part.RATE_CONFIG
