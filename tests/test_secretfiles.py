"""Key files: made once, whole, readable by their owner only; errors do not show their content."""

from __future__ import annotations

import json
import logging
import os
import stat
import threading
import traceback
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyderp.errors import ConfigError
from pyderp.keys import MeshKey, NodePrivate, load_or_create_key, read_mesh_key
from pyderp.secretfiles import (
    file_stamp,
    make_private_folder,
    numbered_lines,
    read_regular,
    write_atomically,
)
from tests import vectors as v

SECRET = v.CLIENT_PRIVATE_TEXT.removeprefix("privkey:")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The path of a key file that does not exist yet."""
    return tmp_path / "relay.key"


def mode(path: Path) -> int:
    """Permission bits."""
    return stat.S_IMODE(path.stat().st_mode)


def refused(path: Path) -> str:
    """The error text for an unusable file; neither it nor its causes show a key."""
    with pytest.raises(ConfigError) as caught:
        load_or_create_key(path)
    error: BaseException | None = caught.value
    assert str(path) in str(error)
    while error is not None:
        assert SECRET[:8] not in "".join(traceback.format_exception_only(error))
        error = error.__cause__
    return str(caught.value)


# Making one


def test_a_missing_file_is_made_in_the_form_of_derper(path: Path) -> None:
    key = load_or_create_key(path)
    assert path.read_text() == f'{{\n\t"PrivateKey": "{key.to_text()}"\n}}'
    assert mode(path) == 0o600
    assert [entry.name for entry in path.parent.iterdir()] == ["relay.key"]


def test_missing_directories_are_made(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "relay.key"
    key = load_or_create_key(path)
    assert load_or_create_key(path) == key
    assert mode(path) == 0o600


@pytest.mark.parametrize("umask", [0, 0o022, 0o077])
def test_new_folders_are_private(tmp_path: Path, umask: int) -> None:
    """A user with write access to one could replace the folder below it."""
    before = os.umask(umask)
    try:
        load_or_create_key(tmp_path / "a" / "b" / "c" / "relay.key")
    finally:
        os.umask(before)
    for folder in ("a", "a/b", "a/b/c"):
        assert stat.S_IMODE((tmp_path / folder).stat().st_mode) == 0o700


def test_an_existing_folder_stays_as_it_is(tmp_path: Path) -> None:
    folder = tmp_path / "there"
    folder.mkdir()
    folder.chmod(0o750)
    make_private_folder(folder)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o750
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OSError, match=r"exists|Not a directory"):
            make_private_folder(place)


@pytest.mark.parametrize(
    ("mode", "warns"), [(0o777, True), (0o1777, False), (0o775, False), (0o700, False)]
)
def test_a_folder_where_other_users_can_replace_the_key_is_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, mode: int, warns: bool
) -> None:
    folder = tmp_path / "keys"
    load_or_create_key(folder / "relay.key")
    folder.chmod(mode)
    load_or_create_key(folder / "relay.key")
    assert (f"other users may write to the folder {folder} (mode 0777)" in caplog.text) is warns


BREAKS = "\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"


def test_lines_end_with_lf_or_cr_lf_and_have_numbers() -> None:
    assert list(numbered_lines("a\r\n\nb")) == [(1, "a"), (2, ""), (3, "b")]
    assert list(numbered_lines("")) == [(1, "")]
    assert list(numbered_lines("tab\tand unit\x1fseparator")) == [(1, "tab\tand unit\x1fseparator")]


@pytest.mark.parametrize("character", BREAKS, ids=lambda each: f"U+{ord(each):04X}")
@pytest.mark.parametrize("form", ["a{}b", "{}b", "#{}b", "{}\r", "a{}\r", "a{}\r\nb"])
def test_any_other_line_break_is_refused_by_number(character: str, form: str) -> None:
    text = "first\n" + form.format(character)
    code = f"U\\+{ord(character):04X}"
    with pytest.raises(ConfigError, match=f"^line 2: a line break {code}; end lines with LF$"):
        list(numbered_lines(text))


@given(st.text())
def test_lines_are_those_that_any_editor_shows_or_the_text_is_refused(text: str) -> None:
    try:
        lines = [line for _, line in numbered_lines(text)]
    except ConfigError:
        return
    assert [line for line in lines if line] == [line for line in text.splitlines() if line]


def test_mode_does_not_depend_on_the_umask(path: Path) -> None:
    before = os.umask(0)
    try:
        load_or_create_key(path)
    finally:
        os.umask(before)
    assert mode(path) == 0o600


def test_new_keys_differ(tmp_path: Path) -> None:
    assert load_or_create_key(tmp_path / "a") != load_or_create_key(tmp_path / "b")


# Reading one


def test_an_existing_file_is_read_and_not_rewritten(path: Path) -> None:
    text = json.dumps({"PrivateKey": v.CLIENT_PRIVATE_TEXT, "Other": 1})
    path.write_text(text)
    path.chmod(0o400)
    before = path.stat()
    assert load_or_create_key(path) == v.CLIENT
    after = path.stat()
    assert path.read_text() == text
    assert (after.st_ino, after.st_mtime_ns, after.st_mode) == (
        before.st_ino,
        before.st_mtime_ns,
        before.st_mode,
    )


def test_hex_may_be_in_upper_case(path: Path) -> None:
    path.write_text(json.dumps({"PrivateKey": "privkey:" + SECRET.upper()}))
    assert load_or_create_key(path) == v.CLIENT


@pytest.mark.parametrize(("bits", "warned"), [(0o600, False), (0o400, False), (0o640, True)])
def test_a_file_that_other_users_may_read_is_warned_of(
    path: Path, bits: int, warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    path.write_text(json.dumps({"PrivateKey": v.CLIENT_PRIVATE_TEXT}))
    path.chmod(bits)
    with caplog.at_level(logging.WARNING, "pyderp.relay"):
        load_or_create_key(path)
    assert caplog.messages == (
        [f"the secret in {path} has mode 0640: other users may read it; use 0600"] if warned else []
    )


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (b"", "is not JSON"),
        (b"{", "is not JSON"),
        (v.CLIENT_PRIVATE_TEXT.encode(), "holds a key alone"),
        (f'{{"PrivateKey": "{v.CLIENT_PRIVATE_TEXT}"'.encode(), "is not JSON"),
        (f'{{"PrivateKey": {SECRET}}}'.encode(), "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"{}", 'lacks "PrivateKey"'),
        (b"null", 'lacks "PrivateKey"'),
        (b"[]", 'lacks "PrivateKey"'),
        (f'"{v.CLIENT_PRIVATE_TEXT}"'.encode(), 'lacks "PrivateKey"'),
        (b'{"PrivateKey": null}', 'lacks "PrivateKey"'),
        (b'{"PrivateKey": 7}', 'lacks "PrivateKey"'),
        (b'{"PrivateKey": ""}', "holds no usable key: key hex string doesn't have expected type"),
        (f'{{"PrivateKey": "{SECRET}"}}'.encode(), "expected type prefix privkey:"),
        (
            f'{{"PrivateKey": "privkey:{SECRET[:-1]}"}}'.encode(),
            "want privkey: and 64 hex digits, got 63",
        ),
        (f'{{"PrivateKey": "privkey:{SECRET[:-1]}g"}}'.encode(), "invalid hex character in key"),
        (f'{{"PrivateKey": "privkey:{"0" * 64}"}}'.encode(), "zero key"),
        (f'{{"PrivateKey": "{v.CLIENT_PRIVATE_TEXT}"}}\xff'.encode("latin-1"), "it is not text"),
    ],
)
def test_an_unusable_file_is_refused_without_showing_it(
    path: Path, content: bytes, error: str
) -> None:
    path.write_bytes(content)
    assert error in refused(path)
    assert path.read_bytes() == content


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    """Here it is a directory, as root can read every file."""
    assert (
        refused(tmp_path)
        == f"cannot read the key file {tmp_path}: Is a directory; give a file, not a folder"
    )


def test_a_file_below_a_file_cannot_be_read(path: Path) -> None:
    path.write_text("")
    assert "Not a directory" in refused(path / "relay.key")


def test_a_file_that_cannot_be_made_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert refused(path) == f"cannot make the key file {path}: No space left on device"
    assert list(path.parent.iterdir()) == []


def test_a_dangling_link_is_refused_and_not_followed(path: Path, tmp_path: Path) -> None:
    path.symlink_to(tmp_path / "nowhere")
    assert "appears and disappears" in refused(path)
    assert not (tmp_path / "nowhere").exists()


def test_an_unknown_mode_is_not_warned_of(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = load_or_create_key(path)

    def gone(_: Path) -> os.stat_result:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "stat", gone)
    assert load_or_create_key(path) == key


# Two at once


def test_the_second_of_two_creators_takes_the_key_of_the_first(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one makes the file after this one looked for it, and before it makes its own."""
    generate = NodePrivate.generate
    others: list[NodePrivate] = []

    def generate_late(random: bytes | None = None) -> NodePrivate:
        if not others:
            others.append(generate(random))
            others.append(load_or_create_key(path))
        return generate(random)

    monkeypatch.setattr(NodePrivate, "generate", generate_late)
    key = load_or_create_key(path)
    assert key == others[1]
    assert [entry.name for entry in path.parent.iterdir()] == ["relay.key"]
    assert load_or_create_key(path) == key


def test_many_creators_end_with_one_key(path: Path) -> None:
    keys: list[NodePrivate] = []
    barrier = threading.Barrier(8)

    def create() -> None:
        barrier.wait()
        keys.append(load_or_create_key(path))

    threads = [threading.Thread(target=create) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(keys) == 8
    assert set(keys) == {load_or_create_key(path)}
    assert [entry.name for entry in path.parent.iterdir()] == ["relay.key"]


# Writing


def test_a_file_is_replaced_as_a_whole(path: Path) -> None:
    path.write_bytes(b"old")
    old = path.open("rb")
    with old:
        assert write_atomically(path, b"new", mode=0o640)
        assert old.read() == b"old"  # a process that reads it still has the old one
    assert path.read_bytes() == b"new"
    assert mode(path) == 0o640


def test_a_file_is_replaced_on_request_only(path: Path) -> None:
    path.write_bytes(b"old")
    assert not write_atomically(path, b"new", mode=0o600, replace=False)
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in path.parent.iterdir()] == ["relay.key"]


@pytest.mark.parametrize("replace", [True, False])
def test_a_failed_write_leaves_nothing(
    path: Path, monkeypatch: pytest.MonkeyPatch, replace: bool
) -> None:
    path.write_bytes(b"old")

    def fail(*_: object, **__: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Path, "replace", fail)
    monkeypatch.setattr(os, "link", fail)
    with pytest.raises(OSError, match="Input/output error"):
        write_atomically(path, b"new", mode=0o600, replace=replace)
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in path.parent.iterdir()] == ["relay.key"]


def test_a_file_is_on_disk_before_it_has_its_name(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """First the content, at its final mode, then the name, then the directory."""
    seen: list[str] = []
    fsync = os.fsync

    def watch(fd: int) -> None:
        status = os.fstat(fd)
        if stat.S_ISDIR(status.st_mode):
            seen.append(f"directory, named: {path.exists()}")
        else:
            bits = stat.S_IMODE(status.st_mode)
            seen.append(f"{status.st_size} bytes, {bits:o}, named: {path.exists()}")
        fsync(fd)

    monkeypatch.setattr(os, "fsync", watch)
    write_atomically(path, b"content", mode=0o600)
    assert seen == ["7 bytes, 600, named: False", "directory, named: True"]


# Mesh keys


@pytest.mark.parametrize(
    "text", [v.MESH_KEY_TEXT, f"{v.MESH_KEY_TEXT}\n", f"  {v.MESH_KEY_TEXT.upper()}\r\n\n"]
)
def test_a_mesh_key_is_read_from_a_file(path: Path, text: str) -> None:
    path.write_text(text)
    assert read_mesh_key(path) == MeshKey.parse(v.MESH_KEY_TEXT)


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (b"", "cannot be used: invalid mesh key"),
        (SECRET[:16].encode(), "invalid mesh key: want 64 hex digits, got 16"),
        (f"{SECRET}0".encode(), "want 64 hex digits, got 65"),
        (f"{SECRET[:-1]}g".encode(), "invalid hex character"),
        (b"0" * 64, "the zero key grants nothing"),
        (SECRET.encode() + b"\xff", "it is not text"),
    ],
)
def test_unusable_mesh_key_file_is_refused_without_showing_it(
    path: Path, content: bytes, error: str
) -> None:
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        read_mesh_key(path)
    assert error in str(caught.value)
    assert str(path) in str(caught.value)
    assert SECRET[:8] not in str(caught.value) + str(caught.value.__cause__)


def test_missing_mesh_key_file_is_refused_and_not_made(path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file or directory"):
        read_mesh_key(path)
    assert not path.exists()


# Paths that are no regular files


def test_a_regular_file_is_read_up_to_its_limit(path: Path) -> None:
    path.write_bytes(b"x" * 100)
    assert read_regular(path, 100) == b"x" * 100
    with pytest.raises(OSError, match="larger than 99 bytes") as caught:
        read_regular(path, 99)
    assert caught.value.strerror == "larger than 99 bytes"
    link = path.parent / "link"
    link.symlink_to(path)
    assert read_regular(link, 100) == b"x" * 100


def test_a_path_that_is_no_file_is_refused_without_waiting(path: Path) -> None:
    os.mkfifo(path, 0o600)
    for each in (path, Path("/dev/zero")):
        with pytest.raises(OSError, match="not a regular file") as caught:
            read_regular(each, 100)
        assert caught.value.strerror == "not a regular file"
    with pytest.raises(IsADirectoryError):
        read_regular(path.parent, 100)
    with pytest.raises(FileNotFoundError):
        read_regular(path.parent / "none", 100)


def test_a_fifo_is_no_key_file(path: Path) -> None:
    os.mkfifo(path, 0o600)
    assert refused(path) == f"cannot read the key file {path}: not a regular file"
    with pytest.raises(ConfigError, match=r"mesh key file .*: not a regular file"):
        read_mesh_key(path)


def test_a_fifo_with_a_key_in_it_is_no_key_file(path: Path) -> None:
    """The shell's process substitution makes one."""
    reader, writer = os.pipe()
    try:
        os.write(writer, v.MESH_KEY_TEXT.encode())
        with pytest.raises(ConfigError, match="not a regular file"):
            read_mesh_key(Path(f"/dev/fd/{reader}"))
    finally:
        os.close(reader)
        os.close(writer)


def test_a_stamp_distinguishes_versions_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    assert file_stamp(path) is None
    path.write_text("one")
    first = file_stamp(path)
    assert first is not None
    assert file_stamp(path) == first
    os.utime(path, ns=(0, 1))
    assert file_stamp(path) != first
    (tmp_path / "other").write_text("one")
    os.utime(tmp_path / "other", ns=(first.changed_ns, first.changed_ns))
    (tmp_path / "other").replace(path)
    assert file_stamp(path) != first


class TestLoad:
    """`NodePrivate.load`: a program's key, saved in a file."""

    def test_the_key_is_the_same_each_time(self, tmp_path: Path) -> None:
        path = tmp_path / "folder" / "me.key"
        key = NodePrivate.load(path, create=True)
        assert NodePrivate.load(str(path)) == NodePrivate.load(path, create=True) == key
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert load_or_create_key(path) == key

    @pytest.mark.parametrize("end", ["", "\n", " \r\n"])
    def test_a_file_with_a_key_only_is_read(self, tmp_path: Path, end: str) -> None:
        key = NodePrivate.generate()
        path = tmp_path / "me.key"
        path.write_bytes((key.to_text() + end).encode())
        path.chmod(0o600)
        assert NodePrivate.load(path) == key

    def test_the_error_of_a_missing_file_has_advice(self, tmp_path: Path) -> None:
        path = tmp_path / "me.key"
        with pytest.raises(ConfigError, match="does not exist; use create=True, or run: pyderp"):
            NodePrivate.load(path)
        assert not path.exists()

    @pytest.mark.parametrize("content", ["privkey:12", "12", "{}", "[]", '"x"', ""])
    def test_a_file_without_a_key_is_refused_and_neither_shown_nor_replaced(
        self, tmp_path: Path, content: str
    ) -> None:
        path = tmp_path / "me.key"
        path.write_text(content)
        path.chmod(0o600)
        with pytest.raises(ConfigError, match=r"me\.key") as caught:
            NodePrivate.load(path, create=True)
        assert "12" not in str(caught.value).replace(str(path), "")
        assert path.read_text() == content
