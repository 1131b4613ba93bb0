"""`pyderp map lint` and `pyderp map diff`: mistakes in a map, and what a change means."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Sequence
from typing import Annotated, Final

import typer

from pyderp.cli.connect_options import value
from pyderp.cli.map.source import (
    AsJson,
    Ca,
    Cache,
    Form,
    Source,
    Timeout,
    label,
    load,
    run,
    ways,
)
from pyderp.cli.output import Output, print_line
from pyderp.mapio.online import lint_online
from pyderp.mapio.sources import LoadedMap, MapWays
from pyderp.maps.diff import Change, diff
from pyderp.maps.lint import RULES, Finding, Severity, by_severity, lint
from pyderp.text import counted, printable

__all__ = ["DIFF_EPILOG", "DIFF_HELP", "LINT_EPILOG", "LINT_HELP", "diff_command", "lint_command"]

LINT_HELP: Final = (
    "Look for mistakes in a DERP map. Prints for each the path of the member, and what to do."
)
LINT_EPILOG: Final = """**Examples**

`pyderp map lint map.json`

Connect to each node as well, by IPv4 and by IPv6:

`pyderp map lint /etc/headscale/derp.yaml --online`

In a check of a policy file, without two rules:

`pyderp map lint policy.hujson --ignore port-80 --ignore one-region`

**Exit status**: 0 no findings, or hints only; 1 warnings; 2 errors, or the map cannot be read.
"""
DIFF_HELP: Final = "Say what the change from one DERP map to another means for clients."
DIFF_EPILOG: Final = """**Example**

`pyderp map diff map.json new-map.json`

**Exit status**: 0 no change that clients notice; 1 there is one; 2 a map cannot be read.
"""
_NO_LOGIN: Final = (
    "no login was tried: `pyderp netcheck MAP --relay` and `pyderp doctor MAP` find out whether "
    "the relays relay"
)
_PAUSE: Final = 1.0
"""Seconds between two lines of progress."""


def _rules(names: list[str] | None) -> list[str]:
    for name in names or ():
        if name not in RULES:
            raise typer.BadParameter(f"no rule {name!r}; there are {', '.join(RULES)}")
    return names or []


def lint_command(
    source: Source,
    online: Annotated[
        bool,
        typer.Option(
            "--online",
            help="Connect to each node by each address family: TCP, TLS and pin, STUN, port 80. "
            "Directly, without proxies and without logging in.",
        ),
    ] = False,
    ignore: Annotated[
        list[str] | None,
        value("RULE", "Leave out a rule; may be repeated.", callback=_rules),
    ] = None,
    form: Form = None,
    cache: Cache = None,
    ca: Ca = None,
    timeout: Timeout = 5.0,
    as_json: AsJson = False,
) -> None:
    """The command; `LINT_HELP` says what it does."""

    left_out = ignore or ()

    async def work(output: Output) -> int:
        how = ways(ca, timeout)
        loaded = await load(output, source, form, how, cache=cache)
        found = lint(loaded.map, loaded.tree, kind=loaded.kind, urls=loaded.urls)
        try:
            if online:
                await _try_nodes(loaded, how, output, found)
        finally:
            # On Ctrl-C, too: print what was found so far.
            found = [each for each in by_severity(found) if each.rule not in left_out]
            _print_findings(loaded, found, as_json=as_json)
        if online and not as_json:
            output.note(_NO_LOGIN)
        return _code(found)

    run(work, as_json=as_json)


async def _try_nodes(loaded: LoadedMap, how: MapWays, output: Output, found: list[Finding]) -> None:
    """Connect to the nodes, and add each finding to `found` as it comes."""
    last = time.monotonic()
    tried = 0
    offline = list(found)
    shown = sys.stderr is not None and sys.stderr.isatty()

    def on_progress(done: int, total: int, of_node: Sequence[Finding]) -> None:
        nonlocal last, tried
        found.extend(of_node)
        tried = done
        now = time.monotonic()
        if shown and now - last >= _PAUSE:
            last = now
            output.note(f"{done} of {counted(total, 'node')} tried")

    try:
        online = await lint_online(loaded.map, ways=how, on_progress=on_progress)
        found[:] = [*offline, *online]
    except asyncio.CancelledError:
        output.note(f"stopped after {counted(tried, 'node')}")
        raise


def _code(found: Sequence[Finding]) -> int:
    worst = {finding.severity for finding in found}
    return 2 if Severity.ERROR in worst else 1 if Severity.WARNING in worst else 0


def _print_findings(loaded: LoadedMap, found: Sequence[Finding], *, as_json: bool) -> None:
    counts = {each: sum(f.severity is each for f in found) for each in Severity}
    if as_json:
        findings = [
            {
                "severity": each.severity.value,
                "rule": each.rule,
                "path": each.path,
                "text": each.text,
                "advice": each.advice,
            }
            for each in found
        ]
        totals = {f"{severity.value}s": count for severity, count in counts.items()}
        origin = {"origin": loaded.origin, "warnings": list(loaded.warnings)}
        print_line(json.dumps({**origin, "findings": findings, **totals}))
        return
    for each in found:
        # `printable` keeps backslashes: the texts quote values of the map with escapes already.
        text = printable(each.text)
        print_line(f"{each.severity.value}: {label(each.path)}: {text} [{each.rule}]")
        print_line(f"  {printable(each.advice)}")
    said = [counted(count, severity.value) for severity, count in counts.items() if count]
    print_line(f"{label(loaded.origin)}: {', '.join(said) or 'nothing found'}")


def diff_command(
    old: Source,
    new: Source,
    form: Form = None,
    ca: Ca = None,
    timeout: Timeout = 10.0,
    as_json: AsJson = False,
) -> None:
    """The command; `DIFF_HELP` says what it does."""

    if old == new == "-":
        raise typer.BadParameter("standard input can be one of the two maps only")

    async def work(output: Output) -> int:
        how = ways(ca, timeout)
        before = await load(output, old, form, how)
        after = await load(output, new, form, how)
        changes = diff(before.map, after.map)
        _print_changes(before, after, changes, as_json=as_json)
        return 1 if changes else 0

    run(work, as_json=as_json)


def _print_changes(
    old: LoadedMap, new: LoadedMap, changes: Sequence[Change], *, as_json: bool
) -> None:
    if as_json:
        listed = [{"path": change.path, "text": change.text} for change in changes]
        print_line(json.dumps({"old": old.origin, "new": new.origin, "changes": listed}))
        return
    for change in changes:
        print_line(f"{label(change.path)}: {printable(change.text)}")
    if not changes:
        print_line("no change for clients")
