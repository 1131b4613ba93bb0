"""Every exception that pyderp raises on purpose.

DerpError
├── ProtocolError            base only, never raised itself
│   ├── LocalProtocolError   the caller broke the protocol: wrong state, packet too big
│   └── RemoteProtocolError  the peer broke the protocol
│       ├── FrameTooLarge    a frame header announces more than the limit
│       ├── UnexpectedFrame  a frame of the wrong type during login
│       ├── BadMagic         the server's greeting is not DERP's
│       ├── BadBox           a sealed blob that does not open with these keys
│       └── BadUpgrade       an HTTP or websocket exchange that is not an upgrade to DERP
│           └── UpgradeRejected  a whole HTTP answer, but not 101; has .status and .body
├── ConnectError             connecting failed; .attempts has an error for each way tried
├── DialError                no connection to one node or host (also an OSError)
│   ├── NameNotFound         the name has no address, or is not a valid name
│   └── ProxyError           a proxy refused, or broke its protocol
├── TLSError                 a TLS handshake failed
│   └── CertificateError     the certificate is not trusted, or is for another name or time
│       └── PinMismatch      not the certificate that was pinned
├── NotConnected             the call needs a connection and does not make one
├── ConnectionClosed         a connection ended; .generation, .restarting; the cause is chained
│   ├── LoginRefused         the relay read the login and closed: it may not admit this key
│   └── ClientClosed         the client was closed
├── SealError                a sealed packet is forged, damaged, replayed or too old
├── ConfigError              a flag, file or certificate that cannot be used
│   └── MissingExtra         it needs a library that is not installed
├── InvalidMap               a DERP map that cannot be used (also a ValueError)
└── InvalidKey               text or bytes that are not a key (also a ValueError)

`DialError`, `TLSError`, `BadUpgrade` and their subclasses have a `reason`, a `FailureReason`.
Bytes from a peer raise only `RemoteProtocolError`; anything else is a bug in pyderp.
`OSError` and `TimeoutError` of the operating system are not wrapped.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from pyderp.reasons import FailureReason

__all__ = [
    "BadBox",
    "BadMagic",
    "BadUpgrade",
    "CertificateError",
    "ClientClosed",
    "ConfigError",
    "ConnectError",
    "ConnectionClosed",
    "DerpError",
    "DialError",
    "FailureReason",
    "FrameTooLarge",
    "InvalidKey",
    "InvalidMap",
    "LocalProtocolError",
    "LoginRefused",
    "MissingExtra",
    "NameNotFound",
    "NotConnected",
    "PinMismatch",
    "ProtocolError",
    "ProxyError",
    "RemoteProtocolError",
    "SealError",
    "TLSError",
    "UnexpectedFrame",
    "UpgradeRejected",
]


E = TypeVar("E", bound=BaseException)

_NO_DERP = "derp server disabled"
"""What derper and pyderp answer at /derp if they do not serve it."""


class DerpError(Exception):
    """Base of all errors of this package."""


class ProtocolError(DerpError):
    """Base of protocol errors; the subclass says which side was wrong."""


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
    """The HTTP or websocket exchange before DERP was malformed.

    Attributes:
        reason: `NO_HTTP`, or else `NO_DERP`.
    """

    reason = FailureReason.NO_DERP

    def __init__(self, message: str, *, reason: FailureReason | None = None) -> None:
        super().__init__(message)
        if reason is not None:
            self.reason = reason


class UpgradeRejected(BadUpgrade):
    """The relay, or a proxy before it, answered with another status than 101.

    The text contains reason and body of the answer, with escapes for what is not printable.

    Attributes:
        status: the HTTP status.
        body: the start of the answer's body, as it came: with line breaks and control
            characters. Escape it before it goes to a log or terminal.
        websocket: whether the client asked for a websocket, at once or after the upgrade.
    """

    websocket = False

    def __init__(self, message: str, *, status: int, body: str) -> None:
        super().__init__(message)
        self.status = status
        self.body = body

    @property
    def asks_for_tls(self) -> bool:
        """Whether a web server says that the port is for TLS: status 400, HTTPS in its answer."""
        return self.status == 400 and "https" in self.body.lower()

    @property
    def serves_no_derp(self) -> bool:
        """Whether a relay answered that it serves no DERP: 404, with derper's text for that."""
        return self.status == 404 and self.body.strip() == _NO_DERP

    def __reduce__(self) -> tuple[object, ...]:
        """Support pickle and copy, whose default would call the class without its keywords."""
        make = functools.partial(type(self), status=self.status, body=self.body)
        return make, self.args, self.__dict__


class ConnectError(DerpError):
    """Connecting to a relay failed.

    Attributes:
        attempts: what went wrong, an error for each node or step that was tried. The same
            errors are in the `ExceptionGroup` that is the cause of this one.
    """

    def __init__(self, message: str, *, attempts: Sequence[Exception] = ()) -> None:
        super().__init__(message)
        self.attempts = tuple(attempts)


class DialError(DerpError, OSError):
    """No connection to one node or host; attributes as `TLSError`."""

    reason = FailureReason.UNREACHABLE

    def __init__(
        self,
        *args: object,
        reason: FailureReason | None = None,
        host: str = "",
        short: str = "",
    ) -> None:
        super().__init__(*args)
        self.reason = self.reason if reason is None else reason
        self.host = host
        self.short = short


class NameNotFound(DialError):
    """A name server answered that a name has no address; or the name is not valid."""

    reason = FailureReason.UNKNOWN_NAME


class ProxyError(DialError):
    """A proxy refused, or broke its protocol. The text contains no password."""

    reason = FailureReason.PROXY_BROKEN


class TLSError(DerpError):
    """A TLS handshake failed.

    Attributes:
        reason: why, for programs.
        host: the name or address that the text contains; empty if it contains none.
        short: the text without `host`, for a line that names the host itself.
    """

    reason = FailureReason.TLS_FAILED

    def __init__(
        self,
        *args: object,
        reason: FailureReason | None = None,
        host: str = "",
        short: str = "",
    ) -> None:
        super().__init__(*args)
        self.reason = self.reason if reason is None else reason
        self.host = host
        self.short = short


def text_beside(host: str, error: DialError | TLSError) -> str:
    """Returns the text of an error for a line that names `host` already: without it."""
    return error.short if error.short and error.host == host else str(error)


class CertificateError(TLSError):
    """The certificate is not trusted, or is for another name or time."""

    reason = FailureReason.CERTIFICATE_UNTRUSTED


class PinMismatch(CertificateError):
    """The server's certificate is not the pinned one."""

    reason = FailureReason.PIN_OTHER_CERTIFICATE


class NotConnected(DerpError):
    """The call needs a connection, there is none, and the call does not make one."""


@dataclass(slots=True)
class Restarting:
    """The relay is about to restart. Both times in seconds.

    A message of the relay (`pyderp.wire.messages`); defined here for `ConnectionClosed`.
    """

    reconnect_in: float
    try_for: float


class ConnectionClosed(DerpError):
    """A connection to a relay ended; the next call that needs one connects again.

    Attributes:
        generation: number of the connection among those of the client, from 1; 0: there was none.
        restarting: the relay's announcement of a restart, if one came on this connection.
    """

    def __init__(
        self, message: str, *, generation: int = 0, restarting: Restarting | None = None
    ) -> None:
        super().__init__(message)
        self.generation = generation
        self.restarting = restarting


class LoginRefused(ConnectionClosed):
    """The relay read the login and closed the connection without its ServerInfo.

    DERP has no frame for a refusal: a relay that does not admit a key closes the connection, and
    so does a relay that stops at that moment.
    """


class ClientClosed(ConnectionClosed):
    """The program closed this client."""


class SealError(DerpError):
    """A sealed packet is forged, damaged, replayed or too old."""


class ConfigError(DerpError):
    """A setting that cannot be used; the text says which, where and what to do.

    Args:
        text: what is wrong. With `settings` it is a format string, in which each `{}` is a
            setting's name, and `{name}` one of the values.
        settings: the settings that the error is about: attributes of `RelayConfig`, dotted
            (`tls.eab_kid`), or `certmode`; with `=VALUE` where one has that value or should.
        values: for the `{name}` fields of the text.
    """

    def __init__(self, text: str, *, settings: Sequence[str] = (), **values: object) -> None:
        self.settings = tuple(settings)
        self._text = text
        self._values = values
        super().__init__(self.spelled(setting_name))

    @property
    def names_settings(self) -> bool:
        """Whether the text names the settings."""
        return "{}" in self._text

    def spelled(self, spell: Callable[[str], str]) -> str:
        """Returns the text with the settings named by `spell`, such as by their flags."""
        if not self.settings:
            return self._text
        return self._text.format(*map(spell, self.settings), **self._values)


class MissingExtra(ConfigError):
    """A feature needs a library that is not installed; the text says how to install it.

    Attributes:
        extra: the extra that brings it, as in `pip install 'pyderp[relay]'`.
    """

    def __init__(self, text: str, *, extra: str = "") -> None:
        super().__init__(text)
        self.extra = extra


def setting_name(setting: str) -> str:
    """Returns the last part of a dotted setting, which is its attribute, with any `=VALUE`."""
    name, equals, value = setting.partition("=")
    return f"{name.rpartition('.')[2]}{equals}{value}"


class InvalidMap(DerpError, ValueError):
    """A DERP map that cannot be used; the text says what is wrong and where."""


class InvalidKey(DerpError, ValueError):
    """Text or bytes are not a key. The error never repeats them, as they may be secret."""


def without_frames(error: E) -> E:
    """Remove the tracebacks of an error and its causes, for an object to keep it; return it.

    A traceback holds the frames that the error came through, and one of these holds the object,
    as `self` or as another local. Object and error would keep each other until the cyclic
    collector runs. So the objects of this package keep errors only in this way. An error that is
    raised because of a `TimeoutError` chains it in this way, too: the frames of `asyncio.timeout`
    hold the task, and a task that fails holds its error.
    """
    waiting: list[BaseException | None] = [error]
    seen: set[int] = set()
    while waiting:
        e = waiting.pop()
        if e is None or id(e) in seen:
            continue
        seen.add(id(e))
        e.__traceback__ = None
        waiting += (e.__cause__, e.__context__)
        if isinstance(e, BaseExceptionGroup):
            waiting += e.exceptions
    return error


def raisable(error: E) -> E:
    """Returns a copy, to be raised, of an error that an object keeps.

    If the kept error itself were raised, it would get a traceback that leads back to the object
    (`without_frames`).
    """
    again = copy.copy(error)
    again.__cause__ = error.__cause__
    again.__suppress_context__ = error.__suppress_context__
    return again
