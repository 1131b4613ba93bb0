"""Asks an admission controller by HTTP POST (`derper -verify-client-url`)."""

from __future__ import annotations

import asyncio
import json
import urllib.request
from typing import Final

import aiohttp
from yarl import URL

from pyderp import gojson
from pyderp.admission.reach import (
    Attempt,
    OwnThreadResolver,
    Reach,
    describe,
    means_unreachable,
    tracing,
)
from pyderp.admission.source import Source
from pyderp.admission.verdict import AdmissionCounters, Cause, ClientIdentity, Verdict, excerpt
from pyderp.defaults import ADMISSION_TIMEOUT
from pyderp.errors import ConfigError, without_frames

__all__ = ["AdmissionURL", "Undecided", "allows_untrusted"]

_LONGEST_ANSWER: Final = 4096
"""Bytes in which the JSON value must end."""
_REDIRECTS: Final = 10
_HEADERS: Final = {"User-Agent": "pyderp", "Accept-Encoding": "gzip"}


class Undecided(Exception):
    """The data has no complete JSON object so far."""


class AdmissionURL(Source):
    """An HTTP server that gets each client's key and address, and answers yes or no.

    The request is `{"NodePublic":"nodekey:…","Source":"IP"}`, the answer `{"Allow":true}`.
    `HTTP_PROXY`, `HTTPS_PROXY` and `NO_PROXY` are used, except for a server on this machine.

    Args:
        url: `http://` or `https://`. A user and password in it are sent as Basic authentication.
        fail_open: allow clients while the server is unreachable: this question got no connection,
            and no other question has one or had one lately (`Reach`). If there was a connection
            but no usable answer, the client is refused in any case.
        timeout: seconds for one question: connecting, redirects and body together.
        reach: the results of other questions to the same server.

    Raises:
        ConfigError: the URL cannot be used.
    """

    def __init__(
        self,
        url: str,
        counters: AdmissionCounters,
        *,
        fail_open: bool = True,
        timeout: float = ADMISSION_TIMEOUT,
        reach: Reach | None = None,
    ) -> None:
        super().__init__("admission controller", counters, timeout)
        self._proxy = _proxy_for(url)
        self._url = url
        self._fail_open = fail_open
        self._reach = Reach() if reach is None else reach
        self._session: aiohttp.ClientSession | None = None

    async def ask(self, client: ClientIdentity) -> Verdict:
        """Return the verdict of the server."""
        if self._fail_open and self._reach.is_known_unreachable():
            return self._let_in(client, "no question has reached it")
        self._counters.queries += 1
        attempt = self._reach.begin()
        try:
            return await self._exchange(client, attempt)
        except (aiohttp.ClientError, OSError, ValueError) as e:
            # Otherwise the error and aiohttp's frames, which refer to it, are a reference cycle.
            without_frames(e)
            late = isinstance(e, TimeoutError)
            what = describe(e)
            if late:
                what = f"no answer within {self._timeout:g} s"
            if attempt.connected:
                cause = Cause.TIMED_OUT if late else Cause.BAD_ANSWER
                return self._failed(f"no usable answer: {what}", cause)
            if not means_unreachable(e):
                return self._failed(f"cannot be asked: {what}", Cause.FAILED)
            return await self._unreachable(client, attempt, what)
        finally:
            self._reach.on_end(attempt)

    async def probe(self, client: ClientIdentity | None) -> None:
        """Ask about the client again; without a connection, `trouble` stays as it is."""
        if client is None:
            return
        self._counters.queries += 1
        attempt = self._reach.begin()
        try:
            await self._exchange(client, attempt)
        except (aiohttp.ClientError, OSError, ValueError) as e:
            self._counters.errors += 1
            without_frames(e)
        finally:
            self._reach.on_end(attempt)

    async def _exchange(self, client: ClientIdentity, attempt: Attempt) -> Verdict:
        question = {"NodePublic": str(client.key), "Source": client.address}
        body = json.dumps(question, separators=(",", ":")).encode()
        async with asyncio.timeout(self._timeout):
            response = await self._post(body, attempt)
            try:
                if response.status != 200:
                    what = excerpt(f"{response.status} {response.reason or ''}")
                    return self._failed(what, Cause.BAD_ANSWER)
                allowed = await _read_answer(response)
            finally:
                # aiohttp keeps the connection for the next question only if all was read.
                response.release()
        return self._answered(client, allowed=allowed)

    async def aclose(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def _unreachable(self, client: ClientIdentity, attempt: Attempt, what: str) -> Verdict:
        if not self._fail_open:
            return self._failed(f"unreachable: {what}", Cause.UNREACHABLE)
        if not await self._reach.is_unreachable_for_all(attempt):
            # A client may be able to make one connection fail, but hardly all of them.
            return self._failed(f"no connection, but others reach it: {what}", Cause.CROWDED)
        self._counters.errors += 1
        return self._let_in(client, what)

    def _let_in(self, client: ClientIdentity, what: str) -> Verdict:
        self._counters.failed_open += 1
        self._failures.failed(f"unreachable, {client.key} is let in: {what}")
        self.trouble = f"{self.name} is unreachable, clients are let in unasked: {what}"
        return Verdict(True, cause=Cause.UNREACHABLE)

    async def _post(self, body: bytes, attempt: Attempt) -> aiohttp.ClientResponse:
        try:
            return await self._send(body, attempt)
        except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError):
            if not attempt.reused:
                raise
            # The server has most likely closed a kept connection in the meantime. Asking twice
            # does no harm, because a question changes nothing in the server.
            attempt.connected = attempt.reused = False
            return await self._send(body, attempt)

    async def _send(self, body: bytes, attempt: Attempt) -> aiohttp.ClientResponse:
        response = await self._open().post(
            self._url,
            data=body,
            headers=_HEADERS,
            # derper sends no Content-Type, and a controller may refuse requests that have one.
            skip_auto_headers=("Content-Type", "Accept"),
            max_redirects=_REDIRECTS,
            proxy=self._proxy,
            trace_request_ctx=(self._reach, attempt),
        )
        self._reach.on_reached(attempt)
        return response

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                # No limit here: `Turns` already limits the questions at once.
                connector=aiohttp.TCPConnector(limit=0, resolver=OwnThreadResolver()),
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(),
                trace_configs=[tracing()],
            )
        return self._session


def _proxy_for(url: str) -> str | None:
    try:
        parts = URL(url)
    except ValueError as e:
        raise ConfigError(f"admission URL cannot be used: {e}") from None
    host = parts.host
    if parts.scheme not in ("http", "https") or not host:
        raise ConfigError("admission URL cannot be used: want http://HOST… or https://HOST…")
    if host in ("localhost", "::1") or host.startswith("127.") or urllib.request.proxy_bypass(host):
        return None
    proxy = urllib.request.getproxies().get(parts.scheme)
    if proxy is None:
        return None
    if "://" not in proxy:
        proxy = f"http://{proxy}"
    if not proxy.startswith(("http://", "https://")):
        # Refused at the start: later its failure would look like an unreachable server, and with
        # `fail_open` every client would be allowed.
        raise ConfigError(
            f"the environment's proxy for {parts.scheme}:// is of a kind that the admission URL "
            f"cannot be asked through: want http://…, or {host} in NO_PROXY"
        )
    return proxy


async def _read_answer(response: aiohttp.ClientResponse) -> bool:
    """Read until the first JSON value is complete: the server may not end the body after it.

    Raises:
        ValueError: no JSON object in the first 4096 bytes, or its `Allow` is not a boolean.
    """
    data = b""
    while chunk := await response.content.readany():
        data += chunk
        if b"}" in chunk or len(data) > _LONGEST_ANSWER:
            try:
                return allows_untrusted(data[:_LONGEST_ANSWER])
            except Undecided:
                if len(data) > _LONGEST_ANSWER:
                    break
    raise ValueError("not a JSON object of at most 4096 bytes")


def allows_untrusted(data: bytes) -> bool:
    """Return whether the JSON answer at the start of the data allows the client.

    It is read as Go's decoder does: the name `Allow` in upper or lower case, the last one of
    several; `null` changes nothing; a missing name means false; bytes after the object are
    ignored.

    Raises:
        Undecided: the data has no complete JSON object.
        ValueError: `Allow` is neither true, false nor null.
    """
    try:
        value = gojson.parse(data, start_only=True)
    except ValueError:
        raise Undecided from None
    allowed = False
    for name, setting in value.pairs if isinstance(value, gojson.Object) else ():
        if gojson.same_name(name) == "allow" and setting is not None:
            if not isinstance(setting, bool):
                raise ValueError("Allow is neither true nor false")
            allowed = setting
    return allowed
