"""The examples of `docs/howto/is-it-working.md` are what the tool prints on such networks.

`python -m tests.doctor.test_howto` prints them, to be copied to the page.
"""

from __future__ import annotations

import re
import socket
import sys
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from pyderp import ManualTLS, NodePrivate, Relay, RelayConfig
from pyderp.cli.doctorlines import line_of
from pyderp.config import AdmissionConfig
from pyderp.doctor.examination import Examination, Region
from pyderp.doctor.finding import Finding
from pyderp.doctor.target import Single, relay_region
from pyderp.doctor.visit import Settings
from pyderp.net.tls import TLSConfig
from tests.net.certificates import ROOT, certificate
from tests.server.certificates import write_pair

from . import test_http, test_region, test_stun
from .support import front, no_network, resolving, run, serving

PAGE: Final = Path(__file__).parents[2] / "docs" / "howto" / "is-it-working.md"
_BLOCK: Final = re.compile(r"<!-- doctor: ([\w-]+) -->\n```text\n(.*?)```\n", re.DOTALL)
NAME: Final = "derp.example.com"
RESOLVER: Final = resolving(derp_example_com=["127.0.0.1"])
TRUST: Final = TLSConfig(system_roots=False, builtin_roots=False, extra_roots=(ROOT.der,))


def settings(**more: object) -> Settings:
    return no_network(**{"resolver": RESOLVER, "tls": TRUST, **more})


async def lines(region: Region, how: Settings) -> list[str]:
    """The command's output, without the summary."""
    found: dict[tuple[str, str], Finding] = {}
    examination = Examination([region], how)
    await examination.run(lambda finding: found.__setitem__(finding.key, finding))
    several = len({subject for subject, _ in examination.plan()}) > 1
    return [line_of(found[key], several) for key in examination.plan()]


def at(port: int, **single: object) -> Region:
    flags = {"stun_port": -1, "http_port": 1, **single}
    return relay_region(f"https://{NAME}:{port}", Single(**flags))  # type: ignore[arg-type]


def plain(relay: Relay, stun_port: int) -> Region:
    url = f"http://{NAME}:{relay.address[1]}"
    return relay_region(url, Single(stun_port=stun_port, http_port=1))


async def healthy(directory: Path) -> list[str]:
    """A relay with a certificate from files, and STUN."""
    write_pair(directory, NAME)
    tls = ManualTLS(certdir=directory, hostname=NAME)
    roots = TLSConfig(extra_roots=(directory / f"{NAME}.crt",))
    async with Relay(RelayConfig(tls=tls, stun_port=0)) as relay:
        node = relay.map_node
        assert node is not None
        region = at(relay.address[1], stun_port=node.stun_port)
        return await lines(region, settings(tls=roots))


async def expired(_: Path) -> list[str]:
    """A certificate that was not renewed."""
    old = certificate(NAME, issuer=ROOT, since=-91, until=-1)
    async with Relay() as relay, serving(front(relay.address[1]), tls=old.server()) as port:
        return await lines(at(port), settings())


async def self_signed(directory: Path) -> list[str]:
    """No pin in the map, and none given."""
    write_pair(directory, NAME)
    async with Relay(RelayConfig(tls=ManualTLS(certdir=directory, hostname=NAME))) as relay:
        return await lines(at(relay.address[1]), settings())


async def firewall(_: Path) -> list[str]:
    """A company's network, whose firewall decrypts TLS."""
    box = certificate(common_name="Fortinet CA", authority=True)
    seen = certificate(NAME, issuer=box)
    async with Relay() as relay, serving(front(relay.address[1]), tls=seen.server()) as port:
        return await lines(at(port), settings())


async def stripped(_: Path) -> list[str]:
    """A proxy without the lines about Upgrade."""
    good = certificate(NAME, issuer=ROOT)
    async with Relay() as relay:
        handler = front(relay.address[1], change=test_http.without_upgrade)
        async with serving(handler, tls=good.server()) as port:
            return await lines(at(port), settings())


async def http2(_: Path) -> list[str]:
    """A proxy for HTTP/2 only."""
    good = certificate(NAME, issuer=ROOT)
    handler = front(1, lambda _: test_http.SETTINGS_FRAME)
    async with serving(handler, tls=good.server()) as port:
        return await lines(at(port), settings())


async def no_stun(directory: Path) -> list[str]:
    """UDP is closed."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        async with Relay() as relay:
            region = plain(relay, silent.getsockname()[1])
            return await lines(region, settings(timeout=2.0))


async def stray_stun(_: Path) -> list[str]:
    """A relay with several addresses that answers from the first one."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("127.0.0.2", 0))
        async with test_stun.stun(test_stun.Server(other)) as port, Relay() as relay:
            return await lines(plain(relay, port), settings())


async def admitting(directory: Path) -> list[str]:
    """A relay that admits known keys only."""
    keys = directory / "keys"
    keys.write_text(f"{NodePrivate.generate().public}\n")
    good = certificate(NAME, issuer=ROOT)
    config = RelayConfig(admission=AdmissionConfig(keys_file=keys))
    async with (
        Relay(config) as relay,
        serving(front(relay.address[1]), tls=good.server()) as port,
    ):
        return await lines(at(port), settings())


async def apart(_: Path) -> list[str]:
    """Two relays in a region, and no mesh."""
    async with Relay() as one, Relay() as other:
        region = test_region.region_of(one.url, other.url, names=["900a", "900b"])
        return await lines(region, settings(timeout=5.0))


SCENARIOS: Final[dict[str, Callable[[Path], Awaitable[list[str]]]]] = {
    "healthy": healthy,
    "expired": expired,
    "self-signed": self_signed,
    "firewall": firewall,
    "stripped": stripped,
    "http2": http2,
    "no-stun": no_stun,
    "stray-stun": stray_stun,
    "admitting": admitting,
    "apart": apart,
}


def shown() -> dict[str, list[str]]:
    """The lines of the page, by scenario."""
    return {name: text.splitlines() for name, text in _BLOCK.findall(PAGE.read_text())}


def same(line: str) -> str:
    """A line without what differs between runs: addresses, times, keys, rates, figures."""
    line = re.sub(r"\[[A-Za-z0-9+/]{5}\]", "[KEY]", line)
    line = re.sub(r"[0-9a-f]{64}", "HEX", line)
    line = re.sub(r"\b\d+\.\d+\.\d+\.\d+(:\d+)?", "ADDRESS", line)
    line = re.sub(r"\d+(\.\d+)? [GMk]?B/s", "RATE", line)
    return re.sub(r"\d+(\.\d+)?", "N", line)


def test_the_page_has_each_scenario_and_no_other() -> None:
    assert list(shown()) == list(SCENARIOS)


@pytest.mark.parametrize("name", SCENARIOS)
def test_the_page_has_the_lines_that_are_printed(name: str, tmp_path: Path) -> None:
    """Lines may be left out, at `…`; all others are as printed."""

    async def main() -> None:
        printed = [same(line) for line in await SCENARIOS[name](tmp_path)]
        for line in shown()[name]:
            if line != "…":
                assert same(line) in printed, "\n".join(printed)
        if "…" not in shown()[name]:
            assert len(printed) == len(shown()[name])

    run(main())


def _print_all() -> Iterator[str]:
    import asyncio

    for name, scenario in SCENARIOS.items():
        with tempfile.TemporaryDirectory() as directory:
            found = asyncio.run(_awaited(scenario, Path(directory)))
        yield f"# {name}"
        yield from found


async def _awaited(scenario: Callable[[Path], Awaitable[list[str]]], path: Path) -> list[str]:
    return await scenario(path)


if __name__ == "__main__":
    sys.stdout.write("\n".join(_print_all()) + "\n")
