"""Every page except the contents of debug pages: status, headers and, where fixed, the body."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

import pyderp
from pyderp.config import RelayConfig
from tests.interop.relays import DERPERS, KINDS, Kind, Relay, each_derper, running

from .support import Answer, GetRelay, ask, request

UNLIKE: Final = {"date", "content-length", "connection", "etag", "transfer-encoding"}
"""Headers that do not depend on the page."""
CHALLENGE: Final = "X-Tailscale-Challenge: "


@dataclass(frozen=True)
class Page:
    target: str
    status: int
    headers: tuple[str, ...] = ()
    method: str = "GET"
    same_body: bool = True

    def fetch(self, address: tuple[str, int]) -> Answer:
        return ask(address, request(self.target, *self.headers, method=self.method))


PAGES = (
    Page("/", 200, same_body=False),
    Page("/robots.txt", 200),
    Page("/generate_204", 204),
    Page("/generate_204", 204, method="POST"),
    *(Page("/generate_204", 204, (CHALLENGE + text,)) for text in ("input", "ts_derp99b.a.com")),
    *(Page("/generate_204", 204, (CHALLENGE + "x" * n,)) for n in (64, 65)),
    Page("/generate_204", 204, (CHALLENGE + "foo bar",)),
    Page("/generate_204", 204, (CHALLENGE + "a.-_:Z9",)),
    Page("/generate_204", 204, (CHALLENGE + "a/b",)),
    Page("/bootstrap-dns", 200),
    Page("/bootstrap-dns?q=a.test", 200),
    Page("/derp", 426),
    Page("/derp", 426, method="POST"),
    *(Page(f"/derp/{name}", 200) for name in ("probe", "latency-check")),
    *(Page("/derp/probe", 405, method=method) for method in ("POST", "OPTIONS", "DELETE")),
    # A whole URL, as to a proxy.
    *(Page(url, 200) for url in ("http://relay.test/derp/probe", "HTTPS://x/robots.txt?y")),
    Page("http://relay.test/", 200, same_body=False),
    Page("http://relay.test/derp?q", 426),
    Page("/debug/", 200, same_body=False),
    Page("/debug/check", 200),
    Page("/debug/none", 404),
    Page("/debug/", 403, ("X-Forwarded-For: 127.0.0.1",)),
)


def compare(page: Page, theirs: Answer, ours: Answer) -> None:
    assert theirs.status == ours.status == page.status, page
    # Go's redirects have a page, which browsers do not show.
    unlike = UNLIKE | {"content-type"} if page.status == 302 else UNLIKE
    if page.target.startswith("/debug") and page.status == 200:
        # Go lets browsers and proxies keep its debug pages.
        assert ours.headers["cache-control"] == "no-store"
        unlike = unlike | {"cache-control"}
    headers = [
        {name: text for name, text in answer.headers.items() if name not in unlike}
        for answer in (theirs, ours)
    ]
    assert headers[0] == headers[1], page
    if page.status == 302:
        return
    if page.same_body:
        assert ours.body == theirs.body, page
    else:
        assert ours.body, page


@each_derper
def test_both_answer_alike(derper: Kind, relays: GetRelay) -> None:
    def address(relay: Relay) -> tuple[str, int]:
        return relay.address, relay.port

    pair = [relays(derper, "plain"), relays("pyderp", "plain")]
    for page in PAGES:
        compare(page, *(page.fetch(address(relay)) for relay in pair))


def test_a_debug_page_under_another_host_name_is_refused(relays: GetRelay) -> None:
    """A page of another site may request it after DNS rebinding; Go answers it."""
    for kind in KINDS:
        relay = relays(kind, "plain")
        answer = ask((relay.address, relay.port), request("/debug/varz", host="evil.example"))
        assert answer.status == (403 if kind == "pyderp" else 200), kind


def test_two_lengths_end_the_connection(relays: GetRelay) -> None:
    """RFC 9112 §6.1: a proxy in front may have used the other one. Go goes on."""
    both = "\r\n".join(
        ["{} HTTP/1.1", "Host: localhost", "Content-Length: 5", "Transfer-Encoding: chunked"]
    )
    paths = ["POST /generate_204", "GET /debug/", "GET /debug/traffic", "GET /nowhere"]
    heads = [both.format(path) for path in paths]
    heads.append(both.format("GET /derp") + "\r\nConnection: Upgrade\r\nUpgrade: DERP")
    behind = "GET /derp/probe HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    relay = relays("pyderp", "plain")
    for head in heads:
        data = f"{head}\r\n\r\n0\r\n\r\n{behind}".encode()
        answer = ask((relay.address, relay.port), data)
        assert (answer.status, answer.headers["connection"]) == (400, "close"), head
        assert answer.body == b"400 Bad Request", head
    data = f"{heads[0]}\r\n\r\n0\r\n\r\n{behind}".encode()
    for derper in DERPERS:
        relay = relays(derper, "plain")
        assert b"HTTP/1.1 200 OK" in ask((relay.address, relay.port), data).body


def test_unknown_paths_are_not_the_home_page(relays: GetRelay) -> None:
    """Go's are its home page, and it cleans paths."""
    status = {}
    for kind in KINDS:
        relay = relays(kind, "plain")
        for target in ("/favicon.ico", "/derp/", "/derp/foo", "//derp"):
            answer = Page(target, 0).fetch((relay.address, relay.port))
            status[kind, target] = answer.status
    assert set(status.values()) == {200, 307, 404}
    assert {target for (kind, target), code in status.items() if code == 307} == {"//derp"}
    assert {kind for (kind, _), code in status.items() if code == 404} == {"pyderp"}


@each_derper
@pytest.mark.parametrize(
    ("options", "settings", "pages"),
    [
        (
            ["-derp=false"],
            RelayConfig(derp=False),
            [
                Page("/derp", 404),
                Page("/derp", 404, ("Connection: Upgrade", "Upgrade: DERP")),
                Page("/derp/probe", 200),
                Page("/", 200, same_body=False),
            ],
        ),
        (["-home=blank"], RelayConfig(home="blank"), [Page("/", 200)]),
        (
            ["-home=https://a.test/b?c=d"],
            RelayConfig(home="https://a.test/b?c=d"),
            [Page("/", 302)],
        ),
    ],
    ids=["no DERP", "blank", "redirect"],
)
def test_both_answer_alike_with_other_settings(
    derper: Kind, tmp_path: Path, options: list[str], settings: RelayConfig, pages: list[Page]
) -> None:
    async def ours() -> list[Answer]:
        async with pyderp.Relay(settings) as relay:
            return [await asyncio.to_thread(page.fetch, relay.address) for page in pages]

    with running(derper, "plain", tmp_path, options=options) as relay:
        theirs = [page.fetch((relay.address, relay.port)) for page in pages]
    for page, *answers in zip(pages, theirs, asyncio.run(ours()), strict=True):
        compare(page, *answers)
