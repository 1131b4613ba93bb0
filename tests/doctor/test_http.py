"""Group `http`: each check, with a proxy or relay that makes it fail."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from email.utils import formatdate

import pytest

from pyderp import Relay, RelayConfig
from pyderp.cli.doctorlines import line_of
from pyderp.doctor.target import Single, relay_region

from .support import (
    FAIL,
    OK,
    SKIP,
    WARN,
    Found,
    front,
    look,
    look_at,
    no_network,
    page,
    run,
    serving,
    with_node,
)

SETTINGS_FRAME = bytes.fromhex("000000 04 00 00000000")
GOAWAY_FRAME = bytes.fromhex("000008 07 00 00000000") + bytes(8)


async def before_relay(
    answer: Callable[[str], bytes | None] = lambda _: None,
    change: Callable[[str], str] = lambda head: head,
    **settings: object,
) -> Found:
    """Findings about a relay behind a proxy."""
    async with Relay() as relay, serving(front(relay.address[1], answer, change)) as port:
        return await look_at(f"http://127.0.0.1:{port}", no_network(**settings))


def without_upgrade(head: str) -> str:
    """The head as a proxy passes it on that does not know upgrades."""
    kept = [
        line
        for line in head.split("\r\n")
        if not line.lower().startswith(("upgrade:", "connection:"))
    ]
    return "\r\n".join(kept)


async def test_a_relay_without_derp_blames_no_proxy() -> None:
    async with Relay(RelayConfig(derp=False)) as relay:
        found = await look_at(relay.url, no_network())
    upgrade = found["http.upgrade"]
    assert upgrade.result is FAIL
    assert "derp server disabled" in upgrade.seen.text
    assert "the relay runs without DERP (--no-derp)" in line_of(upgrade, several=False)
    assert found["http.proxy"].result is SKIP


def test_a_proxy_that_strips_the_upgrade_is_found() -> None:
    async def main() -> None:
        found = await before_relay(change=without_upgrade)
        assert found["http.upgrade"].result is FAIL
        assert found["http.proxy"].result is FAIL
        assert "removed the header Upgrade" in found["http.proxy"].seen.text
        assert "proxy_set_header Upgrade" in found["http.proxy"].seen.advice
        assert found["relay.admission"].result is SKIP
        assert found["http.latency"].result is OK

    run(main())


@pytest.mark.parametrize(
    "frames", [SETTINGS_FRAME, SETTINGS_FRAME + GOAWAY_FRAME], ids=["settings", "goaway"]
)
def test_a_proxy_for_http_2_only_is_found(frames: bytes) -> None:
    async def main() -> None:
        found = await before_relay(lambda _: frames)
        assert found["http.upgrade"].result is FAIL
        assert found["http.proxy"].result is FAIL
        assert "HTTP/2 only" in found["http.proxy"].seen.text

    run(main())


def test_an_unsupported_version_of_http_fails() -> None:
    async def main() -> None:
        found = await before_relay(lambda _: page("505 HTTP Version Not Supported"))
        assert found["http.proxy"].result is FAIL

    run(main())


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (page("302 Found", "", "Location: https://login.example/"), "a redirect to https://login"),
        (page("200 OK", "<html>hello</html>"), "a web site"),
        (page("403 Forbidden", "no"), "refuses clients"),
        (page("502 Bad Gateway"), "does not reach the relay"),
    ],
)
def test_answers_of_web_servers_are_named(answer: bytes, text: str) -> None:
    async def main() -> None:
        found = await before_relay(lambda _: answer)
        assert found["http.upgrade"].result is FAIL
        assert text in found["http.upgrade"].seen.advice

    run(main())


def test_a_proxy_that_passes_the_upgrade_is_named() -> None:
    async def main() -> None:
        async with Relay() as relay:
            inner = front(relay.address[1])

            async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                await inner(reader, _Naming(writer))  # type: ignore[arg-type]

            async with serving(handle) as port:
                found = await look_at(f"http://127.0.0.1:{port}")
        assert found["http.proxy"].result is OK
        assert "nginx/1.0, via 1.1 edge" in found["http.proxy"].seen.text

    run(main())


class _Naming:
    """A writer that adds a proxy's headers to the first answer."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        self._first = True

    def write(self, data: bytes) -> None:
        if self._first:
            self._first = False
            head, end, rest = data.partition(b"\r\n")
            data = head + end + b"Server: nginx/1.0\r\nVia: 1.1 edge\r\n" + rest
        self._writer.write(data)

    def __getattr__(self, name: str) -> object:
        return getattr(self._writer, name)


def test_a_missing_websocket_is_a_warning() -> None:
    async def main() -> None:
        found = await before_relay(
            lambda head: page("400 Bad Request") if "websocket" in head.lower() else None
        )
        assert found["http.websocket"].result is WARN
        assert found["http.websocket"].seen.data["status"] == 400
        assert found["relay.packet"].result is OK

    run(main())


def test_a_missing_latency_check_is_a_warning() -> None:
    async def main() -> None:
        found = await before_relay(
            lambda head: page("404 Not Found") if "latency-check" in head else None
        )
        assert found["http.latency"].result is WARN

    run(main())


@pytest.mark.parametrize(
    ("offset", "result", "text"),
    [
        (0.0, OK, "within"),
        (300.0, WARN, "5 minutes ahead of"),
        (-90.0, WARN, "90 s behind"),
        (-3 * 86400.0, WARN, "3 days behind"),
    ],
)
def test_the_clock_is_compared(offset: float, result: object, text: str) -> None:
    async def main() -> None:
        def answer(head: str) -> bytes | None:
            date = f"Date: {formatdate(time.time() + offset, usegmt=True)}"
            return page("200 OK", "", date) if "latency-check" in head else None

        found = await before_relay(answer)
        assert found["http.clock"].result is result
        assert text in found["http.clock"].seen.text

    run(main())


@pytest.mark.parametrize("date", ["yesterday", "Mon, 99 Foo 99999 99:99:99 GMT", "\xff"])
def test_an_invalid_date_is_skipped_or_fails(date: str) -> None:
    async def main() -> None:
        found = await before_relay(
            lambda head: (
                page("200 OK", "", f"Date: {date}").decode().encode("latin-1")
                if "latency-check" in head
                else None
            )
        )
        assert found["http.clock"].result in (SKIP, FAIL)
        assert "mistake" not in found["http.clock"].seen.text

    run(main())


def challenge_of(head: str) -> str:
    lines = [line for line in head.split("\r\n") if line.startswith("X-Tailscale-Challenge: ")]
    return lines[0].partition(": ")[2]


def repeats_the_challenge(head: str) -> bytes:
    return page("204 No Content", "", f"X-Tailscale-Response: response {challenge_of(head)}")


@pytest.mark.parametrize("promised", [False, True], ids=["not-promised", "promised"])
@pytest.mark.parametrize(
    ("answer", "result", "text"),
    [
        (repeats_the_challenge, OK, "204"),
        (lambda _: page("204 No Content"), SKIP, "without the challenge"),
        (lambda _: page("404 Not Found"), SKIP, "404"),
        (lambda _: page("302 Found", "", "Location: http://portal.example/"), WARN, "302 to http://"),
        (lambda _: page("200 OK", "<html>log in</html>"), WARN, "200"),
        (lambda _: b"\0\1\2junk", SKIP, "not HTTP"),
        (lambda _: b"", SKIP, "without an answer"),
    ],
    ids=["relay", "no-challenge", "404", "portal", "page", "junk", "nothing"],
)  # fmt: skip
def test_plain_http_beside_tls_is_checked(
    answer: object, result: object, text: str, promised: bool
) -> None:
    """What a map promises must work; otherwise only a possible portal is a warning."""
    assert callable(answer)

    async def main() -> None:
        async with Relay() as relay, serving(front(1, answer)) as port:
            region = relay_region(relay.url, Single(stun_port=-1, http_port=port))
            found = await look(with_node(region, wants_port_80=promised))
        wanted = FAIL if promised and result is not OK else result
        assert found["http.port80"].result is wanted, found["http.port80"].seen
        assert text in found["http.port80"].seen.text

    run(main())


def test_a_closed_port_80_fails_only_if_promised() -> None:
    async def main() -> None:
        async with Relay() as relay:
            region = relay_region(relay.url, Single(stun_port=-1, http_port=1))
            open_map = await look(region)
            promised = await look(with_node(region, wants_port_80=True))
        assert open_map["http.port80"].result is SKIP
        assert promised["http.port80"].result is FAIL
        assert "CanPort80" in promised["http.port80"].seen.advice

    run(main())


def test_a_load_balancer_before_two_relays_is_found() -> None:
    async def main() -> None:
        async with Relay() as one, Relay() as other:
            ports = [one.address[1], other.address[1]]

            async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                ports.reverse()
                await front(ports[0])(reader, writer)

            async with serving(handle) as port:
                found = await look_at(f"http://127.0.0.1:{port}", no_network(timeout=2))
        assert found["http.identity"].result is FAIL
        assert "2 relays answer" in found["http.identity"].seen.text

    run(main())
