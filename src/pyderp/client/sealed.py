"""Packets between two nodes that a relay cannot read, change, forge or replay.

A packet is

    magic 4 ‖ nonce 24 ‖ box(context 16 ‖ session 16 ‖ counter 8 ‖ time 8 ‖ payload)

    magic    `PDS` and the version, 1
    nonce    random
    box      NaCl's `crypto_box` (X25519, XSalsa20, Poly1305) between the two node keys
    context  start of SHA-256(`pyderp sealed packet 1\\0` ‖ sender's key ‖ receiver's key): a
             box opens with either key, so this distinguishes the two directions, and this
             use of the keys from every other
    session  random, chosen by the sender when its `SealedPeer` is made
    counter  of the session's packets, from 0; big-endian
    time     the sender's wall clock, milliseconds since 1970; big-endian

The rules for replays are at `SealedPeer`.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import struct
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final
from weakref import WeakValueDictionary
from weakref import ref as weakref

from pyderp.errors import BadBox, InvalidKey, LocalProtocolError, SealError
from pyderp.keys import NONCE_LEN, NodePrivate, NodePublic, open_sealed, seal
from pyderp.wire.frames import MAX_PACKET_SIZE, BytesLike, as_bytes

__all__ = ["SealedPeer", "SealedPeers"]

_MAGIC: Final = b"PDS\x01"
_DOMAIN: Final = b"pyderp sealed packet 1\0"
_SESSION_LEN: Final = 16
_HEADER: Final = struct.Struct(">16s16sQQ")
_BOX_TAG: Final = 16
_WINDOW: Final = 2048
"""Packets behind the newest one of a session that may still be opened."""
_MAX_SESSIONS: Final = 64
_MAX_PEERS: Final = 10_000
_SKEW_MS: Final = 5_000
_MAX_AGE_MS: Final = 60_000
_FORGOTTEN: Final = "sealed packet is too old: the packets seen at its time are forgotten"


class SealedPeer:
    """Seals packets for one peer and opens its packets; packets may be lost or out of order.

    A packet is opened at most once by one object. It is refused if, by its time, it is
    more than 60 s old or 60 s in the future, or from more than 5 s before this object was
    made. So both clocks must agree to 5 s at first, to a minute later. An object that is made
    after a restart may open a packet again that an earlier one opened, but only if its time is at
    most 5 s before the new object was made. In one session a packet may be overtaken by up to
    2047 others.

    Make one object for each peer and keep it: two objects would open each packet twice.
    `Client.sealed` keeps one for each peer.

    Any key is accepted, as a relay can put any 32 bytes as the source of a packet. With the zero
    key and a few others no secret can be shared; then nothing opens and nothing can be sealed.

    Args:
        private: the key of this side.
        peer: the peer's key.
        send: sends a packet to a key, such as `Client.send`.
        random: returns n random bytes.
        clock: seconds since 1970.
    """

    overhead: Final = len(_MAGIC) + NONCE_LEN + _BOX_TAG + _HEADER.size
    """Bytes that sealing adds."""
    max_payload: Final = MAX_PACKET_SIZE - overhead
    """The longest payload, in bytes."""

    def __init__(
        self,
        private: NodePrivate,
        peer: NodePublic,
        *,
        send: Callable[[NodePublic, bytes], Awaitable[None]],
        random: Callable[[int], bytes] = os.urandom,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.peer = peer
        self._send = send
        self._random = random
        self._clock = clock
        self._shared: bytes | None = None
        with contextlib.suppress(BadBox):
            self._shared = private.shared_key(peer)
        self._to_peer = _context(private.public, peer)
        self._from_peer = _context(peer, private.public)
        self._session = random(_SESSION_LEN)
        self._counter = 0
        self._made = self._now()
        self._seen = _Seen()

    def seal(self, data: BytesLike) -> bytes:
        """Returns the packet for a payload; another one at each call.

        Raises:
            TypeError: `data` is not a bytes-like object.
            LocalProtocolError: the payload is larger than `max_payload`.
            InvalidKey: no secret can be shared with the peer's key.
        """
        payload = as_bytes(data, "payload")
        if len(payload) > self.max_payload:
            raise LocalProtocolError(
                f"payload too big: {len(payload)}, at most {self.max_payload} bytes can be sealed"
            )
        if self._shared is None:
            raise InvalidKey(self._no_secret())
        header = _HEADER.pack(self._to_peer, self._session, self._counter, self._now())
        self._counter += 1
        return _MAGIC + seal(self._shared, header + payload, nonce=self._random(NONCE_LEN))

    async def send(self, data: BytesLike) -> None:
        """Seal a payload and send it.

        Raises:
            the errors of `seal` and of the sending function.
        """
        await self._send(self.peer, self.seal(data))

    def open_untrusted(self, packet: bytes) -> bytes:
        """Returns the payload of a packet from the peer that is recent and not seen before.

        Raises:
            SealError: forged or damaged, reflected, too old, from the future or a replay; or
                no secret can be shared with the peer's key.
        """
        if self._shared is None:
            raise SealError(self._no_secret())
        if not packet.startswith(_MAGIC):
            raise SealError("not a sealed packet")
        try:
            plain = open_sealed(self._shared, packet[len(_MAGIC) :])
        except BadBox:
            raise SealError("sealed packet is forged or damaged") from None
        if len(plain) < _HEADER.size:
            raise SealError("sealed packet is for another use of these keys")
        context, session, counter, sent = _HEADER.unpack_from(plain)
        if context != self._from_peer:
            if context == self._to_peer:
                raise SealError("sealed packet is reflected: this side sent it")
            raise SealError("sealed packet is for another use of these keys")
        now = self._now()
        oldest = max(self._made - _SKEW_MS, now - _MAX_AGE_MS)
        if sent < oldest:
            raise SealError(f"sealed packet is too old, by {oldest - sent} ms; or a clock is wrong")
        if sent > now + _MAX_AGE_MS:
            raise SealError(f"sealed packet is from the future, {sent - now} ms; a clock is wrong")
        self._seen.forget_before(oldest)
        self._seen.add(session, counter, sent)
        return plain[_HEADER.size :]

    def _now(self) -> int:
        return int(self._clock() * 1000)

    def _no_secret(self) -> str:
        return f"no secret can be shared with key {self.peer}"


def _context(sender: NodePublic, receiver: NodePublic) -> bytes:
    return hashlib.sha256(_DOMAIN + sender.raw + receiver.raw).digest()[:16]


@dataclass(slots=True, eq=False)
class _Session:
    """Which packets of one session were seen: a bit each, the newest counter lowest."""

    highest: int
    """The highest counter."""
    latest: int
    """The latest time, in milliseconds since 1970."""
    forgotten: int
    """The session takes only packets that are later than this time."""
    bits: int = 1

    def add(self, counter: int, sent: int) -> None:
        if sent <= self.forgotten:
            raise SealError(_FORGOTTEN)
        ahead = counter - self.highest
        if ahead > 0:
            # A jump past the window leaves none of its bits. A shift by an unchecked number of the
            # peer would make an integer of any size.
            kept = self.bits << ahead if ahead < _WINDOW else 0
            self.bits = (kept | 1) & ((1 << _WINDOW) - 1)
            self.highest = counter
        elif -ahead >= _WINDOW:
            raise SealError(f"sealed packet is too old: {-ahead} others overtook it")
        elif self.bits >> -ahead & 1:
            raise SealError("sealed packet is a replay")
        else:
            self.bits |= 1 << -ahead
        self.latest = max(self.latest, sent)


class _Seen:
    """The sessions of a peer whose packets could still be replayed.

    A session that is dropped must not be taken for a new one later: when the clock is set back,
    its old packets would be recent again. It is also dropped when there are too many. So a new
    session takes only packets that are later than all packets of the sessions dropped before.
    """

    def __init__(self, forgotten: int = -1) -> None:
        self._sessions: dict[bytes, _Session] = {}
        self._forgotten = forgotten

    @property
    def latest(self) -> int:
        """The latest time of all packets that were seen, in milliseconds since 1970."""
        return max([self._forgotten, *(s.latest for s in self._sessions.values())])

    def forget_before(self, oldest: int) -> None:
        """Drop sessions whose packets are all older than a time."""
        for name in [name for name, s in self._sessions.items() if s.latest < oldest]:
            self._forget(name)

    def add(self, name: bytes, counter: int, sent: int) -> None:
        """Note a packet.

        Raises:
            SealError: it was seen before, or so old that this is no longer known.
        """
        session = self._sessions.get(name)
        if session is not None:
            session.add(counter, sent)
            return
        if sent <= self._forgotten:
            raise SealError(_FORGOTTEN)
        if len(self._sessions) == _MAX_SESSIONS:
            self._forget(min(self._sessions, key=lambda name: self._sessions[name].latest))
        self._sessions[name] = _Session(counter, sent, self._forgotten)

    def _forget(self, name: bytes) -> None:
        self._forgotten = max(self._forgotten, self._sessions.pop(name).latest)


class SealedPeers:
    """Makes and keeps a `SealedPeer` for each peer, so that no packet is opened twice.

    As long as the program holds a peer's object, no second one is made. Objects that the program
    has dropped are kept here: the last 10,000 that have opened a packet, and of the others the
    last 10,000 that were asked for. Two lists, because a relay can make up any number of sources,
    but only the holder of a peer's key makes packets that open: made-up sources push no object out
    that has opened packets. When such an object is dropped here, the latest time of its packets
    becomes a floor: objects that are made later refuse packets sealed at that time or before.

    Args:
        private: the key of this side.
        send: sends a packet to a key, such as `Client.send`.
        limit: how many objects of each kind are kept.
    """

    def __init__(
        self,
        private: NodePrivate,
        *,
        send: Callable[[NodePublic, bytes], Awaitable[None]],
        random: Callable[[int], bytes] = os.urandom,
        clock: Callable[[], float] = time.time,
        limit: int = _MAX_PEERS,
    ) -> None:
        self.private = private
        self.send = send
        self.random = random
        self.clock = clock
        self.floor = -1
        """Milliseconds since 1970; a new object refuses what was sealed then or before."""
        self._limit = limit
        self._alive: WeakValueDictionary[NodePublic, _KeptPeer] = WeakValueDictionary()
        # Both with the one used last at the end.
        self._unopened: OrderedDict[NodePublic, _KeptPeer] = OrderedDict()
        self._opened: OrderedDict[NodePublic, _KeptPeer] = OrderedDict()

    def get(self, key: NodePublic) -> SealedPeer:
        """Returns the object for a peer, for any key."""
        peer = self._alive.get(key)
        if peer is None:
            peer = self._alive[key] = _KeptPeer(self, key)
        if key not in self._opened:
            self._unopened[key] = peer
            self._unopened.move_to_end(key)
            if len(self._unopened) > self._limit:
                self._unopened.popitem(last=False)
        return peer

    def opened(self, peer: _KeptPeer) -> None:
        """Keep an object that has opened a packet, also if it had been dropped here before."""
        self._unopened.pop(peer.peer, None)
        self._opened[peer.peer] = peer
        self._opened.move_to_end(peer.peer)
        if len(self._opened) > self._limit:
            _, dropped = self._opened.popitem(last=False)
            self.floor = max(self.floor, dropped.latest)


class _KeptPeer(SealedPeer):
    """A peer of `SealedPeers`, which it calls when a packet opens."""

    def __init__(self, peers: SealedPeers, key: NodePublic) -> None:
        super().__init__(
            peers.private, key, send=peers.send, random=peers.random, clock=peers.clock
        )
        self._seen = _Seen(peers.floor)
        # Weak, as it holds this object. Once it is gone, it makes no second object for the peer.
        self._peers = weakref(peers)

    @property
    def latest(self) -> int:
        """The latest time of all packets that were opened, in milliseconds since 1970."""
        return self._seen.latest

    def open_untrusted(self, packet: bytes) -> bytes:
        payload = super().open_untrusted(packet)
        if (peers := self._peers()) is not None:
            peers.opened(self)
        return payload
