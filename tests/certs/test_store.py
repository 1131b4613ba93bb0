from __future__ import annotations

import logging
import os
import stat
from datetime import timedelta
from pathlib import Path

import pytest

from pyderp.certs.credential import Credential
from pyderp.certs.schedule import Record
from pyderp.certs.store import Store, issued_credential
from pyderp.errors import ConfigError

from .authority import issue
from .handshake import NAME

RECORD = Record("https://ca.example/dir", 3, 12.5, 11.0, "why")


def pair(host: str = NAME, *, days: int = 60) -> tuple[bytes, bytes]:
    """Return a chain and its key, as PEM."""
    return issue(host, timedelta(days=90 + days), timedelta(days=90))


def issued(host: str = NAME) -> Credential:
    return issued_credential(*pair(host), host, "what the authority issued")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "deep" / "certs")


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_all_created_folders_are_private(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        Store(tmp_path / "a" / "b" / "certs")
    finally:
        os.umask(before)
    assert [mode(tmp_path / each) for each in ("a", "a/b", "a/b/certs")] == [0o700] * 3


@pytest.mark.parametrize("host", [NAME, "2001:db8::7"])
def test_a_saved_certificate_is_loaded_and_private(tmp_path: Path, store: Store, host: str) -> None:
    saved = issued(host)
    store.save(host, saved)
    loaded = store.load(host)
    assert loaded is not None
    assert (loaded.info, loaded.chain.strip()) == (saved.info, saved.chain.strip())
    assert ":" not in store.path(host).name
    assert mode(store.path(host)) == 0o600
    assert mode(store.directory) == 0o700


def test_the_file_has_the_form_of_autocert(tmp_path: Path, store: Store) -> None:
    store.save(NAME, issued())
    text = (store.directory / NAME).read_text()
    kinds = [line for line in text.splitlines() if line.startswith("-----BEGIN")]
    assert kinds == ["-----BEGIN EC PRIVATE KEY-----", "-----BEGIN CERTIFICATE-----"]
    assert text.endswith("-----END CERTIFICATE-----\n")


def test_a_certificate_of_autocert_is_loaded(tmp_path: Path, store: Store) -> None:
    chain, key = pair()
    for name in (NAME, f"{NAME}+rsa"):
        path = store.directory / name
        path.write_bytes(key + chain)
        assert store.load(NAME) is not None
        path.unlink()
    assert store.load(NAME) is None


def test_an_address_certificate_of_derper_is_loaded(tmp_path: Path, store: Store) -> None:
    chain, key = pair("2001:db8::7")
    (store.directory / "2001.db8..7.crt").write_bytes(chain)
    assert store.load("2001:db8::7") is None
    (store.directory / "2001.db8..7.key").write_bytes(key)
    assert store.load("2001:db8::7") is not None


@pytest.mark.parametrize("what", ["self-signed", "garbage", "for another host"])
def test_a_pair_of_manual_mode_that_no_authority_issued_is_ignored(
    store: Store, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    chain, key = issue("203.0.113.7", self_signed=True)
    if what == "garbage":
        chain = b"garbage"
    elif what == "for another host":
        chain, key = pair("203.0.113.8")
    files = {"203.0.113.7.crt": chain, "203.0.113.7.key": key}
    for name, content in files.items():
        (store.directory / name).write_bytes(content)
    assert store.load("203.0.113.7") is None
    (record,) = caplog.records
    assert f"one will be asked for and kept in {store.path('203.0.113.7')}" in record.getMessage()
    store.save("203.0.113.7", issued("203.0.113.7"))
    assert store.load("203.0.113.7") is not None
    for name, content in files.items():
        assert (store.directory / name).read_bytes() == content
    assert len(list(store.directory.iterdir())) == 3


def test_a_self_signed_certificate_from_an_authority_is_refused(store: Store) -> None:
    with pytest.raises(ConfigError, match="is self-signed, no authority issued it"):
        issued_credential(*issue(NAME, self_signed=True), NAME, "a file")


@pytest.mark.parametrize("content", [b"", b"garbage", "other", "cut", "self-signed"])
def test_a_damaged_file_is_renamed_to_bad(
    tmp_path: Path, store: Store, content: bytes | str, caplog: pytest.LogCaptureFixture
) -> None:
    if content == "other":
        chain, key = pair("other.example.com")
        content = key + chain
    elif content == "self-signed":
        chain, key = issue(NAME, self_signed=True)
        content = key + chain
    elif content == "cut":
        chain, key = pair()
        content = key[:-60] + chain
    assert isinstance(content, bytes)
    store.path(NAME).write_bytes(content)
    assert store.load(NAME) is None
    assert not store.path(NAME).exists()
    assert (store.directory / f"{NAME}.bad").read_bytes() == content
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert str(store.path(NAME)) in record.getMessage()


@pytest.mark.parametrize("days", [-1, -89])
def test_an_expired_certificate_is_not_used_and_kept(
    tmp_path: Path, store: Store, days: int
) -> None:
    chain, key = pair(days=days)
    store.path(NAME).write_bytes(key + chain)
    assert store.load(NAME) is None
    assert store.path(NAME).exists()


def test_a_file_that_cannot_be_read_is_an_error(store: Store) -> None:
    store.path(NAME).mkdir()
    with pytest.raises(ConfigError, match=rf"cannot read .*{NAME}: Is a directory"):
        store.load(NAME)


def test_a_full_disk_keeps_the_old_file(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.save(NAME, issued())
    before = store.path(NAME).read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        store.save(NAME, issued())
    assert store.path(NAME).read_bytes() == before
    assert [each.name for each in store.directory.iterdir()] == [NAME]


def test_a_directory_that_cannot_be_made_or_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"cannot make the certificate directory .*file"):
        Store(tmp_path / "file")


def test_a_directory_without_permission_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)  # tests may run as root
    with pytest.raises(ConfigError, match="cannot write to the certificate directory"):
        Store(tmp_path)


def test_a_directory_that_others_may_write_to_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tmp_path.chmod(0o777)
    Store(tmp_path)
    assert "mode 0777" in caplog.text


def test_the_account_key_is_saved_privately_and_derpers_is_used(store: Store) -> None:
    assert store.load_account() is None
    (store.directory / "acme_account+key").write_bytes(b"derper's")
    assert store.load_account() == b"derper's"
    store.save_account(b"ours")
    assert store.load_account() == b"ours"
    assert mode(store.directory / "acme-account.key") == 0o600


def test_account_keys_are_renamed_to_bad(store: Store) -> None:
    store.put_account_aside()
    for name in ("acme_account+key", "acme-account.key"):
        (store.directory / name).write_bytes(b"bad")
        store.put_account_aside()
        assert store.load_account() is None
        assert (store.directory / f"{name}.bad").read_bytes() == b"bad"


def test_a_saved_record_is_loaded(store: Store) -> None:
    assert store.load_record(NAME) == Record()
    store.save_record(NAME, RECORD)
    assert store.load_record(NAME) == RECORD
    assert mode(store.record_path(NAME)) == 0o600


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"directory": 1}', "[" * 100000, "\udcff"])
def test_a_damaged_record_is_logged_and_not_used(
    store: Store, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    store.record_path(NAME).write_text(text, errors="surrogateescape")
    assert store.load_record(NAME) == Record()
    assert "damaged" in caplog.text


def test_a_record_that_cannot_be_read_is_logged(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    store.record_path(NAME).mkdir()
    assert store.load_record(NAME) == Record()
    assert "cannot be read" in caplog.text
