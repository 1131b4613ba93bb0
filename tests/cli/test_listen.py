"""`pyderp listen`: its output, its answers, reconnects, and how it ends."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import pytest

from pyderp import ClientConfig, NetworkSettings, NodePrivate, ReceivedPacket, blocking
from pyderp.cli.ping import PROBE, make_ping, pong_for_untrusted
from pyderp.keys import NodePublic
from pyderp.testing import RelayThread
from pyderp.wire.frames import pack_health, pack_peer_gone, pack_received_packet

from .commands import Done, command, listening, run

Here: TypeAlias = Callable[..., Done]

DIRECT = ClientConfig(network=NetworkSettings())
BOUND = 10.0
PING = make_ping(b"12345678", 1)


def peer(relay: RelayThread) -> blocking.Client:
    return blocking.Client.for_url(relay.url, config=DIRECT)


def test_packets_are_printed_a_line_each_up_to_the_count(relay: RelayThread) -> None:
    with listening(relay.url, "--count", 3) as (listener, key), peer(relay) as sender:
        sender.send_many(NodePublic.parse(key), [b"hello", b"", b"\x1b[31m\xff\n"])
        done = listener.end()
        assert done.code == 0
        me = sender.self_public_key
        assert done.out == f"{me} hello\n{me} \n{me} \\x1b[31m\\xff\\n\n"


def test_json_has_an_object_a_line(relay: RelayThread) -> None:
    with listening(relay.url, "--count", 1, "--json") as (listener, key), peer(relay) as sender:
        data = bytes(range(256))
        sender.send(NodePublic.parse(key), data)
        done = listener.end()
        assert [event["type"] for event in done.events] == ["listening", "connected", "packet"]
        assert done.event("listening")["key"] == key
        assert done.event("connected")["relay"] == str(relay.public_key)
        packet = done.event("packet")
        assert base64.b64decode(packet["data"]) == data
        assert packet["source"] == str(sender.self_public_key)
        assert "text" not in packet


def test_its_key_can_be_kept(relay: RelayThread, tmp_path: Path) -> None:
    key = NodePrivate.generate()
    path = tmp_path / "key"
    path.write_text(key.to_text())
    with listening(relay.url, "--key", path) as (_, shown):
        assert shown == str(key.public)
    with command("listen", relay.url, PYDERP_KEY=str(path)) as listener:
        listener.wait_for(f"listening as {key.public}")


def test_pings_are_answered_and_not_printed(relay: RelayThread) -> None:
    with listening(relay.url, "--count", 1) as (listener, key), peer(relay) as sender:
        sender.send_many(NodePublic.parse(key), [PROBE, PING, b"x"])
        sender.recv(BOUND)
        pong = pong_for_untrusted(PING)
        assert pong is not None
        assert sender.recv(BOUND) == ReceivedPacket(NodePublic.parse(key), pong)
        assert listener.end().out == f"{sender.self_public_key} x\n"


def test_without_echo_pings_are_packets_like_others(relay: RelayThread) -> None:
    with (
        listening(relay.url, "--count", 1, "--no-echo") as (listener, key),
        peer(relay) as sender,
    ):
        sender.send(NodePublic.parse(key), PING)
        assert " pyderp\\x00ping12345678" in listener.end().out
        # A pong would have come before the packet that the sender now sends to itself.
        sender.send(sender.self_public_key, b"last")
        received = iter(lambda: sender.recv(BOUND), None)
        packets = (each.data for each in received if isinstance(each, ReceivedPacket))
        assert next(packets) == b"last"


def test_sealed_opens_sealed_packets_and_refuses_others(relay: RelayThread) -> None:
    with (
        listening(relay.url, "--count", 1, "--sealed") as (listener, key),
        peer(relay) as sender,
    ):
        to = NodePublic.parse(key)
        sealed = sender.sealed(to)
        packet = sealed.seal(b"secret")
        sender.send_many(to, [b"in the clear", packet[:-1] + b"x", packet])
        done = listener.end()
        assert done.out == f"{sender.self_public_key} secret\n"
        assert "refused a packet of nodekey:" in done.err
        assert "not a sealed packet" in done.err
        assert "forged or damaged" in done.err


def test_a_source_that_is_no_key_is_refused(relay: RelayThread) -> None:
    with listening(relay.url, "--sealed", "--count", 1) as (listener, key), peer(relay) as sender:
        me = NodePublic.parse(key)
        # Only the relay can send such a frame.
        forged = pack_received_packet(NodePublic(bytes(32)), b"PDS\x01" + bytes(100))
        assert relay.inject(forged, client=me) == 1
        listener.wait_for(r"refused a packet of nodekey:0{64}: no secret can be shared")
        sender.sealed(me).send(b"x")
        assert listener.end().code == 0


def test_messages_of_the_relay_go_to_standard_error(relay: RelayThread) -> None:
    with listening(relay.url, "--json") as (listener, key):
        me = NodePublic.parse(key)
        gone = NodePrivate.generate().public
        for frame in (
            pack_health("too \x1b[1m loud"),
            pack_health(""),
            pack_peer_gone(gone, 0),
            pack_peer_gone(gone, 200),
        ):
            relay.inject(frame, client=me)
        listener.wait_for(r"the relay reports: too \\x1b\[1m loud\n")
        listener.wait_for("healthy again")
        listener.wait_for(f"{gone} is gone .disconnected.")
        listener.wait_for(f"{gone} is gone .reason 200.")
        listener.interrupt()
        done = listener.end()
        assert [e["problem"] for e in done.events if e["type"] == "health"] == [
            "too \x1b[1m loud", "",
        ]  # fmt: skip
        assert [e["reason"] for e in done.events if e["type"] == "peer_gone"] == [
            "disconnected", "reason 200",
        ]  # fmt: skip


def test_it_reconnects_and_prints_so(relay: RelayThread) -> None:
    with listening(relay.url, "--count", 1) as (listener, key), peer(relay) as sender:
        relay.cut(client=NodePublic.parse(key))
        listener.wait_for("connecting again in")
        listener.wait_for("(?s)connected to .*connected to ")
        sender.send(NodePublic.parse(key), b"after")
        assert listener.end().out == f"{sender.self_public_key} after\n"


def test_the_end_of_a_connection_is_an_object(relay: RelayThread) -> None:
    with listening(relay.url, "--json") as (listener, key):
        relay.cut(client=NodePublic.parse(key))
        listener.wait_for("(?s)connected to .*connected to ")
        listener.interrupt()
        done = listener.end()
    assert done.event("disconnected")["reason"] in done.err
    kinds = [event["type"] for event in done.events]
    assert kinds == ["listening", "connected", "disconnected", "connected"]


def test_a_restart_is_reported(relay: RelayThread) -> None:
    with listening(relay.url, "--json") as (listener, _):
        relay.restart()
        listener.wait_for("the relay restarts; connecting again in")
        listener.wait_for("(?s)connected to .*connected to ")
        listener.interrupt()
        done = listener.end()
        assert done.event("restarting")["try_for"] == 60
        assert [e["generation"] for e in done.events if e["type"] == "connected"] == [1, 2]


# Ends


def test_ctrl_c_exits_130_without_output(relay: RelayThread) -> None:
    with listening(relay.url) as (listener, _):
        listener.interrupt()
        done = listener.end()
        assert done.code == 130
        assert done.err.splitlines()[-1].startswith("pyderp: connected to ")


def test_sigterm_exits_143_without_output(relay: RelayThread) -> None:
    with listening(relay.url) as (listener, _):
        listener.popen.terminate()
        done = listener.end()
        assert done.code == 143
        assert done.err.splitlines()[-1].startswith("pyderp: connected to ")


@pytest.mark.parametrize("count", [[], ["--count", 1]])
def test_a_time_limit_ends_it(relay: RelayThread, here: Here, count: list[object]) -> None:
    done = here("listen", relay.url, "--timeout", 0.2, *count)
    assert done.code == (1 if count else 0)
    assert ("0 of 1 packet came within 0.2 s" in done.err) == bool(count)


def test_a_closed_pipe_is_a_quiet_end(relay: RelayThread) -> None:
    with listening(relay.url) as (listener, key), peer(relay) as sender:
        assert listener.popen.stdout is not None
        listener.popen.stdout.close()
        listener.popen.stdout = None
        sender.send(NodePublic.parse(key), b"x")
        done = listener.end()
        assert done.code == 1
        assert "BrokenPipe" not in done.err


def test_an_absent_relay_is_reported_at_once(here: Here) -> None:
    done = here("listen", "http://127.0.0.1:1/derp", "--json")
    assert done.code == 1
    event = json.loads(done.out.splitlines()[-1])
    assert event["type"] == "error"
    assert "Connection refused" in event["error"]
    assert event["advice"] == [
        "nothing listens there: check host and port, and that the relay runs"
    ]
    assert f"pyderp: {event['advice'][0]}\n" in done.err


def test_help_has_examples_that_are_sealed_where_it_matters(here: Here) -> None:
    text = here("listen", "--help").out
    assert "--key me.key --sealed" in text


def test_verbose_prints_logs(relay: RelayThread) -> None:
    done = run("ping", relay.url, "-c1", "-v")
    assert f"INFO connecting to {relay.url}\n" in done.err
    assert "INFO" not in run("ping", relay.url, "-c1").err


def test_flags_can_be_in_the_environment(relay: RelayThread) -> None:
    with command("listen", relay.url, TS_DEBUG_DERP_WS_CLIENT="1") as listener:
        listener.wait_for("connecting websocket to")
        listener.wait_for("connected to")
