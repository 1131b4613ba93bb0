"""What a relay answers over HTTP, besides DERP itself. No I/O: a request in, a response out."""

from __future__ import annotations

import string
from collections.abc import Callable
from typing import Final, TypeAlias

from pyderp.wire.http import Request, Response, text_response

__all__ = ["DERP_PATH", "Routes", "redirect_to_https", "relay_routes"]

DERP_PATH: Final = "/derp"

Routes: TypeAlias = Callable[[Request], Response]

_PROBE_PATHS: Final = frozenset({"/derp/probe", "/derp/latency-check"})
_CHALLENGE_CHARACTERS: Final = frozenset((string.ascii_letters + string.digits + ".-_:").encode())
_MAX_CHALLENGE: Final = 64

_BROWSER_HEADERS: Final = (
    ("Strict-Transport-Security", "max-age=63072000; includeSubDomains"),
    (
        "Content-Security-Policy",
        "default-src 'self'; frame-ancestors 'none'; form-action 'self'; base-uri 'self'; "
        "block-all-mixed-content; object-src 'none'",
    ),
    ("X-Frame-Options", "DENY"),
    ("X-Content-Type-Options", "nosniff"),
)

_HOME: Final = b"""<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><title>DERP relay</title></head>
<body>
<h1>DERP</h1>
<p>This is a DERP relay, run with pyderp. It passes on encrypted packets between
Tailscale or headscale nodes that cannot reach each other directly.</p>
</body>
</html>
"""


def relay_routes(request: Request) -> Response:
    """Every path of the main listener but `/derp`. Unknown ones are 404, unlike `derper`'s."""
    path = request.path
    if path in _PROBE_PATHS:
        return _probe(request)
    if path == "/generate_204":
        return generate_204(request)
    if path == "/":
        return _page("text/html; charset=utf-8", _HOME)
    if path == "/robots.txt":
        return _page("text/plain", b"User-agent: *\nDisallow: /\n")
    if path == "/bootstrap-dns":
        response = _page("application/json", b"")
        response.close = True
        return response
    return text_response(404, "404 page not found")


def redirect_to_https(request: Request) -> Response:
    """The plain listener beside TLS: captive-portal checks are answered, all else redirected."""
    if request.path == "/generate_204":
        return generate_204(request)
    host = request.header(b"host")
    if request.method not in ("GET", "HEAD") or not host or not request.target.startswith("/"):
        return text_response(400, "Use HTTPS")
    return Response(302, [("Location", f"https://{host}{request.target}")])


def generate_204(request: Request) -> Response:
    """An empty answer that proves itself to a captive-portal check by echoing its challenge."""
    headers = [
        ("Cache-Control", "no-cache, no-store, must-revalidate, no-transform, max-age=0"),
    ]
    challenge = request.header(b"x-tailscale-challenge")
    if 1 <= len(challenge) <= _MAX_CHALLENGE and _CHALLENGE_CHARACTERS.issuperset(
        challenge.encode("latin-1")
    ):
        headers.append(("X-Tailscale-Response", f"response {challenge}"))
    return Response(204, headers)


def _probe(request: Request) -> Response:
    if request.method not in ("GET", "HEAD"):
        return text_response(405, "bogus probe method")
    return Response(200, [("Access-Control-Allow-Origin", "*")])


def _page(content_type: str, body: bytes) -> Response:
    return Response(200, [("Content-Type", content_type), *_BROWSER_HEADERS], body)
