"""A fast start whose answer is HTTP: the relay, or what stands before it, refused the upgrade.

With a fast start the request and the login leave together, and a relay answers with DERP at
once. Only a refusal is HTTP. It comes when `connect` has returned.
"""

from __future__ import annotations

from collections.abc import Callable

from pyderp.errors import BadUpgrade, RemoteProtocolError, raisable
from pyderp.wire.client import ClientSession
from pyderp.wire.upgrade import UpgradeReply

__all__ = ["FastStart"]


class FastStart:
    """Reads what came instead of DERP.

    Args:
        session: it was given the relay's key.
        refused: called with the refusal; returns the error to raise, or `None` if the client
            should ask again and await the answer.
    """

    def __init__(
        self, session: ClientSession, refused: Callable[[BadUpgrade], BadUpgrade | None]
    ) -> None:
        self._session = session
        self._refused = refused
        self._reply: UpgradeReply | None = None
        self.over = False
        """The answer was HTTP, and is read."""
        self.error: BadUpgrade | None = None
        """What to raise then; `None`: connect again instead."""

    @property
    def reading(self) -> bool:
        """Whether an answer in HTTP has begun and not ended."""
        return self._reply is not None and not self.over

    def read(self, data: bytes, error: RemoteProtocolError) -> RemoteProtocolError | None:
        """Take bytes that the session could not read; `b""`: there will be no more.

        Args:
            error: that of the session.

        Returns:
            why the connection ends: the same error if the answer is not HTTP; `None` while the
            answer is incomplete.
        """
        if self._reply is None:
            if not self._session.http_answer:
                return error
            self._reply = UpgradeReply()
            data = self._session.http_answer
        refusal: BadUpgrade
        try:
            if self._reply.receive_data(data) is None:
                return None
            refusal = BadUpgrade("the relay answered a fast start with 101")
            again = True
        except BadUpgrade as e:
            # At its end, what came of the body is enough.
            refusal, again = raisable(e), False
        self.over = True
        self.error = self._refused(refusal)
        if again:
            self.error = None
        return self.error or refusal
