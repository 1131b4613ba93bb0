"""Every handshake presents the leaf and the meta certificate, also with many at once."""

from __future__ import annotations

import asyncio
import ssl

import pyderp
from pyderp import ManualTLS, RelayConfig
from pyderp.wire.metacert import scan_chain_untrusted
from tests.server.dial import hang_up, open_stream
from tests.server.ways import over_tls

AT_ONCE = 10
TIMES = 10


async def presented(address: tuple[str, int]) -> list[bytes]:
    """Return the chain that the relay presents, as DER."""
    _, writer = await open_stream(address, over_tls())
    under = writer.get_extra_info("ssl_object")._sslobj
    chain = [ssl.PEM_cert_to_DER_cert(each.public_bytes()) for each in under.get_unverified_chain()]
    await hang_up(writer)
    return chain


async def test_a_hundred_handshakes_present_the_same_two_certificates(tls: ManualTLS) -> None:
    """Twin of TestModifyTLSConfigToAddMetaCert: nothing accumulates in the shared context."""

    async def client(address: tuple[str, int]) -> list[list[bytes]]:
        return [await presented(address) for _ in range(TIMES)]

    async with pyderp.Relay(RelayConfig(tls=tls)) as relay:
        first = await presented(relay.address)
        assert len(first) == 2
        assert scan_chain_untrusted(first[1:]) == (relay.public_key, 2)
        seen = await asyncio.gather(*(client(relay.address) for _ in range(AT_ONCE)))
        assert seen == [[first] * TIMES] * AT_ONCE
