"""Settings of a client."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

from pyderp import ClientConfig, ConfigError


@pytest.mark.parametrize("name", ["connect_timeout", "receive_timeout"])
@pytest.mark.parametrize("value", [0, -1.0, math.nan])
def test_times_must_be_positive(name: str, value: float) -> None:
    """The error names the time that is not positive."""
    settings: dict[str, Any] = {name: value}
    with pytest.raises(ConfigError, match=name):
        ClientConfig(**settings)


def test_defaults_are_those_of_go() -> None:
    """By default, the login sends nothing optional."""
    config = ClientConfig()
    assert (config.connect_timeout, config.receive_timeout) == (10.0, 120.0)
    assert config.mesh_key is None
    assert config.app_name == ""
    flags = (config.is_prober, config.can_ack_pings, config.watch_connection_changes)
    assert flags == (False, False, False)


@pytest.mark.parametrize("name", ["x" * 33, "é", "a\n", "\x7f", "\ud800"])
def test_a_name_that_relays_refuse_is_refused_before_anything_is_connected(name: str) -> None:
    with pytest.raises(ConfigError, match=r'^invalid AppName ".*": want at most 32 printable'):
        ClientConfig(app_name=name)


@pytest.mark.parametrize("name", [None, 5, b"x"])
def test_a_name_of_another_type_is_refused(name: object) -> None:
    with pytest.raises(ConfigError, match=r"app_name is a .*; want str"):
        ClientConfig(app_name=name)  # type: ignore[arg-type]  # what is tested


@pytest.mark.parametrize("name", ["", "x" * 32, " a b ~"])
def test_a_name_that_relays_take_is_taken(name: str) -> None:
    assert ClientConfig(app_name=name).app_name == name


def test_frozen() -> None:
    """Clients share settings, so settings cannot change."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        ClientConfig().app_name = "x"  # type: ignore[misc]  # what is tested
