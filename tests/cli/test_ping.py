"""`pyderp ping`: round trips, losses, and pongs of other peers."""

from __future__ import annotations

import statistics
import subprocess
import sys
from collections.abc import Callable
from typing import TypeAlias

import pytest

from pyderp import ClientConfig, NetworkSettings, NodePrivate, ReceivedPacket, blocking
from pyderp.cli.ping import (
    ID_LEN,
    PROBE,
    _percentile,
    make_ping,
    pong_for_untrusted,
    pong_id_untrusted,
)
from pyderp.testing import RelayThread
from pyderp.wire.frames import looks_like_disco

from .commands import Done, command, listening

Here: TypeAlias = Callable[..., Done]

DIRECT = ClientConfig(network=NetworkSettings())
BOUND = 10.0
ABSENT = NodePrivate.generate().public


def test_the_relay_answers(relay: RelayThread, here: Here) -> None:
    done = here("ping", relay.url, "-c3", "-i", 0.01)
    assert done.code == 0
    lines = done.out.splitlines()
    for number, line in enumerate(lines[:3], start=1):
        assert line.startswith(f"pong from the relay: number={number} time=")
        assert line.endswith(" ms")
    assert lines[3].startswith("3 sent, 3 received, 0.0% lost; min ")


def test_a_peer_that_listens_answers(relay: RelayThread, here: Here) -> None:
    with listening(relay.url) as (_, key):
        done = here("ping", relay.url, key, "-c", 3, "-i", 0.01, "--json")
    assert done.code == 0
    times = [event["seconds"] for event in done.events if event["type"] == "pong"]
    assert len(times) == 3
    found = done.event("statistics")
    assert (found["sent"], found["received"], found["loss"]) == (3, 3, 0)
    assert found["min"] == min(times) > 0
    assert found["median"] == statistics.median(times)
    assert found["p99"] == max(times)


def test_latency_is_the_measured_one(relay: RelayThread, here: Here) -> None:
    relay.latency = 0.05
    for peer in (True, False):
        with listening(relay.url) as (_, key):
            done = here("ping", relay.url, *([key] if peer else []), "-c1", "--json")
        assert done.event("statistics")["min"] >= 0.1


def test_an_absent_peer_is_reported_at_once(relay: RelayThread, here: Here) -> None:
    done = here("ping", relay.url, ABSENT, "-c2", "-i0")
    assert done.code == 1
    assert done.err.count("the peer is not at this relay") == 2
    assert done.out == "2 sent, 0 received, 100.0% lost\n"


def test_a_peer_that_does_not_answer_is_lost(relay: RelayThread, here: Here) -> None:
    with listening(relay.url, "--no-echo") as (_, key):
        done = here("ping", relay.url, key, "-c2", "-i0", "--timeout", 0.05, "--json")
    assert done.code == 1
    assert [e["reason"] for e in done.events if e["type"] == "lost"] == [
        "no answer within 0.05 s", "no answer within 0.05 s",
    ]  # fmt: skip
    found = done.event("statistics")
    assert (found["loss"], "min" in found) == (1, False)


def test_a_loss_is_counted_and_the_rest_goes_on(relay: RelayThread) -> None:
    with listening(relay.url) as (_, key):
        flags = ("-c3", "-i", 0.5, "--timeout", 0.4, "--json")
        with command("ping", relay.url, key, *flags) as pinging:
            pinging.wait_for_out('"number": 1')
            relay.drop_next()
            done = pinging.end()
    assert done.code == 0
    assert [e["type"] for e in done.events] == ["pong", "lost", "pong", "statistics"]
    assert done.event("statistics")["loss"] == pytest.approx(1 / 3)


def test_pongs_of_others_and_unrequested_pongs_do_not_count(relay: RelayThread) -> None:
    with (
        blocking.Client.for_url(relay.url, config=DIRECT) as target,
        blocking.Client.for_url(relay.url, config=DIRECT) as other,
    ):
        target.recv(BOUND)
        flags = ("-c1", "--timeout", 1, "--json")
        with command("ping", relay.url, target.self_public_key, *flags) as pinging:
            for message in target:
                assert isinstance(message, ReceivedPacket)
                pinger, pong = message.source, pong_for_untrusted(message.data)
                if pong is not None:
                    break
            assert pong is not None
            other.send(pinger, pong)
            wrong_id = pong.replace(pong[11:19], b"wrong id")
            target.send_many(pinger, [wrong_id, pong[:-1], pong + b"x", b"", pong[:11]])
            done = pinging.end()
    assert done.code == 1
    assert done.event("lost")["number"] == 1


def test_a_connection_that_ends_is_a_loss_and_it_connects_again(relay: RelayThread) -> None:
    with command("ping", relay.url, "-c3", "-i", 0.3, "--json") as pinging:
        pinging.wait_for_out('"number": 1')
        relay.cut()
        done = pinging.end()
    assert done.code == 0
    assert done.events[-2]["type"] == "pong"


def test_ctrl_c_prints_the_statistics(relay: RelayThread) -> None:
    with command("ping", relay.url, "-c", 0, "-i", 60) as pinging:
        pinging.wait_for_out("number=1 ")  # no other ping is under way
        pinging.interrupt()
        done = pinging.end()
    assert done.code == 130
    assert " received, 0.0% lost; min " in done.out.splitlines()[-1]


def test_sigterm_prints_the_statistics_and_exits_143(relay: RelayThread) -> None:
    with command("ping", relay.url, "-c", 0, "-i", 60) as pinging:
        pinging.wait_for_out("number=1 ")  # no other ping is under way
        pinging.popen.terminate()
        done = pinging.end()
    assert done.code == 143
    assert " received, 0.0% lost; min " in done.out.splitlines()[-1]


def test_a_silent_relay_is_a_loss(relay: RelayThread) -> None:
    with command("ping", relay.url, "-c2", "-i", 0.5, "--timeout", 0.1) as pinging:
        pinging.wait_for_out("number=1 ")
        relay.freeze()
        done = pinging.end()
        relay.thaw()
    assert done.code == 0
    assert "number=2: no answer within 0.1 s" in done.err


def test_an_unreachable_relay_is_an_error_without_statistics(here: Here) -> None:
    done = here("ping", "http://127.0.0.1:1/derp")
    assert done.code == 1
    assert done.out == ""
    assert "nothing listens there" in done.err


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ([], "give the relay's URL"),
        (["http://h/derp", "-c", "-1"], "want 0 or more"),
        (["http://h/derp", "-c", "x"], "want a whole number"),
        (["http://h/derp", "-i", "-1"], "want 0 or more seconds"),
        (["http://h/derp", "-i", "nan"], "want 0 or more seconds"),
        (["http://h/derp", "-i", "x"], "want a number of seconds"),
        (["http://h/derp", "--timeout", "6"], "want 0.001 to 5 seconds"),
        (["-count=5", "http://h/derp"], "write --count=5"),
    ],
)
def test_a_wrong_command_line_is_exit_status_2(here: Here, args: list[str], expected: str) -> None:
    done = here("ping", *args)
    assert done.code == 2
    assert expected in done.err


@pytest.mark.parametrize(("count", "want"), [(1, 1), (99, 99), (100, 99), (101, 100), (1000, 990)])
def test_the_p99_of_100_is_the_99th(count: int, want: int) -> None:
    assert _percentile([float(n) for n in range(count, 0, -1)], 0.99) == want


def test_it_works_without_uvloop(relay: RelayThread) -> None:
    blocked = "import sys; sys.modules['uvloop'] = None; sys.argv[0] = 'pyderp'; "
    blocked += "from pyderp.cli.main import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", blocked, "ping", relay.url, "-c1"],
        capture_output=True, timeout=BOUND, check=True,
    )  # fmt: skip
    assert b"1 received" in done.stdout


# The packets

ID = b"12345678"
PING = make_ping(ID, 0x0102030405060708)


def test_the_layout_of_a_packet() -> None:
    assert bytes.fromhex("7079646572700070696e67 3132333435363738 0102030405060708") == PING
    assert pong_for_untrusted(PING) == PING.replace(b"ping", b"pong")


def test_a_pong_has_the_id_of_its_ping() -> None:
    pong = pong_for_untrusted(PING)
    assert pong is not None
    assert pong_id_untrusted(pong) == ID
    assert len(ID) == ID_LEN


@pytest.mark.parametrize("packet", [b"", PING[:-1], PING + b"x", b"x" + PING[1:], PROBE])
def test_only_a_ping_is_answered(packet: bytes) -> None:
    assert pong_for_untrusted(packet) is None
    assert pong_id_untrusted(packet) is None


def test_a_pong_is_not_answered() -> None:
    pong = pong_for_untrusted(PING)
    assert pong is not None
    assert pong_for_untrusted(pong) is None
    assert pong_id_untrusted(PING) is None


def test_a_probe_looks_like_disco() -> None:
    assert looks_like_disco(PROBE)
    assert not looks_like_disco(PROBE[:-1])
