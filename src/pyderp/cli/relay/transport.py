"""The one rule that decides whether a relay speaks TLS, with the reason if it does not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from pyderp.addresses import is_loopback, parse_address, unix_path
from pyderp.cli.relay.flags import FLAGS
from pyderp.cli.relay.layers import Settings
from pyderp.defaults import HTTPS_PORT
from pyderp.errors import ConfigError

__all__ = ["TRANSPORT_FLAGS", "Transport", "transport_of"]

_OF_CERTIFICATE: Final = tuple(
    flag.name for flag in FLAGS if flag.panel == "Certificate" and flag.name != "tls"
)
TRANSPORT_FLAGS: Final = frozenset({"tls", "dev", "hostname", *_OF_CERTIFICATE})
"""The flags on which the rule depends, beside the address."""


@dataclass(frozen=True)
class Transport:
    """What a relay speaks on its address.

    Args:
        plain: why it is plain HTTP; empty: it is TLS.
        warning: what the operator may not have meant; empty: nothing.
    """

    plain: str = ""
    warning: str = ""


def transport_of(settings: Settings, address: str) -> Transport:
    """Returns what the relay speaks.

    `--tls`, `--no-tls` and a certificate mode decide. Without them it is TLS, except with `--dev`
    and on addresses that only this machine reaches. `pyderp derper` speaks TLS on port 443 and
    with `-certmode=manual` only, as `derper`, unless `-tls` is given.

    Raises:
        ConfigError: flags contradict each other.
    """
    found = _found(settings, address)
    unused = "" if found.plain else _unused_directory(settings)
    return Transport(warning=unused) if unused else found


def _found(settings: Settings, address: str) -> Transport:
    if settings["tls"] is not None:
        return _by_flag(settings)
    if settings.derper:
        return _as_derper(settings, address)
    if settings.given("certmode", "cert-file", "cert-key-file"):
        return Transport()
    if settings["dev"]:
        reason = "--dev"
    elif unix_path(address) is not None:
        reason = f"{address} is a Unix socket"
    elif is_loopback(address):
        reason = f"only this machine reaches {address}"
    else:
        return Transport()
    unused = [settings.flag(name) for name in _OF_CERTIFICATE if settings.given(name)]
    if not unused:
        return Transport(reason)
    return Transport(
        reason,
        f"plain HTTP, since {reason}: {', '.join(unused)} {_do(unused)} nothing; give --certmode "
        "for TLS, or --no-tls if a proxy in front ends TLS",
    )


def _by_flag(settings: Settings) -> Transport:
    if settings["tls"]:
        return Transport()
    no_tls = "-tls=false" if settings.derper else "--no-tls"
    if settings.given("certmode") and not settings.in_file("certmode"):
        raise ConfigError(f"{no_tls} and {settings.flag('certmode')} exclude each other")
    # No warning for those of the settings file: they are for runs without this flag.
    unused = [
        settings.flag(name)
        for name in _OF_CERTIFICATE
        if settings.given(name) and not settings.in_file(name)
    ]
    # No warning for derper: its container image sets some of these flags by default.
    if settings.derper or not unused:
        return Transport(no_tls)
    return Transport(
        no_tls,
        f"plain HTTP, since {no_tls}: {', '.join(unused)} {_do(unused)} nothing; leave one or the "
        "other out",
    )


def _unused_directory(settings: Settings) -> str:
    """Returns a warning if two flags say where the certificate is; empty: they do not."""
    files = settings.given("cert-file") and settings.given("cert-key-file")
    if not (files and settings.given("certdir")):
        return ""
    certdir, file = settings.flag("certdir"), settings.flag("cert-file")
    return f"{certdir} does nothing beside {file}, which names the certificate; leave it out"


def _as_derper(settings: Settings, address: str) -> Transport:
    port = None if unix_path(address) is not None else parse_address(address)[1]
    by_files = settings["certmode"] == "manual" or settings.given("cert-file", "cert-key-file")
    if port == HTTPS_PORT or by_files:
        return Transport()
    reason = "as derper, TLS is spoken on port 443 or with -certmode=manual only"
    unused = [f"-{name}" for name in ("hostname", *_OF_CERTIFICATE) if settings.given(name)]
    if settings["dev"] or not unused:
        return Transport(reason)
    return Transport(
        reason,
        f"plain HTTP on {address}: {reason}, so {', '.join(unused)} {_do(unused)} nothing. For "
        "TLS give -tls, or -certmode=manual and the certificate's files; if a proxy in front "
        "ends TLS, -tls=false",
    )


def _do(flags: list[str]) -> str:
    return "does" if len(flags) == 1 else "do"
