"""`/debug/check`: whether the relay's books agree, and whether it would let itself in."""

from __future__ import annotations

from pyderp.relay.books import differences
from pyderp.server.site.facts import Facts

__all__ = ["problems"]


async def problems(facts: Facts) -> list[str]:
    """What is wrong, a line each; empty: nothing is.

    With admission on, it asks as it would about a client, about this machine itself.
    """
    found = differences(facts.router)
    logged_in = sum(protocol.connection is not None for protocol in facts.protocols())
    if logged_in != facts.router.registry.size:
        found.append(
            f"connections = {facts.router.registry.size} != {logged_in} sockets are logged in"
        )
    if facts.admission is not None:
        trouble = await facts.admission.check_self()
        if trouble is not None:
            found.append(trouble)
    return found
