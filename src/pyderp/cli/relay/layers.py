"""The values of all flags, from the layers that have some: flags, environment, file, defaults."""

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
        given: values of the command line, by the flag's name; `None` is none.
        defaults: those that differ from the table's.
        derper: everything is as `derper` has it; flags are spelled so in errors.

    Attributes:
        problems: what is wrong, found in one go.
        failed: flags that a problem is about. What follows from that is no problem of its own.
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
        """Whether a flag was given, in whichever layer."""
        return name in self._given

    def given(self, *names: str) -> bool:
        """Whether any of these was given; empty text counts as none."""
        return any(self._given.get(name, "") != "" for name in names)

    def only(self, names: Collection[str]) -> Settings:
        """These settings without those of other flags, for what shall depend on no other."""
        given = {name: value for name, value in self._given.items() if name in names}
        part = Settings(given, defaults=self._defaults, derper=self.derper)
        part._places = self._places
        return part

    def take(self, name: str, place: str, read: Callable[[Any], Any], given: object) -> None:
        """Take a value that the next lower layer has, unless one above it has one.

        Args:
            place: where it was given.
            read: makes the value of what was given; raises `ValueError` with what is wanted.
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
        """How a flag is spelled here."""
        return f"-{BY_NAME[name].go_name or name}" if self.derper else f"--{name}"

    def in_file(self, name: str) -> bool:
        """Whether the value is the settings file's."""
        return self._places.get(name, "").startswith("settings file ")

    def explain(self, error: Exception) -> str:
        """The text of an error, with flags for settings, and the place where one was given."""
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
        """Note a `ConfigError` of the block and go on.

        Args:
            flags: what the block is about, beside the settings that the error has.
        """
        try:
            yield
        except ConfigError as e:
            self.note(e, *flags)

    def note(self, error: ConfigError, *flags: str) -> None:
        """Add a problem, once, and only if no other is about the same flags."""
        about = {*flags, *_flags_of(error)}
        text = self.explain(error)
        if self.failed.isdisjoint(about) and text not in self.problems:
            self.problems.append(text)
        self.failed |= about

    def check(self) -> None:
        """Raise the first problem if there is any; it says how many more there are."""
        if not self.problems:
            return
        first, *more = self.problems
        if more:
            others = "another problem" if len(more) == 1 else f"{len(more)} more problems"
            first = f"{first} (and {others}: --check shows all)"
        raise ConfigError(first)


CarryOut: TypeAlias = Callable[[Callable[[], Settings], str | None], None]
"""Does what settings ask for. Takes a function that reads them, and the `log-format` of an error
in doing so."""


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
    """The settings that result of all layers.

    Args:
        given: values of the command line and, but for `derper`, of `PYDERP_…` variables.
        defaults: those that differ from the table's.
        derper: as for `Settings`; the variables are read here.

    Raises:
        ConfigError: the TOML file cannot be read or is none. What else is wrong would follow
            from that.
    """
    settings = Settings(given, defaults=defaults, derper=derper)
    settings.problems += unknown_variables(environment)
    ours = [(flag, flag.variable) for flag in FLAGS if derper]
    for flag, variable in ours + [(flag, flag.go_variable) for flag in FLAGS]:
        if text := environment.get(variable):
            settings.take(flag.name, f"{variable} in the environment", flag.kind.parse, text)
    if path := settings["config-file"]:
        # Not at the top: most relays have none.
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
    """The value of each flag of `pyderp relay` that is given: as a word, or else as a variable.

    typer, which reads other command lines, costs a relay a tenth of its memory and a fifth of its
    start. So it is left those with something to explain.

    Returns:
        `None`: something is wrong, asks for help, or is not as plain as `--NAME`, `--NAME=VALUE`
        or `--NAME VALUE`.
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
    """How a flag in Go's spelling is written for `pyderp relay`: `--derp=false` is `--no-derp`."""
    name, equals, text = word.partition("=")
    for flag in FLAGS:
        if name == f"--{flag.name}" and flag.kind.switch and equals and flag.in_file:
            try:
                return name if flag.kind.parse(text) else f"--no-{flag.name}"
            except ValueError:
                return word
    return word
