"""A flag of the relay, with all names that it goes by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pyderp.cli.relayflags.kinds import Kind

__all__ = ["Flag"]


@dataclass(frozen=True, kw_only=True)
class Flag:
    """One flag: `--NAME`, `PYDERP_NAME` in the environment, `NAME` in the TOML file."""

    name: str
    kind: Kind
    help: str
    panel: str
    default: Any = None
    shown: str = ""
    """How the default is told, if not by itself."""
    setting: str = ""
    """Where its value goes in `RelayConfig`, dotted; empty: it takes more than that."""
    also: Sequence[str] = ()
    """More spellings, with dashes."""
    go_name: str = ""
    """What `derper` calls it, if not by name."""
    go_variable: str = ""
    """Environment variable that `derper` knows it by."""
    go_help: str = ""
    """What it does there, if something else."""
    in_environment: bool = True
    in_file: bool = True

    @property
    def parameter(self) -> str:
        """As a name of Python's."""
        return self.name.replace("-", "_")

    @property
    def variable(self) -> str:
        """Environment variable; empty: none."""
        return f"PYDERP_{self.parameter.upper()}" if self.in_environment else ""

    @property
    def told_default(self) -> str:
        """The default as help tells it; empty: not at all."""
        if self.shown or self.default is None or self.default == ():
            return self.shown
        if isinstance(self.default, bool):
            return "on" if self.default else ""
        return f"{self.default:g}" if isinstance(self.default, float) else str(self.default)
