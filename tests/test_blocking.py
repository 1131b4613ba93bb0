"""The client without `async`: in scripts and threads, on Ctrl-C, after a fork."""

from __future__ import annotations

import asyncio
import inspect
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

import pyderp
from pyderp import (
    ClientClosed,
    ClientConfig,
    ConfigError,
    ConnectError,
    ConnectionClosed,
    LocalProtocolError,
    MeshKey,
    NetworkSettings,
    NodePrivate,
    NotConnected,
    PeerPresent,
    ReceivedPacket,
    RelayConfig,
    SealError,
    ServerInfo,
    blocking,
)
from pyderp.blocking import thread
from pyderp.net.streams import Stream
from pyderp.testing import RelayThread

DIRECT = ClientConfig(network=NetworkSettings())
BOUND = 10.0


@pytest.fixture
def relay() -> Iterator[RelayThread]:
    with RelayThread() as relay:
        yield relay


@pytest.fixture
def make(relay: RelayThread) -> Iterator[Callable[[], blocking.Client]]:
    """Makes clients that are logged in and have received their ServerInfo."""
    made: list[blocking.Client] = []

    def one() -> blocking.Client:
        client = blocking.Client.for_url(relay.url, config=DIRECT)
        made.append(client)
        assert isinstance(client.recv(BOUND), ServerInfo)
        return client

    yield one
    for client in made:
        client.close()


Make = Callable[[], blocking.Client]


def packet(client: blocking.Client) -> bytes:
    message = client.recv(BOUND)
    assert isinstance(message, ReceivedPacket)
    return message.data


def run_python(code: str, *args: str) -> str:
    """Run a script with warnings as errors; returns its output."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-X", "dev", "-c", code, *args],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    # On a busy machine asyncio, which is in its debug mode, finds callbacks slow.
    slow = re.compile(r"Executing <.*> took \d+\.\d+ seconds\n")
    assert slow.sub("", done.stderr) == ""
    return done.stdout


# Calls


def test_packets_go_from_client_to_client(make: Make) -> None:
    one, other = make(), make()
    one.send(other.self_public_key, b"hello")
    assert other.recv(BOUND) == ReceivedPacket(one.self_public_key, b"hello")
    other.send_many(one.self_public_key, (bytes([n]) for n in range(5)))
    found: list[bytes] = []
    while len(found) < 5:
        found += [m.data for m in one.receive_many(BOUND) if isinstance(m, ReceivedPacket)]
    assert found == [bytes([n]) for n in range(5)]
    assert one.stats.packets_received == 5


def test_iterating_reconnects_and_ends_when_the_client_is_closed(
    make: Make, relay: RelayThread
) -> None:
    client, other = make(), make()
    assert relay.cut(client=client.self_public_key) == 1
    messages = iter(client)
    assert isinstance(next(messages), ServerInfo)
    other.send(client.self_public_key, b"after")
    assert next(messages) == ReceivedPacket(other.self_public_key, b"after")
    assert client.generation == 2
    rest = client.messages()
    client.close()
    assert list(rest) == []


def test_without_reconnect_the_end_of_the_connection_is_raised(
    make: Make, relay: RelayThread
) -> None:
    client = make()
    relay.cut()
    with pytest.raises(ConnectionClosed):
        next(client.messages(reconnect=False))
    assert not client.connected


def test_attributes_are_those_of_the_client(make: Make, relay: RelayThread) -> None:
    key = NodePrivate.generate()
    with blocking.Client.for_region(relay.region, private_key=key) as client:
        assert client.self_public_key == key.public
        assert client.server_public_key is None
        assert client.connection_state == "not connected"
        assert str(client).startswith("<pyderp.blocking.Client  url=")
        assert repr(client).startswith(f"<pyderp.blocking.Client {key.public.short()}")
        with pytest.raises(NotConnected):
            client.ping()
        with pytest.raises(NotConnected):
            _ = client.local_address
    client = make()
    assert client.connected
    assert client.connection_state == "connected"
    assert client.server_public_key == relay.public_key
    assert str(client) == f"<pyderp.blocking.Client {relay.public_key.short()} url={relay.url}>"
    assert client.tls_state is None
    assert client.local_address is not None
    assert client.local_address[0] == "127.0.0.1"
    assert 0 < client.ping() < BOUND
    client.note_preferred(True)
    client.set_can_ack_pings(True)
    client.send_ping(b"12345678")
    assert client.recv(BOUND) == pyderp.Pong(b"12345678")


def test_sealed_packets_are_for_the_peer_alone(make: Make) -> None:
    one, other = make(), make()
    sealed = one.sealed(other.self_public_key)
    sealed.send(b"secret")
    data = packet(other)
    assert b"secret" not in data
    opener = other.sealed(one.self_public_key)
    assert opener.open_untrusted(data) == b"secret"
    with pytest.raises(SealError):
        other.sealed(one.self_public_key).open_untrusted(data)  # the same object: a replay
    assert len(sealed.seal(b"")) == sealed.overhead
    assert sealed.peer == other.self_public_key


def test_the_mesh_key_grants_mesh_rights() -> None:
    mesh_key = MeshKey.parse("ab" * 32)
    config = ClientConfig(network=NetworkSettings(), mesh_key=mesh_key)
    with (
        RelayThread(RelayConfig(mesh_key=mesh_key)) as relay,
        blocking.Client.for_url(relay.url, config=config) as mesh,
        blocking.Client.for_url(relay.url, config=DIRECT) as victim,
    ):
        assert isinstance(victim.recv(BOUND), ServerInfo)
        mesh.watch_connection_changes()
        seen = {m.peer for m in (mesh.recv(BOUND) for _ in range(3)) if isinstance(m, PeerPresent)}
        assert seen == {mesh.self_public_key, victim.self_public_key}
        source = NodePrivate.generate().public
        mesh.forward_packet(source, victim.self_public_key, b"forwarded")
        assert victim.recv(BOUND) == ReceivedPacket(source, b"forwarded")
        mesh.close_peer(victim.self_public_key)
        with pytest.raises(ConnectionClosed):
            victim.recv(BOUND)


def test_errors_are_those_of_the_client() -> None:
    with pytest.raises(ConfigError):
        blocking.Client.for_url("ftp://relay.example.com/")
    with blocking.Client.for_url("http://127.0.0.1:1/derp", config=DIRECT) as client:
        with pytest.raises(ConnectError) as caught:
            client.connect()
        assert caught.value.attempts
        with pytest.raises(LocalProtocolError):
            client.send(client.self_public_key, bytes(65537))
    for call in (client.connect, client.recv, client.ping):
        with pytest.raises(ClientClosed):
            call()
    client.close()


def test_every_call_of_the_client_exists() -> None:
    def names(kind: type) -> set[str]:
        return {name for name in dir(kind) if not name.startswith("_")}

    missing = names(pyderp.Client) - names(blocking.Client)
    # Streams and events belong to an event loop; the generation is a separate attribute;
    # packed frames are for relays only.
    assert missing == {
        "aclose", "forward_frames", "over_stream", "recv_with_generation", "wait_closed",
    }  # fmt: skip
    assert names(blocking.Client) - names(pyderp.Client) == {"close"}
    assert names(pyderp.SealedPeer) <= names(blocking.SealedPeer)
    for name in names(pyderp.Client) - missing - {"recv", "receive_many"}:
        wanted, found = (getattr(kind, name) for kind in (pyderp.Client, blocking.Client))
        if inspect.isfunction(wanted):
            assert [*inspect.signature(wanted).parameters] == [*inspect.signature(found).parameters]


# Time limits


def test_a_time_limit_loses_no_message(make: Make) -> None:
    """At whatever moment the limit passes, each packet is received, once and in order."""
    one, other = make(), make()
    count = 300

    def send() -> None:
        for number in range(count):
            one.send(other.self_public_key, number.to_bytes(2, "big"))

    sender = threading.Thread(target=send)
    sender.start()
    found: list[bytes] = []
    timeouts = 0
    end = time.monotonic() + BOUND
    while len(found) < count and time.monotonic() < end:
        try:
            message = other.recv(timeout=timeouts % 5 * 0.0002)
        except TimeoutError:
            timeouts += 1
        else:
            assert isinstance(message, ReceivedPacket)
            found.append(message.data)
    sender.join()
    assert found == [number.to_bytes(2, "big") for number in range(count)]
    assert timeouts > 0


def test_a_receive_that_timed_out_leaves_the_client_usable(make: Make) -> None:
    one, other = make(), make()
    with pytest.raises(TimeoutError):
        other.recv(timeout=0.01)
    with pytest.raises(TimeoutError):
        other.receive_many(timeout=0)
    one.send(other.self_public_key, b"x")
    assert packet(other) == b"x"


# Ctrl-C


class Interrupt(BaseException):
    """Raised by a signal handler, as KeyboardInterrupt is by that of Ctrl-C."""


def interrupt_after(seconds: float, call: Callable[[], object]) -> None:
    """Make a call in this thread that only a signal ends."""

    def handler(*_: object) -> None:
        raise Interrupt

    before = signal.signal(signal.SIGALRM, handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, seconds)
        with pytest.raises(Interrupt):
            call()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_ctrl_c_ends_the_call_and_the_client_stays_usable(make: Make) -> None:
    one, other = make(), make()
    interrupt_after(0.05, other.recv)
    interrupt_after(0.05, other.receive_many)
    interrupt_after(0.05, lambda: list(other))
    one.send(other.self_public_key, b"after")
    assert packet(other) == b"after"


def test_ctrl_c_while_connecting_ends_the_attempt(relay: RelayThread) -> None:
    relay.freeze()
    with blocking.Client.for_url(relay.url, config=DIRECT) as client:
        interrupt_after(0.05, client.connect)
        assert client.connection_state == "not connected"
        relay.thaw()
        client.connect()


@pytest.mark.parametrize("take", ["recv", "receive_many", "messages"])
def test_a_message_that_came_with_ctrl_c_is_the_next_one(
    make: Make, monkeypatch: pytest.MonkeyPatch, take: str
) -> None:
    one, other = make(), make()
    one.send(other.self_public_key, b"first")
    wait = thread.Call.wait
    calls: dict[str, Callable[[], object]] = {
        "recv": other.recv,
        "receive_many": other.receive_many,
        "messages": lambda: next(other.messages()),
    }

    def interrupted(call: thread.Call[object]) -> None:
        wait(call)
        monkeypatch.undo()
        raise Interrupt  # the result exists already

    monkeypatch.setattr(thread.Call, "wait", interrupted)
    with pytest.raises(Interrupt):
        calls[take]()
    assert packet(other) == b"first"


def test_ctrl_c_before_a_call_has_begun_does_not_hang(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = make()
    loop = thread.shared.get().loop
    schedule = loop.call_soon_threadsafe

    def interrupted(*_: object) -> None:
        monkeypatch.setattr(loop, "call_soon_threadsafe", schedule)
        raise Interrupt

    monkeypatch.setattr(loop, "call_soon_threadsafe", interrupted)
    with pytest.raises(Interrupt):
        client.ping()
    assert client.ping() > 0


def test_ctrl_c_in_a_script_is_a_keyboard_interrupt(relay: RelayThread) -> None:
    code = """
import os, signal, sys, threading
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have it ignored
from pyderp import blocking
with blocking.Client.for_url(sys.argv[1]) as client:
    client.recv(10)
    threading.Timer(0.1, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    try:
        client.recv()
    except KeyboardInterrupt:
        print("interrupted", client.ping() > 0)
"""
    assert run_python(code, relay.url) == "interrupted True\n"


# Threads and loops


def test_a_client_works_beside_a_running_loop(relay: RelayThread) -> None:
    async def main() -> None:
        with (
            blocking.Client.for_url(relay.url, config=DIRECT) as one,
            blocking.Client.for_url(relay.url, config=DIRECT) as other,
        ):
            other.connect()
            relay.wait_for_clients(1)
            one.send(other.self_public_key, b"hello")
            assert isinstance(other.recv(BOUND), ServerInfo)
            assert packet(other) == b"hello"

    asyncio.run(main())


def test_threads_share_a_client(make: Make) -> None:
    """Some send and some receive: each packet is received by one of them."""
    one, other = make(), make()
    count = 25

    def send(first: int) -> None:
        for number in range(first, first + count):
            one.send(other.self_public_key, bytes([number]))

    with ThreadPoolExecutor(8) as pool:
        receiving = [pool.submit(lambda: [packet(other) for _ in range(count)]) for _ in range(4)]
        for first in range(0, 4 * count, count):
            pool.submit(send, first)
        found = sorted(data for future in receiving for data in future.result(BOUND))
    assert found == [bytes([n]) for n in range(4 * count)]


def test_closing_ends_a_receive_in_another_thread(make: Make) -> None:
    client = make()
    with ThreadPoolExecutor(1) as pool:
        receiving = pool.submit(client.recv)
        client.close()
        with pytest.raises(ClientClosed):
            receiving.result(BOUND)


def test_a_call_from_the_clients_own_loop_is_refused(relay: RelayThread) -> None:
    clients: list[blocking.Client] = []

    async def dialer(host: str, port: int) -> Stream:
        clients[0].connect()
        raise AssertionError

    config = ClientConfig(network=NetworkSettings(), dialer=dialer)
    with blocking.Client.for_url(relay.url, config=config) as client:
        clients.append(client)
        with pytest.raises(ConnectError, match="its own event loop"):
            client.connect()


# Sending without waiting


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Once called, every call fails that waits for the background thread."""

    def forbid() -> None:
        def refused(*_: object) -> None:
            raise AssertionError("it waits")

        monkeypatch.setattr(thread.LoopThread, "call", refused)

    return forbid


def test_a_connected_client_sends_without_waiting(
    make: Make, no_waiting: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = make(), make()
    data = bytearray(b"first")
    no_waiting()
    one.send(other.self_public_key, data)  # type: ignore[arg-type]  # any bytes-like object does
    data[:] = b"later"  # a later change of the buffer does not count
    one.sealed(other.self_public_key).send(b"second")
    monkeypatch.undo()
    assert packet(other) == b"first"
    assert other.sealed(one.self_public_key).open_untrusted(packet(other)) == b"second"


def test_the_order_is_that_of_the_calls(make: Make) -> None:
    """Of calls that wait for the thread and calls that do not."""
    one, other = make(), make()
    key = other.self_public_key
    wanted = []
    for n in range(0, 300, 3):
        first, second, third = (n.to_bytes(2) for n in range(n, n + 3))
        wanted += [first, second, third]
        one.send(key, first)
        if n % 2:
            one.send_many(key, [second, third])
        else:
            one.send(key, second, reconnect=True)
            one.send(key, third)
        if n % 10 == 0:
            assert [packet(other) for _ in wanted] == wanted
            wanted.clear()


def test_wrong_use_is_refused_by_the_call_itself(make: Make) -> None:
    client = make()
    with pytest.raises(LocalProtocolError, match="packet too big"):
        client.send(client.self_public_key, bytes(65537))
    with pytest.raises(TypeError, match=r"NodePublic\.parse"):
        client.send(str(client.self_public_key), b"x")  # type: ignore[arg-type]
    client.close()
    with pytest.raises(ClientClosed):
        client.send(client.self_public_key, b"x")


def hold_flushes(monkeypatch: pytest.MonkeyPatch, one: blocking.Client) -> list[Callable[[], None]]:
    """Hold back flushes of the loop; returns the list of held ones."""
    loop = thread.shared.get().loop
    held: list[Callable[[], None]] = []
    schedule = loop.call_soon_threadsafe

    def flush() -> None:
        schedule(one._outbox.flush)

    def hold(callback: Callable[..., object], *args: object) -> None:
        if callback == one._outbox.flush:
            held.append(flush)
        else:
            schedule(callback, *args)

    monkeypatch.setattr(loop, "call_soon_threadsafe", hold)
    return held


@pytest.mark.parametrize("receives", [False, True])
def test_the_next_call_raises_that_the_connection_had_ended(
    make: Make, relay: RelayThread, monkeypatch: pytest.MonkeyPatch, receives: bool
) -> None:
    """Once, also if a receiver got the error before, or after."""
    one, other = make(), make()
    held = hold_flushes(monkeypatch, one)
    one.send(other.self_public_key, b"lost")
    relay.cut(client=one.self_public_key)
    if receives:
        with pytest.raises(ConnectionClosed):
            one.recv(BOUND)
    else:
        relay.wait_for_clients(1)
        while one.connected:
            pass
    (flush,) = held
    flush()
    monkeypatch.undo()
    with pytest.raises(ConnectionClosed, match="the next call connects again"):
        one.send(other.self_public_key, b"refused")
    one.send(other.self_public_key, b"arrives")
    assert packet(other) == b"arrives"
    assert one.generation == 2


def test_queued_packets_leave_by_the_present_connection(
    make: Make, relay: RelayThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = make(), make()
    held = hold_flushes(monkeypatch, one)
    one.send(other.self_public_key, b"queued")
    relay.cut(client=one.self_public_key)
    with pytest.raises(ConnectionClosed):
        one.recv(BOUND)
    assert isinstance(one.recv(BOUND), ServerInfo)
    held[0]()
    assert packet(other) == b"queued"


def test_queued_bytes_are_bounded(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until the loop flushes them, about 64 KiB are taken at most."""
    one, other = make(), make()
    hold_flushes(monkeypatch, one)
    taken = 0
    loop = thread.shared.get().loop
    while one._outbox.take(loop, other.self_public_key, bytes(1000)):
        taken += 1
    assert 60 <= taken <= 70


def test_ctrl_c_in_a_send_leaves_nothing_behind(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The packet was taken: it is sent, and so are those after it."""
    one, other = make(), make()
    loop = thread.shared.get().loop
    schedule = loop.call_soon_threadsafe

    def interrupted(*_: object) -> None:
        monkeypatch.setattr(loop, "call_soon_threadsafe", schedule)
        raise Interrupt

    monkeypatch.setattr(loop, "call_soon_threadsafe", interrupted)
    with pytest.raises(Interrupt):
        one.send(other.self_public_key, b"first")
    assert packet(other) == b"first"
    one.send(other.self_public_key, b"second")
    assert packet(other) == b"second"


def test_threads_that_send_side_by_side_lose_nothing(make: Make) -> None:
    one, other = make(), make()
    key = other.self_public_key

    def send(n: int) -> None:
        for k in range(200):
            one.send(key, bytes([n, k]))
            while k % 20 == 0 and not one.ping():
                pass

    found: list[bytes] = []
    with ThreadPoolExecutor(4) as pool:
        sending = [pool.submit(send, n) for n in range(4)]
        while len(found) < 800:
            found += [m.data for m in other.receive_many(BOUND) if isinstance(m, ReceivedPacket)]
        for each in sending:
            each.result(BOUND)
    for n in range(4):
        assert [data for data in found if data[0] == n] == [bytes([n, k]) for k in range(200)]


def test_an_error_of_a_time_limit_names_the_call(make: Make) -> None:
    client = make()
    for call in (client.recv, client.receive_many):
        with pytest.raises(TimeoutError, match=r"^no message within 0\.01 s$"):
            call(0.01)


# Ends


def test_an_unclosed_client_is_reported_and_closed(relay: RelayThread) -> None:
    client = blocking.Client.for_url(relay.url, config=DIRECT)
    client.connect()
    relay.wait_for_clients(1)
    with pytest.warns(ResourceWarning, match=r"unclosed <pyderp\.blocking\.Client"):
        del client
    relay.wait_for_clients(0)


def test_a_script_that_closes_nothing_ends_quietly_and_sends_all(
    make: Make, relay: RelayThread
) -> None:
    client = make()
    code = """
import sys
from pyderp import NodePublic, blocking
client = blocking.Client.for_url(sys.argv[1])
client.send(NodePublic.parse(sys.argv[2]), b"last words")
never_used = blocking.Client.for_url(sys.argv[1])
"""
    assert run_python(code, relay.url, str(client.self_public_key)) == ""
    assert packet(client) == b"last words"
    relay.wait_for_clients(1)


def test_a_thread_that_still_receives_does_not_keep_the_process(relay: RelayThread) -> None:
    code = """
import sys, threading
from pyderp import ClientClosed, blocking
client = blocking.Client.for_url(sys.argv[1])
client.recv(10)
def receive():
    try:
        client.recv()
    except ClientClosed:
        pass
threading.Thread(target=receive, daemon=True).start()
"""
    run_python(code, relay.url)
    relay.wait_for_clients(0)


def test_after_a_fork_new_clients_work_in_both(relay: RelayThread) -> None:
    code = """
import os, sys
from pyderp import LocalProtocolError, blocking
url = sys.argv[1]
used, unused = blocking.Client.for_url(url), blocking.Client.for_url(url)
used.connect()
child = os.fork()
if not child:
    try:
        used.ping()
    except LocalProtocolError as e:
        assert "another process" in str(e)
        used.close()
        unused.connect()
        with blocking.Client.for_url(url) as new:
            new.connect()
            assert new.ping() > 0
        unused.close()
        os._exit(0)
    os._exit(1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert used.ping() > 0
used.close()
unused.close()
"""
    run_python(code, relay.url)


LINUX_ONLY = ("fcntl", "termios", "resource", "pwd", "grp", "uvloop")


def test_only_portable_functions_are_needed(relay: RelayThread) -> None:
    code = f"""
import sys
for name in {LINUX_ONLY}:
    sys.modules[name] = None
import pyderp.blocking
with pyderp.blocking.Client.for_url(sys.argv[1]) as client:
    client.connect()
    print(client.ping() > 0)
"""
    assert run_python(code, relay.url) == "True\n"
