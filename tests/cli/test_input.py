"""Standard input as packets, in pieces of any size."""

from __future__ import annotations

import asyncio
import io
import os
import sys
from collections.abc import AsyncIterator, Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyderp.cli.input import Read, Stdin, chunks_of, lines_of, read_stdin
from pyderp.errors import ConfigError, LocalProtocolError


def reader(pieces: Sequence[bytes]) -> Read:
    rest = [piece for piece in pieces if piece]

    async def read() -> bytes:
        return rest.pop(0) if rest else b""

    return read


def all_of(packets: AsyncIterator[bytes]) -> list[bytes]:
    async def collect() -> list[bytes]:
        return [packet async for packet in packets]

    return asyncio.run(collect())


@given(st.lists(st.sampled_from([b"a", b"\n", b"bb\ncc", b"\r\n", b"\xff"])))
def test_lines_do_not_depend_on_the_pieces(pieces: list[bytes]) -> None:
    want = b"".join(pieces).split(b"\n")
    if not want[-1]:
        del want[-1]  # a final line end makes no further line
    assert all_of(lines_of(reader(pieces), 1000)) == want


@pytest.mark.parametrize("pieces", [[b"ok\nxxxx\n"], [b"ok\nxx", b"xx", b"\n"], [b"ok\n", b"xxxx"]])
def test_a_line_is_at_most_a_packet(pieces: list[bytes]) -> None:
    with pytest.raises(LocalProtocolError, match="line 2 is longer"):
        all_of(lines_of(reader(pieces), 3))
    assert len(all_of(lines_of(reader(pieces), 4))) == 2


@given(st.lists(st.binary(max_size=20)), st.integers(1, 7))
def test_chunks_have_all_bytes_and_are_small(pieces: list[bytes], size: int) -> None:
    found = all_of(chunks_of(reader(pieces), size))
    assert b"".join(found) == b"".join(pieces)
    assert all(0 < len(chunk) <= size for chunk in found)


@pytest.fixture
def stdin(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Replaces standard input by a pipe; returns its other end."""

    def make() -> int:
        out, into = os.pipe()
        monkeypatch.setattr(sys, "stdin", os.fdopen(out))
        return into

    return make


async def test_input_is_read_only_on_demand(stdin: Callable[[], int]) -> None:
    into = stdin()
    source = Stdin()
    os.write(into, b"one")
    assert await source.read() == b"one"
    os.write(into, b"two")
    os.close(into)
    assert await source.read() == b"two"
    assert await source.read() == b""
    sys.stdin.close()


async def test_a_read_that_blocks_does_not_hold_up_the_loop(stdin: Callable[[], int]) -> None:
    into = stdin()
    source = Stdin()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await source.read()
    os.close(into)
    assert await source.read() == b""
    sys.stdin.close()


async def test_input_that_cannot_be_read_is_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: os.PathLike[str]
) -> None:
    folder = os.open(tmp_path, os.O_RDONLY)

    class Folder(io.StringIO):
        def fileno(self) -> int:
            return folder

    async def main() -> None:
        with pytest.raises(IsADirectoryError):
            await Stdin().read()

    monkeypatch.setattr(sys, "stdin", Folder())
    await main()
    os.close(folder)


def test_a_closed_standard_input_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(ConfigError, match="standard input is closed"):
        read_stdin(1)
