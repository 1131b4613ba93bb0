"""The page at `/`, for people who wonder what answers there."""

from __future__ import annotations

from pyderp.wire.http import BROWSER_HEADERS, Response

__all__ = ["home_page"]

_PAGE = """\
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
        return Response(200, [("Content-Type", "text/html; charset=utf-8"), *BROWSER_HEADERS])
    if home:
        return Response(302, [("Location", home), *BROWSER_HEADERS])
    notes = ("" if derp else _DISABLED) + (_DEBUG if debug else "")
    return Response(
        200,
        [("Content-Type", "text/html; charset=utf-8"), *BROWSER_HEADERS],
        _PAGE.format(notes=notes).encode(),
    )
