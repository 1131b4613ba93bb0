"""Certificates and pins of real relays: wrong ones are refused before a byte of DERP is sent."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pyderp import CertificateError, Client, ConnectError, PinMismatch, TLSConfig, is_transient
from tests.interop.relays import KINDS, Kind, Relay
from tests.waiting import until

from .recorder import Recorder, recording
from .support import NO_ROOTS, GetRelay, config, node, region, talk, url, within

pytestmark = pytest.mark.parametrize("kind", KINDS)

WRONG_PIN = "sha256-raw:" + 64 * "0"
ALERT = 40
"""More bytes than an alert has, and fewer than request and login."""


def own_certificate(relay: Relay) -> Path:
    """The path of the certificate that a relay made for its address."""
    return relay.log.parent / f"{relay.address}.crt"


def trusting(relay: Relay) -> TLSConfig:
    return replace(NO_ROOTS, extra_roots=(own_certificate(relay),))


async def refused(client: Client, recorder: Recorder) -> CertificateError:
    """The only error of a connect in which no more than a part of a handshake has left."""
    async with client:
        with pytest.raises(ConnectError) as caught:
            await within(client.connect())
        assert client.server_public_key is None
    (error,) = caught.value.attempts
    assert isinstance(error, CertificateError)
    assert not is_transient(caught.value)
    (passage,) = recorder.passages
    await until(lambda: passage.client.fileno() < 0)
    hello = 5 + int.from_bytes(passage.sent[3:5], "big")
    assert passage.received
    assert len(passage.sent) - hello < ALERT
    return error


async def test_another_certificate_than_the_pinned_one_is_refused(
    kind: Kind, relays: GetRelay
) -> None:
    """With `PinMismatch`."""
    relay = relays(kind, "pinned")

    async with recording(relay.port) as recorder:
        wrong = node(relay, port=recorder.port, cert_name=WRONG_PIN)
        error = await refused(Client.for_region(region(wrong), config=config(relay)), recorder)
    assert isinstance(error, PinMismatch)
    assert "cert hash does not match expected cert hash" in str(error)


async def test_a_pin_holds_with_verification_off(kind: Kind, relays: GetRelay) -> None:
    """`InsecureForTests` does not switch a pin off."""
    relay = relays(kind, "pinned")

    async with recording(relay.port) as recorder:
        wrong = node(relay, port=recorder.port, cert_name=WRONG_PIN, insecure_for_tests=True)
        error = await refused(Client.for_region(region(wrong), config=config(relay)), recorder)
    assert isinstance(error, PinMismatch)


async def test_a_certificate_of_an_unknown_issuer_is_refused(kind: Kind, relays: GetRelay) -> None:
    """The health tracker gets the error, and later its end."""
    relay = relays(kind, "named")
    reports: list[tuple[str, str]] = []

    class Health:
        def set_tls_error(self, server_name: str, error: Exception | None) -> None:
            reports.append((server_name, "" if error is None else str(error)))

    async with recording(relay.port) as recorder:
        settings = config(relay, tls=NO_ROOTS, health=Health())
        client = Client.for_url(url(relay, port=recorder.port), config=settings)
        assert "self-signed" in str(await refused(client, recorder))
    async with Client.for_url(url(relay), config=config(relay, health=Health())) as client:
        await client.connect()
    (name, problem), cured = reports
    assert name == "localhost"
    assert problem.startswith("likely intercepted connection; certificate is self-signed by ")
    assert cured == ("localhost", "")


async def test_system_roots_do_not_trust_a_self_signed_certificate(
    kind: Kind, relays: GetRelay
) -> None:
    relay = relays(kind, "named")

    async with recording(relay.port) as recorder:
        settings = config(relay, tls=TLSConfig())
        there = region(node(relay, port=recorder.port))
        await refused(Client.for_region(there, config=settings), recorder)


async def test_a_certificate_for_an_address_is_refused_for_a_name(
    kind: Kind, relays: GetRelay
) -> None:
    relay = relays(kind, "pinned")

    async with recording(relay.port) as recorder:
        client = Client.for_url(
            f"https://localhost:{recorder.port}/derp",
            config=config(relay, tls=trusting(relay)),
        )
        assert "127.0.0.1" in str(await refused(client, recorder))


async def test_a_certificate_for_another_address_is_refused(kind: Kind, relays: GetRelay) -> None:
    relay = relays(kind, "pinned")

    async with recording(relay.port, host="127.0.0.2") as recorder:
        client = Client.for_url(
            f"https://127.0.0.2:{recorder.port}/derp",
            config=config(relay, tls=trusting(relay)),
        )
        assert "127.0.0.1" in str(await refused(client, recorder))


async def test_a_certificate_without_the_cert_name_is_refused(kind: Kind, relays: GetRelay) -> None:
    """`CertName` is compared, not the host name."""
    relay = relays(kind, "named")

    async with recording(relay.port) as recorder:
        wrong = node(relay, port=recorder.port, cert_name="other.example")
        client = Client.for_region(region(wrong), config=config(relay))
        assert "other.example" in str(await refused(client, recorder))


async def test_cert_name_is_compared_instead_of_the_host_name(kind: Kind, relays: GetRelay) -> None:
    relay = relays(kind, "pinned")
    known = node(relay, host_name="derp.example", cert_name="127.0.0.1")
    settings = config(relay, tls=trusting(relay))
    await talk(*(Client.for_region(region(known), config=settings) for _ in range(2)))


async def test_any_certificate_is_accepted_with_verification_off(
    kind: Kind, relays: GetRelay
) -> None:
    """For a node that is `InsecureForTests`."""
    relay = relays(kind, "pinned")
    careless = node(relay, cert_name="", insecure_for_tests=True)
    settings = config(relay, tls=NO_ROOTS)
    await talk(*(Client.for_region(region(careless), config=settings) for _ in range(2)))
