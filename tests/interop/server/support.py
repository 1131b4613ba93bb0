"""Shared by tests of the relay itself: its metrics, and HTTP by hand."""

from __future__ import annotations

import contextlib
import re
import socket
import ssl
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import pytest

from tests.interop.relays import DERPERS, KINDS, Kind, Relay, Setup
from tests.server import dial

GetRelay = Callable[[Kind, Setup], Relay]

both = pytest.mark.parametrize("kind", KINDS)
one_and_other = pytest.mark.parametrize(
    ("one", "other"),
    [*((derper, "pyderp") for derper in DERPERS), *(("pyderp", derper) for derper in DERPERS)],
)
"""pyderp and each version of derper, in both orders."""
BOUND: Final = 20.0
"""Seconds that a step of a process may take on a busy machine."""
_POLL: Final = 0.02
_SERIES: Final = re.compile(r"^([a-z_]+(?:\{[^}]*\})?) ([0-9.e+]+)$", re.MULTILINE)


@dataclass(frozen=True)
class Answer:
    """An HTTP answer."""

    status: int
    headers: dict[str, str]
    """By their names in lower case."""
    body: bytes

    @classmethod
    def parse(cls, data: bytes) -> Answer:
        head, _, body = data.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        pairs = (line.split(": ", 1) for line in lines)
        headers = {name.lower(): value for name, value in pairs}
        return cls(int(first.split()[1]), headers, body)


def request(target: str, *headers: str, method: str = "GET", host: str = "localhost") -> bytes:
    """A request that is the last of its connection; the answer is not chunked."""
    return "\r\n".join([f"{method} {target} HTTP/1.0", f"Host: {host}", *headers, "", ""]).encode()


def ask(
    address: tuple[str, int],
    data: bytes,
    *,
    tls: ssl.SSLContext | None = None,
    source: str = "",
) -> Answer:
    """Send a request, from a given address if wanted; returns the answer."""
    origin = (source, 0) if source else None
    with contextlib.ExitStack() as stack:
        sock = stack.enter_context(
            socket.create_connection(address, timeout=BOUND, source_address=origin)
        )
        # After a TLS handshake the request would wait for an acknowledgement.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if tls is not None:
            sock = stack.enter_context(tls.wrap_socket(sock))
        sock.sendall(data)
        answer = bytearray()
        while chunk := sock.recv(65536):
            answer += chunk
    return Answer.parse(bytes(answer))


Metrics = dict[str, float]
"""What `/debug/varz` has: the value by name and labels, as they stand there."""


def parse_metrics(text: str) -> Metrics:
    return {name: float(value) for name, value in _SERIES.findall(text)}


async def metrics(relay: Relay) -> Metrics:
    """The present values of a relay without TLS."""
    reader, writer = await dial.open_stream((relay.address, relay.port))
    writer.write(request("/debug/varz"))
    answer = Answer.parse(await dial.drained(reader))
    await dial.hang_up(writer)
    assert answer.status == 200
    return parse_metrics(answer.body.decode())


def dropped(reason: str, kind: str = "other") -> str:
    """The name of a series of dropped packets."""
    return f'derp_packets_dropped{{reason="{reason}",kind="{kind}"}}'


def until(condition: Callable[[], bool], what: str, seconds: float = BOUND) -> None:
    """Wait until a condition holds for which there is no event."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"never: {what}"
        time.sleep(_POLL)


def difference(before: Metrics, after: Metrics, names: Sequence[str]) -> dict[str, float]:
    return {name: after[name] - before[name] for name in names}
