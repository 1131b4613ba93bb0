"""A client of a URL with a pin: that certificate and no other."""

from __future__ import annotations

import asyncio

import pytest

from pyderp import (
    CertificateError,
    Client,
    ClientConfig,
    ConfigError,
    ConnectError,
    FailureReason,
    NetworkSettings,
    PinMismatch,
    blocking,
)
from pyderp.testing import FaultyRelay, RelayThread

from .fakes import DIRECT, bounded

ZEROS = "0" * 64


def pin_of(relay: FaultyRelay | RelayThread) -> str:
    return relay.region.nodes[0].cert_name.removeprefix("sha256-raw:")


def with_colons(pin: str) -> str:
    return ":".join(pin[i : i + 2] for i in range(0, 64, 2)).upper()


@pytest.mark.parametrize("websocket", [False, True])
async def test_the_pinned_certificate_needs_no_authority(websocket: bool) -> None:
    async with FaultyRelay(tls=True) as relay, bounded():
        pin = pin_of(relay)
        config = ClientConfig(network=DIRECT, websocket=websocket)
        for text in (pin, pin.upper(), f"sha256-raw:{pin}", with_colons(pin)):
            async with Client.for_url(relay.url, config=config, pin=text) as client:
                await client.connect()
                assert client.tls_state is not None
        async with Client.for_url(relay.url, config=config) as client:
            with pytest.raises(ConnectError, match="unable to get local issuer"):
                await client.connect()


@pytest.mark.parametrize("websocket", [False, True])
async def test_another_certificate_is_refused_before_anything_is_sent(websocket: bool) -> None:
    config = ClientConfig(network=DIRECT, websocket=websocket)
    async with (
        FaultyRelay(tls=True) as relay,
        Client.for_url(relay.url, config=config, pin=ZEROS) as client,
        bounded(),
    ):
        with pytest.raises(ConnectError, match="cert hash does not match") as caught:
            await client.connect()
        assert [type(e) for e in caught.value.attempts] == [PinMismatch]
        assert relay.relay.counters.bytes_received == relay.relay.counters.derp_accepts == 0


async def test_the_pinned_certificate_must_be_for_the_name_of_the_url() -> None:
    """A certificate need not name an IP address of the URL; it must name a DNS name."""
    async with FaultyRelay(tls=True) as relay, bounded():

        async def dialer(
            _host: str, _port: int
        ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
            return await asyncio.open_connection(*relay.address)

        config = ClientConfig(network=DIRECT, dialer=dialer)
        for host, good in (
            ("192.0.2.1", True),
            ("localhost", True),
            ("derp.example.com", False),
        ):
            url = f"https://{host}/derp"
            async with Client.for_url(url, config=config, pin=pin_of(relay)) as client:
                if good:
                    await client.connect()
                    continue
                with pytest.raises(ConnectError, match="does not match the server name") as caught:
                    await client.connect()
                (error,) = caught.value.attempts
                assert isinstance(error, CertificateError)
                assert error.reason is FailureReason.CERTIFICATE_OTHER_NAME
                assert str(caught.value).count(host) == 1


@pytest.mark.parametrize("pin", ["", "0" * 63, "0" * 65, "g" * 64, "sha256:" + ZEROS, ZEROS + "\n"])
def test_a_pin_is_64_hex_digits(pin: str) -> None:
    for kind in (Client, blocking.Client):
        with pytest.raises(ConfigError, match="pin: want 64 hex digits"):
            kind.for_url("https://h/derp", pin=pin)


def test_a_pin_is_text() -> None:
    with pytest.raises(ConfigError, match="pin is a bytes; want str"):
        Client.for_url("https://h/derp", pin=bytes(32))  # type: ignore[arg-type]


def test_a_pin_without_tls_is_refused() -> None:
    """If the URL is http, or the settings turn TLS off, there is no certificate to compare."""
    with pytest.raises(ConfigError, match="pin: only with https://"):
        Client.for_url("http://h/derp", pin=ZEROS, config=ClientConfig(network=DIRECT))
    config = ClientConfig(network=NetworkSettings(use_derp_http=True))
    with pytest.raises(ConfigError, match="pin: use_derp_http is set"):
        Client.for_url("https://h/derp", pin=ZEROS, config=config)


def test_a_blocking_client_has_pins_too() -> None:
    config = ClientConfig(network=DIRECT)
    with (
        RelayThread(tls=True) as relay,
        blocking.Client.for_url(relay.url, config=config, pin=pin_of(relay)) as client,
        blocking.Client.for_url(relay.url, config=config, pin=ZEROS) as wrong,
    ):
        client.connect()
        with pytest.raises(ConnectError, match="cert hash does not match"):
            wrong.connect()
