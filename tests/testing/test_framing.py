"""The bystander's view of a connection: nothing is lost or added, however it is read."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyderp.testing.framing import Cutter, Mode, read_request
from pyderp.wire.frames import MAX_CLIENT_FRAME, frame_header, pack_frame
from pyderp.wire.upgrade import Upgrade, upgrade_request

HEAD = b"GET /derp HTTP/1.1\r\nHost: r\r\n\r\n"


def cut(data: bytes, sizes: list[int], mode: Mode = Mode.FRAMES) -> list[tuple[int | None, bytes]]:
    """The pieces of a stream that is read in chunks of these sizes, and then the rest."""
    cutter = Cutter(lambda _: mode)
    pieces: list[tuple[int | None, bytes]] = []
    for size in sizes:
        pieces += cutter.receive_data(data[:size])
        data = data[size:]
    pieces += cutter.receive_data(data)
    if rest := cutter.rest():
        pieces.append((None, rest))
    return pieces


@given(
    st.lists(st.tuples(st.integers(0, 255), st.binary(max_size=50)), max_size=6),
    st.binary(max_size=4),
    st.lists(st.integers(1, 20)),
)
def test_chunks_do_not_matter(
    frames: list[tuple[int, bytes]], tail: bytes, sizes: list[int]
) -> None:
    """Head and whole frames come out, and half a frame at the end."""
    wanted: list[tuple[int | None, bytes]] = [(None, HEAD)]
    wanted += [(kind, pack_frame(kind, payload)) for kind, payload in frames]
    wanted += [(None, tail)] if tail else []
    assert cut(b"".join(piece for _, piece in wanted), sizes) == wanted


@given(st.binary(max_size=300), st.lists(st.integers(1, 50)), st.sampled_from(Mode))
def test_nothing_is_lost_or_added(data: bytes, sizes: list[int], mode: Mode) -> None:
    """Whatever the bytes are, joined together the pieces are they."""
    assert b"".join(piece for _, piece in cut(data, sizes, mode)) == data


def test_a_frame_too_large_is_not_waited_for() -> None:
    """Its header passes at once, and everything after it."""
    cutter = Cutter(lambda _: Mode.FRAMES)
    list(cutter.receive_data(HEAD))
    assert not list(cutter.receive_data(frame_header(5, MAX_CLIENT_FRAME)))
    cutter = Cutter(lambda _: Mode.FRAMES)
    list(cutter.receive_data(HEAD))
    header = frame_header(5, MAX_CLIENT_FRAME + 1)
    assert list(cutter.receive_data(header)) == [(None, header)]
    assert list(cutter.receive_data(b"\x06\0\0\0\0")) == [(None, b"\x06\0\0\0\0")]


def test_a_head_without_end_is_not_waited_for() -> None:
    """After 64 KiB it is no head."""
    cutter = Cutter(lambda _: Mode.FRAMES)
    assert not list(cutter.receive_data(b"G" * 65536))
    assert list(cutter.receive_data(b"G")) == [(None, b"G" * 65537)]


@pytest.mark.parametrize(
    ("head", "found"),
    [
        (HEAD, (Upgrade.NONE, False)),
        (upgrade_request("r", "/derp", user_agent="t"), (Upgrade.DERP, False)),
        (upgrade_request("r", "/derp", user_agent="t", fast_start=True), (Upgrade.DERP, True)),
        (
            b"GET /derp HTTP/1.1\r\nHost: r\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Protocol: derp\r\n\r\n",
            (Upgrade.WEBSOCKET, False),
        ),
        (b"nonsense\r\n\r\n", (Upgrade.NONE, False)),
        (b"\r\n\r\n", (Upgrade.NONE, False)),
    ],
)
def test_requests_are_understood(head: bytes, found: tuple[Upgrade, bool]) -> None:
    """As the relay understands them."""
    assert read_request(head) == found
