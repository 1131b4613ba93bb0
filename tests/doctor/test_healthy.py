"""Healthy relays of several kinds: no check warns or fails."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from pyderp import Relay, RelayConfig

from .support import (
    OK,
    Handler,
    assert_fine,
    headscale,
    hyper_derp,
    look_at,
    results,
    run,
    serving,
    tls_files,
    tls_relay,
    troubles,
)


@pytest.mark.parametrize("deep", [False, True], ids=["quick", "deep"])
def test_a_relay_with_tls_is_healthy(tmp_path: Path, deep: bool) -> None:
    files = tls_files(tmp_path)

    async def main() -> None:
        async with tls_relay(files, stun_port=0) as (relay, url):
            node = relay.map_node
            assert node is not None
            found = await look_at(url, files.settings(deep=deep), stun_port=node.stun_port)
        assert_fine(found)
        good = {name for name, result in results(found).items() if result == "ok"}
        # Skipped checks do not apply here.
        assert set(found) - good == {
            "names.ipv6", "tcp.ipv6", "stun.ipv6", "tls.pin", "tls.addresses", "http.port80",
        }  # fmt: skip

    run(main())


def test_a_relay_without_tls_is_healthy() -> None:
    async def main() -> None:
        async with Relay() as relay:
            found = await look_at(relay.url)
        assert_fine(found)
        assert not results(found, "tls")
        assert found["relay.speed"].seen.data["bytes_per_second"] > 0  # type: ignore[operator]

    run(main())


@pytest.mark.parametrize(
    ("kind", "expected"),
    [(headscale, []), (hyper_derp, ["http.websocket"])],
    ids=["headscale", "hyper"],
)
def test_relays_of_other_projects_are_healthy(
    tmp_path: Path, kind: object, expected: list[str]
) -> None:
    """Features that clients do not need may be missing."""
    files = tls_files(tmp_path)
    assert callable(kind)

    async def main() -> None:
        async with Relay() as relay:
            handler: Handler = kind(relay.address[1])
            async with serving(handler, tls=files.server()) as port, serving(handler) as plain:
                found = await look_at(
                    f"https://localhost:{port}", files.settings(), http_port=plain
                )
        assert troubles(found) == expected
        left_out = [name for name, result in results(found).items() if result == "skip"]
        assert {"tls.meta", "http.faststart", "http.port80"} <= set(left_out)
        assert results(found, "relay") == dict.fromkeys(results(found, "relay"), "ok")

    run(main())


def test_a_relay_over_ipv6_only_has_a_warning() -> None:
    """All works, and the missing IPv4 is a warning."""
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            pass
    except OSError:
        pytest.skip("this machine has no IPv6")

    async def main() -> None:
        async with Relay(RelayConfig(address="[::1]:0", stun_port=0)) as relay:
            port = relay.stun_addresses[0][1]
            found = await look_at(f"http://[::1]:{relay.address[1]}", stun_port=port)
        assert troubles(found) == ["names.any"]
        assert found["stun.ipv6"].result is found["relay.packet"].result is OK

    run(main())
