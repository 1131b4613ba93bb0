"""No error of the command line has words that only a library, or Python, understands."""

from __future__ import annotations

import re
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from tests.server.certificates import write_pair

from .commands import Done
from .test_advice import answering, http

Here: TypeAlias = Callable[..., Done]

NAME = "localhost"
OWN_NAMES = re.compile(
    r"\b(?:HTTPS?_PROXY|ALL_PROXY|NO_PROXY|PYDERP_[A-Z_]+|CAP_NET_[A-Z_]+|[A-Z_]*_FILE)\b"
)
RAW = re.compile(
    r"\[SSL|_ssl\.c|SSLError|SSLCert|ssl:default"  # the ssl module, aiohttp
    r"|\b[A-Z][A-Z0-9]+(?:_[A-Z0-9]+)+\b"  # names of OpenSSL
    r"|bytearray|\bb['\"][\w\\<]|<Response| object at 0x|\b\w+(?:Error|Exception)\b"  # Python
    r"|\[Errno|Traceback|codec|role=SERVER|\(char \d"  # and what it is made with
    r"|</?(?:html|head|body|style|h1|p)\b"  # a web page
)
PAGE = "<!doctype html><html><head><style>a{}</style></head><body><h1>no</h1></body></html>"
UPGRADED = b"HTTP/1.1 101 S\r\nUpgrade: DERP\r\nConnection: Upgrade\r\n\r\n"
WEBSOCKET = b"HTTP/1.1 101 S\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"


def check(done: Done) -> str:
    """The output, after a search for raw words in it."""
    assert done.code in (1, 2), done
    text = OWN_NAMES.sub("", done.out + done.err)
    found = RAW.search(text)
    assert found is None, f"{found}: {text}"
    assert text.strip()
    return text


def ping(here: Here, *args: object) -> str:
    return check(here("ping", *args, "-c1", "--connect-timeout", 3))


# A relay's answers


@pytest.mark.parametrize("number", [*map(int, ssl.AlertDescription), 0, 46, 116, 120, 255])
def test_alerts_are_explained(here: Here, number: int) -> None:
    with answering(b"\x15\x03\x03\x00\x02\x02" + bytes([number])) as port:
        text = ping(here, f"https://{NAME}:{port}")
    if number == ssl.AlertDescription.ALERT_DESCRIPTION_HANDSHAKE_FAILURE:
        assert "the other side ended it with the alert 'handshake failure'" in text
        assert "the server speaks TLS, and refuses this client" in text
    elif number == ssl.AlertDescription.ALERT_DESCRIPTION_INTERNAL_ERROR:
        assert "the server has no certificate for this name" in text


def test_the_pattern_finds_text_of_openssl() -> None:
    for text in (
        "[SSL: WRONG_VERSION_NUMBER] wrong version number (_ssl.c:1000)",
        "X509_V_ERR_CERT_HAS_EXPIRED",
        "illegal header line: bytearray(b'x')",
        "<Response [502]>",
        "KeyError('newNonce')",
        "[Errno 111] Connection refused",
        PAGE,
    ):
        assert RAW.search(OWN_NAMES.sub("", text))


@pytest.mark.parametrize(
    "answer",
    [
        b"\x16\x03\x03\x00\x10" + b"A" * 16,
        b"\x16\x03\x03\x00\x30\x02\x00\x00\x2c" + b"A" * 44,
        b"\x16\x03\x03\xff\xff" + b"A" * 1000,
        b"\x17\x03\x03\x00\x02AA",
        b"SSH-2.0-x\r\n",
        b"",
    ],
)
def test_answers_that_are_no_handshake_are_explained(here: Here, answer: bytes) -> None:
    with answering(answer) as port:
        ping(here, f"https://{NAME}:{port}")


def server_context(folder: Path, *, days: int = 60) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    write_pair(folder, NAME, days=days)
    context.load_cert_chain(folder / f"{NAME}.crt", folder / f"{NAME}.key")
    return context


@pytest.mark.parametrize("case", ["untrusted", "name", "expired", "pin", "client certificate"])
def test_certificates_that_clients_refuse_are_explained(
    here: Here, tmp_path: Path, case: str
) -> None:
    context = server_context(tmp_path, days=-1 if case == "expired" else 60)
    flags: list[object] = ["--ca", tmp_path / f"{NAME}.crt"]
    if case == "untrusted":
        flags = []
    elif case == "pin":
        flags = ["--pin", "0" * 64]
    elif case == "name":
        flags += ["--cert-name", "other.example.com"]
    elif case == "client certificate":
        context.load_verify_locations(tmp_path / f"{NAME}.crt")
        context.verify_mode = ssl.CERT_REQUIRED
    with answering(http("200 OK"), context) as port:
        ping(here, f"https://{NAME}:{port}", *flags)


@pytest.mark.parametrize("websocket", [[], ["--websocket"]], ids=["derp", "websocket"])
@pytest.mark.parametrize(
    "answer",
    [
        *(
            http(f"{status} why", "Location: https://x/", body=PAGE)
            for status in (200, 302, 400, 401, 403, 404, 407, 418, 426, 429, 501, 502, 511)
        ),
        b"SSH-2.0-x",
        b"HTTP/1.1 200 OK\r\nno header\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: " + b"a" * 200_000,
        bytes(range(256)),
        UPGRADED,
        UPGRADED + b"\x01\x00\x00\x00\x28" + b"x" * 40,
        UPGRADED + b"\x01\xff\xff\xff\xff",
        WEBSOCKET + b"\r\n",
        WEBSOCKET + b"Sec-WebSocket-Accept: x\r\nSec-WebSocket-Protocol: derp\r\n\r\n",
    ],
    ids=lambda answer: repr(answer[:24]),
)
def test_answers_in_http_are_explained(here: Here, answer: bytes, websocket: list[str]) -> None:
    with answering(answer) as port:
        ping(here, f"http://127.0.0.1:{port}", *websocket)


def test_an_answer_that_is_not_http_is_quoted_and_not_called_silence(here: Here) -> None:
    with answering(b"SSH-2.0-x\r\n") as port:
        text = ping(here, f"http://127.0.0.1:{port}")
    assert 'it begins with "SSH-2.0-x"' in text
    assert "without an answer" not in text


# Proxies


@pytest.mark.parametrize(
    ("scheme", "answer"),
    [
        *(
            ("http", http(f"{status} why", "Proxy-Authenticate: NTLM", body=PAGE))
            for status in (200, 302, 400, 403, 407, 502)
        ),
        ("http", b""),
        ("http", b"SSH-2.0-x\r\n"),
        ("http", b"HTTP/1.1 200 OK\r\nno header\r\n\r\n"),
        ("https", b"HTTP/1.1 400 why\r\n\r\n"),
        ("https", b"\x15\x03\x03\x00\x02\x02\x28"),
        ("socks5", b""),
        ("socks5", b"\x04\x00"),
        ("socks5", b"\x05\xff"),
        ("socks5", b"\x05\x02\x01\x01"),
        *(("socks5", bytes([5, 0, 5, reply, 0, 1, 0, 0, 0, 0, 0, 0])) for reply in range(1, 10)),
    ],
    ids=lambda case: repr(case[:16]),
)
def test_answers_of_proxies_are_explained(here: Here, scheme: str, answer: bytes) -> None:
    with answering(answer) as port:
        ping(here, "https://h", "--proxy", f"{scheme}://{NAME}:{port}")


# Input of the user


@pytest.mark.parametrize(
    "url",
    [
        *("relay.example.com", "ftp://h", "https://", "https://[::1", "https://a b"),
        *("https://a..b", f"https://{'x' * 70}", "https://h:x", "https://h:99999", "//h"),
        *("https://.", "https://bücher..x", "http://127.0.0.1:1/é", "http://127.0.0.1:1"),
        *("https://xn--a.invalid", "https://relay.invalid", "http://h\x01/"),
    ],
)
def test_errors_of_urls_are_explained(here: Here, url: str) -> None:
    ping(here, url)


@pytest.mark.parametrize(
    "proxy", ["http://", "ftp://h", "http://h:x", f"http://{'x' * 70}", "a..b"]
)
def test_errors_of_proxy_addresses_are_explained(here: Here, proxy: str) -> None:
    ping(here, "https://h", "--proxy", proxy)


FILES: dict[str, bytes] = {
    "empty": b"",
    "text": b"hello\n",
    "array": b"[]",
    "object": b"{}",
    "bytes": bytes(range(256)),
    "page": PAGE.encode(),
    "deep": b"[" * 100_000,
    "number": b'{"PrivateKey": 3, "Regions": 3, "PerKey": 3}',
    "bad certificate": b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
    "no regions": b'{"Regions": {}}',
}


@pytest.mark.parametrize("kind", [*FILES, "missing", "folder"])
@pytest.mark.parametrize("flag", ["--ca", "--key", "--derp-map"])
def test_errors_of_a_clients_files_are_explained(
    here: Here, tmp_path: Path, flag: str, kind: str
) -> None:
    url = [] if flag == "--derp-map" else ["http://127.0.0.1:1"]
    ping(here, *url, flag, file(tmp_path, kind))


def file(folder: Path, kind: str) -> Path:
    path = folder / "file"
    if kind == "folder":
        path.mkdir()
    elif kind != "missing":
        path.write_bytes(FILES[kind])
        path.chmod(0o600)
    return path


RELAY = ("relay", "--check", "-a", "127.0.0.1:0", "--no-stun", "--no-tls")


@pytest.mark.parametrize("kind", [*FILES, "missing", "folder"])
@pytest.mark.parametrize(
    "flag",
    [
        *("--config", "--config-file", "--allow-keys-file", "--deny-keys-file"),
        *("--rate-config", "--mesh-psk-file"),
    ],
)
def test_errors_of_a_relays_files_are_explained(
    here: Here, tmp_path: Path, flag: str, kind: str
) -> None:
    key = () if flag == "--config" else ("-c", tmp_path / "key")
    path = file(tmp_path, kind)
    # A missing key is made; an empty list is valid; other members are ignored.
    fine = {
        "--config": ["missing"],
        "--allow-keys-file": ["empty"],
        "--deny-keys-file": ["empty"],
        "--rate-config": ["object", "no regions"],
        "--config-file": ["empty"],
    }
    done = here(*RELAY, *key, flag, path)
    if kind in fine.get(flag, []):
        assert done.code == 0
    else:
        assert path.name in check(done)


@pytest.mark.parametrize(
    "flags",
    [
        *(("--hostname", name) for name in ("a..b", "-x", "x" * 70, "a b", "http://x", "1.2.3")),
        *(("--hostname", name) for name in ("*.x", "bücher..x", "relay.test:443")),
        *(("--verify-client-url", url) for url in ("x", "http://", "http://[::1", "http://x:x")),
        *(("--acme-directory", url) for url in ("x", "https://", "https://[::1")),
        *(("-a", address) for address in ("x", "::1", "[::1", "a:b", ":99999", "unix:x")),
        *(("--mesh-with", host) for host in ("://", "a b", "h:99999", "https://h")),
        *(("--trusted-proxy", net) for net in ("x", "10.0.0.0/33")),
    ],
    ids=" ".join,
)
def test_errors_of_a_relays_values_are_explained(
    here: Here, tmp_path: Path, flags: tuple[str, str]
) -> None:
    more: tuple[object, ...] = ("-c", tmp_path / "key", "--certdir", tmp_path)
    if flags[0] == "--hostname":
        more += ("--certmode", "manual")
    elif flags[0] == "--acme-directory":
        more += ("--certmode", "letsencrypt", "--hostname", "relay.example.com")
    elif flags[0] == "--mesh-with":
        psk = tmp_path / "psk"
        psk.write_text("01" * 32)
        psk.chmod(0o600)
        more += ("--mesh-psk-file", psk)
    check(here("relay", "--check", "-a", "127.0.0.1:0", "--no-stun", *more, *flags))


# Certificates of a relay


def pairs(folder: Path) -> dict[str, tuple[bytes, bytes]]:
    write_pair(folder, "relay.test")
    chain = (folder / "relay.test.crt").read_bytes()
    key = (folder / "relay.test.key").read_bytes()
    write_pair(folder, "other.test")
    other = (folder / "other.test.crt").read_bytes()
    other_key = (folder / "other.test.key").read_bytes()
    rsa_key = rsa.generate_private_key(public_exponent=65537, key_size=2048).private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
    )
    bad = FILES["bad certificate"]
    return {
        "rsa key": (chain, rsa_key),
        "other key": (chain, other_key),
        "joined chain": (chain.rstrip() + other, key),
        "joined keys": (chain, key.rstrip() + key),
        "swapped": (key, chain),
        "no key": (chain, b"hello"),
        "empty key": (chain, b""),
        "half a key": (chain, key[:100]),
        "empty chain": (b"", key),
        "page": (PAGE.encode(), key),
        "bad certificate": (bad, key),
        "bad second": (chain + bad, key),
        "half a second": (chain + other[:200], key),
        "one line": (chain.replace(b"\n", b""), key),
        "order": (chain + other, other_key),
        "other name": (other, other_key),
    }


@pytest.mark.parametrize(
    "case",
    [
        *("rsa key", "other key", "joined chain", "joined keys", "swapped", "no key", "empty key"),
        *("half a key", "empty chain", "page", "bad certificate", "bad second", "half a second"),
        *("one line", "order", "other name"),
    ],
)
def test_errors_of_a_relays_certificates_are_explained(
    here: Here, tmp_path: Path, case: str
) -> None:
    chain, key = pairs(tmp_path)[case]
    (tmp_path / "relay.test.crt").write_bytes(chain)
    (tmp_path / "relay.test.key").write_bytes(key)
    flags = ("--certmode", "manual", "--certdir", tmp_path, "--hostname", "relay.test")
    done = here(*RELAY[:-1], "-c", tmp_path / "key", "--http-port", "-1", *flags)
    text = check(done)
    assert "relay.test.crt" in text
    # The file that the error is about.
    of_key = {"rsa key", "other key", "no key", "empty key", "half a key", "joined keys"}
    assert ("the key" in text) == (case in of_key or case == "order")
