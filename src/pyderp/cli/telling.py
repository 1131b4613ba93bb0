"""A client that says when a connection ends, also to those who iterate over its messages."""

from __future__ import annotations

from collections.abc import Callable

from pyderp.client.client import Client
from pyderp.errors import ClientClosed, ConnectionClosed
from pyderp.wire.messages import Message

__all__ = ["TellingClient"]


class TellingClient(Client):
    """A client that tells of each connection that ends, once all that came was received."""

    told: Callable[[ConnectionClosed], None] | None = None
    """Called with the reason."""

    async def recv_with_generation(self) -> tuple[Message, int]:
        """As of any client."""
        try:
            return await super().recv_with_generation()
        except ClientClosed:
            raise
        except ConnectionClosed as e:
            if self.told is not None:
                self.told(e)
            raise
