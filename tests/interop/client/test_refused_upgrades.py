"""A URL with a path that is not DERP's: the error says so, with TLS and without."""

from __future__ import annotations

import pytest

from pyderp import Client, ConnectError, ServerInfo, UpgradeRejected, is_transient
from tests.interop.relays import KINDS, Kind, Setup

from .support import GetRelay, config, url, within


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("setup", ["plain", "named"])
@pytest.mark.parametrize("path", ["", "/", "/derpx"])
async def test_the_error_names_the_wrong_path(
    relays: GetRelay, kind: Kind, setup: Setup, path: str
) -> None:
    """Both relays have a home page at `/`, and derper has it at every path."""
    relay = relays(kind, setup)

    base = url(relay).removesuffix("/derp")
    async with Client.for_url(base + path, config=config(relay)) as client:
        for _ in range(2):
            with pytest.raises(ConnectError) as caught:
                await within(client.recv())
            (cause,) = caught.value.attempts
            assert isinstance(cause, UpgradeRejected)
            assert cause.status in (200, 404)
            text = f"(the URL's path is {path or '/'}; that of relays is /derp)"
            assert text in str(caught.value)
            assert not is_transient(caught.value)
        with pytest.raises(ConnectError):
            await within(anext(client.messages()))
    async with Client.for_url(url(relay), config=config(relay)) as client:
        assert isinstance(await within(client.recv()), ServerInfo)
