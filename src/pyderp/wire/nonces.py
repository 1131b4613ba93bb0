"""Nonces that their maker knows again: a login box that comes back is none of the peer's.

Both boxes of a login are sealed under the one key that client and relay share. So a box opens
at the side that sealed it as well, and DERP's JSON does not tell them apart: a ServerInfo passes
as a ClientInfo that says little, and a ClientInfo as a ServerInfo.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Final

from pyderp.keys import NONCE_LEN, NodePrivate

__all__ = ["OwnNonces"]

_MARK_LEN: Final = 8
"""One of 2**64 foreign nonces is taken for an own one. 16 random bytes remain, which is plenty:
2**64 boxes between the same two keys until two nonces may be equal."""


class OwnNonces:
    """Makes nonces that end in a keyed hash of their beginning. To others all of it is random.

    Args:
        private: whose nonces they are.
        role: keeps apart what one key does as a relay and as a client.
        random: gives n fresh random bytes.
    """

    __slots__ = ("_key", "_random")

    def __init__(
        self, private: NodePrivate, role: bytes, *, random: Callable[[int], bytes]
    ) -> None:
        self._key = private.derive(b"pyderp login nonces: " + role)
        self._random = random

    def make(self) -> bytes:
        """A fresh nonce."""
        start = self._random(NONCE_LEN)[:-_MARK_LEN]
        return start + self._mark(start)

    def made(self, nonce: bytes) -> bool:
        """Whether it is one of these."""
        return self._mark(nonce[:-_MARK_LEN]) == nonce[-_MARK_LEN:]

    def _mark(self, start: bytes) -> bytes:
        return hashlib.blake2b(start, digest_size=_MARK_LEN, key=self._key).digest()
