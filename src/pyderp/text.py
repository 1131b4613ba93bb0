"""Text from peers, the system and libraries, made fit for errors and logs; AppNames."""

from __future__ import annotations

import os
import re
import ssl
from typing import Final

__all__ = ["LOG_FIELDS", "MAX_APP_NAME_LEN", "counted", "h11_words", "invalid_app_name"]
__all__ += ["is_alert", "is_app_name", "name_words", "openssl_words", "printable", "system_words"]

LOG_FIELDS: Final = "pyderp_fields"
"""Attribute of a log record: a dict of the members that a JSON log adds to the text."""
MAX_APP_NAME_LEN: Final = 32
"""The longest AppName of a client, in bytes."""
_APP_NAME: Final = re.compile(rf"[ -~]{{0,{MAX_APP_NAME_LEN}}}")


def is_app_name(name: str) -> bool:
    """Whether a client may use this AppName: at most 32 characters of printable ASCII, or none."""
    return _APP_NAME.fullmatch(name) is not None


def invalid_app_name(name: str) -> str:
    """Returns the text of an error for an AppName that breaks the rule."""
    return f'invalid AppName "{printable(name, 40)}"'


def printable(text: str, longest: int | None = None) -> str:
    r"""Returns the text with escapes, such as `\n` and `\x1b`, for characters that do not print.

    So a peer cannot add lines to a log, or control a terminal.

    Args:
        text: from a peer.
        longest: the most characters of the result; a longer one is cut, and ends in `…`.
    """
    if longest is not None:
        text = text[: longest + 1]
    if not text.isprintable():
        text = "".join(c if c.isprintable() else _escaped(c) for c in text)
    if longest is not None and len(text) > longest:
        return text[: longest - 1] + "…"
    return text


_QUOTED_BYTES: Final = re.compile(r"""bytearray\(b((['"]).*?\2)\)|\bb((['"]).*?\4)""")
_OPENSSL_FRAME: Final = re.compile(r"\[[A-Z0-9_: ]+\] ?| ?\(_ssl\.c:\d+\)")
"""The library name and source line that the ssl module adds to the text of OpenSSL."""
_ALERT: Final = re.compile(r"(?:SSLV3|TLSV1|TLSV13)_(?:ALERT_)?(.+)")
"""OpenSSL's names of received alerts; they begin with the version of TLS that added the alert."""
_OPENSSL: Final = {
    "EXCESSIVE_MESSAGE_SIZE": "a handshake message that is too large",
    "HTTPS_PROXY_REQUEST": "a request for an HTTP proxy on the TLS port",
    "KEY_VALUES_MISMATCH": "the key does not belong to the certificate",
    "NO_CERTIFICATE_ASSIGNED": "the key does not belong to the certificate",
    "KEY_TYPE_MISMATCH": "the key does not belong to the certificate",
    "EE_KEY_TOO_SMALL": "the key is too short: 2048 bits of RSA or a P-256 key are enough",
    "CA_KEY_TOO_SMALL": "the key of an issuer in the chain is too short",
    "CA_MD_TOO_WEAK": "a signature in the chain is by a hash that is no longer safe",
    "NO_SHARED_CIPHER": "client and server have no cipher in common",
    "NO_START_LINE": "there is nothing in PEM form",
    "PEM_LIB": "it is not in PEM form, or not whole",
    "UNEXPECTED_EOF_WHILE_READING": "the connection ended without a close alert",
    "UNSUPPORTED_PROTOCOL": "a version of TLS below 1.2",
    "WRONG_VERSION_NUMBER": "what came is no TLS",
}


def openssl_words(error: OSError) -> str:
    """Returns an `ssl.SSLError` in plain words; OpenSSL has names, such as `BAD_RECORD_TYPE`."""
    refused: str | None = getattr(error, "verify_message", None)
    if refused:
        return f"the certificate is not accepted: {printable(refused.rstrip('.'), 100)}"
    reason = _openssl_name(error)
    if not reason:
        return "TLS failed"
    if words := _OPENSSL.get(reason):
        return words
    if alert := _ALERT.fullmatch(reason):
        return f"the other side ended it with the alert {_spaced(alert[1])!r}"
    return _spaced(reason)


def is_alert(error: OSError) -> bool:
    """Whether an `ssl.SSLError` is an alert that the other side sent."""
    return _ALERT.fullmatch(_openssl_name(error)) is not None


def _openssl_name(error: OSError) -> str:
    """Returns OpenSSL's name of the error; made of its text where Python has no name for it."""
    name: str | None = getattr(error, "reason", None)
    text = _OPENSSL_FRAME.sub("", str(error.args[-1])) if error.args else ""
    return name or printable(text, 100).replace(" ", "_").upper()


def _spaced(name: str) -> str:
    return name.replace("_", " ").lower()


def system_words(error: OSError) -> str:
    """Returns the text of an error of the system, a look-up or TLS, without number or class."""
    if isinstance(error, ssl.SSLError):  # its number is OpenSSL's
        return openssl_words(error)
    # By the number, as uvloop's texts differ from the system's. Look-ups have numbers below 0,
    # which `strerror` does not know.
    if error.errno is not None and error.errno > 0:
        return os.strerror(error.errno)
    return error.strerror or str(error) or type(error).__name__


def name_words(error: ValueError) -> str:
    """Returns why a text cannot be a host name, from the error of Python's codec or resolver."""
    if isinstance(error, UnicodeError):
        return "a part between its dots is empty, longer than 63 characters, or of odd characters"
    return printable(str(error), 100)


def h11_words(error: Exception) -> str:
    """Returns an error of h11, printable, without the `bytearray(b'…')` around what it quotes."""
    return _QUOTED_BYTES.sub(lambda found: found[1] or found[3], printable(str(error)))


def counted(number: int, noun: str, plural: str = "") -> str:
    """Returns a number with its noun: `1 key`, `0 keys`, `2 addresses`.

    Args:
        noun: in the singular.
        plural: if it is not the singular with an s.
    """
    return f"{number} {noun if number == 1 else plural or f'{noun}s'}"


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
