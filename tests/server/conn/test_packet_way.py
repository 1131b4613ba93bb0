"""Which functions run for a packet that comes alone, from the read to the write.

Each costs about a twentieth of a microsecond. `make bench` shows what a further one costs.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType

import pytest

import pyderp
from pyderp import ManualTLS, Relay
from pyderp.native import NativeUse, installed_version
from tests.server import dial
from tests.server.ways import way

ROOT = Path(pyderp.__file__).parent
ROOMS = (str(ROOT / "server"), str(ROOT / "relay"))
"""Folders of the functions that are traced; the client, in the same thread, uses others."""

READ = ["StagedReader.get_buffer", "StagedReader.buffer_updated"]
FLUSH = ["ConnectionContext.flush_turn", "Delivery.flush", "Delivery._flush_one"]
PLAIN = [
    *READ,
    *("StagedReader.arrived", "receive", "_relay_run"),
    *FLUSH,
    *("StagedWriter.send", "StagedWriter.write"),
]
TLS = [
    *READ,
    *("TLSLayer.receive", "SSLRecords.feed", "SSLRecords._decrypt"),
    *("StagedReader.arrived", "receive", "_relay_run"),
    *FLUSH,
    *("StagedWriter.send", "TLSLayer.send", "SSLRecords.seal"),
]
NATIVE_TLS = [
    *READ,
    "TLSLayer.receive",
    *("StagedReader.arrived", "receive_runs", "_relay_run"),
    *FLUSH,
    *("StagedWriter.send", "TLSLayer.send"),
]


@contextmanager
def _traced(found: list[str]) -> Iterator[None]:
    """Record each function of the relay that this thread enters, except its timer."""
    in_tick = False

    def on_event(frame: FrameType, event: str, _: object) -> None:
        nonlocal in_tick
        if not frame.f_code.co_filename.startswith(ROOMS):
            return
        if frame.f_code.co_name == "_tick":
            in_tick = event == "call"
        elif event == "call" and not in_tick:
            found.append(frame.f_code.co_qualname)

    before = sys.getprofile()
    sys.setprofile(on_event)
    try:
        yield
    finally:
        sys.setprofile(before)


@pytest.mark.parametrize(
    ("kind", "native", "expected"),
    [
        pytest.param("plain", NativeUse.OFF, PLAIN, id="plain"),
        pytest.param("tls1.3", NativeUse.OFF, TLS, id="tls"),
        pytest.param("tls1.3", NativeUse.ON, NATIVE_TLS, id="native tls"),
    ],
)
async def test_a_lone_packet_enters_these_functions(
    tls: ManualTLS, kind: str, native: NativeUse, expected: list[str]
) -> None:
    if native is NativeUse.ON and not installed_version():
        pytest.skip("pyderp-fast is not installed: make fast")
    config, via = way(kind, tls)
    found: list[str] = []

    async with Relay(replace(config, native=native)) as relay:
        source = await dial.connect(relay.address, via=via)
        destination = await dial.connect(relay.address, via=via)
        for traced in (contextlib.nullcontext(), _traced(found)):
            with traced:
                source.send(destination, bytes(1200))
                assert await destination.packet() == bytes(1200)
        await source.aclose()
        await destination.aclose()
    assert found == expected
