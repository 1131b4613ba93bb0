#!/usr/bin/env python3
"""Measure pyderp's relay and Go's derper in turn, and write the comparison down."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shlex
import signal
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from relaybench import machine, peers, report, rows
from relaybench.certificate import write_certificate
from relaybench.errors import BenchError
from relaybench.measure import Settings, evaluate, measure, progress
from relaybench.processes import RelayCommand, raise_file_limit

if TYPE_CHECKING:
    from collections.abc import Sequence

    from relaybench.rows import Row

RESULTS = peers.REPO / "bench" / "RESULTS.md"
MIN_ROUNDS = 3
MIN_SECONDS = 3.0
PYDERP = "python -m pyderp relay {dev} -a 127.0.0.1:{port} -c {key} {tls}"
DERPER = "derper -a 127.0.0.1:{port} -stun=false -http-port=-1 -c {key} {tls}"

EPILOG = """\
rows:
{rows}

examples:
  python bench/run.py                          everything, about 8 minutes
  python bench/run.py --json raw.json          the same, with all that was measured
  python bench/run.py --only 1,4 --rounds 5    two rows, more often
  python bench/run.py --derper derper          against derper v1.102.3
  python bench/run.py --only 4 --rounds 1 --seconds 60 --no-derper
                                               keep pyderp busy, to profile it
  python bench/run.py --only 1 --command-a "python -m pyderp relay --workers 2 \\
      {{dev}} -a 127.0.0.1:{{port}} -c {{key}} {{tls}}"
                                               pyderp with other flags

A command may hold {{port}}, {{key}}, {{certdir}}, and as words of their own {{tls}}
(the TLS flags, or nothing) and {{dev}} (--dev without TLS, or nothing). Its first word
`python` means --python, `derper` means --derper; that, like the load generator, is
looked for in .peers/bin and then in PATH. The exit status does not depend on the targets.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    args = parse_args(argv)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        run_benchmark(args)
    except BenchError as exc:
        sys.stderr.write(f"bench: {exc}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("bench: interrupted; relays stopped, nothing written\n")
        return 130
    return 0


def _interrupt(_number: int, _frame: object) -> None:
    raise KeyboardInterrupt


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse and check the command line."""
    listed = "\n".join(
        f"  {row.number:>2}  {row.unit}: {row.scenario.title}"
        + (f"  (ratio ≤ {row.target:g})" if row.target else "")
        for row in rows.ROWS
    )
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=EPILOG.format(rows=listed),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--only",
        type=_row_numbers,
        default=rows.NUMBERS,
        metavar="N,...",
        help="rows to measure",
    )
    add("--rounds", type=_positive_int, default=MIN_ROUNDS, help="default %(default)s")
    add(
        "--seconds",
        type=_positive_float,
        default=5.0,
        help="measured time of a run, default %(default)s",
    )
    add(
        "--conns",
        type=_positive_int,
        default=2000,
        help="connections in rows 7 and 8, default %(default)s",
    )
    add("--json", type=Path, metavar="FILE", help="also write all that was measured")
    add(
        "--results",
        type=Path,
        metavar="FILE",
        help="where to write the page; default bench/RESULTS.md after a full run, "
        "else standard output",
    )
    add(
        "--derper",
        default=peers.DERPER,
        metavar="PROGRAM",
        help="derper to compare with, a path or a name in .peers/bin; default %(default)s",
    )
    add("--no-derper", action="store_true", help="measure pyderp alone")
    add(
        "--pin",
        action="store_true",
        help="the relay on core 0 and the load generator on core 1; unfair to derper, "
        "which uses several cores",
    )
    add(
        "--python",
        default=sys.executable,
        help="the Python that has pyderp; default: this one",
    )
    add("--command-a", default=PYDERP, metavar="COMMAND", help="instead of pyderp")
    add("--command-b", default=DERPER, metavar="COMMAND", help="instead of derper")
    args = parser.parse_args(argv)
    if args.conns > rows.MAX_IDLE_CONNS:
        parser.error(f"--conns can be at most {rows.MAX_IDLE_CONNS}")
    if args.pin and (os.cpu_count() or 1) < 2:
        parser.error("--pin needs two cores")
    return args


def _row_numbers(text: str) -> frozenset[int]:
    try:
        numbers = frozenset(int(part) for part in text.split(","))
    except ValueError:
        numbers = frozenset({0})
    if not numbers <= rows.NUMBERS:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a list of row numbers 1 to {max(rows.NUMBERS)}"
        )
    return numbers


def _positive_int(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError
    return value


def _positive_float(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise ValueError
    return value


def relay_commands(args: argparse.Namespace) -> list[RelayCommand]:
    """Return the relays to compare, ours first, checked to be there."""
    templates = [args.command_a]
    if not args.no_derper:
        templates.append(args.command_b)
    out: list[RelayCommand] = []
    for template, letter in zip(templates, "AB", strict=False):
        try:
            words = shlex.split(template)
        except ValueError as exc:
            raise BenchError(f"--command-{letter.lower()}: {exc}") from exc
        if "{port}" not in template:
            raise BenchError(f"--command-{letter.lower()} has no {{port}} in it")
        programs: dict[str, str] = {}
        name = letter
        if words[0] == "derper":
            programs["derper"] = str(peers.find_derper(args.derper))
            name = "derper" if letter == "B" else letter
        elif words[0] == "python":
            programs["python"] = args.python
            if words[1:3] == ["-m", "pyderp"]:
                peers.check_pyderp(args.python)
                name = "pyderp" if letter == "A" else letter
        out.append(RelayCommand(name, template, programs))
    return out


def run_benchmark(args: argparse.Namespace) -> None:
    """Measure what was asked for, and write it down."""
    relays = relay_commands(args)
    loadgen = peers.find_loadgen()
    raise_file_limit(args.conns + 1000)
    chosen: tuple[Row, ...] = rows.select(args.only)
    scenarios = rows.scenarios(chosen)
    date = f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC"
    hardware = machine.machine()
    with tempfile.TemporaryDirectory(prefix="pyderp-bench-") as work:
        settings = Settings(
            loadgen=loadgen,
            work=Path(work),
            seconds=args.seconds,
            rounds=args.rounds,
            conns=args.conns,
            pin=args.pin,
        )
        write_certificate(settings.work)
        samples = measure(relays, scenarios, settings)
    names = [relay.name for relay in relays]
    run = report.Run(
        date=date,
        command=_shown_command(args),
        machine=hardware,
        versions=_versions(args, relays) | {"load generator": str(samples[0].output.get("go"))},
        settings=settings,
        relays=relays,
        scenarios=scenarios,
        samples=samples,
        results=[evaluate(row, names, samples) for row in chosen],
    )
    write(args, run)


def _versions(args: argparse.Namespace, relays: Sequence[RelayCommand]) -> dict[str, str]:
    out: dict[str, str] = {}
    for relay in relays:
        if "python" in relay.programs:
            out |= machine.python_versions(args.python)
        if "derper" in relay.programs:
            out["derper"] = machine.derper_version(Path(relay.programs["derper"]))
    return out


def _shown_command(args: argparse.Namespace) -> str:
    """Return a command line that measures the same, without this machine's paths."""
    out = ["python", "bench/run.py", "--rounds", str(args.rounds)]
    out += ["--seconds", f"{args.seconds:g}", "--conns", str(args.conns)]
    if args.only != rows.NUMBERS:
        out += ["--only", ",".join(map(str, sorted(args.only)))]
    if args.derper != peers.DERPER:
        out += ["--derper", Path(args.derper).name]
    for flag in ("no_derper", "pin"):
        if getattr(args, flag):
            out.append("--" + flag.replace("_", "-"))
    for flag, default in (("command_a", PYDERP), ("command_b", DERPER)):
        if getattr(args, flag) != default:
            out += ["--" + flag.replace("_", "-"), getattr(args, flag)]
    return shlex.join(out)


def write(args: argparse.Namespace, run: report.Run) -> None:
    """Write the page and the JSON to where they belong."""
    if args.json is not None:
        text = json.dumps(report.as_json(run), indent=1, ensure_ascii=False)
        _write_text(args.json, text + "\n")
    page = report.as_markdown(run)
    target: Path | None = args.results
    if target is None and _is_full(args):
        target = RESULTS
    if target is not None:
        _write_text(target, page)
        return
    progress("not a full run, so bench/RESULTS.md stays as it is; use --results FILE")
    sys.stdout.write(page)


def _is_full(args: argparse.Namespace) -> bool:
    return (
        args.only == rows.NUMBERS
        and args.rounds >= MIN_ROUNDS
        and args.seconds >= MIN_SECONDS
        and not (args.no_derper or args.pin)
        and (args.command_a, args.command_b) == (PYDERP, DERPER)
        and args.derper == peers.DERPER
    )


def _write_text(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as exc:
        raise BenchError(f"cannot write {path}: {exc.strerror}") from exc
    progress(f"wrote {path.name}")


if __name__ == "__main__":
    sys.exit(main())
