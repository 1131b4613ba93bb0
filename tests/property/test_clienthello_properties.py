"""The ClientHello's reader against whatever bytes."""

from __future__ import annotations

import contextlib

from hypothesis import given
from hypothesis import strategies as st

from pyderp.errors import RemoteProtocolError
from pyderp.wire.clienthello import ClientHello, parse_client_hello_untrusted
from tests.wire.test_clienthello import FULL, alpn, message, record, sni

NAMES = st.binary(min_size=1, max_size=60).map(lambda data: bytes(97 + each % 26 for each in data))
PROTOCOLS = st.lists(st.binary(min_size=1, max_size=20), min_size=1, max_size=5)


@given(st.binary(max_size=300))
def test_garbage_raises_nothing_else(data: bytes) -> None:
    with contextlib.suppress(RemoteProtocolError):
        parse_client_hello_untrusted(data)


@given(st.data())
def test_damage_raises_nothing_else(data: st.DataObject) -> None:
    damaged = bytearray(FULL)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(damaged) - 1))
        damaged[at] = data.draw(st.integers(0, 255))
    with contextlib.suppress(RemoteProtocolError):
        parse_client_hello_untrusted(damaged)


@given(NAMES, PROTOCOLS, st.integers(10, 100), st.binary(max_size=20))
def test_any_split_into_records_reads_the_same(
    name: bytes, protocols: list[bytes], size: int, tail: bytes
) -> None:
    whole = message(sni(name), alpn(*protocols))
    data = b"".join(record(whole[at : at + size]) for at in range(0, len(whole), size))
    want = ClientHello(name.decode(), tuple(protocols))
    assert parse_client_hello_untrusted(data + tail) == want
    assert parse_client_hello_untrusted(data[:-1]) is None
