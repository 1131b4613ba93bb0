"""Rules about a single setting, which hold whatever the other settings are."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final
from urllib.parse import urlsplit

from pyderp.addresses import bare_name, check_host_name, parse_ip
from pyderp.arguments import check_type
from pyderp.errors import ConfigError
from pyderp.relay.bootstrap import BootstrapName

__all__ = ["RULES", "about", "check_port", "check_setting", "check_type", "parse_eab_key"]

_LONGEST_PART: Final = 63
"""Characters of a part of a host name between dots (RFC 1035, section 2.3.4)."""
_WITH_PORT: Final = re.compile(r":[0-9]+$")


def check_port(name: str, port: object) -> None:
    """Refuse a value that is neither a port nor `None`."""
    if port is None:
        return
    check_type(name, port, int)
    assert isinstance(port, int)
    if not 0 <= port <= 65535:
        raise ConfigError(f"{name} is {port}; want 0 to 65535, or None")


def check_setting(name: str, value: Any) -> None:
    """Refuse a value that breaks the rule of its setting.

    Args:
        name: an attribute of `RelayConfig`, dotted. Without a rule, any value passes.

    Raises:
        ConfigError: the value breaks the rule; the text says how.
    """
    if name in RULES:
        with about(name):
            RULES[name](value)


@contextmanager
def about(name: str) -> Iterator[None]:
    """Name this setting in a `ConfigError` that the block raises."""
    try:
        yield
    except ConfigError as e:
        raise ConfigError("{error}", settings=(name,), error=e) from None


def parse_eab_key(text: str) -> bytes:
    """Return the key of an external account binding, from base64url or base64, padded or not.

    Raises:
        ConfigError: it is neither. The error does not quote the text, which is a secret.
    """
    plain = text.strip().replace("-", "+").replace("_", "/").rstrip("=")
    try:
        key = base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if not key:
        raise ConfigError("invalid base64 encoding for EAB key")
    return key


def _check_home(home: str) -> None:
    if home not in ("", "blank") and not home.startswith(("http://", "https://")):
        raise ConfigError(f"unknown home {home!r}: want nothing, 'blank' or an http(s) URL")


def _check_admission_url(url: str) -> None:
    if url and not url.startswith(("http://", "https://")):
        raise ConfigError(f"admission URL {url!r} begins with neither http:// nor https://")
    if url:
        _check_host_of(url, "admission URL")


def _check_directory(url: str) -> None:
    if not url.startswith("https://"):
        raise ConfigError(f"ACME directory {url!r} is not an https:// URL")
    _check_host_of(url, "ACME directory")


def _check_host_of(url: str, what: str) -> None:
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as e:
        raise ConfigError(f"{what} cannot be used: {e}") from None
    if not host:
        raise ConfigError(f"{what} {url!r} names no host")


def _check_hostname(name: str) -> None:
    if re.fullmatch(r"[0-9.]+", name) and parse_ip(name) is None:
        raise ConfigError(f"{name!r} is not an IP address, and no name ends in a number")
    if not name or parse_ip(name) is not None:
        return
    if "://" in name or _WITH_PORT.search(name):
        what = "is a URL" if "://" in name else "has a port"
        raise ConfigError(f"{name!r} {what}: want the host name alone, such as relay.example.com")
    if any(not 0 < len(part) <= _LONGEST_PART for part in bare_name(name).split(".")):
        raise ConfigError(
            f"{name!r} is not a host name: a part between its dots is empty or longer than "
            f"{_LONGEST_PART} characters"
        )
    if name.isascii():
        check_host_name(name)


def _check_debug_address(text: str) -> None:
    # A zone (%eth0) is accepted; it is ignored where addresses are compared.
    if text and parse_ip(text.partition("%")[0]) is None:
        raise ConfigError(
            f"{text!r} is not an IP address, so it would let no requester see /debug/"
        )


def _check_debug_hosts(names: tuple[str, ...]) -> None:
    for name in names:
        if parse_ip(name) is None and (re.search(r"[/\s]", name) or _WITH_PORT.search(name)):
            raise ConfigError(f"{name!r} is not a host name: want the name alone, without a port")


def _check_eab_key(text: str) -> None:
    if text:
        parse_eab_key(text)


def _check_bootstrap(names: tuple[str, ...]) -> None:
    for name in names:
        BootstrapName.parse(name)


RULES: Final[Mapping[str, Callable[[Any], None]]] = {
    "admission.url": _check_admission_url,
    "bootstrap_dns.published": _check_bootstrap,
    "bootstrap_dns.unpublished": _check_bootstrap,
    "debug.allow_ip": _check_debug_address,
    "debug.hosts": _check_debug_hosts,
    "home": _check_home,
    "tls.directory": _check_directory,
    "tls.eab_key": _check_eab_key,
    "tls.hostname": _check_hostname,
}
"""The rule of each setting that has one, by the dotted attribute of `RelayConfig`."""
