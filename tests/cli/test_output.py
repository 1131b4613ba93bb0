"""Text of peers cannot control a terminal, and different packets are printed differently."""

from __future__ import annotations

import io
import json
import sys

import pytest

from pyderp.cli.output import Output, escaped, escaped_bytes
from pyderp.keys import NodePrivate

SOURCE = NodePrivate.generate().public


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain text, ü, 💬", "plain text, ü, 💬"),
        ("\x1b[31mred", r"\x1b[31mred"),
        ("two\nlines\r\t\0", r"two\nlines\r\t\x00"),
        (r"a\n", r"a\\n"),
        ("\x7f\x85\u202e\u2028\ue000\U000e0001", r"\x7f\u0085\u202e\u2028\ue000\U000e0001"),
    ],
)
def test_control_characters_are_escaped(text: str, shown: str) -> None:
    assert escaped(text) == shown
    assert escaped(text).isprintable()
    assert escaped_bytes(text.encode()) == shown


@pytest.mark.parametrize(
    ("data", "shown"),
    [
        (b"\xff\x00ok", r"\xff\x00ok"),
        (b"\x85 \xc2\x85", r"\x85 \u0085"),
        (b"\\xff \xff", r"\\xff \xff"),
        (b"\xed\xb2\x80", r"\xed\xb2\x80"),
    ],
)
def test_bytes_that_are_not_utf_8_are_escaped(data: bytes, shown: str) -> None:
    assert escaped_bytes(data) == shown


def test_different_packets_are_printed_differently() -> None:
    seen = {escaped_bytes(bytes((a, b))) for a in range(256) for b in range(256)}
    assert len(seen) == 65536


def test_a_packet_is_printed_on_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    Output(as_json=False).packet(SOURCE, b"a\nb")
    assert capsys.readouterr() == (f"{SOURCE} a\\nb\n", "")


def test_json_has_bytes_and_text_if_they_are_text(capsys: pytest.CaptureFixture[str]) -> None:
    output = Output(as_json=True)
    output.packet(SOURCE, "ü\n".encode())
    output.packet(SOURCE, b"\xff")
    text, data = map(json.loads, capsys.readouterr().out.splitlines())
    assert text.pop("time") > 0
    assert text == {"type": "packet", "source": str(SOURCE), "data": "w7wK", "text": "ü\n"}
    assert data["data"] == "/w=="
    assert "text" not in data


def test_remarks_go_to_standard_error_and_are_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    Output(as_json=False).remark("health", "\x1b[2Jgone", problem="\x1b[2Jgone")
    assert capsys.readouterr() == ("", "pyderp: \\x1b[2Jgone\n")
    Output(as_json=True).remark("health", "x", problem="\x1b[2J")
    out, err = capsys.readouterr()
    assert json.loads(out)["problem"] == "\x1b[2J"
    assert "\x1b" not in out
    assert err == "pyderp: x\n"


def test_remarks_keep_backslashes(capsys: pytest.CaptureFixture[str]) -> None:
    """Errors contain escaped values already."""
    Output(as_json=False).note(f"HostName {'a' + chr(13)!r} is bad")
    assert capsys.readouterr().err == "pyderp: HostName 'a\\r' is bad\n"


def test_standard_error_may_be_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone(io.StringIO):
        def write(self, _: str) -> int:
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stderr", Gone())
    Output(as_json=False).note("x")
