"""`pyderp send`: lines, chunks, sealed packets; and its exit status."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeAlias, cast

import pytest

from pyderp import (
    ClientConfig,
    ConnectError,
    ConnectionClosed,
    NetworkSettings,
    NodePrivate,
    ReceivedPacket,
    blocking,
)
from pyderp.cli.connect_options import ReportingClient
from pyderp.cli.output import Output
from pyderp.cli.ping import PROBE
from pyderp.cli.send import _Sender
from pyderp.keys import NodePublic
from pyderp.testing import RelayThread
from pyderp.wire.frames import pack_health, pack_peer_gone, pack_restarting

from .commands import Done, command, listening
from .commands import run as run_pyderp
from .process import running as relay_process

Here: TypeAlias = Callable[..., Done]

DIRECT = ClientConfig(network=NetworkSettings())
BOUND = 10.0
ABSENT = NodePrivate.generate().public


def peer(relay: RelayThread) -> blocking.Client:
    client = blocking.Client.for_url(relay.url, config=DIRECT)
    client.connect()
    client.recv(BOUND)
    return client


def received(client: blocking.Client) -> ReceivedPacket:
    """The next packet that is not a probe."""
    while True:
        message = client.recv(BOUND)
        if isinstance(message, ReceivedPacket) and message.data != PROBE:
            return message


def data_until(client: blocking.Client, last: bytes) -> list[bytes]:
    """All packets up to a given one, with probes."""
    found: list[bytes] = []
    while last not in found:
        message = client.recv(BOUND)
        if isinstance(message, ReceivedPacket):
            found.append(message.data)
    return found


def packet(client: blocking.Client) -> bytes:
    return received(client).data


def test_each_line_is_a_packet(relay: RelayThread) -> None:
    with peer(relay) as receiver:
        done = run_pyderp(
            *("send", relay.url, receiver.self_public_key, "--wait", 0.1),
            stdin=b"one\n\ntwo \xff\r\nunfinished",
        )
        assert done.code == 0
        assert [packet(receiver) for _ in range(4)] == [b"one", b"", b"two \xff\r", b"unfinished"]
        assert "4 packets, 19 bytes handed to the relay; DERP never confirms delivery" in done.err
        assert done.out == ""


def test_a_line_is_sent_as_soon_as_it_is_typed(relay: RelayThread) -> None:
    with peer(relay) as receiver, command("send", relay.url, receiver.self_public_key) as sender:
        sender.feed(b"fir")
        sender.feed(b"st\nsec")
        assert packet(receiver) == b"first"
        sender.feed(b"ond\n")
        assert packet(receiver) == b"second"
        assert sender.end().code == 0


def test_raw_cuts_input_into_packets(relay: RelayThread) -> None:
    data = bytes(range(256)) * 20
    with peer(relay) as receiver:
        assert (
            run_pyderp("send", relay.url, receiver.self_public_key, "--raw", stdin=data).code == 0
        )
        found = [packet(receiver)]
        while sum(map(len, found)) < len(data):
            found.append(packet(receiver))
        assert b"".join(found) == data
        assert max(map(len, found)) <= 1200


def test_a_message_can_be_an_argument(relay: RelayThread, here: Here) -> None:
    with peer(relay) as receiver:
        done = here(
            "send", relay.url, receiver.self_public_key, "-m", "two\nlines ü", "--wait", 0, "--json"
        )
        assert packet(receiver) == "two\nlines ü".encode()
        event = done.event("summary")
        del event["time"]
        assert event == {
            "type": "summary", "packets": 1, "bytes": 12, "dropped": 0, "disconnected": 0,
            "gone": False,
        }  # fmt: skip


def test_sealed_packets_are_opened_by_listen_and_not_by_the_relay(
    relay: RelayThread, here: Here
) -> None:
    with listening(relay.url, "--sealed", "--count", 1) as (listener, key):
        assert here("send", relay.url, key, "--sealed", "-m", "secret").code == 0
        assert listener.end().out.endswith(" secret\n")
    with peer(relay) as receiver:
        here("send", relay.url, receiver.self_public_key, "--sealed", "-m", "secret", "--wait", 0)
        assert b"secret" not in packet(receiver)


def test_a_line_too_long_is_refused_with_its_number(relay: RelayThread) -> None:
    with peer(relay) as receiver:
        done = run_pyderp(
            "send", relay.url, receiver.self_public_key, stdin=b"ok\n" + b"x" * 65537 + b"\n"
        )
        assert done.code == 1
        assert "line 2 is longer than a packet may be, 65536 bytes; --raw cuts" in done.err
        assert packet(receiver) == b"ok"


def test_an_endless_line_is_not_read_to_its_end(relay: RelayThread) -> None:
    with peer(relay) as receiver, command("send", relay.url, receiver.self_public_key) as sender:
        sender.feed(b"x" * 70_000)
        sender.wait_for("line 1 is longer than a packet may be")


# Exit status 3


@pytest.mark.parametrize("flags", [[], ["--sealed"], ["--websocket"]])
def test_an_absent_peer_is_exit_status_3(relay: RelayThread, here: Here, flags: list[str]) -> None:
    done = here("send", relay.url, ABSENT, "-m", "x", "--wait", 1, *flags)
    assert done.code == 3
    assert f"{ABSENT} is not at this relay: run pyderp listen there" in done.err


def test_waiting_for_input_ends_when_the_peer_is_absent(relay: RelayThread) -> None:
    with command("send", relay.url, ABSENT, "--json", "--wait", 1) as sender:
        sender.wait_for("nothing was sent, but nodekey:")
        assert sender.end().code == 3
        assert '"gone": true' in sender.out


def test_a_peer_that_leaves_meanwhile_is_exit_status_3(relay: RelayThread) -> None:
    with (
        peer(relay) as receiver,
        command("send", relay.url, receiver.self_public_key, "--wait", 1) as sender,
    ):
        sender.feed(b"first\n")
        assert packet(receiver) == b"first"
        receiver.close()
        relay.wait_for_clients(1)
        assert sender.end(b"second\n").code == 3


@pytest.mark.parametrize("flags", [[], ["--wait", 0]])
def test_the_peer_gets_the_packets_and_no_probes(
    relay: RelayThread, here: Here, flags: list[object]
) -> None:
    """Its program would take probes for packets."""
    assert here("send", relay.url, ABSENT, "-m", "x", *flags).code == 0
    with peer(relay) as receiver:
        for text in ("x", "y"):
            assert here("send", relay.url, receiver.self_public_key, "-m", text, *flags).code == 0
        assert data_until(receiver, b"y") == [b"x", b"y"]


def test_probes_are_sent_before_the_first_packet_and_after_the_last(
    relay: RelayThread, here: Here
) -> None:
    with peer(relay) as receiver:
        here("send", relay.url, receiver.self_public_key, "-m", "x", "--wait", 0.01)
        here("send", relay.url, receiver.self_public_key, "-m", "y")
        assert data_until(receiver, b"y") == [PROBE, b"x", PROBE, b"y"]


def test_the_end_of_another_peer_is_ignored(relay: RelayThread) -> None:
    with peer(relay) as receiver, command("send", relay.url, receiver.self_public_key) as sender:
        sender.feed(b"x\n")
        assert packet(receiver) == b"x"
        relay.inject(pack_peer_gone(ABSENT, 1))
        relay.inject(pack_health("too \x1b loud"))
        sender.wait_for(r"the relay reports: too \\x1b loud")
        assert sender.end().code == 0


# Failures


def test_a_cut_connection_is_replaced(relay: RelayThread) -> None:
    with peer(relay) as receiver, command("send", relay.url, receiver.self_public_key) as sender:
        sender.feed(b"first\n")
        assert relay.cut(client=received(receiver).source) == 1
        relay.wait_for_clients(1)
        sender.feed(b"second\n")
        assert packet(receiver) == b"second"
        assert sender.end().code == 0


class Broken(ReportingClient):
    """A client whose connection ends this many times, each time a packet is sent."""

    async def connect(self) -> None:
        """The connection exists."""

    async def admission(self) -> None:
        """The relay has answered."""

    times = 1
    sent = 0

    async def send(
        self, dst: NodePublic, data: bytes, *, reconnect: bool = False, within: float = 30.0
    ) -> None:
        self.sent += 1
        if self.sent <= self.times:
            raise ConnectionClosed("derp.Send: it broke")


async def test_a_packet_is_sent_until_a_connection_takes_it() -> None:
    client = Broken.for_url("http://127.0.0.1:1/derp", config=DIRECT)
    assert isinstance(client, Broken)
    client.times = 3
    await _Sender(client, Output(as_json=False), ABSENT, BOUND, None)._send(b"x")
    assert client.sent == 4


async def test_a_packet_that_no_connection_takes_is_given_up_after_a_time() -> None:
    client = Broken.for_url("http://127.0.0.1:1/derp", config=DIRECT)
    assert isinstance(client, Broken)
    client.times = 1_000_000
    sender = _Sender(client, Output(as_json=False), ABSENT, 0.2, None)
    with pytest.raises(ConnectError, match=r"took no packet for 0\.2 s: derp.Send: it broke"):
        await sender._send(b"x")
    assert client.sent > 2


def test_it_continues_when_the_relay_comes_back(tmp_path: Path) -> None:
    flags = ("--dev", "-c", tmp_path / "key", "--drain", 0)
    with relay_process(*flags, "-a", "127.0.0.1:0") as first:
        host, port = first.address()
        url = f"http://{host}:{port}/derp"
        with (
            blocking.Client.for_url(url, config=DIRECT) as receiver,
            command("send", url, receiver.self_public_key, "--wait", 0, "--json") as sender,
        ):
            receiver.connect()
            sender.feed(b"one\n")
            assert packet(receiver) == b"one"
            first.signal(signal.SIGTERM)
            first.end()
            sender.wait_for("connecting again; the last packets may be lost")
            sender.feed(b"two\n")
            with relay_process(*flags, "-a", f"{host}:{port}"):
                done = sender.end(b"three\n")
    assert done.code == 0
    assert done.event("disconnected")["reason"]
    summary = done.event("summary")
    assert (summary["packets"], summary["disconnected"]) == (3, 1)
    assert "disconnected once, and what was sent last before that may be lost" in done.err


def test_a_relay_that_stays_away_is_given_up_with_a_summary() -> None:
    with contextlib.ExitStack() as stack:
        with RelayThread() as relay:
            flags = ("--wait", 0, "--json", "--timeout", 0.5)
            sender = stack.enter_context(command("send", relay.url, ABSENT, *flags))
            sender.feed(b"one\n")
            while not relay.relay_counters.packets_received:
                time.sleep(0.01)
        done = sender.end(b"two\n")
    assert done.code == 1
    assert [event["type"] for event in done.events] == ["disconnected", "summary", "error"]
    assert "the relay took no packet for 0.5 s: " in done.event("error")["error"]
    assert done.event("error")["advice"][0].startswith("nothing listens there")


def test_a_peer_that_leaves_in_a_restart_is_not_gone(relay: RelayThread) -> None:
    with peer(relay) as receiver, command("send", relay.url, receiver.self_public_key) as sender:
        sender.feed(b"x\n")
        assert packet(receiver) == b"x"
        relay.inject(pack_restarting(0, 60_000))
        relay.inject(pack_peer_gone(receiver.self_public_key, 0))
        relay.inject(pack_health("here"))
        sender.wait_for("the relay reports: here")
        assert sender.end().code == 0


def test_a_relay_that_does_not_read_is_given_up(relay: RelayThread) -> None:
    with peer(relay) as receiver:
        flags = ("--timeout", 0.3, "--raw", "--wait", 0)
        with command("send", relay.url, receiver.self_public_key, *flags) as sender:
            sender.feed(b"x")
            packet(receiver)
            relay.freeze()
            done = sender.end(bytes(20_000_000))
            relay.thaw()
    assert done.code == 1
    assert "the relay took no packet for 0.3 s" in done.err
    assert "packets, " in done.err


def test_ctrl_c_while_reading_exits_130(relay: RelayThread) -> None:
    with peer(relay) as receiver, command("send", relay.url, receiver.self_public_key) as sender:
        sender.feed(b"x\n")
        packet(receiver)
        sender.interrupt()
        done = sender.end()
    assert done.code == 130
    assert done.err == (
        "pyderp: 1 packet, 1 byte handed to the relay; DERP never confirms delivery\n"
    )


def test_sigterm_exits_143_as_ctrl_c_exits_130(relay: RelayThread) -> None:
    with (
        peer(relay) as receiver,
        command("send", relay.url, receiver.self_public_key, "--json") as sender,
    ):
        sender.feed(b"x\n")
        packet(receiver)
        sender.popen.terminate()
        done = sender.end()
    assert done.code == 143
    assert done.event("summary")["packets"] == 1


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ([], "Missing argument"),
        (["http://127.0.0.1:1/derp"], "PEER is missing"),
        ([str(ABSENT)], "give the relay's URL, or --derp-map"),
        (["http://127.0.0.1:1/derp", "nodekey:12"], "want nodekey: and 64 hex digits, got 2"),
        (["http://127.0.0.1:1/derp", "someone"], "'someone' is not a peer"),
        (["http://127.0.0.1:1/derp", str(ABSENT), str(ABSENT)], "one peer too many"),
        (["http://127.0.0.1:1/derp", str(ABSENT), "-m", "x", "--raw"], "give one of them"),
        ([str(ABSENT), "--derp-map", "-"], "give --message as well"),
    ],
)
def test_a_wrong_command_line_is_exit_status_2(here: Here, args: list[str], expected: str) -> None:
    done = here("send", *args)
    assert done.code == 2
    assert expected in " ".join(done.err.replace("│", " ").split())


def test_the_summary_without_a_packet_claims_no_loss(capsys: pytest.CaptureFixture[str]) -> None:
    client = SimpleNamespace(stats=SimpleNamespace(packets_dropped=0))
    sender = _Sender(cast("Any", client), Output(as_json=False), ABSENT, 1.0, None, ended=2)
    assert sender._summary(gone=False) == 0
    assert capsys.readouterr().err == "pyderp: nothing was sent; disconnected 2 times\n"


def test_an_unusable_key_for_sealing_is_refused(relay: RelayThread, here: Here) -> None:
    done = here("send", relay.url, NodePublic(bytes(32)), "--sealed", "-m", "x")
    assert done.code == 1
    assert "no secret can be shared with key" in done.err


def test_help_says_that_delivery_is_not_confirmed(here: Here) -> None:
    text = here("send", "--help").out
    assert "DERP never confirms delivery" in text.replace("\n", " ")
    assert "--sealed --message hello" in text
