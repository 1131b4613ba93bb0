"""The values of all flags, from the layers that have some: flags, environment, file, defaults."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any, Final, TypeAlias

import typer
from typer.core import TyperCommand

from pyderp.cli.relay.environment import unknown_variables
from pyderp.cli.relay.flags import BY_NAME, FLAGS, Flag, flag_of
from pyderp.cli.relay.tomlfile import read_toml, toml_value
from pyderp.errors import ConfigError, setting_name

__all__ = ["EPILOG", "CarryOut", "RelayCommand", "Settings", "load_settings", "relay_command"]
__all__ += ["spelling_of"]

HELP = "Run a DERP relay."
EPILOG = """**Examples**

A relay on this machine only, for trying things out:

`pyderp relay --dev`

On ports 443, 80 and 3478/udp, with a certificate from Let's Encrypt:

`pyderp relay --hostname=relay.example.com`

By IP address, with a self-signed certificate that the DERP map pins:

`pyderp relay --hostname=203.0.113.7`

The DERP map of that relay, for Tailscale's policy file and for headscale:

`pyderp relay --hostname=203.0.113.7 --show-map=all`

With a certificate that you have, in /etc/derp/derp.example.com.crt and .key:

`pyderp relay --certmode=manual --certdir=/etc/derp --hostname=derp.example.com -c relay.key`

All settings from a file; is it right?

`pyderp relay --config-file=/etc/pyderp/relay.toml --check`
"""


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
        given: values of the command line; typer has added those of `PYDERP_…` variables.
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
        for name, value, place in read_toml(path):
            settings.take(name, place, functools.partial(toml_value, name), value)
    return settings


# The command line, by typer


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


def _misspelt(word: str) -> str | None:
    """What was meant by a word of a command line that Go would take and typer does not.

    Returns:
        the whole error; `None`: nothing is wrong with it.
    """
    name, equals, text = word.partition("=")
    if not name.startswith("--"):
        return None
    for flag in FLAGS:
        if name == f"--{flag.name}" and flag.kind.switch and equals:
            try:
                value = flag.kind.parse(text)
            except ValueError:
                return f"{word}: {name} takes no value"
            meant = name if value else f"--no-{flag.name}" if flag.in_file else f"no {name}"
            return f"{word}: write {meant}; a switch takes no value"
        if name[1:] in flag.also and len(name) == 3:
            value = text if equals else flag.kind.metavar or "VALUE"
            return f"{word}: write {name[1:]} {value}, or --{flag.name}={value}"
    return None


_ALONE: Final = {flag.name: flag for flag in FLAGS if flag.kind.alone}


class RelayCommand(TyperCommand):
    """A command with flags that may stand alone or take a value: `--health`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Take the command line; such flags that stand alone, as `--no-NAME` too, get a value."""
        given = []
        for word, following in zip(args, [*args[1:], "-"], strict=False):
            if error := _misspelt(word):
                ctx.fail(error)
            flag = _ALONE.get(word.removeprefix("--no-").removeprefix("--"))
            if flag is not None and word == f"--no-{flag.name}":
                given.append(f"--{flag.name}=false")
            elif flag is not None and word == f"--{flag.name}" and following.startswith("-"):
                given.append(f"{word}={flag.kind.alone}")
            else:
                given.append(word)
        return super().parse_args(ctx, given)


def relay_command(carry_out: CarryOut) -> Callable[..., None]:
    """The function of `pyderp relay`, with the signature that typer reads."""

    def relay(**values: Any) -> None:
        given = {flag.name: values[flag.parameter] for flag in FLAGS}
        carry_out(lambda: load_settings(given), given["log-format"])

    parameters = [
        inspect.Parameter(
            flag.parameter, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=_option(flag)
        )
        for flag in FLAGS
    ]
    vars(relay)["__signature__"] = inspect.Signature(parameters)
    relay.__annotations__ = {each.name: each.annotation for each in parameters}
    return relay


def _option(flag: Flag) -> Any:
    # All defaults are None: a value that was given wins over the file, a default does not.
    default = flag.shown_default
    common: dict[str, Any] = {
        "help": f"{flag.help}  [default: {default}]" if default else flag.help,
        "envvar": flag.variable or None,
        "show_default": False,
        "rich_help_panel": flag.panel,
    }
    if flag.kind.switch:
        spelling = f"--{flag.name}/--no-{flag.name}" if flag.in_file else f"--{flag.name}"
        return Annotated[bool | None, typer.Option(spelling, **common)]
    spellings = [*flag.also, f"--{flag.name}"]
    if flag.kind.alone:
        spellings.append(f"--no-{flag.name}")  # `RelayCommand` gives it its value

    def parse(text: str) -> Any:
        try:
            return flag.kind.parse(text)
        except ValueError as e:
            raise typer.BadParameter(f"{text!r}: {e}") from None

    return Annotated[
        str | None,
        typer.Option(*spellings, metavar=flag.kind.metavar, parser=parse, **common),
    ]
