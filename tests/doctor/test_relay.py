"""Group `relay`: admission, and packets that are lost, mixed up or limited."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
from pathlib import Path

import pytest

from pyderp import NodePrivate, Relay, RelayConfig
from pyderp.config import AdmissionConfig
from pyderp.doctor.carry import carry
from pyderp.doctor.target import Single, relay_region
from pyderp.keys import MeshKey
from pyderp.testing import FaultyRelay, client_pair
from pyderp.wire import login
from pyderp.wire.login import server_info_json
from pyderp.wire.messages import ServerInfo

from .support import (
    FAIL,
    LIMIT,
    OK,
    SKIP,
    SOON,
    WARN,
    Found,
    front,
    look,
    look_at,
    no_network,
    results,
    run,
    serving,
    tls_files,
    tls_relay,
)

MESH = MeshKey(bytes(range(32)))


def admitting(path: Path, *keys: NodePrivate, mesh: bool = False) -> RelayConfig:
    """A relay that admits these keys only."""
    path.write_text("".join(f"{key.public}\n" for key in keys))
    return RelayConfig(admission=AdmissionConfig(keys_file=path), mesh_key=MESH if mesh else None)


def test_a_relay_open_to_all_keys_is_reported() -> None:
    async def main() -> None:
        async with Relay() as relay:
            found = await look_at(relay.url)
            with_key = await look_at(relay.url, no_network(mesh_key=MESH))
        assert found["relay.admission"].seen.data["open"] is True
        assert "{mesh_key}" not in found["relay.admission"].seen.text
        assert "{mesh_key} was not used" in with_key["relay.admission"].seen.text

    run(main())


def test_a_relay_that_admits_known_keys_only_is_a_warning(tmp_path: Path) -> None:
    async def main() -> None:
        known = NodePrivate.generate()
        async with Relay(admitting(tmp_path / "keys", known)) as relay:
            without = await look_at(relay.url)
            with_key = await look_at(relay.url, no_network(key=known))
            wrong = await look_at(relay.url, no_network(key=NodePrivate.generate()))
        assert without["relay.admission"].result is WARN
        assert without["relay.packet"].result is SKIP
        assert without["relay.limits"].result is without["relay.speed"].result is SKIP
        assert "{key} FILE" in without["relay.admission"].seen.advice
        assert set(results(with_key, "relay").values()) == {"ok"}
        assert with_key["relay.admission"].seen.data["open"] is False
        assert wrong["relay.admission"].result is FAIL

    run(main())


def test_the_mesh_key_is_admitted_as_well(tmp_path: Path) -> None:
    async def main() -> None:
        async with Relay(admitting(tmp_path / "keys", mesh=True)) as relay:
            found = await look_at(relay.url, no_network(mesh_key=MESH))
        assert set(results(found, "relay").values()) == {"ok"}

    run(main())


def test_the_mesh_key_is_not_sent_to_an_untrusted_relay(tmp_path: Path) -> None:
    async def main() -> None:
        files = tls_files(tmp_path)
        config = admitting(tmp_path / "keys", mesh=True)
        async with tls_relay(files, admission=config.admission, mesh_key=MESH) as (_, url):
            settings = files.settings(mesh_key=MESH, tls=no_network().tls)
            found = await look_at(url, settings)
            assert found["tls.chain"].result is FAIL
            assert found["relay.admission"].result is WARN
            assert "{mesh_key} is not used" in found["relay.admission"].seen.advice

    run(main())


@pytest.mark.parametrize("limit", [SOON])
def test_a_relay_that_delivers_no_packet_fails(limit: float) -> None:
    async def main() -> None:
        async with FaultyRelay() as relay:
            relay.loss = 1.0
            found = await look_at(relay.url, no_network(timeout=limit))
        assert found["relay.packet"].result is FAIL
        assert "0 of 1 arrived" in found["relay.packet"].seen.text
        for name in ("large", "burst", "speed"):
            assert found[f"relay.{name}"].result is SKIP

    run(main())


@pytest.mark.parametrize(
    ("before", "check", "text"),
    [
        ("relay.packet", "relay.large", "a packet of 64 KiB: 0 of 1 arrived"),
        ("relay.large", "relay.burst", "29 of 30 arrived"),
        ("relay.limits", "relay.speed", "a packet of 64 bytes: 0 of 1 arrived"),
    ],
)
def test_a_lost_packet_fails_its_check(before: str, check: str, text: str) -> None:
    async def main() -> None:
        async with FaultyRelay() as relay:
            region = relay_region(relay.url, Single(stun_port=-1))
            found = await look(
                region, no_network(timeout=SOON), then={before: lambda: relay.drop_next(1)}
            )
        bad = [name for name, result in results(found, "relay").items() if result != "ok"]
        assert bad == [check]
        assert found[check].result is FAIL
        assert text in found[check].seen.text

    run(main())


def test_a_connection_that_is_cut_fails_its_check() -> None:
    async def main() -> None:
        async with FaultyRelay() as relay:
            region = relay_region(relay.url, Single(stun_port=-1))
            cut = {"relay.packet": lambda: relay.cut_after(50_000, way="up")}
            found = await look(region, no_network(timeout=2), then=cut)
        assert found["relay.packet"].result is OK
        assert found["relay.large"].result is FAIL
        assert "64 KiB" in found["relay.large"].seen.text

    run(main())


def test_packets_must_arrive_as_they_were_sent() -> None:
    """A relay could also mix up packets, or their order."""

    async def main() -> None:
        async with Relay() as relay, client_pair(relay) as (one, other):
            packets = [bytes([number]) * 10 for number in range(4)]
            good = await carry(one, other, packets, window=4, limit=LIMIT)
            assert (good.sent, good.arrived, good.intact, good.bytes_arrived) == (4, 4, True, 40)
            await one.send(other.self_public_key, b"another")
            mixed = await carry(one, other, packets[:1], window=1, limit=LIMIT)
            assert not mixed.intact

    run(main())


def test_late_packets_are_not_taken_for_those_of_the_next_check() -> None:
    async def main() -> None:
        async with FaultyRelay() as relay, client_pair(relay) as (one, other):
            late: set[bytes] = set()
            relay.freeze()
            first = await carry(one, other, [b"first"], window=1, limit=SOON, late=late)
            assert (first.sent, first.arrived) == (1, 0)
            relay.thaw()
            after = [b"second", b"third"]
            second = await carry(one, other, after, window=2, limit=LIMIT, late=late)
            assert second.intact
            assert second.arrived == 2

    run(main())


def _limited(path: Path, rate: int, burst: int) -> RelayConfig:
    path.write_text(
        json.dumps({"PerClientRateLimitBytesPerSec": rate, "PerClientRateBurstBytes": burst})
    )
    return RelayConfig(rate_config=path)


def test_a_slow_relay_is_slow_and_its_packets_are_not_corrupt(
    tmp_path: Path,
) -> None:
    async def main() -> None:
        async with Relay(_limited(tmp_path / "rate.json", 20_000, 66_000)) as relay:
            found = await look_at(relay.url, no_network(timeout=2))
        for finding in found.values():
            assert "not what was sent" not in finding.seen.text
            assert "address" not in finding.seen.advice
        for name in ("burst", "speed"):
            seen = found[f"relay.{name}"].seen
            assert seen.result in (WARN, FAIL)
            assert "a slow line, or a limit" in seen.advice

    run(main())


def test_a_low_rate_is_a_warning(tmp_path: Path) -> None:
    async def main() -> None:
        async with Relay(_limited(tmp_path / "rate.json", 90_000, 200_000)) as relay:
            found = await look_at(relay.url, no_network(timeout=5))
        assert found["relay.limits"].seen.text == "none announced"
        assert found["relay.speed"].result is WARN
        assert "a slow line, or a limit" in found["relay.speed"].seen.advice

    run(main())


def test_a_path_that_drops_large_packets_fails() -> None:
    """As with an MTU that is smaller than both ends know: after a large packet nothing passes."""

    async def main() -> None:
        async with FaultyRelay() as relay:
            region = relay_region(relay.url, Single(stun_port=-1))
            then = {"relay.packet": relay.freeze}
            found = await look(region, no_network(timeout=SOON), then=then)
        assert found["relay.packet"].result is OK
        assert "MTU" in found["relay.large"].seen.advice
        for name in ("burst", "speed"):
            assert found[f"relay.{name}"].result is FAIL
            assert found[f"relay.{name}"].seen.advice == "see relay.large"

    run(main())


def test_a_proxy_that_cuts_idle_connections_fails() -> None:
    """Here at once after all packets have passed; a real proxy does it after its idle timeout."""

    async def main() -> None:
        async with FaultyRelay() as relay:
            region = relay_region(relay.url, Single(stun_port=-1))
            settings = no_network(deep=True, idle=LIMIT)
            found = await look(region, settings, then={"relay.speed": relay.cut})
        assert found["relay.speed"].result is OK
        assert found["relay.idle"].result is FAIL
        assert "closed after" in found["relay.idle"].seen.text
        assert "proxy_read_timeout" in found["relay.idle"].seen.advice

    run(main())


def test_an_idle_connection_that_stays_is_ok() -> None:
    async def main() -> None:
        async with Relay() as relay:
            found = await look_at(relay.url, no_network(deep=True, idle=0.2))
            usual = await look_at(relay.url)
        assert found["relay.idle"].result is OK
        assert "relay.idle" not in usual

    run(main())


def test_two_relays_behind_one_address_fail() -> None:
    async def main() -> None:
        async with FaultyRelay() as one, FaultyRelay() as other:
            one.loss = other.loss = 1.0
            turns = itertools.cycle([front(one.address[1]), front(other.address[1])])

            async def balance(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                await next(turns)(reader, writer)

            async with serving(balance) as port:
                found = await look_at(f"http://127.0.0.1:{port}", no_network(timeout=2))
        assert found["http.identity"].result is FAIL
        assert found["relay.packet"].result is FAIL
        assert "see http.identity" in found["relay.packet"].seen.advice

    run(main())


def test_limits_that_the_relay_announces_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither derper nor pyderp announces any; clients obey them, and drop what exceeds them."""

    async def with_limit(rate: int, burst: int) -> Found:
        said = server_info_json(ServerInfo(2, rate, burst))
        monkeypatch.setattr(login, "_SERVER_INFO_JSON", said)
        async with Relay() as relay:
            return await look_at(relay.url)

    async def main() -> None:
        small = await with_limit(50_000, 40_000)
        assert small["relay.limits"].result is WARN
        assert small["relay.limits"].seen.data["bytes_per_second"] == 50_000
        assert small["relay.large"].result is WARN
        assert small["relay.burst"].result is SKIP
        assert small["relay.speed"].result is OK
        large = await with_limit(10_000_000, 1_000_000)
        assert set(results(large, "relay").values()) == {"ok"}

    run(main())


def test_a_slow_relay_is_measured_and_is_not_broken(tmp_path: Path) -> None:
    async def main() -> None:
        path = tmp_path / "rate.json"
        limits = {"PerClientRateLimitBytesPerSec": 200_000, "PerClientRateBurstBytes": 70_000}
        path.write_text(json.dumps(limits))
        async with Relay(RelayConfig(rate_config=path)) as relay:
            found = await look_at(relay.url)
        speed = found["relay.speed"]
        assert speed.result is OK
        assert 50_000 < speed.seen.data["bytes_per_second"] < 1_000_000  # type: ignore[operator]

    run(main())


def test_packets_lost_during_the_speed_check_are_counted() -> None:
    async def main() -> None:
        async with FaultyRelay() as relay:

            async def measure() -> tuple[int, int]:
                async with client_pair(relay) as (one, other):
                    relay.drop_next(1)
                    done = await carry(one, other, [b"x" * 100] * 8, window=8, limit=SOON)
                    return done.sent, done.arrived

            assert await measure() == (8, 7)

    run(main())


def test_a_cancelled_run_leaves_no_client_open() -> None:
    """At any time: during a check, or while a finished run closes its clients."""

    async def main() -> None:
        async with Relay() as relay:
            for turns in range(0, 400, 7):
                task = asyncio.create_task(look_at(relay.url))
                for _ in range(turns):
                    await asyncio.sleep(0)
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
            # A client that is not closed warns when it is freed, which fails the test.

    run(main())
