"""Certificates from a real ACME server."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from pyderp import Relay, RelayConfig
from pyderp.certs.acme import ACMECertificates
from pyderp.certs.leaf import info_of
from pyderp.certs.schedule import RetryPolicy
from pyderp.config import ACMETLS
from pyderp.keys import NodePrivate
from tests.certs.serve import Served, connected, serving
from tests.interop.ports import free_port
from tests.waiting import until

from .pebble import Pebble, running

NAME = "derp.example.com"
SERVER = NodePrivate.generate().public
QUICK = RetryPolicy(first_retry=0.2, longest_retry=1.0, fresh=0.5, advice_delay=0.1, save_every=0.2)
PROFILES = {
    "default": {"description": "as usual", "validityPeriod": 7776000},
    "shortlived": {"description": "six days", "validityPeriod": 518400},
}
"""Pebble picks one of these at random for a certificate without profile."""


def settings(pebble: Pebble, folder: Path, **more: Any) -> ACMETLS:
    return ACMETLS(
        **{
            "certdir": folder / "certs",
            "hostname": NAME,
            "directory": pebble.url,
            "ca_file": pebble.ca_file,
            "http_port": pebble.http_port,
            **more,
        }
    )


def source_of(tls: ACMETLS) -> ACMECertificates:
    return ACMECertificates(tls, policy=QUICK, address_policy=QUICK)


@contextlib.asynccontextmanager
async def served(source: ACMECertificates, pebble: Pebble) -> AsyncIterator[Served]:
    """Serve on the ports that Pebble asks."""
    async with serving(source, http_port=pebble.http_port, tls_port=pebble.tls_port) as ports:
        yield ports


def names(leaf: bytes) -> tuple[str, ...]:
    return info_of(x509.load_der_x509_certificate(leaf)).names


@contextlib.contextmanager
def pebble_at(folder: Path, **settings: Any) -> Iterator[Pebble]:
    """Pebble that asks at two free ports."""
    with running(folder, http_port=free_port(), tls_port=free_port(), **settings) as pebble:
        yield pebble


@pytest.mark.parametrize("way", ["http-01", "tls-alpn-01"])
async def test_a_certificate_is_issued_and_used_after_a_restart(
    tmp_path: Path, way: str, caplog: pytest.LogCaptureFixture
) -> None:
    with pebble_at(tmp_path) as pebble:
        more = {} if way == "http-01" else {"http_port": None}
        source = source_of(settings(pebble, tmp_path, email="ops@example.com", **more))
        async with served(source, pebble) as ports:
            await until(source.certificates)
            assert not source.challenge_pending
            async with connected(ports.tls_port, NAME) as (_, _, leaf):
                assert names(leaf) == (NAME,)
        assert "failed" not in caplog.text
        asked = pebble.log().count("/order-plz -> calling")
        # A restart uses the files, and the same account.
        again = source_of(settings(pebble, tmp_path, **more))
        async with served(again, pebble):
            assert again.certificates() == source.certificates()
        assert pebble.log().count("/order-plz -> calling") == asked


async def test_a_failed_challenge_is_followed_by_the_other_kind(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A firewall may close port 80 and pass 443."""
    with pebble_at(tmp_path) as pebble:
        source = source_of(settings(pebble, tmp_path))
        async with serving(source, tls_port=pebble.tls_port):
            await until(source.certificates)
    assert "challenge http-01 failed: " in caplog.text


async def test_an_address_gets_a_short_lived_certificate(tmp_path: Path) -> None:
    with pebble_at(tmp_path, profiles=PROFILES) as pebble:
        tls = settings(pebble, tmp_path, hostname="127.0.0.1", ip_certs=True)
        source = source_of(tls)
        async with served(source, pebble) as ports:
            await until(source.certificates)
            async with connected(ports.tls_port, None) as (_, _, leaf):
                assert names(leaf) == ("127.0.0.1",)
            (info,) = source.certificates()
            assert info.lifetime.total_seconds() == pytest.approx(518400, abs=5)


KID, KEY = "kid-1", "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W"


async def test_external_account_binding_is_required_and_works(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    eab = {"externalAccountBindingRequired": True, "externalAccountMACKeys": {KID: KEY}}
    with pebble_at(tmp_path, **eab) as pebble:
        source = source_of(settings(pebble, tmp_path / "without"))
        async with served(source, pebble):
            await until(lambda: "eab_kid" in caplog.text)
        source = source_of(settings(pebble, tmp_path, eab_kid=KID, eab_key=KEY))
        async with served(source, pebble):
            await until(source.certificates)
            # From now on the account is found by its key.
            (tmp_path / "certs" / NAME).unlink()
        source = source_of(settings(pebble, tmp_path))
        async with served(source, pebble):
            await until(source.certificates)


async def test_renewal_before_expiry_keeps_connections(tmp_path: Path) -> None:
    short = {"short": {"description": "", "validityPeriod": 4}}
    with pebble_at(tmp_path, profiles=short) as pebble:
        source = source_of(settings(pebble, tmp_path))
        async with served(source, pebble) as ports:
            await until(source.certificates)
            async with connected(ports.tls_port, NAME) as (reader, writer, first):
                (old,) = source.certificates()
                await until(lambda: source.certificates() != [old])
                (new,) = source.certificates()
                assert new.not_before <= old.not_after  # whole seconds
                async with connected(ports.tls_port, NAME) as (_, _, second):
                    assert second != first
                writer.write(b"still here")
                assert await reader.readexactly(10) == b"still here"


async def test_an_authority_that_refuses_or_is_down_is_asked_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pebble_at(tmp_path, domainBlocklist=[NAME]) as pebble:
        source = source_of(settings(pebble, tmp_path))
        async with served(source, pebble):
            await until(lambda: f"no certificate for {NAME}: rejectedIdentifier" in caplog.text)
            pebble.stop()
            await until(lambda: "cannot reach the authority: Connection refused" in caplog.text)
            pebble.settings = {}
            pebble.start()
            await until(source.certificates)


async def test_stale_nonces_are_tried_again(tmp_path: Path) -> None:
    with pebble_at(tmp_path, environment={"PEBBLE_WFE_NONCEREJECT": "40"}) as pebble:
        source = source_of(settings(pebble, tmp_path))
        async with served(source, pebble):
            await until(source.certificates)


async def test_an_invalid_account_key_is_replaced(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pebble_at(tmp_path) as pebble:
        tls = settings(pebble, tmp_path)
        source = source_of(tls)
        (tls.certdir / "acme-account.key").write_text("garbage")
        async with served(source, pebble):
            await until(source.certificates)
        assert (tls.certdir / "acme-account.key.bad").read_text() == "garbage"
    assert "account key" in caplog.text


async def test_a_server_without_acme_is_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pebble_at(tmp_path) as pebble:
        tls = settings(pebble, tmp_path, directory=pebble.url.replace("/dir", "/else"))
        source = source_of(tls)
        async with served(source, pebble):
            await until(lambda: "is not ACME" in caplog.text)
        untrusted = source_of(settings(pebble, tmp_path / "2", ca_file=None))
        async with served(untrusted, pebble):
            await until(lambda: "the certificate is not accepted: self-signed" in caplog.text)


async def test_a_relay_gets_its_certificate(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The relay answers the challenges itself."""
    caplog.set_level(logging.INFO)

    with pebble_at(tmp_path) as pebble:
        for way, more in (("http", {}), ("tls", {"http_port": None})):
            tls = settings(pebble, tmp_path / way, **more)
            config = RelayConfig(address=f"127.0.0.1:{pebble.tls_port}", tls=tls)
            async with Relay(config):
                await until(lambda: f"certificate of {NAME} is valid until" in caplog.text)
                async with connected(pebble.tls_port, NAME) as (_, _, leaf):
                    assert names(leaf) == (NAME,)
            caplog.clear()
