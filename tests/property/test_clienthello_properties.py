"""The ClientHello parser with any bytes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pyderp.errors import RemoteProtocolError
from pyderp.wire.clienthello import ClientHello, parse_client_hello_untrusted
from tests.wire.test_clienthello import FULL, alpn, message, record, sni

NAMES = st.binary(min_size=1, max_size=60).map(lambda data: bytes(97 + each % 26 for each in data))
PROTOCOLS = st.lists(st.binary(min_size=1, max_size=20), min_size=1, max_size=5)


def outcome(data: bytes) -> ClientHello | str | None:
    """Return the ClientHello in the first bytes of a connection, or the reason for the refusal."""
    try:
        return parse_client_hello_untrusted(data)
    except RemoteProtocolError as e:
        return str(e)


@given(st.binary(max_size=300) | st.binary(max_size=300).map(record), st.binary(max_size=20))
def test_any_bytes_raise_only_remote_protocol_error_and_more_bytes_change_nothing(
    data: bytes, tail: bytes
) -> None:
    assert outcome(data) in (None, outcome(data + tail))


@given(st.data())
def test_a_damaged_hello_raises_only_remote_protocol_error_and_more_bytes_change_nothing(
    data: st.DataObject,
) -> None:
    damaged = bytearray(FULL)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(damaged) - 1))
        damaged[at] = data.draw(st.integers(0, 255))
    tail = data.draw(st.binary(max_size=20))
    assert outcome(bytes(damaged)) in (None, outcome(bytes(damaged) + tail))


@given(NAMES, PROTOCOLS, st.integers(10, 100), st.binary(max_size=20))
def test_any_split_into_records_has_the_same_result(
    name: bytes, protocols: list[bytes], size: int, tail: bytes
) -> None:
    whole = message(sni(name), alpn(*protocols))
    data = b"".join(record(whole[at : at + size]) for at in range(0, len(whole), size))
    want = ClientHello(name.decode(), tuple(protocols))
    assert parse_client_hello_untrusted(data + tail) == want
    assert parse_client_hello_untrusted(data[:-1]) is None
