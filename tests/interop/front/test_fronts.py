"""nginx, HAProxy and Caddy in front of the relay, with the files of `contrib/`."""

from __future__ import annotations

import asyncio
import re
import shlex
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

import pytest

from pyderp import Client, DERPNode
from tests.cli import process
from tests.interop.client.support import clients, deliver, region, url
from tests.interop.gopeer import play
from tests.interop.peers import REPOSITORY
from tests.interop.relays import Relay, running

from .fronts import Front, front
from .seen import FROM, connections, present, settings, watcher

FROM_HERE = b"PROXY TCP4 127.0.0.1 127.0.0.1 1 2\r\n"
"""The PROXY header of a request from the relay's own machine."""

END = ["nginx/end-tls.conf", "haproxy/end-tls.cfg", "caddy/Caddyfile"]
PASS = ["nginx/pass-tls.conf", "haproxy/pass-tls.cfg"]
SHARED = ["nginx/share-443.conf", "nginx/share-443-site.conf"]
TRUSTED = "--trusted-proxy=127.0.0.1"

GUIDE = REPOSITORY / "docs" / "howto" / "behind-a-proxy.md"

Behind: TypeAlias = tuple[Relay, Front]


@contextmanager
def ending(snippet: str, directory: Path, *options: str) -> Iterator[Behind]:
    """A plain relay behind a proxy that terminates TLS."""
    with (
        running("pyderp", "plain", directory, options=options) as relay,
        front(snippet, f"127.0.0.1:{relay.port}", directory) as proxy,
    ):
        yield relay, proxy


def through(proxy: Front, relay: Relay) -> Relay:
    """The relay as Go's clients reach it."""
    ca = relay.ca or proxy.ca
    return replace(relay, setup="named", port=proxy.port, ca=ca)


def by_proxy(proxy: Front) -> str:
    return f"https://localhost:{proxy.port}/derp"


@pytest.mark.parametrize(
    ("snippet", "on_loop"),
    [(END[0], "uvloop"), (END[1], "asyncio"), (END[2], "uvloop")],
    indirect=["on_loop"],
)
async def test_tls_can_end_in_the_proxy(snippet: str, tmp_path: Path) -> None:
    """DERP and websockets pass, and the relay has and logs the clients' own addresses."""

    async def main(relay: Relay, proxy: Front) -> None:
        derp = Client.for_url(by_proxy(proxy), config=settings(proxy.ca))
        web = Client.for_url(by_proxy(proxy), config=settings(proxy.ca, websocket=True))
        watching = watcher(url(relay), None)
        async with clients(derp, web, watching):
            await deliver(derp, web, bytes(40_000))
            await deliver(web, derp, bytes(40_000))
            rows = await connections(relay.port, None)
            reported = await present(watching, derp.self_public_key)
            for client, over in ((derp, "plain"), (web, "websocket, plain")):
                row = rows[str(client.self_public_key)]
                assert (row["address"].rpartition(":")[0], row["over"]) == (FROM, over)
        assert reported[0] == FROM

    with ending(snippet, tmp_path, TRUSTED) as (relay, proxy):
        await main(relay, proxy)
        await answers_plain_http(proxy)
        await forged_headers_are_ignored(proxy)
        await comes_by_ipv6(proxy, proxy.ca)
        for flags in ((), ("-mode", "ws")):
            play(through(proxy, relay), "sendrecv", flags)


async def exchange(
    host: str,
    port: int,
    request: str,
    context: ssl.SSLContext | None,
    source: str = FROM,
    name: str = "localhost",
) -> str:
    """Send a request; returns the answer, or nothing if the connection is closed instead."""
    async with asyncio.timeout(10):
        reader, writer = await asyncio.open_connection(
            host,
            port,
            ssl=context,
            server_hostname=name if context else None,
            local_addr=(source, 0),
        )
        try:
            writer.write(request.replace("\n", "\r\n").encode())
            return (await reader.read()).decode()
        except ConnectionResetError:
            return ""
        finally:
            writer.close()


async def comes_by_ipv6(proxy: Front, ca: Path) -> None:
    """A client with IPv6 reaches the relay, which sees that address."""
    context = ssl.create_default_context(cafile=ca)
    page = debug_page().replace("/debug/", "/debug/connections?format=json")
    six = DERPNode(
        name="900a",
        region_id=900,
        host_name="localhost",
        ipv4="none",
        ipv6="::1",
        derp_port=proxy.port,
    )
    client = Client.for_region(region(six), config=settings(ca, "::1"))
    async with clients(client):
        answer = await exchange("::1", proxy.port, page, context, "::1")
    assert '"address": "[::1]:' in answer, answer


async def answers_plain_http(proxy: Front) -> None:
    """The check for captive portals reaches the relay, all other requests are redirected."""
    head = " HTTP/1.1\nHost: localhost\nConnection: close\nX-Tailscale-Challenge: abc\n\n"
    answer = await exchange("127.0.0.1", proxy.http_port, "GET /generate_204" + head, None)
    assert answer.startswith("HTTP/1.1 204")
    assert "x-tailscale-response: response abc" in answer.lower()
    answer = await exchange("127.0.0.1", proxy.http_port, "GET /derp/probe?x=1" + head, None)
    assert answer.startswith("HTTP/1.1 302")
    assert "location: https://localhost/derp/probe?x=1\r\n" in answer.lower()


async def forged_headers_are_ignored(proxy: Front) -> None:
    """A client's own headers do not count: the relay still takes it for 127.0.0.2, which may see
    `/debug/` as it is this machine."""
    context = ssl.create_default_context(cafile=proxy.ca)
    for lie in ("X-Forwarded-For: 8.8.8.8", "Forwarded: for=8.8.8.8"):
        answer = await exchange("127.0.0.1", proxy.port, debug_page(lie), context)
        assert answer.startswith("HTTP/1.1 200"), answer


def debug_page(*headers: str) -> str:
    lines = ("GET /debug/ HTTP/1.1", "Host: localhost", "Connection: close", *headers)
    return "\n".join(lines) + "\n\n"


@pytest.mark.parametrize("on_loop", ["uvloop"], indirect=True)
async def test_headers_of_an_untrusted_proxy_are_not_believed(tmp_path: Path) -> None:
    """Without --trusted-proxy the relay sees the proxy, and forwarded requests do not get
    `/debug/`."""

    async def main(relay: Relay, proxy: Front) -> None:
        client = Client.for_url(by_proxy(proxy), config=settings(proxy.ca))
        async with clients(client):
            (row,) = (await connections(relay.port, None)).values()
            assert row["address"].rpartition(":")[0] == "127.0.0.1"
        context = ssl.create_default_context(cafile=proxy.ca)
        answer = await exchange("127.0.0.1", proxy.port, debug_page(), context)
        assert answer.startswith("HTTP/1.1 403"), answer

    with ending("nginx/end-tls.conf", tmp_path) as (relay, proxy):
        await main(relay, proxy)


@pytest.mark.parametrize("on_loop", ["asyncio"], indirect=True)
async def test_only_the_named_proxy_is_believed(tmp_path: Path) -> None:
    """Other hosts may reach the relay, too: their headers are ignored."""

    async def main(relay: Relay) -> None:
        claim = debug_page("X-Forwarded-For: 8.8.8.8")
        own = debug_page("X-Forwarded-For: 100.64.0.7")
        for asked, trusted, answer in (
            (claim, True, "403"),  # used: that address may not see it
            (own, True, "200"),  # used: a Tailscale address may
            (own, False, "403"),  # ignored, and not this machine's own request either
            (debug_page(), False, "200"),
        ):
            source = "127.0.0.1" if trusted else FROM
            got = await exchange("127.0.0.1", relay.port, asked, None, source)
            assert got.startswith(f"HTTP/1.1 {answer}"), (asked, source, got)

    with running("pyderp", "plain", tmp_path, options=[TRUSTED]) as relay:
        await main(relay)


@contextmanager
def passing(
    snippet: str, directory: Path, changes: Mapping[str, str] | None = None
) -> Iterator[Behind]:
    """A relay with TLS behind a proxy that passes it on."""
    options = (TRUSTED, "--proxy-protocol")
    with (
        running("pyderp", "named", directory, options=options) as relay,
        front(snippet, f"127.0.0.1:{relay.port}", directory, changes) as proxy,
    ):
        yield relay, proxy


@pytest.mark.parametrize(
    ("snippet", "changes", "on_loop"),
    [
        ("nginx/pass-tls.conf", {}, "uvloop"),
        ("haproxy/pass-tls.cfg", {}, "asyncio"),
        ("haproxy/pass-tls.cfg", {"send-proxy-v2": "send-proxy"}, "uvloop"),
        # The proxy's health checks must not appear in the relay's log.
        ("haproxy/pass-tls.cfg", {"send-proxy-v2": "send-proxy-v2 check inter 50ms"}, "asyncio"),
    ],
    indirect=["on_loop"],
    ids=["nginx", "haproxy-v2", "haproxy-v1", "haproxy-checks"],
)
async def test_tls_can_pass_through_the_proxy(
    snippet: str, changes: dict[str, str], tmp_path: Path
) -> None:
    """PROXY headers of both versions have the clients' addresses; TLS is the relay's own."""

    async def main(relay: Relay, proxy: Front) -> None:
        assert relay.ca is not None
        derp = Client.for_url(by_proxy(proxy), config=settings(relay.ca))
        web = Client.for_url(by_proxy(proxy), config=settings(relay.ca, websocket=True))
        watching = watcher(by_proxy(proxy), relay.ca)
        async with clients(derp, web, watching):
            await deliver(derp, web, bytes(40_000))
            await deliver(web, derp, bytes(40_000))
            rows = await connections(relay.port, relay.ca, before=FROM_HERE)
            reported = await present(watching, derp.self_public_key)
            for client, over in ((derp, "TLS 1.3"), (web, "websocket, TLS 1.3")):
                row = rows[str(client.self_public_key)]
                assert (row["address"].rpartition(":")[0], row["over"]) == (FROM, over)
            # The port as well, so that the firewall's log can be compared.
            assert rows[str(derp.self_public_key)]["address"] == f"{reported[0]}:{reported[1]}"
        await refuses_a_header_of_others(relay)
        await refuses_another_name(proxy)

    with passing(snippet, tmp_path, changes) as (relay, proxy):
        assert relay.ca is not None
        await main(relay, proxy)
        await comes_by_ipv6(proxy, relay.ca)
        play(through(proxy, relay), "sendrecv", ())
        problems = [
            line for line in relay.log_text().splitlines() if "not a trusted proxy" not in line
        ]
        assert not [line for line in problems if "PROXY" in line or "handshake" in line]


async def refuses_a_header_of_others(relay: Relay) -> None:
    """A client that connects past the proxy is closed, with a header or without."""
    header = "PROXY TCP4 100.64.0.1 127.0.0.1 1 2\n"
    answer = await exchange("127.0.0.1", relay.port, header, None)
    assert answer == ""
    assert f" {FROM}:" in relay.log_text()


async def refuses_another_name(proxy: Front) -> None:
    """Connections for another name do not reach the relay."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with pytest.raises(OSError):
        await asyncio.open_connection("127.0.0.1", proxy.port, ssl=context, server_hostname="other")


@pytest.mark.parametrize("snippet", END)
def test_a_proxy_can_connect_over_a_unix_socket(snippet: str, tmp_path: Path) -> None:
    """The relay has no TCP port, and still has the clients' addresses."""
    # Caddy spells it differently.
    path = f"{tmp_path}/relay.sock"
    there = {"nginx": f"unix:{path}:", "haproxy": f"unix@{path}", "caddy": f"unix/{path}"}

    async def main(proxy: Front) -> None:
        client = Client.for_url(by_proxy(proxy), config=settings(proxy.ca))
        async with clients(client):
            await client.send(client.self_public_key, b"x")
            context = ssl.create_default_context(cafile=proxy.ca)
            page = debug_page().replace("/debug/", "/debug/connections?format=json")
            answer = await exchange("127.0.0.1", proxy.port, page, context)
        assert f'"address": "{FROM}:' in answer

    with process.running("--dev", "--no-stun", "-a", f"unix:{path}", TRUSTED) as relay:
        relay.wait_for("admits every client")
        assert f"INFO listening on unix:{path}\n" in relay.text
        with front(snippet, there[snippet.partition("/")[0]], tmp_path) as proxy:
            asyncio.run(main(proxy))


@pytest.mark.parametrize("on_loop", ["uvloop"], indirect=True)
async def test_port_443_is_shared_with_web_sites(tmp_path: Path) -> None:
    """TLS of the relay passes through by its name, all other connections go to sites of this nginx.
    Both get the clients' addresses."""

    async def main(relay: Relay, proxy: Front) -> None:
        assert relay.ca is not None
        client = Client.for_url(by_proxy(proxy), config=settings(relay.ca))
        async with clients(client):
            await deliver(client, client, bytes(40_000))
            rows = await connections(relay.port, relay.ca, before=FROM_HERE)
            address = rows[str(client.self_public_key)]["address"]
            assert address.rpartition(":")[0] == FROM
        context = ssl.create_default_context(cafile=proxy.ca)
        context.check_hostname = False
        for name in ("www.example.com", "other.example.com"):
            answer = await exchange("127.0.0.1", proxy.port, page(), context, name=name)
            assert answer.endswith(f"a site for {FROM}"), answer
        answer = await exchange("::1", proxy.port, page(), context, "::1", "www.example.com")
        assert answer.endswith("a site for ::1"), answer

    site = (REPOSITORY / "contrib" / SHARED[1]).read_text()
    folder = tmp_path / SHARED[0].replace("/", "-")
    for old, new in {
        "/etc/ssl/www.example.com": f"{folder}/localhost",
        "root /var/www/html;": 'location / { return 200 "a site for $remote_addr"; }',
    }.items():
        assert old in site
        site = site.replace(old, new)
    options = (TRUSTED, "--proxy-protocol")
    with (
        running("pyderp", "named", tmp_path, options=options) as relay,
        front(SHARED[0], f"127.0.0.1:{relay.port}", tmp_path, site=site) as proxy,
    ):
        await main(relay, proxy)
        play(through(proxy, relay), "sendrecv", ())


@pytest.mark.parametrize("on_loop", ["asyncio"], indirect=True)
async def test_the_relay_can_be_beside_other_sites_where_tls_ends(tmp_path: Path) -> None:
    """Server blocks of one port: nginx chooses by name between the relay and the sites."""

    async def main(relay: Relay, proxy: Front) -> None:
        client = Client.for_url(by_proxy(proxy), config=settings(proxy.ca))
        async with clients(client):
            await deliver(client, client, b"x")
        context = ssl.create_default_context(cafile=proxy.ca)
        context.check_hostname = False
        asked = page().replace("localhost", "www.example.com")
        answer = await exchange("127.0.0.1", proxy.port, asked, context, name="www.example.com")
        assert answer.endswith("another site"), answer

    folder = tmp_path / "nginx-end-tls.conf"
    site = f"""server {{
        listen 443 ssl;
        listen [::]:443 ssl;
        server_name www.example.com;
        ssl_certificate {folder}/localhost.crt;
        ssl_certificate_key {folder}/localhost.key;
        location / {{ return 200 "another site"; }}
    }}
    """
    with (
        running("pyderp", "plain", tmp_path, options=[TRUSTED]) as relay,
        front("nginx/end-tls.conf", f"127.0.0.1:{relay.port}", tmp_path, site=site) as proxy,
    ):
        await main(relay, proxy)


def page() -> str:
    return "GET / HTTP/1.1\nHost: localhost\nConnection: close\n\n"


@pytest.mark.parametrize("snippet", [*END, *PASS, *SHARED])
def test_the_guide_quotes_what_is_tested(snippet: str) -> None:
    text = (REPOSITORY / "contrib" / snippet).read_text()
    while text.startswith("#"):
        text = text.partition("\n")[2]
    assert text in GUIDE.read_text()


@pytest.mark.parametrize("snippet", [*END, *PASS, SHARED[0]])
def test_the_guide_has_the_same_command_line_of_the_relay(snippet: str) -> None:
    """The comment above the settings is copied as well: it must equal the guide's."""
    text = (REPOSITORY / "contrib" / snippet).read_text()
    commands = re.findall(r"^#   (pyderp relay (?:.*\\\n# +)*.*)$", text, re.MULTILINE)
    given = re.findall(r"^pyderp relay (?:.*\\\n +)*.*$", GUIDE.read_text(), re.MULTILINE)
    (command,) = commands
    assert words(command.replace("\n#", "\n")) in [words(each) for each in given]


def words(command: str) -> list[str]:
    return shlex.split(command)
