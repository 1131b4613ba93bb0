"""Which families the addresses of interfaces allow."""

from __future__ import annotations

import errno
import socket
import struct
import sys
from ipaddress import ip_address

import pytest

from pyderp.netcheck import interfaces as module
from pyderp.netcheck.interfaces import (
    HostNetwork,
    Interface,
    host_network,
    judge,
    os_has_ipv6,
    read_interfaces,
)


def interface(*addresses: str, name: str = "eth0", up: bool = True) -> Interface:
    return Interface(name, up, name == "lo", tuple(map(ip_address, addresses)))


LO = interface("127.0.0.1", "::1", name="lo")


@pytest.mark.parametrize(
    ("interfaces", "want"),
    [
        pytest.param([LO], (False, False, False), id="loopback"),
        pytest.param([LO, interface("192.0.2.1")], (True, False, True), id="v4"),
        pytest.param([LO, interface("10.0.0.1")], (True, False, True), id="private"),
        pytest.param([interface("169.254.1.1", "fe80::1")], (False, False, True), id="link-local"),
        pytest.param([interface("2001:db8::1")], (False, True, True), id="v6"),
        pytest.param([interface("fd00::1")], (False, True, True), id="unique-local"),
        pytest.param([interface("fd7a:115c:a1e0::1")], (False, False, True), id="overlay"),
        pytest.param([interface("192.0.2.1", up=False)], (False, False, False), id="down"),
        pytest.param([interface("100.64.0.1", name="tailscale0")], (False,) * 3, id="tailscale"),
        pytest.param([interface("172.17.0.1", name="docker0")], (True, False, False), id="docker"),
        pytest.param([interface()], (False, False, False), id="no-address"),
    ],
)
def test_addresses_decide_the_families(
    interfaces: list[Interface], want: tuple[bool, bool, bool]
) -> None:
    assert judge(interfaces) == HostNetwork(*want)


@pytest.mark.skipif(sys.platform != "linux", reason="netlink is Linux's")
def test_the_kernel_lists_the_loopback_interface() -> None:
    (lo,) = [each for each in read_interfaces() if each.loopback]
    assert lo.up
    assert ip_address("127.0.0.1") in lo.addresses
    assert (ip_address("::1") in lo.addresses) == os_has_ipv6()
    host_network()


QUESTION, WANTED, DONE, ERROR = 18, 16, 3, 2


class Kernel:
    """A netlink socket whose kernel answers with these datagrams, again and again."""

    def __init__(self, *replies: bytes) -> None:
        self.replies = replies
        self.asked = b""
        self.received = 0

    def send(self, data: bytes) -> None:
        self.asked = data

    def recv(self, size: int) -> bytes:
        reply = self.replies[self.received % len(self.replies)]
        self.received += 1
        return reply[:size]


def netlink(kind: int, body: bytes = b"", *, serial: int = QUESTION, size: int = -1) -> bytes:
    """A message, padded to four bytes."""
    size = 16 + len(body) if size < 0 else size
    return struct.pack("=IHHII", size, kind, 0, serial, 0) + body + bytes(-len(body) % 4)


def dump(kernel: Kernel) -> list[bytes]:
    return list(module._dump(kernel, QUESTION, WANTED))  # type: ignore[arg-type]


def test_messages_of_other_kinds_and_questions_are_left_out() -> None:
    kernel = Kernel(
        netlink(WANTED, b"one") + netlink(20, b"other") + netlink(WANTED, b"old", serial=1),
        netlink(DONE, serial=1) + netlink(WANTED, b"two!"),
        netlink(DONE) + netlink(WANTED, b"too late"),
    )
    assert dump(kernel) == [b"one", b"two!"]
    assert struct.unpack("=IHHII", kernel.asked[:16]) == (17, QUESTION, 0x301, QUESTION, 0)


@pytest.mark.parametrize(
    ("reply", "error", "text"),
    [
        pytest.param(netlink(WANTED, size=15), ValueError, "shorter than its header", id="short"),
        pytest.param(netlink(ERROR), OSError, "with an error", id="error"),
        pytest.param(netlink(WANTED, b"x"), OSError, "more than 1000 replies", id="endless"),
        pytest.param(b"short", OSError, "more than 1000 replies", id="no header"),
    ],
)
def test_other_answers_of_the_kernel_are_errors(
    reply: bytes, error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        dump(Kernel(reply))


def test_attributes_end_where_one_is_shorter_than_its_header() -> None:
    good = struct.pack("=HH", 7, 3) + b"lo\0" + b"\0"
    assert list(module._attributes(good + struct.pack("=HH", 3, 1) + good)) == [(3, b"lo\0")]


def test_routes_are_asked_for_where_interfaces_cannot_be_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail() -> list[Interface]:
        raise OSError(errno.EPERM, "no netlink here")

    monkeypatch.setattr(module, "read_interfaces", fail)
    monkeypatch.setattr(module, "_has_route", lambda family, host: family == socket.AF_INET)
    assert host_network() == HostNetwork(have_v4=True, have_v6=False, have_interface=True)
    monkeypatch.setattr(module, "_has_route", lambda family, host: False)
    assert host_network() == HostNetwork(have_v4=False, have_v6=False, have_interface=False)


def test_a_route_is_there_if_a_datagram_could_be_sent() -> None:
    assert module._has_route(socket.AF_INET, "127.0.0.1")
    # The kernel refuses a broadcast unless the socket asks for it.
    assert not module._has_route(socket.AF_INET, "255.255.255.255")


def test_ipv6_is_absent_where_no_socket_can_be_made(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EAFNOSUPPORT, "no IPv6")

    monkeypatch.setattr(socket, "socket", refuse)
    assert not os_has_ipv6()
