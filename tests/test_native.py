"""The optional native part: when it is used, and the errors if it cannot be."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from pyderp import ConfigError, Relay, RelayConfig
from pyderp.native import API_VERSION, NativeUse, installed_version, load


def _installed(monkeypatch: pytest.MonkeyPatch, module: object) -> None:
    monkeypatch.setitem(sys.modules, "pyderp_fast", module)


def test_off_does_not_import_it(monkeypatch: pytest.MonkeyPatch) -> None:
    _installed(monkeypatch, SimpleNamespace(API_VERSION=API_VERSION, VERSION="7", **COMPLETE))
    assert load(NativeUse.OFF) is None


def test_auto_uses_an_installed_one(monkeypatch: pytest.MonkeyPatch) -> None:
    module = SimpleNamespace(API_VERSION=API_VERSION, VERSION="7", **COMPLETE)
    _installed(monkeypatch, module)
    assert load(NativeUse.AUTO) is load(NativeUse.ON) is module
    assert installed_version() == "7"


COMPLETE = dict.fromkeys(("walk", "Tls", "TlsConfig", "TlsError"))
MISSING = "pyderp-fast cannot be loaded: import of pyderp_fast halted; None in sys.modules"
OTHER = f"pyderp-fast has API version 99, and this pyderp needs {API_VERSION}"

HALF = "pyderp-fast has no Tls, TlsConfig, TlsError"


@pytest.mark.parametrize(
    ("module", "problem"),
    [
        (None, MISSING),
        (SimpleNamespace(API_VERSION=99), OTHER),
        (SimpleNamespace(API_VERSION=1, VERSION="7", walk=None), HALF),
    ],
)
def test_auto_runs_without_it_and_on_refuses(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    module: object,
    problem: str,
) -> None:
    _installed(monkeypatch, module)
    with caplog.at_level(logging.DEBUG, "pyderp.native"):
        assert load(NativeUse.AUTO) is None
    assert caplog.messages == [f"{problem}; TLS and the lane run in Python"]
    assert installed_version() == ""
    with pytest.raises(ConfigError) as caught:
        load(NativeUse.ON)
    assert (
        str(caught.value)
        == f"native is on, but {problem}; run make fast in pyderp's source, or give native=auto"
    )


def test_a_module_that_fails_to_import_is_no_native_part(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "pyderp_fast.py").write_text("raise RuntimeError('not for you')\n")
    monkeypatch.delitem(sys.modules, "pyderp_fast", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    assert load(NativeUse.AUTO) is None
    with pytest.raises(ConfigError, match="pyderp-fast cannot be loaded: not for you"):
        load(NativeUse.ON)


@pytest.mark.parametrize(
    ("given", "use"), [(True, NativeUse.ON), (False, NativeUse.OFF), (NativeUse.ON, NativeUse.ON)]
)
def test_a_setting_may_be_a_bool(given: bool | NativeUse, use: NativeUse) -> None:
    assert RelayConfig(native=given).native is use  # type: ignore[arg-type]  # a bool


def test_another_type_is_refused() -> None:
    with pytest.raises(ConfigError, match="native is a str; want NativeUse"):
        RelayConfig(native="auto")  # type: ignore[arg-type]  # the wrong type is the test


async def test_a_relay_logs_whether_it_uses_it(monkeypatch: pytest.MonkeyPatch) -> None:
    walk = SimpleNamespace(API_VERSION=API_VERSION, VERSION="7", **COMPLETE)
    _installed(monkeypatch, walk)

    for native, version in ((NativeUse.AUTO, "7"), (NativeUse.OFF, "")):
        async with Relay(RelayConfig(native=native)) as relay:
            assert relay.native_version == version


async def test_a_relay_that_requires_it_does_not_start_without(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _installed(monkeypatch, None)

    with pytest.raises(ConfigError, match="native is on, but pyderp-fast cannot be loaded"):
        await Relay(RelayConfig(native=NativeUse.ON)).start()
