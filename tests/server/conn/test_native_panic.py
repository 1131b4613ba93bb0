"""A panic in the native part ends its connection, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest

from pyderp import ManualTLS, Relay, RelayConfig
from pyderp.native import NativeUse, installed_version
from pyderp.relay.connection import EndReason
from pyderp.server.conn.protocol import RelayProtocol
from pyderp.server.conn.tls import TLSLayer
from tests.server import dial
from tests.server.ways import over_tls


@pytest.mark.skipif(not installed_version(), reason="pyderp-fast is not installed: make fast")
async def test_a_panic_ends_one_connection(
    tls: ManualTLS, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    config = RelayConfig(tls=tls, native=NativeUse.ON)
    async with Relay(config) as relay:
        broken, other, third = [await dial.connect(relay.address, via=over_tls()) for _ in range(3)]
        _records_of(relay, broken)._inject_panic()
        broken.send(other, b"never arrives")
        await broken.closed()
        other.send(third, b"goes on")
        assert await third.packet() == b"goes on"
        assert relay._running().router.counters.ends[EndReason.PROTOCOL_ERROR] == 1
        for client in (broken, other, third):
            await client.aclose()
    (warning,) = [each for each in caplog.messages if "closed: TLS: " in each]
    assert warning.endswith("TLS: internal error in the TLS engine")
    # Only the first ten panics are printed.
    on_stderr = capfd.readouterr().err.splitlines()
    assert len(on_stderr) == 1
    assert on_stderr[0].startswith("pyderp-fast: panicked at ")
    assert on_stderr[0].endswith("; please report it")


def _records_of(relay: Relay, client: dial.Client) -> Any:
    for protocol in relay._running().protocols:
        assert isinstance(protocol, RelayProtocol)
        if protocol.connection is not None and protocol.connection.public == client.key:
            assert isinstance(protocol.outmost, TLSLayer)
            return protocol.outmost._records
    raise AssertionError("it is not logged in")
