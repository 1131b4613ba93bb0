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
│           └── UpgradeRejected  a whole HTTP answer, but not 101; has .status and .body
├── ConnectError             connecting failed; .attempts has an error for each way tried
├── DialError                no connection to one node or host (also an OSError)
│   ├── NameNotFound         the name exists nowhere, as name servers say, or can be none
│   └── ProxyError           a proxy refused, or spoke nonsense
├── TLSError                 a TLS handshake failed
│   └── CertificateError     the certificate is not trusted, or is for another name or time
│       └── PinMismatch      not the certificate that was pinned
├── NotConnected             asked of a connection that is not there, by what does not connect
├── ConnectionClosed         a connection ended; .generation, .restarting; the cause is chained
│   ├── LoginRefused         the relay took the login and hung up: it may not admit this key
│   └── ClientClosed         the client was closed
├── SealError                a sealed packet is forged, damaged, replayed or too old
├── ConfigError              a flag, file or certificate that cannot be used
│   └── MissingExtra         it needs a library that is not installed
├── InvalidMap               a DERP map that cannot be used (also a ValueError)
└── InvalidKey               text or bytes that are not a key (also a ValueError)

Those of connecting have a `reason`, a `FailureReason`.
Bytes from a peer raise only `RemoteProtocolError`; anything else is a bug in pyderp.
`OSError` and `TimeoutError` of the operating system stay what they are.
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
    """The relay, or something before it, answered with another status than 101.

    The text has reason and body of the answer with escapes for what is not printable.

    Attributes:
        status: the HTTP status.
        body: the start of the answer's body, as it came: with line breaks and control
            characters, which do not belong into a log or on a terminal.
        websocket: whether a websocket was asked for, at once or after the upgrade.
    """

    websocket = False

    def __init__(self, message: str, *, status: int, body: str) -> None:
        super().__init__(message)
        self.status = status
        self.body = body

    @property
    def asks_for_tls(self) -> bool:
        """Whether a web server said that this port is for TLS: 400, and HTTPS in its answer."""
        return self.status == 400 and "https" in self.body.lower()

    @property
    def serves_no_derp(self) -> bool:
        """Whether a relay answered that it serves no DERP: 404, with derper's text for that."""
        return self.status == 404 and self.body.strip() == _NO_DERP

    def __reduce__(self) -> tuple[object, ...]:
        """To pickle and copy; by default that knows of no keywords."""
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
    """A name has no address, or no such record: that is an answer, not the lack of one."""

    reason = FailureReason.UNKNOWN_NAME


class ProxyError(DialError):
    """A proxy on the way refused, or spoke nonsense. The text has no password."""

    reason = FailureReason.PROXY_BROKEN


class TLSError(DerpError):
    """A TLS handshake failed.

    Attributes:
        reason: why, for programs.
        host: the name or address that the text has; empty: none that matters.
        short: the text without it.
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
    """The text of an error, to stand beside a name or address: without that, if it has it."""
    return error.short if error.short and error.host == host else str(error)


class CertificateError(TLSError):
    """The certificate is not trusted, or is for another name or time."""

    reason = FailureReason.CERTIFICATE_UNTRUSTED


class PinMismatch(CertificateError):
    """Not the certificate that was pinned."""

    reason = FailureReason.PIN_OTHER_CERTIFICATE


class NotConnected(DerpError):
    """There is no connection, and this call does not make one."""


@dataclass(slots=True)
class Restarting:
    """The relay is about to restart. Both times in seconds.

    A message of the relay (`pyderp.wire.messages`); here because `ConnectionClosed` has it.
    """

    reconnect_in: float
    try_for: float


class ConnectionClosed(DerpError):
    """A connection to a relay ended; the next call that needs one connects again.

    Attributes:
        generation: which connection of the client it was, counted from 1; 0: none yet.
        restarting: the relay's last word, if it announced a restart.
    """

    def __init__(
        self, message: str, *, generation: int = 0, restarting: Restarting | None = None
    ) -> None:
        super().__init__(message)
        self.generation = generation
        self.restarting = restarting


class LoginRefused(ConnectionClosed):
    """The relay read the login and closed the connection without its ServerInfo.

    DERP has no word for a refusal: a relay that does not admit a key hangs up, and so does one
    that stops just then.
    """


class ClientClosed(ConnectionClosed):
    """The client was closed, by its owner."""


class SealError(DerpError):
    """A sealed packet is forged, damaged, replayed or too old."""


class ConfigError(DerpError):
    """A setting that cannot be used; the text says which, where and what to do.

    Args:
        text: what is wrong. With `settings` it is a format string, in which each `{}` is a
            setting's name, and `{name}` one of the values.
        settings: the settings that it is about: attributes of `RelayConfig`, dotted
            (`tls.eab_kid`), or `certmode`; with `=VALUE` where one has that value or should.
        values: what else is in the text.
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
        """The text with other names for the settings."""
        if not self.settings:
            return self._text
        return self._text.format(*map(spell, self.settings), **self._values)


class MissingExtra(ConfigError):
    """What is asked for needs a library that is not installed; the text says how to install it.

    Attributes:
        extra: of this package, as in `pip install 'pyderp[relay]'`.
    """

    def __init__(self, text: str, *, extra: str = "") -> None:
        super().__init__(text)
        self.extra = extra


def setting_name(setting: str) -> str:
    """The name of a setting as its attribute has it: without the part that it belongs to."""
    name, equals, value = setting.partition("=")
    return f"{name.rpartition('.')[2]}{equals}{value}"


class InvalidMap(DerpError, ValueError):
    """A DERP map that cannot be used; the text says where."""


class InvalidKey(DerpError, ValueError):
    """Not a key. The text never repeats the input, which may be secret."""


def without_frames(error: E) -> E:
    """The same error for an object to keep; it and what led to it lose their tracebacks.

    A traceback holds the frames that the error came through, and one of these holds the object,
    as `self` or as another local. Object and error would keep each other until the cyclic
    collector runs. So the objects of this package keep errors only in this way. And what is raised
    because of a `TimeoutError` chains it in this way: the frames of `asyncio.timeout` hold the
    task, and a task that fails holds its error.
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
    """A copy of an error that an object keeps, to be raised.

    Raised itself it would get a traceback, and so lead back to the object (`without_frames`).
    """
    again = copy.copy(error)
    again.__cause__ = error.__cause__
    again.__suppress_context__ = error.__suppress_context__
    return again
