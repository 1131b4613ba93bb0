"""What a relay answers over HTTP, besides DERP itself. No I/O: a request in, an answer out."""

from __future__ import annotations

import string
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final

from pyderp.server.site.view import RelayView
from pyderp.wire.http import (
    BROWSER_HEADERS,
    DERP_PATH,
    Answer,
    Request,
    Response,
    Routes,
    page,
    text_response,
)

if TYPE_CHECKING:
    from pyderp.server.site.pages import DebugSite

__all__ = ["DebugRoutes", "generate_204", "home_page", "relay_routes", "side_routes"]

_PROBE_PATHS: Final = frozenset({"/derp/probe", "/derp/latency-check"})
_CHALLENGE_CHARACTERS: Final = frozenset((string.ascii_letters + string.digits + ".-_:").encode())
_MAX_CHALLENGE: Final = 64
_ACME: Final = "/.well-known/acme-challenge/"


def relay_routes(
    pages: Mapping[str, Routes], debug: Routes | None = None, *, derp: bool = True
) -> Routes:
    """Every path of the main listener but a served `/derp`. Unknown ones are 404, unlike for Go.

    Args:
        pages: further paths, such as `/`.
        debug: answers `/debug` and all below it.
        derp: whether `/derp` is served, elsewhere.
    """
    table: dict[str, Routes] = {
        **dict.fromkeys(_PROBE_PATHS, _probe),
        "/generate_204": generate_204,
        "/robots.txt": _robots,
        **pages,
    }
    if not derp:
        table[DERP_PATH] = _disabled

    def routes(request: Request) -> Answer:
        path = request.path
        route = table.get(path)
        if route is None and debug is not None and (path == "/debug" or path.startswith("/debug/")):
            route = debug
        return text_response(404, "404 page not found") if route is None else route(request)

    return routes


class DebugRoutes:
    """`/debug` and all below it. The pages are imported when one of them is first seen."""

    def __init__(self, view: RelayView) -> None:
        self._view = view
        self._site: DebugSite | None = None

    def allows(self, request: Request) -> bool:
        """Whether the requester may see the pages, and is told of them."""
        return self._view.access.allows(request)

    def answer(self, request: Request) -> Answer:
        """The answer to a request whose path is `/debug` or begins with `/debug/`."""
        if self._site is None:
            from pyderp.server.site.pages import DebugSite

            self._site = DebugSite(self._view)
        return self._site.answer(request)


def side_routes(
    challenge: Callable[[str], bytes | None], main: Routes, may_debug: Callable[[Request], bool]
) -> Routes:
    """The plain listener beside TLS: challenges and captive-portal checks are answered, `/debug`
    served, all else redirected.

    Args:
        challenge: the answer to an ACME challenge on a path, if there is one.
        main: routes of the main listener.
        may_debug: whether the requester may see `/debug/`.
    """

    def routes(request: Request) -> Answer:
        path = request.path
        if path == "/generate_204":
            return generate_204(request)
        if path.startswith(_ACME):
            answer = challenge(path)
            if answer is not None:
                return Response(200, [("Content-Type", "application/octet-stream")], answer)
            return text_response(404, "404 page not found")
        if path == "/debug" or path.startswith("/debug/"):
            return main(request)
        return _redirect(request, may_debug)

    return routes


def _redirect(request: Request, may_debug: Callable[[Request], bool]) -> Response:
    host = request.header(b"host")
    if request.method not in ("GET", "HEAD") or not host or not request.target.startswith("/"):
        return text_response(400, "Use HTTPS")
    target = request.target
    if target == "/" and may_debug(request):
        target = "/debug/"
    return Response(302, [("Location", f"https://{host}{target}")])


def generate_204(request: Request) -> Response:
    """An empty answer that proves itself to a captive-portal check by echoing its challenge."""
    headers = [("Cache-Control", "no-cache, no-store, must-revalidate, no-transform, max-age=0")]
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


def _robots(_: Request) -> Response:
    return page("text/plain; charset=utf-8", b"User-agent: *\nDisallow: /\n")


def _disabled(_: Request) -> Response:
    return text_response(404, "derp server disabled")


_HTML: Final = "text/html; charset=utf-8"
_PAGE: Final = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>DERP relay</title>
</head>
<body>
<main>
<h1>DERP</h1>
<p>This is a DERP relay, run with pyderp. It passes on encrypted packets between
Tailscale or headscale nodes that cannot reach each other directly, and cannot read them.</p>
<p>What that means: <a href="https://tailscale.com/kb/1232/derp-servers" rel="noreferrer">about
DERP servers</a>.</p>
{notes}</main>
</body>
</html>
"""
_DISABLED = "<p>Relaying is switched off here. STUN and probes are answered.</p>\n"
_DEBUG = '<p><a href="/debug/">Pages for the operator</a></p>\n'


def home_page(home: str, *, derp: bool, debug: bool) -> Response:
    """The answer to a request for `/`.

    Args:
        home: empty: a description; `blank`: nothing; otherwise a URL to redirect to.
        derp: whether `/derp` is served here.
        debug: whether the requester may see `/debug/`, and is told of it.
    """
    if home == "blank":
        return page(_HTML, b"")
    if home:
        return Response(302, [("Location", home), *BROWSER_HEADERS])
    notes = ("" if derp else _DISABLED) + (_DEBUG if debug else "")
    return page(_HTML, _PAGE.format(notes=notes).encode())
