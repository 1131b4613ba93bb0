"""Which relays are asked for a captive portal, and which answers mean one."""

from __future__ import annotations

import pytest

from pyderp.netcheck.captive import Endpoint, captive_endpoints, is_captive
from pyderp.server.site.routes import generate_204
from pyderp.wire.http import HttpConnection
from pyderp.wire.httpreply import HttpExchange, HttpReply

from .maps import map_of, node, region

ENDPOINT = Endpoint("192.0.2.1")
GOOD = ("x-tailscale-response", "response ts_192.0.2.1")


def test_home_comes_first_and_five_relays_are_enough() -> None:
    derp_map = map_of(*(region(n, node(n, can_port_80=True)) for n in range(1, 9)))
    addresses = [each.address for each in captive_endpoints(derp_map, 7)]
    assert addresses == ["192.0.2.70", "192.0.2.10", "192.0.2.20", "192.0.2.30", "192.0.2.40"]


def test_relays_that_cannot_be_asked_are_left_out() -> None:
    """Those without port 80, without an IPv4 address in the map, or of unmeasured regions."""
    derp_map = map_of(
        region(1),
        region(2, node(2, can_port_80=True, ipv4="")),
        region(3, node(3, can_port_80=True, ipv4="none")),
        region(4, node(4, can_port_80=True), avoid=True),
        region(5, node(5, can_port_80=True), no_measure_no_home=True),
    )
    assert captive_endpoints(derp_map, 0) == ()


@pytest.mark.parametrize(
    ("status", "headers", "captive"),
    [
        pytest.param(204, (GOOD,), False, id="a_relay"),
        pytest.param(200, (GOOD,), True, id="another_status"),
        pytest.param(302, (), True, id="a_redirect"),
        pytest.param(204, (), True, id="no_answer_to_the_challenge"),
        pytest.param(204, ((GOOD[0], "response ts_x"),), True, id="another_answer"),
    ],
)
def test_any_other_answer_is_a_captive_portal(
    status: int, headers: tuple[tuple[str, str], ...], captive: bool
) -> None:
    assert is_captive(ENDPOINT, HttpReply(status, "", headers)) is captive


def test_the_request_is_that_of_go() -> None:
    """Go's TestCaptivePortalRequest: path, time, no cache, the challenge."""
    http = HttpExchange(ENDPOINT.address, ENDPOINT.target(1234), headers=ENDPOINT.headers)
    head = http.request.decode().split("\r\n")
    assert head[0] == "GET /generate_204?t=1234 HTTP/1.1"
    assert {"Host: 192.0.2.1", "X-Tailscale-Challenge: ts_192.0.2.1"} <= set(head)
    cache = "Cache-Control: no-cache, no-store, must-revalidate, no-transform, max-age=0"
    assert cache in head


def test_a_relay_of_pyderp_is_no_portal() -> None:
    """Go's TestAgainstDERPHandler: the relay's answer to this request."""
    http = HttpExchange(ENDPOINT.address, ENDPOINT.target(1234), headers=ENDPOINT.headers)
    connection = HttpConnection()
    connection.receive_data(http.request)
    request = connection.next_request()
    assert request is not None
    http.receive_data_untrusted(connection.respond(generate_204(request)))
    assert http.finished
    assert http.reply is not None
    assert not is_captive(ENDPOINT, http.reply)
