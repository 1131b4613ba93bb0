"""Text that a peer chose: what its name may be, and how it is shown in errors and logs."""

from __future__ import annotations

import re
from typing import Final

__all__ = ["LOG_FIELDS", "MAX_APP_NAME_LEN", "h11_words", "invalid_app_name", "is_app_name"]
__all__ += ["openssl_words", "printable"]

LOG_FIELDS: Final = "pyderp_fields"
"""Attribute of a log record: a dict of what a JSON log has beside the text."""
MAX_APP_NAME_LEN: Final = 32
"""Bytes of a client's AppName."""
_APP_NAME: Final = re.compile(rf"[ -~]{{0,{MAX_APP_NAME_LEN}}}")


def is_app_name(name: str) -> bool:
    """Whether a client may give this as its AppName: printable ASCII, at most 32; may be empty."""
    return _APP_NAME.fullmatch(name) is not None


def invalid_app_name(name: str) -> str:
    """What an error says of a name that breaks the rule."""
    return f'invalid AppName "{printable(name, 40)}"'


def printable(text: str, longest: int | None = None) -> str:
    r"""The text, with `\n`, `\x1b`, `\u202e` and such for whatever is not printed as itself.

    So it stays in its line, and tells a terminal nothing.

    Args:
        text: what a peer said.
        longest: characters of the outcome; what has more is cut, and ends in `…`.
    """
    if longest is not None:
        text = text[: longest + 1]
    if not text.isprintable():
        text = "".join(c if c.isprintable() else _escaped(c) for c in text)
    if longest is not None and len(text) > longest:
        return text[: longest - 1] + "…"
    return text


_QUOTED_BYTES: Final = re.compile(r"""bytearray\(b((['"]).*?\2)\)""")
_OPENSSL: Final = {
    "EXCESSIVE_MESSAGE_SIZE": "a handshake message that is too large",
    "HTTPS_PROXY_REQUEST": "a request for an HTTP proxy on the TLS port",
    "KEY_VALUES_MISMATCH": "the key does not belong to the certificate",
    "NO_CERTIFICATE_ASSIGNED": "the key does not belong to the certificate",
    "KEY_TYPE_MISMATCH": "the key does not belong to the certificate",
    "NO_SHARED_CIPHER": "client and server have no cipher in common",
    "NO_START_LINE": "there is nothing in PEM form",
    "UNEXPECTED_EOF_WHILE_READING": "the connection ended without a close alert",
    "UNSUPPORTED_PROTOCOL": "a version of TLS below 1.2",
    "WRONG_VERSION_NUMBER": "what came is no TLS",
}


def openssl_words(error: OSError) -> str:
    """What an `ssl.SSLError` says, in words: OpenSSL's own are names, such as `BAD_RECORD_TYPE`."""
    reason: str | None = getattr(error, "reason", None)
    if not reason:
        return printable(str(error.args[-1]), 100) if error.args else "TLS failed"
    return _OPENSSL.get(reason) or reason.replace("_", " ").lower()


def h11_words(error: Exception) -> str:
    """What h11 says of bytes of a peer, printable; it quotes them as `bytearray(b'…')`."""
    return _QUOTED_BYTES.sub(r"\1", printable(str(error)))


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
