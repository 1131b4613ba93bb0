"""A file of denied keys wins over every source, and works while the relay runs."""

from __future__ import annotations

import asyncio
import logging
import os
from pathlib import Path
from typing import Any

import pytest

from pyderp.admission.denylist import DenyList
from pyderp.config import AdmissionConfig, RelayConfig
from pyderp.errors import ConfigError
from pyderp.relay.connection import EndReason
from pyderp.server.app.relay import Relay
from pyderp.text import LOG_FIELDS
from tests.server import dial

from .fakes import identity, key
from .test_gate import Relay as GateRelay


def load(path: Path, text: str) -> DenyList:
    path.write_text(text)
    denied = DenyList(path)
    denied.load()
    return denied


def is_denied(denied: DenyList, number: int) -> bool:
    return denied.verdict(key(number)) is not None


def test_a_key_in_the_file_is_denied_with_its_label(tmp_path: Path) -> None:
    denied = load(tmp_path / "deny", f"{key(1)} lost laptop\n{key(2)}\n")
    first, second = denied.verdict(key(1)), denied.verdict(key(2))
    assert first is not None
    assert second is not None
    assert (first.allowed, first.reason) == (
        False,
        f"peer {key(1)} denied (in the deny file: lost laptop)",
    )
    assert second.reason == f"peer {key(2)} denied (in the deny file)"
    assert denied.verdict(key(3)) is None


@pytest.mark.parametrize(("keys", "text"), [(1, "1 key of {} is"), (2, "2 keys of {} are")])
def test_the_log_has_the_number_of_keys(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, keys: int, text: str
) -> None:
    caplog.set_level(logging.INFO, "pyderp.admission")
    path = tmp_path / "deny"
    load(path, "".join(f"{key(number)}\n" for number in range(1, keys + 1)))
    assert caplog.messages == [f"{text.format(path)} denied"]


def test_an_invalid_file_is_a_config_error_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read the deny file .*deny"):
        DenyList(tmp_path / "deny").load()
    with pytest.raises(ConfigError, match=r"deny file .*, line 1: not a node key"):
        load(tmp_path / "deny", "me\n")


def test_an_added_key_counts_at_once_and_a_removed_one_when_the_file_is_complete(
    tmp_path: Path,
) -> None:
    path = tmp_path / "deny"
    denied = load(path, f"{key(1)}\n")
    assert denied.look() is False
    path.write_text(f"{key(2)}\n")
    assert denied.look() is True
    assert is_denied(denied, 1)
    assert is_denied(denied, 2)
    assert denied.look() is True
    assert not is_denied(denied, 1)
    assert denied.look() is False


def test_a_bad_file_keeps_the_old_list_and_is_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "deny"
    denied = load(path, f"{key(1)}\n")
    path.write_text("nodekey:12\n")
    assert [denied.look() for _ in range(3)] == [False] * 3
    assert is_denied(denied, 1)
    assert caplog.text.count("denied keys not reloaded, the old list of 1 stays") == 1
    assert "line 1" in denied.trouble
    assert denied.trouble.startswith("the old list of 1 denied key stays in use: ")
    path.write_text("")
    assert denied.reload() is True
    assert denied.trouble == ""


@pytest.mark.parametrize("source", ["alone", "allowed", "function"])
async def test_the_deny_file_wins_over_each_source(tmp_path: Path, source: str) -> None:
    deny, allow = tmp_path / "deny", tmp_path / "allow"
    deny.write_text(f"{key(1)}\n")
    allow.write_text(f"{key(1)}\n{key(2)}\n")
    ways: dict[str, dict[str, Any]] = {
        "alone": {},
        "allowed": {"keys_file": allow},
        "function": {"decide": lambda *_: True},
    }
    more = ways[source]
    async with GateRelay().gate(deny_file=deny, **more) as gate:
        assert not (await gate.ask(identity(1))).allowed
        assert (await gate.ask(identity(2))).allowed
        assert gate.sources[0] == "deny file"


async def test_a_denied_client_is_closed_at_the_reload_and_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "deny"
    path.write_text("")
    config = RelayConfig(admission=AdmissionConfig(deny_file=path))
    async with Relay(config) as relay, dial.clients(relay, 2) as (bad, good):
        path.write_text(f"{bad.key} lost\n")
        relay.reload()
        assert relay.counters.ends[EndReason.REVOKED] == 1
        assert relay.clients == 1
        await bad.closed()
        (line,) = [each for each in caplog.records if "no longer allowed" in each.message]
        fields = vars(line)[LOG_FIELDS]
        assert fields.pop("address").startswith("127.0.0.1:")
        assert fields == {
            "connection": 1,
            "key": str(bad.key),
            "label": "lost",
            "reason": EndReason.REVOKED.value,
        }
        await good.ping()


async def test_a_denied_client_is_closed_without_a_reload(tmp_path: Path) -> None:
    path = tmp_path / "deny"
    path.write_text("")
    relay = GateRelay([identity(1), identity(2)])
    async with relay.gate(deny_file=path, look=0.001):
        new = tmp_path / "new"
        new.write_text(f"{key(1)}\n")
        os.replace(new, path)
        async with asyncio.timeout(40):
            await relay.closed.wait()
        assert [each[0] for each in relay.revoked] == [key(1)]
