from __future__ import annotations

from ipaddress import ip_network

import pytest

from pyderp.config import DebugAccess
from pyderp.relay.router import Router
from pyderp.server.site.view import Access, refusal, slices

from .world import NOON, OUTSIDER, FakeServed, ask, bare

TRUSTED = tuple(map(ip_network, ("10.0.0.0/8", "192.168.1.0/24", "fd00::/8")))


def allowed(remote: str, config: DebugAccess | None = None, *, forwarded: bool = False) -> bool:
    request = ask("/debug/", remote=remote, forwarded=forwarded)
    return Access(config or DebugAccess()).allows(request)


@pytest.mark.parametrize(
    "remote",
    [
        "127.0.0.1",
        "127.8.9.10",
        "::1",
        "::ffff:127.0.0.1",
        "100.64.0.0",
        "100.100.100.100",
        "100.127.255.255",
        "100.115.91.255",
        "100.115.94.0",
        "fd7a:115c:a1e0::1",
        "fd7a:115c:a1e0:ffff::1",
        "::ffff:100.100.100.100",
    ],
)
def test_this_machine_and_tailscale_addresses_are_allowed(remote: str) -> None:
    assert allowed(remote)


@pytest.mark.parametrize(
    "remote",
    [
        "",
        "@",
        "8.8.8.8",
        "100.63.255.255",
        "100.128.0.0",
        "100.115.92.0",
        "100.115.93.255",
        "fd7a:115c:a1e1::1",
        "192.168.1.1",
        "fe80::1%eth0",
    ],
)
def test_other_addresses_are_refused(remote: str) -> None:
    assert not allowed(remote)


@pytest.mark.parametrize("remote", ["127.0.0.1", "100.100.100.100", "198.51.100.7", "10.1.2.3"])
def test_requests_forwarded_by_an_untrusted_proxy_are_refused(remote: str) -> None:
    config = DebugAccess(allow_ip="198.51.100.7", trusted=(ip_network("10.0.0.0/8"),))
    assert allowed(remote, config)
    assert not allowed(remote, config, forwarded=True)


@pytest.mark.parametrize("text", ["198.51.100.7", "2001:db8::7"])
def test_the_configured_address_is_allowed(text: str) -> None:
    assert allowed(text, DebugAccess(allow_ip=text))
    assert not allowed("198.51.100.8", DebugAccess(allow_ip=text))


@pytest.mark.parametrize("remote", ["10.1.2.3", "192.168.1.50", "fd00::1", "fd00::1%eth0"])
def test_trusted_networks_are_allowed(remote: str) -> None:
    config = DebugAccess(
        trusted=(
            ip_network("10.0.0.0/8"),
            ip_network("192.168.1.0/24"),
            ip_network("fd00::/8"),
        )
    )
    assert allowed(remote, config)


@pytest.mark.parametrize("remote", ["192.168.2.1", "172.16.0.1", "8.8.8.8", "fe80::1"])
def test_addresses_outside_trusted_networks_are_refused(remote: str) -> None:
    config = DebugAccess(
        trusted=(
            ip_network("10.0.0.0/8"),
            ip_network("192.168.1.0/24"),
            ip_network("fd00::/8"),
        )
    )
    assert not allowed(remote, config)


@pytest.mark.parametrize("forwarded", [False, True])
def test_the_debug_key_is_enough_from_any_address(forwarded: bool) -> None:
    access = Access(DebugAccess(key="tomato"))
    target = "/debug/varz?debugkey=tomato"
    assert access.allows(ask(target, remote=OUTSIDER, forwarded=forwarded))


@pytest.mark.parametrize("method", ["HEAD", "POST", "OPTIONS", "get"])
def test_the_debug_key_works_for_get_only(method: str) -> None:
    access = Access(DebugAccess(key="tomato"))
    assert not access.allows(ask("/debug/?debugkey=tomato", method, remote=OUTSIDER))


@pytest.mark.parametrize(
    "target",
    ["/debug/", "/debug/?debugkey=", "/debug/?debugkey=tomat", "/debug/?debugkey=tomatoes",
     "/debug/?debugkey=t%C3%B6mato", "/debug/?key=tomato"],
)  # fmt: skip
def test_a_wrong_debug_key_is_refused(target: str) -> None:
    assert not Access(DebugAccess(key="tomato")).allows(ask(target, remote=OUTSIDER))


def test_without_a_configured_key_an_empty_one_is_refused() -> None:
    assert not Access(DebugAccess()).allows(ask("/debug/?debugkey=", remote=OUTSIDER))


def allowed_as(host: str, access: Access | None = None) -> bool:
    request = ask("/debug/", headers=[(b"host", host.encode())])
    return (access or Access(DebugAccess())).allows(request)


OWN = ("relay.example.com", "*.wild.example", "2001:db8::7")


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "127.0.0.1:3340",
        "[::1]",
        "[::1]:443",
        "[fe80::1%25eth0]:443",
        "192.0.2.1:1",
        "localhost",
        "LOCALHOST:3340",
        "localhost.",
        "relay.example.com",
        "Relay.Example.COM.:443",
        "any.wild.example",
        "relay.tailnet.ts.net",
        "box",
        "box.lan:80",
    ],
)
def test_hosts_that_are_addresses_or_names_of_the_relay_are_allowed(
    host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "Box.lan")
    config = DebugAccess(hosts=("relay.tailnet.TS.net.",))
    assert allowed_as(host, Access(config, names=lambda: OWN))


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:3340",
        "127.0.0.1.evil.example",
        "localhost.evil.example",
        "evil.localhost",
        "relay.example.com.evil.example",
        "xrelay.example.com",
        "x.relay.example.com",
        "a.b.wild.example",
        "wild.example",
        "other.ts.net",
        "0x7f000001",
        "127.1",
        ":3340",
        "[]",
        "evil.example[::1]",
        "a" * 301,
    ],
)
def test_other_host_names_are_refused(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise an attacker's page could read the debug pages by DNS rebinding."""
    monkeypatch.setattr("socket.gethostname", lambda: "")
    access = Access(DebugAccess(hosts=("relay.tailnet.ts.net", "")), names=lambda: OWN)
    assert not allowed_as(host, access)
    assert access.refuses_host(ask("/debug/", headers=[(b"host", host.encode())]))


def test_a_request_without_host_needs_only_an_allowed_address() -> None:
    assert Access(DebugAccess()).allows(ask("/debug/"))


def test_the_debug_key_is_enough_with_any_host_name() -> None:
    access = Access(DebugAccess(key="tomato"))
    evil = [(b"host", b"evil.example")]
    assert access.allows(ask("/debug/?debugkey=tomato", remote=OUTSIDER, headers=evil))
    assert not access.allows(ask("/debug/?debugkey=potato", headers=evil))


def test_a_refused_address_gets_no_hint_about_the_host_name() -> None:
    request = ask("/debug/", remote=OUTSIDER, headers=[(b"host", b"evil.example")])
    access = Access(DebugAccess())
    assert refusal(request, access, dev=False).body == b"debug access denied\n"


def test_a_refusal_does_not_say_how_to_get_access() -> None:
    response = refusal(ask("/debug/varz", remote=OUTSIDER), Access(DebugAccess()), dev=False)
    assert response.status == 403
    assert response.body == b"debug access denied\n"
    assert ("Content-Type", "text/plain; charset=utf-8") in response.headers


def test_with_dev_the_refusal_says_how_to_permit_access() -> None:
    response = refusal(ask("/debug/varz", remote=OUTSIDER), Access(DebugAccess()), dev=True)
    assert response.body == (
        b"debug access denied; to permit access, set TS_ALLOW_DEBUG_IP=8.8.8.8\n"
    )


@pytest.mark.parametrize(("remote", "forwarded"), [("", False), (OUTSIDER, True)])
def test_a_hint_that_would_not_help_is_left_out(remote: str, forwarded: bool) -> None:
    request = ask("/debug/varz", remote=remote, forwarded=forwarded)
    response = refusal(request, Access(DebugAccess()), dev=True)
    assert response.body == b"debug access denied\n"


def test_a_view_starts_when_it_is_made() -> None:
    view = bare()
    assert view.started == NOON.timestamp()
    assert view.uptime == 0


def test_the_uptime_ignores_changes_of_the_wall_clock() -> None:
    now = [1000.0]
    wall = [NOON.timestamp()]
    router = Router(bytes(32), lambda: now[0])
    view = bare(router=router, wall=lambda: wall[0])
    now[0] += 12.5
    wall[0] -= 86400  # the system's clock is set
    assert view.uptime == 12.5


def test_slices_cover_all_connections() -> None:
    served = [FakeServed() for _ in range(250)]
    parts = list(slices(served))
    assert [each for part in parts for each in part] == served
    assert max(map(len, parts)) == 50


def test_connections_may_end_and_start_between_slices() -> None:
    served = {FakeServed() for _ in range(150)}
    parts = slices(served)
    first = next(parts)
    served.clear()
    served.add(FakeServed())
    assert len(first) + sum(map(len, parts)) == 150


def test_without_connections_there_are_no_slices() -> None:
    assert list(slices([])) == []
