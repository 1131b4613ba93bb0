"""Measures the nanoseconds for a TLS record and for a frame. Needs pyderp-fast installed."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import TypeVar

import pyderp_fast
from cryptography.hazmat.primitives.asymmetric import ec
from tests.pairs import Client, Pair, make_credential

T = TypeVar("T")

PACKET = os.urandom(1237)
ROUNDS = 200
TRIES = 15


def main() -> None:
    """Print the best of 15 tries of each measurement."""
    credential = make_credential(ec.generate_private_key(ec.SECP256R1()))
    pair = Pair(pyderp_fast.TlsConfig(credential.chain, credential.key), Client())
    figures = {
        "open a record of 1,237 bytes, eight a read": lambda: opened(pair, 8),
        "open a record of 1,237 bytes, one a read": lambda: opened(pair, 1),
        "seal 1,237 bytes": lambda: sealed(pair, 1),
        "seal 13 packets of 1,237 bytes, each": lambda: sealed(pair, 13),
        "walk over a frame of 1,200 bytes": lambda: walked(1, 1, 1200),
        "walk over 8 to one destination, each": lambda: walked(8, 1, 1200),
        "walk over 8 to 8 destinations, each": lambda: walked(8, 8, 1200),
        "walk over 200 of 100 bytes to one destination, each": lambda: walked(200, 1, 100),
    }
    for what, measure in figures.items():
        print(f"{what:55} {min(measure() for _ in range(TRIES)):6.0f} ns")


def opened(pair: Pair, records: int) -> float:
    """Return the nanoseconds to decrypt a record, with several records in each read."""
    reads = [
        memoryview(bytearray(b"".join(pair.client.seal(PACKET) for _ in range(records))))
        for _ in range(ROUNDS)
    ]
    return timed(lambda read: pair.session.feed(read, pair.room), reads) / records


def sealed(pair: Pair, packets: int) -> float:
    """Return the nanoseconds to encrypt a packet, with several packets in each call."""
    chunks = [PACKET] * packets
    return timed(pair.session.seal, [chunks] * ROUNDS) / packets


def walked(frames: int, destinations: int, size: int) -> float:
    """Return the nanoseconds to walk over a frame that is in the processor's cache."""
    length = (32 + size).to_bytes(4, "big")
    data = b"".join(
        b"\4" + length + bytes([number % destinations]) * 32 + bytes(size)
        for number in range(frames)
    )
    reads = [bytearray(data) for _ in range(ROUNDS)]
    key = b"k" * 32
    return timed(lambda read: pyderp_fast.walk(read, 0, len(data), key), reads) / frames


def timed(work: Callable[[T], object], items: list[T]) -> float:
    """Return the nanoseconds of `work` for an item. Results are dropped, as the relay soon does."""
    start = time.perf_counter()
    for item in items:
        work(item)
    return (time.perf_counter() - start) / len(items) * 1e9


if __name__ == "__main__":
    main()
