"""The advice that a user gets for each way in which connecting can fail."""

from __future__ import annotations

import json
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import TypeAlias

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes

from pyderp import (
    BadMagic,
    CertificateError,
    ConfigError,
    ConnectError,
    ConnectionClosed,
    DialError,
    FailureReason,
    PinMismatch,
    RelayConfig,
    UpgradeRejected,
)
from pyderp.cli.advice import advice
from pyderp.testing import RelayThread
from tests.server.certificates import write_pair

from .commands import Done

Here: TypeAlias = Callable[..., Done]

NAME = "localhost"


@contextmanager
def answering(answer: bytes | None, tls: ssl.SSLContext | None = None) -> Iterator[int]:
    """A server with one answer to all clients, or none if `None`; yields its port."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    sock, _ = server.accept()
                except OSError:
                    return
                try:
                    if tls is not None:
                        sock = tls.wrap_socket(sock, server_side=True)
                    sock.settimeout(5)
                    sock.recv(65536)
                    if answer is not None:
                        sock.sendall(answer)
                        sock.shutdown(socket.SHUT_WR)
                    while sock.recv(65536):
                        pass
                except OSError:
                    pass
                finally:
                    sock.close()

        thread = Thread(target=serve)
        thread.start()
        try:
            yield server.getsockname()[1]
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()


def http(status: str, *headers: str, body: str = "") -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers, "", body]
    return "\r\n".join(lines).encode()


def advice_of(here: Here, *args: object) -> str:
    """The output of `pyderp ping` when it fails; checks that it is an error and some advice."""
    done = here("ping", *args, "-c1", "--connect-timeout", 3)
    assert done.code == 1
    lines = done.err.splitlines()
    assert len(lines) >= 2, done.err
    assert all(line.startswith("pyderp: ") for line in lines)
    return done.err


# Certificates


def secure(directory: Path, *, names: list[str] | None = None, days: int = 60) -> ssl.SSLContext:
    """A server's context with a certificate that only `--ca` makes trusted."""
    write_pair(directory, NAME, names=names, days=days)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(directory / f"{NAME}.crt", directory / f"{NAME}.key")
    return context


def test_an_unknown_issuer_advises_ca(here: Here, tmp_path: Path) -> None:
    with answering(b"", secure(tmp_path)) as port:
        text = advice_of(here, f"https://{NAME}:{port}")
    assert "the certificate is of no trusted issuer: give --ca FILE" in text


@pytest.mark.parametrize("flags", [[], ["--cert-name", "other.example.com"]])
def test_another_name_advises_url_and_cert_name(
    here: Here, tmp_path: Path, flags: list[str]
) -> None:
    with answering(b"", secure(tmp_path, names=["derp.example.com"])) as port:
        text = advice_of(here, f"https://{NAME}:{port}", "--ca", tmp_path / f"{NAME}.crt", *flags)
    assert "put that name into the URL, or give it with --cert-name" in text
    assert "derp.example.com" in text


def test_another_name_with_a_pin_advises_no_flag_that_excludes_a_pin() -> None:
    error = CertificateError("x", reason=FailureReason.CERTIFICATE_OTHER_NAME)
    (line,) = advice(error, pinned=True)
    assert "put the certificate's name or the relay's IP address into the URL" in line
    assert line.endswith("--pin cannot be combined with --cert-name")


def test_an_error_with_a_pin_names_the_url_and_no_region(here: Here) -> None:
    with RelayThread(tls=True) as relay:
        text = advice_of(here, relay.url, "--pin", "0" * 64)
    assert f"connect to {relay.url}" in text
    assert "region" not in text


def test_a_pinned_relay_with_another_name_advises_a_url(here: Here, tmp_path: Path) -> None:
    tls = secure(tmp_path, names=["derp.example.com"])
    pem = (tmp_path / f"{NAME}.crt").read_bytes()
    pin = x509.load_pem_x509_certificate(pem).fingerprint(hashes.SHA256()).hex()
    with answering(b"", tls) as port:
        text = advice_of(here, f"https://{NAME}:{port}", "--pin", pin)
    assert "into the URL; --pin cannot be combined with --cert-name" in text


def test_an_answer_to_upgrade_and_websocket_is_printed_once(here: Here) -> None:
    with answering(http("404 Not Found", body="what is it")) as port:
        text = advice_of(here, f"http://127.0.0.1:{port}/foo")
    assert text.count("what is it") == 1


def test_an_expired_certificate_advises_a_look_at_the_clock(here: Here, tmp_path: Path) -> None:
    with answering(b"", secure(tmp_path, days=-1)) as port:
        text = advice_of(here, f"https://{NAME}:{port}", "--ca", tmp_path / f"{NAME}.crt")
    assert "the certificate has expired, or this machine's clock is wrong" in text


def test_another_certificate_than_the_pinned_one_is_named(here: Here) -> None:
    with RelayThread(tls=True) as relay:
        text = advice_of(here, relay.url, "--pin", "0" * 64)
    assert "cert hash does not match expected cert hash" in text
    assert "the relay has another certificate than the pinned one" in text


def test_tls_to_a_server_without_tls_advises_http(here: Here, relay: RelayThread) -> None:
    text = advice_of(here, relay.url.replace("http", "https"))
    assert "does not speak TLS: write http:// if you trust the network" in text


def test_a_handshake_that_is_cut_is_named(here: Here) -> None:
    with answering(b"") as port:
        text = advice_of(here, f"https://{NAME}:{port}")
    assert "TLS fails with the server that answers" in text


# Servers that are no relay


@pytest.mark.parametrize("websocket", [[], ["--websocket"], ["--no-websocket"]])
@pytest.mark.parametrize(
    ("status", "line"),
    [
        ("404 Not Found", "no relay at this path: a relay's URL usually ends in /derp"),
        ("200 OK", "a web site answers here, not a relay"),
        ("401 Unauthorized", "wants a login: ask its operator"),
        ("403 Forbidden", "refuses you: ask its operator"),
        ("407 Proxy Authentication Required", "give --proxy http://USER:PASSWORD@HOST:PORT"),
        ("429 Too Many Requests", "too many connections from here"),
        ("301 Moved Permanently", "the answer is a redirect"),
        ("503 Service Unavailable", "has failed: try later, or tell its operator"),
        ("511 Network Authentication Required", "this network wants a login"),
    ],
)
def test_a_refused_upgrade_has_its_status_and_advice(
    here: Here, status: str, line: str, websocket: list[str]
) -> None:
    with answering(http(status, body="why \x1b[2J")) as port:
        text = advice_of(here, f"http://127.0.0.1:{port}", *websocket)
    assert line in text
    assert status[:3] in text
    assert "\x1b" not in text


@pytest.mark.parametrize("flags", [[], ["--websocket"], ["--no-websocket"]])
def test_a_relay_without_derp_is_named(here: Here, flags: list[str]) -> None:
    """No advice about the URL, which is right."""
    with RelayThread(RelayConfig(derp=False)) as relay:
        text = advice_of(here, relay.url, *flags)
    assert (
        "this relay serves no DERP (--no-derp), only probes and perhaps STUN: use another" in text
    )
    assert "path" not in text


def test_another_page_that_is_not_found_is_no_relay_without_derp() -> None:
    error = UpgradeRejected("x", status=404, body="derp server disabled?")
    assert not error.serves_no_derp
    assert not UpgradeRejected("x", status=403, body="derp server disabled\n").serves_no_derp


@pytest.mark.parametrize(
    ("flags", "status", "line"),
    [
        ([], "400 Bad Request", "does not pass websockets either"),
        ([], "426 Upgrade Required", "does not pass websockets either"),
        ([], "405 Method Not Allowed", "try --websocket"),
        (["--websocket"], "426 Upgrade Required", "does not pass websockets either"),
        (["--websocket"], "501 Not Implemented", "does not pass websockets either"),
        (["--websocket"], "405 Method Not Allowed", "does not pass websockets either"),
        (["--no-websocket"], "426 Upgrade Required", "leave out --no-websocket"),
        (["--no-websocket"], "405 Method Not Allowed", "try --websocket"),
    ],
)
def test_ways_that_were_tried_are_not_advised(
    here: Here, flags: list[str], status: str, line: str
) -> None:
    with answering(http(status)) as port:
        text = advice_of(here, f"http://127.0.0.1:{port}", *flags)
    advised = {"does not pass websockets either", "leave out --no-websocket", "try --websocket"}
    assert [each for each in advised if each in text] == [line]


@pytest.mark.parametrize(
    "answer",
    [
        b"220 mail.example.com ESMTP\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: DERP\r\nConnection: Upgrade\r\n\r\n"
        + b"\x01\x00\x00\x00\x28" + b"not derp" + bytes(32),
    ],
)  # fmt: skip
def test_a_server_that_does_not_speak_derp_is_named(here: Here, answer: bytes) -> None:
    with answering(answer) as port:
        assert "is not a DERP relay: check host, port and path" in advice_of(
            here, f"http://127.0.0.1:{port}"
        )


@pytest.mark.parametrize("websocket", [[], ["--websocket"]])
@pytest.mark.parametrize(
    "answer",
    [
        http("400 Bad Request", body="Client sent an HTTP request to an HTTPS server."),
        b"\x15\x03\x01\x00\x02\x02\x16",
        b"",
    ],
)
def test_http_to_a_server_with_tls_advises_https(
    here: Here, answer: bytes, websocket: list[str]
) -> None:
    with answering(answer) as port:
        assert "write https://" in advice_of(here, f"http://127.0.0.1:{port}", *websocket)


# Maps


def a_map(path: Path, **node: object) -> Path:
    node = {"Name": "1a", "RegionID": 1, "HostName": NAME} | node
    path.write_text(json.dumps({"Regions": {"1": {"RegionID": 1, "Nodes": [node]}}}))
    return path


@pytest.mark.parametrize(
    "node",
    [{"STUNOnly": True}, {"IPv4": "none", "IPv6": "none"}],
)
def test_a_wrong_map_is_named(here: Here, tmp_path: Path, node: dict[str, object]) -> None:
    path = a_map(tmp_path / "map.json", **node)
    assert "the map is wrong" in advice_of(here, "--derp-map", path)


def test_an_invalid_host_name_in_a_map_exits_2(here: Here, tmp_path: Path) -> None:
    path = a_map(tmp_path / "map.json", HostName="a\r\nb")
    done = here("ping", "--derp-map", path)
    assert done.code == 2
    assert "which no host name can have" in done.err


def test_certificates_of_a_node_in_a_map_advise_certname(here: Here, tmp_path: Path) -> None:
    with answering(b"", secure(tmp_path, names=["derp.example.com"])) as port:
        path = a_map(tmp_path / "map.json", DERPPort=port)
        unknown = advice_of(here, "--derp-map", path)
        other_name = advice_of(here, "--derp-map", path, "--ca", tmp_path / f"{NAME}.crt")
    assert "sha256-raw: and its SHA-256 into the map as the node's CertName" in unknown
    assert "the node's CertName has to be that name" in other_name
    assert "--pin" not in unknown + other_name
    assert "--cert-name" not in unknown + other_name


# The network in between


def test_an_end_without_an_answer_advises_another_try(here: Here) -> None:
    with answering(b"") as port:
        assert "the connection was cut: try again" in advice_of(here, f"http://127.0.0.1:{port}")


def test_a_port_without_a_server_is_named(here: Here) -> None:
    assert "nothing listens there" in advice_of(here, "http://127.0.0.1:1")
    assert "nothing listens there" in advice_of(here, "https://127.0.0.1:1", "--insecure")


def test_an_unknown_name_is_named(here: Here) -> None:
    assert "the name is not known" in advice_of(here, "https://relay.invalid")


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_no_answer_in_time_names_the_limit(here: Here, scheme: str) -> None:
    with answering(None) as port:
        done = here("ping", f"{scheme}://127.0.0.1:{port}", "--connect-timeout", 0.2)
    assert done.code == 1
    assert "no answer within 0.2 s" in done.err
    assert "a firewall may drop the packets" in done.err


def test_a_refusing_proxy_is_named_without_its_password(here: Here) -> None:
    with answering(http("407 Proxy Authentication Required")) as port:
        text = advice_of(here, "https://h", "--proxy", f"http://me:secret@127.0.0.1:{port}")
    assert "check user and password of the proxy" in text
    assert "secret" not in text


@pytest.mark.parametrize("flags", [[], ["--ipv6"]])
def test_a_proxy_without_basic_does_not_blame_the_password(here: Here, flags: list[str]) -> None:
    refusal = http("407 x", "Proxy-Authenticate: NTLM", "Proxy-Authenticate: Negotiate abc")
    with answering(refusal) as port:
        text = advice_of(here, "https://h", "--proxy", f"http://me:pw@127.0.0.1:{port}", *flags)
    assert "it offers the login by NTLM, Negotiate, and not by Basic" in text
    assert "accepts only logins that pyderp does not know" in text
    assert "password" not in text


@pytest.mark.parametrize("flags", [[], ["--ipv6"]])
@pytest.mark.parametrize(
    ("answer", "line"),
    [
        (http("401 Unauthorized"), "check user and password of the proxy"),
        (http("403 Forbidden"), "the proxy works, but cannot reach the relay or refuses to"),
        (http("502 Bad Gateway"), "the proxy works, but cannot reach the relay or refuses to"),
        (http("200 OK")[:5], "check --proxy, or HTTPS_PROXY"),
        (http("400 Bad Request"), "check --proxy, or HTTPS_PROXY"),
    ],
)
def test_an_answer_of_an_http_proxy_has_advice(
    here: Here, answer: bytes, line: str, flags: list[str]
) -> None:
    with answering(answer) as port:
        assert line in advice_of(here, "https://h", "--proxy", f"http://127.0.0.1:{port}", *flags)


@pytest.mark.parametrize(
    ("answer", "line"),
    [
        (b"\x05\xff", "check user and password of the proxy"),
        (b"\x05\x02\x01\x01", "check user and password of the proxy"),
        (b"\x05\x00\x05\x05\x00\x01\0\0\0\0\0\0", "the proxy works, but cannot"),
        (b"\x05\x00\x05\x04\x00\x01\0\0\0\0\0\0", "the proxy works, but cannot"),
        (b"\x05\x00\x05\x02\x00\x01\0\0\0\0\0\0", "the proxy works, but cannot"),
        (b"HTTP/1.1 400", "check --proxy, or HTTPS_PROXY"),
    ],
)
def test_an_answer_of_a_socks_proxy_has_advice(here: Here, answer: bytes, line: str) -> None:
    with answering(answer) as port:
        assert line in advice_of(here, "https://h", "--proxy", f"socks5://me:pw@127.0.0.1:{port}")


@pytest.mark.parametrize("flags", [[], ["--ipv6"]])
@pytest.mark.parametrize("scheme", ["http", "socks5"])
def test_a_proxy_that_cannot_be_reached_is_named(here: Here, scheme: str, flags: list[str]) -> None:
    text = advice_of(here, "https://h", "--proxy", f"{scheme}://127.0.0.1:1", *flags)
    assert "the proxy cannot be reached: check --proxy" in text
    assert "nothing listens there" not in text


@pytest.mark.parametrize("flags", [[], ["--ipv6"]])
@pytest.mark.parametrize("scheme", ["http", "socks5"])
def test_a_silent_proxy_is_named(here: Here, scheme: str, flags: list[str]) -> None:
    with answering(None) as port:
        proxy = f"{scheme}://me:secret@127.0.0.1:{port}"
        done = here("ping", "https://h", "--proxy", proxy, "--connect-timeout", 0.3, *flags)
    assert done.code == 1
    assert f"(waiting for proxy {scheme}://***@127.0.0.1:{port})" in done.err
    assert "the proxy does not answer in time" in done.err
    assert "secret" not in done.err


def test_a_proxy_from_the_environment_is_named(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "socks5://me:secret@127.0.0.1:1")
    text = advice_of(here, "http://relay.example.com/derp")
    assert "secret" not in text
    assert "127.0.0.1:1" in text


# Errors that cannot be provoked here


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(113, "No route to host"), "cannot be reached from here"),
        (ConnectionResetError(104, "Connection reset by peer"), "the connection was cut"),
        (TimeoutError("the relay took no packet for 1 s"), "no answer in time"),
        (ConnectionClosed("derp.Recv: EOF"), "the relay ended the connection"),
        (BadMagic("bad"), "not a DERP relay"),
        (socket.gaierror(-2, "Name or service not known"), "the name is not known"),
        (DialError("no route"), "cannot be reached from here"),
        (
            CertificateError("no", reason=FailureReason.CERTIFICATE_NOT_YET_VALID),
            "check this machine's clock",
        ),
        (
            PinMismatch("no", reason=FailureReason.PIN_OF_SEVERAL),
            "that sends a single certificate",
        ),
    ],
)
def test_other_errors_have_advice(error: Exception, line: str) -> None:
    (found,) = advice(error)
    assert line in found


@pytest.mark.parametrize("reason", FailureReason)
def test_each_reason_has_its_own_line(reason: FailureReason) -> None:
    others = {line for each in FailureReason for line in advice(DialError("", reason=each))}
    assert len(others) == len(FailureReason)
    assert advice(DialError("", reason=reason)) != []


def test_complete_errors_need_no_advice() -> None:
    assert advice(ConfigError("--x: want y")) == []


def test_each_cause_is_named_once() -> None:
    refused = UpgradeRejected("404", status=404, body="")
    gone = DialError("connect to 192.0.2.1:1: No route to host")
    error = ConnectError("no", attempts=[refused, ConnectError("no", attempts=[refused, gone])])
    assert len(advice(error)) == 2
