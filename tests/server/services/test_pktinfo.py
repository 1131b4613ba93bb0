"""The destination address that the kernel reports for a datagram, and how to answer from it."""

from __future__ import annotations

import socket
import sys
from ipaddress import IPv6Address, ip_address

import pytest

from pyderp.server.services import pktinfo
from pyderp.server.services.pktinfo import Ancillary, AnswerSources, enable_pktinfo

V4 = (socket.IPPROTO_IP, 8)
V6 = (socket.IPPROTO_IPV6, 50)
INTERFACE = (7).to_bytes(4, sys.byteorder)


def v4(local: str, header: str | None = None) -> tuple[int, int, bytes]:
    """IP_PKTINFO: interface, our address, destination in the header."""
    data = INTERFACE + ip_address(local).packed + ip_address(header or local).packed
    return (*V4, data)


def v6(local: str) -> tuple[int, int, bytes]:
    """IPV6_PKTINFO: destination, interface."""
    return (*V6, ip_address(local).packed + INTERFACE)


def answer_v4(local: str) -> Ancillary:
    return [(*V4, bytes(4) + ip_address(local).packed + bytes(4))]


def answer_v6(local: str, interface: bytes = bytes(4)) -> Ancillary:
    return [(*V6, ip_address(local).packed + interface)]


@pytest.mark.parametrize(
    ("reported", "answer"),
    [
        ([v4("192.0.2.1")], answer_v4("192.0.2.1")),
        ([v4("192.0.2.1", "192.0.2.255")], answer_v4("192.0.2.1")),
        ([v6("2001:db8::1")], answer_v6("2001:db8::1")),
        ([v6("::ffff:192.0.2.1"), v4("192.0.2.1")], answer_v4("192.0.2.1")),
        ([v4("192.0.2.1"), v6("::ffff:192.0.2.1")], answer_v4("192.0.2.1")),
        ([v6("::ffff:192.0.2.1")], answer_v6("::ffff:192.0.2.1")),
        ([v6("fe80::1")], answer_v6("fe80::1", INTERFACE)),
        ([v6("febf::1")], answer_v6("febf::1", INTERFACE)),
        ([v6("fec0::1")], answer_v6("fec0::1")),
        ([(socket.IPPROTO_IP, 2, bytes(4)), v4("192.0.2.1")], answer_v4("192.0.2.1")),
        ([(socket.SOL_SOCKET, 8, bytes(12)), v6("::1")], answer_v6("::1")),
    ],
    ids=[
        "IPv4",
        "broadcast",
        "IPv6",
        "IPv4 on a socket for both",
        "the other way round",
        "IPv4 named by IPv6 only",
        "link-local keeps its interface",
        "the last link-local",
        "no more link-local",
        "another message before it",
        "another level",
    ],
)
def test_an_answer_leaves_from_the_address_of_the_request(
    reported: Ancillary, answer: Ancillary
) -> None:
    assert AnswerSources().of(reported) == answer


@pytest.mark.parametrize(
    "reported",
    [
        v4("0.0.0.0"),
        v4("224.0.0.1"),
        v4("239.255.255.255"),
        v6("::"),
        v6("::ffff:0.0.0.0"),
        v6("ff02::1"),
    ],
    ids=lambda reported: str(reported[1]) + reported[2].hex(),
)
def test_for_multicast_and_unspecified_addresses_the_kernel_chooses(
    reported: tuple[int, int, bytes],
) -> None:
    assert AnswerSources().of([reported]) == []


@pytest.mark.parametrize("reported", ["223.255.255.255", "240.0.0.1"])
def test_addresses_next_to_the_multicast_range_are_unicast(reported: str) -> None:
    assert AnswerSources().of([v4(reported)]) == answer_v4(reported)


@pytest.mark.parametrize(
    "reported", [[], [(*V4, bytes(11))], [(*V6, bytes(19))], [(socket.IPPROTO_IP, 2, bytes(12))]]
)
def test_without_pktinfo_there_is_no_source(reported: Ancillary) -> None:
    assert AnswerSources().of(reported) is None


def test_any_number_of_addresses_takes_bounded_memory() -> None:
    sources = AnswerSources()
    first = int(IPv6Address("2001:db8::"))
    for number in range(3 * pktinfo._MOST_REMEMBERED):
        host = str(IPv6Address(first + number))
        assert sources.of([v6(host)]) == sources.of([v6(host)]) == answer_v6(host)
        assert len(sources._known) <= pktinfo._MOST_REMEMBERED


def bound(family: int, host: str) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_DGRAM)
    sock.bind((host, 0))
    return sock


@pytest.mark.skipif(sys.platform != "linux", reason="Linux only")
@pytest.mark.parametrize(
    ("family", "host", "enabled"),
    [
        (socket.AF_INET, "0.0.0.0", True),
        (socket.AF_INET6, "::", True),
        (socket.AF_INET6, "::ffff:0.0.0.0", True),
        (socket.AF_INET, "127.0.0.1", False),
        (socket.AF_INET6, "::1", False),
    ],
)
def test_only_a_socket_for_all_addresses_gets_the_destination(
    family: int, host: str, enabled: bool
) -> None:
    with bound(family, host) as sock:
        assert enable_pktinfo(sock) is enabled
        assert sock.getsockopt(*V4) == enabled
        if family == socket.AF_INET6:
            assert sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO) == enabled


def test_pktinfo_is_not_enabled_on_other_systems(monkeypatch: pytest.MonkeyPatch) -> None:
    with bound(socket.AF_INET, "0.0.0.0") as sock:
        monkeypatch.setattr(sys, "platform", "darwin")
        assert enable_pktinfo(sock) is False
