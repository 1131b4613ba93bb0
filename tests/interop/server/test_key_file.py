"""The file of a relay's key: made alike, read by both, and refused when it is invalid."""

from __future__ import annotations

import asyncio
import json
import os
import re
import stat
import subprocess
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pyderp.errors import ConfigError
from pyderp.keys import NodePrivate, load_or_create_key
from tests.interop.peers import need
from tests.interop.relays import Kind, each_derper, running
from tests.server import dial

from .support import BOUND, one_and_other

if TYPE_CHECKING:
    from collections.abc import Iterator

GOOD = "privkey:" + "40" + "00" * 30 + "40"


@contextmanager
def umask(mask: int) -> Iterator[None]:
    old = os.umask(mask)
    try:
        yield
    finally:
        os.umask(old)


def key_of(kind: Kind, directory: Path, file: Path) -> str:
    """Run a relay with a key file; returns the key of its greeting."""

    async def greeted(port: int) -> str:
        client = await dial.connect(("127.0.0.1", port))
        await client.aclose()
        return str(client.session.server_key)

    with running(kind, "plain", directory, options=["-c", str(file)]) as relay:
        return asyncio.run(greeted(relay.port))


@one_and_other
def test_either_makes_it_and_the_other_uses_it(one: Kind, other: Kind, tmp_path: Path) -> None:
    """In new folders, for its owner only, in the same form; it is not rewritten."""
    file = tmp_path / "new" / "folder" / "relay.key"
    with umask(0o022):
        made = key_of(one, tmp_path, file)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    text = file.read_text()
    private = NodePrivate.parse(json.loads(text)["PrivateKey"])
    assert re.fullmatch(r'\{\n\t"PrivateKey": "privkey:[0-9a-f]{64}"\n\}', text)
    assert made == str(private.public)
    written = file.stat()
    assert key_of(other, tmp_path, file) == made
    now = file.stat()
    assert (now.st_ino, now.st_mtime_ns) == (written.st_ino, written.st_mtime_ns)
    assert os.listdir(file.parent) == ["relay.key"]


@each_derper
@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '"x"',
        "{}",
        '{"PrivateKey": ""}',
        '{"PrivateKey": 1}',
        f'{{"PrivateKey": "{GOOD[:-1]}"}}',
        f'{{"PrivateKey": "{GOOD}0"}}',
        f'{{"PrivateKey": "{GOOD[8:]}"}}',
        f'{{"PrivateKey": "nodekey:{GOOD[8:]}"}}',
        f'{{"PrivateKey": "{GOOD[:-1]}g"}}',
    ],
)
def test_an_invalid_key_ends_both_and_is_not_changed(
    derper: Kind, tmp_path: Path, text: str
) -> None:
    file = tmp_path / "relay.key"
    file.write_text(text)
    file.chmod(0o600)
    command = [str(need(derper)), "-a=127.0.0.1:0", "-stun=false", "-c", str(file)]
    done = subprocess.run(command, capture_output=True, timeout=BOUND, check=False)
    # An empty object is a panic.
    assert done.returncode == (2 if text == "{}" else 1), done.stderr
    with pytest.raises(ConfigError, match=str(file)):
        load_or_create_key(file)
    assert file.read_text() == text


@each_derper
def test_a_good_key_ends_neither(derper: Kind, tmp_path: Path) -> None:
    """So the keys above are refused for what is wrong with them."""
    file = tmp_path / "relay.key"
    file.write_text(json.dumps({"PrivateKey": GOOD}))
    file.chmod(0o600)
    assert key_of(derper, tmp_path, file) == str(load_or_create_key(file).public)
