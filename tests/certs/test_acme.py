"""Certificates by ACME, from an authority that is a Python object."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import ssl
import threading
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from pyderp.certs import make_certificates
from pyderp.certs.acme import ACMECertificates
from pyderp.certs.leaf import info_of
from pyderp.certs.network import Refused, Stopped
from pyderp.certs.schedule import Record, RetryPolicy, Schedule
from pyderp.certs.store import Store
from pyderp.config import ACMETLS, ManualTLS
from pyderp.errors import ConfigError
from tests.server.certificates import write_pair
from tests.waiting import until

from .authority import FakeAuthority, issue
from .handshake import NAME, context_of, presented

IP4, IP6 = "203.0.113.7", "2001:db8::7"
PRIVATE_CA = "https://ca.example/directory"
QUICK = RetryPolicy(
    first_retry=0.01,
    longest_retry=0.02,
    fresh=0.01,
    advice_delay=0.005,
    save_every=0.01,
    look_again=0.01,
)


def settings(certdir: Path, **more: Any) -> ACMETLS:
    return ACMETLS(**{"certdir": certdir, "hostname": NAME, "directory": PRIVATE_CA, **more})


def source_of(
    certdir: Path, authority: FakeAuthority, policy: RetryPolicy = QUICK, **more: Any
) -> ACMECertificates:
    tls = settings(certdir, **more)
    return ACMECertificates(tls, authority=authority, policy=policy, address_policy=policy)


@contextlib.asynccontextmanager
async def started(source: ACMECertificates) -> AsyncIterator[ACMECertificates]:
    await source.start()
    try:
        yield source
    finally:
        await source.aclose()


def names(leaf: bytes) -> tuple[str, ...]:
    return info_of(x509.load_der_x509_certificate(leaf)).names


def chain_of(source: ACMECertificates) -> bytes:
    """Return the certificate that is served for the host name."""
    return presented(context_of(source, "127.0.0.1"))[0]


def is_served(source: ACMECertificates, name: str, address: str) -> bool:
    """Return whether a client gets a certificate; also for a name that Python's ssl never sends."""

    class Handshake:
        context: ssl.SSLContext | None = None

    handshake = Handshake()
    choose: Any = context_of(source, address).sni_callback
    alert = choose(handshake, name, None)
    assert (alert is None) == (handshake.context is not None)
    assert alert in (None, ssl.ALERT_DESCRIPTION_INTERNAL_ERROR)
    return alert is None


def refused(source: ACMECertificates, name: str | None, address: str = "127.0.0.1") -> bool:
    """Return whether a client that requests this name gets an alert."""
    try:
        presented(context_of(source, address), name)
    except ssl.SSLError as e:
        return "INTERNAL_ERROR" in str(e)
    return False


# The certificate of the host name


async def test_the_host_names_certificate_is_obtained_and_served(tmp_path: Path) -> None:
    authority = FakeAuthority()
    source = source_of(tmp_path / "certs", authority)
    assert refused(source, NAME), "nothing was requested yet"
    assert source.certificates() == []
    async with started(source):
        await until(source.certificates)
        for name in (NAME, "DERP.Example.COM", f"{NAME}."):
            chain = presented(context_of(source, "127.0.0.1"), name)
            assert names(chain[0]) == (NAME,)
            assert b"derpkey" in chain[-1]
        for other in (None, "other.example.com", "x" + NAME):
            assert refused(source, other)
        assert not is_served(source, "127.0.0.1", "127.0.0.1")
    assert authority.asked == [(NAME, 0)]
    assert source.cert_name == ""


async def test_a_hostname_may_be_in_any_form(tmp_path: Path) -> None:
    authority = FakeAuthority()
    async with started(source_of(tmp_path, authority, hostname="Bücher.Example.")) as source:
        await until(source.certificates)
        assert presented(context_of(source, "127.0.0.1"), "xn--bcher-kva.example")
    assert authority.asked == [("xn--bcher-kva.example", 0)]


async def test_a_restart_uses_the_certificate_on_disk(tmp_path: Path) -> None:
    authority = FakeAuthority()
    async with started(source_of(tmp_path, authority)) as source:
        await until(source.certificates)
        first = chain_of(source)
    async with started(source_of(tmp_path, authority)) as source:
        assert chain_of(source) == first
        await until(lambda: authority.advice_asked)
    assert len(authority.asked) == 1


async def test_a_certificate_of_another_authority_is_served_until_replaced(tmp_path: Path) -> None:
    authority = FakeAuthority()
    async with started(source_of(tmp_path, authority)) as source:
        await until(source.certificates)
        first = chain_of(source)
    source = source_of(tmp_path, authority, directory="https://other.example/directory")
    assert chain_of(source) == first
    async with started(source):
        await until(lambda: chain_of(source) != first)
    assert chain_of(source_of(tmp_path, authority)) == chain_of(source)


async def test_a_certificate_of_autocert_is_used(tmp_path: Path) -> None:
    chain, key = issue(NAME, timedelta(days=90), timedelta(days=1))
    (tmp_path / NAME).write_bytes(key + chain)

    authority = FakeAuthority()
    async with started(source_of(tmp_path, authority)) as source:
        await until(lambda: authority.advice_asked)
        assert not refused(source, NAME)
    assert authority.asked == []


# Renewal


async def test_renewal_replaces_the_certificate(tmp_path: Path) -> None:
    authority = FakeAuthority()
    authority.lifetime, authority.age = timedelta(days=90), timedelta(days=70)
    async with started(source_of(tmp_path, authority)) as source:
        await until(source.certificates)
        first = chain_of(source)
        await until(lambda: chain_of(source) != first)
        assert not refused(source, NAME)


async def test_the_authoritys_advice_is_followed(tmp_path: Path) -> None:
    authority = FakeAuthority()
    async with started(source_of(tmp_path, authority)):
        await until(lambda: authority.advice_asked)
        assert len(authority.asked) == 1
    authority.renew_at = 1.0
    async with started(source_of(tmp_path, authority)) as source:
        first = chain_of(source)
        await until(lambda: chain_of(source) != first)


@pytest.mark.parametrize("failure", [Refused("no"), RuntimeError("a bug")])
async def test_renewal_advice_may_fail(tmp_path: Path, failure: Exception) -> None:
    authority = FakeAuthority()
    authority.advice_failure = failure
    async with started(source_of(tmp_path, authority)) as source:
        await until(lambda: authority.advice_asked)
        assert not refused(source, NAME)


# Failures


@pytest.mark.parametrize("failure", [Refused("rateLimited: no"), RuntimeError("a bug")])
async def test_a_failing_authority_is_retried(
    tmp_path: Path, failure: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    authority = FakeAuthority()
    authority.failure = failure
    async with started(source_of(tmp_path, authority)) as source:
        await until(lambda: len(authority.asked) >= 3)
        assert refused(source, NAME)
        authority.failure = None
        await until(source.certificates)
        assert not refused(source, NAME)
    assert [attempt for _, attempt in authority.asked[:3]] == [0, 1, 2]
    assert f"no certificate for {NAME}" in caplog.text
    assert str(failure) in caplog.text


async def test_the_old_certificate_is_served_while_renewal_fails(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    authority = FakeAuthority()
    authority.age = timedelta(days=70)
    async with started(source_of(tmp_path, authority)) as source:
        await until(source.certificates)
        authority.failure = Refused("down")
        await until(lambda: "is not renewed: down" in caplog.text)
        assert not refused(source, NAME)


async def test_an_expired_certificate_from_the_authority_is_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    authority = FakeAuthority()
    authority.age = timedelta(days=91)
    async with started(source_of(tmp_path, authority)) as source:
        await until(lambda: len(authority.asked) >= 2)
        assert source.certificates() == []
    assert "is the clock right?" in caplog.text


async def test_a_certificate_for_another_name_is_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    authority = FakeAuthority()
    authority.names = "other.example.com"
    async with started(source_of(tmp_path, authority)) as source:
        await until(lambda: len(authority.asked) >= 2)
        assert source.certificates() == []
    assert "it names other.example.com" in caplog.text


async def test_failures_are_remembered_across_restarts(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    slow = RetryPolicy()

    authority = FakeAuthority()
    authority.failure = Refused("port 80 is closed", retry_after=500.0)
    async with started(source_of(tmp_path, authority, slow)):
        await until(lambda: "next try" in caplog.text)
    caplog.clear()
    for _ in range(3):
        async with started(source_of(tmp_path, authority, slow)) as source:
            await asyncio.sleep(0)
            source.reload(force=True)  # does not override the authority's Retry-After
    assert len(authority.asked) == 1
    assert "as the last failed: port 80 is closed" in caplog.text


async def test_a_reload_retries_at_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    authority = FakeAuthority()
    authority.failure = Refused("port 80 is closed")
    async with started(source_of(tmp_path, authority, RetryPolicy())) as source:
        await until(lambda: "next try" in caplog.text)
        authority.failure = None
        assert source.reload() is False
        assert source.reload(force=True) is False
        await until(source.certificates)


async def test_a_crash_during_a_request_counts_as_failure(tmp_path: Path) -> None:
    store = Store(tmp_path)
    seen: list[Record] = []

    authority = FakeAuthority()
    authority.before = lambda: seen.append(store.load_record(NAME))
    async with started(source_of(tmp_path, authority, RetryPolicy())) as source:
        await until(source.certificates)
    assert seen[0].failures == 1
    assert seen[0].retry_at > 0
    assert store.load_record(NAME) == Record(directory=PRIVATE_CA)


async def test_a_stop_during_a_request_is_no_failure(tmp_path: Path) -> None:
    authority = FakeAuthority()
    source = source_of(tmp_path, authority, RetryPolicy())

    def until_the_stop() -> None:
        assert source._stop.wait(60)
        raise Stopped

    authority.before = until_the_stop
    async with started(source):
        await until(lambda: authority.asked)
    assert Store(tmp_path).load_record(NAME) == Record()


async def test_with_a_full_disk_the_certificate_is_served_and_saved_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fsync = os.fsync

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    authority = FakeAuthority()
    async with started(source_of(tmp_path, authority)) as source:
        monkeypatch.setattr(os, "fsync", full)
        await until(source.certificates)
        assert not refused(source, NAME)
        assert source.reload(force=True) is False
        await until(lambda: caplog.text.count("cannot save the certificate") >= 2)
        monkeypatch.setattr(os, "fsync", fsync)
        await until((tmp_path / NAME).exists)
        saved = source.certificates()
    assert source_of(tmp_path, authority).certificates() == saved
    assert len(authority.asked) == 1
    assert "No space left on device" in caplog.text


async def test_a_failure_before_a_request_is_not_counted_for_the_authority(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The account cannot be saved, perhaps: no long wait once there is room."""
    policy = RetryPolicy(save_every=0.01)

    authority = FakeAuthority()
    authority.failure = Refused("the disk is full", asked=False)
    async with started(source_of(tmp_path, authority, policy)) as source:
        await until(lambda: len(authority.asked) >= 3)
        assert Store(tmp_path).load_record(NAME).failures in (0, 1), "1 within a request"
        authority.failure = None
        await until(source.certificates)
    assert {attempt for _, attempt in authority.asked} == {0}
    assert f"no certificate for {NAME}: the disk is full; next try in 0 s" in caplog.text


# Two processes, one directory


async def test_while_one_process_requests_a_certificate_another_waits(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)

    authority = FakeAuthority()
    go = threading.Event()
    authority.before = lambda: assert_set(go)
    async with started(source_of(tmp_path, authority)) as first:
        await until(lambda: authority.asked)
        async with started(source_of(tmp_path, authority)) as second:
            await until(lambda: "another process asks" in caplog.text)
            go.set()
            await until(second.certificates)
            await until(first.certificates)
            assert chain_of(first) == chain_of(second)
    assert len(authority.asked) == 1
    assert caplog.text.count("another process asks") == 1, "once, not at each check"
    assert "another process got it" in caplog.text


async def test_a_retry_after_of_one_process_is_respected_by_another(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    authority = FakeAuthority()
    go = threading.Event()
    authority.before = lambda: assert_set(go)
    authority.failure = Refused("too often", retry_after=500.0)
    second = source_of(tmp_path, authority)  # before the first saves a record
    async with started(source_of(tmp_path, authority)):
        await until(lambda: authority.asked)
        async with started(second):
            go.set()
            (managed,) = second._managed.values()
            await until(lambda: managed.schedule.authority_retry_at)
    assert len(authority.asked) == 1


def assert_set(event: threading.Event) -> None:
    assert event.wait(20)


# From a self-signed certificate to one of an authority


async def test_manual_mode_and_acme_do_not_use_each_others_files(tmp_path: Path) -> None:
    authority = FakeAuthority()
    manual = make_certificates(ManualTLS(certdir=tmp_path, hostname=IP4))
    pin = manual.cert_name
    own = presented(context_of(manual, IP4), None)[0]
    for _ in range(2):
        async with started(source_of(tmp_path, authority, hostname=IP4, ip_certs=True)) as source:
            await until(source.certificates)
            assert presented(context_of(source, IP4), None)[0] != own
            assert source.cert_name == ""
    assert authority.asked == [(IP4, 0)]
    manual = make_certificates(ManualTLS(certdir=tmp_path, hostname=IP4))
    assert manual.cert_name == pin


# Unexpected errors


def no_thread(_: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")


async def test_a_failure_to_start_a_thread_is_retried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", no_thread)
        source = source_of(tmp_path, FakeAuthority())
        await source.start()
        await until(lambda: f"no certificate for {NAME}" in caplog.text)
    await until(source.certificates)
    await source.aclose()


async def test_a_save_that_fails_unexpectedly_is_retried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as disk:
        disk.setattr(os, "fsync", full)
        async with started(source_of(tmp_path, FakeAuthority())) as source:
            await until(source.certificates)
            with monkeypatch.context() as patch:
                patch.setattr(threading.Thread, "start", no_thread)
                await until(lambda: f"saving the certificate of {NAME} failed" in caplog.text)
            disk.undo()
            await until((tmp_path / NAME).exists)
    assert "keeping certificates failed" not in caplog.text


async def test_a_bug_does_not_end_the_renewals(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError

    source = source_of(tmp_path, FakeAuthority())
    with monkeypatch.context() as patch:
        patch.setattr(Schedule, "next_request", broken)
        await source.start()
        await until(lambda: caplog.text.count("keeping certificates failed") >= 2)
    await until(source.certificates)
    await source.aclose()


# Files that change


async def test_an_unsaved_certificate_is_preferred_to_the_one_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as disk:
        disk.setattr(os, "fsync", full)
        async with started(source_of(tmp_path, FakeAuthority())) as source:
            await until(source.certificates)
            ours = chain_of(source)
            chain, key = issue(NAME, timedelta(days=90), timedelta(days=1))
            (tmp_path / NAME).write_bytes(key + chain)
            assert source.reload(force=True) is False
            disk.undo()
            await until(lambda: (tmp_path / NAME).read_bytes() != key + chain)
            assert chain_of(source) == ours
    assert chain_of(source_of(tmp_path, FakeAuthority())) == ours


async def test_advice_about_a_certificate_replaced_meanwhile_is_dropped(
    tmp_path: Path,
) -> None:
    def write() -> None:
        chain, key = issue(NAME, timedelta(days=90), timedelta(days=1))
        (tmp_path / NAME).write_bytes(key + chain)

    authority = FakeAuthority()
    replaced = threading.Event()

    def advise_renewal_of_the_first() -> None:
        authority.renew_at = 1.0 if authority.advice_asked == 1 else None
        assert replaced.wait(20)

    authority.before_advice = advise_renewal_of_the_first
    write()
    async with started(source_of(tmp_path, authority)) as source:
        await until(lambda: authority.advice_asked)
        write()
        assert source.reload()
        replaced.set()
        await until(lambda: authority.advice_asked == 2)
    assert authority.asked == []


async def test_a_certificate_from_another_process_is_used(tmp_path: Path) -> None:
    source = source_of(tmp_path, FakeAuthority())
    assert source.reload() is False
    chain, key = issue(NAME, timedelta(days=90), timedelta(days=1))
    (tmp_path / NAME).write_bytes(key + chain)
    assert source.reload() is True
    assert not refused(source, NAME)
    assert source.reload() is False
    assert source.reload(force=True) is False


@pytest.mark.parametrize("content", [b"garbage", "expired"])
async def test_an_invalid_or_expired_file_is_not_used(
    tmp_path: Path, content: bytes | str, caplog: pytest.LogCaptureFixture
) -> None:
    source = source_of(tmp_path, FakeAuthority())
    data = content
    if data == "expired":
        chain, key = issue(NAME, timedelta(days=90), timedelta(days=91))
        data = key + chain
    assert isinstance(data, bytes)
    (tmp_path / NAME).write_bytes(data)
    assert source.reload() is False
    assert source.certificates() == []
    assert (tmp_path / NAME).exists()
    assert ("the old one stays in use" in caplog.text) == (content == b"garbage")


@pytest.mark.parametrize("name", [NAME, "acme-account.key"])
def test_files_that_cannot_be_read_are_errors_at_the_start(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    with pytest.raises(ConfigError, match=rf"cannot read .*{name}"):
        source_of(tmp_path, FakeAuthority())


# Addresses: derper's TestIPCertManager, TestIPCertManagerNextProvider


async def test_a_connection_to_an_address_is_served_a_certificate_for_it(tmp_path: Path) -> None:
    authority = FakeAuthority()
    async with started(source_of(tmp_path, authority, hostname=IP4, ip_certs=True)) as source:
        await until(source.certificates)
        assert names(presented(context_of(source, IP4), None)[0]) == (IP4,)
        assert refused(source, None, IP6), "requested now"
        await until(lambda: len(source.certificates()) == 2)
        assert names(presented(context_of(source, IP6), None)[0]) == (IP6,)
        assert names(presented(context_of(source, f"::ffff:{IP4}"), None)[0]) == (IP4,)
        for own in (IP4, IP6):
            assert is_served(source, own, own)
        assert not is_served(source, "203.0.113.8", IP4), "an address of another machine"
        assert not is_served(source, IP6, IP4)
        assert refused(source, NAME, IP4), "a name that is not configured"
        assert authority.asked == [(IP4, 0), (IP6, 0)]
        assert source.cert_name == ""
    again = source_of(tmp_path, authority, hostname=IP4, ip_certs=True)
    assert not refused(again, None, IP4)
    assert not refused(again, None, IP6)
    assert len(authority.asked) == 2
    assert again.http_challenge("/") is None


async def test_a_name_and_addresses_have_their_own_certificates(tmp_path: Path) -> None:
    authority = FakeAuthority()
    async with started(source_of(tmp_path, authority, ip_certs=True)) as source:
        await until(source.certificates)
        assert names(presented(context_of(source, IP4), NAME)[0]) == (NAME,)
        await until(lambda: len(source.certificates()) == 2)
        assert names(presented(context_of(source, IP4), None)[0]) == (IP4,)


async def test_without_ip_certs_no_address_certificate_is_requested(tmp_path: Path) -> None:
    authority = FakeAuthority()
    async with started(source_of(tmp_path, authority)) as source:
        await until(source.certificates)
        assert refused(source, None, IP4)
    assert len(authority.asked) == 1


async def test_private_addresses_are_not_requested_from_a_public_authority(tmp_path: Path) -> None:
    authority = FakeAuthority()
    public: dict[str, Any] = {"directory": ACMETLS.directory, "ip_certs": True}
    async with started(source_of(tmp_path / "a", authority, **public)) as source:
        await until(source.certificates)
        assert refused(source, None, "10.0.0.1")
    assert len(authority.asked) == 1
    # Behind address translation: hostname is the address that clients use.
    more = {**public, "hostname": "8.8.8.8"}
    async with started(source_of(tmp_path / "b", authority, **more)) as source:
        await until(source.certificates)
        assert names(presented(context_of(source, "10.0.0.1"), None)[0]) == ("8.8.8.8",)
        assert is_served(source, "8.8.8.8", "10.0.0.1")
        assert not is_served(source, "10.0.0.1", "10.0.0.1")


async def test_certificates_are_requested_for_64_addresses_at_most(tmp_path: Path) -> None:
    source = source_of(tmp_path, FakeAuthority(), ip_certs=True)
    for n in range(70):
        source.credential(f"192.0.2.{n}", None)
    assert len(source._managed) == 64
    assert refused(source, None, "192.0.2.69")
    assert refused(source, None, "no address")


async def test_an_address_whose_file_cannot_be_read_is_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = source_of(tmp_path, FakeAuthority(), ip_certs=True)
    (tmp_path / IP4).mkdir()
    assert refused(source, None, IP4)
    assert "cannot read" in caplog.text


# The choice of a source


async def test_make_certificates_returns_the_configured_source(tmp_path: Path) -> None:
    write_pair(tmp_path, NAME)
    manual = make_certificates(ManualTLS(certdir=tmp_path, hostname=NAME))
    assert len(manual.certificates()) == 1
    await manual.start()
    await manual.aclose()
    acme = make_certificates(settings(tmp_path / "acme"))
    assert acme.certificates() == []
    assert not acme.challenge_pending
    assert acme.challenge_credential(memoryview(b"")) is None
    await acme.aclose()


async def test_closing_does_not_wait_for_an_authority_that_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("pyderp.certs.acme._PATIENCE", 0.05)
    caplog.set_level(logging.INFO)

    authority = FakeAuthority()
    go = threading.Event()

    def hang() -> None:
        go.wait(10)

    authority.before = hang
    async with started(source_of(tmp_path, authority)):
        await until(lambda: authority.asked)
    assert "does not answer" in caplog.text
    go.set()
