"""SIGHUP to a relay without a file of rate limits; with one, see `test_rate_limits`."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.interop.relays import Kind, each_derper, running

from .support import GetRelay, ask, request, until


@each_derper
def test_sighup_kills_derper(derper: Kind, tmp_path: Path) -> None:
    def main() -> None:
        with running(derper, "plain", tmp_path) as relay:
            relay.process.send_signal(signal.SIGHUP)
            until(lambda: relay.process.poll() is not None, "derper ends")

    with pytest.raises(AssertionError, match=f"{derper} exited with {-signal.SIGHUP}"):
        main()


def test_sighup_reloads_pyderp_which_goes_on(relays: GetRelay) -> None:
    relay = relays("pyderp", "plain")
    times = relay.log_text().count("settings reloaded")
    relay.process.send_signal(signal.SIGHUP)
    until(lambda: relay.log_text().count("settings reloaded") > times, "ours reloads")
    assert ask((relay.address, relay.port), request("/derp/probe")).status == 200
