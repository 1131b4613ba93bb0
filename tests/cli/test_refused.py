"""A relay that does not admit the client's key: `listen`, `send` and `ping` exit 4."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import TypeAlias

import pytest

from pyderp import (
    AdmissionConfig,
    ClientConfig,
    NetworkSettings,
    NodePrivate,
    NodePublic,
    ReceivedPacket,
    RelayConfig,
    blocking,
)
from pyderp.testing import RelayThread

from .commands import Done, command

Here: TypeAlias = Callable[..., Done]

BOUND = 20.0
DIRECT = ClientConfig(network=NetworkSettings())
PEER = NodePrivate.generate().public
TEXT = "the relay took the login and closed the connection: it may not admit this key"


class Admission:
    """Whether clients are admitted, and how many have asked."""

    def __init__(self) -> None:
        self.open = False
        self.asked = 0
        self.third = threading.Event()

    def decide(self, key: NodePublic, address: str) -> bool:
        self.asked += 1
        if self.asked == 3:
            self.third.set()
        return self.open


@pytest.fixture
def admission() -> Admission:
    return Admission()


@pytest.fixture
def relay(admission: Admission) -> Iterator[RelayThread]:
    config = RelayConfig(admission=AdmissionConfig(decide=admission.decide, remember=0))
    with RelayThread(config) as relay:
        yield relay


@pytest.mark.parametrize(
    "args",
    [
        ("send", PEER, "-m", "x"),
        ("send", PEER, "-m", "x", "--wait", 0),
        ("send", PEER, "-m", "x", "--sealed", "--websocket"),
        ("ping",),
        ("ping", PEER),
        ("listen",),
        ("listen", "--timeout", 10),
    ],
    ids=["send", "send-no-wait", "send-websocket", "ping", "ping-peer", "listen", "listen-timeout"],
)
def test_a_refused_login_exits_4(
    relay: RelayThread, admission: Admission, here: Here, args: tuple[object, ...]
) -> None:
    """At once, after one login, and with advice."""
    done = here(args[0], relay.url, *args[1:], "--json")
    assert done.code == 4
    error = done.event("error")
    assert TEXT in error["error"]
    assert error["advice"] == [
        "ask the relay's operator whether it admits this key, which --key FILE keeps; the relay's "
        "log says why it closed the connection"
    ]
    assert "Traceback" not in done.err
    assert admission.asked <= 2


def test_send_reports_that_the_relay_refuses_a_later_login(
    relay: RelayThread, admission: Admission
) -> None:
    """No packet is sent to a relay that refuses, and logins are held back."""
    admission.open = True
    with blocking.Client.for_url(relay.url, config=DIRECT) as receiver:
        receiver.connect()
        flags = ("--wait", 0, "--timeout", 3, "--json")
        with command("send", relay.url, receiver.self_public_key, *flags) as sender:
            sender.feed(b"one\n")
            while not isinstance(message := receiver.recv(BOUND), ReceivedPacket):
                pass
            admission.open, admission.asked = False, 0
            relay.cut(client=message.source)
            assert admission.third.wait(BOUND)
            done = sender.end(b"two\n")
    assert done.code == 4
    assert TEXT in done.event("error")["error"]
    assert done.event("summary")["packets"] == 1
    assert admission.asked <= 10
