from __future__ import annotations

import asyncio
import socket
import ssl
from typing import Any

import aiohttp
import pytest
from aiohttp.client_reqrep import ConnectionKey

from pyderp.admission.reach import Reach, describe

from .fakes import JumpingLoop


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


async def test_a_single_attempt_that_fails_finds_the_server_unreachable() -> None:
    clock = Clock()
    reach = Reach(clock=clock)
    assert not reach.is_known_unreachable()
    assert await reach.is_unreachable_for_all(reach.begin())
    assert reach.is_known_unreachable()
    clock.now += 1
    assert not reach.is_known_unreachable()


async def test_a_new_connection_means_reachable_for_half_a_minute_and_a_reused_one_does_not() -> (
    None
):
    clock = Clock()
    reach = Reach(clock=clock)
    reused = reach.begin()
    reused.connected = reused.reused = True
    reach.on_end(reused)
    assert await reach.is_unreachable_for_all(reach.begin())
    reach.on_reached(reach.begin())
    # The earlier result no longer counts.
    assert not reach.is_known_unreachable()
    clock.now += 29
    assert not await reach.is_unreachable_for_all(reach.begin())
    clock.now += 1
    assert await reach.is_unreachable_for_all(reach.begin())


def test_a_failed_attempt_waits_for_earlier_attempts_only() -> None:
    async def main() -> None:
        reach = Reach(clock=Clock(), grace=1000)
        first, second = reach.begin(), reach.begin()
        missed = asyncio.ensure_future(reach.is_unreachable_for_all(first))
        await asyncio.sleep(0)
        later = reach.begin()
        assert not missed.done()
        assert await reach.is_unreachable_for_all(second) is await missed is True
        reach.on_end(later)

    with asyncio.Runner(loop_factory=JumpingLoop) as runner:
        runner.run(main())


async def test_one_success_decides_for_all_waiting_attempts() -> None:
    reach = Reach(clock=Clock(), grace=1000)
    attempts = [reach.begin() for _ in range(64)]
    missed = [asyncio.ensure_future(reach.is_unreachable_for_all(each)) for each in attempts[:63]]
    await asyncio.sleep(0)
    reach.on_reached(attempts[63])
    assert await asyncio.gather(*missed) == [False] * 63


def test_the_wait_for_other_attempts_is_bounded() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        reach = Reach(clock=loop.time, grace=1)
        hanging, failed = reach.begin(), reach.begin()
        begin = loop.time()
        assert await reach.is_unreachable_for_all(failed)
        assert loop.time() == begin + 1
        reach.on_end(hanging)

    with asyncio.Runner(loop_factory=JumpingLoop) as runner:
        runner.run(main())


def connector(kind: type[aiohttp.ClientConnectorError], error: OSError) -> Exception:
    return kind(ConnectionKey("c.example", 443, True, True, None, None, None), error)


def refused_certificate() -> ssl.SSLCertVerificationError:
    error = ssl.SSLCertVerificationError(1, "[SSL: CERTIFICATE_VERIFY_FAILED] x (_ssl.c:1)")
    error.verify_message = "self-signed certificate"
    return error


def response_error(message: str) -> Exception:
    """Return an error whose own text has the whole URL of the request."""
    request: Any = None
    return aiohttp.ClientResponseError(request, (), status=400, message=message)


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (
            connector(
                aiohttp.ClientConnectorError, OSError(111, "Connect call failed ('127.0.0.1', 1)")
            ),
            "cannot connect to c.example:443: Connection refused",
        ),
        (
            connector(aiohttp.ClientConnectorDNSError, socket.gaierror(-2, "Name not known")),
            "cannot connect to c.example:443: Name not known",
        ),
        (
            connector(aiohttp.ClientConnectorCertificateError, refused_certificate()),
            "cannot connect to c.example:443: the certificate is not accepted: self-signed "
            "certificate",
        ),
        (
            response_error("Bad status line:\n\n  b'SSH-2.0-x\\r\\n'\n    ^"),
            "Bad status line",
        ),
        (response_error("Invalid header b'x'"), "Invalid header 'x'"),
        (response_error(""), "status 400"),
        (aiohttp.ServerDisconnectedError(), "Server disconnected"),
        (ConnectionResetError(104, "odd"), "Connection reset by peer"),
        (ValueError("odd\n"), "odd"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_errors_are_described_without_classes_and_names_of_libraries(
    error: Exception, text: str
) -> None:
    assert describe(error) == text
