"""Which names a certificate is for, and whether a host is among them."""

from __future__ import annotations

from cryptography import x509

from pyderp.addresses import parse_ip

__all__ = ["alternative_names", "is_for", "subject_names"]


def alternative_names(certificate: x509.Certificate) -> tuple[str, ...]:
    """Returns the alternative names that are DNS names, then those that are IP addresses.

    Raises:
        ValueError: the extension is malformed.
    """
    names = subject_names(certificate)
    if names is None:
        return ()
    addresses = names.get_values_for_type(x509.IPAddress)
    return (*names.get_values_for_type(x509.DNSName), *map(str, addresses))


def is_for(certificate: x509.Certificate, host: str, *, star_below_top_level: bool = False) -> bool:
    """Whether a certificate names a host (RFC 9525, section 6). Its dates are not checked.

    Only subject alternative names count: TLS clients ignore the common name today. A star stands
    for one whole label.

    Args:
        host: DNS name or IP address.
        star_below_top_level: whether `*.com` matches `example.com`. Go accepts that, OpenSSL
            does not.

    Raises:
        ValueError: the extension is malformed.
    """
    names = subject_names(certificate)
    if names is None:
        return False
    address = parse_ip(host)
    if address is not None:
        values = names.get_values_for_type(x509.IPAddress)
        return any(parse_ip(str(value)) == address for value in values)
    wanted = host.rstrip(".").lower()
    return any(
        _matches(pattern.lower(), wanted, star_below_top_level)
        for pattern in names.get_values_for_type(x509.DNSName)
    )


def _matches(pattern: str, name: str, star_below_top_level: bool) -> bool:
    if not pattern.startswith("*."):
        return bool(name) and pattern == name
    label, _, parent = name.partition(".")
    if not label or not parent or parent != pattern[2:]:
        return False
    return star_below_top_level or "." in parent


def subject_names(certificate: x509.Certificate) -> x509.SubjectAlternativeName | None:
    """Returns all subject alternative names, or `None` if there is no such extension."""
    try:
        return certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return None
