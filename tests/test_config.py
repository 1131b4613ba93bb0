"""Settings that cannot be used are refused where they are given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pyderp import ConfigError, ManualTLS, RelayConfig


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("address", 3340),
        ("private_key", "privkey:00"),
        ("mesh_key", "0123"),
        ("tls", "manual"),
        ("write_timeout", "2"),
        ("write_timeout", -1),
        ("drain", float("nan")),
        ("tcp_notsent_lowat", None),
        ("send_queue_depth", 0),
        ("send_queue_depth", "32"),
        ("sender_cardinality", "yes"),
        ("disallow_app_names", "bad"),
    ],
)
def test_a_wrong_value_is_named(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"^{name} is "):
        RelayConfig(**{name: value})


@pytest.mark.parametrize("port", [-1, 65536, "80"])
def test_a_port_that_is_none_is_refused(port: Any) -> None:
    with pytest.raises(ConfigError, match=r"^http_port is "):
        ManualTLS(certdir=Path(), hostname="h", http_port=port)


def test_names_that_refuse_nobody_are_told() -> None:
    config = RelayConfig(disallow_app_names=("bad", "", "é", "", "x" * 33, "b ad"))
    empty, accent, long = config.idle_app_names()
    assert empty.startswith("disallowed app names: an empty item is dropped")
    assert 'é" refuses nobody' in accent
    assert f'"{"x" * 33}" refuses nobody' in long
    with pytest.raises(ConfigError, match="an item of disallow_app_names is a int"):
        RelayConfig(disallow_app_names=(1,))  # type: ignore[arg-type]


def test_a_folder_may_be_text() -> None:
    tls: Any = ManualTLS(certdir="folder", hostname="h")  # type: ignore[arg-type]
    assert tls.certdir == Path("folder")
