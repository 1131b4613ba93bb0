"""Problems that pyderp's relay reports are in a real `tailscale status` until they end."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import pytest

from tests.server.certificates import write_pair

from .namespaces import HUB_ADDRESS
from .peers import need_namespaces
from .processes import eventually
from .tailnet import REGION_ID, Relay, tailnet

if TYPE_CHECKING:
    from pathlib import Path

    from .tailnet import Node

pytestmark = pytest.mark.timeout(120)


def test_a_certificate_that_expires_soon_is_shown_until_it_is_renewed(tmp_path: Path) -> None:
    """Every client of the relay gets the problem, and its end."""
    need_namespaces()
    certificates = tmp_path / "certs"
    certificates.mkdir()
    write_pair(certificates, HUB_ADDRESS, days=5)
    with tailnet(Relay("pyderp", tls=True), tmp_path) as net:
        problem = (
            f"The relay server #{REGION_ID} is reporting an issue: "
            f"the relay's certificate for {HUB_ADDRESS} expires on "
        )
        for node in (net.a, net.b):
            eventually(f"the problem at {node.name}", partial(shows, node, problem))
        text = net.a.cli("status").stdout
        assert "# Health check:" in text
        assert problem in text
        write_pair(certificates, HUB_ADDRESS, days=60)
        for node in (net.a, net.b):
            eventually(f"{node.name} well again", partial(is_well, node))


def shows(node: Node, problem: str) -> bool:
    """Whether a node's status warns of a problem that begins so."""
    return any(line.startswith(problem) for line in node.status()["Health"])


def is_well(node: Node) -> bool:
    """Whether a node's status has no warning."""
    return not node.status()["Health"]
