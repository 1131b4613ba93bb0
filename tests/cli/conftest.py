"""Fixtures of the tests of commands that connect."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator

import pytest

from pyderp.cli import app  # noqa: F401 (otherwise the first test of a relay decides its commands)
from pyderp.cli.main import main
from pyderp.testing import RelayThread

from .commands import Done


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    """Signal handlers that a command sets end with the test that runs it in this process."""
    numbers = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


@pytest.fixture
def relay() -> Iterator[RelayThread]:
    with RelayThread() as relay:
        yield relay


@pytest.fixture
def here(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Done]:
    """Run a command in this process, which is quicker."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "PYDERP_KEY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("NO_COLOR", "1")

    def run(*args: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["pyderp", *map(str, args)])
        with pytest.raises(SystemExit) as caught:
            main()
        out, err = capsys.readouterr()
        assert isinstance(caught.value.code, int)
        return Done(caught.value.code, out, err)

    return run
