"""`/debug/check`: whether the relay's books agree, and whether it would let itself in."""

from __future__ import annotations

from pyderp.relay.consistency import check
from pyderp.server.site.view import RelayView

__all__ = ["problems"]


async def problems(view: RelayView) -> list[str]:
    """What is wrong, a line each; empty: nothing is.

    With admission on, it asks as it would about a client, about this machine itself.
    """
    found = check(view.router)
    logged_in = sum(protocol.connection is not None for protocol in view.protocols())
    if logged_in != view.router.registry.size:
        found.append(
            f"connections = {view.router.registry.size} != {logged_in} sockets are logged in"
        )
    if view.admission is not None:
        trouble = await view.admission.check_self()
        if trouble is not None:
            found.append(trouble)
    return found
