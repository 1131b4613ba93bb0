"""All ways that settings come by, read: command line, environment, file, defaults."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pyderp.cli.relayflags.flag import Flag
from pyderp.cli.relayflags.go import derper_defaults
from pyderp.cli.relayflags.settings import Problems, Settings, environment_layer
from pyderp.cli.relayflags.tomlfile import toml_layer

__all__ = ["load_settings"]


def load_settings(
    given: Mapping[str, Any],
    problems: Problems,
    *,
    derper: bool = False,
    environment: Mapping[str, str] = os.environ,
) -> Settings:
    """The settings that result.

    Args:
        given: values of the command line; by typer also of `PYDERP_…` in the environment.
        problems: takes what is wrong.
        derper: with `derper`'s defaults; the environment is read here.

    Raises:
        ConfigError: the TOML file cannot be read or is none. What else is wrong would follow
            from that.
    """
    layers: list[Mapping[str, Any]] = [given]
    if derper:
        layers.append(environment_layer(environment, lambda flag: flag.variable, problems))
    layers.append(environment_layer(environment, _derper_variable, problems))
    path: Path | None = next(
        (each["config-file"] for each in layers if each.get("config-file")), None
    )
    if path is not None:
        layers.append(toml_layer(path, problems))
    fallbacks = derper_defaults(environment) if derper else {}
    return Settings(*layers, fallbacks=fallbacks, derper=derper)


def _derper_variable(flag: Flag) -> str:
    return flag.go_variable
