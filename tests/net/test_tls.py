"""The handshake: what is verified, what fails and how, and that no byte leaves before."""

from __future__ import annotations

import hashlib
import logging
import ssl
import stat
from pathlib import Path

import pytest

from pyderp.errors import CertificateError, ConfigError, PinMismatch, TLSError
from pyderp.net.settings import NetworkSettings
from pyderp.net.tls import TLSConfig, TlsLink
from pyderp.wire.metacert import scan_chain_untrusted

from .certificates import META, RELAY, ROOT, Identity, certificate
from .tlspeer import NAME, TRUSTING, MemoryLink, TlsPeer, handshake

GOOD = certificate(NAME, issuer=ROOT)
OTHER = certificate("front.example.org", issuer=ROOT)
ALONE = certificate(NAME, common_name="a self-signed server")
NO_AUTHORITY = certificate(common_name="no authority", issuer=ROOT)
NO_ROOTS = TLSConfig(system_roots=False, builtin_roots=False)
VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]


def pin(identity: Identity) -> str:
    return "sha256-raw:" + hashlib.sha256(identity.der).hexdigest()


class Attempt:
    """A handshake with a server of some certificate, and then `hello`."""

    def __init__(self, identity: Identity, version: ssl.TLSVersion | None = None) -> None:
        self.peer = TlsPeer(identity.server(version))
        self.link = MemoryLink(self.peer.answer)

    def __call__(
        self,
        server_name: str = NAME,
        *,
        cert_name: str = "",
        insecure: bool = False,
        config: TLSConfig = TRUSTING,
    ) -> TlsLink:
        try:
            tls = handshake(
                self.link,
                server_name=server_name,
                cert_name=cert_name,
                insecure=insecure,
                config=config,
            )
        except BaseException:
            assert self.link.aborted
            # Before the alert the server gets nothing that it can decrypt.
            assert bytes(self.peer.received) == b""
            raise
        assert not self.link.aborted
        tls.write(b"hello")
        assert bytes(self.peer.received) == b"hello"
        return tls


# Good handshakes


@pytest.mark.parametrize("version", VERSIONS)
def test_a_handshake_has_version_cipher_name_and_chain(version: ssl.TLSVersion) -> None:
    attempt = Attempt(GOOD, version)
    tls = attempt()
    assert tls.state.version == attempt.peer.tls.version()
    assert tls.state.version == version.name.replace("_", ".")
    cipher = attempt.peer.tls.cipher()
    assert cipher is not None
    assert tls.state.cipher == cipher[0]
    assert tls.state.server_name == NAME
    assert tls.state.peer_chain == (GOOD.der,)
    assert attempt.peer.sni == NAME
    assert attempt.peer.tls.selected_alpn_protocol() is None


@pytest.mark.parametrize("version", VERSIONS)
def test_the_chain_is_reported_as_presented(version: ssl.TLSVersion) -> None:
    between = certificate(common_name="between", issuer=ROOT, authority=True)
    identity = certificate(NAME, issuer=between).followed_by(between.der, META)
    chain = Attempt(identity, version)().state.peer_chain
    assert chain == (identity.der, between.der, META)
    assert scan_chain_untrusted(chain) == (RELAY, 2)


@pytest.mark.parametrize("name", [NAME + ".", NAME.upper()])
def test_other_spellings_of_the_name_are_accepted(name: str) -> None:
    attempt = Attempt(GOOD)
    attempt(name)
    assert attempt.peer.sni is not None
    assert attempt.peer.sni.lower() == NAME


@pytest.mark.parametrize("name", ["", ".", "a..b", ".example.com", "a\0b", "x" * 64 + ".com"])
def test_a_host_that_cannot_be_a_name_is_refused(name: str) -> None:
    with pytest.raises(TLSError, match="cannot be a server's name"):
        Attempt(GOOD)(name)


def test_without_a_name_none_is_sent_and_nothing_is_verified() -> None:
    """Only for a node that is `InsecureForTests`, as with Go's client."""
    attempt = Attempt(GOOD)
    attempt("", insecure=True)
    assert attempt.peer.sni is None


def test_a_wildcard_matches_one_label() -> None:
    identity = certificate("*.example.com", issuer=ROOT)
    Attempt(identity)()
    with pytest.raises(CertificateError):
        Attempt(identity)("a.b.example.com")


# Refused certificates


@pytest.mark.parametrize(
    ("alert", "words"),
    [
        (ssl.ALERT_DESCRIPTION_INTERNAL_ERROR, "internal error"),
        (ssl.ALERT_DESCRIPTION_UNRECOGNIZED_NAME, "unrecognized name"),
    ],
)
@pytest.mark.parametrize("version", VERSIONS)
def test_the_alert_for_an_unknown_name_is_explained(
    alert: int, words: str, version: ssl.TLSVersion
) -> None:
    attempt = Attempt(GOOD, version)
    attempt.peer.refusal = alert
    text = f"alert '{words}', as Go's relay does if it has no certificate for this name: check the"
    with pytest.raises(TLSError, match=text):
        attempt()


def test_a_certificate_for_another_name_is_refused() -> None:
    with pytest.raises(CertificateError) as caught:
        Attempt(OTHER)()
    text = str(caught.value)
    assert text.startswith(f"certificate of {NAME}: Hostname mismatch")
    assert text.endswith("it is for front.example.org, issued by CN=A root for tests")


def test_the_common_name_is_ignored() -> None:
    with pytest.raises(CertificateError, match="it is for no name"):
        Attempt(certificate(common_name=NAME, issuer=ROOT))()


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_addresses_are_compared_and_not_sent(address: str) -> None:
    attempt = Attempt(certificate(address, issuer=ROOT))
    attempt(address)
    assert attempt.peer.sni is None
    with pytest.raises(CertificateError, match="IP address mismatch"):
        Attempt(certificate("127.0.0.9", "localhost", issuer=ROOT))(address)


@pytest.mark.parametrize("name", ["[::1]", "[::1%lo]", "::1%lo"])
def test_other_spellings_of_an_address_are_accepted(name: str) -> None:
    assert Attempt(certificate("::1", issuer=ROOT))(name).state.server_name == "::1"


@pytest.mark.parametrize(
    ("identity", "problem"),
    [
        (certificate(NAME, issuer=ROOT, since=-9, until=-1), "expired"),
        (certificate(NAME, issuer=ROOT, since=1), "not yet valid"),
        (ALONE, "self-signed certificate; .*issued by CN=a self-signed server"),
        (certificate(NAME, issuer=certificate(authority=True)), "issuer"),
        (certificate(NAME, issuer=NO_AUTHORITY).followed_by(NO_AUTHORITY.der), "invalid CA"),
    ],
)
@pytest.mark.parametrize("version", VERSIONS)
def test_a_bad_certificate_is_refused_with_its_problem(
    identity: Identity, problem: str, version: ssl.TLSVersion
) -> None:
    attempt = Attempt(identity, version)
    with pytest.raises(CertificateError, match=f"^certificate of {NAME}: .*{problem}") as caught:
        attempt()
    assert not isinstance(caught.value, PinMismatch)
    assert attempt.peer.error is not None
    assert "ALERT" in str(attempt.peer.error.reason)  # the server gets an alert


def test_no_certificate_is_trusted_without_roots() -> None:
    with pytest.raises(CertificateError):
        Attempt(GOOD)(config=NO_ROOTS)


def test_a_server_certificate_may_be_trusted_itself() -> None:
    for identity in (ALONE, certificate(NAME, issuer=certificate(authority=True))):
        config = TLSConfig(system_roots=False, builtin_roots=False, extra_roots=(identity.der,))
        Attempt(identity)(config=config)
        with pytest.raises(CertificateError):
            Attempt(identity)("other.example.com", config=config)


# CertName and InsecureForTests


def test_insecure_verifies_nothing() -> None:
    for identity in (ALONE, OTHER, certificate(NAME, since=-9, until=-1)):
        Attempt(identity)(insecure=True)


@pytest.mark.parametrize("insecure", [False, True])
def test_cert_name_is_compared_instead_of_the_name(insecure: bool) -> None:
    attempt = Attempt(OTHER)
    attempt(cert_name="front.example.org", insecure=insecure)
    assert attempt.peer.sni == NAME


@pytest.mark.parametrize("insecure", [False, True])
@pytest.mark.parametrize("version", VERSIONS)
def test_a_certificate_for_another_cert_name_is_refused(
    insecure: bool, version: ssl.TLSVersion
) -> None:
    attempt = Attempt(GOOD, version)
    with pytest.raises(CertificateError) as caught:
        attempt(cert_name="front.example.org", insecure=insecure)
    assert str(caught.value) == (
        f"certificate of {NAME}: not valid for 'front.example.org', the name it must have;"
        f" it is for {NAME}, issued by CN=A root for tests"
    )
    # Under TLS 1.3 the client's last message of the handshake did not even leave.
    assert attempt.peer.established == (version is ssl.TLSVersion.TLSv1_2)


@pytest.mark.parametrize("insecure", [False, True])
def test_cert_name_needs_a_chain(insecure: bool) -> None:
    identity = certificate("front.example.org")
    with pytest.raises(CertificateError, match=r"to be for 'front\.example\.org'.*self-signed"):
        Attempt(identity)(cert_name="front.example.org", insecure=insecure)


def test_cert_name_is_compared_instead_of_an_address() -> None:
    attempt = Attempt(OTHER)
    attempt("127.0.0.1", cert_name="front.example.org")
    assert attempt.peer.sni is None


def test_equal_cert_name_changes_nothing() -> None:
    Attempt(GOOD)(cert_name=NAME)
    with pytest.raises(CertificateError):
        Attempt(OTHER)(cert_name=NAME)
    with pytest.raises(CertificateError):
        Attempt(ALONE)(cert_name=NAME)
    Attempt(ALONE)(cert_name=NAME, insecure=True)


# Pins


@pytest.mark.parametrize("insecure", [False, True])
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("rest", [(), (META,), (META, META)])
def test_a_pinned_certificate_needs_no_authority(
    insecure: bool, version: ssl.TLSVersion, rest: tuple[bytes, ...]
) -> None:
    identity = ALONE.followed_by(*rest)
    attempt = Attempt(identity, version)
    tls = attempt(cert_name=pin(identity), insecure=insecure, config=NO_ROOTS)
    assert tls.state.peer_chain == (identity.der, *rest)
    assert attempt.peer.sni == NAME


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_a_pinned_certificate_of_an_address_need_not_name_it(address: str) -> None:
    Attempt(ALONE)(address, cert_name=pin(ALONE))


@pytest.mark.parametrize("insecure", [False, True])
@pytest.mark.parametrize("version", VERSIONS)
def test_another_certificate_than_the_pinned_one_is_refused(
    insecure: bool, version: ssl.TLSVersion
) -> None:
    attempt = Attempt(GOOD, version)
    with pytest.raises(PinMismatch) as caught:
        attempt(cert_name=pin(ALONE), insecure=insecure)
    text = str(caught.value)
    assert text.startswith("cert hash does not match expected cert hash: ")
    assert f"expected {hashlib.sha256(ALONE.der).hexdigest()}" in text
    assert f"got {hashlib.sha256(GOOD.der).hexdigest()}" in text
    assert attempt.peer.established == (version is ssl.TLSVersion.TLSv1_2)


@pytest.mark.parametrize(
    "text",
    [
        pin(ALONE).upper().replace("SHA256-RAW", "sha256-raw"),
        pin(ALONE)[:-1],
        pin(ALONE) + "0",
        pin(ALONE) + "\n",
        "sha256-raw:",
        "sha256-raw:" + hashlib.sha256(ALONE.pem()).hexdigest(),
    ],
    ids=["capitals", "too short", "too long", "newline", "empty", "of the PEM text"],
)
def test_a_pin_is_compared_letter_by_letter(text: str) -> None:
    with pytest.raises(PinMismatch, match=r"^cert hash does not match expected cert hash"):
        Attempt(ALONE)(cert_name=text)


def test_a_pin_with_other_certificates_in_the_chain_is_refused() -> None:
    with pytest.raises(PinMismatch, match=r"^unexpected multiple certs presented"):
        Attempt(ALONE.followed_by(ROOT.der))(cert_name=pin(ALONE))
    with pytest.raises(PinMismatch, match=r"^unexpected multiple certs presented"):
        Attempt(ALONE.followed_by(META, ROOT.der))(cert_name=pin(ALONE))


@pytest.mark.parametrize("version", VERSIONS)
def test_the_pinned_certificate_must_be_the_one_of_the_handshake(version: ssl.TLSVersion) -> None:
    """Any server can present a certificate; only the owner of its key can put it first."""
    impostor = certificate(NAME, common_name="derpkey" + "0" * 40)
    attempt = Attempt(impostor.followed_by(ALONE.der), version)
    with pytest.raises(PinMismatch, match=r"^expected cert not presented"):
        attempt(cert_name=pin(ALONE))
    attempt = Attempt(impostor, version)
    with pytest.raises(PinMismatch, match=r"^expected cert not presented"):
        attempt(cert_name=pin(impostor))


def test_a_pinned_certificate_must_be_for_the_name() -> None:
    with pytest.raises(CertificateError) as caught:
        Attempt(OTHER)(cert_name=pin(OTHER))
    assert str(caught.value).startswith(f'cert does not match server name "{NAME}": ')


@pytest.mark.parametrize(
    ("since", "until", "problem"),
    [
        (-9, -1, r"^cert expired \d{4}-"),
        (1, 9, r"^cert not yet valid until \d{4}-.*; is your clock correct\?$"),
    ],
)
def test_a_pinned_certificate_must_be_within_its_time(since: int, until: int, problem: str) -> None:
    identity = certificate(NAME, since=since, until=until)
    with pytest.raises(CertificateError, match=problem):
        Attempt(identity)(cert_name=pin(identity))


# Servers without TLS, or with other versions of it


@pytest.mark.filterwarnings("ignore:.*TLSv1_1:DeprecationWarning")
def test_old_tls_is_refused() -> None:
    context = GOOD.server()
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.set_ciphers("ALL:@SECLEVEL=0")
    link = MemoryLink(TlsPeer(context).answer)
    with pytest.raises(
        TLSError, match=rf"^{NAME}: the server speaks neither TLS 1\.2 nor TLS 1\.3"
    ):
        handshake(link)
    assert link.aborted


def test_no_common_cipher_is_a_tls_error() -> None:
    context = GOOD.server(ssl.TLSVersion.TLSv1_2)
    context.set_ciphers("ECDHE-RSA-AES128-GCM-SHA256")
    with pytest.raises(TLSError, match=r"TLS handshake failed: .*handshake failure"):
        handshake(MemoryLink(TlsPeer(context).answer))


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.2p1\r\n",
        b"220 mail.example.com ESMTP\r\n",
        bytes(2000),
        b"\xff" * 2000,
    ],
)
def test_a_server_without_tls_is_named(data: bytes) -> None:
    link = MemoryLink(lambda _: data)
    with pytest.raises(TLSError, match=rf"^{NAME}: the server does not speak TLS on this port$"):
        handshake(link)
    assert link.aborted


def test_an_alert_is_in_the_error() -> None:
    link = MemoryLink(lambda _: bytes.fromhex("15 0303 0002 02 28"))
    with pytest.raises(TLSError, match=r"TLS handshake failed: .*alert 'handshake failure'"):
        handshake(link)


class Cut:
    """Bytes of a server up to some number, and then other bytes."""

    def __init__(self, size: int, then: bytes, version: ssl.TLSVersion) -> None:
        self.peer = TlsPeer(GOOD.server(version))
        self.left = size
        self.then = then

    def answer(self, data: bytes) -> bytes:
        back = self.peer.answer(data)
        kept = back[: self.left]
        self.left -= len(kept)
        if len(kept) < len(back):
            kept += self.then
            self.then = b""
        return kept


def length_of_handshake(version: ssl.TLSVersion) -> int:
    """How many bytes the server sends until the client has all it needs, within a few."""
    cut = Cut(1 << 20, b"", version)
    sizes: list[int] = []

    def answer(data: bytes) -> bytes:
        back = cut.answer(data)
        sizes.append(len(back))
        return back

    handshake(MemoryLink(answer))
    # The last flight under TLS 1.3 has tickets, which the client does not need.
    return sizes[0] if version is ssl.TLSVersion.TLSv1_3 else sum(sizes)


@pytest.mark.parametrize("version", VERSIONS)
def test_an_end_of_the_stream_anywhere_in_the_handshake_is_an_error(
    version: ssl.TLSVersion,
) -> None:
    # A signature may be some bytes shorter another time.
    for size in range(0, length_of_handshake(version) - 8, 13):
        link = MemoryLink(Cut(size, b"", version).answer)
        with pytest.raises(TLSError, match=rf"^{NAME}: closed during the TLS handshake$"):
            handshake(link)
        assert link.aborted


@pytest.mark.parametrize("version", VERSIONS)
def test_garbage_anywhere_in_the_handshake_is_an_error(version: ssl.TLSVersion) -> None:
    for size in range(1, length_of_handshake(version) - 8, 13):
        cut = Cut(size, b"\xa5" * 20_000, version)
        link = MemoryLink(cut.answer)
        with pytest.raises(TLSError) as caught:
            handshake(link)
        # Garbage as a length makes the client wait until the stream ends.
        assert f"{NAME}: " in str(caught.value)
        assert link.aborted


def test_an_error_of_the_link_is_raised_unchanged() -> None:
    link = MemoryLink(lambda _: b"")
    link.error = ConnectionResetError("reset")
    with pytest.raises(ConnectionResetError) as caught:
        handshake(link)
    assert caught.value is link.error
    assert link.aborted


# Health


class Health:
    def __init__(self) -> None:
        self.reports: list[tuple[str, str | None]] = []

    def set_tls_error(self, server_name: str, error: Exception | None) -> None:
        self.reports.append((server_name, None if error is None else str(error)))


INTERCEPTED = "likely intercepted connection; certificate is self-signed by CN="


@pytest.mark.parametrize(
    ("identity", "cert_name", "insecure", "problem"),
    [
        (GOOD, "", False, None),
        (ALONE, "", False, INTERCEPTED + "a self-signed server"),
        (ALONE, "", True, None),
        (OTHER, "", False, None),  # for another name, but of a trusted authority
        (OTHER, "front.example.org", False, None),
        (
            certificate("front.example.org"),
            "front.example.org",
            False,
            INTERCEPTED + "front.example.org",
        ),
        (ALONE, pin(ALONE), False, None),
        (ALONE, pin(GOOD), False, None),  # the usual pinned certificate is self-signed
    ],
    ids=[
        *("good", "self-signed", "insecure", "other name", "other name expected"),
        *("self-signed for the expected name", "pinned", "pinned other"),
    ],
)
@pytest.mark.parametrize("version", VERSIONS)
def test_health_gets_problems_of_certificates(
    identity: Identity,
    cert_name: str,
    insecure: bool,
    problem: str | None,
    version: ssl.TLSVersion,
) -> None:
    health = Health()
    link = MemoryLink(TlsPeer(identity.server(version)).answer)
    try:
        handshake(link, cert_name=cert_name, insecure=insecure, health=health)
    except CertificateError:
        assert link.aborted
    assert health.reports == [(NAME, problem)]


def test_health_is_unchanged_if_no_certificate_was_seen() -> None:
    health = Health()
    with pytest.raises(TLSError):
        handshake(MemoryLink(lambda _: b""), health=health)
    assert health.reports == []


# Logs


def test_keys_are_logged_into_a_private_file_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "keys.log"
    link = MemoryLink(TlsPeer(GOOD.server()).answer)
    with caplog.at_level(logging.WARNING, "pyderp.tls"):
        handshake(link, settings=NetworkSettings(keylog_file=str(path)))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert "CLIENT_TRAFFIC_SECRET_0 " in path.read_text()
    [record] = caplog.records
    assert str(path) in record.getMessage()


def test_a_key_log_that_cannot_be_written_is_a_config_error(tmp_path: Path) -> None:
    link = MemoryLink(TlsPeer(GOOD.server()).answer)
    with pytest.raises(ConfigError, match=r"TLS key log .*: No such file or directory"):
        handshake(link, settings=NetworkSettings(keylog_file=str(tmp_path / "no" / "keys")))
    assert link.aborted


def test_verification_errors_name_the_certificate(caplog: pytest.LogCaptureFixture) -> None:
    verbose = NetworkSettings(verbose_tls=True)
    with caplog.at_level(logging.INFO, "pyderp.tls"):
        handshake(MemoryLink(TlsPeer(GOOD.followed_by(META).server()).answer), settings=verbose)
        with pytest.raises(CertificateError):
            handshake(MemoryLink(TlsPeer(ALONE.server()).answer), settings=verbose)
    accepted, first, second, refused, third = (record.getMessage() for record in caplog.records)
    assert accepted == f"{NAME}: certificate accepted"
    assert first == f"{NAME}: certificate 0: it is for {NAME}, issued by CN=A root for tests"
    assert second.startswith(f"{NAME}: certificate 1: it is for no name, issued by CN=derpkey")
    assert "self-signed" in refused
    assert third.endswith("issued by CN=a self-signed server")


def test_a_handshake_logs_nothing_by_default(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        Attempt(GOOD)()
    assert not caplog.records
