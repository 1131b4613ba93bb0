"""Every exception that pyderp raises on purpose.

DerpError
├── ProtocolError            base only, never raised itself
│   ├── LocalProtocolError   you called it wrong: wrong state, packet too big
│   └── RemoteProtocolError  the peer broke the protocol
│       ├── FrameTooLarge    a frame header promised more than the limit
│       ├── UnexpectedFrame  a frame of the wrong type during login
│       ├── BadMagic         the server's greeting is not DERP's
│       ├── BadBox           a sealed blob that does not open with these keys
│       └── BadUpgrade       an HTTP or websocket exchange that is not an upgrade to DERP
├── ConfigError              a flag, file or certificate that cannot be used
└── InvalidKey               text or bytes that are not a key (also a ValueError)

Bytes from a peer raise only `RemoteProtocolError`; anything else is a bug in pyderp.
`OSError` and `TimeoutError` of the operating system stay what they are.
"""

from __future__ import annotations

__all__ = [
    "BadBox",
    "BadMagic",
    "BadUpgrade",
    "ConfigError",
    "DerpError",
    "FrameTooLarge",
    "InvalidKey",
    "LocalProtocolError",
    "ProtocolError",
    "RemoteProtocolError",
    "UnexpectedFrame",
]


class DerpError(Exception):
    """Base of all errors of this package."""


class ProtocolError(DerpError):
    """Base of protocol errors; which side was wrong is in the subclass."""


class LocalProtocolError(ProtocolError):
    """The caller asked for something that the protocol does not allow."""


class RemoteProtocolError(ProtocolError):
    """The peer sent something that the protocol does not allow.

    Attributes:
        frame_type: type byte of the offending frame, or `None` outside of frames.
    """

    def __init__(self, message: str, *, frame_type: int | None = None) -> None:
        super().__init__(message)
        self.frame_type = frame_type


class FrameTooLarge(RemoteProtocolError):
    """A frame header announces more bytes than the receiver accepts."""


class UnexpectedFrame(RemoteProtocolError):
    """A frame of the wrong type arrived during login."""


class BadMagic(RemoteProtocolError):
    """The greeting does not begin with DERP's magic."""


class BadBox(RemoteProtocolError):
    """A sealed blob does not open with the keys at hand."""


class BadUpgrade(RemoteProtocolError):
    """The HTTP or websocket exchange before DERP was malformed."""


class ConfigError(DerpError):
    """A setting that cannot be used; the text says which, where and what to do."""


class InvalidKey(DerpError, ValueError):
    """Not a key. The text never repeats the input, which may be secret."""
