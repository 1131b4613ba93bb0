"""What the addresses of interfaces say about the families that may lead anywhere."""

from __future__ import annotations

import sys
from ipaddress import ip_address

import pytest

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
def test_judgement(interfaces: list[Interface], want: tuple[bool, bool, bool]) -> None:
    assert judge(interfaces) == HostNetwork(*want)


@pytest.mark.skipif(sys.platform != "linux", reason="netlink is Linux's")
def test_the_kernel_lists_the_loopback_interface() -> None:
    (lo,) = [each for each in read_interfaces() if each.loopback]
    assert lo.up
    assert ip_address("127.0.0.1") in lo.addresses
    assert (ip_address("::1") in lo.addresses) == os_has_ipv6()
    host_network()
