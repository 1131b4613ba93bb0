"""A connection's second stage: the login, which learns the client's key and may refuse it.

A login over TLS passes these steps in order:

1. `accept`: a connection within the limits gets a `RelayProtocol` and its first layer and stage.
2. `tls`: the ClientHello chooses the certificate; from then on `records` decrypts.
3. `http`: `GET /derp` with an upgrade; the answer has the relay's key.
4. `login`, here: ClientInfo is decrypted and checked, and the admission is asked. ServerInfo is
   written at once, so it is the first frame that the client gets.
5. `Router.login` registers the key in the same turn of the loop, and `RelayProtocol.relay` sets
   the stage that relays.
"""

from __future__ import annotations

import logging
from typing import Final

from pyderp.admission.verdict import ClientIdentity, Verdict
from pyderp.defaults import ADMISSION_WAIT, KEEP_ALIVE, KEEP_ALIVE_JITTER, RECEIVE_BUFFER
from pyderp.errors import RemoteProtocolError
from pyderp.relay.connection import Connection, EndReason, How
from pyderp.server.conn.context import SMALL_READ
from pyderp.server.conn.protocol import RelayProtocol
from pyderp.server.conn.reading import HOLD_LOGIN
from pyderp.wire.login import LoggedIn

__all__ = ["LoginStage"]

log = logging.getLogger("pyderp.relay")


class LoginStage:
    """Waits for ClientInfo, checks whether the client is allowed, and sets the stage that relays.

    While the admission is being asked, the client is not read. Bytes after its ClientInfo wait.

    Args:
        protocol: the connection.
    """

    __slots__ = ("_protocol",)

    def __init__(self, protocol: RelayProtocol) -> None:
        self._protocol = protocol

    def __call__(self, data: bytearray, view: memoryview, end: int) -> int:
        """Take bytes (`Stage`)."""
        used, client = self._protocol.context.login.receive_untrusted(view, end)
        if client is not None:
            self._on_client(client)
        return used

    def _on_client(self, client: LoggedIn) -> None:
        protocol = self._protocol
        context = protocol.context
        mesh = client.info.mesh_key is not None and client.info.mesh_key == context.rules.mesh_key
        app_name = client.info.app_name
        if app_name in context.rules.disallowed_app_names and not mesh:
            text = f'disallowed app name "{app_name}"'
            self._refuse(client, text, EndReason.DISALLOWED_APP_NAME)
            return
        admission = context.admission
        if admission is None or mesh:
            self._enter(client, mesh=mesh)
            return
        identity = ClientIdentity(client.client, protocol.peer[0])
        verdict = admission.known(identity)
        if verdict is not None:
            self._decide(client, verdict)
            return
        protocol.stage = _wait
        protocol.hold(HOLD_LOGIN)
        missing = f"no answer within {ADMISSION_WAIT:g} s whether it may log in"
        protocol.restart_timer(ADMISSION_WAIT, missing)
        protocol.task = context.spawn(self._ask(client, identity))

    async def _ask(self, client: LoggedIn, identity: ClientIdentity) -> None:
        protocol = self._protocol
        admission = protocol.context.admission
        assert admission is not None
        # If the connection ends meanwhile, this task is cancelled, and all below does not run.
        verdict = await admission.ask(identity)
        protocol.task = None
        self._decide(client, verdict)
        if verdict.allowed:
            protocol.release(HOLD_LOGIN)
            protocol.feed_rest()  # bytes after ClientInfo, for the stage that relays

    def _decide(self, client: LoggedIn, verdict: Verdict) -> None:
        if verdict.allowed:
            self._enter(client, mesh=False)
        else:
            self._refuse(client, verdict.reason, EndReason.REFUSED)

    def _refuse(self, client: LoggedIn, text: str, reason: EndReason) -> None:
        detail = f"client {client.client} rejected: {text}"
        self._protocol.end(reason, How.GRACEFUL, detail, key=client.client)

    def _enter(self, client: LoggedIn, *, mesh: bool) -> None:
        protocol = self._protocol
        context = protocol.context
        info = client.info
        # Before the key is registered, so that no packet of a peer can precede ServerInfo.
        protocol.send([client.server_info])
        if protocol.ended:
            return  # the write ended the connection, because TLS failed
        connection = Connection(
            client.client.raw,
            protocol,
            number=protocol.number,
            peer=protocol.peer,
            connected_at=context.loop.time(),
            can_mesh=mesh,
            is_prober=info.is_prober,
            not_ideal=protocol.not_ideal,
            app_name=info.app_name,
            version=info.version,
            takes_health=info.can_ack_pings or info.takes_health,
        )
        protocol.connection = connection
        protocol.pause_if_full(connection)  # ServerInfo may have filled the socket
        context.router.login(connection)
        context.send_restarting(connection)
        protocol.relay(connection)
        protocol.begin_keep_alive(KEEP_ALIVE + KEEP_ALIVE_JITTER * context.uniform())
        if context.observer is not None:
            context.observer.on_login(connection)
        if log.isEnabledFor(logging.DEBUG):
            log.debug("%s logged in%s", protocol.log_name, ", mesh" if mesh else "")


def _wait(_: bytearray, __: memoryview, end: int) -> int:
    """Keep the bytes of a client while the admission is being asked about it (`Stage`).

    The client is not read meanwhile, so these are the bytes after ClientInfo in the same read.
    """
    if end > _MOST_WAITING:
        raise RemoteProtocolError(f"more than {_MOST_WAITING} bytes before the end of its login")
    return 0


_MOST_WAITING: Final = RECEIVE_BUFFER - SMALL_READ
"""The next read is put behind these bytes in the shared buffer, and must fit."""
