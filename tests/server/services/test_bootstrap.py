"""Bootstrap DNS: look-ups in rounds, on both loops; TXT records from a name server on loopback."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from ipaddress import ip_address
from typing import Any

import dns.asyncresolver
import dns.message
import dns.rrset
import pytest

from pyderp.addresses import IPAddress
from pyderp.config import BootstrapDNSConfig
from pyderp.errors import ConfigError, DialError, NameNotFound
from pyderp.relay.bootstrap import BootstrapCounters
from pyderp.server.services import bootstrap
from pyderp.server.services.bootstrap import BootstrapDNS
from pyderp.server.services.txt import system_txt
from pyderp.wire.http import BROWSER_HEADERS, Request, Response
from tests.waiting import until


class Names:
    """A resolver of addresses and TXT records, without network."""

    def __init__(self, **names: Sequence[str]) -> None:
        self.names = dict(names)
        self.asked: list[str] = []
        self.hanging: set[str] = set()
        self.hung = 0
        self.errors: dict[str, Exception] = {}

    async def addresses(self, host: str, _: socket.AddressFamily) -> list[IPAddress]:
        return [ip_address(text) for text in await self.txt(host)]

    async def txt(self, name: str) -> Sequence[str]:
        self.asked.append(name)
        await asyncio.sleep(0)  # no resolver answers at once
        if name in self.hanging:
            self.hung += 1
            try:
                await asyncio.Event().wait()
            finally:
                self.hung -= 1
        if name in self.errors:
            raise self.errors[name]
        if name not in self.names:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return self.names[name]


def make(names: Names, *, published: str = "", unpublished: str = "") -> BootstrapDNS:
    config = BootstrapDNSConfig(
        published=tuple(published.split()), unpublished=tuple(unpublished.split())
    )
    return BootstrapDNS(
        config, resolver=names.addresses, txt=names.txt, shuffle=lambda found: found.reverse()
    )


def ask(served: BootstrapDNS, name: str = "", remote: str = "1.2.3.4") -> Any:
    """Return the JSON value of the answer; before the first round `""`."""
    body = response(served, name, remote).body
    return json.loads(body) if body else ""


def response(served: BootstrapDNS, name: str = "", remote: str = "") -> Response:
    target = f"/bootstrap-dns?q={name}" if name else "/bootstrap-dns"
    return served.answer(Request("GET", target, "1.1", [], remote=remote))


@asynccontextmanager
async def started(served: BootstrapDNS) -> AsyncIterator[None]:
    served.start()
    try:
        yield
    finally:
        await served.aclose()
        assert len(asyncio.all_tasks()) == 1


async def test_published_and_unpublished_names_are_looked_up() -> None:
    names = Names(a=["192.0.2.1", "2001:db8::1"], new=["192.0.2.2", "192.0.2.3"], other=["::5"])
    served = make(names, published="a", unpublished="new other")
    assert ask(served) == ""
    async with started(served):
        await until(lambda: bool(served._answers._unpublished))
        public = {"a": ["2001:db8::1", "192.0.2.1"]}  # shuffled
        assert ask(served) == ask(served, "a") == ask(served, "random") == public
        assert ask(served, "new") == {"new": ["192.0.2.2", "192.0.2.3"]}
        assert ask(served, "other") == {"other": ["::5"]}


def test_the_answer_has_the_browser_headers_and_closes_the_connection() -> None:
    answer = response(make(Names()))
    assert answer.status == 200
    assert answer.close
    assert answer.headers == [("Content-Type", "application/json"), *BROWSER_HEADERS]
    assert answer.body == b""


async def test_a_name_that_no_longer_exists_is_removed_and_logged_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(bootstrap, "REFRESH", 0.001)

    async def main() -> None:
        names = Names(a=["192.0.2.1"], b=["192.0.2.2"])
        served = make(names, published="a b")
        async with started(served):
            await until(lambda: ask(served) == {"a": ["192.0.2.1"], "b": ["192.0.2.2"]})
            address = names.names.pop("a")
            await until(lambda: ask(served) == {"b": ["192.0.2.2"]})
            asked = len(names.asked)
            await until(lambda: len(names.asked) > asked + 6)
            names.names["a"] = address
            await until(lambda: len(ask(served)) == 2)
            del names.names["a"], names.names["b"]
            await until(lambda: ask(served) is None)

    with caplog.at_level(logging.INFO, "pyderp.bootstrap"):
        await main()
    logged = [(r.levelname, r.getMessage()) for r in caplog.records if "DNS: a" in r.getMessage()]
    failed = "look-up of 'a': Name or service not known; asked again each 0.001 s"
    assert logged == [
        ("WARNING", f"bootstrap DNS: a: {failed}"),
        ("INFO", "bootstrap DNS: a is found again"),
        ("WARNING", f"bootstrap DNS: a: {failed}"),
    ]


async def test_an_unpublished_name_that_no_longer_exists_is_removed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bootstrap, "REFRESH", 0.001)

    names = Names(a=["192.0.2.1"], b=["192.0.2.2"])
    served = make(names, unpublished="a b")
    async with started(served):
        await until(lambda: bool(ask(served, "a")))
        del names.names["a"]
        await until(lambda: ask(served, "a") == "")
        assert ask(served, "b") == {"b": ["192.0.2.2"]}


async def test_names_that_hang_do_not_delay_others(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Each look-up has its own time limit, and the last addresses stay while it fails."""
    monkeypatch.setattr(bootstrap, "LOOKUP_TIMEOUT", 0.05)
    monkeypatch.setattr(bootstrap, "REFRESH", 0.001)

    async def main() -> None:
        hanging = {f"slow{n}": ["192.0.2.2"] for n in range(10)}
        names = Names(**hanging, a=["192.0.2.1"], b=["192.0.2.3"])
        names.hanging.update(hanging)
        served = make(names, published=" ".join([*hanging, "a", "b"]), unpublished="slow0 b")
        async with started(served):
            # Found names are served before the round ends.
            await until(lambda: ask(served) == {"a": ["192.0.2.1"], "b": ["192.0.2.3"]})
            assert ask(served, "b") == {"b": ["192.0.2.3"]}
            names.hanging.clear()
            await until(lambda: len(ask(served)) == 12)
            names.hanging.update(("a", "slow0"))
            asked = len(names.asked)
            await until(lambda: names.asked[asked:].count("a") >= 3)
            assert len(ask(served)) == 12
            assert ask(served, "slow0") == {"slow0": ["192.0.2.2"]}

    with caplog.at_level(logging.WARNING, "pyderp.bootstrap"):
        await main()
    assert "slow9: no answer within 0.05 s; asked again" in caplog.text
    assert "a: no answer within 0.05 s; what was found last stays; asked again" in caplog.text


@pytest.mark.parametrize(
    ("error", "stays"),
    [
        (socket.gaierror(socket.EAI_AGAIN, "Temporary failure"), True),
        (socket.gaierror(socket.EAI_FAIL, "Non-recoverable failure"), True),
        (DialError("no way"), True),
        (OSError("odd"), True),
        (socket.gaierror(socket.EAI_NONAME, "not known"), False),
        (socket.gaierror(socket.EAI_NODATA, "no address"), False),
        (ValueError("label too long"), False),
        (NameNotFound("none"), False),
    ],
)
async def test_only_an_answer_without_addresses_removes_a_name(
    monkeypatch: pytest.MonkeyPatch, error: Exception, stays: bool
) -> None:
    monkeypatch.setattr(bootstrap, "REFRESH", 0.001)

    names = Names(a=["192.0.2.1"], b=["192.0.2.2"])
    served = make(names, published="a b", unpublished="a")
    async with started(served):
        await until(lambda: len(ask(served) or ()) == 2)
        names.errors["a"] = error
        asked = len(names.asked)
        await until(lambda: names.asked[asked:].count("b") >= 3)
        assert ("a" in ask(served)) is stays
        assert (ask(served, "a") == {"a": ["192.0.2.1"]}) is stays


async def test_a_percentage_stays_while_its_record_cannot_be_looked_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bootstrap, "REFRESH", 0.001)

    names = Names(new=["192.0.2.9"], share=["100"])
    served = make(names, unpublished="new/share")
    async with started(served):
        await until(lambda: ask(served, "new") == {"new": ["192.0.2.9"]})
        names.errors["share"] = DialError("no name server answers")
        asked = len(names.asked)
        await until(lambda: names.asked[asked:].count("share") >= 3)
        assert ask(served, "new") == {"new": ["192.0.2.9"]}
        names.errors["share"] = NameNotFound("no such record")
        await until(lambda: ask(served, "new") == "")


async def test_addresses_without_an_answer_for_a_day_are_returned_no_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bootstrap, "REFRESH", 0.001)
    monkeypatch.setattr(bootstrap, "KEEP", 0.05)

    names = Names(a=["192.0.2.1"])
    served = make(names, published="a")
    async with started(served):
        await until(lambda: ask(served) == {"a": ["192.0.2.1"]})
        names.errors["a"] = DialError("no name server answers")
        await until(lambda: ask(served) is None)


async def test_closing_during_a_look_up_leaves_no_task() -> None:
    names = Names()
    names.hanging.add("slow")
    served = make(names, published="slow")
    async with started(served):
        await until(lambda: names.hung >= 1)
    assert names.hung == 0
    await served.aclose()


async def test_an_unexpected_error_ends_only_one_look_up(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(bootstrap, "REFRESH", 0.001)

    names = Names(a=["192.0.2.1"], n=["192.0.2.9"], t=[3])  # type: ignore[list-item] # meant
    served = make(names, published="a", unpublished="n/t")
    async with started(served):
        await until(lambda: names.asked.count("t") >= 2)
        assert ask(served) == {"a": ["192.0.2.1"]}
        names.names["t"] = ["100"]
        await until(lambda: ask(served, "n") == {"n": ["192.0.2.9"]})
    assert "bootstrap DNS: t failed unexpectedly; asked again in 0.001 s" in caplog.text


@pytest.mark.parametrize(
    ("texts", "inside", "outside"),
    [
        (["50"], True, False),
        (["0", "x"], False, False),
        (["100"], True, True),
        ([], False, False),
        (None, False, False),
    ],
)
async def test_a_txt_record_limits_which_clients_get_an_answer(
    texts: list[str] | None, inside: bool, outside: bool
) -> None:
    names = Names(a=["192.0.2.1"], new=["192.0.2.9"])
    if texts is not None:
        names.names["share"] = texts
    served = make(names, published="a/unasked", unpublished="new/share")
    async with started(served):
        await until(lambda: bool(served._answers._unpublished))
        assert (ask(served, "new", "1.2.3.4") == {"new": ["192.0.2.9"]}) is inside
        assert (ask(served, "new", "1.2.3.6") == {"new": ["192.0.2.9"]}) is outside
        assert "unasked" not in names.asked


async def test_requests_are_counted() -> None:
    names = Names(a=["192.0.2.1"])
    served = make(names, published="a")
    async with started(served):
        await until(lambda: served._answers._body != b"")
    for name in ("", "a", "b", "b"):
        ask(served, name)
    assert served.counters == BootstrapCounters(
        requests=4, published_hits=1, unpublished_misses=2, queried_domains=2
    )


async def test_without_names_no_task_runs() -> None:
    served = BootstrapDNS(BootstrapDNSConfig())
    served.start()
    assert len(asyncio.all_tasks()) == 1
    await served.aclose()


async def test_the_systems_resolver_is_the_default() -> None:
    served = BootstrapDNS(BootstrapDNSConfig(published=("localhost", "192.0.2.7")))
    async with started(served):
        await until(lambda: len(ask(served) or ()) == 2)
    assert set(ask(served)["localhost"]) <= {"127.0.0.1", "::1"}
    assert ask(served)["192.0.2.7"] == ["192.0.2.7"]


def test_a_wrong_entry_is_an_error_at_once() -> None:
    with pytest.raises(ConfigError, match="'/txt'"):
        make(Names(), unpublished="a /txt")


@pytest.mark.parametrize(("entry", "loaded"), [("a", False), ("a/b", True)])
def test_dnspython_is_loaded_only_for_txt_records(entry: str, loaded: bool) -> None:
    code = (
        "import sys\n"
        "from pyderp.server.services.bootstrap import BootstrapDNS\n"
        "from pyderp.config import BootstrapDNSConfig\n"
        f"BootstrapDNS(BootstrapDNSConfig(published=('x/y',), unpublished=({entry!r},)))\n"
        "print('dns.asyncresolver' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(loaded)


class NameServer(asyncio.DatagramProtocol):
    """Answers TXT queries on loopback."""

    def __init__(self, records: dict[str, list[str]]) -> None:
        self.records = records
        self.asked: list[str] = []

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        query = dns.message.from_wire(data)
        question = query.question[0]
        name = question.name.to_text(omit_final_dot=True)
        self.asked.append(name)
        if name == "silent.example":
            return
        reply = dns.message.make_response(query)
        texts = self.records.get(name)
        if texts is None:
            reply.set_rcode(dns.rcode.NXDOMAIN)
        else:
            reply.answer.append(dns.rrset.from_text(question.name, 60, "IN", "TXT", *texts))
        self.transport.sendto(reply.to_wire(), addr)


@asynccontextmanager
async def name_server(
    **records: list[str],
) -> AsyncIterator[tuple[NameServer, dns.asyncresolver.Resolver]]:
    """Start a name server, and yield it with a resolver that queries it."""
    loop = asyncio.get_running_loop()
    names = {f"{name}.example": texts for name, texts in records.items()}
    transport, server = await loop.create_datagram_endpoint(
        lambda: NameServer(names), local_addr=("127.0.0.1", 0)
    )
    resolver = dns.asyncresolver.Resolver(configure=False)
    resolver.nameservers = ["127.0.0.1"]
    resolver.port = transport.get_extra_info("sockname")[1]
    try:
        yield server, resolver
    finally:
        transport.close()
        await asyncio.sleep(0)


async def test_txt_records_are_read_from_a_name_server() -> None:
    async with name_server(share=['"7" "5"', '"x\\255"']) as (_, resolver):
        assert sorted(await system_txt("share.example", resolver=resolver)) == ["75", "x\ufffd"]


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("missing.example", "look-up of 'missing.example': The DNS query name does not exist"),
        ("a..b", "look-up of 'a..b': A DNS label is empty"),
        ("x" * 70, "A DNS label is > 63 octets long"),
    ],
)
async def test_a_name_without_txt_records_is_an_error(name: str, why: str) -> None:
    async with name_server() as (_, resolver):
        with pytest.raises(DialError, match=why):
            await system_txt(name, resolver=resolver)


async def test_a_txt_look_up_can_be_cancelled() -> None:
    async with name_server() as (server, resolver):
        task = asyncio.create_task(system_txt("silent.example", resolver=resolver))
        await until(lambda: bool(server.asked))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_a_percentage_is_looked_up_at_the_systems_name_servers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with name_server(share=['"50"']) as (_, resolver):
        monkeypatch.setattr(dns.asyncresolver, "Resolver", lambda: resolver)
        served = BootstrapDNS(
            BootstrapDNSConfig(unpublished=("new/share.example",)),
            resolver=Names(new=["192.0.2.9"]).addresses,
        )
        async with started(served):
            await until(lambda: bool(ask(served, "new", "1.2.3.4")))
            assert ask(served, "new", "1.2.3.6") == ""
