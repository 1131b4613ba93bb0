"""A small mutator without feedback, which the ordinary tests use; equal on every machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from random import Random
from typing import Final

__all__ = ["mutations"]

_MAX_LEN: Final = 4096
_INTERESTING: Final = (0x00, 0x01, 0x20, 0x7F, 0x80, 0xFF)


def _flip_bit(data: bytearray, random: Random, _: bytes) -> None:
    data[random.randrange(len(data))] ^= 1 << random.randrange(8)


def _set_byte(data: bytearray, random: Random, _: bytes) -> None:
    data[random.randrange(len(data))] = random.choice(_INTERESTING)


def _random_byte(data: bytearray, random: Random, _: bytes) -> None:
    data[random.randrange(len(data))] = random.randrange(256)


def _truncate(data: bytearray, random: Random, _: bytes) -> None:
    del data[random.randrange(len(data)) :]


def _delete(data: bytearray, random: Random, _: bytes) -> None:
    at = random.randrange(len(data))
    del data[at : at + random.randint(1, 16)]


def _repeat(data: bytearray, random: Random, _: bytes) -> None:
    at = random.randrange(len(data))
    data[at:at] = data[at : at + random.randint(1, 64)] * random.randint(1, 4)


def _insert(data: bytearray, random: Random, token: bytes) -> None:
    at = random.randrange(len(data))
    data[at:at] = token


def _overwrite(data: bytearray, random: Random, token: bytes) -> None:
    at = random.randrange(len(data))
    data[at : at + len(token)] = token


_CHANGES: Final[Sequence[Callable[[bytearray, Random, bytes], None]]] = (
    _flip_bit,
    _set_byte,
    _random_byte,
    _truncate,
    _delete,
    _repeat,
    _insert,
    _overwrite,
)


def mutations(
    seeds: Sequence[bytes], tokens: Sequence[bytes], *, count: int, seed: str
) -> Iterator[bytes]:
    """Yield `count` inputs, each one to four changes away from a seed or a splice of two seeds."""
    random = Random(seed)
    for i in range(count):
        data = bytearray(seeds[i % len(seeds)])
        if random.random() < 0.2:
            other = random.choice(seeds)
            data[random.randint(0, len(data)) :] = other[random.randint(0, len(other)) :]
        for _ in range(random.randint(1, 4)):
            if not data:
                data.append(0)
            random.choice(_CHANGES)(data, random, random.choice(tokens))
        yield bytes(data[:_MAX_LEN])
