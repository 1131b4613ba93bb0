"""The STUN client against servers that answer, lie, repeat themselves, or stay silent."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from typing import Any, TypeAlias

import pytest

from pyderp.errors import ConfigError, DialError, FailureReason
from pyderp.net import stunclient
from pyderp.net.stunclient import MAX_ANSWER, StunAnswer, StunClient
from pyderp.wire.stun import pack_response, parse_request_untrusted

Run: TypeAlias = Callable[[Coroutine[Any, Any, None]], None]
Answers: TypeAlias = Callable[[bytes, tuple[str, int]], list[bytes]]
"""The answers of a server to a request from an address."""


def good_answer(request: bytes, source: tuple[str, int]) -> list[bytes]:
    """The answer of a good server."""
    tx_id = parse_request_untrusted(request)
    return [pack_response(tx_id, ip_address(source[0]).packed, source[1])]


class Server:
    """A UDP server on loopback, and the requests it got."""

    def __init__(self, answers: Answers, host: str, answers_from: str) -> None:
        self.answers = answers
        self.requests: list[bytes] = []
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.sock = socket.socket(family, socket.SOCK_DGRAM)
        self.sock.bind((host, 0))
        self.sock.setblocking(False)
        self.port: int = self.sock.getsockname()[1]
        self.out = self.sock
        if answers_from:
            self.out = socket.socket(family, socket.SOCK_DGRAM)
            self.out.bind((answers_from, 0))

    def on_readable(self) -> None:
        request, source = self.sock.recvfrom(2048)
        self.requests.append(request)
        for answer in self.answers(request, source[:2]):
            self.out.sendto(answer, source)


@contextmanager
def serving(
    answers: Answers, host: str = "127.0.0.1", *, answers_from: str = ""
) -> Iterator[Server]:
    server = Server(answers, host, answers_from)
    loop = asyncio.get_running_loop()
    loop.add_reader(server.sock, server.on_readable)
    try:
        yield server
    finally:
        loop.remove_reader(server.sock)
        server.sock.close()
        server.out.close()


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="this machine has no ::1")
HOSTS = [
    pytest.param("127.0.0.1", id="v4"),
    pytest.param("::1", id="v6", marks=needs_ipv6),
]


def family_of(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


@pytest.mark.parametrize("host", HOSTS)
async def test_it_learns_the_address_that_the_server_sees(host: str) -> None:
    """The mapped address is that of the client's socket, and the answer came from the server."""
    with serving(good_answer, host) as server:
        async with StunClient(family_of(host), host=host) as client:
            answer = await client.ask(host, server.port, within=60)
            assert (str(answer.address), answer.port) == client.local_address
            assert answer.asked == answer.source == (host, server.port)
            assert answer.from_asked_address
            assert answer.round_trip > 0


async def test_an_answer_from_another_address_is_distinguished() -> None:
    """The transaction id alone decides whether it is an answer."""
    with serving(good_answer, answers_from="127.0.0.2") as server:
        async with StunClient() as client:
            answer = await client.ask("127.0.0.1", server.port, within=60)
            assert not answer.from_asked_address
            assert answer.source == server.out.getsockname()


def _cut(request: bytes, source: tuple[str, int]) -> list[bytes]:
    return [good_answer(request, source)[0][:-1]]


def _other_tx_id(request: bytes, source: tuple[str, int]) -> list[bytes]:
    answer = good_answer(request, source)[0]
    return [answer[:8] + bytes(12) + answer[20:]]


def _endless(request: bytes, source: tuple[str, int]) -> list[bytes]:
    answer = good_answer(request, source)[0]
    length = MAX_ANSWER + 4 - 20
    return [answer[:2] + length.to_bytes(2) + answer[4:] + bytes(MAX_ANSWER + 4 - len(answer))]


HOSTILE: dict[str, Answers] = {
    "nothing at all": lambda *_: [b""],
    "the request itself": lambda request, _: [request],
    "noise": lambda *_: [b"\xff" * 1400],
    "an answer cut short": _cut,
    "an answer to another request": _other_tx_id,
    "an error": lambda request, source: [b"\x01\x11" + good_answer(request, source)[0][2:]],
    "more than a datagram should have": _endless,
    "no address": lambda request, _: [b"\x01\x01\0\0" + request[4:20]],
    "an address of no family": lambda request, _: [
        b"\x01\x01\0\x0c" + request[4:20] + bytes.fromhex("0020000800050001e112a643")
    ],
}


@pytest.mark.parametrize("answers", HOSTILE.values(), ids=HOSTILE.keys())
async def test_junk_is_ignored_and_the_answer_after_it_counts(answers: Answers) -> None:
    def junk_first(request: bytes, source: tuple[str, int]) -> list[bytes]:
        return answers(request, source) + good_answer(request, source)

    with serving(junk_first) as server:
        async with StunClient() as client:
            answer = await client.ask("127.0.0.1", server.port, within=60)
            assert answer.port == client.local_address[1]
            assert client.ignored == 1


@pytest.mark.parametrize("answers", HOSTILE.values(), ids=HOSTILE.keys())
async def test_junk_alone_is_no_answer(answers: Answers) -> None:
    with serving(answers) as server:
        async with StunClient() as client:
            with pytest.raises(DialError, match=r"no STUN answer from 127\.0\.0\.1:") as caught:
                await client.ask("127.0.0.1", server.port, within=0.2, retransmit=0.05)
            assert caught.value.reason is FailureReason.TIMEOUT


async def test_a_lost_request_is_sent_again_with_another_id() -> None:
    """So an answer is never taken for one to a later request."""
    with serving(lambda *_: []) as server:

        def third_time(request: bytes, source: tuple[str, int]) -> list[bytes]:
            return good_answer(request, source) if len(server.requests) >= 3 else []

        server.answers = third_time
        async with StunClient() as client:
            await client.ask("127.0.0.1", server.port, within=60, retransmit=0.01)
        ids = {parse_request_untrusted(request) for request in server.requests}
        assert len(ids) == len(server.requests) >= 3


async def test_a_repeated_answer_counts_once() -> None:
    """Also one that comes during a later request."""
    with serving(lambda *request: good_answer(*request) * 3) as server:
        async with StunClient() as client:
            seen: list[StunAnswer] = []
            client.send("127.0.0.1", server.port, seen.append)
            await client.ask("127.0.0.1", server.port, within=60, retransmit=60)
            while client.ignored < 3:  # noqa: ASYNC110 (only counted)
                await asyncio.sleep(0)
            assert len(seen) == 1


async def test_concurrent_requests_get_their_own_answers() -> None:
    with serving(good_answer) as one, serving(good_answer) as two:
        async with StunClient() as client:
            ask = client.ask
            first, second = await asyncio.gather(
                ask("127.0.0.1", one.port, within=60), ask("127.0.0.1", two.port, within=60)
            )
            assert (first.source[1], second.source[1]) == (one.port, two.port)


async def test_the_number_of_open_requests_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest request is forgotten; the latest are answered."""
    monkeypatch.setattr(stunclient, "MAX_PENDING", 4)

    with serving(good_answer) as server:
        async with StunClient() as client:
            seen: list[int] = []
            for number in range(6):
                client.send("127.0.0.1", server.port, lambda _, n=number: seen.append(n))  # type: ignore[misc]  # mypy knows no type of n
            while len(seen) + client.ignored < 6:  # noqa: ASYNC110 (only counted)
                await asyncio.sleep(0)
            assert seen == [2, 3, 4, 5]
            assert client.ignored == 2


async def test_a_forgotten_request_has_no_answer() -> None:
    with serving(good_answer) as server:
        async with StunClient() as client:
            seen: list[StunAnswer] = []
            client.send("127.0.0.1", server.port, seen.append)
            client.forget()
            while not client.ignored:  # noqa: ASYNC110 (only counted)
                await asyncio.sleep(0)
            assert not seen


async def test_a_callback_may_close_the_client() -> None:
    with serving(lambda *request: good_answer(*request) * 2) as server:
        client = StunClient()
        closed = asyncio.Event()

        def close(_: StunAnswer) -> None:
            client.close()
            closed.set()

        client.send("127.0.0.1", server.port, close)
        await closed.wait()
        client.close()


async def test_an_unreachable_server_is_an_error_at_once() -> None:
    """Port 0 stands for an address that the kernel refuses to send to."""
    async with StunClient() as client:
        with pytest.raises(DialError, match="cannot send a STUN request to") as caught:
            await client.ask("127.0.0.1", 0, within=60)
        assert caught.value.reason is FailureReason.UNREACHABLE


async def test_an_address_in_use_is_refused() -> None:
    with serving(good_answer) as server:
        where = rf"cannot bind UDP to 127\.0\.0\.1:{server.port}: Address already in use"
        with pytest.raises(ConfigError, match=where):
            StunClient(host="127.0.0.1", port=server.port)


async def test_a_client_made_after_another_was_closed_gets_its_answers() -> None:
    """The kernel gives its socket the file descriptor of the closed one."""
    with serving(good_answer) as server:
        for _ in range(3):
            async with StunClient() as client:
                answer = await client.ask("127.0.0.1", server.port, within=30)
                assert answer.port == client.local_address[1]


@needs_ipv6
async def test_clients_of_both_families_may_have_the_same_port() -> None:
    """A socket for IPv6 takes no IPv4 datagrams, so it leaves the port free for IPv4."""
    for _ in range(10):
        async with StunClient() as client:
            # Another process may have this port for IPv6 alone: then the next is tried.
            with contextlib.suppress(ConfigError):
                StunClient(socket.AF_INET6, port=client.local_address[1]).close()
                return
    pytest.fail("none of 10 ports could be bound for both families")
