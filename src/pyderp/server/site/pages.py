"""`/debug/` and the pages below it."""

from __future__ import annotations

import socket
from collections.abc import AsyncGenerator, Callable, Iterator
from datetime import UTC, datetime, timedelta
from html import escape
from typing import TYPE_CHECKING, ClassVar, Final
from urllib.parse import urlencode

from pyderp.relay.router import check
from pyderp.server.site.clientquery import ClientsQuery, parse_fields, wants_json
from pyderp.server.site.clients import (
    ClientsPage,
    RelayTime,
    clients_as_html,
    clients_as_json,
    index_as_html,
    index_json,
)
from pyderp.server.site.connections import connections_as_html, connections_as_json, traffic
from pyderp.server.site.degraded import troubles
from pyderp.server.site.metrics import CONTENT_TYPE, metrics_text, variables
from pyderp.server.site.view import RelayView, refusal
from pyderp.text import counted
from pyderp.wire.http import (
    BROWSER_HEADERS,
    Answer,
    Request,
    Response,
    StreamedResponse,
    page,
    text_response,
)

if TYPE_CHECKING:  # it imports the client, which a relay without a mesh does not need
    from pyderp.server.mesh.links import MeshStatus

__all__ = ["DebugSite", "problems"]

_HTML: Final = "text/html; charset=utf-8"
_JSON: Final = "application/json; charset=utf-8"
_TEXT: Final = "text/plain; charset=utf-8"
_ROOT: Final = "/debug/"
_CLIENTS: Final = "clients/"
_POLICY: Final = "Content-Security-Policy"
_NO_STORE: Final = ("Cache-Control", "no-store")
"""The pages have data of clients, and their links may have the debug key."""
# Unlike the home page, the pages below /debug/ have styles in their HTML.
_HEADERS: Final = (
    *(
        (name, f"{value}; style-src 'self' 'unsafe-inline'" if name == _POLICY else value)
        for name, value in BROWSER_HEADERS
    ),
    _NO_STORE,
)


class DebugSite:
    """Answers `/debug` and everything below it."""

    def __init__(self, view: RelayView) -> None:
        self._view = view
        self._time = RelayTime(view)

    def allows(self, request: Request) -> bool:
        """Return whether the requester may see the pages."""
        return self._view.access.allows(request)

    def answer(self, request: Request) -> Answer:
        """Answer a request whose path is `/debug` or begins with `/debug/`."""
        path = request.path
        if path + "/" in (_ROOT, _ROOT + _CLIENTS):
            location = f"{path}/{request.target.removeprefix(path)}"
            return Response(307, [("Location", location), _NO_STORE])
        if not self.allows(request):
            return refusal(request, self._view.access, dev=self._view.config.dev)
        if path == _ROOT:
            index = page(_HTML, self._index(request).encode())
            index.headers.append(_NO_STORE)
            return index
        name = path.removeprefix(_ROOT)
        # As in derper, every path below /debug/clients/ is that page.
        known = self._pages.get(_CLIENTS if name.startswith(_CLIENTS) else name)
        if known is None or ".." in name.split("/"):
            return text_response(404, "404 page not found")
        return known[1](self, request)

    # The pages

    async def _vars(self, _: Request) -> Response:
        return _sub_page(_JSON, await variables(self._view))

    async def _varz(self, _: Request) -> Response:
        return _sub_page(CONTENT_TYPE, await metrics_text(self._view))

    async def _check(self, _: Request) -> Response:
        found = await problems(self._view)
        if found:
            return _sub_page(_TEXT, "".join(f"{each}\n" for each in found).encode(), status=500)
        # derper's text, for which monitoring may look.
        return _sub_page(_TEXT, b"derp.Server ConsistencyCheck okay")

    def _traffic(self, _: Request) -> Answer:
        return _stream(_TEXT, traffic(self._view))

    def _clients(self, request: Request) -> Answer:
        fields = parse_fields(request.target)
        try:
            query = ClientsQuery.parse(fields, now=self._time.now())
            json = wants_json(fields)
        except ValueError as e:
            # Not `text_response`: a quoted value may have bytes that are not UTF-8.
            body = f"{e}\n".encode("utf-8", "surrogateescape")
            return _sub_page(_TEXT, body, status=400)
        if query is None:
            if json:
                return _sub_page("application/json", index_json(self._view))
            key = request.query.get("debugkey", "")
            return _sub_page(_HTML, index_as_html(self._view, key))
        clients = ClientsPage(query, self._view, self._time)
        if json:
            return _stream("application/json", clients_as_json(clients))
        return _stream(_HTML, clients_as_html(clients))

    def _connections(self, request: Request) -> Answer:
        wants_json = "application/json" in request.header(b"accept")
        if request.query.get("format", "json" if wants_json else "html") == "json":
            return _stream(_JSON, connections_as_json(self._view))
        link = "?" + urlencode({**request.query, "format": "json"})
        return _stream(_HTML, connections_as_html(self._view, link))

    def _index(self, request: Request) -> str:
        # A requester with the key needs it for each page, so the links repeat it.
        key = request.query.get("debugkey", "")
        query = "?" + urlencode({"debugkey": key}) if key else ""
        items = [f"<li><b>{escape(k)}:</b> {escape(v)}</li>" for k, v in self._lines()]
        items += (
            f'<li><a href="{_ROOT}{name}{escape(query)}">{_ROOT}{name}</a> ({title})</li>'
            for name, (title, _) in self._pages.items()
        )
        return (
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            "<title>pyderp debug</title></head>\n<body><h1>pyderp debug</h1>\n<ul>\n"
            + "\n".join(items)
            + "\n</ul></body></html>\n"
        )

    def _lines(self) -> Iterator[tuple[str, str]]:
        view = self._view
        for trouble in troubles(view):
            yield f"DEGRADED ({trouble.part})", trouble.text
        yield "Uptime", str(timedelta(seconds=int(view.uptime)))
        yield "Version", view.version
        yield "Native part", f"pyderp-fast {view.native}" if view.native else "none"
        yield "Machine", socket.gethostname()
        yield "TLS hostname", view.config.hostname or "none"
        for state in view.certificate_states():
            if state.info is None:
                yield "Certificate", f"{state.name}: NONE, handshakes fail"
        for certificate in view.certificates():
            yield "Certificate", f"{', '.join(certificate.names)}; {_expiry(certificate.not_after)}"
        yield "Mesh key", "false" if view.config.mesh_key is None else "true"
        for link in view.mesh.status() if view.mesh is not None else ():
            yield "Mesh link", f"{link.host}: {_state(link)}"
        yield "STUN", "off" if view.stun is None else "on"
        yield "Admission", _admission(view)
        yield "Connections", str(view.router.registry.size)

    _pages: ClassVar[dict[str, tuple[str, Callable[[DebugSite, Request], Answer]]]] = {
        "vars": ("Metrics (JSON)", _vars),
        "varz": ("Metrics (Prometheus)", _varz),
        "check": ("Consistency check", _check),
        "traffic": ("Traffic, as it happens", _traffic),
        _CLIENTS: ("Connected clients", _clients),
        "connections": ("Connections", _connections),
    }
    """Name below /debug/ → title and handler. It belongs to the class, as a dictionary of bound
    methods would make each site a reference cycle."""


def _admission(view: RelayView) -> str:
    if view.admission is None:
        return "every client"
    text = f"checked by {', '.join(view.admission.sources)}"
    return f"{text}; IN TROUBLE, see above" if view.admission.troubles() else text


def _expiry(end: datetime) -> str:
    when = end.astimezone(UTC).isoformat(timespec="seconds")
    days = (end - datetime.now(UTC)) / timedelta(days=1)
    return f"expires {when}, in {days:.1f} days" if days > 0 else f"EXPIRED {when}"


def _state(link: MeshStatus) -> str:
    if link.is_self:
        return "this relay itself"
    since = link.since.astimezone(UTC).isoformat(timespec="seconds")
    if link.connected:
        return f"up since {since}, {counted(link.peers, 'client')}"
    return f"down since {since}: {link.error or 'connecting'}"


def _sub_page(content_type: str, body: bytes, *, status: int = 200) -> Response:
    return Response(status, [("Content-Type", content_type), *_HEADERS], body)


def _stream(content_type: str, chunks: AsyncGenerator[bytes, None]) -> StreamedResponse:
    return StreamedResponse(200, [("Content-Type", content_type), *_HEADERS], chunks)


async def problems(view: RelayView) -> list[str]:
    """Return a text for each problem; empty if there is none.

    Problems are inconsistencies between the relay's tables of connections, and the `troubles`. If
    admission asks tailscaled, it also asks about this machine's own node.
    """
    found = check(view.router)
    logged_in = sum(protocol.connection is not None for protocol in view.protocols)
    if logged_in != view.router.registry.size:
        found.append(
            f"connections = {view.router.registry.size} != {logged_in} sockets are logged in"
        )
    if view.admission is not None:
        wrong = await view.admission.check_self()
        # If tailscaled fails, its trouble has the same text.
        if wrong is not None and not any(wrong in each.text for each in troubles(view)):
            found.append(wrong)
    found += [each.text for each in troubles(view)]
    return found
