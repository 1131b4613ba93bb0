"""An exchange with a certificate authority leaves nothing, with any answer of the authority."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final, TypeAlias

import pytest

from pyderp.certs.network import Refused, Stopped
from pyderp.certs.session import Session
from tests.certs.handshake import NAME
from tests.certs.test_session import Quiet, serving, session
from tests.leftovers import none_left
from tests.server.certificates import write_pair

Ask: TypeAlias = Callable[[Session, bytes], object]

_LIBRARIES: Final = ("acme", "josepy", "json", "requests", "urllib3")
"""They leave cycles of their own, in which no object of pyderp may be."""


def says(status: int, body: bytes, **headers: str) -> Callable[[Quiet], None]:
    return lambda handler: handler.answer(status, body, **headers)


def breaks_off(handler: Quiet) -> None:
    handler.answer(200, b"{", Content_Length="100")


def says_nothing(handler: Quiet) -> None:
    handler.close_connection = True


ANSWERS: Final[dict[str, Callable[[Quiet], None]]] = {
    "no JSON": says(200, b"<html>"),
    "an empty object": says(200, b"{}"),
    "an error": says(500, b"<html>"),
    "a problem": says(
        429,
        b'{"type": "urn:ietf:params:acme:error:rateLimited", "detail": "later"}',
        Content_Type="application/problem+json",
        Retry_After="70",
    ),
    "a redirect to itself": says(302, b"", Location="/dir"),
    "too much": says(200, b" " * 2_000_000),
    "half of it": breaks_off,
    "nothing": says_nothing,
}
ASKS: Final[dict[str, Ask]] = {
    "obtain": lambda each, _: each.obtain(NAME, 0),
    "renewal": lambda each, chain: each.renewal(chain),
}


def one_exchange(folder: Path, port: int, ask: Ask, *, stopped: bool) -> None:
    stop = threading.Event()
    if stopped:
        stop.set()
    chain = (folder / f"{NAME}.crt").read_bytes()
    with suppress(Refused, Stopped):
        ask(session(folder, port, stop), chain)


@pytest.mark.parametrize("on_loop", ["asyncio"], indirect=True)
@pytest.mark.parametrize("ask", ASKS)
@pytest.mark.parametrize("answer", [*ANSWERS, "stopped", "no server"])
async def test_nothing_is_left_of_an_exchange(tmp_path: Path, ask: str, answer: str) -> None:
    write_pair(tmp_path, NAME)
    does = ANSWERS.get(answer, says_nothing)

    async def main(port: int) -> None:
        def one() -> None:
            one_exchange(tmp_path, port, ASKS[ask], stopped=answer == "stopped")

        one()
        async with none_left(libraries=_LIBRARIES):
            one()

    with serving(tmp_path, type("Answering", (Quiet,), {"do_GET": does})) as port:
        await main(1 if answer == "no server" else port)
