from collections.abc import Sequence
from os import PathLike
from typing import Final, final

__all__ = ["API_VERSION", "VERSION", "Tls", "TlsConfig", "TlsError", "walk"]

API_VERSION: Final[int]
VERSION: Final[str]

class TlsError(Exception):
    reason: str

def walk(
    buffer: bytearray | memoryview, pos: int, end: int, key: bytes, /
) -> tuple[int, list[tuple[bytes, bytes, int]], int, int, int]: ...

@final
class TlsConfig:
    def __new__(
        cls,
        chain: bytes | Sequence[bytes],
        key: bytes,
        *,
        alpn: str = "http/1.1",
        keylog: str | PathLike[str] | None = None,
    ) -> TlsConfig: ...

@final
class Tls:
    # Read-only. Declared as attributes, because the Protocol that this class implements has them.
    news: bool
    is_closed: bool
    failure: str

    def __new__(cls, config: TlsConfig, *, alpn: bool = True) -> Tls: ...
    def feed(
        self, encrypted: bytes | bytearray | memoryview, room: bytearray | memoryview, /
    ) -> int: ...
    def seal(self, chunks: list[bytes], /) -> bytes: ...
    def output(self) -> bytes: ...
    def close(self) -> bytes: ...
    def unsent_size(self, outer: int, plain: int, encrypted: int, /) -> int: ...
    @property
    def version(self) -> str: ...
    def _inject_panic(self) -> None: ...
