"""Text of a peer stays in its line and does nothing to a terminal."""

from __future__ import annotations

import ssl

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyderp.text import h11_words, openssl_words, printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("", ""),
        ("no, no", "no, no"),
        ("é 🔑 \ufffd", "é 🔑 \ufffd"),
        ("x\nCRITICAL all is lost", r"x\nCRITICAL all is lost"),
        ("a\r\n\tb\0", r"a\r\n\tb\x00"),
        ("\x1b[31m", r"\x1b[31m"),
        ("\x9b31m\x85\x7f", r"\x9b31m\x85\x7f"),
        ("\u2028\u202egpj\ufeff", r"\u2028\u202egpj\ufeff"),
        ("\ud800\U000e0041", r"\ud800\U000e0041"),
    ],
)
def test_what_is_not_printable_is_escaped(text: str, shown: str) -> None:
    assert printable(text) == shown


@given(st.text(st.characters()))
def test_all_of_it_is_printable(text: str) -> None:
    shown = printable(text)
    assert shown.isprintable()
    assert shown == text or not text.isprintable()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("", ""),
        ("12345", "12345"),
        ("123456", "1234…"),
        ("1\n345", "1\\n3…"),
        ("12\x1b", "12\\x…"),
        ("1\n34", "1\\n34"),
    ],
)
def test_more_than_the_longest_is_cut(text: str, shown: str) -> None:
    assert printable(text, 5) == shown


@given(st.text(st.characters(), min_size=1), st.integers(1, 20))
def test_what_is_cut_is_no_longer_and_the_start_of_the_whole(text: str, longest: int) -> None:
    whole, shown = printable(text), printable(text, longest)
    assert len(shown) == min(len(whole), longest)
    assert shown == whole or (shown[-1] == "…" and whole.startswith(shown[:-1]))


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("illegal status line: bytearray(b'abc')", "illegal status line: 'abc'"),
        ('illegal header line: bytearray(b"a\'b")', 'illegal header line: "a\'b"'),
        ("too large", "too large"),
    ],
)
def test_bytes_that_h11_quotes_are_shown_without_their_type(said: str, told: str) -> None:
    assert h11_words(ValueError(said)) == told


def test_names_of_openssl_become_words() -> None:
    error = ssl.SSLError(1, "[SSL: X] x (_ssl.c:1)")
    error.reason = "BAD_RECORD_TYPE"
    assert openssl_words(error) == "bad record type"
    error.reason = "NO_CERTIFICATE_ASSIGNED"
    assert openssl_words(error) == "the key does not belong to the certificate"
