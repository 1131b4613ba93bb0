from __future__ import annotations

import hashlib
import os
import ssl
import stat
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from pyderp.certs import make_certificates
from pyderp.certs.manual import ManualCertificates, certificate_paths
from pyderp.config import ManualTLS
from pyderp.errors import ConfigError
from tests.server.certificates import trusting_nobody, write_pair

from .handshake import NAME, SERVER, context_of, presented, shake_hands


def load(directory: Path, hostname: str = NAME) -> ManualCertificates:
    return ManualCertificates(directory, hostname)


@pytest.mark.parametrize(
    ("hostname", "stem"),
    [(NAME, NAME), ("192.0.2.1", "192.0.2.1"), ("::1", "1"), ("a/../b_c", "a..bc")],
)
def test_file_names_are_made_from_the_hostname(hostname: str, stem: str) -> None:
    want = (Path("/d") / f"{stem}.crt", Path("/d") / f"{stem}.key")
    assert certificate_paths(Path("/d"), hostname) == want


def test_a_pair_for_the_name_is_served_with_the_meta_certificate_last(tmp_path: Path) -> None:
    leaf = write_pair(tmp_path, NAME)
    chain = presented(context_of(load(tmp_path)))
    assert chain[0] == leaf
    assert len(chain) == 2
    assert f"derpkey{SERVER.untyped_hex()}".encode() in chain[1]


def test_the_meta_certificate_comes_after_the_intermediates(tmp_path: Path) -> None:
    write_pair(tmp_path, "issuer.example.com")
    leaf = write_pair(tmp_path, NAME)
    intermediate = (tmp_path / "issuer.example.com.crt").read_bytes()
    certificate = tmp_path / f"{NAME}.crt"
    certificate.write_bytes(certificate.read_bytes().rstrip() + b"\n" + intermediate.rstrip())
    chain = presented(context_of(load(tmp_path)))
    assert len(chain) == 3
    assert chain[0] == leaf
    assert b"derpkey" in chain[2]


@pytest.mark.parametrize("server_name", [None, "other.example.com", "derp.example.comx"])
def test_another_server_name_or_none_is_answered_with_an_internal_error_alert(
    tmp_path: Path, server_name: str | None
) -> None:
    write_pair(tmp_path, NAME)
    context = context_of(load(tmp_path))
    with pytest.raises(ssl.SSLError, match="INTERNAL_ERROR"):
        shake_hands(context, server_name)


@pytest.mark.parametrize("hostname", [NAME, "DERP.Example.com", f"{NAME}."])
@pytest.mark.parametrize("server_name", [NAME, "DERP.example.COM", f"{NAME}."])
def test_names_are_compared_without_case_and_final_dot(
    tmp_path: Path, hostname: str, server_name: str
) -> None:
    """File names, too; a file named exactly like the hostname is preferred."""
    leaf = write_pair(tmp_path, NAME)
    source = load(tmp_path, hostname)
    found = source.credential("192.0.2.1", server_name)
    assert found is not None
    assert ssl.PEM_cert_to_DER_cert(found.chain.decode()) == leaf
    assert source.credential("192.0.2.1", None) is None
    (tmp_path / f"{NAME}.crt").rename(tmp_path / "DERP.Example.com.crt")
    (tmp_path / f"{NAME}.key").rename(tmp_path / "DERP.Example.com.key")
    if hostname == "DERP.Example.com":
        assert load(tmp_path, hostname).credential("192.0.2.1", server_name) is not None


@pytest.mark.parametrize("server_name", [None, "any.example.com", NAME])
def test_with_any_server_name_the_certificate_is_served_for_every_name(
    tmp_path: Path, server_name: str | None
) -> None:
    leaf = write_pair(tmp_path, NAME)
    source = ManualCertificates(tmp_path, NAME, any_server_name=True)
    assert presented(context_of(source), server_name)[0] == leaf


def test_configured_files_are_reloaded_when_their_content_changes(tmp_path: Path) -> None:
    """Like in Kubernetes: symbolic links that are replaced all at once."""
    for version in ("1", "2"):
        (tmp_path / version).mkdir()
        write_pair(tmp_path / version, NAME)
        (tmp_path / version / f"{NAME}.crt").rename(tmp_path / version / "tls.crt")
        (tmp_path / version / f"{NAME}.key").rename(tmp_path / version / "tls.key")
    current = tmp_path / "current"
    current.symlink_to("1")
    files = current / "tls.crt", current / "tls.key"
    tls = ManualTLS(certdir=tmp_path, hostname=NAME, cert_file=files[0], cert_key_file=files[1])
    source = make_certificates(tls)
    assert source.reload() is False
    os.utime(files[0], (1, 1))
    assert source.reload() is False, "the content is the same"
    current.unlink()
    current.symlink_to("2")
    assert source.reload() is True
    found = source.credential("192.0.2.1", NAME)
    assert found is not None
    assert found.chain == (tmp_path / "2" / "tls.crt").read_bytes()


def test_configured_files_that_are_missing_are_not_created(tmp_path: Path) -> None:
    missing = tmp_path / "tls.crt", tmp_path / "tls.key"
    with pytest.raises(ConfigError, match=r"cannot read certificate .*tls.crt: No such file"):
        ManualCertificates(tmp_path, "192.0.2.1", files=missing)


@pytest.mark.parametrize("server_name", [None, "any.example.com", NAME])
def test_the_certificate_of_an_address_is_served_for_every_name(
    tmp_path: Path, server_name: str | None
) -> None:
    context = context_of(load(tmp_path, "192.0.2.1"))
    assert len(presented(context, server_name)) == 2


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_tls_1_2_and_1_3_are_supported(tmp_path: Path, version: ssl.TLSVersion) -> None:
    write_pair(tmp_path, NAME)
    client = trusting_nobody()
    client.minimum_version = client.maximum_version = version
    near = shake_hands(context_of(load(tmp_path)), NAME, client)
    assert near.version() == version.name.replace("_", ".")


def test_older_tls_versions_are_refused(tmp_path: Path) -> None:
    write_pair(tmp_path, NAME)
    context = context_of(load(tmp_path))
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2


def test_http_1_1_is_the_only_protocol_offered(tmp_path: Path) -> None:
    write_pair(tmp_path, NAME)
    client = trusting_nobody()
    client.set_alpn_protocols(["h2", "http/1.1"])
    near = shake_hands(context_of(load(tmp_path)), NAME, client)
    assert near.selected_alpn_protocol() == "http/1.1"


@pytest.mark.parametrize(
    "names", [[NAME], ["*.example.com"], ["DERP.Example.Com"], ["x.test", NAME], [NAME, "::1"]]
)
def test_certificates_for_the_hostname_are_accepted(tmp_path: Path, names: list[str]) -> None:
    write_pair(tmp_path, NAME, names=names)
    load(tmp_path)


@pytest.mark.parametrize(
    ("names", "names_in_error"),
    [
        (["other.example.com"], "other.example.com"),
        (["*.derp.example.com"], "derp.example.com"),
        (["*.com"], "com"),
        (["example.com", "192.0.2.1"], "example.com, 192.0.2.1"),
        ([], "no host at all"),
    ],
)
def test_certificates_for_other_names_are_refused(
    tmp_path: Path, names: list[str], names_in_error: str
) -> None:
    write_pair(tmp_path, NAME, names=names)
    with pytest.raises(ConfigError, match=f"is not valid for '{NAME}'.*{names_in_error}"):
        load(tmp_path)


def test_a_chain_in_the_wrong_order_is_reported_as_such(tmp_path: Path) -> None:
    """An error about the names of the authority's certificate would not help."""
    write_pair(tmp_path, "authority", names=[])
    write_pair(tmp_path, NAME)
    chain = tmp_path / f"{NAME}.crt"
    chain.write_bytes((tmp_path / "authority.crt").read_bytes() + chain.read_bytes())
    with pytest.raises(ConfigError, match=f"'{NAME}': the first in the file must be") as caught:
        load(tmp_path)
    assert "names no host" not in str(caught.value)


def test_an_existing_pair_must_be_for_the_address(tmp_path: Path) -> None:
    write_pair(tmp_path, "192.0.2.1", names=["192.0.2.2"])
    with pytest.raises(ConfigError, match=r"not valid for '192\.0\.2\.1'"):
        load(tmp_path, "192.0.2.1")


def test_an_expired_certificate_is_served_as_by_derper(tmp_path: Path) -> None:
    write_pair(tmp_path, NAME)
    key = load_pem_private_key((tmp_path / f"{NAME}.key").read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, NAME)])
    long_ago = datetime.now(UTC) - timedelta(days=400)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(long_ago)
        .not_valid_after(long_ago + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(NAME)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    (tmp_path / f"{NAME}.crt").write_bytes(certificate.public_bytes(Encoding.PEM))
    assert len(presented(context_of(load(tmp_path)))) == 2


@pytest.mark.parametrize("missing", [".crt", ".key"])
def test_a_missing_file_is_named_in_the_error(tmp_path: Path, missing: str) -> None:
    write_pair(tmp_path, NAME)
    (tmp_path / f"{NAME}{missing}").unlink()
    with pytest.raises(ConfigError, match=rf"{NAME}\{missing}"):
        load(tmp_path)


@pytest.mark.parametrize("text", ["", "garbage", "-----BEGIN CERTIFICATE-----\nAAAA\n"])
def test_a_file_without_a_certificate_is_refused(tmp_path: Path, text: str) -> None:
    write_pair(tmp_path, NAME)
    (tmp_path / f"{NAME}.crt").write_text(text)
    with pytest.raises(ConfigError, match="holds no certificate in PEM form"):
        load(tmp_path)


def test_an_invalid_key_or_one_of_another_certificate_is_refused(tmp_path: Path) -> None:
    write_pair(tmp_path, "other.example.com")
    write_pair(tmp_path, NAME)
    key = tmp_path / f"{NAME}.key"
    for text in ("garbage", (tmp_path / "other.example.com.key").read_text()):
        key.write_text(text)
        with pytest.raises(ConfigError, match="cannot use certificate"):
            load(tmp_path)


def test_an_encrypted_key_is_refused_without_a_password_prompt(tmp_path: Path) -> None:
    write_pair(tmp_path, NAME, password="secret")
    with pytest.raises(ConfigError, match="the key is encrypted"):
        load(tmp_path)


def test_text_around_the_certificate_may_have_any_encoding(tmp_path: Path) -> None:
    write_pair(tmp_path, NAME)
    certificate = tmp_path / f"{NAME}.crt"
    certificate.write_bytes("Émetteur\n".encode("latin-1") + certificate.read_bytes())
    assert len(presented(context_of(load(tmp_path)))) == 2


# Self-signed certificates for addresses


@pytest.mark.parametrize("hostname", ["192.0.2.1", "2001:db8::1"])
def test_a_missing_pair_of_an_address_is_created_as_by_derper(
    tmp_path: Path, hostname: str
) -> None:
    directory = tmp_path / "deep" / "certs"
    certificates = load(directory, hostname)
    leaf = x509.load_pem_x509_certificate(certificates.certificate_file.read_bytes())
    assert leaf.subject == leaf.issuer
    assert leaf.subject.rfc4514_string() == f"CN={hostname}"
    assert leaf.not_valid_after_utc - leaf.not_valid_before_utc == timedelta(days=365)
    extensions = {each.value.oid: each for each in leaf.extensions}
    san = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [str(each) for each in san.get_values_for_type(x509.IPAddress)] == [hostname]
    basic = leaf.extensions.get_extension_for_class(x509.BasicConstraints)
    assert (basic.critical, basic.value.ca) == (True, False)
    usage = leaf.extensions.get_extension_for_class(x509.KeyUsage)
    assert usage.critical
    assert usage.value.digital_signature
    assert usage.value.key_encipherment
    extended = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(extended) == [ExtendedKeyUsageOID.SERVER_AUTH]
    assert len(extensions) == 4
    assert isinstance(leaf.public_key(), ec.EllipticCurvePublicKey)
    key = certificates.key_file
    assert b"BEGIN EC PRIVATE KEY" in key.read_bytes()
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert stat.S_IMODE(certificates.certificate_file.stat().st_mode) == 0o644
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700


def test_an_existing_pair_of_an_address_is_kept(tmp_path: Path) -> None:
    first = load(tmp_path, "192.0.2.1").cert_name
    assert load(tmp_path, "192.0.2.1").cert_name == first


@pytest.mark.parametrize("missing", [".crt", ".key"])
def test_half_a_pair_of_an_address_is_replaced(tmp_path: Path, missing: str) -> None:
    first = load(tmp_path, "192.0.2.1").cert_name
    (tmp_path / f"192.0.2.1{missing}").unlink()
    assert load(tmp_path, "192.0.2.1").cert_name != first


def test_a_directory_that_cannot_be_created_is_named_in_the_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"cannot save the self-signed certificate in .*file"):
        load(tmp_path / "file", "192.0.2.1")


def test_cert_name_is_the_pin_of_the_leaf(tmp_path: Path) -> None:
    certificates = load(tmp_path, "192.0.2.1")
    digest = hashlib.sha256(presented(context_of(certificates))[0]).hexdigest()
    assert certificates.cert_name == f"sha256-raw:{digest}"


def test_a_certificate_for_a_name_is_not_pinned(tmp_path: Path) -> None:
    write_pair(tmp_path, NAME)
    assert load(tmp_path).cert_name == ""


@pytest.mark.parametrize("kind", ["directory", "fifo"])
def test_a_directory_or_fifo_instead_of_a_file_is_refused(tmp_path: Path, kind: str) -> None:
    write_pair(tmp_path, NAME)
    path = tmp_path / f"{NAME}.crt"
    path.unlink()
    if kind == "directory":
        path.mkdir()
        want = "cannot read certificate"
    else:
        os.mkfifo(path)
        threading.Thread(target=path.write_text, args=("",)).start()
        want = "holds no certificate"
    with pytest.raises(ConfigError, match=want):
        load(tmp_path)


def test_an_invalid_hostname_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="neither a host name nor an IP address"):
        load(tmp_path, "no name")


def test_the_certificate_in_use_is_reported(tmp_path: Path) -> None:
    write_pair(tmp_path, NAME, names=[NAME, "192.0.2.1"], days=60)
    (info,) = load(tmp_path).certificates()
    assert info.names == (NAME, "192.0.2.1")
    assert info.lifetime == timedelta(days=150)
    assert info.remaining(datetime.now(UTC)) == pytest.approx(0.4, abs=0.01)


def test_a_manual_source_has_no_challenges(tmp_path: Path) -> None:
    write_pair(tmp_path, NAME)
    certificates = load(tmp_path)
    assert not certificates.challenge_pending
    assert certificates.challenge_credential(memoryview(b"")) is None
    assert certificates.http_challenge("/.well-known/acme-challenge/token") is None


@pytest.mark.parametrize("lacks", ["memfd_create", "/proc"])
def test_contexts_are_made_without_memfd_or_proc_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lacks: str
) -> None:
    write_pair(tmp_path, NAME)
    if lacks == "/proc":
        monkeypatch.setattr(os, "access", lambda *_: False)
    else:
        monkeypatch.delattr(os, "memfd_create", raising=False)
    assert len(presented(context_of(load(tmp_path)))) == 2


def test_a_directory_that_cannot_be_read_is_named_in_the_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(_: Path) -> bool:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "exists", denied)  # tests may run as root
    with pytest.raises(ConfigError, match=r"cannot look into .*: Permission denied"):
        load(tmp_path, "192.0.2.1")
