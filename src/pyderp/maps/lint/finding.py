"""A finding of a rule, the names of all rules, and what rules share."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Final

from pyderp import gojson
from pyderp.addresses import ip_literal
from pyderp.maps.region import DERPNode

__all__ = ["FIRST_OWN", "LAST_OWN", "RULES", "Finding", "Severity", "families", "node_path"]
__all__ += ["region_path", "unknown_members"]

FIRST_OWN: Final = 900
LAST_OWN: Final = 999
"""Region ids that Tailscale reserves for relays that users run themselves."""


class Severity(Enum):
    """How severe a finding is."""

    ERROR = "error"
    """Clients cannot use the part of the map, or they use something else than is written there."""
    WARNING = "warning"
    """It works, but probably not as it is meant, or not for every client."""
    HINT = "hint"
    """It works as it is written; the finding says what that means for clients."""


RULES: Final[Mapping[str, Severity]] = {
    "no-regions": Severity.ERROR,
    "no-nodes": Severity.ERROR,
    "region-id": Severity.ERROR,
    "node-value": Severity.ERROR,
    "duplicate-name": Severity.ERROR,
    "duplicate-key": Severity.ERROR,
    "no-address": Severity.ERROR,
    "stun-only-region": Severity.ERROR,
    "no-home": Severity.ERROR,
    "stun-only-first": Severity.WARNING,
    "pin-conflict": Severity.WARNING,
    "ip-without-pin": Severity.WARNING,
    "port-80": Severity.WARNING,
    "port-80-unused": Severity.WARNING,
    "no-name": Severity.WARNING,
    "null-member": Severity.WARNING,
    "own-id": Severity.WARNING,
    "ipv6-only": Severity.WARNING,
    "not-an-address": Severity.WARNING,
    "omits-default-regions": Severity.WARNING,
    "duplicate-code": Severity.WARNING,
    "same-relay": Severity.WARNING,
    "no-stun": Severity.WARNING,
    "for-tests": Severity.WARNING,
    "avoid": Severity.WARNING,
    "score": Severity.WARNING,
    "place": Severity.WARNING,
    "misspelled": Severity.WARNING,
    "region-code": Severity.WARNING,
    "unknown-member": Severity.HINT,
    "one-region": Severity.HINT,
    "null-region": Severity.HINT,
    "derpprobe": Severity.HINT,
    # Rules of `lint --online`
    "node-silent": Severity.ERROR,
    "certificate": Severity.ERROR,
    "port-80-captive": Severity.ERROR,
    "nothing-tried": Severity.WARNING,
    "family-silent": Severity.WARNING,
    "stun-silent": Severity.WARNING,
    "port-80-silent": Severity.WARNING,
    "not-tried": Severity.HINT,
}
"""The severity of each rule. Names of rules are public: they do not change."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One mistake or remark that a rule found."""

    rule: str
    path: str
    """The member, such as `Regions["900"].Nodes[0].DERPPort`; empty: the whole map."""
    text: str
    """What is wrong, and what clients do because of it."""
    advice: str
    """What to change in the map."""

    @property
    def severity(self) -> Severity:
        """The severity of the rule."""
        return RULES[self.rule]


def region_path(number: int) -> str:
    """Return the path of a region."""
    return f'Regions["{number}"]'


def node_path(number: int, index: int) -> str:
    """Return the path of a node of a region."""
    return f"{region_path(number)}.Nodes[{index}]"


def families(node: DERPNode) -> tuple[bool, bool]:
    """Return whether the map lets clients reach a node by IPv4, and by IPv6.

    A name that clients look up counts for both: it may have addresses of either family.
    """
    return _has_family(node.ipv4, node.host_name, 4), _has_family(node.ipv6, node.host_name, 6)


def _has_family(address: str, host: str, version: int) -> bool:
    literal = ip_literal(address or host)
    return literal.version == version if literal is not None else not address and bool(host)


def unknown_members(
    members: Mapping[str, object], path: str, names: tuple[str, ...]
) -> Iterator[Finding]:
    """Yield a finding for each unknown member, with the known name that is most similar."""
    for member in members:
        where = f"{path}.{member}" if path else member
        if meant := _similar_name(gojson.same_name(member), names):
            yield Finding(
                rule="misspelled",
                path=where,
                text=f"clients know no member {member!r} and ignore it",
                advice=f"write {meant}, if that is meant",
            )
        else:
            yield Finding(
                rule="unknown-member",
                path=where,
                text=f"neither pyderp nor Tailscale's clients know {member!r}; pyderp keeps it",
                advice="remove it, unless another program reads it",
            )


@functools.lru_cache(maxsize=4096)
def _similar_name(folded: str, names: tuple[str, ...]) -> str:
    """Return the known name that an unknown one is similar to, or an empty text."""
    by_fold = {gojson.same_name(name): name for name in names}
    close = difflib.get_close_matches(folded[:40], by_fold, n=1, cutoff=0.75)
    return by_fold[close[0]] if close else ""
