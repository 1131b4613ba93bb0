"""`pyderp key`: keys are made, saved and read; no error shows one."""

from __future__ import annotations

import io
import json
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import pytest

from pyderp.keys import NodePrivate, NodePublic, load_or_create_key

from .commands import Done, run

Here: TypeAlias = Callable[..., Done]


def test_a_new_key_is_printed(here: Here) -> None:
    first, second = here("key", "new"), here("key", "new")
    assert first.code == 0
    assert NodePrivate.parse(first.out.strip()) != NodePrivate.parse(second.out.strip())
    assert first.err == ""


def test_a_key_is_kept_in_a_file_that_a_relay_could_use(here: Here, tmp_path: Path) -> None:
    path = tmp_path / "me.key"
    done = here("key", "new", "-o", path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    key = load_or_create_key(path)
    assert done.out == f"{key.public}\n"
    assert here("key", "public", path).out == done.out


def test_a_file_is_never_overwritten(here: Here, tmp_path: Path) -> None:
    path = tmp_path / "me.key"
    path.write_text("mine")
    done = here("key", "new", "-o", path)
    assert done.code == 1
    assert "exists and is not overwritten" in done.err
    assert done.out == ""
    assert path.read_text() == "mine"
    assert [*tmp_path.iterdir()] == [path]


def test_a_file_that_cannot_be_made_is_named(here: Here, tmp_path: Path) -> None:
    done = here("key", "new", "-o", tmp_path / "none" / "me.key")
    assert done.code == 1
    assert f"cannot make the key file {tmp_path}/none/me.key: No such file" in done.err
    assert f"; make the folder {tmp_path}/none first" in done.err


def test_keys_are_printed_as_json(here: Here, tmp_path: Path) -> None:
    shown = json.loads(here("key", "new", "--json").out)
    key = NodePrivate.parse(shown["private"])
    assert NodePublic.parse(shown["public"]) == key.public
    kept = json.loads(here("key", "new", "--json", "-o", tmp_path / "k").out)
    assert kept.keys() == {"file", "public"}
    assert json.loads(here("key", "public", "--json", tmp_path / "k").out) == {
        "public": kept["public"]
    }


@pytest.mark.parametrize("form", ["{}", "\n  {}\r\n", '{{"PrivateKey": "{}", "Else": 1}}'])
def test_public_reads_both_forms_of_a_key(here: Here, tmp_path: Path, form: str) -> None:
    key = NodePrivate.generate()
    path = tmp_path / "key"
    path.write_text(form.format(key.to_text()))
    assert here("key", "public", path).out == f"{key.public}\n"


def test_public_reads_standard_input() -> None:
    key = NodePrivate.generate()
    for args in ([], ["-"]):
        assert run("key", "public", *args, stdin=key.to_text().encode()).out == f"{key.public}\n"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"secret",
        b"privkey:secret",
        b"privkey:" + b"0" * 64,
        b"\xff\xfesecret",
        b'{"PrivateKey": 5}',
        b'{"PrivateKey": "secret"}',
        b'["secret"]',
        b"[" * 60_000,
    ],
)
def test_an_invalid_key_is_refused_and_not_shown(
    here: Here, tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "key"
    path.write_bytes(content)
    done = here("key", "public", path)
    assert done.code == 1
    assert done.err.startswith(f"pyderp: the key file {path} holds no")
    assert "secret" not in done.err


def test_the_error_of_a_missing_file_has_the_command_to_make_one(
    here: Here, tmp_path: Path
) -> None:
    done = here("key", "public", tmp_path / "none")
    assert done.code == 1
    assert f"make one with: pyderp key new -o {tmp_path / 'none'}" in done.err


def test_an_unreadable_file_is_named(here: Here, tmp_path: Path) -> None:
    done = here("key", "public", tmp_path)
    assert (
        f"cannot read the key file {tmp_path}: Is a directory; give a file, not a folder"
        in done.err
    )


def test_help_has_examples(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    assert "pyderp key new -o me.key" in here("key", "new", "--help").out
    assert "pyderp key public me.key" in here("key", "public", "--help").out
    assert "nodekey:" in here("key", "public", "--help").out
