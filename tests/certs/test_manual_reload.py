"""Certificate files that change while a relay runs."""

from __future__ import annotations

import asyncio
import logging
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from pyderp.certs import manual as manual_module
from tests.server.certificates import write_pair

from .authority import issue
from .handshake import ANY, NAME, context_of, presented
from .test_manual import load


def test_unchanged_files_are_not_read_again(tmp_path: Path) -> None:
    write_pair(tmp_path, NAME)
    certificates = load(tmp_path)
    credential = certificates.credential(ANY, NAME)
    assert certificates.reload() is False
    assert certificates.credential(ANY, NAME) is credential


def test_changed_files_are_served_from_the_next_handshake_on(tmp_path: Path) -> None:
    write_pair(tmp_path, NAME)
    certificates = load(tmp_path)
    context = context_of(certificates)
    old = presented(context)[0]
    leaf = write_pair(tmp_path, NAME)
    assert presented(context)[0] == old != leaf
    assert certificates.reload() is True
    assert presented(context)[0] == leaf
    assert certificates.reload() is False


def test_force_reads_files_that_look_unchanged(tmp_path: Path) -> None:
    write_pair(tmp_path, NAME)
    certificates = load(tmp_path)
    credential = certificates.credential(ANY, NAME)
    assert certificates.reload(force=True) is True
    assert certificates.credential(ANY, NAME) is not credential


def test_a_pair_replaced_with_the_same_times_is_noticed(tmp_path: Path) -> None:
    """ACME clients swap symbolic links and keep times.

    A copy with the same content is not a change.
    """
    write_pair(tmp_path, NAME)
    certificates = load(tmp_path)
    paths = [certificates.certificate_file, certificates.key_file]
    for path in paths:
        copy = path.with_suffix(".new")
        shutil.copy2(path, copy)
        copy.replace(path)
    assert certificates.reload() is False
    (tmp_path / "new").mkdir()
    write_pair(tmp_path / "new", NAME)
    for path in paths:
        copy = tmp_path / "new" / path.name
        shutil.copystat(path, copy)
        copy.replace(path)
    assert certificates.reload() is True


def test_a_half_replaced_pair_keeps_the_old_one_in_use(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_pair(tmp_path, NAME)
    certificates = load(tmp_path)
    credential = certificates.credential(ANY, NAME)
    other = tmp_path / "new"
    other.mkdir()
    leaf = write_pair(other, NAME)
    shutil.copy(other / f"{NAME}.crt", certificates.certificate_file)
    assert certificates.reload() is False
    assert certificates.credential(ANY, NAME) is credential
    assert certificates.reload() is False
    errors = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert len(errors) == 1, "logged once, not at every look"
    shutil.copy(other / f"{NAME}.key", certificates.key_file)
    assert certificates.reload() is True
    assert presented(context_of(certificates))[0] == leaf


def test_deleted_files_keep_the_old_certificate_in_use(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_pair(tmp_path, NAME)
    certificates = load(tmp_path)
    credential = certificates.credential(ANY, NAME)
    certificates.certificate_file.unlink()
    assert certificates.reload() is False
    assert certificates.reload(force=True) is False
    assert certificates.credential(ANY, NAME) is credential
    assert "the old one stays in use" in caplog.text


def test_a_bad_pair_after_a_good_one_is_logged_at_each_forced_reload(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_pair(tmp_path, NAME)
    certificates = load(tmp_path)
    write_pair(tmp_path, NAME, names=["other.example.com"])
    assert certificates.reload(force=True) is False
    assert certificates.reload(force=True) is False
    assert caplog.text.count("not valid for") == 2


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.getMessage() for each in caplog.records if each.levelno == logging.ERROR]


def test_an_expired_certificate_does_not_replace_a_good_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    old = write_pair(tmp_path, NAME)
    certificates = load(tmp_path)
    write_pair(tmp_path, NAME, days=-1)
    for _ in range(2):
        assert certificates.reload() is False
        assert presented(context_of(certificates))[0] == old
    (error,) = errors(caplog)
    assert "the old one stays in use" in error
    assert "has expired on" in error
    new = write_pair(tmp_path, NAME)
    assert certificates.reload() is True
    assert presented(context_of(certificates))[0] == new


def test_without_a_valid_one_an_expired_one_is_served_and_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    old = write_pair(tmp_path, NAME, days=-2)
    certificates = load(tmp_path)
    assert errors(caplog) == []  # loading alone, as in a check of settings, logs nothing
    asyncio.run(certificates.start())
    assert presented(context_of(certificates))[0] == old
    new = write_pair(tmp_path, NAME, days=-1)
    assert certificates.reload() is True
    assert presented(context_of(certificates))[0] == new
    assert len(errors(caplog)) == 2
    assert all("it is served all the same, and clients refuse it" in e for e in errors(caplog))


def test_a_certificate_not_yet_valid_is_used_once_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    old = write_pair(tmp_path, NAME)
    certificates = load(tmp_path)
    chain, key = issue(NAME, age=timedelta(days=-1))
    certificates.key_file.write_bytes(key)
    certificates.certificate_file.write_bytes(chain)
    for _ in range(2):
        assert certificates.reload() is False
        assert presented(context_of(certificates))[0] == old
    (error,) = errors(caplog)
    assert "is valid from" in error
    tomorrow = datetime.now(UTC) + timedelta(days=1, minutes=1)
    monkeypatch.setattr(manual_module, "utc_now", lambda: tomorrow)
    assert certificates.reload() is True
    assert presented(context_of(certificates))[0] != old
    assert certificates.reload() is False
