"""Rules about one node."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from pyderp.addresses import bracketed, ip_literal
from pyderp.maps.lint.finding import Finding, families, unknown_members
from pyderp.maps.region import NODE_NAMES, PIN_PREFIX, DERPNode, node_errors

__all__ = ["of_node"]

_NONE: Final = "none"


def of_node(node: DERPNode, number: int, path: str) -> Iterator[Finding]:
    """Yield the findings about a node alone; `number` is the id of its region."""
    for error in node_errors(node, number):
        yield Finding(
            rule="node-value",
            path=path,
            text=error,
            advice="correct it: no client can use the node as it is written",
        )
    if not node.name:
        yield Finding(
            rule="no-name",
            path=f"{path}.Name",
            text="no Name: reports and errors cannot name the node, and derpprobe refuses the map",
            advice=f"give it a name that is unique in the map, such as {number}a",
        )
    yield from _addresses(node, path)
    literal = ip_literal(node.ipv4)
    if node.can_port_80 and (literal is None or literal.version != 4):
        yield Finding(
            rule="port-80-unused",
            path=f"{path}.CanPort80",
            text="CanPort80 has no effect without an address in IPv4: clients use only that one to "
            "detect captive portals",
            advice="write the relay's address in IPv4, or remove CanPort80",
        )
    if (
        ip_literal(node.host_name) is not None
        and not node.cert_name
        and not node.insecure_for_tests
        and not node.stun_only
    ):
        yield Finding(
            rule="ip-without-pin",
            path=f"{path}.HostName",
            text=f"{node.host_name} is an IP address without a pin: clients refuse its certificate,"
            " unless an authority issued it for the address",
            advice=f"write the pin in CertName, {PIN_PREFIX}…; `pyderp map show https://"
            f"{bracketed(node.host_name)}` shows it",
        )
    yield from _for_tests(node, path)
    yield from unknown_members(node.unknown, path, NODE_NAMES)


def _for_tests(node: DERPNode, path: str) -> Iterator[Finding]:
    for name, is_set, does in (
        ("InsecureForTests", node.insecure_for_tests, "clients do not verify the certificate"),
        ("STUNTestIP", bool(node.stun_test_ip), "clients send STUN to another address than DERP"),
    ):
        if is_set:
            yield Finding(
                rule="for-tests",
                path=f"{path}.{name}",
                text=f"{name} is for tests: {does}",
                advice="remove it",
            )


def _addresses(node: DERPNode, path: str) -> Iterator[Finding]:
    for name, value, version in (("IPv4", node.ipv4, 4), ("IPv6", node.ipv6, 6)):
        literal = ip_literal(value)
        if value == _NONE:
            yield Finding(
                rule="derpprobe",
                path=f"{path}.{name}",
                text="derpprobe takes 'none' for an address and reports a failing UDP probe; for "
                f"clients it means that the node has no {name}",
                advice="ignore that probe",
            )
        elif value and (literal is None or literal.version != version):
            yield Finding(
                rule="not-an-address",
                path=f"{path}.{name}",
                text=f"{value!r} is not an {name} address, so clients do not use {name} at all",
                advice="correct it, remove it so that clients look up the name, or write 'none'",
            )
    has_4, has_6 = families(node)
    if not has_4 and not has_6:
        if node.host_name:  # without one, `node_errors` has reported the node
            yield Finding(
                rule="no-address",
                path=path,
                text="both IPv4 and IPv6 are turned off: no client can reach the node",
                advice="remove IPv4 or IPv6, or write an address of the family",
            )
    elif not has_4:
        yield Finding(
            rule="ipv6-only",
            path=f"{path}.IPv4",
            text="clients without IPv6 cannot reach the node"
            + ("" if node.ipv6 else ", and others only if its name has an IPv6 address"),
            advice="give the node an IPv4 address, or add a node that has one to the region",
        )
