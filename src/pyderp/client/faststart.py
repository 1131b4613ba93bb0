"""Handles a fast start that was answered in HTTP: the relay, or a proxy, refused the upgrade.

With a fast start the request and the login leave together, and the relay answers in DERP, without
a response to the request. Only a refusal is HTTP. As the client does not wait for the answer, the
refusal comes after `connect` has returned.
"""

from __future__ import annotations

from collections.abc import Callable

from pyderp.errors import BadUpgrade, RemoteProtocolError, raisable
from pyderp.wire.client import ClientSession
from pyderp.wire.upgrade import UpgradeReply

__all__ = ["FastStart"]


class FastStart:
    """Reads the answer in HTTP that came in place of DERP.

    Args:
        session: made with the relay's key; its login has been sent.
        refused: called with the refusal; returns the error to raise, or `None` if the client
            should connect again and await the answer.
    """

    def __init__(
        self, session: ClientSession, refused: Callable[[BadUpgrade], BadUpgrade | None]
    ) -> None:
        self._session = session
        self._refused = refused
        self._reply: UpgradeReply | None = None
        self.over = False
        """An answer in HTTP was read to its end."""
        self.error: BadUpgrade | None = None
        """The error to raise then; `None`: connect again instead."""

    @property
    def reading(self) -> bool:
        """Whether an answer in HTTP has begun and not ended."""
        return self._reply is not None and not self.over

    def read(self, data: bytes, error: RemoteProtocolError) -> RemoteProtocolError | None:
        """Take bytes that the session could not read; `b""` if no more follow.

        Args:
            error: the error of the session.

        Returns:
            the error with which the connection ends: `error` if the answer is not HTTP; `None`
            while the answer is incomplete.
        """
        if self._reply is None:
            # The session has kept the first bytes if they begin as an answer in HTTP does.
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
            # Raised when the answer is whole, or at the end with as much of its body as came.
            # A copy, as the frames of `e` hold this object.
            refusal, again = raisable(e), False
        self.over = True
        self.error = self._refused(refusal)
        if again:
            self.error = None
        return self.error or refusal
