from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from pyderp import NodePublic
from pyderp.admission import AdmissionCounters, Cause, ClientIdentity, Verdict
from pyderp.admission.gate import Gate
from pyderp.config import AdmissionConfig
from pyderp.errors import ConfigError

from .fakes import CLOSE, STALL, FakeServer, Reply, Request, identity, key, response, serving

ALLOW = response(b'{"Allow":true}')
DENY = response(b'{"Allow":false}')
KNOWN = response(b"{}")
UNKNOWN = response(b"", "404 Not Found")
NOT_LISTED = f"peer {key(3)} not authorized (not in the allow file)"


@dataclass
class Decider:
    """An admission callback whose answers are futures that the test resolves."""

    asked: list[ClientIdentity] = field(default_factory=list)
    answers: list[asyncio.Future[bool]] = field(default_factory=list)

    async def __call__(self, key: NodePublic, address: str) -> bool:
        self.asked.append(ClientIdentity(key, address))
        self.answers.append(asyncio.get_running_loop().create_future())
        return await self.answers[-1]


@dataclass
class Relay:
    """The parts of a relay that a gate needs, and a clock."""

    connected: list[ClientIdentity] = field(default_factory=list)
    revoked: list[tuple[NodePublic, str | None, str]] = field(default_factory=list)
    closed: asyncio.Event = field(default_factory=asyncio.Event)
    now: float = 1000.0

    def revoke(self, key: NodePublic, address: str | None, reason: str) -> None:
        self.revoked.append((key, address, reason))
        self.connected = [
            each
            for each in self.connected
            if each.key != key or address not in (None, each.address)
        ]
        self.closed.set()

    @contextlib.asynccontextmanager
    async def gate(
        self, *, look: float = 3600, probe: float = 0, **settings: Any
    ) -> AsyncIterator[Gate]:
        config = AdmissionConfig(**{"recheck": 0} | settings)
        gate = Gate(
            config,
            live=lambda: self.connected,
            revoke=self.revoke,
            look=look,
            probe=probe,
            clock=lambda: self.now,
        )
        try:
            await gate.start()
            yield gate
        finally:
            await gate.aclose()


@pytest.fixture
def relay() -> Relay:
    return Relay()


def write_keys(path: Path, *keys: int) -> Path:
    path.write_text("".join(f"{key(n)} label {n}\n" for n in keys))
    return path


async def turns() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_without_sources_every_client_is_allowed(relay: Relay) -> None:
    async with relay.gate() as gate:
        assert gate.known(identity()) == Verdict(True)
        assert await gate.ask(identity()) == Verdict(True)
        assert gate.label(key(1)) == ""
        assert await gate.check_self() is None
        assert gate.counters == AdmissionCounters(allowed=2)


async def test_a_key_file_alone_answers_at_once(relay: Relay, tmp_path: Path) -> None:
    path = write_keys(tmp_path / "keys", 1, 2)
    async with relay.gate(keys_file=path) as gate:
        assert gate.known(identity(1)) == Verdict(True, label="label 1")
        assert gate.known(identity(3)) == Verdict(False, NOT_LISTED)
        assert await gate.ask(identity(3)) == Verdict(False, NOT_LISTED)
        assert (gate.label(key(2)), gate.label(key(3))) == ("label 2", "")
        assert gate.counters == AdmissionCounters(allowed=1, denied=2)


async def test_an_invalid_key_file_is_a_config_error_at_the_start(
    relay: Relay, tmp_path: Path
) -> None:
    path = tmp_path / "keys"
    path.write_text("nonsense\n")
    with pytest.raises(ConfigError, match=r"keys, line 1: not a node key"):
        async with relay.gate(keys_file=path):
            pass
    with pytest.raises(ConfigError, match="No such file"):
        async with relay.gate(keys_file=tmp_path / "none"):
            pass


def test_before_the_start_a_key_file_allows_no_client(relay: Relay, tmp_path: Path) -> None:
    config = AdmissionConfig(keys_file=write_keys(tmp_path / "keys", 1))
    gate = Gate(config, live=list, revoke=relay.revoke)
    verdict = gate.known(identity(1))
    assert verdict is not None
    assert not verdict.allowed


SOURCES = ["keys_file", "tailscaled", "url", "decide"]
REASONS = {
    None: "",
    "keys_file": f"peer {key(1)} not authorized (not in the allow file)",
    "tailscaled": f"peer {key(1)} not authorized (not found in local tailscaled)",
    "url": "admission controller: ",
    "decide": "admission function: ",
}


@pytest.mark.parametrize("against", [None, *SOURCES])
async def test_all_sources_must_allow_and_are_asked_in_order(
    relay: Relay, tmp_path: Path, against: str | None
) -> None:
    path = tmp_path / "d.sock"
    asked = ["keys_file"]

    def whois(_: Request) -> Reply:
        asked.append("tailscaled")
        return [UNKNOWN if against == "tailscaled" else KNOWN]

    def admit(_: Request) -> Reply:
        asked.append("url")
        return [DENY if against == "url" else ALLOW]

    def decide(key: NodePublic, address: str) -> bool:
        asked.append("decide")
        return against != "decide"

    keys = write_keys(tmp_path / "keys", *([2] if against == "keys_file" else [1, 2]))
    async with (
        serving(whois, path=path),
        serving(admit) as controller,
        relay.gate(
            keys_file=keys,
            tailscaled=True,
            tailscaled_socket=path,
            url=controller.url,
            decide=decide,
        ) as gate,
    ):
        verdict = await gate.ask(identity(1))
    assert verdict.allowed is (against is None)
    label = "" if against == "keys_file" else "label 1"
    assert (verdict.label, verdict.definitive) == (label, True)
    assert asked == SOURCES[: SOURCES.index(against or "decide") + 1]
    assert verdict.reason.startswith(REASONS[against])
    assert (f"{key(1)}" in verdict.reason) is (against is not None)


async def test_an_answer_is_remembered_for_a_time_per_key_and_address(relay: Relay) -> None:
    calls: list[str] = []

    def decide(key: NodePublic, address: str) -> bool:
        calls.append(address)
        return address != "bad"

    async with relay.gate(decide=decide, remember=10) as gate:
        for address in ("good", "bad"):
            client = identity(1, address)
            assert gate.known(client) is None
            verdict = await gate.ask(client)
            relay.now += 9
            assert gate.known(client) == await gate.ask(client) == verdict
            assert verdict.allowed is (address == "good")
            relay.now += 1
            assert gate.known(client) is None
        assert calls == ["good", "bad"]
        assert gate.counters == AdmissionCounters(allowed=3, denied=3, cache_hits=4, queries=2)


async def test_remembering_can_be_switched_off(relay: Relay) -> None:
    async with relay.gate(decide=lambda *_: True, remember=0) as gate:
        for _ in range(3):
            assert (await gate.ask(identity())).allowed
            assert gate.known(identity()) is None
        assert gate.counters.queries == 3


async def test_the_number_of_remembered_answers_is_bounded(
    relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pyderp.admission.gate.ADMISSION_CACHE", 3)

    async with relay.gate(decide=lambda *_: True) as gate:
        for n in range(5):
            await gate.ask(identity(n))
        known = [n for n in range(5) if gate.known(identity(n)) is not None]
        assert known == [2, 3, 4]


async def test_a_client_without_an_answer_is_asked_about_again(relay: Relay) -> None:
    replies: list[Reply] = [[response(b"", "500 Oops")], [ALLOW]]
    async with (
        serving(lambda _: replies.pop(0)) as server,
        relay.gate(url=server.url) as gate,
    ):
        assert not (await gate.ask(identity())).allowed
        assert gate.known(identity()) is None
        assert (await gate.ask(identity())).allowed
        assert gate.known(identity()) == Verdict(True)
        assert gate.counters == AdmissionCounters(
            allowed=2, denied=1, cache_hits=1, queries=2, errors=1
        )


async def test_a_client_that_was_allowed_unasked_is_asked_about_next_time(relay: Relay) -> None:
    async with serving([ALLOW]) as server:
        url = server.url
    async with relay.gate(url=url) as gate:
        for n in (1, 2):
            assert await gate.ask(identity()) == Verdict(True, cause=Cause.UNREACHABLE)
            assert gate.known(identity()) is None
            # The second question finds that the source was unreachable just now.
            assert gate.counters == AdmissionCounters(allowed=n, queries=1, errors=1, failed_open=n)


async def test_concurrent_checks_of_one_client_are_one(relay: Relay) -> None:
    decide = Decider()
    async with relay.gate(decide=decide) as gate:
        asking = [asyncio.ensure_future(gate.ask(identity(1))) for _ in range(3)]
        other = asyncio.ensure_future(gate.ask(identity(1, "192.0.2.8")))
        await turns()
        assert decide.asked == [identity(1), identity(1, "192.0.2.8")]
        asking[0].cancel()
        await turns()
        decide.answers[0].set_result(True)
        decide.answers[1].set_result(False)
        assert [await task for task in asking[1:]] == [Verdict(True)] * 2
        assert not (await other).allowed
        with pytest.raises(asyncio.CancelledError):
            await asking[0]
        assert gate.counters == AdmissionCounters(allowed=2, denied=1, queries=2)


async def test_a_reload_forgets_answers_also_pending_ones(relay: Relay) -> None:
    decide = Decider()
    async with relay.gate(decide=decide) as gate:
        early = asyncio.ensure_future(gate.ask(identity(1)))
        await turns()
        gate.reload()
        late = asyncio.ensure_future(gate.ask(identity(1)))
        await turns()
        decide.answers[0].set_result(True)
        assert (await early).allowed
        assert gate.known(identity(1)) is None
        decide.answers[1].set_result(False)
        assert not (await late).allowed
        known = gate.known(identity(1))
        assert known is not None
        assert not known.allowed
        gate.reload()
        assert gate.known(identity(1)) is None


async def test_a_key_removed_while_a_later_source_is_asked_is_refused(
    relay: Relay, tmp_path: Path
) -> None:
    decide = Decider()
    path = write_keys(tmp_path / "keys", 3)
    async with relay.gate(keys_file=path, decide=decide) as gate:
        asking = asyncio.ensure_future(gate.ask(identity(3)))
        await turns()
        write_keys(path, 1, 2)
        gate.reload()
        decide.answers[0].set_result(True)
        assert await asking == Verdict(False, NOT_LISTED)


async def test_a_new_key_file_closes_clients_that_are_no_longer_in_it(
    relay: Relay, tmp_path: Path
) -> None:
    path = write_keys(tmp_path / "keys", 1, 3)
    async with relay.gate(keys_file=path) as gate:
        relay.connected = [identity(1), identity(3), identity(3, "192.0.2.8")]
        path.write_text("half a li")
        gate.reload()
        assert relay.revoked == []
        write_keys(path, 1, 2)
        gate.reload()
        assert relay.revoked == [(key(3), None, NOT_LISTED)]
        assert gate.known(identity(2)) == Verdict(True, label="label 2")
        assert gate.counters.revoked == 1


async def test_a_changed_key_file_is_found_without_a_reload(relay: Relay, tmp_path: Path) -> None:
    path = write_keys(tmp_path / "keys", 1, 3)
    relay.connected = [identity(1), identity(3)]
    async with relay.gate(keys_file=path, look=0.01):
        write_keys(tmp_path / "new", 1, 2)
        os.replace(tmp_path / "new", path)
        await relay.closed.wait()
    assert relay.revoked == [(key(3), None, NOT_LISTED)]


async def test_rechecks_close_only_clients_that_a_source_denies(relay: Relay) -> None:
    def reply(request: Request) -> Reply:
        if str(key(1)).encode() in request.body:
            return [ALLOW]
        if str(key(2)).encode() in request.body:
            return [response(b"", "503 Busy")]
        return [DENY]

    relay.connected = [identity(n) for n in (1, 2, 3)]
    async with (
        serving(reply) as server,
        relay.gate(url=server.url, recheck=0.05) as gate,
    ):
        await relay.closed.wait()
        await server.wait_for_requests(6)
        reason = f"admission controller: {key(3)}/192.0.2.7 not allowed"
        assert relay.revoked == [(key(3), "192.0.2.7", reason)]
        # No client is allowed by this, and the denial is remembered.
        assert (gate.counters.allowed, gate.counters.revoked) == (0, 1)
        known = gate.known(identity(3))
        assert known is not None
        assert not known.allowed


async def test_a_recheck_disconnects_a_key_only_at_addresses_where_it_is_denied(
    relay: Relay,
) -> None:
    asked: list[str] = []
    round_two = asyncio.Event()

    def decide(key: NodePublic, address: str) -> bool:
        asked.append(address)
        if asked.count("good") == 2:
            round_two.set()
        return address == "good"

    relay.connected = [identity(1, "bad"), identity(1, "good"), identity(1, "worse")]
    async with relay.gate(decide=decide, recheck=0.03) as gate:
        await round_two.wait()
        assert [address for _, address, _ in relay.revoked] == ["bad", "worse"]
        assert relay.connected == [identity(1, "good")]
        assert gate.counters.revoked == 2


@pytest.mark.parametrize("fail_open", [True, False])
async def test_rechecks_that_reach_no_source_close_no_client(relay: Relay, fail_open: bool) -> None:
    async with serving([ALLOW]) as server:
        url = server.url
    relay.connected = [identity()]
    async with relay.gate(url=url, url_fail_open=fail_open, recheck=0.01) as gate:
        while gate.counters.errors < 3:  # noqa: ASYNC110 (no event to wait for)
            await asyncio.sleep(0.01)
    assert relay.revoked == []


async def test_a_source_with_a_bug_refuses(
    relay: Relay, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(self: object, identity: ClientIdentity) -> Verdict:
        raise RuntimeError("bug")

    monkeypatch.setattr("pyderp.admission.source.AdmissionFunction.ask", broken)

    async with relay.gate(decide=lambda *_: True) as gate:
        verdict = await gate.ask(identity())
        assert (verdict.allowed, verdict.definitive) == (False, False)
        assert gate.counters.errors == 1
    assert "RuntimeError: bug" in caplog.text


async def test_a_function_that_raises_cancelled_error_refuses(relay: Relay) -> None:
    async def decide(key: NodePublic, address: str) -> bool:
        raise asyncio.CancelledError

    async with relay.gate(decide=decide) as gate:
        assert not (await gate.ask(identity())).allowed


async def test_closing_refuses_waiting_clients_and_leaves_nothing(
    relay: Relay, tmp_path: Path
) -> None:
    path = write_keys(tmp_path / "keys", 1)
    before = asyncio.all_tasks()
    async with serving([STALL]) as server:
        own = asyncio.all_tasks()
        relay.connected = [identity(1, "elsewhere")]
        async with relay.gate(keys_file=path, url=server.url, recheck=60) as gate:
            asking = asyncio.ensure_future(gate.ask(identity(1)))
            await server.wait_for_requests(2)
            await gate.aclose()
            closing = Verdict(False, "the relay is stopping", "label 1", cause=Cause.STOPPING)
            assert await asking == closing
            assert await gate.ask(identity(1)) == closing
            assert await gate.check_self() is None
        left = asyncio.all_tasks() - own
        assert {task.get_name() for task in left if "pyderp" in task.get_name()} == set()
    assert asyncio.all_tasks() == before


def self_check(own: bytes, whois: bytes) -> Any:
    def reply(request: Request) -> Reply:
        return [own if b"/status?" in request.line else whois]

    return reply


@pytest.mark.parametrize(
    ("own", "whois", "admit", "wrong"),
    [
        (key(9), KNOWN, ALLOW, None),
        (None, KNOWN, ALLOW, "localClient.Status: HTTP 500: oops"),
        (
            key(9),
            UNKNOWN,
            ALLOW,
            f"verifyClient for self nodekey: peer {key(9)} not authorized "
            "(not found in local tailscaled)",
        ),
        (
            key(9),
            KNOWN,
            DENY,
            f"verifyClient for self nodekey: admission controller: {key(9)}/::1 not allowed",
        ),
    ],
)
async def test_the_self_check_verifies_the_machines_own_node(
    relay: Relay,
    tmp_path: Path,
    own: NodePublic | None,
    whois: bytes,
    admit: bytes,
    wrong: str | None,
) -> None:
    path = tmp_path / "d.sock"
    status = response(b'{"Self":{"PublicKey":"%s"}}' % str(own).encode())
    if own is None:
        status = response(b"oops", "500 Oops")
    async with (
        serving(self_check(status, whois), path=path),
        serving([admit]) as controller,
        relay.gate(tailscaled=True, tailscaled_socket=path, url=controller.url) as gate,
    ):
        assert await gate.check_self() == wrong
        assert (gate.counters.allowed, gate.counters.denied) == (0, 0)
        if wrong is None:
            assert b'"Source":"::1"' in controller.requests[0].body


async def test_closing_ends_a_self_check(relay: Relay, tmp_path: Path) -> None:
    path = tmp_path / "d.sock"
    async with (
        serving([STALL], path=path) as server,
        relay.gate(tailscaled=True, tailscaled_socket=path) as gate,
    ):
        checks = [asyncio.ensure_future(gate.check_self()) for _ in range(2)]
        await server.wait_for_requests(1)
        await gate.aclose()
        assert await asyncio.gather(*checks) == [None, None]
        assert len(server.requests) == 1


async def test_the_self_check_includes_the_key_file(relay: Relay, tmp_path: Path) -> None:
    path = tmp_path / "d.sock"
    status = response(b'{"Self":{"PublicKey":"%s"}}' % str(key(3)).encode())
    keys = write_keys(tmp_path / "keys", 1)
    async with (
        serving(self_check(status, KNOWN), path=path),
        relay.gate(keys_file=keys, tailscaled=True, tailscaled_socket=path) as gate,
    ):
        assert await gate.check_self() == f"verifyClient for self nodekey: {NOT_LISTED}"


def test_an_http_client_is_imported_only_for_sources_that_need_it() -> None:
    script = """
import sys
from pyderp.admission.gate import Gate
from pyderp.config import AdmissionConfig
def make(config):
    Gate(config, live=lambda: [], revoke=lambda *_: None)
    return "aiohttp" in sys.modules
assert not make(AdmissionConfig(decide=lambda *_: True))
assert make(AdmissionConfig(tailscaled=True))
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=30)


async def until(gate: Gate, *, trouble: bool) -> None:
    """Wait until the gate reports a trouble, or none."""
    async with asyncio.timeout(20):
        while True:
            if bool(gate.troubles()) is trouble:
                return
            await asyncio.sleep(0.01)


async def test_a_tailscaled_that_is_down_is_reported_before_the_first_client(
    relay: Relay, tmp_path: Path
) -> None:
    """Down at the start, up later, and down again: no client logs in meanwhile."""
    path = tmp_path / "d.sock"
    status = response(b'{"Self":{"PublicKey":"%s"}}' % str(key(9)).encode())
    async with relay.gate(probe=0.01, tailscaled=True, tailscaled_socket=path) as gate:
        await until(gate, trouble=True)
        assert gate.troubles() == [
            "local tailscaled does not answer, clients are refused: localClient.Status: "
            f"cannot connect to {path}: No such file or directory"
        ]
        async with serving([status], path=path):
            await until(gate, trouble=False)
        path.unlink(missing_ok=True)
        await until(gate, trouble=True)
        assert gate.counters == AdmissionCounters()


async def test_a_tailscaled_that_is_not_logged_in_is_reported(relay: Relay, tmp_path: Path) -> None:
    path = tmp_path / "d.sock"
    status = response(b'{"Self":{"PublicKey":"nodekey:%s"}}' % (b"0" * 64))
    async with (
        serving([status], path=path),
        relay.gate(probe=0.01, tailscaled=True, tailscaled_socket=path) as gate,
    ):
        await until(gate, trouble=True)
        assert "tailscaled is not logged in" in gate.troubles()[0]


@pytest.mark.parametrize("fail_open", [False, True])
@pytest.mark.parametrize("answer", [ALLOW, DENY])
async def test_the_trouble_ends_when_the_controller_is_back_without_any_client(
    relay: Relay, fail_open: bool, answer: bytes
) -> None:
    """The probes meanwhile allow no client and count none."""
    up = False

    def reply(_: Request) -> Reply:
        return [answer] if up else [CLOSE]

    async with serving(reply) as server:
        url = server.url
    # The port is closed now, and open again later.
    port = int(url.split(":")[2].split("/")[0])
    async with relay.gate(probe=0.01, url=url, url_fail_open=fail_open, remember=0) as gate:
        assert (await gate.ask(identity())).allowed == fail_open
        assert gate.troubles()
        let_in = gate.counters.failed_open
        asked = gate.counters.queries
        async with asyncio.timeout(20):
            while True:
                if gate.counters.queries >= asked + 3:
                    break
                await asyncio.sleep(0.01)
        assert gate.troubles()
        up = True
        fake = FakeServer(reply)
        back = await asyncio.start_server(fake.serve, "127.0.0.1", port)
        try:
            await until(gate, trouble=False)
        finally:
            back.close()
        assert gate.counters.failed_open == let_in
        assert str(key(1)).encode() in fake.requests[0].body


async def test_the_trouble_of_a_function_ends_without_any_client(relay: Relay) -> None:
    """Once the function works, it is not called for absent clients."""
    asked = []
    works = False

    def decide(public: NodePublic, address: str) -> bool:
        asked.append((public, address))
        if not works:
            raise RuntimeError("no database")
        return False

    async with relay.gate(probe=0.01, decide=decide) as gate:
        assert not (await gate.ask(identity())).allowed
        assert gate.troubles()
        works = True
        await until(gate, trouble=False)
        count = len(asked)
        for _ in range(10):
            await asyncio.sleep(0.01)
        assert len(asked) == count
        assert set(asked) == {(key(1), "192.0.2.7")}
