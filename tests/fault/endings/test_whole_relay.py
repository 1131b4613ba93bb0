"""A stopped relay leaves nothing, with all its parts in use."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import pyderp
from pyderp import AdmissionConfig, ManualTLS, MeshKey
from tests.leftovers import none_left
from tests.server.dial import connect
from tests.server.ways import way


@pytest.mark.parametrize("kind", ["plain", "tls1.3"])
async def test_nothing_is_left_of_a_relay(kind: str, tls: ManualTLS, tmp_path: Path) -> None:
    rates = tmp_path / "rates.json"
    rates.write_text("{}")
    config, via = way(kind, tls)
    config = replace(
        config,
        admission=AdmissionConfig(decide=lambda key, address: True),
        mesh_key=MeshKey(bytes(31) + b"\1"),
        rate_config=rates,
        rtt_stats=True,
        stun_port=0,
        stun_host="127.0.0.1",
    )

    async def life() -> None:
        async with pyderp.Relay(config) as relay:
            client = await connect(relay.address, via=via)
            await client.aclose()

    await life()
    async with none_left():
        await life()
