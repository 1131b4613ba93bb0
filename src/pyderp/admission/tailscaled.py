"""Asks the `tailscaled` of this machine whether it knows a node."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import aiohttp
from yarl import URL

from pyderp import gojson
from pyderp.admission.reach import describe
from pyderp.admission.source import Source
from pyderp.admission.verdict import AdmissionCounters, Cause, ClientIdentity, Verdict, excerpt
from pyderp.defaults import ADMISSION_TIMEOUT
from pyderp.errors import InvalidKey, without_frames
from pyderp.keys import NodePublic
from pyderp.text import system_words

__all__ = ["Tailscaled", "default_socket"]

_LONGEST_ANSWER: Final = 4 * 1024 * 1024
"""Bytes. A node with a large grant in the policy has a long `CapMap`."""
_HEADERS: Final = {"Tailscale-Cap": "142"}
"""The version of Go's client that this acts as. All daemons that know `whois` by node key send
the same answer to every version."""
_MAC_SOCKET: Final = Path("/var/run/tailscaled.socket")
# QNAP's path is left out: it is below /tmp, where on another machine any user could create one.
_SOCKETS: Final = (
    Path("/var/run/tailscale/tailscaled.sock"),
    Path("/var/packages/Tailscale/var/tailscaled.sock"),  # Synology DSM 7
    Path("/var/packages/Tailscale/etc/tailscaled.sock"),  # DSM 6
    Path("/perm/tailscaled/tailscaled.sock"),  # gokrazy
)


def default_socket(platform: str = sys.platform, sockets: Iterable[Path] = _SOCKETS) -> Path:
    """Return the path of the socket of `tailscaled` (`paths.DefaultTailscaledSocket`).

    That is the first of the known paths that exists, or the most common one if none exists.
    """
    if platform == "darwin":
        return _MAC_SOCKET
    places = list(sockets)
    return next((place for place in places if os.path.exists(place)), places[0])


class _NoAnswerError(Exception):
    """The daemon sent no answer, or one that does not fit the question; the text says why."""

    def __init__(self, text: str, cause: Cause = Cause.BAD_ANSWER) -> None:
        super().__init__(text)
        self.cause = cause


class Tailscaled(Source):
    """The daemon's LocalAPI (`derper -verify-clients`). Without an answer a client is refused.

    Args:
        socket: the daemon's socket; `None` for `default_socket`, at the first question.
    """

    def __init__(
        self,
        socket: Path | None,
        counters: AdmissionCounters,
        *,
        timeout: float = ADMISSION_TIMEOUT,
    ) -> None:
        super().__init__("local tailscaled", counters, timeout)
        self._socket = socket
        self._session: aiohttp.ClientSession | None = None

    async def ask(self, client: ClientIdentity) -> Verdict:
        """Return whether the daemon's network map has the node, or why the daemon cannot tell."""
        key = client.key
        self._counters.queries += 1
        try:
            status, body = await self._get(f"whois?addr=nodekey%3A{key.untyped_hex()}")
            if status == 404:
                self._worked()
                return Verdict(False, f"peer {key} not authorized (not found in local tailscaled)")
            if b"invalid 'addr' parameter" in body and status != 200:
                # This daemon looks up nodes by address only.
                reason = "tailscaled version is too old (out of sync with derper binary)"
                return self._unknown(reason, Cause.BAD_ANSWER)
            _answer(status, body)
        except _NoAnswerError as e:
            return self._unknown(f"failed to query local tailscaled status for {key}: {e}", e.cause)
        return self._answered(client, allowed=True)

    def _unknown(self, reason: str, cause: Cause) -> Verdict:
        # derper logs these reasons without the name of the source.
        return dataclasses.replace(self._failed(reason, cause), reason=reason)

    async def own_key(self) -> NodePublic | str:
        """Return the daemon's own node key, or why it is not known as text."""
        try:
            document = _answer(*await self._get("status?peers=false"))
        except _NoAnswerError as e:
            return f"localClient.Status: {e}"
        own = document.get("Self")
        text = own.get("PublicKey") if isinstance(own, dict) else None
        try:
            key = NodePublic.parse(text if isinstance(text, str) else "")
        except InvalidKey:
            return "localClient.Status: no node key in it"
        return "localClient.Status: tailscaled is not logged in" if key.is_zero() else key

    async def probe(self, client: ClientIdentity | None) -> None:
        """Ask about the client again, or, if there is none, for the daemon's own node key."""
        if client is not None:
            await super().probe(client)
            return
        before = self.trouble
        key = await self.own_key()
        # A question about a client that ended meanwhile is the better test, so keep its result.
        if self.trouble != before:
            return
        if isinstance(key, str):
            # Not logged: the command that runs the relay has logged the self check at its start.
            self.trouble = self._refusing(key)
        else:
            self._worked()

    async def aclose(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def _get(self, target: str) -> tuple[int, bytes]:
        # `encoded` sends the same bytes as Go's own client: yarl would change the %3A.
        url = URL(f"http://local-tailscaled.sock/localapi/v0/{target}", encoded=True)
        try:
            async with (
                asyncio.timeout(self._timeout),
                self._open().get(url, allow_redirects=False) as response,
            ):
                return response.status, await _body(response)
        except TimeoutError:
            text = f"no answer within {self._timeout:g} s"
            raise _NoAnswerError(text, Cause.TIMED_OUT) from None
        except aiohttp.ClientConnectorError as e:
            path = getattr(e, "path", self._socket)
            text = f"cannot connect to {path}: {system_words(e.os_error)}"
            raise _NoAnswerError(text, Cause.UNREACHABLE) from without_frames(e)
        except (aiohttp.ClientError, OSError, ValueError) as e:
            # Otherwise the error and aiohttp's frames, which refer to it, are a reference cycle.
            raise _NoAnswerError(describe(e)) from without_frames(e)

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            path = self._socket or default_socket()
            self._session = aiohttp.ClientSession(
                # No limit here: `Turns` already limits the questions at once.
                connector=aiohttp.UnixConnector(str(path), limit=0),
                headers=_HEADERS,
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(),
            )
        return self._session


async def _body(response: aiohttp.ClientResponse) -> bytes:
    parts = []
    size = 0
    while chunk := await response.content.readany():
        parts.append(chunk)
        size += len(chunk)
        if size > _LONGEST_ANSWER:
            raise _NoAnswerError(f"an answer of more than {_LONGEST_ANSWER} bytes")
    return b"".join(parts)


def _answer(status: int, body: bytes) -> dict[str, Any]:
    if status != 200:
        what = "access denied: run the relay as a user that may ask" if status == 403 else ""
        said = excerpt(body.decode(errors="replace"))
        raise _NoAnswerError(": ".join(filter(None, (f"HTTP {status}", what, said))))
    try:
        document = gojson.parse(body)
    except ValueError:
        raise _NoAnswerError("the answer is not JSON") from None
    if not isinstance(document, dict):
        raise _NoAnswerError("the answer is not a JSON object")
    return document
