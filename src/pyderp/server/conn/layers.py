"""Layers between a connection's socket and its stage: TLS, and a websocket.

A layer takes from what arrives what it added on the other side, and adds its own to what
leaves. The outermost one stands at the socket. A connection without layers is plain DERP.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

__all__ = ["Layer"]


class Layer(ABC):
    """One layer of a connection.

    Attributes:
        inner: the next layer on the way to the stage.
        outer: the next layer on the way to the socket.
    """

    __slots__ = ("inner", "outer")

    reads_large: ClassVar[bool] = True
    """Whether one read may bring as much as there is."""
    tells_errors: ClassVar[bool] = False
    """Whether a client that broke the protocol learns of it before the connection ends."""

    def __init__(self) -> None:
        self.inner: Layer | None = None
        self.outer: Layer | None = None

    @abstractmethod
    def receive(self, data: memoryview) -> None:
        """Take bytes, from the socket or from the layer outside; they are copied."""

    @abstractmethod
    def send(self, chunks: list[bytes]) -> bool:
        """Write bytes of the stream inside. Returns False if nothing more can be written."""

    @abstractmethod
    def unsent_size(self, outer: int) -> int:
        """Bytes of the stream inside that the other side cannot read.

        Args:
            outer: bytes that do not reach it, at the end of what `send` wrote last.
        """

    @abstractmethod
    def close(self) -> None:
        """Say that nothing more will come."""

    def discard(self) -> None:
        """Drop what it refers to; it is not used again."""
        self.inner = self.outer = None
