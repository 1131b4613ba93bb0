"""A connection's second stage: who is it, may it come in, and then frames."""

from __future__ import annotations

import logging
from functools import partial
from typing import Final

from pyderp.admission.verdict import Applicant, Verdict
from pyderp.aio.core import SMALL_READ
from pyderp.aio.protocol import RelayProtocol
from pyderp.aio.reading import HOLD_LOGIN, Stage
from pyderp.defaults import ADMISSION_WAIT, KEEP_ALIVE, KEEP_ALIVE_JITTER, RECEIVE_BUFFER
from pyderp.errors import RemoteProtocolError
from pyderp.relay import lane
from pyderp.relay.connection import Connection
from pyderp.relay.ending import EndReason, How
from pyderp.wire.server import LoggedIn

__all__ = ["LoginStage"]

log = logging.getLogger("pyderp.relay")


class LoginStage:
    """Waits for ClientInfo, asks whether the client may come in, and lets it relay.

    While somebody has to be asked, nothing is read from the client; what came behind its
    ClientInfo waits.

    Args:
        protocol: the connection.
    """

    __slots__ = ("_protocol",)

    def __init__(self, protocol: RelayProtocol) -> None:
        self._protocol = protocol

    def __call__(self, data: bytearray, view: memoryview, end: int) -> int:
        """Take bytes; gives how many were used up (`Stage`)."""
        used, client = self._protocol.core.login.receive_untrusted(view, end)
        if client is not None:
            self._on_client(client)
        return used

    def _on_client(self, client: LoggedIn) -> None:
        protocol = self._protocol
        core = protocol.core
        mesh = client.info.mesh_key is not None and client.info.mesh_key == core.mesh_key
        app_name = client.info.app_name
        if app_name in core.disallowed_app_names and not mesh:
            text = f'disallowed app name "{app_name}"'
            self._refuse(client, text, EndReason.DISALLOWED_APP_NAME)
            return
        gate = core.gate
        if gate is None or mesh:
            self._enter(client, mesh=mesh)
            return
        applicant = Applicant(client.client, protocol.peer[0])
        verdict = gate.known(applicant)
        if verdict is not None:
            self._decide(client, verdict)
            return
        self._set_stage(_wait)
        protocol.hold(HOLD_LOGIN)
        protocol.restart_timer(ADMISSION_WAIT, "nobody could say whether it may come in")
        protocol.task = core.spawn(self._ask(client, applicant))

    async def _ask(self, client: LoggedIn, applicant: Applicant) -> None:
        protocol = self._protocol
        assert protocol.core.gate is not None
        verdict = await protocol.core.gate.ask(applicant)
        protocol.task = None
        self._decide(client, verdict)
        if verdict.allowed:
            protocol.release(HOLD_LOGIN)
            protocol.feed_rest()

    def _decide(self, client: LoggedIn, verdict: Verdict) -> None:
        if verdict.allowed:
            self._enter(client, mesh=False)
        else:
            self._refuse(client, verdict.reason, EndReason.REFUSED)

    def _refuse(self, client: LoggedIn, text: str, reason: EndReason) -> None:
        detail = f"client {client.client} rejected: {text}"
        self._protocol.end(reason, How.GRACEFUL, detail)

    def _enter(self, client: LoggedIn, *, mesh: bool) -> None:
        protocol = self._protocol
        core = protocol.core
        info = client.info
        connection = Connection(
            client.client.raw,
            protocol,
            number=protocol.number,
            peer=protocol.peer,
            connected_at=core.loop.time(),
            can_mesh=mesh,
            is_prober=info.is_prober,
            not_ideal=protocol.not_ideal,
            app_name=info.app_name,
            version=info.version,
            takes_health=info.can_ack_pings or info.takes_health,
        )
        protocol.connection = connection
        # Others may write to it from the next line on; what they write comes after this.
        protocol.pause_if_stalled(connection)
        core.router.send_control(connection, client.server_info)
        core.router.login(connection)
        if protocol.websocket is None:
            protocol.read_in_large()
        relaying: Stage = partial(lane.receive, core.router, connection)
        if core.limits is not None:
            relaying = core.limits.stage(protocol, connection, relaying)
        self._set_stage(relaying)
        protocol.begin_keep_alive(KEEP_ALIVE + KEEP_ALIVE_JITTER * core.uniform())
        if core.health is not None:
            core.health.on_login(connection)
        if log.isEnabledFor(logging.DEBUG):
            log.debug("%s logged in%s", protocol.who, ", mesh" if mesh else "")

    def _set_stage(self, stage: Stage) -> None:
        if self._protocol.websocket is None:
            self._protocol.stage = stage
        else:
            self._protocol.websocket.inner = stage


def _wait(_: bytearray, __: memoryview, end: int) -> int:
    """The stage of a client that somebody is being asked about: what it sends waits.

    It is not read from meanwhile, so this is what stood behind its ClientInfo in one read.
    """
    if end > _MOST_WAITING:
        raise RemoteProtocolError(f"more than {_MOST_WAITING} bytes before it was let in")
    return 0


_MOST_WAITING: Final = RECEIVE_BUFFER - SMALL_READ
"""What is read behind it needs room in the shared buffer."""
