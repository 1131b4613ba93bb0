"""Sessions of the extension against a client of the ssl module."""

from __future__ import annotations

import datetime
import gc
import ssl
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("pyderp_fast")

import pyderp_fast
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from pyderp.keys import NodePrivate
from pyderp.server.conn.records import BRINGS_NOTHING, PLAIN_HTTP, RecordLayer
from pyderp.wire.metacert import make_meta_certificate, scan_chain_untrusted

from .pairs import Client, Credential, OddClient, Pair, make_credential

RECORD = 16 * 1024
VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]


def test_it_says_what_it_is() -> None:
    """Callers check the API version and the version before anything else."""
    assert pyderp_fast.API_VERSION == 1
    assert pyderp_fast.VERSION
    assert "walk" in pyderp_fast.__all__


def test_it_fills_the_interface_of_the_relay(pair: Pair) -> None:
    """`Tls` has all members of `RecordLayer`, so no Python class is needed around it."""
    layer: RecordLayer = pair.session
    for name in (*RecordLayer.__annotations__, *vars(RecordLayer)):
        assert name.startswith("_") or hasattr(layer, name), name
    assert (layer.news, layer.is_closed, layer.failure) == (False, False, "")


def test_both_sides_understand_each_other(pair: Pair) -> None:
    """Each side decrypts what the other encrypts."""
    assert pair.session.version == (pair.client.tls.version() or "").removeprefix("TLSv")
    assert pair.feed(pair.client.seal(b"to the relay")) == b"to the relay"
    assert pair.client.open(pair.session.seal([b"to ", b"the client"])) == b"to the client"
    assert not pair.session.news


@pytest.mark.parametrize("ciphers", ["ECDHE+AES128", "ECDHE+AES256", "ECDHE+CHACHA20"])
def test_the_size_of_what_is_missing_is_known_for_each_cipher(
    config: pyderp_fast.TlsConfig, ciphers: str
) -> None:
    """The overhead of a record is the one that `unsent_size` assumes."""
    pair = Pair(config, Client(ssl.TLSVersion.TLSv1_2, ciphers=ciphers))
    session = pair.session
    for plain in (1, 1000, RECORD, RECORD + 1, 3 * RECORD):
        sealed = session.seal([bytes(plain)])
        pair.client.open(sealed)
        records = -(-plain // RECORD)
        overhead = (len(sealed) - plain) // records
        last = (plain - 1) % RECORD + 1
        assert session.unsent_size(0, plain, len(sealed)) == 0
        assert session.unsent_size(1, plain, len(sealed)) == last
        assert session.unsent_size(last + overhead, plain, len(sealed)) == last
        assert session.unsent_size(last + overhead + 1, plain, len(sealed)) == min(
            plain, last + RECORD
        )
        assert session.unsent_size(len(sealed), plain, len(sealed)) == plain


@pytest.mark.parametrize(
    "key",
    [
        ec.generate_private_key(ec.SECP384R1()),
        rsa.generate_private_key(65537, 2048),
        ed25519.Ed25519PrivateKey.generate(),
    ],
    ids=["P-384", "RSA", "Ed25519"],
)
def test_other_keys_are_served(key: ec.EllipticCurvePrivateKey) -> None:
    """Certificates with other keys than P-256 are served too."""
    credential = make_credential(key)
    Pair(pyderp_fast.TlsConfig(credential.chain, credential.key), Client())


def test_the_chain_is_presented_as_it_is(credential: Credential) -> None:
    """The relay's meta certificate, which no authority has signed, is presented after the leaf."""
    relay = NodePrivate.generate().public
    meta = make_meta_certificate(relay, now=datetime.datetime.now(datetime.UTC))
    leaf = ssl.PEM_cert_to_DER_cert(credential.chain.decode())
    pem = b"a text\n" + credential.chain + b"more\n" + ssl.DER_cert_to_PEM_cert(meta).encode()
    for chain in ([leaf, meta], pem):
        config = pyderp_fast.TlsConfig(chain, b"text\n" + credential.key)
        client = Client()
        Pair(config, client)
        assert scan_chain_untrusted(client.chain()) == (relay, 2)


@pytest.mark.parametrize("offered", [("http/1.1",), ("h2", "http/1.1"), ("h2",), ()])
def test_a_protocol_is_agreed_on_only_if_it_is_offered(
    config: pyderp_fast.TlsConfig, offered: tuple[str, ...]
) -> None:
    """Clients that offer only other protocols are served, without a selected protocol."""
    ours = "http/1.1"
    pair = Pair(config, Client(protocols=offered), alpn=ours in offered)
    assert pair.client.tls.selected_alpn_protocol() == (ours if ours in offered else None)


def test_a_challenge_is_answered_with_its_protocol(credential: Credential) -> None:
    """An authority that checks by TLS-ALPN-01 accepts only the protocol `acme-tls/1`."""
    config = pyderp_fast.TlsConfig(credential.chain, credential.key, alpn="acme-tls/1")
    pair = Pair(config, Client(protocols=("acme-tls/1",)))
    assert pair.client.tls.selected_alpn_protocol() == "acme-tls/1"


def test_there_are_no_tickets(config: pyderp_fast.TlsConfig) -> None:
    """The session writes nothing after the handshake, and cannot be resumed."""
    for version in VERSIONS:
        client = Client(version)
        pair = Pair(config, client)
        assert pair.session.output() == b""
        assert client.open(b"") == b""
        assert client.tls.session is None or not client.tls.session.has_ticket


def test_the_secrets_can_be_logged(credential: Credential, tmp_path: Path) -> None:
    """The file has the format that Wireshark reads, and only its owner can read it."""
    path = tmp_path / "keys"
    path.write_text("# before\n")
    config = pyderp_fast.TlsConfig(credential.chain, credential.key, keylog=str(path))
    for version in VERSIONS:
        Pair(config, Client(version))
    first, *lines = path.read_text().splitlines()
    assert first == "# before"
    labels = {line.split()[0] for line in lines}
    assert {"CLIENT_RANDOM", "CLIENT_TRAFFIC_SECRET_0", "SERVER_TRAFFIC_SECRET_0"} <= labels
    assert all(len(line.split()[1]) == 64 for line in lines)
    with pytest.raises(OSError, match="directory"):
        pyderp_fast.TlsConfig(credential.chain, credential.key, keylog=tmp_path)


def test_what_cannot_be_served_is_refused_with_a_reason(credential: Credential) -> None:
    """A `TlsError` has the reason. The relay then serves the certificate with the ssl module."""
    other = make_credential(ec.generate_private_key(ec.SECP256R1()))
    unusual = make_credential(ec.generate_private_key(ec.SECP256K1()))
    cases: list[tuple[bytes | list[bytes], bytes, str | None]] = [
        (b"", credential.key, "there is no certificate"),
        (b"nothing", credential.key, "there is no certificate"),
        ([], credential.key, "there is no certificate"),
        (credential.chain, other.key, "the key does not belong to the certificate"),
        (credential.chain, b"", "the key is no private key in PEM form, or it is encrypted"),
        (credential.chain, b"\x30\x03xyz", None),
        ([b"\x30\x03xyz"], credential.key, "the certificate is not well formed"),
        (credential.chain.replace(b"END", b"AND"), credential.key, "the chain is not PEM"),
        (unusual.chain, unusual.key, None),
    ]
    for chain, key, reason in cases:
        with pytest.raises(pyderp_fast.TlsError) as info:
            pyderp_fast.TlsConfig(chain, key)
        assert info.value.reason == str(info.value)
        assert info.value.reason
        assert reason is None or info.value.reason == reason


@pytest.mark.parametrize("version", VERSIONS, ids=["1.2", "1.3"])
def test_a_handshake_may_come_byte_by_byte(
    config: pyderp_fast.TlsConfig, version: ssl.TLSVersion
) -> None:
    """Handshake and data work if each read has one byte."""
    client, session = Client(version), pyderp_fast.Tls(config)
    room = memoryview(bytearray(32 * 1024))
    data = client.handshake()
    news = 0
    for _ in range(4):
        for byte in data:
            session.feed(bytes([byte]), room)
            news += session.news
        data = client.handshake(session.output())
    assert client.done
    assert session.version
    assert news
    filled = 0
    for byte in client.seal(b"data" * 5000):
        filled += session.feed(memoryview(bytearray([byte])), room[filled:])
        assert not session.news
    assert room[:filled] == b"data" * 5000


def test_two_records_may_be_cut_anywhere(pair: Pair) -> None:
    """Wherever a read ends, complete records are decrypted at once, and the rest with the next."""
    data = pair.client.seal(b"first") + pair.client.seal(b"second")
    for cut in range(len(data) + 1):
        assert pair.feed(data[:cut]) + pair.feed(data[cut:]) == b"firstsecond"
        data = pair.client.seal(b"first") + pair.client.seal(b"second")


def test_large_packets_pass(pair: Pair) -> None:
    """Packets of 64 KiB and more pass in one chunk and in many."""
    large = bytes(range(256)) * 257
    assert pair.feed(pair.client.seal(large)) == large
    assert pair.client.open(pair.session.seal([large])) == large
    pieces = [large[:1], large[1:RECORD], large[RECORD:40_000], b"", large[40_000:]]
    sealed = pair.session.seal(pieces)
    assert pair.client.open(sealed) == large
    assert sealed[3:5] == sealed[5 + int.from_bytes(sealed[3:5], "big") :][3:5], "full records"


def test_nothing_to_seal_is_nothing(pair: Pair) -> None:
    """Without plain bytes, `seal` makes no record."""
    assert pair.session.seal([]) == pair.session.seal([b""]) == pair.session.seal([b"", b""]) == b""


def test_what_cannot_be_is_refused(pair: Pair) -> None:
    """Wrong buffers raise an error, and the session goes on."""
    session, room = pair.session, pair.room
    data = memoryview(bytearray(pair.client.seal(b"data")))
    with pytest.raises(ValueError, match="too small"):
        session.feed(data, room[: len(data) - 1])
    with pytest.raises(ValueError, match="overlap"):
        session.feed(room[10:20], room)
    with pytest.raises(BufferError):
        session.feed(data, memoryview(bytes(1000)))
    with pytest.raises(BufferError):
        session.feed(data[::2], room)
    with pytest.raises(TypeError):
        session.feed("data", room)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        session.seal([bytearray(b"data")])  # type: ignore[list-item]
    assert session.feed(data, room) == 4


def test_read_only_bytes_are_left_as_they_are(pair: Pair) -> None:
    """Only writable buffers are decrypted in place."""
    data = pair.client.seal(b"data")
    copy = bytes(bytearray(data))
    assert pair.session.feed(memoryview(data), pair.room) == 4
    assert data == copy


def test_the_client_closes(pair: Pair) -> None:
    """`is_closed` is set by the client's close alert; data before the alert is not lost."""
    data = pair.client.seal(b"last")
    with pytest.raises(ssl.SSLWantReadError):
        pair.client.tls.unwrap()
    assert pair.feed(data + pair.client.outgoing.read() + b"behind") == b"last"
    assert pair.session.is_closed
    assert pair.session.news
    assert not pair.session.failure
    answer = pair.session.seal([b"still"]) + pair.session.close()
    pair.client.incoming.write(answer)
    assert pair.client.tls.read(100) == b"still"
    pair.client.tls.unwrap()


def test_the_relay_closes(pair: Pair) -> None:
    """The client gets one close alert; a second `close` makes none."""
    alert = pair.session.close()
    assert alert
    assert pair.session.close() == b""
    pair.client.incoming.write(alert)
    assert pair.client.tls.read(100) == b""


def test_before_the_handshake_there_is_no_close_alert(config: pyderp_fast.TlsConfig) -> None:
    """An alert would not be encrypted then, and the client could not trust it."""
    assert pyderp_fast.Tls(config).close() == b""


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"GET / HTTP/1.1\r\nHost: derp.test\r\n\r\n", PLAIN_HTTP),
        (b"HEAD ", PLAIN_HTTP),
        (b"CONNECT derp.test:443 HTTP/1.1\r\n\r\n", PLAIN_HTTP),
        (b"DERP\xf0\x9f\x94\x91", "no TLS"),
    ],
)
def test_other_protocols_are_known(config: pyderp_fast.TlsConfig, data: bytes, reason: str) -> None:
    """The reason tells plain HTTP, which the relay answers, from other protocols."""
    session = pyderp_fast.Tls(config)
    assert session.feed(memoryview(data), memoryview(bytearray(1000))) == 0
    assert (session.failure, session.news) == (reason, True)


def test_old_versions_are_refused_in_words(config: pyderp_fast.TlsConfig) -> None:
    """A ClientHello of TLS 1.1 is answered with an alert."""
    hello = b"\x03\x02" + bytes(32) + b"\0" + b"\0\2\xc0\x13" + b"\1\0"
    message = b"\1" + len(hello).to_bytes(3, "big") + hello
    record = b"\x16\3\1" + len(message).to_bytes(2, "big") + message
    session = pyderp_fast.Tls(config)
    session.feed(record, memoryview(bytearray(1000)))
    assert session.failure == "the client speaks neither TLS 1.2 nor 1.3"
    assert session.output() == bytes((21, 3, 3, 0, 2, 2, 70)), "protocol_version"


def test_a_client_that_wants_another_hash_gets_an_alert(config: pyderp_fast.TlsConfig) -> None:
    """In TLS 1.2 a client may want SHA-512 with a P-256 key, which rustls does not have."""
    hello = Client(ssl.TLSVersion.TLSv1_2).handshake()
    start = hello.index(b"\0\x0d", 43 + hello[43] + 1)
    size = int.from_bytes(hello[start + 4 : start + 6], "big")
    wanted = hello[: start + 6] + b"\6\3" * (size // 2) + hello[start + 6 + size :]
    session = pyderp_fast.Tls(config)
    session.feed(wanted, memoryview(bytearray(1000)))
    assert session.failure
    assert session.output() == bytes((21, 3, 3, 0, 2, 2, 40)), "handshake_failure"


def test_no_common_cipher_is_a_reason(credential: Credential) -> None:
    """The client supports RSA only, and the certificate has another key."""
    config = pyderp_fast.TlsConfig(credential.chain, credential.key)
    session = pyderp_fast.Tls(config)
    client = Client(ssl.TLSVersion.TLSv1_2, ciphers="ECDHE-RSA-AES128-GCM-SHA256")
    session.feed(client.handshake(), memoryview(bytearray(1000)))
    assert session.failure.startswith("incompatible client: ")
    with pytest.raises(ssl.SSLError, match="ALERT"):
        client.handshake(session.output())


def test_a_client_that_turns_away_is_quoted(config: pyderp_fast.TlsConfig) -> None:
    """The reason has the alert that the client sent."""
    client = Client()
    client.tls.context.check_hostname = False
    client.tls.context.verify_mode = ssl.CERT_REQUIRED
    client.tls = client.tls.context.wrap_bio(client.incoming, client.outgoing)
    session = pyderp_fast.Tls(config)
    room = memoryview(bytearray(40_000))
    session.feed(client.handshake(), room)
    with pytest.raises(ssl.SSLCertVerificationError):
        client.handshake(session.output())
    session.feed(client.outgoing.read(), room)
    assert session.failure == "alert from the client: unknown ca"


def test_a_changed_record_ends_the_session(pair: Pair) -> None:
    """Data before the record is not lost; later calls do nothing and raise nothing."""
    good, bad = pair.client.seal(b"good"), bytearray(pair.client.seal(b"bad"))
    bad[-1] ^= 1
    assert pair.feed(good + bad) == b"good"
    assert pair.session.failure == "a record that cannot be decrypted"
    assert pair.session.output(), "an alert"
    assert pair.feed(good) == b""
    assert pair.session.seal([b"data"]) == pair.session.close() == pair.session.output() == b""


def test_records_that_bring_nothing_are_bounded(credential: Credential, tmp_path: Path) -> None:
    """The limit is 40 KiB, as with the ssl module, or 32 empty records in a row."""
    keylog = tmp_path / "keys"
    config = pyderp_fast.TlsConfig(credential.chain, credential.key, keylog=keylog)
    pair = Pair(config, Client())
    odd = OddClient(keylog)
    assert pair.feed(odd.record(b"data")) == b"data"
    for _ in range(2):
        assert pair.feed(odd.record(b"", padding=RECORD - 1)) == b""
        assert pair.feed(odd.record(b"", padding=RECORD - 1)) == b""
        assert pair.feed(odd.record(b"data")) == b"data"
    for _ in range(2):
        pair.feed(odd.record(b"", padding=RECORD - 1))
    assert pair.session.failure == ""
    pair.feed(odd.record(b"", padding=RECORD - 1))
    reason: str = pair.session.failure
    assert reason == BRINGS_NOTHING

    keylog.unlink()
    pair = Pair(pyderp_fast.TlsConfig(credential.chain, credential.key, keylog=keylog), Client())
    odd = OddClient(keylog)
    pair.feed(b"".join(odd.record(b"") for _ in range(32)))
    assert pair.session.failure == ""
    assert not pair.session.news
    pair.feed(odd.record(b""))
    assert pair.session.failure == BRINGS_NOTHING
    assert pair.session.news


def test_a_panic_ends_its_session_alone(config: pyderp_fast.TlsConfig) -> None:
    """After a panic in one session, the process and all other sessions go on."""
    pairs = [Pair(config, Client()) for _ in range(3)]
    pairs[1].session._inject_panic()
    for number, pair in enumerate(pairs):
        expected = b"" if number == 1 else b"data"
        assert pair.feed(pair.client.seal(b"data")) == expected
    assert pairs[1].session.failure == "internal error in the TLS engine"
    assert pairs[1].session.seal([b"data"]) == pairs[1].session.output() == b""
    pairs[2].session._inject_panic()
    assert pairs[2].session.seal([b"data"]) == b""
    assert pairs[2].session.failure == "internal error in the TLS engine"
    assert pairs[0].client.open(pairs[0].session.seal([b"data"])) == b"data"
    Pair(config, Client())


def test_an_idle_session_is_small() -> None:
    """An idle session takes at most 9 KiB, measured in a process of its own."""
    script = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent.parent)!r})
from tests.test_session import idle_size
print(idle_size())
"""
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=50
    )
    assert float(result.stdout) <= 9 * 1024


def idle_size(count: int = 500) -> float:
    """Return the bytes of memory of a session that has relayed data and is idle."""
    credential = make_credential(ec.generate_private_key(ec.SECP256R1()))
    config = pyderp_fast.TlsConfig(credential.chain, credential.key)

    def make() -> pyderp_fast.Tls:
        pair = Pair(config, Client())
        data = pair.client.seal(b"data" * 300)
        pair.feed(data[:500])
        pair.feed(data[500:])
        pair.session.seal([b"data" * 300])
        return pair.session

    kept = [make() for _ in range(20)]
    gc.collect()
    before = resident()
    kept += [make() for _ in range(count)]
    gc.collect()
    return (resident() - before) / count


def resident() -> int:
    """Return the resident memory of this process in bytes."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096
