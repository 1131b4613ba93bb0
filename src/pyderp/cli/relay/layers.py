"""The values of all flags, from the layers that set them: flags, environment, file, defaults."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, TypeAlias

from pyderp.cli.relay.environment import unknown_variables
from pyderp.cli.relay.flags import BY_NAME, FLAGS, flag_of
from pyderp.errors import ConfigError, setting_name

__all__ = ["CarryOut", "Settings", "load_settings", "spelling_of", "values_of"]


class Settings:
    """A value for each flag, and all that is wrong with them.

    Args:
        given: values of the command line, by the flag's name; `None`: not given.
        defaults: defaults that differ from those of the table.
        derper: everything is as with `derper`, also the spelling of flags in errors.

    Attributes:
        problems: all that is wrong, a text each.
        failed: flags with a problem. Problems that follow from it are not added.
    """

    def __init__(
        self,
        given: Mapping[str, Any],
        *,
        defaults: Mapping[str, Any] | None = None,
        derper: bool = False,
    ) -> None:
        self.derper = derper
        self.problems: list[str] = []
        self.failed: set[str] = set()
        self._defaults = defaults or {}
        self._given = {name: value for name, value in given.items() if value is not None}
        self._places: dict[str, str] = {}

    def __getitem__(self, name: str) -> Any:
        """The value of a flag."""
        if name in self._given:
            return self._given[name]
        return self._defaults.get(name, BY_NAME[name].default)

    def __contains__(self, name: str) -> bool:
        """Whether a flag was given, in any layer."""
        return name in self._given

    def given(self, *names: str) -> bool:
        """Whether any of these was given; empty text counts as not given."""
        return any(self._given.get(name, "") != "" for name in names)

    def only(self, names: Collection[str]) -> Settings:
        """Returns these settings without other flags, for a rule that must not depend on others."""
        given = {name: value for name, value in self._given.items() if name in names}
        part = Settings(given, defaults=self._defaults, derper=self.derper)
        part._places = self._places
        return part

    def take(self, name: str, place: str, read: Callable[[Any], Any], given: object) -> None:
        """Take a value from the next lower layer, unless a higher layer has set the flag.

        Args:
            place: where it was given, for errors.
            read: makes the value from what was given; raises `ValueError` with what is wanted.
        """
        try:
            value = read(given)
        except ValueError as e:
            self.failed.add(name)
            self.problems.append(f"{place}: {e}")
            return
        if value is not None and name not in self._given:
            self._given[name] = value
            self._places[name] = place

    # How errors name settings

    def flag(self, name: str) -> str:
        """Returns a flag as it is spelled on this command line."""
        return f"-{BY_NAME[name].go_name or name}" if self.derper else f"--{name}"

    def in_file(self, name: str) -> bool:
        """Whether the value comes from the settings file."""
        return self._places.get(name, "").startswith("settings file ")

    def explain(self, error: Exception) -> str:
        """Returns the text of an error with flags for settings, and the place of one in a layer."""
        if not isinstance(error, ConfigError) or not error.settings:
            return str(error)
        text = error.spelled(self._spell)
        flags = _flags_of(error)
        places = [self._places[name] for name in flags if name in self._places]
        if len(flags) == 1 and not error.names_settings:
            return f"{places[0] if places else self.flag(flags[0])}: {text}"
        instead = [BY_NAME[name].instead for name in flags if name not in self._given]
        text += "".join(f", or {each}" for each in instead if each)
        return f"{text} ({places[0]})" if places else text

    def _spell(self, setting: str) -> str:
        name, equals, value = setting.partition("=")
        flag = flag_of(name)
        if flag is None:
            return setting_name(setting)
        return self.flag(flag.name) + equals + (flag.kind.none if value == "None" else value)

    # Problems

    @contextmanager
    def collect(self, *flags: str) -> Iterator[None]:
        """Note a `ConfigError` of the block as a problem, and go on.

        Args:
            flags: flags that the block is about, beside the settings that the error names.
        """
        try:
            yield
        except ConfigError as e:
            self.note(e, *flags)

    def note(self, error: ConfigError, *flags: str) -> None:
        """Add a problem, unless it was added already or another one is about the same flags."""
        about = {*flags, *_flags_of(error)}
        text = self.explain(error)
        if self.failed.isdisjoint(about) and text not in self.problems:
            self.problems.append(text)
        self.failed |= about

    def check(self) -> None:
        """Raise the first problem if there is one; its text has the number of the others."""
        if not self.problems:
            return
        first, *more = self.problems
        if more:
            others = "another problem" if len(more) == 1 else f"{len(more)} more problems"
            first = f"{first} (and {others}: --check shows all)"
        raise ConfigError(first)


CarryOut: TypeAlias = Callable[[Callable[[], Settings], str | None], None]
"""Carries out settings. Takes a function that reads them, and the `log-format` for errors in
reading them."""


def _flags_of(error: ConfigError) -> list[str]:
    flags = (flag_of(setting.partition("=")[0]) for setting in error.settings)
    return [flag.name for flag in flags if flag is not None]


def load_settings(
    given: Mapping[str, Any],
    *,
    defaults: Mapping[str, Any] | None = None,
    derper: bool = False,
    environment: Mapping[str, str] = os.environ,
) -> Settings:
    """Returns the settings that result from all layers.

    Args:
        given: values of the command line and, except for `derper`, of `PYDERP_…` variables.
        defaults: defaults that differ from those of the table.
        derper: as for `Settings`; the variables are read here.

    Raises:
        ConfigError: the settings file cannot be read or is no TOML. Other problems might only
            follow from that, so they are not searched for.
    """
    settings = Settings(given, defaults=defaults, derper=derper)
    settings.problems += unknown_variables(environment)
    ours = [(flag, flag.variable) for flag in FLAGS if derper]
    for flag, variable in ours + [(flag, flag.go_variable) for flag in FLAGS]:
        if text := environment.get(variable):
            settings.take(flag.name, f"{variable} in the environment", flag.kind.parse, text)
    if path := settings["config-file"]:
        # Not at the top: most relays have no settings file.
        from pyderp.cli.relay.tomlfile import read_toml, toml_value

        for name, value, place in read_toml(path):
            settings.take(name, place, functools.partial(toml_value, name), value)
    return settings


# The command line


_SWITCHES: Final = {
    f"--{no}{flag.name}": (flag, not no)
    for flag in FLAGS
    if flag.kind.switch
    for no in (("", "no-") if flag.in_file else ("",))
}
_WITH_VALUE: Final = {
    spelling: flag
    for flag in FLAGS
    if not flag.kind.switch
    for spelling in (*flag.also, f"--{flag.name}")
}


def values_of(words: Sequence[str], environment: Mapping[str, str]) -> dict[str, Any] | None:
    """Returns the value of each given flag of `pyderp relay`: as a word, or else as a variable.

    Importing typer costs a relay a tenth of its memory and a fifth of its start time. So typer
    reads only command lines about which there is something to print.

    Returns:
        `None`: typer has to read the command line, since something is wrong, asks for help, or is
        not as plain as `--NAME`, `--NAME=VALUE` or `--NAME VALUE`.
    """
    given: dict[str, Any] = {}
    rest = iter(words)
    try:
        for word in rest:
            if word in _SWITCHES:
                flag, given[flag.name] = _SWITCHES[word]
                continue
            name, equals, text = word.partition("=")
            flag = _WITH_VALUE[name]
            if not equals:
                text = next(rest)
                if flag.kind.alone or text.startswith("-"):
                    return None
            elif name in flag.also and not name.startswith("--"):
                return None
            given[flag.name] = flag.kind.parse(text)
        for flag in FLAGS:
            if flag.name not in given and (text := environment.get(flag.variable, "")):
                given[flag.name] = flag.kind.parse(text)
    except (KeyError, StopIteration, ValueError):
        return None
    return given


def spelling_of(word: str) -> str:
    """Returns a flag in Go's spelling as `pyderp relay` has it: `--no-derp` for `--derp=false`."""
    name, equals, text = word.partition("=")
    for flag in FLAGS:
        if name == f"--{flag.name}" and flag.kind.switch and equals and flag.in_file:
            try:
                return name if flag.kind.parse(text) else f"--no-{flag.name}"
            except ValueError:
                return word
    return word
