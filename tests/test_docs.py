"""The documentation is right: links, commands and tables are checked, and its programs are run."""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import pytest
from scripts import check_docs

import pyderp
from pyderp.client import client, sending
from pyderp.client.lifecycle import Lifecycle
from pyderp.testing import FaultyRelay, client_pair
from tests.cli.process import Process as RelayProcess
from tests.cli.process import pyderp as run_command
from tests.cli.process import running as relay_process

BLOCKS = {
    block.mark: block
    for path in check_docs.pages(check_docs.ROOT)
    for block in check_docs.blocks(path)
    if block.mark
}
WITH_A_PROGRAM = {"bridge", "talk", "my-program"}
"""Blocks that are, or need, a program of its own."""


def run_block(name: str) -> dict[str, Any]:
    """Run a block as a module, and the tests in it; returns its names."""
    block = BLOCKS[name]
    names: dict[str, Any] = {"__name__": f"example_{name}"}
    exec(compile(block.text, f"{block.path}:{block.line}", "exec"), names)
    for key, value in names.items():
        if key.startswith("test_"):
            value()
    return names


# The examples


@pytest.fixture
def talk(tmp_path: Path) -> Path:
    """The tutorial's program, in a file."""
    path = tmp_path / "talk.py"
    path.write_text(BLOCKS["talk"].text)
    return path


async def start(program: Path, *args: str) -> Process:
    """Start a program as a user would."""
    return await asyncio.create_subprocess_exec(sys.executable, str(program), *args, stdout=PIPE)


async def line_of(process: Process) -> str:
    """The next line that a program prints."""
    assert process.stdout is not None
    return (await process.stdout.readline()).decode().strip()


async def converse(program: Path, url: str) -> tuple[str, str, str]:
    """Run the tutorial's two programs; returns what each prints, the first in two lines."""
    listener = await start(program, url)
    try:
        name = await line_of(listener)
        sender = await start(program, url, name.removeprefix("I am "), "hello")
        answer = await line_of(sender)
        await sender.communicate()
        assert sender.returncode == 0
        return name, await line_of(listener), answer
    finally:
        listener.kill()
        await listener.communicate()


def test_the_two_programs_of_the_tutorial_talk(talk: Path) -> None:
    """The output is the one that the tutorial shows."""

    async def scenario() -> None:
        async with pyderp.Relay() as relay:
            name, printed, answer = await converse(talk, relay.url)
        key = pyderp.NodePublic.parse(name.removeprefix("I am "))
        assert answer == f"{key.short()} says: thank you for hello"
        assert printed.endswith(" says: hello")

    asyncio.run(scenario())


async def send_junk(relay: pyderp.Relay, victim: pyderp.NodePublic) -> None:
    """Send what any client can: packets that are not sealed, no text, or of the largest size."""
    async with pyderp.Client.for_url(relay.url) as client:
        sealed = client.sealed(victim)
        for packet in (b"", b"junk", sealed.seal(b"\xff"), sealed.seal(bytes(sealed.max_payload))):
            await client.send(victim, packet)
        await client.ping()


def test_the_answering_program_of_the_tutorial_survives_any_packet(talk: Path) -> None:
    """It continues to answer."""

    async def scenario() -> None:
        async with pyderp.Relay() as relay, pyderp.Client.for_url(relay.url) as friend:
            listener = await start(talk, relay.url)
            try:
                key = pyderp.NodePublic.parse((await line_of(listener)).removeprefix("I am "))
                await send_junk(relay, key)
                await friend.sealed(key).send(b"hello")
                async with asyncio.timeout(20):
                    async for message in friend:
                        if isinstance(message, pyderp.ReceivedPacket):
                            answer = friend.sealed(key).open_untrusted(message.data)
                            break
                assert answer == b"thank you for hello"
            finally:
                listener.kill()
                await listener.communicate()

    asyncio.run(scenario())


async def thanked(friend: pyderp.Client, key: pyderp.NodePublic, text: bytes) -> None:
    """Ask until the program answers: packets to it are lost while it is not connected."""
    messages = friend.messages()
    async with asyncio.timeout(60):
        while True:
            await friend.send(key, friend.sealed(key).seal(text), reconnect=True)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.5):
                    async for message in messages:
                        if isinstance(message, pyderp.ReceivedPacket):
                            answer = friend.sealed(key).open_untrusted(message.data)
                            if answer == b"thank you for " + text:
                                return


def test_the_answering_program_of_the_tutorial_survives_the_relay(
    talk: Path, tmp_path: Path
) -> None:
    """The relay is killed while the program answers, and another one takes its place."""
    flags = ("--dev", "-c", tmp_path / "key", "-a")

    async def scenario(first: RelayProcess) -> None:
        host, port = first.address()
        url = f"http://{host}:{port}/derp"
        listener = await start(talk, url)
        try:
            key = pyderp.NodePublic.parse((await line_of(listener)).removeprefix("I am "))
            async with pyderp.Client.for_url(url) as friend:
                await thanked(friend, key, b"one")
                for number in range(50):
                    await friend.send(key, friend.sealed(key).seal(b"%d" % number))
                first.signal(signal.SIGKILL)
                first.end()
                with relay_process(*flags, f"{host}:{port}") as second:
                    second.address()
                    await thanked(friend, key, b"two")
            assert listener.returncode is None
        finally:
            listener.kill()
            await listener.communicate()

    with relay_process(*flags, "127.0.0.1:0") as first:
        asyncio.run(scenario(first))


def test_the_asking_program_of_the_tutorial_survives_any_packet(talk: Path) -> None:
    """A packet from the peer that does not open is not taken as the answer."""

    async def scenario() -> None:
        async with pyderp.Relay() as relay, pyderp.Client.for_url(relay.url) as peer:
            await peer.connect()
            sender = await start(talk, relay.url, str(peer.self_public_key), "hello")
            async with asyncio.timeout(20):
                async for message in peer:
                    if isinstance(message, pyderp.ReceivedPacket):
                        await peer.send(message.source, b"junk")
                        await peer.sealed(message.source).send(b"hello, too")
                        break
            assert (await line_of(sender)).startswith("refused a packet: ")
            assert await line_of(sender) == f"{peer.self_public_key.short()} says: hello, too"
            await sender.communicate()
            assert sender.returncode == 0

    asyncio.run(scenario())


@pytest.mark.parametrize("name", ["client", "sealed", "readme-client", "start-client"])
def test_the_other_examples_survive_any_packet(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each client sends junk before its packets."""
    # Below `Client.send`, which sealed packets do not go through.
    send = sending.send_packets

    async def send_junk_first(
        life: Lifecycle, dst: pyderp.NodePublic, packets: Sequence[bytes]
    ) -> None:
        await send(life, dst, [b"junk"])
        await send(life, dst, packets)

    for module in (client, sending):
        monkeypatch.setattr(module, "send_packets", send_junk_first)
    run_block(name)
    printed = capsys.readouterr().out
    assert name == "sealed" or "b'hello'" in printed
    silent = name in ("readme-client", "start-client")
    assert silent or "refused: not a sealed packet" in printed


def test_the_test_around_a_program_passes(talk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The guide's test, with the tutorial's two programs as the program under test."""
    urls = []

    async def run(url: str) -> None:
        urls.append(url)
        await converse(talk, url)

    my_program = ModuleType("my_program")
    monkeypatch.setattr(my_program, "run", run, raising=False)
    monkeypatch.setitem(sys.modules, "my_program", my_program)
    run_block("my-program")
    assert len(urls) == 1


def test_the_client_of_the_readme_talks(capsys: pytest.CaptureFixture[str]) -> None:
    """It prints the packet."""
    run_block("readme-client")
    assert capsys.readouterr().out == "b'hello'\n"


@pytest.mark.parametrize("name", sorted(BLOCKS.keys() - WITH_A_PROGRAM))
def test_example_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Examples marked as tests run, and so do the tests in them, in their own folder."""
    monkeypatch.chdir(tmp_path)
    run_block(name)


@pytest.mark.slow
def test_the_commands_of_the_start_page_succeed(tmp_path: Path) -> None:
    """They check a relay that runs, and measure round trips to it."""
    text = (check_docs.ROOT / "docs" / "index.md").read_text()
    commands = re.findall(r"^\$ .venv/bin/pyderp (\w+) http://127.0.0.1:3340/derp$", text, re.M)
    assert commands == ["doctor", "ping"]
    with relay_process("--dev", "--no-stun", "-c", tmp_path / "key", "-a", "127.0.0.1:0") as relay:
        host, port = relay.address()
        doctor, ping = (run_command(name, f"http://{host}:{port}/derp") for name in commands)
    assert "ok    relay.packet" in doctor.stdout
    assert " 0.0% lost" in ping.stdout


# The checks


def test_documentation_is_right() -> None:
    """No check finds a problem."""
    assert check_docs.problems() == []


@pytest.mark.parametrize(
    ("page", "problem"),
    [
        ("[a](missing.md)", "link to missing.md: no such file"),
        ("[a](#missing)", "link to #missing: no such heading"),
        ("`pyderp relay --no-such`", "pyderp relay --no-such: no such flag"),
        ("```sh\n.venv/bin/pyderp relay -a :1 \\\n  --nope=1\n```", "--nope: no such flag"),
        ("```console\n$ pyderp fly --high\n```", "pyderp fly: no such command"),
        ("`pyderp --vrsion`", "pyderp --vrsion: no such flag"),
        ("`make coffee`", "make coffee: no such target"),
        ("`make relay ARGS='--no-such'`", "pyderp relay --no-such: no such flag"),
        ("set `PYDERP_NOTHING`", "PYDERP_NOTHING: no such environment variable"),
        ("```python\nprint(\n```", "Python block does not parse"),
        ("```json\n{\n```", "JSON block does not parse"),
        ("```toml\nhostnam = 'x'\n```", "hostnam: no such setting"),
        ("```toml\ndrain = 'x'\n```", "TOML block: want a duration"),
        ("```toml\ndrain =\n```", "TOML block: Invalid value"),
        ("<!-- generated: nothing -->\n<!-- end -->", "no such table"),
        ("<!-- generated: limits -->\n| old |\n<!-- end -->", "out of date"),
        ("<!-- generated: metrics-own -->\n| old |\n<!-- end -->", "out of date"),
        (
            "```yaml\nexpr: rate(derp_nonsense_total[5m])\n```",
            "derp_nonsense_total: no such metric",
        ),
    ],
)
def test_each_check_finds_its_problem(tmp_path: Path, page: str, problem: str) -> None:
    (tmp_path / "page.md").write_text(f"# A page\n\n{page}\n")
    found = check_docs.problems(tmp_path)
    assert len(found) == 1
    assert problem in found[0]


def test_correct_documentation_has_no_findings(tmp_path: Path) -> None:
    """Correct links, anchors, commands and blocks pass."""
    (tmp_path / "a.md").write_text(
        "# One `thing`, [here](b.md)\n\n# Same\n\n# Same\n\n[b](b.md), [self](#one-thing-here), "
        "[second](#same-1), [web](https://example.com/x), `[no](link.md)`, `src/pyderp relay`,\n"
        "`pyderp relay --dev -c FILE`, `make relay TLS=1`, `PYDERP_ADDRESS`, `derp_accepts`,\n"
        "`pyderp_admission_…`\n"
    )
    (tmp_path / "b.md").write_text(
        "```console\n$ pyderp relay --drain=0 2>log | tail --lines=1\n```"
    )
    assert check_docs.problems(tmp_path) == []


def test_counters_must_be_explained(tmp_path: Path) -> None:
    """The page of counters must have each counter, and no other."""
    (tmp_path / "log-and-counters.md").write_text("| `accepts` | x |\n| `nonsense` | x |\n")
    found = check_docs.problems(tmp_path)
    assert any("counter nonsense: no such" in line for line in found)
    assert any("counter packets_sent: not explained" in line for line in found)
    assert not any("counter accepts:" in line for line in found)


def test_write_renews_tables(tmp_path: Path) -> None:
    """Old tables are replaced, and then no change is left to make."""
    page = tmp_path / "page.md"
    page.write_text("<!-- generated: frames -->\nold\n<!-- end -->\nrest\n")
    assert check_docs.write_tables(tmp_path) == [page]
    assert "| `04` | SendPacket | client |" in page.read_text()
    assert page.read_text().endswith("<!-- end -->\nrest\n")
    assert check_docs.problems(tmp_path) == []
    assert check_docs.write_tables(tmp_path) == []


def test_the_command_names_the_mistake(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The exit status is 1 and the problem is printed with file and line."""
    (tmp_path / "page.md").write_text("[a](missing.md)\n")
    monkeypatch.setattr(check_docs, "problems", lambda: ["page.md:1: link to missing.md"])
    assert check_docs.main([]) == 1
    assert capsys.readouterr().out == "page.md:1: link to missing.md\n"


# Claims


def test_frames_are_listed_for_their_senders() -> None:
    """A frame that the other side only skips is not listed for it."""
    rows = [row.split(" | ") for row in check_docs.frame_types().splitlines()]
    senders = {row[1]: row[2] for row in rows}
    from_relays = "ServerKey ServerInfo RecvPacket KeepAlive PeerGone PeerPresent Pong Health"
    for name in [*from_relays.split(), "Restarting"]:
        assert senders[name] == "relay"
    for name in ("ClientInfo", "SendPacket", "NotePreferred", "ForwardPacket", "WatchConns"):
        assert senders[name] == "client"
    assert senders["Ping"] == "client, relay"


def test_the_sender_with_acknowledgements_loses_nothing() -> None:
    """Packets and answers are dropped, and the relay hangs up in between."""
    names = run_block("acknowledged")
    parts = [n.to_bytes(2) * 100 for n in range(100)]

    async def scenario() -> None:
        async with FaultyRelay(seed=1) as relay, client_pair(relay) as (a, b):
            relay.drop_next(2)
            relay.drop_next(2, way="down")
            receiving = asyncio.create_task(names["receive_all"](b, a.self_public_key, len(parts)))
            sending = asyncio.create_task(names["send_all"](a, b.self_public_key, parts))
            while a.stats.packets_sent < 30:  # noqa: ASYNC110 (there is no event)
                await asyncio.sleep(0)
            relay.cut()
            assert await receiving == parts
            sending.cancel()  # its last answer may have been lost
            await asyncio.wait([sending])
            assert relay.counters.dropped == 4
            assert relay.counters.cut == 2

    asyncio.run(asyncio.wait_for(scenario(), 60))


# The glossary


GLOSSARY = check_docs.ROOT / "docs" / "reference" / "glossary.md"
ENTRIES = dict(re.findall(r"^## (.+)\n\n((?:(?!## ).*\n)+)", GLOSSARY.read_text(), re.MULTILINE))


@pytest.fixture(scope="module")
def other_text() -> str:
    """All pages but the glossary, and the code."""
    paths = [*check_docs.pages(check_docs.ROOT / "docs"), *(check_docs.ROOT / "src").rglob("*.py")]
    return "\n".join(path.read_text() for path in paths if path != GLOSSARY)


def is_used(term: str, text: str) -> bool:
    """Whether a text has a term, in any case, as `Peer gone` in `PeerGone` and `peer_gone`."""
    pattern = r"[\s_-]?".join(re.escape(word) for word in re.split("[ -]", term))
    return re.search(rf"(?<![a-z]){pattern}", text, re.IGNORECASE) is not None


def test_terms_of_the_glossary_are_sorted() -> None:
    assert len(ENTRIES) == GLOSSARY.read_text().count("\n## ")
    assert len(ENTRIES) > 40
    assert list(ENTRIES) == sorted(ENTRIES, key=str.casefold)


@pytest.mark.parametrize("term", ENTRIES)
def test_term_of_the_glossary_is_used_elsewhere(term: str, other_text: str) -> None:
    """A term that no page and no code has any more leaves the glossary."""
    assert is_used(term, other_text)


@pytest.mark.parametrize("term", ENTRIES)
def test_term_of_the_glossary_leads_to_a_page(term: str) -> None:
    assert re.search(r"\]\([^)]*\.md(#[\w-]+)?\)", ENTRIES[term])


def test_a_term_that_is_nowhere_is_noticed(other_text: str) -> None:
    assert not is_used("Peer unheard of", other_text)
    assert not is_used("eer gone", "PeerGone")


def test_the_picture_of_the_readme_needs_no_other_file() -> None:
    """It has a description, a background of its own and nothing to load."""
    readme = (check_docs.ROOT / "README.md").read_text()
    (name,) = re.findall(r"^!\[\w[^\]]+\]\((\S+\.svg)\)$", readme, re.MULTILINE)
    text = (check_docs.ROOT / name).read_text()
    assert not re.search(r"href|url\(|@import|<script|<image", text)
    svg = ElementTree.fromstring(text)
    names = [child.tag.rpartition("}")[2] for child in svg]
    assert names[:3] == ["title", "desc", "rect"]
    assert {child.get("fill") for child in svg if child.tag.endswith("rect")} >= {"#ffffff"}
