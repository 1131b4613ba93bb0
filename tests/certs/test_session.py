"""Answers of an authority other than certificates; certificates are tested with Pebble."""

from __future__ import annotations

import contextlib
import http.server
import json
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from acme import messages

from pyderp.certs.challenges import Challenges
from pyderp.certs.network import Budget, Refused, Stopped
from pyderp.certs.session import Session, load_key
from pyderp.certs.store import Store
from pyderp.config import ACMETLS
from tests.server.certificates import write_pair

from .handshake import NAME

LIMITED = {"type": "urn:ietf:params:acme:error:rateLimited", "detail": "come back later"}
STALE = b'{"type": "urn:ietf:params:acme:error:badNonce", "detail": "stale"}'


class Quiet(http.server.BaseHTTPRequestHandler):
    def answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None: ...


@contextlib.contextmanager
def serving(folder: Path, handler: type[Quiet]) -> Iterator[int]:
    """Run an HTTPS server; yield its port."""
    write_pair(folder, "127.0.0.1")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "127.0.0.1.crt", folder / "127.0.0.1.key")
    with http.server.HTTPServer(("127.0.0.1", 0), handler) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


def answering(
    folder: Path, status: int, body: bytes, **headers: str
) -> contextlib.AbstractContextManager[int]:
    """Run a server that has one answer."""

    class Handler(Quiet):
        def do_GET(self) -> None:
            self.answer(status, body, **headers)

    return serving(folder, Handler)


def session(folder: Path, port: int, stop: threading.Event | None = None, **more: Any) -> Session:
    tls = ACMETLS(
        certdir=folder / "certs",
        hostname=NAME,
        directory=f"https://127.0.0.1:{port}/dir",
        ca_file=folder / "127.0.0.1.crt",
        **more,
    )
    return Session(tls, Store(tls.certdir), Challenges(), stop or threading.Event())


@pytest.mark.parametrize(("header", "want"), [({"Retry_After": "70"}, 70), ({}, None)])
def test_a_rate_limit_of_the_authority_has_its_retry_after(
    tmp_path: Path, header: dict[str, str], want: float | None
) -> None:
    body = json.dumps(LIMITED).encode()
    with (
        answering(tmp_path, 429, body, Content_Type="application/problem+json", **header) as port,
        pytest.raises(Refused, match="rateLimited: come back later") as caught,
    ):
        session(tmp_path, port).obtain(NAME, 0)
    assert (caught.value.retry_after, caught.value.limited) == (want, True)


@pytest.mark.parametrize(
    ("status", "body"), [(500, b"<html>"), (200, b"<html>"), (200, b"[]"), (200, b"{}")]
)
def test_answers_that_are_no_acme_are_refused(tmp_path: Path, status: int, body: bytes) -> None:
    with (
        answering(tmp_path, status, body) as port,
        pytest.raises(Refused, match="is not ACME") as caught,
    ):
        session(tmp_path, port).obtain(NAME, 0)
    assert not caught.value.limited


def test_an_authority_may_have_no_renewal_advice(tmp_path: Path) -> None:
    write_pair(tmp_path, NAME)
    chain = (tmp_path / f"{NAME}.crt").read_bytes()
    with answering(tmp_path, 200, b"{}") as port:
        assert session(tmp_path, port).renewal(chain)[0] is None
    with answering(tmp_path, 500, b"") as port, pytest.raises(Refused):
        session(tmp_path, port).renewal(chain)


def post(session: Session, url: str) -> None:
    """Send a signed request, as `obtain` does."""
    with session._exchange(Budget(20, threading.Event())) as net:
        account = load_key(session._store)
        net.key, net.alg = account.jwk, account.algorithm
        net.post(url, None, new_nonce_url=url)


@pytest.mark.parametrize("stale", [0, 3, 100])
def test_a_request_with_a_stale_nonce_is_repeated_a_few_times(tmp_path: Path, stale: int) -> None:
    """The machines of an authority may know each other's nonces late."""
    asked = []

    class Handler(Quiet):
        def do_HEAD(self) -> None:
            self.answer(200, b"", Replay_Nonce="bm9uY2U")

        def do_POST(self) -> None:
            asked.append(self.path)
            status, body = (400, STALE) if len(asked) <= stale else (200, b"{}")
            kind = "application/problem+json"
            self.answer(status, body, Content_Type=kind, Replay_Nonce="bm9uY2U")

    with serving(tmp_path, Handler) as port:
        each, url = session(tmp_path, port), f"https://127.0.0.1:{port}/"
        if stale < 100:
            post(each, url)
            assert len(asked) == stale + 1
        else:
            with pytest.raises(Refused, match="badNonce"):
                post(each, url)
            assert 5 <= len(asked) <= 10


def test_other_refused_requests_are_not_repeated(tmp_path: Path) -> None:
    asked = []

    class Handler(Quiet):
        def do_HEAD(self) -> None:
            self.answer(200, b"", Replay_Nonce="bm9uY2U")

        def do_POST(self) -> None:
            asked.append(self.path)
            body = json.dumps(LIMITED).encode()
            self.answer(429, body, Content_Type="application/problem+json")

    with serving(tmp_path, Handler) as port, pytest.raises(Refused, match="rateLimited"):
        post(session(tmp_path, port), f"https://127.0.0.1:{port}/")
    assert len(asked) == 1


def test_a_session_ends_when_the_relay_stops(tmp_path: Path) -> None:
    stop = threading.Event()
    stop.set()
    with answering(tmp_path, 200, b"{}") as port, pytest.raises(Stopped):
        session(tmp_path, port, stop).obtain(NAME, 0)


def test_an_account_that_cannot_be_saved_is_not_registered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Store, "save_account", full)
    write_pair(tmp_path, "127.0.0.1")
    with pytest.raises(Refused, match=r"acme-account\.key: No space left on device") as caught:
        session(tmp_path, 1).obtain(NAME, 0)
    assert not caught.value.asked


def offer(host: str, *kinds: str) -> messages.AuthorizationResource:
    body = {
        "status": "pending",
        "identifier": {"type": "ip" if host[0].isdigit() else "dns", "value": host},
        "challenges": [
            {"type": kind, "url": "https://127.0.0.1/", "token": "a" * 43} for kind in kinds
        ],
    }
    return messages.AuthorizationResource(
        uri="https://127.0.0.1/", body=messages.Authorization.from_json(body)
    )


HTTP, TLS, DNS = "http-01", "tls-alpn-01", "dns-01"


@pytest.mark.parametrize(
    ("host", "offered", "http_port", "tried"),
    [
        (NAME, (DNS, TLS, HTTP), 80, [HTTP, TLS, HTTP]),
        (NAME, (DNS, TLS, HTTP), None, [TLS, TLS]),
        (NAME, (TLS,), 80, [TLS, TLS]),
        (NAME, (HTTP, "unheard-of"), 80, [HTTP, HTTP]),
        ("192.0.2.1", (TLS, HTTP), 80, [HTTP, HTTP]),
    ],
)
def test_each_attempt_tries_the_next_kind_of_challenge(
    tmp_path: Path, host: str, offered: tuple[str, ...], http_port: int | None, tried: list[str]
) -> None:
    each = session(tmp_path, 1, http_port=http_port)
    chosen = [each._choose(offer(host, *offered), n).chall.typ for n in range(len(tried))]
    assert chosen == tried


def test_challenges_that_cannot_be_answered_are_named_in_the_error(tmp_path: Path) -> None:
    each = session(tmp_path, 1, http_port=None)
    with pytest.raises(Refused, match=rf"for {NAME} the authority offers .* {HTTP}, .*{TLS}"):
        each._choose(offer(NAME, HTTP), 0)
