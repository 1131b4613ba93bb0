"""Chunks of a byte stream in, whole frames out.

Packets have faster paths: a relay reads them where the kernel put them
(`pyderp.relay.lane`), a client all that came at once (`pyderp.wire.packets`).
"""

from __future__ import annotations

from collections.abc import Iterator

from pyderp.errors import FrameTooLarge
from pyderp.wire.frames import FRAME_HEADER_LEN, HEADER

__all__ = ["FrameBuffer"]


class FrameBuffer:
    """Cuts a stream into frames, one pass a chunk.

    Args:
        limit: the largest payload accepted, in bytes; may be changed between frames.
    """

    __slots__ = ("_data", "limit")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._data = bytearray()

    def receive_data(self, data: bytes | bytearray | memoryview) -> Iterator[tuple[int, bytes]]:
        """Add a chunk and give each frame that is now whole, as (type byte, payload).

        The iterator must be used up before the next chunk.

        Raises:
            FrameTooLarge: a header announces more than `limit`; the stream is then useless.
        """
        buffer = self._data
        buffer += data
        pos = 0
        end = len(buffer)
        try:
            while end - pos >= FRAME_HEADER_LEN:
                kind, length = HEADER.unpack_from(buffer, pos)
                if length > self.limit:
                    raise FrameTooLarge(
                        f"unexpectedly large frame of {length} bytes returned, "
                        f"limit is {self.limit}",
                        frame_type=kind,
                    )
                start = pos + FRAME_HEADER_LEN
                if end - start < length:
                    break
                pos = start + length
                yield kind, bytes(buffer[start:pos])
        finally:
            del buffer[:pos]

    @property
    def missing(self) -> int:
        """Bytes until the next header is whole, or, behind a header, until its frame is."""
        held = len(self._data)
        if held < FRAME_HEADER_LEN:
            return FRAME_HEADER_LEN - held
        _, length = HEADER.unpack_from(self._data)
        return FRAME_HEADER_LEN + int(length) - held

    def __len__(self) -> int:
        """Bytes held of a frame that is not whole yet."""
        return len(self._data)
