from __future__ import annotations

import contextlib
import logging
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyderp import NodePublic
from pyderp.admission.allowlist import AllowList, parse_allow_list, read_allow_list
from pyderp.admission.verdict import Verdict
from pyderp.errors import ConfigError

from .fakes import key


def test_all_forms_of_lines_are_read() -> None:
    text = f"""\ufeff# office

{key(1)}
  {key(2)}\talice's  laptop
{str(key(3)).upper().replace("NODEKEY", "nodekey")} söö # until May
{key(4)} #none
{key(5)} room #5\r
\t# end"""
    assert parse_allow_list(text.encode(), "f") == {
        key(1): "",
        key(2): "alice's laptop",
        key(3): "söö",
        key(4): "",
        key(5): "room",
    }
    assert parse_allow_list(b"", "f") == {}


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("f" * 64, "not a node key"),
        ("privkey:" + "ab" * 32, "not a node key"),
        ("alice " + str(key(1)), "not a node key"),
        ("nodekey:" + "f" * 63, "want nodekey: and 64 hex digits, got 63"),
        ("nodekey:" + "f" * 63 + "g", "invalid hex"),
        ("nodekey:" + "f" * 63 + "#", "invalid hex"),
        ("nodekey:" + "0" * 64, "zero key"),
        (str(key(7)), "the same key as in line 2"),
        (f"{key(1)} {key(2)}", "two keys in one line"),
        (f"{key(1)} alice,{key(2)}", "two keys in one line"),
        (f"{key(1)} alice; {str(key(2)).upper()}", "two keys in one line"),
        (f"{key(1)}\x1f{key(2)}", "two keys in one line"),
        (str(key(1)) + " " + "x" * 201, "a label of 201 characters"),
        (str(key(1)) + " a\x07b", "control characters"),
        (str(key(1)) + " a\u202eb", "control characters"),
        (str(key(1)) + " \udcff", "not UTF-8"),
    ],
)
def test_a_bad_line_is_named_and_not_quoted(line: str, what: str) -> None:
    data = f"# one\n{key(7)}\n{line}\n".encode(errors="surrogateescape")
    with pytest.raises(ConfigError, match=rf"^f, line 3: .*{what}") as caught:
        parse_allow_list(data, "f")
    assert line[:64] not in str(caught.value)


@pytest.mark.parametrize("separator", "\r\v\f\x1c\x1d\x1e\x85\u2028\u2029")
@pytest.mark.parametrize("form", ["{a}{s}{b}", "{a} label{s}{b}", "# comment{s}{b}", "{a}{s}\r"])
def test_other_line_breaks_are_refused(separator: str, form: str) -> None:
    """An editor shows two lines; the second would be part of a label or of a comment."""
    line = form.format(a=key(1), b=key(2), s=separator)
    with pytest.raises(ConfigError, match=r"^f, line 2: a line break U\+[0-9A-F]{4}; "):
        parse_allow_list(f"{key(7)}\n{line}\n".encode(), "f")


@given(st.binary() | st.text().map(str.encode))
def test_any_bytes_are_a_list_or_an_error(data: bytes) -> None:
    labels: dict[NodePublic, str] = {}
    with contextlib.suppress(ConfigError):
        labels = parse_allow_list(data, "f")
    assert not labels


@given(st.dictionaries(st.binary(min_size=32, max_size=32).filter(any), st.from_regex(r"\A\w*\Z")))
def test_a_written_list_is_read_back(labels: dict[bytes, str]) -> None:
    text = "".join(f"{NodePublic(raw)} {label[:200]}\n" for raw, label in labels.items())
    read = parse_allow_list(text.encode(), "f")
    assert read == {NodePublic(raw): label[:200] for raw, label in labels.items()}


def test_a_file_that_cannot_be_read_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"allow file .*none: No such file"):
        read_allow_list(tmp_path / "none")
    with pytest.raises(ConfigError, match=r"allow file .*: Is a directory"):
        AllowList(tmp_path).load()


class Files:
    """An allow file and its list."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.write(1, 2)
        self.list = AllowList(path)
        self.list.load()

    def write(self, *keys: int) -> None:
        self.path.write_text("".join(f"{key(n)} label {n}\n" for n in keys))
        self.touch()

    def touch(self) -> None:
        """Set a new time, also where the clock of the file system is coarse."""
        status = self.path.stat()
        os.utime(self.path, ns=(status.st_atime_ns, status.st_mtime_ns + 1_000_000))

    def keys(self) -> set[int]:
        return {n for n in range(10) if self.list.verdict(key(n)).allowed}


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path / "keys")


def test_a_file_that_is_replaced_by_a_fifo_does_not_block(
    files: Files, caplog: pytest.LogCaptureFixture
) -> None:
    files.path.unlink()
    os.mkfifo(files.path)
    assert not files.list.look()
    assert not files.list.look()
    assert not files.list.reload()
    assert files.keys() == {1, 2}
    assert all("not a regular file" in line for line in caplog.messages)
    assert len(caplog.messages) == 2


def test_before_the_file_is_read_no_key_is_allowed(tmp_path: Path) -> None:
    assert not AllowList(tmp_path / "keys").verdict(key(1)).allowed


def test_verdicts_have_labels_and_reasons(files: Files) -> None:
    assert files.list.verdict(key(1)) == Verdict(True, label="label 1")
    assert files.list.verdict(key(3)) == Verdict(
        False, f"peer {key(3)} not authorized (not in the allow file)"
    )
    assert (files.list.label(key(2)), files.list.label(key(3))) == ("label 2", "")
    assert len(files.list) == 2


def test_a_change_counts_when_two_looks_find_it_unchanged(files: Files) -> None:
    assert not files.list.look()
    files.write(2, 3)
    assert not files.list.look()
    assert files.keys() == {1, 2}
    assert files.list.look()
    assert files.keys() == {2, 3}
    assert not files.list.look()


def test_a_file_that_is_being_written_is_not_read(files: Files) -> None:
    for n in range(3, 6):
        files.path.write_text("")
        files.touch()
        assert not files.list.look()
        files.write(*range(n))
        assert not files.list.look()
    assert files.keys() == {1, 2}


def test_reload_reads_at_once(files: Files) -> None:
    files.write(3)
    assert files.list.reload()
    assert files.keys() == {3}
    assert not files.list.look()


def test_a_file_replaced_by_one_of_same_time_and_size_is_read(files: Files, tmp_path: Path) -> None:
    status = files.path.stat()
    other = Files(tmp_path / "other")
    other.write(8, 9)
    os.utime(other.path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert other.path.stat().st_size == status.st_size
    other.path.replace(files.path)
    assert [files.list.look(), files.list.look()] == [False, True]
    assert files.keys() == {8, 9}


def test_a_broken_file_keeps_the_old_list_and_is_logged_once(
    files: Files, caplog: pytest.LogCaptureFixture
) -> None:
    files.path.write_text(f"{key(3)}\nnonsense\n")
    files.touch()
    assert not any(files.list.look() for _ in range(5))
    assert files.keys() == {1, 2}
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert f"the old list of 2 stays: allow file {files.path}, line 2: " in record.getMessage()
    files.write(3)
    assert [files.list.look(), files.list.look()] == [False, True]
    assert files.keys() == {3}


def test_a_missing_file_keeps_the_old_list_and_is_logged_once(
    files: Files, caplog: pytest.LogCaptureFixture
) -> None:
    files.path.unlink()
    assert not any(files.list.look() for _ in range(5))
    assert not files.list.reload()
    assert files.keys() == {1, 2}
    assert len(caplog.records) == 2
    assert all("No such file" in record.getMessage() for record in caplog.records)
    files.write(3)
    assert [files.list.look(), files.list.look()] == [False, True]
    assert files.keys() == {3}


def test_an_empty_list_is_accepted_with_a_warning(
    files: Files, caplog: pytest.LogCaptureFixture
) -> None:
    files.write()
    assert files.list.reload()
    assert files.keys() == set()
    assert "allows no client" in caplog.text


@pytest.mark.parametrize(("keys", "text"), [((5,), "1 key"), ((5, 6), "2 keys")])
def test_the_log_has_the_number_of_keys(
    files: Files, caplog: pytest.LogCaptureFixture, keys: tuple[int, ...], text: str
) -> None:
    caplog.set_level(logging.INFO, "pyderp.admission")
    files.write(*keys)
    assert files.list.reload()
    assert caplog.messages == [f"read {text} from {files.path}"]
    files.path.write_text("nonsense\n")
    assert not files.list.reload()
    assert files.list.trouble.startswith(f"the old list of {text} stays in use: ")


def test_an_unchanged_list_is_no_change(files: Files) -> None:
    files.touch()
    assert [files.list.look(), files.list.look()] == [False, False]
