"""Fixtures for pytest; they need no plugin for asyncio, and work beside any.

`derp_relay`: a relay for one test. The marker `derp_relay` has its arguments.
`derp_clients`: two clients of that relay that can reach each other.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pyderp.blocking import Client
    from pyderp.testing.relays import RelayThread

# pytest imports this in every run, wherever pyderp is installed: what the fixtures need is
# imported when they are used.

__all__ = ["derp_clients", "derp_relay", "pytest_configure"]


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker; called by pytest."""
    config.addinivalue_line(
        "markers",
        "derp_relay(config=None, *, seed=0, tls=False): arguments of the relay that the "
        "fixture derp_relay starts",
    )


@pytest.fixture
def derp_relay(request: pytest.FixtureRequest) -> Iterator[RelayThread]:
    """Yields a relay on a free port of 127.0.0.1, in its own thread, with faults on demand."""
    from pyderp.testing.relays import RelayThread

    marker = request.node.get_closest_marker("derp_relay")
    args, kwargs = (marker.args, marker.kwargs) if marker is not None else ((), {})
    with RelayThread(*args, **kwargs) as relay:
        yield relay


@pytest.fixture
def derp_clients(derp_relay: RelayThread) -> Iterator[tuple[Client, Client]]:
    """Yields two connected blocking clients of `derp_relay`; their ServerInfo was read already."""
    from pyderp.blocking import Client
    from pyderp.client.config import ClientConfig
    from pyderp.net.settings import NetworkSettings
    from pyderp.wire.messages import ServerInfo

    tls = derp_relay.url.startswith("https:")
    # The region has the certificate's pin.
    config = ClientConfig(network=NetworkSettings(use_derp_http=not tls))
    with (
        Client.for_region(derp_relay.region, config=config) as one,
        Client.for_region(derp_relay.region, config=config) as other,
    ):
        for client in (one, other):
            while not isinstance(client.recv(), ServerInfo):
                pass
        yield one, other
