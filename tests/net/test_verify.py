"""What a certificate must fulfil, and how it is described."""

from __future__ import annotations

import datetime
import hashlib

import pytest
from cryptography import x509

from pyderp.errors import CertificateError, PinMismatch, TLSError
from pyderp.net.verify import Rule, describe, make_rule, self_signed_issuer

from .certificates import META, ROOT, certificate

NOW = datetime.datetime.now(datetime.UTC)
HOST = "derp.example.com"
PIN = "0" * 64


@pytest.mark.parametrize(
    ("cert_name", "insecure", "rule"),
    [
        ("", False, Rule(server_name=HOST)),
        ("", True, Rule(server_name=HOST, chain=False)),
        ("x.org", False, Rule(server_name=HOST, other_name="x.org")),
        ("x.org", True, Rule(server_name=HOST, other_name="x.org")),
        ("DERP.example.com.", False, Rule(server_name=HOST, other_name="DERP.example.com")),
        (HOST, False, Rule(server_name=HOST)),
        (HOST, True, Rule(server_name=HOST, chain=False)),
        ("sha256-raw:" + PIN, False, Rule(server_name=HOST, chain=False, pin=PIN)),
        ("sha256-raw:" + PIN, True, Rule(server_name=HOST, chain=False, pin=PIN)),
        ("sha256-raw:", False, Rule(server_name=HOST, chain=False, pin="")),
        ("SHA256-RAW:0", False, Rule(server_name=HOST, other_name="SHA256-RAW:0")),
    ],
)
def test_cert_name_and_insecure_make_the_rule(cert_name: str, insecure: bool, rule: Rule) -> None:
    assert make_rule(HOST, cert_name=cert_name, insecure=insecure) == rule
    assert rule.hostname == (rule.chain and not rule.other_name)


def test_international_names_are_encoded() -> None:
    rule = make_rule("bücher.example", cert_name="straße.example")
    assert (rule.server_name, rule.other_name) == ("xn--bcher-kva.example", "strasse.example")
    with pytest.raises(TLSError, match="cannot be a server's name"):
        make_rule(HOST, cert_name="a..b")


@pytest.mark.parametrize(
    ("names", "wanted", "fits"),
    [
        (["a.example.com"], "a.example.com", True),
        (["A.Example.COM"], "a.EXAMPLE.com", True),
        (["a.example.com"], "b.example.com", False),
        (["a.example.com"], "a.example.com.evil.org", False),
        (["b.org", "a.example.com"], "a.example.com", True),
        (["*.example.com"], "a.example.com", True),
        (["*.example.com"], "example.com", False),
        (["*.example.com"], ".example.com", False),
        (["*.example.com"], "a.b.example.com", False),
        (["*.com"], "example.com", False),
        (["*"], "localhost", False),
        (["a*.example.com"], "ab.example.com", False),
        (["a.*.com"], "a.example.com", False),
        (["*.example.com"], "*.example.com", True),
        (["10.0.0.1"], "10.0.0.1", True),
        (["10.0.0.1"], "10.0.0.2", False),
        (["fd00::1"], "fd00:0:0::0:1", True),
        (["fd00::1"], "fd00::2", False),
        (["*.0.0.1"], "10.0.0.1", False),
        ([], HOST, False),
        (["localhost"], "localhost", True),
    ],
)
def test_cert_name_is_compared_with_the_alternative_names(
    names: list[str], wanted: str, fits: bool
) -> None:
    """OpenSSL does not compare this name."""
    rule = Rule(server_name=HOST, other_name=wanted)
    chain = [certificate(*names, common_name=wanted).der]
    if fits:
        rule.check(chain, now=NOW)
        return
    with pytest.raises(CertificateError, match="not valid for"):
        rule.check(chain, now=NOW)


def test_a_pinned_certificate_is_valid_to_the_edges_of_its_time() -> None:
    der = certificate(HOST, since=-1, until=1).der
    rule = Rule(server_name=HOST, chain=False, pin=hashlib.sha256(der).hexdigest())
    read = x509.load_der_x509_certificate(der)
    start, end = read.not_valid_before_utc, read.not_valid_after_utc
    second = datetime.timedelta(seconds=1)
    for when in (start, NOW, end):
        rule.check([der], now=when)
    with pytest.raises(CertificateError, match=r"^cert expired"):
        rule.check([der], now=end + second)
    with pytest.raises(CertificateError, match=r"^cert not yet valid until"):
        rule.check([der], now=start - second)


def test_checks_of_a_pin_have_an_order() -> None:
    """The error is that of the first failed check."""
    late = certificate("x.org", until=-1, since=-2)
    pin = hashlib.sha256(late.der).hexdigest()
    named = Rule(server_name=HOST, chain=False, pin=pin)
    with pytest.raises(CertificateError, match=r"^cert does not match server name"):
        named.check([late.der, ROOT.der], now=NOW)
    address = Rule(server_name="10.0.0.1", chain=False, pin=pin)
    with pytest.raises(CertificateError, match=r"^cert expired"):
        address.check([late.der, ROOT.der], now=NOW)
    with pytest.raises(PinMismatch, match=r"^cert hash"):
        address.check([ROOT.der, late.der], now=NOW)
    with pytest.raises(PinMismatch, match=r"^expected cert not presented"):
        address.check([META], now=NOW)


def test_a_pinned_certificate_that_cannot_be_read_is_refused() -> None:
    junk = b"junk"
    rule = Rule(server_name=HOST, chain=False, pin=hashlib.sha256(junk).hexdigest())
    with pytest.raises(CertificateError, match="cannot be read"):
        rule.check([junk], now=NOW)


def test_a_description_has_names_and_issuer() -> None:
    leaf = certificate("a.org", "10.0.0.1", "*.b.org", issuer=ROOT)
    assert describe(leaf.der) == "it is for a.org, *.b.org, 10.0.0.1, issued by CN=A root for tests"
    many = certificate(*(f"{number}.org" for number in range(9)), common_name="me")
    assert describe(many.der) == "it is for 0.org, 1.org, 2.org, 3.org, …, issued by CN=me"
    assert describe(b"junk") == "the certificate cannot be read"
    # A common name of 71 characters, about which `cryptography` would warn.
    assert describe(META).startswith("it is for no name, issued by CN=derpkey")


def test_text_of_a_certificate_stays_on_its_line() -> None:
    text = describe(certificate("a.org", common_name="x\nWARNING \x1b[31mall is lost").der)
    assert text == r"it is for a.org, issued by CN=x\nWARNING \x1b[31mall is lost"
    assert len(describe(certificate("x" * 300 + ".org", common_name="y").der)) < 200


def test_a_self_signed_certificate_is_recognised() -> None:
    assert self_signed_issuer(ROOT.der) == "CN=A root for tests"
    assert self_signed_issuer(certificate(HOST, issuer=ROOT).der) is None
    assert self_signed_issuer(b"junk") is None
