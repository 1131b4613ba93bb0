"""Authorities that are hostile or broken."""

from __future__ import annotations

import contextlib
import gzip
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from http import HTTPStatus
from pathlib import Path

import pytest
import requests
from acme import errors, messages

from pyderp.certs import network as network_module
from pyderp.certs import session as session_module
from pyderp.certs.network import Refused, Stopped, describe, retry_after
from pyderp.certs.session import Session
from pyderp.errors import ConfigError
from tests.server.certificates import write_pair

from .handshake import NAME
from .test_session import Quiet, serving, session

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"


def getting(answer: Callable[[Quiet], None]) -> type[Quiet]:
    """Return a request handler that answers GET with `answer`."""
    return type("Getting", (Quiet,), {"do_GET": answer})


@contextlib.contextmanager
def sending(folder: Path, head: bytes, rest: bytes, pause: float = 0.0) -> Iterator[int]:
    """A server that sends the rest over and over, until the client closes or the block ends.

    Yields the port.
    """
    over = threading.Event()

    def answer(self: Quiet) -> None:
        with contextlib.suppress(OSError):
            self.wfile.write(head)
            while not over.wait(pause):
                self.wfile.write(rest)

    with serving(folder, getting(answer)) as port:
        try:
            yield port
        finally:
            over.set()


CHUNK = b"10000\r\n" + b" " * 65536 + b"\r\n"


@pytest.mark.parametrize(
    ("head", "rest"),
    [
        (HEAD + b"\r\n", b" " * 65536),
        (HEAD + b"Content-Length: 99999999999\r\n\r\n", b" " * 65536),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n", CHUNK),
    ],
    ids=["until closed", "of a length", "chunked"],
)
def test_an_endless_body_is_refused(tmp_path: Path, head: bytes, rest: bytes) -> None:
    with (
        sending(tmp_path, head, rest) as port,
        pytest.raises(Refused, match="is not ACME: more than 1048576 bytes in one answer"),
    ):
        session(tmp_path, port).obtain(NAME, 0)


def test_the_size_of_all_answers_together_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(network_module, "_LONGEST_EXCHANGE", 50_000)
    asked = []

    def answer(self: Quiet) -> None:
        asked.append(self.path)
        self.answer(302, b" " * 20_000, Location=f"/{len(asked)}")

    with (
        serving(tmp_path, getting(answer)) as port,
        pytest.raises(Refused, match="more than 50000 bytes in all"),
    ):
        session(tmp_path, port).obtain(NAME, 0)
    assert len(asked) == 3


DRIPS = pytest.mark.parametrize(
    ("head", "rest"),
    [
        (HEAD + b"\r\n", b" "),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"0"),
        (HEAD + b"Odd: ", b"x"),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        (b"", b""),
    ],
    ids=["body", "length of a chunk", "header", "interim answers", "silence"],
)


@DRIPS
def test_a_server_that_sends_a_byte_now_and_then_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, head: bytes, rest: bytes
) -> None:
    monkeypatch.setattr(session_module, "_BUDGET", 0.3)
    monkeypatch.setattr(session_module, "_ADVICE_BUDGET", 0.3)
    write_pair(tmp_path, NAME)
    chain = (tmp_path / f"{NAME}.crt").read_bytes()
    asks: list[Callable[[Session], object]] = [
        lambda s: s.obtain(NAME, 0),
        lambda s: s.renewal(chain),
    ]
    for ask in asks:
        begun = time.monotonic()
        with (
            sending(tmp_path, head, rest, pause=0.02) as port,
            pytest.raises(Refused, match="the authority takes too long"),
        ):
            ask(session(tmp_path, port))
        assert time.monotonic() - begun < 5


def test_reading_ends_when_the_relay_stops(tmp_path: Path) -> None:
    stop = threading.Event()
    timer = threading.Timer(0.1, stop.set)
    with sending(tmp_path, HEAD + b"\r\n", b" ", pause=0.02) as port:
        timer.start()
        with pytest.raises(Stopped):
            session(tmp_path, port, stop).obtain(NAME, 0)
    timer.join()


@pytest.mark.parametrize("status", [200, 400])
def test_deeply_nested_answers_are_refused(tmp_path: Path, status: int) -> None:
    def answer(self: Quiet) -> None:
        self.answer(status, b"[" * 500_000)

    with (
        serving(tmp_path, getting(answer)) as port,
        pytest.raises(Refused, match="is not ACME: it is too deeply nested"),
    ):
        session(tmp_path, port).obtain(NAME, 0)


def test_compressed_answers_are_neither_requested_nor_decompressed(tmp_path: Path) -> None:
    packed = gzip.compress(b" " * 50_000_000)
    wanted: list[str | None] = []

    def answer(self: Quiet) -> None:
        wanted.append(self.headers["Accept-Encoding"])
        self.answer(200, packed, Content_Encoding="gzip", Content_Type="application/json")

    with serving(tmp_path, getting(answer)) as port, pytest.raises(Refused, match="is not ACME"):
        session(tmp_path, port).obtain(NAME, 0)
    assert wanted == ["identity"]


def test_a_truncated_answer_is_a_failure(tmp_path: Path) -> None:
    def answer(self: Quiet) -> None:
        self.answer(200, b"{", Content_Length="100")

    with serving(tmp_path, getting(answer)) as port, pytest.raises(Refused, match="cannot reach"):
        session(tmp_path, port).obtain(NAME, 0)


def test_requests_that_hang_are_abandoned_and_bounded_in_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_module, "_BUDGET", 0.1)
    monkeypatch.setattr(network_module, "_hanging", threading.BoundedSemaphore(2))

    def hanging() -> int:
        return sum(each.name == "pyderp-acme-http" for each in threading.enumerate())

    before = hanging()
    with sending(tmp_path, HEAD + b"\r\n", b" ", pause=0.02) as port:
        for _ in range(4):
            with pytest.raises(Refused, match="the authority takes too long"):
                session(tmp_path, port).obtain(NAME, 0)
            assert hanging() - before <= 2
    while hanging() > before:  # they end after the server
        time.sleep(0.01)


# Errors as one line


PREFIX = messages.ERROR_PREFIX
NOW = 1_800_000_000.0


def problem(code: str, detail: str | None = None, **more: object) -> messages.Error:
    made: messages.Error = messages.Error.from_json(
        {"type": PREFIX + code, "detail": detail, **more}
    )
    return made


def answered(status: int) -> requests.Response:
    response = requests.Response()
    response.status_code = status
    response.reason = HTTPStatus(status).phrase
    return response


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (problem("rateLimited", "too many\x1b[31m"), r"rateLimited: too many\x1b[31m"),
        (problem("caa"), "caa: no reason given"),
        (
            problem("compound", "two", subproblems=[{"type": PREFIX + "dns", "detail": "gone"}]),
            "compound: two (dns: gone)",
        ),
        (errors.IssuanceError(problem("badCSR", "weak key")), "badCSR: weak key"),
        (errors.ValidationError([]), "a challenge failed"),
        (errors.ClientError(answered(502)), "the authority's answer is not ACME: 502 Bad Gateway"),
        (errors.ClientError("odd type"), "the authority's answer is not ACME: odd type"),
        (
            errors.MissingNonce(answered(200)),
            "the authority's answer is not ACME: it lacks the header Replay-Nonce",
        ),
        (
            requests.exceptions.SSLError(ssl.SSLCertVerificationError(1, "[SSL: X] x (_ssl.c:1)")),
            "cannot reach the authority: x",
        ),
        (requests.ConnectionError("odd"), "cannot reach the authority: odd"),
        (requests.ReadTimeout(TimeoutError("timed out")), "cannot reach the authority: timed out"),
        (ConfigError("cannot read it"), "cannot read it"),
        (OSError(28, "No space left on device"), "No space left on device"),
        (KeyError("newNonce"), "the authority's answer is not ACME: it lacks newNonce"),
    ],
)
def test_errors_are_described_in_one_line(error: Exception, text: str) -> None:
    assert describe(error).startswith(text)


def test_long_descriptions_are_shortened() -> None:
    text = describe(problem("malformed", "x" * 10000))
    assert len(text) == 400
    assert text.endswith("…")


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("120", 120),
        (" 0 ", 0),
        ("Fri, 15 Jan 2027 08:01:40 GMT", 100),
        ("Fri, 01 Jan 2021 00:00:00 GMT", 0),
        ("soon", None),
        ("9" * 50, None),
        ("-5", None),
    ],
)
def test_retry_after_may_be_a_number_or_a_date(value: str | None, seconds: float | None) -> None:
    assert retry_after(value, NOW) == seconds
