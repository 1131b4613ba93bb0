from __future__ import annotations

import asyncio
import json
from datetime import timedelta
from typing import Any

import pytest

from pyderp.certs.credential import CertificateInfo
from pyderp.config import DebugAccess, RelayConfig
from pyderp.server.site.view import Access
from pyderp.wire.http import BROWSER_HEADERS, Response, StreamedResponse

from .world import (
    NOON,
    OUTSIDER,
    FakeAdmission,
    FakeLink,
    FakeMesh,
    FakeServed,
    ask,
    bare,
    client,
    full,
    get,
    site,
)

POLICY = dict(BROWSER_HEADERS)["Content-Security-Policy"]
SUB_PAGES = ["vars", "varz", "check", "traffic", "clients/", "connections"]

NO_STORE = ("Cache-Control", "no-store")


def text(target: str = "/debug/", **more: Any) -> str:
    return get(full(**more), target).body.decode()


def test_debug_redirects_to_the_index() -> None:
    response = get(bare(), "/debug")
    assert response.status == 307
    assert response.headers == [("Location", "/debug/"), NO_STORE]


def test_the_redirect_to_the_index_keeps_the_key() -> None:
    response = get(bare(), "/debug?debugkey=tomato", remote=OUTSIDER)
    assert response.headers == [("Location", "/debug/?debugkey=tomato"), NO_STORE]


@pytest.mark.parametrize(
    "target", ["/debug/clients", "/debug/clients?all&debugkey=tomato", "/debug/clients?"]
)
def test_debug_clients_redirects_to_its_folder(target: str) -> None:
    response = get(bare(), target, remote=OUTSIDER)
    assert response.status == 307
    path, mark, query = target.partition("?")
    location = ("Location", f"{path}/{mark}{query}")
    assert response.headers == [location, ("Cache-Control", "no-store")]


def test_every_path_below_debug_clients_is_the_same_page() -> None:
    for path in ("", "x", "x/y", "..x"):
        body = get(bare(), f"/debug/clients/{path}?all&format=json").body
        assert json.loads(body)["query"] == "all clients"
    assert get(bare(), "/debug/clients/../varz").status == 404


@pytest.mark.parametrize("page", ["", *SUB_PAGES, "clients/?all", "clients/?ip=x", "nonsense"])
def test_other_addresses_are_refused(page: str) -> None:
    response = get(full(), f"/debug/{page}", remote=OUTSIDER)
    assert response.status == 403
    assert response.body == b"debug access denied\n"


@pytest.mark.parametrize("page", ["", *SUB_PAGES])
@pytest.mark.parametrize("remote", ["127.0.0.1", "100.100.100.100"])
def test_this_machine_and_tailscale_addresses_see_every_page(page: str, remote: str) -> None:
    view = full(mesh=FakeMesh(FakeLink("relay-b.example.com")))
    answer = site(view).answer(ask(f"/debug/{page}", remote=remote))
    if isinstance(answer, StreamedResponse):
        assert answer.status == 200
        asyncio.run(answer.chunks.aclose())
    elif isinstance(answer, Response):
        assert answer.status == 200
    else:
        assert asyncio.run(answer).status == 200


def test_with_dev_the_refusal_says_how_to_permit_access() -> None:
    response = get(full(config=RelayConfig(dev=True)), "/debug/varz", remote=OUTSIDER)
    assert b"set TS_ALLOW_DEBUG_IP=8.8.8.8" in response.body


@pytest.mark.parametrize(
    "path", ["nonsense", "vars/", "varz/x", "pprof/", "gc", "set-mutex-profile-fraction", "/vars"]
)
def test_other_pages_are_not_found(path: str) -> None:
    response = get(full(), f"/debug/{path}")
    assert response.status == 404
    assert response.body == b"404 page not found\n"


def test_the_index_has_the_browser_headers() -> None:
    assert get(full(), "/debug/").headers == [
        ("Content-Type", "text/html; charset=utf-8"),
        *BROWSER_HEADERS,
        NO_STORE,
    ]


@pytest.mark.parametrize(
    "page", ["vars", "varz", "check", "connections", "clients/", "clients/?all", "clients/?ip=x"]
)
def test_sub_pages_may_have_inline_styles(page: str) -> None:
    headers = dict(get(bare(), f"/debug/{page}").headers)
    assert headers.pop("Content-Security-Policy") == f"{POLICY}; style-src 'self' 'unsafe-inline'"
    assert headers.pop("Content-Type")
    assert headers.pop("Cache-Control") == "no-store"
    assert headers == {k: v for k, v in BROWSER_HEADERS if k != "Content-Security-Policy"}


@pytest.mark.parametrize("page", ["", "/", *(f"/{name}" for name in SUB_PAGES)])
@pytest.mark.parametrize("query", ["", "?debugkey=tomato"])
def test_no_page_may_be_cached(page: str, query: str) -> None:
    """Its links may contain the key, and its content is only for those with access."""
    view = full(access=Access(DebugAccess(key="tomato")))
    answer = site(view).answer(ask(f"/debug{page}{query}"))
    if isinstance(answer, StreamedResponse):
        asyncio.run(answer.chunks.aclose())
    elif not isinstance(answer, Response):
        answer = asyncio.run(answer)
    assert ("Cache-Control", "no-store") in answer.headers


def test_a_request_under_another_name_is_refused_with_the_reason() -> None:
    for page in ("", *SUB_PAGES):
        response = get(full(), f"/debug/{page}", headers=[(b"host", b"evil.example")])
        assert response.status == 403
        assert response.body == (
            b"debug access denied under this name; ask by the relay's IP address, its hostname or "
            b"localhost, or add the name to the setting debug-hosts\n"
        )


def test_the_index_links_every_page() -> None:
    body = text()
    for page in SUB_PAGES:
        assert f'<a href="/debug/{page}">/debug/{page}</a>' in body


def test_the_index_shows_a_link_with_one_client_in_the_singular() -> None:
    link = FakeLink("relay-b.example.com", peers=1)
    body = get(full(mesh=FakeMesh(link)), "/debug/").body.decode()
    assert "relay-b.example.com: up since 2030-01-01T12:00:00+00:00, 1 client<" in body


def test_the_index_shows_the_configuration_of_the_relay() -> None:
    body = text(started=NOON.timestamp() - 3 * 86400 - 61)
    assert "<title>pyderp debug</title>" in body
    for line in (
        "<b>Uptime:</b> 3 days, 0:01:01<",
        "<b>Version:</b> 1.2.3<",
        "<b>TLS hostname:</b> derp.example.com<",
        "<b>Mesh key:</b> true<",
        "<b>STUN:</b> on<",
        "<b>Admission:</b> checked by allow file, local tailscaled<",
        "relay-b.example.com: up since 2030-01-01T12:00:00+00:00, 12 clients<",
        "relay-c.example.com: down since 2030-01-01T12:00:00+00:00: no route<",
        "relay-a.example.com: this relay itself<",
        "derp.example.com, www.example.com; expires 2030-04-01T12:00:00+00:00, in ",
    ):
        assert line in body


def test_the_index_of_a_bare_relay_shows_the_disabled_parts() -> None:
    body = get(bare(), "/debug/").body.decode()
    for line in (
        "<b>TLS hostname:</b> none<",
        "<b>Mesh key:</b> false<",
        "<b>STUN:</b> off<",
        "<b>Admission:</b> every client<",
    ):
        assert line in body
    assert "Certificate" not in body
    assert "Mesh link" not in body


def test_the_index_shows_current_values() -> None:
    view = bare()
    debug = site(view)
    for expected in (0, 1, 2):
        response = debug.answer(ask("/debug/"))
        assert isinstance(response, Response)
        assert f"<b>Connections:</b> {expected}<".encode() in response.body
        view.router.login(client(expected))


def test_an_expired_certificate_is_shown_as_such() -> None:
    past = CertificateInfo(("a.example",), NOON - timedelta(days=9999), NOON - timedelta(days=9000))
    assert "a.example; EXPIRED 2005-05-" in text(certificates=lambda: [past])


def test_values_on_the_index_are_escaped() -> None:
    assert "<b>Version:</b> &lt;1&gt;" in text(version="<1>")


def test_a_requester_with_the_key_has_it_in_the_links() -> None:
    view = bare(access=Access(DebugAccess(key='a"&b')))
    response = get(view, "/debug/?debugkey=a%22%26b", remote=OUTSIDER)
    assert response.status == 200
    assert b'<a href="/debug/varz?debugkey=a%22%26b">/debug/varz</a>' in response.body


def test_a_good_check_has_the_text_of_upstream() -> None:
    response = get(bare(), "/debug/check")
    assert response.status == 200
    assert response.body == b"derp.Server ConsistencyCheck okay"


def test_the_check_lists_all_problems() -> None:
    view = bare(admission=FakeAdmission("tailscaled is away"))
    view.router.registry.size = 1
    response = get(view, "/debug/check")
    assert response.status == 500
    assert response.body == (
        b"connections = 1 != the connections say 0\nconnections = 1 != 0 sockets are logged in\n"
        b"tailscaled is away\n"
    )


def test_metrics_are_text_or_json() -> None:
    varz = get(bare(), "/debug/varz")
    assert dict(varz.headers)["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert b"# TYPE derp_accepts counter" in varz.body
    everything = get(bare(), "/debug/vars")
    assert dict(everything.headers)["Content-Type"] == "application/json; charset=utf-8"
    assert json.loads(everything.body)["derp"]["accepts"] == 0


def test_each_request_for_metrics_gets_current_values() -> None:
    view = bare()
    debug = site(view)
    bodies = []
    for _ in range(2):
        answer = debug.answer(ask("/debug/varz"))
        assert not isinstance(answer, Response | StreamedResponse)
        bodies.append(asyncio.run(answer).body)
        view.router.counters.derp_accepts += 1
    assert b"\nderp_accepts 0\n" in bodies[0]
    assert b"\nderp_accepts 1\n" in bodies[1]


@pytest.mark.parametrize(
    ("target", "accept", "kind"),
    [
        ("/debug/connections", b"", "text/html"),
        ("/debug/connections", b"text/html,*/*", "text/html"),
        ("/debug/connections", b"application/json", "application/json"),
        ("/debug/connections?format=json", b"text/html", "application/json"),
        ("/debug/connections?format=html", b"application/json", "text/html"),
    ],
)
def test_connections_are_a_table_or_json(target: str, accept: bytes, kind: str) -> None:
    response = get(bare(FakeServed()), target, headers=[(b"accept", accept)])
    assert dict(response.headers)["Content-Type"].startswith(kind)
