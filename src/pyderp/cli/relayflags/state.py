"""Where a relay keeps its key and certificates if nobody says."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from pyderp.errors import ConfigError

__all__ = ["DERPER_KEY_FILE", "default_key_file", "derper_key_file", "state_directory"]

DERPER_KEY_FILE: Final = Path("/var/lib/derper/derper.key")
"""Where `derper` keeps root's key."""


def state_directory(environment: Mapping[str, str]) -> Path:
    """The directory for what outlives a restart.

    Raises:
        ConfigError: this user has none.
    """
    # Of systemd, for a unit with StateDirectory=; several have colons between.
    if given := environment.get("STATE_DIRECTORY", "").partition(":")[0]:
        return Path(given)
    if os.geteuid() == 0:
        return Path("/var/lib/pyderp")
    home = environment.get("XDG_STATE_HOME", "")
    if not home and (user := environment.get("HOME", "")):
        home = f"{user}/.local/state"
    if not home.startswith("/"):
        raise ConfigError(
            "there is no place to keep the relay's key: -c FILE is missing, and neither "
            "STATE_DIRECTORY, XDG_STATE_HOME nor HOME is set"
        )
    return Path(home, "pyderp")


def default_key_file(environment: Mapping[str, str]) -> Path:
    """Where the key is if nobody says; `derper`'s of root is taken over if it is there.

    Raises:
        ConfigError: see `state_directory`.
    """
    if not environment.get("STATE_DIRECTORY") and os.geteuid() == 0 and DERPER_KEY_FILE.exists():
        return DERPER_KEY_FILE
    return state_directory(environment) / "relay.key"


def derper_key_file() -> Path:
    """Where `derper` keeps the key if nobody says.

    Raises:
        ConfigError: only root has such a place.
    """
    if os.geteuid() != 0:
        raise ConfigError(
            "-c FILE is missing: where to keep the relay's key; it is made if missing"
        )
    return DERPER_KEY_FILE
