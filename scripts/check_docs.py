"""Check the documentation against itself and the code. `--write` renews the generated tables.

Checked in all Markdown files: relative links and their anchors, `pyderp` and `make` commands,
names of environment variables and metrics, settings files, and that Python and JSON blocks
parse. The text between `<!-- generated: NAME -->` and `<!-- end -->` is compared with a table that
is made from the code.
"""

from __future__ import annotations

import argparse
import ast
import asyncio
import bisect
import functools
import inspect
import itertools
import json
import os
import re
import shlex
import sys
import tomllib
import typing
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, Final

from typer.models import ArgumentInfo, OptionInfo

from pyderp import defaults
from pyderp.admission.verdict import AdmissionCounters
from pyderp.certs.credential import CertificateInfo, CertificateState
from pyderp.cli.app import app
from pyderp.cli.connect_options import ConnectOptions
from pyderp.cli.relay.flags import FLAGS
from pyderp.config import DebugAccess, RelayConfig
from pyderp.errors import RemoteProtocolError
from pyderp.keys import NONCE_LEN
from pyderp.relay import counters
from pyderp.relay.bootstrap import BootstrapCounters
from pyderp.relay.connection import EndReason
from pyderp.relay.limits import RateConfig
from pyderp.relay.router import Router
from pyderp.server.site.metrics import metrics_text, own_series
from pyderp.server.site.metrics_derper import Series, gather_upstream
from pyderp.server.site.view import Access, RelayView
from pyderp.wire import frames
from pyderp.wire.login import check_client_info_frame_untrusted
from pyderp.wire.messages import Skipped, unpack_message_untrusted

__all__ = ["Block", "blocks", "main", "problems", "write_tables"]

ROOT: Final = Path(__file__).resolve().parents[1]

_FENCE: Final = re.compile(r"^(`{3,})(\w*)\s*$")
_MARK: Final = re.compile(r"^<!-- test: ([\w-]+) -->$")
_LINK: Final = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
_HEADING: Final = re.compile(r"^#{1,6}\s+(.*?)\s*#*$")
_SPAN: Final = re.compile(r"`([^`\n]+)`")
_GENERATED: Final = re.compile(
    r"(?P<head><!-- generated: (?P<name>[\w-]+) -->\n)(?P<table>.*?)(?P<tail><!-- end -->)",
    re.DOTALL,
)
_VARIABLE: Final = re.compile(r"\bPYDERP_[A-Z_]+\b")
_OTHER_VARIABLES: Final = frozenset(
    {
        "PYDERP_INTERRUPT_RUNS",
        "PYDERP_REQUIRE_PEERS",
        "PYDERP_SUMS_SECONDS",
        "PYDERP_SUMS_SEED",
    }
    # Examples of names that are no settings.
    | {"PYDERP_VERIFY_CLIENT", "PYDERP_SERVICE_HOST", "PYDERP_PORT"}
)
_METRIC: Final = re.compile(
    r"\b(?:pyderp|derp|derper_tls|stun|tls_listener|bootstrap_dns|process)_[a-z_]+\b(?!…)"
)
_NO_METRICS: Final = frozenset({"derp_clients", "derp_port", "derp_relay", "stun_addresses"})
"""Fixtures and fields whose names look like metrics."""
_CONTAINERS: Final = frozenset({"docker", "podman"})
_SHELL: Final = frozenset({"sh", "console", "yaml", "ini", ""})
_HELP_DEFAULT: Final = re.compile(r"\s*\[default: (.*)\]$")
_FAR: Final = 2**20
"""Bytes; a frame of which even so many are accepted counts as unlimited."""


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    path: Path
    line: int
    """Line of the opening fence, from 1."""
    language: str
    mark: str
    """NAME of a `<!-- test: NAME -->` in the line above, or empty."""
    text: str


# Reading pages


def pages(root: Path) -> list[Path]:
    """Returns all Markdown files below `root`, except those in hidden and built folders."""
    found = []
    for folder, names, files in os.walk(root):
        names[:] = [n for n in names if not n.startswith(".") and n not in ("build", "dist")]
        found += [Path(folder, name) for name in files if name.endswith(".md")]
    return sorted(found)


def blocks(path: Path) -> list[Block]:
    """Returns the fenced blocks of a page."""
    found: list[Block] = []
    lines = path.read_text().splitlines()
    fence = ""
    above = ""
    for number, line in enumerate(lines, start=1):
        match = _FENCE.match(line)
        if not fence and match:
            fence = match[1]
            mark = _MARK.match(above)
            found.append(Block(path, number, match[2], mark[1] if mark else "", ""))
        elif fence and line == fence:
            fence = ""
        elif fence:
            found[-1] = replace(found[-1], text=f"{found[-1].text}{line}\n")
        above = line
    return found


def prose(path: Path) -> list[tuple[int, str]]:
    """Returns the numbered lines of a page that are in no fenced block."""
    inside: set[int] = set()
    for block in blocks(path):
        inside.update(range(block.line, block.line + block.text.count("\n") + 2))
    lines = path.read_text().splitlines()
    return [(n, line) for n, line in enumerate(lines, start=1) if n not in inside]


def anchors(path: Path) -> set[str]:
    """Returns the anchors of a page's headings, as GitHub makes them."""
    found: set[str] = set()
    for _, line in prose(path):
        if match := _HEADING.match(line):
            text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", match[1]).replace("`", "").lower()
            slug = re.sub(r"[^\w\- ]", "", text).replace(" ", "-")
            same = (slug if not i else f"{slug}-{i}" for i in itertools.count())
            found.add(next(each for each in same if each not in found))
    return found


# Checks. Each yields (line, problem).


def check_links(path: Path) -> Iterator[tuple[int, str]]:
    """Check that relative links lead to files and headings that exist."""
    for number, line in prose(path):
        for target in _LINK.findall(_SPAN.sub("", line)):
            if re.match(r"[a-z]+:", target):
                continue
            name, _, anchor = target.partition("#")
            file = (path.parent / name).resolve() if name else path
            if not file.exists():
                yield number, f"link to {target}: no such file"
            elif anchor and file.suffix == ".md" and anchor not in anchors(file):
                yield number, f"link to {target}: no such heading"


def check_commands(path: Path) -> Iterator[tuple[int, str]]:
    """Check that the commands, flags and make targets that a page mentions exist."""
    for number, line in prose(path):
        for span in _SPAN.findall(line):
            for problem in _wrong_in_command(span):
                yield number, problem
    for block in blocks(path):
        if block.language in _SHELL:
            text = block.text.replace("\\\n", " ")
            for line in text.splitlines():
                for problem in _wrong_in_command(line.removeprefix("$ ")):
                    yield block.line, problem


def _wrong_in_command(line: str) -> Iterator[str]:
    try:
        words = shlex.split(line, comments=True)
    except ValueError:
        return
    if words and words[0] in _CONTAINERS:
        return  # a word after docker may be an image that is called pyderp
    for i, word in enumerate(words):
        if word == "make" and i + 1 < len(words):
            yield from _wrong_in_make(words[i + 1 :])
        elif Path(word.rpartition("=")[2]).name == "pyderp" and i + 1 < len(words):
            # What follows a path such as src/pyderp is no flag and no command.
            yield from _wrong_in_pyderp(words[i + 1 :])


def _wrong_in_make(words: Sequence[str]) -> Iterator[str]:
    if not re.fullmatch(r"[a-z-]+", words[0]) or words[0].startswith("-"):
        return
    if not re.search(rf"^{words[0]}:", (ROOT / "Makefile").read_text(), re.MULTILINE):
        yield f"make {words[0]}: no such target"
    for word in words[1:]:
        if words[0] == "relay" and word.startswith("ARGS="):
            yield from _unknown_flags("relay", word.removeprefix("ARGS=").split())


def _wrong_in_pyderp(words: Sequence[str]) -> Iterator[str]:
    name, *rest = words
    if name.startswith("-"):
        if name not in ("--version", "--help"):
            yield f"pyderp {name}: no such flag"
    elif name in _commands():
        yield from _unknown_flags(name, rest)
    elif rest and f"{name} {rest[0]}" in _commands():
        yield from _unknown_flags(f"{name} {rest[0]}", rest[1:])
    elif any(word.startswith("--") for word in rest):
        yield f"pyderp {name}: no such command"


def _unknown_flags(command: str, words: Sequence[str]) -> Iterator[str]:
    if command == "derper":
        return  # its flags are those of the relay, in Go's spelling
    known = {flag for option in options(command) for flag in option.flags} | {"--help"}
    for word in words:
        if word in ("|", ">", "2>", "&", "&&", ";"):
            return
        flag = word.partition("=")[0]
        if re.match(r"--?[a-z]", flag) and flag not in known:
            yield f"pyderp {command} {flag}: no such flag"


def check_variables(path: Path) -> Iterator[tuple[int, str]]:
    """Check that the environment variables `PYDERP_…` that a page mentions exist."""
    known = {option.variable for name in _commands() for option in options(name)}
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        for name in _VARIABLE.findall(line):
            if name not in known | _OTHER_VARIABLES:
                yield number, f"{name}: no such environment variable"


def check_code(path: Path) -> Iterator[tuple[int, str]]:
    """Check that Python and JSON blocks parse."""
    for block in blocks(path):
        try:
            if block.language == "python":
                ast.parse(block.text)
            elif block.language == "json":
                json.loads(block.text)
        except SyntaxError as e:
            yield block.line + (e.lineno or 0), f"Python block does not parse: {e.msg}"
        except ValueError as e:
            yield block.line, f"JSON block does not parse: {e}"


def check_settings(path: Path) -> Iterator[tuple[int, str]]:
    """Check that TOML blocks are settings files that a relay accepts."""
    known = {flag.name: flag.kind for flag in FLAGS if flag.in_file}
    for block in blocks(path):
        if block.language != "toml":
            continue
        try:
            for name, value in tomllib.loads(block.text).items():
                if name not in known:
                    yield block.line, f"{name}: no such setting"
                else:
                    known[name].from_toml(value)
        except ValueError as e:
            yield block.line, f"TOML block: {e}"


def check_tables(path: Path) -> Iterator[tuple[int, str]]:
    """Check that generated tables match the code."""
    text = path.read_text()
    for match in _GENERATED.finditer(text):
        number = text.count("\n", 0, match.start()) + 1
        name = match["name"]
        if name not in TABLES:
            yield number, f"generated: {name}: no such table"
        elif match["table"] != TABLES[name]():
            yield number, f"generated: {name}: out of date; run scripts/check_docs.py --write"


def check_counters(path: Path) -> Iterator[tuple[int, str]]:
    """Check that the page of counters explains all of them, and no others."""
    if path.name != "log-and-counters.md":
        return
    explained = set(re.findall(r"^\| `(\w+)` \|", path.read_text(), re.MULTILINE))
    explained -= {reason.value for kind in (counters.DropReason, EndReason) for reason in kind}
    for name in sorted(explained ^ set(counters.Counters.__slots__)):
        yield 1, f"counter {name}: " + ("no such" if name in explained else "not explained")


def check_metrics(path: Path) -> Iterator[tuple[int, str]]:
    """Check that the metrics that a page mentions exist."""
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        for name in _METRIC.findall(line):
            if name not in _metric_names() | _NO_METRICS:
                yield number, f"{name}: no such metric"


CHECKS: Final[Sequence[Callable[[Path], Iterator[tuple[int, str]]]]] = (
    check_links,
    check_commands,
    check_variables,
    check_code,
    check_settings,
    check_tables,
    check_counters,
    check_metrics,
)


def problems(root: Path = ROOT) -> list[str]:
    """Returns the problems of the documentation below `root`, a line each."""
    return [
        f"{path.relative_to(root)}:{number}: {text}"
        for path in pages(root)
        for check in CHECKS
        for number, text in check(path)
    ]


# Commands, from the code


@dataclass(frozen=True)
class Option:
    """A flag of a command."""

    flags: tuple[str, ...]
    value: str
    default: str
    variable: str
    help: str


def _commands() -> dict[str, Callable[..., Any]]:
    """Returns the commands by name; one of a group has the group's name in front."""
    groups = [("", app)]
    groups += [(f"{g.name} ", g.typer_instance) for g in app.registered_groups if g.typer_instance]
    return {
        prefix + (command.name or command.callback.__name__): command.callback
        for prefix, group in groups
        for command in group.registered_commands
        if command.callback is not None
    }


def options(command: str) -> list[Option]:
    """Returns the flags of a command, in the order of its parameters."""
    return options_of(_commands()[command])


def options_of(function: Callable[..., Any]) -> list[Option]:
    """Returns the flags that typer makes from a function's parameters or a class's fields."""
    hints = typing.get_type_hints(function, include_extras=True)
    found = []
    for name, parameter in inspect.signature(function).parameters.items():
        kind, info = typing.get_args(hints[name])
        if isinstance(info, ArgumentInfo):
            continue
        assert isinstance(info, OptionInfo), f"{name} is neither flag nor argument"
        text, default = info.help or "", parameter.default
        unset = (None, False, inspect.Parameter.empty)
        shown = "" if any(default is each for each in unset) else _show(default)
        if match := _HELP_DEFAULT.search(text):
            text, shown = text[: match.start()], match[1]
        variable = info.envvar if isinstance(info.envvar, str) else ""
        found.append(Option(_flags(name, info), _value(kind, info), shown, variable, text))
    return found


def _flags(name: str, info: OptionInfo) -> tuple[str, ...]:
    # Inside Annotated, typer keeps the first flag as the default.
    given = [info.default] if isinstance(info.default, str) else []
    given += info.param_decls or ()
    # A switch has its two spellings in one text: --stun/--no-stun.
    given = [spelling for each in given for spelling in each.split("/")]
    return tuple(given) or (f"--{name.replace('_', '-')}",)


def _value(kind: Any, info: OptionInfo) -> str:
    if info.metavar:
        return info.metavar
    for each in typing.get_args(kind) or (kind,):
        if each is bool:
            return ""
        if isinstance(each, type) and issubclass(each, Enum):
            return "|".join(str(member.value) for member in each)
    return "NUMBER"


def _show(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


# Tables, from the code


def _table(*rows: Sequence[str]) -> str:
    head, *body = rows
    lines = [head, ["---"] * len(head), *body]
    return "".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines
    )


def connect_options() -> str:
    """Returns the table of the flags that all connecting commands share."""
    return _options_table(options_of(ConnectOptions))


def own_options(command: str) -> str:
    """Returns the table of a command's flags, without those that connecting commands share."""
    shared = options_of(ConnectOptions)
    return _options_table([option for option in options(command) if option not in shared])


def _options_table(listed: Sequence[Option]) -> str:
    rows = [("Flag", "Value", "Default", "Environment", "Meaning")]
    for option in listed:
        flags = ", ".join(f"`{flag}`" for flag in option.flags)
        value = f"`{option.value}`" if option.value else ""
        variable = f"`{option.variable}`" if option.variable else ""
        default = (
            f"`{option.default}`" if re.fullmatch(r"[\w.]+", option.default) else (option.default)
        )
        rows.append((flags, value, default, variable, option.help))
    return _table(*rows)


def _documented(module: ModuleType) -> Iterator[tuple[str, object, str]]:
    """Yields the constants of a module: name, value, and the string below it."""
    body = ast.parse(inspect.getsource(module)).body
    for statement, below in itertools.zip_longest(body, body[1:]):
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            name = statement.target.id
            if not name.startswith("_") and name != "__all__":
                yield name, getattr(module, name), _string(below)


def _string(statement: ast.stmt | None) -> str:
    if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
        return " ".join(str(statement.value.value).split())
    return ""


def constants() -> str:
    """Returns the table of the numbers and magics of `pyderp.wire.frames`."""
    rows = [("Name", "Value", "Meaning")]
    for name, value, text in _documented(frames):
        if isinstance(value, int):
            rows.append((f"`{name}`", str(value), text))
        elif isinstance(value, bytes) and "MAGIC" in name:
            rows.append((f"`{name}`", f"`{value.hex(' ')}`", text))
    return _table(*rows)


def limits() -> str:
    """Returns the table of the defaults and limits of `pyderp.defaults`."""
    rows = [("Name", "Value", "Meaning")]
    rows += [(f"`{name}`", _show(value), text) for name, value, text in _documented(defaults)]
    return _table(*rows)


def reasons(kind: type[Enum]) -> str:
    """Returns the table of an enumeration: why packets are dropped, or connections end."""
    rows = [("Reason", "Meaning")]
    body = ast.parse(inspect.getsource(kind)).body[0]
    assert isinstance(body, ast.ClassDef)
    for statement, below in itertools.zip_longest(body.body, body.body[1:]):
        if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Constant):
            rows.append((f"`{statement.value.value!s}`", _string(below)))
    return _table(*rows)


def _all_on() -> RelayView:
    """Returns a relay with everything switched on that its metrics read."""
    anything: Any = SimpleNamespace
    now = datetime.now(UTC)
    return RelayView(
        config=RelayConfig(),
        router=Router(bytes(32), lambda: 0.0),
        protocols=(),
        access=Access(DebugAccess()),
        version="",
        limits=anything(config=RateConfig(), waited=0, waiting=(), trouble=""),
        admission=anything(counters=AdmissionCounters(), troubles=list),
        mesh=anything(status=tuple),
        certificates=lambda: [CertificateInfo(("relay.example.com",), now, now)],
        certificate_states=lambda: [CertificateState("relay.example.com", None, 0, 0.0)],
        accepts=anything(accepted=0, rejected=0, shed=0),
        bootstrap=BootstrapCounters(),
        tls_requests={},
    )


def metrics(choose: Callable[[RelayView], Iterable[Series]]) -> str:
    """Returns the table of the metrics that `choose` selects."""
    rows = [("Name", "Type", "Labels", "Meaning")]
    for series in sorted(choose(_all_on()), key=lambda each: each.name):
        labels = ", ".join(f"`{label}`" for label in series.labels)
        rows.append((f"`{series.name}`", series.kind, labels, series.help))
    return _table(*rows)


def _derper_series(view: RelayView) -> list[Series]:
    return asyncio.run(gather_upstream(view))


@functools.cache
def _metric_names() -> frozenset[str]:
    tables = (TABLES[name]() for name in ("metrics-derper", "metrics-own", "metrics-process"))
    return frozenset(re.findall(r"^\| `(\w+)` ", "".join(tables), re.MULTILINE))


def process_metrics() -> str:
    """Returns the table of the metrics about the process."""
    view = _all_on()
    ours = {series.name for series in (*_derper_series(view), *own_series(view))}
    text = asyncio.run(metrics_text(view)).decode()
    kinds = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE))
    rows = [("Name", "Type", "Meaning")]
    for name, meaning in re.findall(r"^# HELP (\S+) (.*)$", text, re.MULTILINE):
        if name not in ours:
            rows.append((f"`{name}`", kinds[name], meaning))
    return _table(*rows)


def frame_types() -> str:
    """Returns the table of frames: layouts by the pack functions, lengths by the readers."""
    rows = [("Type", "Name", "From", "Payload", "Bytes accepted")]
    layouts = _layouts()
    for kind in frames.FrameType:
        name = kind.name.title().replace("_", "")
        by_relay, by_client = _accepted_by_relay(kind), _accepted_by_client(kind)
        senders = ["client"] * bool(by_relay) + ["relay"] * bool(by_client)
        lengths = by_relay or by_client
        if by_relay and by_client and by_relay != by_client:
            lengths = f"relay: {by_relay}; client: {by_client}"
        layout = layouts.get(name, "none")
        rows.append((f"`{kind:02x}`", name, ", ".join(senders), layout, lengths))
    return _table(*rows)


def _layouts() -> dict[str, str]:
    """Returns the layouts of frames, from docstrings: `04 SendPacket: destination 32 ‖ packet`."""
    found = {}
    for name, function in inspect.getmembers(frames, inspect.isfunction):
        first = (function.__doc__ or "").partition("\n")[0]
        if name.startswith("pack_") and (match := re.match(r"([0-9a-f]{2}) (\w+): (.*)\.$", first)):
            kind = frames.FrameType(int(match[1], 16))
            assert kind.name.replace("_", "").lower() == match[2].lower(), first
            found[match[2]] = match[3]
    return found


def _accepted_by_relay(kind: frames.FrameType) -> str:
    if kind == frames.FrameType.CLIENT_INFO:
        check = check_client_info_frame_untrusted
    else:
        check = frames.check_client_frame_untrusted
    # Accepted lengths have no gaps: search from the smallest for the first that is too large.
    least = next(n for n in range(_FAR) if _passes(check, kind, n))
    beyond = range(least, _FAR)
    most = least + bisect.bisect_left(beyond, True, key=lambda n: not _passes(check, kind, n)) - 1
    # These are the bounds for a type that the relay does not know: it skips such a frame.
    skipped = (least, most) == (0, frames.MAX_UNKNOWN_FRAME_LEN)
    return "" if skipped else _span(least, most)


def _passes(check: Callable[[int, int], None], kind: int, length: int) -> bool:
    try:
        check(kind, length)
    except RemoteProtocolError:
        return False
    return True


def _accepted_by_client(kind: frames.FrameType) -> str:
    if kind == frames.FrameType.SERVER_KEY:
        return _span(frames.SERVER_KEY_LEN, frames.MAX_SERVER_KEY_FRAME)
    if kind == frames.FrameType.SERVER_INFO:
        return _span(NONCE_LEN, _FAR)
    for length in range(100):
        if not isinstance(unpack_message_untrusted(kind, bytes(length)), Skipped):
            return _span(length, _FAR)
    return ""


def _span(least: int, most: int) -> str:
    if least == most:
        return str(least)
    return f"{least} or more" if most == _FAR else f"{least} to {most}"


TABLES: Final[dict[str, Callable[[], str]]] = {
    "connect-options": connect_options,
    "constants": constants,
    "drop-reasons": functools.partial(reasons, counters.DropReason),
    "end-reasons": functools.partial(reasons, EndReason),
    "frames": frame_types,
    "key-new-options": functools.partial(own_options, "key new"),
    "limits": limits,
    "metrics-derper": functools.partial(metrics, _derper_series),
    "metrics-own": functools.partial(metrics, own_series),
    "metrics-process": process_metrics,
    **{
        f"map-{name}-options": functools.partial(own_options, f"map {name}")
        for name in ("show", "lint", "diff", "new", "convert")
    },
    "listen-options": functools.partial(own_options, "listen"),
    "doctor-options": lambda: _options_table(options("doctor")),
    "netcheck-options": functools.partial(own_options, "netcheck"),
    "ping-options": functools.partial(own_options, "ping"),
    "relay-options": functools.partial(own_options, "relay"),
    "send-options": functools.partial(own_options, "send"),
}


def write_tables(root: Path = ROOT) -> list[Path]:
    """Renew the generated tables; returns the pages that changed."""
    changed = []
    for path in pages(root):
        text = path.read_text()
        new = _GENERATED.sub(
            lambda m: m["head"] + TABLES[m["name"]]() + m["tail"] if m["name"] in TABLES else m[0],
            text,
        )
        if new != text:
            path.write_text(new)
            changed.append(path)
    return changed


def main(arguments: Sequence[str] | None = None) -> int:
    """Check; with `--write` renew the tables before. Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--write", action="store_true", help="renew the generated tables")
    if parser.parse_args(arguments).write:
        for path in write_tables():
            sys.stdout.write(f"{path.relative_to(ROOT)}: written\n")
    found = problems()
    sys.stdout.writelines(f"{line}\n" for line in found)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
