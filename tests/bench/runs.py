"""Raw results as `bench/run.py` writes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from relaybench.raw import Header, Raw, RawFile, Sample, read

RELAYS = ("derper", "pyderp", "pyderp-fast")


def header(**changes: object) -> Header:
    """Return a header; changes replace fields of it."""
    values: dict[str, object] = {
        "date": "2026-11-30 12:00 UTC",
        "command": "python bench/run.py",
        "machine": {"CPU": "Z80", "cores": "2", "load average at the start": "0.10"},
        "versions": {"Python": "CPython 3.11.7", "uvloop": "0.23", "derper": "v1.104.7"},
        "relays": list(RELAYS),
        "commands": {"derper, no TLS": "derper -a {port}"},
        "seconds": 4.0,
        "conns": 2000,
    }
    return Header(**{**values, **changes})  # type: ignore[arg-type]


def write(
    path: Path,
    scenario: str,
    figures: Mapping[str, Sequence[Mapping[str, object]]],
    *,
    head: Header | None = None,
) -> Raw:
    """Write a run of one scenario, each relay's outputs by round, and return what is read back."""
    out = RawFile(path)
    if not path.exists():
        out.begin(head or header())
    for relay, outputs in figures.items():
        for number, output in enumerate(outputs, 1):
            out.sample(Sample(scenario, relay, number, output))
    return read(path)


def cpu(*values: float, lost: float = 0.0) -> list[dict[str, object]]:
    """Return outputs with CPU a packet and loss."""
    return [{"server_us_per_pkt": v, "lost_frac": lost, "pkts_per_s": 10_000} for v in values]
