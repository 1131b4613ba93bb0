"""The values of all flags, from the layers that give some: flags, environment, file, defaults."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from pyderp.cli.relayflags.flag import Flag
from pyderp.cli.relayflags.kinds import Kind
from pyderp.cli.relayflags.table import BY_NAME, FLAGS
from pyderp.errors import ConfigError

__all__ = ["Layer", "Problems", "Settings", "environment_layer", "parse_value"]

_FLAG_IN_TEXT: Final = re.compile(r"(?<![\w-])--?([a-z][a-z-]+)")


class Layer(dict[str, Any]):
    """Values by the flag's name, and where each was given."""

    def __init__(self) -> None:
        super().__init__()
        self.places: dict[str, str] = {}


class Settings:
    """A value for each flag; the first layer that has one gives it.

    Args:
        layers: values that were given, by the flag's name; `None` is none.
        fallbacks: defaults that differ from the table's.
        derper: everything is as `derper` has it; flags are spelled so in errors.
    """

    def __init__(
        self,
        *layers: Mapping[str, Any],
        fallbacks: Mapping[str, Any] | None = None,
        derper: bool = False,
    ) -> None:
        self.derper = derper
        self._values: dict[str, Any] = {flag.name: flag.default for flag in FLAGS}
        self._values.update(fallbacks or {})
        self._given: set[str] = set()
        self._places: dict[str, str] = {}
        for layer in reversed(layers):
            for name, value in layer.items():
                if value is not None:
                    self._values[name] = value
                    self._given.add(name)
                    self._places.pop(name, None)
            if isinstance(layer, Layer):
                self._places.update(layer.places)

    def __getitem__(self, name: str) -> Any:
        """The value of a flag."""
        return self._values[name]

    def given(self, *names: str) -> bool:
        """Whether any of these was given, by whatever way; empty text gives nothing."""
        return any(name in self._given and self._values[name] != "" for name in names)

    def flag(self, name: str) -> str:
        """How a flag is spelled here."""
        return f"-{BY_NAME[name].go_name or name}" if self.derper else f"--{name}"

    def place(self, name: str) -> str:
        """Where the value was given: a line of the settings file, or else the flag."""
        return self._places.get(name) or self.flag(name)

    def in_file(self, name: str) -> bool:
        """Whether the value is the settings file's."""
        return self._places.get(name, "").startswith("settings file ")

    @contextmanager
    def located(self) -> Iterator[None]:
        """A `ConfigError` of the block that names a flag tells where that was given, if known."""
        try:
            yield
        except ConfigError as e:
            for name in _FLAG_IN_TEXT.findall(str(e)):
                if place := self._places.get(name):
                    raise ConfigError(f"{e} ({place})") from e
            raise


@dataclass
class Problems:
    """All that is wrong, found in one go."""

    found: list[ConfigError] = field(default_factory=list)
    failed: set[str] = field(default_factory=set)
    """Settings of which something was told; what follows from that is not."""

    @contextmanager
    def collect(self, *uses: str) -> Iterator[None]:
        """Note a `ConfigError` of the block, once, and go on.

        Args:
            uses: settings that the block depends on.
        """
        try:
            yield
        except ConfigError as e:
            if self.failed.isdisjoint(uses) and str(e) not in map(str, self.found):
                self.found.append(e)

    def check(self) -> None:
        """Raise the first if there is any; it tells how many more there are."""
        if not self.found:
            return
        first, *more = self.found
        if more:
            others = "another problem" if len(more) == 1 else f"{len(more)} more problems"
            raise ConfigError(f"{first} (and {others}: --check tells all)") from first
        raise first


def parse_value(kind: Kind, text: str, where: str) -> Any:
    """The value that a text stands for.

    Raises:
        ConfigError: it stands for none; the text says where it was given.
    """
    try:
        return kind.parse(text)
    except ValueError as e:
        raise ConfigError(f"{where}: {e}") from None


def environment_layer(
    environment: Mapping[str, str],
    variables: Callable[[Flag], str],
    problems: Problems,
    flags: Sequence[Flag] = FLAGS,
) -> Layer:
    """What the environment says, by the flag's name.

    Args:
        variables: the name of a flag's variable; empty: it has none.
        problems: takes what is wrong.
    """
    values = Layer()
    for flag in flags:
        variable = variables(flag)
        if text := environment.get(variable, "") if variable else "":
            where = f"{variable} in the environment"
            try:
                values[flag.name] = parse_value(flag.kind, text, where)
                values.places[flag.name] = where
            except ConfigError as e:
                problems.failed.add(flag.name)
                problems.found.append(e)
    return values
