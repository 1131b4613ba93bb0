"""Text of a peer stays on one line and does not control a terminal."""

from __future__ import annotations

import socket
import ssl

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyderp.text import counted, h11_words, name_words, openssl_words, printable, system_words


@pytest.mark.parametrize(
    ("number", "words", "text"),
    [
        (0, ("key",), "0 keys"),
        (1, ("key",), "1 key"),
        (2, ("key",), "2 keys"),
        (1, ("address", "addresses"), "1 address"),
        (3, ("address", "addresses"), "3 addresses"),
    ],
)
def test_a_noun_has_the_form_of_its_number(number: int, words: tuple[str, ...], text: str) -> None:
    assert counted(number, *words) == text


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
def test_characters_that_are_not_printable_are_escaped(text: str, shown: str) -> None:
    assert printable(text) == shown


@given(st.text(st.characters()))
def test_the_result_is_printable(text: str) -> None:
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
def test_text_above_the_limit_is_cut(text: str, shown: str) -> None:
    assert printable(text, 5) == shown


@given(st.text(st.characters(), min_size=1), st.integers(1, 20))
def test_a_cut_text_has_the_limit_and_is_a_start_of_the_whole(text: str, longest: int) -> None:
    whole, shown = printable(text), printable(text, longest)
    assert len(shown) == min(len(whole), longest)
    assert shown == whole or (shown[-1] == "…" and whole.startswith(shown[:-1]))


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("illegal status line: bytearray(b'abc')", "illegal status line: 'abc'"),
        ('illegal header line: bytearray(b"a\'b")', 'illegal header line: "a\'b"'),
        ("illegal header value b'a\\n'", "illegal header value 'a\\n'"),
        ("too large", "too large"),
    ],
)
def test_bytes_that_h11_quotes_are_shown_without_their_type(said: str, expected: str) -> None:
    assert h11_words(ValueError(said)) == expected


@pytest.mark.parametrize(
    ("reason", "text", "expected"),
    [
        ("BAD_RECORD_TYPE", "[SSL: X] x (_ssl.c:1)", "bad record type"),
        ("NO_CERTIFICATE_ASSIGNED", "", "the key does not belong to the certificate"),
        (
            "TLSV13_ALERT_CERTIFICATE_REQUIRED",
            "",
            "the other side ended it with the alert 'certificate required'",
        ),
        (
            None,
            "[SSL] tlsv1 alert no application protocol (_ssl.c:1032)",
            "the other side ended it with the alert 'no application protocol'",
        ),
        (None, "[SSL] unknown error (_ssl.c:1032)", "unknown error"),
        (None, "[SSL] PEM lib (_ssl.c:3895)", "it is not in PEM form, or not whole"),
        (None, "", "TLS failed"),
    ],
)
def test_names_of_openssl_become_words(reason: str | None, text: str, expected: str) -> None:
    error = ssl.SSLError(1, text)
    error.reason = reason or ""
    assert openssl_words(error) == system_words(error) == expected


def test_a_refused_certificate_is_described_by_the_verifier() -> None:
    error = ssl.SSLCertVerificationError(1, "[SSL: CERTIFICATE_VERIFY_FAILED] … (_ssl.c:1000)")
    error.verify_message = "Hostname mismatch."
    assert system_words(error) == "the certificate is not accepted: Hostname mismatch"


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(111, "Connect call failed ('127.0.0.1', 1)"), "Connection refused"),
        (socket.gaierror(-2, "Name or service not known"), "Name or service not known"),
        (OSError("odd"), "odd"),
        (TimeoutError(), "TimeoutError"),
    ],
)
def test_errors_of_the_system_have_no_numbers_and_tuples(error: OSError, expected: str) -> None:
    assert system_words(error) == expected


@pytest.mark.parametrize("name", ["a..b", "x" * 64])
def test_the_error_of_an_invalid_host_name_does_not_mention_codecs(name: str) -> None:
    with pytest.raises(UnicodeError) as caught:
        name.encode("idna")
    assert "codec" not in name_words(caught.value)
    assert "longer than 63 characters" in name_words(caught.value)
    assert name_words(ValueError("embedded\0")) == "embedded\\x00"
