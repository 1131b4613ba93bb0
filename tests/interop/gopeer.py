"""The Go program in ``go/``: upstream's own client packages, run one scenario at a time."""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from .peers import need

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .relays import Relay

RelayView: TypeAlias = dict[str, Any]
"""The report of a scenario: ``ok``, perhaps ``error``, and its own observations."""

GOPEER: Final = "gopeer"
"""Built with the clients of v1.102.3."""
NEWER_GOPEER: Final = "gopeer-v1.104.7"

_LIMIT = 90.0
"""Seconds until a scenario is killed; its own steps are bounded far below that."""


class Scenario:
    """A running scenario."""

    def __init__(self, relay: Relay, name: str, *flags: str, program: str = GOPEER) -> None:
        """Start it; the process runs until :meth:`facts` is asked for."""
        self._relay = relay
        args = [str(need(program)), "-scenario", name, *relay.client_args, *flags]
        self._process = subprocess.Popen(
            args, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )

    def facts(self) -> RelayView:
        """Wait for the end and require success."""
        try:
            output, errors = self._process.communicate(timeout=_LIMIT)
        except BaseException:
            self.kill()
            raise
        if not output:
            raise AssertionError(f"gopeer said nothing (build it anew?): {errors.decode()[-2000:]}")
        facts: RelayView = json.loads(output)
        assert facts["ok"], f"{facts['scenario']}: {facts['error']}"
        assert self._process.returncode == 0, errors.decode()[-2000:]
        self._relay.check_health()
        return facts

    def kill(self) -> None:
        """End it without a result, unless it has ended."""
        if self._process.returncode is None:
            self._process.kill()
            self._process.communicate()


def play(relay: Relay, name: str, flags: Sequence[str] = (), *, program: str = GOPEER) -> RelayView:
    """Run one scenario to its end."""
    return Scenario(relay, name, *flags, program=program).facts()
