"""Prints the findings of `pyderp doctor`: a line each in the order of the plan, and a summary."""

from __future__ import annotations

import asyncio
import re
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Final

from pyderp.cli.output import Output, escaped
from pyderp.doctor.examination import Examination
from pyderp.doctor.finding import Finding, Result
from pyderp.text import counted, printable

__all__ = ["CODES", "PROBLEMS", "Notes", "Report", "line_of", "values_of"]

PROBLEMS: Final = (Result.WARN, Result.FAIL)
CODES: Final = {Result.FAIL: 2, Result.WARN: 1}
"""Exit status by the worst result; else 0."""
_SETTING: Final = re.compile(
    r"\{(ca|cert_name|certmode|hostname|http_port|insecure|key|mesh_key|mesh_psk_file|mesh_with"
    r"|no_derp|pin|rate_config|stun_port|timeout)\}"
)
"""Settings of the doctor and of relays."""
_WIDTH: Final = len("relay.admission")
_LINE: Final = 100
"""Characters of the progress line."""


class Report:
    """One run: prints findings in the order of the plan, and the progress on a terminal.

    Args:
        show: is called with each finding, and with whether there are several subjects; it decides
            whether to print the finding.
        progress: show the progress, if standard error is a terminal.
        left_out: number of nodes that are not checked, for the summary.
        quiet: print no summary if all is well.
    """

    def __init__(
        self,
        examination: Examination,
        output: Output,
        show: Callable[[Finding, bool], None],
        *,
        progress: bool,
        left_out: int = 0,
        quiet: bool = False,
    ) -> None:
        self._run = examination
        self._output = output
        self._show = show
        self._left_out = left_out
        self._quiet = quiet
        self._plan = examination.plan()
        self._several = len({subject for subject, _ in self._plan}) > 1
        self._printed = 0
        self._began = time.monotonic()
        self._progress = _Progress() if progress else None
        self.found: dict[tuple[str, str], Finding] = {}

    async def run(self) -> None:
        """Run all checks; if that is cancelled, the findings so far are printed."""
        try:
            await self._run.run(self._on_finding)
        except asyncio.CancelledError:
            self._clear()
            for key in self._plan[self._printed :]:
                if key in self.found:
                    self._show(self.found[key], self._several)
            self.summarize()
            raise
        finally:
            self._clear()

    def _on_finding(self, finding: Finding) -> None:
        self.found[finding.key] = finding
        self._clear()
        while self._printed < len(self._plan) and self._plan[self._printed] in self.found:
            self._show(self.found[self._plan[self._printed]], self._several)
            self._printed += 1
        if self._progress is not None and self._printed < len(self._plan):
            waiting = " ".join(self._plan[self._printed])
            of_all = counted(len(self._plan), "check")
            self._progress.show(f"{len(self.found)} of {of_all}; now {waiting}")

    def _clear(self) -> None:
        if self._progress is not None:
            self._progress.clear()

    def summarize(self) -> int:
        """Print the summary; returns the exit status."""
        counts = Counter(finding.result for finding in self.found.values())
        worst = next((each for each in (Result.FAIL, Result.WARN) if counts[each]), Result.OK)
        missing = len(self._plan) - len(self.found)
        took = time.monotonic() - self._began
        parts = [f"{counts[each]} {each.value}" for each in Result]
        if missing:
            parts.append(f"{missing} not done")
        if self._left_out:
            parts.append(f"{counted(self._left_out, 'node')} left out (--max-nodes)")
        text = f"{worst.value}: {', '.join(parts)}, in {took:.1f} s"
        values: dict[str, object] = {each.value: counts[each] for each in Result}
        values |= {"result": worst.value, "not_done": missing, "nodes_left_out": self._left_out}
        if not self._quiet or worst is not Result.OK:
            self._output.result("summary", text, **values, seconds=round(took, 3))
        return CODES.get(worst, 0)


class Notes:
    """Remarks about the input, on standard error.

    Args:
        silent: only errors are printed, since cron sends a mail for each line.
    """

    def __init__(self, output: Output, *, silent: bool) -> None:
        self._output = output
        self._silent = silent
        self._trouble = ""

    def note(self, text: str) -> None:
        """Print a remark that needs no action."""
        if not self._silent:
            self._output.note(text)

    def map_stays(self, error: Exception) -> None:
        """Print that the map cannot be read any more, once for equal errors in a row."""
        text = str(error)
        if text != self._trouble:
            self._output.remark("map", f"the last DERP map stays in use: {text}", error=text)
        self._trouble = text

    def map_is_good(self) -> None:
        """Note that the map was read, so that the next error is printed again."""
        self._trouble = ""


class _Progress:
    """A progress line on standard error, if that is a terminal."""

    def __init__(self) -> None:
        self._on = sys.stderr is not None and sys.stderr.isatty()
        self._shown = False

    def show(self, text: str) -> None:
        """Write the line."""
        if self._on:
            self._write(f"\r\x1b[K{escaped(text)[:_LINE]}")
            self._shown = True

    def clear(self) -> None:
        """Remove the line; to be called before anything else is written."""
        if self._shown:
            self._write("\r\x1b[K")
            self._shown = False

    def _write(self, text: str) -> None:
        try:
            sys.stderr.write(text)
            sys.stderr.flush()
        except OSError:
            self._on = False


def with_flags(text: str) -> str:
    """Replace the settings in braces, which texts of `pyderp.doctor` have, by their flags."""
    return _SETTING.sub(lambda found: "--" + found[1].replace("_", "-"), text)


def line_of(finding: Finding, several: bool) -> str:
    """Returns a finding as one line, which cannot steer a terminal."""
    seen = finding.seen
    subject = f"{finding.subject}  " if several else ""
    text = f"{finding.result.value:4}  {subject}{finding.check:{_WIDTH}}  {seen.text}"
    # `printable` and not `escaped`: a finding's text has its escapes already.
    return printable(with_flags(f"{text} -> {seen.advice}" if seen.advice else text))


def values_of(finding: Finding) -> dict[str, object]:
    """Returns a finding as the values of a JSON object."""
    seen = finding.seen
    return {
        "subject": finding.subject,
        "check": finding.check,
        "group": finding.check.partition(".")[0],
        "result": finding.result.value,
        "seen": with_flags(seen.text),
        "advice": with_flags(seen.advice),
        "seconds": round(finding.seconds, 6),
        "data": dict(seen.data),
    }
