"""Turns the answers of a map's nodes into findings of `lint --online`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from pyderp.addresses import bracketed
from pyderp.defaults import HTTPS_PORT, STUN_PORT
from pyderp.errors import FailureReason
from pyderp.mapio.port80 import Port80
from pyderp.maps.lint import Finding
from pyderp.maps.region import PIN_PREFIX, DERPNode

__all__ = ["NO_ADDRESS", "Tried", "judge", "of_all"]

NO_ADDRESS: Final = "none"
"""`Tried.skipped` of a family that the node has no address of."""
_TIMES: Final = (FailureReason.CERTIFICATE_EXPIRED, FailureReason.CERTIFICATE_NOT_YET_VALID)


@dataclass
class Tried:
    """What came of trying one address family of a node."""

    name: str
    """`IPv4` or `IPv6`."""
    fault: str = ""
    """Why no TLS connection could be made; empty: it was made, or nothing was tried."""
    refusal: FailureReason | None = None
    """Why clients refuse the certificate, if `fault` is about the certificate."""
    skipped: str = ""
    """Why the family was not tried; empty: it was."""
    stun: bool | None = None
    """Whether the node answers STUN; `None`: the map says that it does not."""
    port_80: Port80 | None = None
    """What answers on port 80; `None`: clients do not ask there."""


def of_all(everything: Sequence[Tried]) -> Iterator[Finding]:
    """Yield the findings about all nodes of a map together."""
    reasons = [each.skipped for each in everything]
    if all(reasons) and any(reason != NO_ADDRESS for reason in reasons):
        yield Finding(
            rule="nothing-tried",
            path="Regions",
            text="this machine has no route to any node, so none was tried",
            advice="lint the map from a machine that has a route to them",
        )


def judge(path: str, node: DERPNode, tried: Sequence[Tried]) -> Iterator[Finding]:
    """Yield the findings about one node, from what came of each of its address families."""
    real = [each for each in tried if not each.skipped]
    yield from _about_skipped(path, node, tried)
    for each in real:
        if each.fault:
            yield _about_fault(path, node, each, [o.name for o in real if not o.fault])
    for each in real:
        if each.stun is False:
            yield Finding(
                rule="stun-silent",
                path=f"{path}.STUNPort",
                text=f"no answer to STUN by {each.name}: clients do not measure the node by it",
                advice=f"open UDP port {node.stun_port or STUN_PORT} to the relay, or write -1 in "
                "STUNPort",
            )
        if each.port_80 is not None and each.port_80.fault:
            yield _about_port_80(path, node, each.port_80)


def _about_port_80(path: str, node: DERPNode, answer: Port80) -> Finding:
    if answer.silent:
        return Finding(
            rule="port-80-silent",
            path=f"{path}.CanPort80",
            text=f"no HTTP on port 80 of {node.ipv4} ({answer.fault}): clients cannot use the node "
            "to detect captive portals",
            advice="open TCP port 80 to the relay, or remove CanPort80",
        )
    return Finding(
        rule="port-80-captive",
        path=f"{path}.CanPort80",
        text=f"http://{node.ipv4}/generate_204 does not answer as a relay ({answer.fault}): "
        "clients take that for a captive portal",
        advice="let the relay answer on port 80, or remove CanPort80",
    )


def _about_skipped(path: str, node: DERPNode, tried: Sequence[Tried]) -> Iterator[Finding]:
    if tried and all(each.skipped == NO_ADDRESS for each in tried):
        yield Finding(
            rule="node-silent",
            path=f"{path}.HostName",
            text=f"the name {node.host_name!r} has no address",
            advice="correct the name, or write IPv4 or IPv6",
        )
    for each in tried:
        if each.skipped not in ("", NO_ADDRESS):
            yield Finding(
                rule="not-tried",
                path=f"{path}.{each.name}",
                text=f"not tried: {each.skipped}",
                advice=f"lint the map from a machine that has {each.name}",
            )


def _about_fault(path: str, node: DERPNode, tried: Tried, others: Sequence[str]) -> Finding:
    text = f"{tried.name} does not work: {tried.fault}"
    if tried.refusal is not None:
        member, advice = _wrong_member(node, tried.refusal)
        return Finding(rule="certificate", path=f"{path}.{member}", text=text, advice=advice)
    literal = node.ipv4 if tried.name == "IPv4" else node.ipv6
    member = tried.name if literal else "HostName"
    if others:
        rule = "family-silent"
        advice = f"let the relay answer by {tried.name}, or write 'none' in {tried.name}"
    else:
        rule = "node-silent"
        advice = "start the relay, open its port, or correct HostName, DERPPort, IPv4 and IPv6"
    return Finding(rule=rule, path=f"{path}.{member}", text=text, advice=advice)


def _wrong_member(node: DERPNode, refusal: FailureReason) -> tuple[str, str]:
    """Return the member that does not fit the certificate, and the advice for the operator."""
    pinned = node.cert_name.startswith(PIN_PREFIX)
    if refusal in _TIMES:
        return "HostName", "renew the relay's certificate, and set the clocks of both machines"
    if pinned and refusal is FailureReason.CERTIFICATE_OTHER_NAME:
        return "HostName", (
            "write a name that the certificate is for, and the address in IPv4 or IPv6; CertName "
            "is right"
        )
    if pinned:
        where = f"https://{bracketed(node.host_name)}:{node.derp_port_or(HTTPS_PORT)}"
        return "CertName", f"correct CertName: `pyderp map show {where}` shows the current pin"
    if refusal is FailureReason.CERTIFICATE_OTHER_NAME:
        member = "CertName" if node.cert_name else "HostName"
        return member, f"write a name in {member} that the certificate is for"
    return "HostName", (
        "give the relay a certificate that clients trust, or write its pin in CertName"
    )
