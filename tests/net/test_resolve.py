from __future__ import annotations

import socket
from collections.abc import Sequence
from ipaddress import ip_address

import pytest

from pyderp.errors import DialError
from pyderp.net.resolve import lookup, parse_ip, system_resolver
from tests.conftest import Run

from .ways_out import Names


def test_the_system_knows_localhost(run: Run) -> None:
    async def main() -> None:
        assert await system_resolver("localhost", socket.AF_INET) == [ip_address("127.0.0.1")]
        assert await lookup("localhost", family=socket.AF_INET) == [ip_address("127.0.0.1")]

    run(main())


def test_the_systems_answer_without_repetitions_and_with_zones(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        def answer(*_: object, **__: object) -> Sequence[object]:
            tcp = (socket.SOCK_STREAM, socket.IPPROTO_TCP, "")
            return [
                (socket.AF_INET6, *tcp, ("fe80::1", 0, 0, 7)),
                (socket.AF_INET6, *tcp, ("fe80::2%eth0", 0, 0, 8)),
                (socket.AF_INET6, *tcp, ("2001:db8::1", 0, 0, 0)),
                (socket.AF_INET, *tcp, ("192.0.2.1", 0)),
                (socket.AF_INET, *tcp, ("192.0.2.1", 0)),
            ]

        class Loop:
            async def getaddrinfo(self, *args: object, **kwargs: object) -> Sequence[object]:
                return answer(*args, **kwargs)

        monkeypatch.setattr("pyderp.net.resolve.asyncio.get_running_loop", Loop)
        found = await system_resolver("h", socket.AF_UNSPEC)
        monkeypatch.undo()
        assert [str(ip) for ip in found] == [
            "fe80::1%7",
            "fe80::2%eth0",
            "2001:db8::1",
            "192.0.2.1",
        ]

    run(main())


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("2001:DB8::1", "2001:db8::1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("fe80::1%eth0", "fe80::1%eth0"),
    ],
)
def test_an_address_is_its_own(run: Run, host: str, address: str) -> None:
    async def main() -> None:
        names = Names({})
        assert await lookup(host, resolver=names) == [ip_address(address)]
        assert not names.asked

    run(main())


def test_the_resolver_is_asked_for_the_family(run: Run) -> None:
    async def main() -> None:
        names = Names({"h": ["::ffff:192.0.2.1", "2001:db8::1"]})
        found = await lookup("h", family=socket.AF_INET6, resolver=names)
        assert found == [ip_address("192.0.2.1"), ip_address("2001:db8::1")]
        assert names.asked == [("h", socket.AF_INET6)]

    run(main())


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ([], 'no IPs for "h" found'),
        (
            socket.gaierror(socket.EAI_NONAME, "Name or service not known"),
            "look-up of 'h': Name or service not known",
        ),
        (OSError("no network"), "look-up of 'h': no network"),
        (TimeoutError(), "look-up of 'h': TimeoutError"),
    ],
)
def test_no_address(run: Run, answer: list[str] | Exception, message: str) -> None:
    async def main() -> None:
        with pytest.raises(DialError) as caught:
            await lookup("h", resolver=Names({"h": answer}))
        assert str(caught.value) == message
        assert caught.value.__cause__ is (answer if isinstance(answer, Exception) else None)

    run(main())


@pytest.mark.parametrize("host", ["a..b", "a\0b", "x" * 64 + ".net"])
def test_what_no_name_can_be(run: Run, host: str) -> None:
    async def main() -> None:
        with pytest.raises(DialError) as caught:
            await lookup(host)
        assert repr(host) in str(caught.value)

    run(main())


def test_parse_ip() -> None:
    assert parse_ip("derp.example.com") is None
    assert parse_ip("none") is None
    assert parse_ip("192.0.2.01") is None
    assert parse_ip("::ffff:192.0.2.1") == ip_address("192.0.2.1")
