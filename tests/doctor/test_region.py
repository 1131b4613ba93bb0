"""Group `region`: two nodes that form a mesh, or do not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from pyderp import Relay
from pyderp.doctor.examination import Examination, Region
from pyderp.doctor.finding import Finding
from pyderp.doctor.target import Single, relay_region
from pyderp.doctor.visit import Settings
from pyderp.keys import NodePrivate
from tests.server.meshed import linked, meshed, node

from .support import FAIL, OK, SKIP, no_network, run


def region_of(*urls: str, names: Sequence[str] = "ab") -> Region:
    """One region of these relays."""
    subjects = []
    for name, url in zip(names, urls, strict=False):
        (subject,) = relay_region(url, Single(stun_port=-1)).subjects
        subjects.append(replace(subject, node=replace(subject.node, name=name)))
    return Region("region 900 (lab)", tuple(subjects))


async def look(region: Region, settings: Settings) -> dict[tuple[str, str], Finding]:
    found: dict[tuple[str, str], Finding] = {}
    await Examination([region], settings).run(lambda f: found.__setitem__(f.key, f))
    return found


def test_two_relays_in_a_mesh_are_ok() -> None:
    async def main() -> None:
        async with meshed() as (one, other):
            found = await look(region_of(one.relay.url, other.relay.url), no_network())
        mesh = found["region 900 (lab)", "region.mesh"]
        assert mesh.result is OK, mesh.seen
        assert set(mesh.seen.data["seconds"]) == {"a to b", "b to a"}  # type: ignore[call-overload]
        assert {f.result for f in found.values()} <= {OK, SKIP}

    run(main())


def test_a_link_in_one_direction_only_fails() -> None:
    """A relay forwards to relays whose clients it watches, so one direction is missing."""

    async def main() -> None:
        async with node() as one, node() as other:
            one.mesh.set_hosts([other.relay.url])
            await linked(one)
            region = region_of(one.relay.url, other.relay.url)
            found = await look(region, no_network(timeout=4))
        mesh = found["region 900 (lab)", "region.mesh"]
        assert mesh.result is FAIL
        assert mesh.seen.data["broken"] == ["b to a"]

    run(main())


def test_two_relays_without_a_mesh_fail() -> None:
    async def main() -> None:
        async with Relay() as one, Relay() as other:
            found = await look(region_of(one.url, other.url), no_network(timeout=2))
        mesh = found["region 900 (lab)", "region.mesh"]
        assert mesh.result is FAIL
        assert mesh.seen.data["broken"] == ["a to b", "b to a"]
        assert "{mesh_with}" in mesh.seen.advice
        assert found["region 900 (lab)", "region.relays"].result is OK

    run(main())


def test_two_nodes_that_are_one_relay_fail() -> None:
    async def main() -> None:
        async with Relay() as one:
            found = await look(region_of(one.url, one.url), no_network())
        relays = found["region 900 (lab)", "region.relays"]
        assert relays.result is FAIL
        assert "a and b are the same relay" in relays.seen.text
        assert found["region 900 (lab)", "region.mesh"].result is SKIP

    run(main())


def test_a_mesh_with_a_dead_relay_is_skipped() -> None:
    async def main() -> None:
        async with Relay() as one:
            found = await look(region_of(one.url, "http://127.0.0.1:1/derp"), no_network())
        assert found["b", "tcp.ipv4"].result is FAIL
        assert found["a", "relay.packet"].result is OK
        assert found["region 900 (lab)", "region.mesh"].result is SKIP

    run(main())


def test_one_key_cannot_be_at_both_relays() -> None:
    async def main() -> None:
        key = NodePrivate.generate()
        async with Relay() as one, Relay() as other:
            found = await look(region_of(one.url, other.url), no_network(key=key))
        assert found["region 900 (lab)", "region.mesh"].result is SKIP

    run(main())


def test_many_dead_nodes_are_all_reported() -> None:
    """Each of them, with the skipped checks; no node delays the others."""

    async def main() -> None:
        urls = [f"http://127.0.0.{number}:1/derp" for number in range(2, 60)]
        region = region_of(*urls, names=[f"n{number}" for number in range(2, 60)])
        found = await look(region, no_network())
        assert sum(f.check == "tcp.ipv4" and f.result is FAIL for f in found.values()) == 58
        assert len(found) == len(Examination([region], no_network()).plan())

    run(main())
