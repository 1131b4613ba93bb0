"""HTTP to a certificate authority that may be hostile or broken: bounded in bytes and time.

Imported only when ACME is on: it brings an HTTP library with it.
"""

from __future__ import annotations

import functools
import http.client
import io
import socket
import ssl
import time
from typing import TYPE_CHECKING, Any, Final, cast

import requests
from acme import client, messages
from acme import errors as acme_errors
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool
from urllib3.exceptions import HTTPError

from pyderp.certs.worker import Worker

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

__all__ = ["Budget", "Network"]

_AGENT: Final = "pyderp"
_PATIENCE: Final = 20.0
"""Seconds for each of connecting and the next bytes of an answer."""
_LONGEST_BODY: Final = 1024 * 1024
_LONGEST_EXCHANGE: Final = 8 * 1024 * 1024
"""Bytes of all answers of one exchange, with their headers."""
_NONCE_TRIES: Final = 5


class Budget:
    """What one exchange with an authority may cost.

    Args:
        seconds: for all of it.
        worker: tells that there is no use in going on.
    """

    def __init__(self, seconds: float, worker: Worker) -> None:
        self._end = time.monotonic() + seconds
        self._worker = worker
        self._octets = 0

    def left(self) -> float:
        """Seconds, more than none.

        Raises:
            acme.errors.TimeoutError: there are none.
            Stopped: the worker was told to stop.
        """
        self._worker.check()
        seconds = self._end - time.monotonic()
        if seconds <= 0:
            raise acme_errors.TimeoutError
        return seconds

    def sleep(self, seconds: float) -> None:
        """Wait.

        Raises:
            acme.errors.TimeoutError: so much time is not left.
            Stopped: the worker was told to stop.
        """
        if seconds > self.left():
            raise acme_errors.TimeoutError
        self._worker.sleep(seconds)

    def took(self, octets: int) -> None:
        """Count what came from the network.

        Raises:
            acme.errors.ClientError: that is too much.
        """
        self._octets += octets
        if self._octets > _LONGEST_EXCHANGE:
            raise acme_errors.ClientError(f"more than {_LONGEST_EXCHANGE} bytes in all")


class Network(client.ClientNetwork):
    """The library's, within a budget.

    It tries again what was refused for a stale nonce only, as RFC 8555 §6.5 wants it.

    Args:
        context: for HTTPS; `None`: what the library takes.
    """

    def __init__(self, budget: Budget, context: ssl.SSLContext | None) -> None:
        super().__init__(user_agent=_AGENT)
        # What is small on the wire may be large once unpacked.
        self.session.headers["Accept-Encoding"] = "identity"
        self.session.mount("http://", _Adapter(budget, None))
        self.session.mount("https://", _Adapter(budget, context))

    def post(self, *args: Any, **kwargs: Any) -> requests.Response:
        """Send something signed, and check the answer."""
        for _ in range(_NONCE_TRIES - 1):
            try:
                return super().post(*args, **kwargs)
            except messages.Error as e:
                if e.code != "badNonce":
                    raise
        return super().post(*args, **kwargs)


class _Adapter(requests.adapters.HTTPAdapter):
    """Reads each answer at once, and no more of it than is permitted."""

    def __init__(self, budget: Budget, context: ssl.SSLContext | None) -> None:
        super().__init__()
        self._budget = budget
        if context is not None:
            self.init_poolmanager(1, 1, ssl_context=context)

    def get_connection_with_tls_context(self, *args: Any, **kwargs: Any) -> HTTPConnectionPool:
        pool = super().get_connection_with_tls_context(*args, **kwargs)
        pool.ConnectionCls = _Secure if pool.scheme == "https" else _Plain
        pool.conn_kw["budget"] = self._budget
        return pool

    def send(self, *args: Any, **kwargs: Any) -> requests.Response:
        kwargs["timeout"] = min(_PATIENCE, self._budget.left())
        try:
            response = super().send(*args, **kwargs)
            body = _body(response)
        except requests.RequestException:
            self._budget.left()  # that may be why
            raise
        except HTTPError as e:
            self._budget.left()
            raise requests.ConnectionError(e) from e
        response.raw.release_conn()
        response.raw = io.BytesIO(body)
        return response


def _body(response: requests.Response) -> bytes:
    """All of a body, not unpacked."""
    body = b""
    raw: Any = response.raw
    while piece := raw.read(_LONGEST_BODY + 1 - len(body), decode_content=False):
        body += piece
        if len(body) > _LONGEST_BODY:
            response.close()
            raise acme_errors.ClientError(f"more than {_LONGEST_BODY} bytes in one answer")
    return body


class _Plain(HTTPConnection):
    def __init__(self, *args: Any, budget: Budget, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.response_class = _reading_within(budget)


class _Secure(HTTPSConnection):
    def __init__(self, *args: Any, budget: Budget, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.response_class = _reading_within(budget)


def _reading_within(budget: Budget) -> type[http.client.HTTPResponse]:
    # No class of its own for each connection: a class refers to itself, so that only the
    # collector would free it, and with it the budget.
    return cast("type[http.client.HTTPResponse]", functools.partial(_Response, budget))


class _Response(http.client.HTTPResponse):
    def __init__(self, budget: Budget, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        self.fp = io.BufferedReader(_Pieces(sock, self.fp.detach(), budget))


class _Pieces(io.RawIOBase):
    """What a socket gives. The library's time limit is one for the next byte only, so a peer
    that sends one now and then, in headers too, would never be given up.
    """

    def __init__(self, sock: socket.socket, raw: io.RawIOBase, budget: Budget) -> None:
        self._sock = sock
        self._raw = raw
        self._budget = budget

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int | None:
        left = self._budget.left()
        if left < _PATIENCE:
            self._sock.settimeout(left)
        try:
            count: int | None = self._raw.readinto(buffer)
        except TimeoutError:
            if left < _PATIENCE:
                raise acme_errors.TimeoutError from None
            raise
        self._budget.took(count or 0)
        return count

    def close(self) -> None:
        self._raw.close()
        super().close()
