#!/usr/bin/env python3
"""Measure pyderp's relay, on both engines, and Go's derper in turn, and write the pages."""

from __future__ import annotations

import argparse
import datetime
import os
import shlex
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from relaybench import machine, peers, publish, relays, rows
from relaybench.certificate import write_certificate
from relaybench.errors import BenchError
from relaybench.measure import Settings, measure, progress
from relaybench.processes import RelayCommand, raise_file_limit
from relaybench.raw import Header, RawFile, read

RAW = peers.REPO / "build" / "bench"
QUICK_SECONDS, QUICK_CONNS, QUICK_MINUTES = 1.5, 500, 10.0
SECONDS, CONNS, MINUTES, ROUNDS = 4.0, 2000, 60.0, 5

EPILOG = """\
groups: {groups}
scenarios:
{scenarios}

examples:
  python bench/run.py                       everything, within an hour
  python bench/run.py --quick               everything once, within ten minutes
  python bench/run.py --only curve,tls-rate --rounds 2
                                            a group and a scenario
  python bench/run.py --report RAW.jsonl    the pages, from what was measured
  python bench/run.py --report RAW.jsonl --publish
                                            the same, into README.md and docs too
  python bench/run.py --only tls-pairs --rounds 1 --seconds 60 --no-derper --engines fast
                                            keep one relay busy, to profile it

Every run is appended to the raw file when it is over. With --raw FILE of an earlier run on the
same machine and programs, this one adds rounds to it. The exit status does not depend on the
targets.

A --command may hold {{port}}, {{key}}, {{certdir}}, and as words of their own {{tls}} (the TLS
flags, or nothing) and {{dev}} (--dev without TLS, or nothing). Its first word `python` means
--python, `derper` the derper in .peers/bin.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    args = parse_args(argv)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        if args.report is None:
            return run_benchmark(args)
        report(args, args.report)
    except BenchError as exc:
        sys.stderr.write(f"bench: {exc}\n")
        return 1
    return 0


def _interrupt(_number: int, _frame: object) -> None:
    raise KeyboardInterrupt


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse and check the command line."""
    listed = "\n".join(f"  {s.name:<18} {s.title}" for s in rows.SCENARIOS)
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=EPILOG.format(groups=", ".join(rows.GROUPS), scenarios=listed),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_what(parser)
    _add_how(parser)
    args = parser.parse_args(argv)
    if args.quick:
        args.rounds = args.rounds or 1
        args.seconds = args.seconds or QUICK_SECONDS
        args.conns = args.conns or QUICK_CONNS
        args.minutes = args.minutes or QUICK_MINUTES
    args.rounds = args.rounds or ROUNDS
    args.seconds = args.seconds or SECONDS
    args.conns = args.conns or CONNS
    args.minutes = args.minutes or MINUTES
    if args.conns > rows.MAX_IDLE_CONNS:
        parser.error(f"--conns can be at most {rows.MAX_IDLE_CONNS}")
    if args.pin and (os.cpu_count() or 1) < 2:
        parser.error("--pin needs two cores")
    return args


def _add_what(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--only", type=_words, metavar="NAME,...", help="scenarios or groups to measure")
    add("--quick", action="store_true", help="one short round, fewer points of the curve")
    add("--derper", default=peers.DERPER, metavar="PROGRAM", help="default %(default)s")
    add("--no-derper", action="store_true", help="measure pyderp alone")
    add(
        "--engines",
        type=_engines,
        default=tuple(relays.ENGINES),
        metavar="NAME,...",
        help="pure and fast; default: both, if pyderp-fast is installed",
    )
    add("--python", default=sys.executable, help="the Python that has pyderp; default: this one")
    add("--command", action="append", default=[], help="one more relay, may be repeated")
    add(
        "--iroh", type=Path, metavar="PROGRAM", help="also iroh-relay, which make bench-iroh builds"
    )
    add("--report", type=Path, metavar="RAW", help="measure nothing, make the pages from a file")
    add(
        "--publish", action="store_true", help="bench/RESULTS.md, README.md and docs, not only here"
    )


def _add_how(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--rounds", type=_positive_int, help=f"at most; default {ROUNDS}, quick 1")
    add(
        "--minutes",
        type=_positive_float,
        help=f"no run begins that would end later; default {MINUTES:g}, quick {QUICK_MINUTES:g}",
    )
    add("--seconds", type=_positive_float, help=f"of a run; default {SECONDS:g}, quick 1.5")
    add("--conns", type=_positive_int, help=f"idle connections; default {CONNS}, quick 500")
    add("--raw", type=Path, metavar="FILE", help="default: a new one in build/bench")
    add(
        "--pin",
        action="store_true",
        help="the relay on core 0 and the load generator on core 1; unfair to derper, "
        "which uses several cores",
    )


def _words(text: str) -> tuple[str, ...]:
    words = tuple(text.split(","))
    unknown = [w for w in words if w not in (*rows.NAMES, *rows.GROUPS)]
    if unknown:
        raise argparse.ArgumentTypeError(f"no scenario or group {unknown[0]!r}; see --help")
    return words


def _engines(text: str) -> tuple[str, ...]:
    words = tuple(text.split(","))
    if not set(words) <= set(relays.ENGINES):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of pure and fast")
    return words


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
    """Return the relays to compare, the reference first; raises `BenchError` if one is missing."""
    out = [] if args.no_derper else [relays.derper(args.derper)]
    out += relays.pyderps(args.python, args.engines)
    out += [relays.iroh(args.iroh)] if args.iroh else []
    out += [relays.custom(text, i, args.python) for i, text in enumerate(args.command, 1)]
    return out


def chosen_scenarios(args: argparse.Namespace) -> tuple[rows.Scenario, ...]:
    """Return what to measure."""
    if args.only is not None:
        return rows.select(args.only)
    chosen = rows.QUICK if args.quick else rows.SCENARIOS
    # iroh-relay has nothing but websockets.
    return tuple(s for s in chosen if not args.iroh or s.group is not rows.Group.WEBSOCKET)


def run_benchmark(args: argparse.Namespace) -> int:
    """Measure what was asked for, and write the pages, also after an interrupt."""
    found = relay_commands(args)
    scenarios = chosen_scenarios(args)
    raise_file_limit(max(args.conns, max(rows.CURVE_PEERS)) + 1000)
    now = datetime.datetime.now(datetime.UTC)
    path: Path = args.raw or RAW / f"raw-{now:%Y%m%d-%H%M%S}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    status = 0
    with tempfile.TemporaryDirectory(prefix="pyderp-bench-") as work:
        settings = Settings(
            loadgen=peers.find_loadgen(),
            work=Path(work),
            seconds=args.seconds,
            rounds=args.rounds,
            conns=args.conns,
            minutes=args.minutes,
            pin=args.pin,
        )
        write_certificate(settings.work)
        header = Header(
            date=f"{now:%Y-%m-%d %H:%M} UTC",
            command=_shown_command(args),
            machine=machine.machine(),
            versions=relays.versions(args.python, found)
            | {"load generator": machine.module_version(settings.loadgen)},
            relays=[relay.name for relay in found],
            commands=relays.shown_commands(
                found, {s.name: settings.loadgen_args(s) for s in scenarios}
            ),
            seconds=args.seconds,
            conns=args.conns,
        )
        out = RawFile(path)
        done = out.begin(header)
        progress(f"each run is appended to {path}")
        try:
            failed = measure(found, scenarios, settings, out, done=done)
        except KeyboardInterrupt:
            progress("interrupted; the relays are stopped, and what was measured is kept")
            status, failed = 130, 0
    if failed:
        progress(f"failed runs, which the page names: {failed}")
        status = 1
    report(args, path)
    return status


def _shown_command(args: argparse.Namespace) -> str:
    """Return the command line that measures the same, without paths of this machine."""
    out = ["python", "bench/run.py", "--rounds", str(args.rounds)]
    out += ["--seconds", f"{args.seconds:g}", "--conns", str(args.conns)]
    if args.only:
        out += ["--only", ",".join(args.only)]
    if args.derper != peers.DERPER:
        out += ["--derper", Path(args.derper).name]
    if args.iroh:
        out += ["--iroh", args.iroh.name]
    if args.engines != tuple(relays.ENGINES):
        out += ["--engines", ",".join(args.engines)]
    for flag in ("quick", "no_derper", "pin"):
        if getattr(args, flag):
            out.append("--" + flag.replace("_", "-"))
    for command in args.command:
        out += ["--command", command]
    return shlex.join(out)


def report(args: argparse.Namespace, path: Path) -> None:
    """Write the pages of a raw file: beside it, or into the repository if that was asked for."""
    for written in publish.publish(read(path), path, everywhere=args.publish):
        progress(f"wrote {written}")


if __name__ == "__main__":
    sys.exit(main())
