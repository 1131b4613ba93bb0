"""STUN: datagrams of Go's clients and servers are read and written alike; others are refused."""

from __future__ import annotations

import struct
import zlib
from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyderp.errors import LocalProtocolError, RemoteProtocolError
from pyderp.wire.stun import (
    MAX_REQUEST,
    BindingResponse,
    RequestReader,
    is_stun,
    pack_request,
    pack_response,
    parse_request_untrusted,
    parse_response_untrusted,
)

TX = bytes(range(12))
REQUEST = bytes.fromhex(
    "000100142112a442000102030405060708090a0b802200087461696c6e6f6465802800048aabad90"
)
V4 = bytes.fromhex("0101000c2112a442000102030405060708090a0b002000080001a147e112a643")
V6 = bytes.fromhex(
    "010100182112a442000102030405060708090a0b002000140002a1470113a9fa1235547b041424344c5c6c7c"
)
V6_ADDRESS = ip_address("2001:db8:1234:5678:11:2233:4455:6677")
V4_ADDRESS = ip_address("192.0.2.1")
PORT = 32853

SOFTWARE = struct.pack(">HH", 0x8022, 8) + b"tailnode"

tx_ids = st.binary(min_size=12, max_size=12)
ports = st.integers(0, 65535)


def request(
    *attributes: bytes, kind: str = "0001", length: int | None = None, end: bool = True
) -> bytes:
    """Return a request with the right fingerprint at its end, or without one."""
    body = b"".join(attributes)
    if length is None:
        length = len(body) + (8 if end else 0)
    datagram = bytes.fromhex(kind) + struct.pack(">H", length) + REQUEST[4:20] + body
    if end:
        datagram += struct.pack(">HHI", 0x8028, 4, zlib.crc32(datagram) ^ 0x5354554E)
    return datagram


def attribute(kind: int, value: bytes) -> bytes:
    return struct.pack(">HH", kind, len(value)) + value + bytes(-len(value) % 4)


def response(*attributes: bytes, kind: str = "0101", length: int | None = None) -> bytes:
    body = b"".join(attributes)
    size = len(body) if length is None else length
    return bytes.fromhex(kind) + struct.pack(">H", size) + REQUEST[4:20] + body


class TestRequest:
    @pytest.mark.parametrize(
        ("tx", "whole"),
        [
            (TX.hex(), REQUEST.hex()),
            (
                "ff" * 12,
                "000100142112a442ffffffffffffffffffffffff802200087461696c6e6f64658028000495d0a215",
            ),
            (
                "b7e7a701bc34d686fa87dfae",
                "000100142112a442b7e7a701bc34d686fa87dfae802200087461696c6e6f6465802800049e8df0ce",
            ),
        ],
    )
    def test_requests_of_go_clients_are_written_and_read(self, tx: str, whole: str) -> None:
        assert pack_request(bytes.fromhex(tx)).hex() == whole
        assert parse_request_untrusted(bytes.fromhex(whole)).hex() == tx

    @given(tx_ids)
    def test_a_packed_request_is_accepted(self, tx: bytes) -> None:
        assert parse_request_untrusted(pack_request(tx)) == tx

    def test_a_request_may_be_a_slice_of_a_buffer(self) -> None:
        view = memoryview(bytearray(REQUEST + bytes(100)))[: len(REQUEST)]
        assert parse_request_untrusted(view) == TX

    @pytest.mark.parametrize(
        "datagram",
        [
            request(SOFTWARE, attribute(0x0006, b"user!")),
            request(attribute(0x7777, b""), SOFTWARE),
            request(attribute(0x8022, b"other"), SOFTWARE),
            request(SOFTWARE, attribute(0x8028, bytes(4))),
            request(SOFTWARE, length=0),
            request(SOFTWARE, length=65535),
            request(SOFTWARE, attribute(0x7777, bytes(MAX_REQUEST - len(request(SOFTWARE)) - 4))),
        ],
        ids=["more", "before", "two names", "two fingerprints", "length 0", "length 65535", "long"],
    )
    def test_unusual_requests_are_accepted(self, datagram: bytes) -> None:
        assert parse_request_untrusted(datagram) == TX

    @pytest.mark.parametrize(
        ("datagram", "why"),
        [
            (b"", "not a STUN message"),
            (REQUEST[:19], "not a STUN message"),
            (b"\x40" + REQUEST[1:], "not a STUN message"),
            (b"\x80" + REQUEST[1:], "not a STUN message"),
            (REQUEST[:4] + b"\x21\x12\xa4\x43" + REQUEST[8:], "not a STUN message"),
            (request(SOFTWARE, kind="0101"), "not a binding request"),
            (request(SOFTWARE, kind="0011"), "not a binding request"),
            (request(SOFTWARE, end=False), "without a fingerprint at its end"),
            (REQUEST[:20], "other software"),
            (request(), "other software"),
            (request(attribute(0x8022, b"tailnod")), "other software"),
            (request(attribute(0x8022, b"tailnode ")), "other software"),
            (request(attribute(0x8022, b"Tailnode")), "other software"),
            (REQUEST[:32], "without a fingerprint at its end"),
            (REQUEST + bytes(4), "without a fingerprint at its end"),
            (request(SOFTWARE) + SOFTWARE, "without a fingerprint at its end"),
            (request(SOFTWARE, attribute(0x8028, bytes(3)), end=False), "without a fingerprint"),
            (request(SOFTWARE, attribute(0x8028, bytes(5)), end=False), "without a fingerprint"),
            (REQUEST[:-1] + bytes([REQUEST[-1] ^ 1]), "wrong fingerprint"),
            (REQUEST[:2] + bytes(2) + REQUEST[4:], "wrong fingerprint"),
            (REQUEST[:39], "longer than its message"),
            (REQUEST + b"\x80", "half a header"),
            (request(SOFTWARE, b"\x77\x77\xff\xff"), "longer than its message"),
            (request(SOFTWARE, attribute(0x7777, bytes(MAX_REQUEST))), "more than 1500 bytes"),
        ],
    )
    def test_anything_else_is_refused(self, datagram: bytes, why: str) -> None:
        with pytest.raises(RemoteProtocolError, match=why):
            parse_request_untrusted(datagram)

    @given(
        tx_ids,
        st.lists(st.tuples(st.integers(0, 65535), st.binary(max_size=20)), max_size=4),
        st.booleans(),
    )
    def test_other_attributes_do_not_matter(
        self, tx: bytes, others: list[tuple[int, bytes]], first: bool
    ) -> None:
        more = b"".join(attribute(kind, value) for kind, value in others)
        datagram = request(more + SOFTWARE if first else SOFTWARE + more)
        datagram = datagram[:8] + tx + datagram[20:-8]
        datagram += struct.pack(">HHI", 0x8028, 4, zlib.crc32(datagram) ^ 0x5354554E)
        assert parse_request_untrusted(datagram) == tx

    @given(st.integers(0, 39), st.integers(1, 255))
    def test_a_changed_byte_is_refused(self, at: int, change: int) -> None:
        changed = bytearray(REQUEST)
        changed[at] ^= change
        with pytest.raises(RemoteProtocolError):
            parse_request_untrusted(bytes(changed))

    @pytest.mark.parametrize("size", [0, 11, 13])
    def test_a_transaction_id_of_wrong_length_is_not_packed(self, size: int) -> None:
        with pytest.raises(LocalProtocolError, match=f"id of {size} bytes"):
            pack_request(bytes(size))


def read(datagram: bytes, *, before: bytes = b"") -> bytes:
    """Read a datagram through a buffer that another datagram was in before."""
    reader = RequestReader()
    reader.buffer[: len(before)] = before
    size = min(len(datagram), len(reader.buffer))
    reader.buffer[:size] = datagram[:size]
    return reader.read_untrusted(size)


class TestRequestReader:
    @given(tx_ids)
    def test_the_usual_request_is_read(self, tx: bytes) -> None:
        found = read(pack_request(tx))
        assert found == tx
        assert type(found) is bytes

    def test_the_request_of_go_clients_is_read(self) -> None:
        assert read(REQUEST) == TX

    @pytest.mark.parametrize("at", range(40))
    def test_a_request_with_one_changed_byte_is_refused(self, at: int) -> None:
        with pytest.raises(RemoteProtocolError):
            read(REQUEST[:at] + bytes([REQUEST[at] ^ 1]) + REQUEST[at + 1 :])

    @pytest.mark.parametrize("size", range(40))
    def test_bytes_of_an_earlier_datagram_are_not_read(self, size: int) -> None:
        with pytest.raises(RemoteProtocolError):
            read(REQUEST[:size], before=REQUEST)

    def test_a_datagram_larger_than_the_buffer_is_refused(self) -> None:
        with pytest.raises(RemoteProtocolError, match="more than 1500 bytes"):
            read(request(SOFTWARE, attribute(0x7777, bytes(9000))))

    @given(
        st.integers(0, 39),
        st.integers(0, 255),
        st.sampled_from([REQUEST, request(SOFTWARE, attribute(0x7777, b"x"))]),
    )
    def test_fast_and_slow_parser_have_the_same_result(
        self, at: int, change: int, datagram: bytes
    ) -> None:
        changed = bytearray(datagram)
        changed[at] ^= change
        results = []
        for parse in (read, parse_request_untrusted):
            try:
                results.append(parse(bytes(changed)))
            except RemoteProtocolError as e:
                results.append(str(e).encode())
        assert results[0] == results[1]


class TestPackResponse:
    def test_an_ipv4_response_has_32_bytes_and_family_1(self) -> None:
        assert pack_response(TX, V4_ADDRESS.packed, PORT) == V4

    def test_an_ipv6_response_has_44_bytes_and_family_2(self) -> None:
        assert pack_response(TX, V6_ADDRESS.packed, PORT) == V6

    def test_a_mapped_address_is_written_as_ipv4(self) -> None:
        assert pack_response(TX, ip_address("::ffff:192.0.2.1").packed, PORT) == V4

    @pytest.mark.parametrize("size", [0, 5, 15, 17])
    def test_other_addresses_are_refused(self, size: int) -> None:
        with pytest.raises(LocalProtocolError, match="want 4 or 16"):
            pack_response(TX, bytes(size), PORT)

    def test_a_transaction_id_of_wrong_length_is_refused(self) -> None:
        with pytest.raises(LocalProtocolError, match="id of 11 bytes"):
            pack_response(TX[1:], bytes(4), PORT)

    @given(tx_ids, st.ip_addresses(), ports)
    def test_a_packed_response_is_read_back(
        self, tx: bytes, address: IPv4Address | IPv6Address, port: int
    ) -> None:
        found = parse_response_untrusted(pack_response(tx, address.packed, port))
        mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
        assert found == BindingResponse(tx, mapped or address, port)


XOR_V4 = V4[20:]
OTHER = attribute(0x0001, bytes.fromhex("00011388c6336407"))


class TestParseResponse:
    @pytest.mark.parametrize(
        ("datagram", "address"),
        [
            (V4, V4_ADDRESS),
            (V6, V6_ADDRESS),
            (
                bytes.fromhex(
                    "010100182112a442000102030405060708090a0b"
                    "002000140002a1472112a442000102030405f9f8c809080a"
                ),
                V4_ADDRESS,
            ),
            (response(attribute(0x8022, b"abc"), XOR_V4), V4_ADDRESS),
            (response(b"\x80\x20" + XOR_V4[2:]), V4_ADDRESS),
            (response(attribute(0x0001, bytes.fromhex("00018055c0000201"))), V4_ADDRESS),
            (response(XOR_V4, OTHER), V4_ADDRESS),
            (response(OTHER, XOR_V4), V4_ADDRESS),
            (response(b"\x80\x20" + XOR_V4[2:8] + bytes(4), XOR_V4), V4_ADDRESS),
            (response(attribute(0x0020, XOR_V4[4:] + b"surplus!")), V4_ADDRESS),
            (V4 + bytes.fromhex("deadbeef01"), V4_ADDRESS),
        ],
        ids=[
            "v4",
            "v6",
            "v4 in v6",
            "software of 3 bytes",
            "old type",
            "unmasked only",
            "masked first",
            "masked last",
            "the last counts",
            "surplus",
            "trailing junk",
        ],
    )
    def test_addresses_are_read(self, datagram: bytes, address: IPv4Address | IPv6Address) -> None:
        assert parse_response_untrusted(datagram) == BindingResponse(TX, address, PORT)

    @pytest.mark.parametrize(
        ("datagram", "why"),
        [
            (b"", "not a STUN message"),
            (V4[:19], "not a STUN message"),
            (response(XOR_V4, kind="0111"), "not a success response"),
            (response(XOR_V4, kind="0011"), "not a success response"),
            (REQUEST, "not a success response"),
            (V4[:-1], "shorter than it says"),
            (response(XOR_V4, length=8), "longer than its message"),
            (
                bytes.fromhex(
                    "010100112112a442000102030405060708090a0b002000080001a147e112a6438022000161"
                ),
                "longer than its message",
            ),
            (response(XOR_V4, b"\x80\x22\x00"), "half a header"),
            (
                response(XOR_V4, attribute(0x0001, bytes.fromhex("00058055c0000201"))),
                "malformed address",
            ),
            (response(attribute(0x0020, b"\x00\x01\x00")), "malformed address"),
            (response(attribute(0x0020, bytes.fromhex("0001a147e112a6"))), "malformed address"),
            (response(attribute(0x0020, bytes.fromhex("0002a147e112a643"))), "malformed address"),
            (response(), "without an address"),
            (response(attribute(0x8022, b"abc")), "without an address"),
        ],
    )
    def test_anything_else_is_refused(self, datagram: bytes, why: str) -> None:
        with pytest.raises(RemoteProtocolError, match=why):
            parse_response_untrusted(datagram)


@given(st.binary(max_size=80) | st.binary(max_size=60).map(lambda b: b"\x01\x01" + V4[2:20] + b))
def test_any_bytes_raise_only_remote_protocol_error(datagram: bytes) -> None:
    for parse in (parse_request_untrusted, read, parse_response_untrusted):
        try:
            parse(datagram)
        except RemoteProtocolError:
            pass
        else:
            assert is_stun(datagram)


@given(st.binary(max_size=60), st.sampled_from(["0001", "0101"]), st.integers(0, 80))
def test_any_attributes_raise_only_remote_protocol_error(
    body: bytes, kind: str, length: int
) -> None:
    datagram = response(body, kind=kind, length=length)
    for parse in (parse_request_untrusted, parse_response_untrusted):
        try:
            found = parse(datagram)
        except RemoteProtocolError:
            continue
        assert getattr(found, "tx_id", found) == TX


@pytest.mark.parametrize(
    ("datagram", "yes"),
    [(V4, True), (REQUEST[:20], True), (REQUEST[:19], False), (bytes(40), False)],
)
def test_stun_is_recognised(datagram: bytes, yes: bool) -> None:
    assert is_stun(datagram) is yes
