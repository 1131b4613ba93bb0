"""The HTTP pages of a relay beside DERP, as functions from request to answer, without I/O."""

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
    """Return the routes of the main listener. Unknown paths are answered with 404, unlike in Go.

    `/derp` is not among them, unless it is off: the HTTP stage serves it.

    Args:
        pages: further paths, such as `/`, with their routes.
        debug: answers `/debug` and all paths below it.
        derp: whether `/derp` is served.
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
    """`/debug` and all paths below it. The pages are imported at the first request for one."""

    def __init__(self, view: RelayView) -> None:
        self._view = view
        self._site: DebugSite | None = None

    def allows(self, request: Request) -> bool:
        """Return whether the requester may see the pages."""
        return self._view.access.allows(request)

    def answer(self, request: Request) -> Answer:
        """Answer a request whose path is `/debug` or begins with `/debug/`."""
        if self._site is None:
            from pyderp.server.site.pages import DebugSite

            self._site = DebugSite(self._view)
        return self._site.answer(request)


def side_routes(
    challenge: Callable[[str], bytes | None], main: Routes, may_debug: Callable[[Request], bool]
) -> Routes:
    """Return the routes of plain HTTP beside TLS.

    They answer ACME challenges, captive-portal checks and `/debug`, and redirect all other
    requests to HTTPS.

    Args:
        challenge: returns the answer to the ACME challenge of a path, if there is one.
        main: the routes of the main listener.
        may_debug: returns whether the requester may see `/debug/`.
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
    """Answer a captive-portal check without a body, and echo its challenge in a header.

    A captive portal that answers in the relay's place does not know to echo the challenge.
    """
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
    """Return the answer to a request for `/`.

    Args:
        home: empty for a description, `blank` for an empty page, else a URL to redirect to.
        derp: whether `/derp` is served.
        debug: whether the requester may see `/debug/`; the page then has a link to it.
    """
    if home == "blank":
        return page(_HTML, b"")
    if home:
        return Response(302, [("Location", home), *BROWSER_HEADERS])
    notes = ("" if derp else _DISABLED) + (_DEBUG if debug else "")
    return page(_HTML, _PAGE.format(notes=notes).encode())
