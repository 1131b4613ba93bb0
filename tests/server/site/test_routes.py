from __future__ import annotations

import pytest

from pyderp.server.site.routes import generate_204, relay_routes, side_routes
from pyderp.wire.http import Request, Response, Routes, text_response
from tests.server.fakes import ROUTES, SIDE_ROUTES


def ask(target: str, method: str = "GET", **headers: str) -> Request:
    pairs = [(k.replace("_", "-").encode(), v.encode("latin-1")) for k, v in headers.items()]
    return Request(method, target, "1.1", pairs)


def answer(routes: Routes, request: Request) -> Response:
    response = routes(request)
    assert isinstance(response, Response)
    return response


BROWSER = {
    "Strict-Transport-Security": "max-age=63072000; includeSubDomains",
    "Content-Security-Policy": (
        "default-src 'self'; frame-ancestors 'none'; form-action 'self'; base-uri 'self'; "
        "block-all-mixed-content; object-src 'none'"
    ),
    "X-Frame-Options": "DENY",
    "X-Content-Type-Options": "nosniff",
}
CACHE = "no-cache, no-store, must-revalidate, no-transform, max-age=0"


@pytest.mark.parametrize("path", ["/derp/probe", "/derp/latency-check", "/derp/probe?x=1"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_probes_are_answered_for_pages_of_any_origin(path: str, method: str) -> None:
    response = answer(ROUTES, ask(path, method))
    assert response.status == 200
    assert response.body == b""
    assert response.headers == [("Access-Control-Allow-Origin", "*")]


@pytest.mark.parametrize("method", ["POST", "OPTIONS", "PUT", "get"])
def test_a_probe_by_another_method_is_refused_without_cors(method: str) -> None:
    response = answer(ROUTES, ask("/derp/probe", method))
    assert response.status == 405
    assert response.body == b"bogus probe method\n"
    assert "Access-Control-Allow-Origin" not in dict(response.headers)


def test_the_home_page_has_the_browser_headers() -> None:
    response = answer(ROUTES, ask("/"))
    assert response.status == 200
    assert dict(response.headers) == {"Content-Type": "text/html; charset=utf-8", **BROWSER}
    assert b"DERP" in response.body


def test_robots_txt_excludes_everything() -> None:
    response = answer(ROUTES, ask("/robots.txt"))
    assert response.status == 200
    assert dict(response.headers) == {"Content-Type": "text/plain; charset=utf-8", **BROWSER}
    assert response.body == b"User-agent: *\nDisallow: /\n"


@pytest.mark.parametrize(
    "target", ["/derp/", "/derp/foo", "/favicon.ico", "/debug/", "", "*", "//", "/generate_204/"]
)
def test_unknown_paths_are_not_found(target: str) -> None:
    response = answer(ROUTES, ask(target))
    assert response.status == 404
    assert response.body == b"404 page not found\n"


def test_generate_204_is_empty_and_never_cached() -> None:
    response = answer(ROUTES, ask("/generate_204"))
    assert response.status == 204
    assert response.body == b""
    assert response.headers == [("Cache-Control", CACHE)]


@pytest.mark.parametrize("challenge", ["x", "a" * 64, "ts_derp.example-1:443", "AZaz09.-_:"])
def test_a_challenge_is_echoed(challenge: str) -> None:
    response = generate_204(ask("/generate_204", x_tailscale_challenge=challenge))
    assert dict(response.headers)["X-Tailscale-Response"] == f"response {challenge}"


@pytest.mark.parametrize("challenge", ["", "a" * 65, "a b", "a/b", "a\r\nb", "é", "a,b", "%41"])
def test_other_challenges_are_not_echoed(challenge: str) -> None:
    response = generate_204(ask("/generate_204", x_tailscale_challenge=challenge))
    assert response.status == 204
    assert "X-Tailscale-Response" not in dict(response.headers)


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_plain_http_beside_tls_is_redirected_with_host_and_query(method: str) -> None:
    response = answer(SIDE_ROUTES, ask("/derp?a=1&b=2", method, host="derp.example.com:8080"))
    assert response.status == 302
    assert response.headers == [("Location", "https://derp.example.com:8080/derp?a=1&b=2")]


def test_plain_http_beside_tls_answers_captive_portal_checks() -> None:
    response = answer(SIDE_ROUTES, ask("/generate_204", x_tailscale_challenge="c", host="h"))
    assert response.status == 204
    assert dict(response.headers)["X-Tailscale-Response"] == "response c"


@pytest.mark.parametrize(
    "request_",
    [
        ask("/", "POST", host="h"),
        ask("/"),
        ask("/", host=""),
        ask("*", host="h"),
        ask("http://evil.example/", host="h"),
    ],
)
def test_requests_that_cannot_be_redirected_get_use_https(request_: Request) -> None:
    response = answer(SIDE_ROUTES, request_)
    assert response.status == 400
    assert response.body == b"Use HTTPS\n"


def test_with_derp_disabled_its_path_is_404_and_probes_are_answered() -> None:
    routes = relay_routes({}, derp=False)
    response = answer(routes, ask("/derp"))
    assert (response.status, response.body) == (404, b"derp server disabled\n")
    assert answer(routes, ask("/derp/probe")).status == 200


@pytest.mark.parametrize("path", ["/debug", "/debug/", "/debug/varz?x=1"])
def test_debug_pages_are_served_on_both_listeners(path: str) -> None:
    main = relay_routes({}, lambda request: text_response(200, f"debug {request.target}"))
    side = side_routes(lambda _: None, main, lambda _: False)
    for routes in (main, side):
        assert answer(routes, ask(path, host="h")).body == f"debug {path}\n".encode()


@pytest.mark.parametrize("path", ["/debugfoo", "/debugger/"])
def test_paths_that_only_begin_like_debug_are_no_debug_pages(path: str) -> None:
    main = relay_routes({}, lambda _: text_response(200, "debug"))
    assert answer(main, ask(path)).status == 404
    assert (
        answer(side_routes(lambda _: None, main, lambda _: False), ask(path, host="h")).status
        == 302
    )


def test_the_plain_home_page_redirects_operators_to_the_debug_pages() -> None:
    side = side_routes(lambda _: None, ROUTES, lambda request: request.remote == "127.0.0.1")
    request = ask("/", host="h")
    assert answer(side, request).headers == [("Location", "https://h/")]
    request.remote = "127.0.0.1"
    assert answer(side, request).headers == [("Location", "https://h/debug/")]
    request = ask("/?a=b", host="h")
    request.remote = "127.0.0.1"
    assert answer(side, request).headers == [("Location", "https://h/?a=b")]


def test_acme_challenges_are_answered_on_the_plain_listener() -> None:
    known = {"/.well-known/acme-challenge/a": b"a.thumbprint"}
    side = side_routes(known.get, ROUTES, lambda _: False)
    response = answer(side, ask("/.well-known/acme-challenge/a", host="h"))
    assert (response.status, response.body) == (200, b"a.thumbprint")
    assert answer(side, ask("/.well-known/acme-challenge/b", host="h")).status == 404
