from __future__ import annotations

import asyncio
import resource
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from pyderp.server.conn import kernel as process
from pyderp.server.site.metrics_derper import gather_upstream
from tests.server.site.world import bare

linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has /proc")


def test_the_memory_is_near_the_peak() -> None:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    assert peak / 10 < process.memory_now() <= peak * 1.1


def test_without_proc_the_peak_is_returned(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object, **__: object) -> None:
        raise FileNotFoundError

    monkeypatch.setattr("builtins.open", missing)
    assert process.memory_now() == resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    assert process.network_bytes() is None


@linux
def test_the_boot_time_is_plausible() -> None:
    assert 1_000_000_000 < process.boot_time() < 10_000_000_000


@linux
def test_bytes_of_the_network_only_grow() -> None:
    first, second = process.network_bytes(), process.network_bytes()
    assert first is not None
    assert second is not None
    assert first <= second


def test_no_limit_is_a_large_number() -> None:
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    expected = 2**64 if soft == resource.RLIM_INFINITY else soft
    assert process.address_space_limit() == expected


@pytest.mark.parametrize(
    "lines",
    [
        [],
        [["IpExt:", "InOctets", "OutOctets"]],
        [["IpExt:", "InOctets"], ["IpExt:", "5"]],
        [["IpExt:", "InOctets", "OutOctets"], ["IpExt:", "5", "x"]],
    ],
)
def test_without_byte_counts_there_are_no_network_bytes(
    monkeypatch: pytest.MonkeyPatch, lines: list[list[str]]
) -> None:
    monkeypatch.setattr(process, "_lines", lambda _: lines)
    assert process.network_bytes() is None


def test_without_a_boot_time_there_is_no_metric(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(process, "_lines", lambda _: [["cpu", "1"]])
    monkeypatch.setattr(
        "pyderp.server.site.metrics_derper.boot_time", process.boot_time.__wrapped__
    )
    names = {series.name for series in asyncio.run(gather_upstream(bare()))}
    assert "node_boot_time_seconds" not in names
    assert "process_start_unix_time" in names


@linux
@pytest.mark.parametrize("size", [None, 0])
def test_open_files_are_counted_by_old_and_new_kernels(
    monkeypatch: pytest.MonkeyPatch, size: int | None
) -> None:
    if size is not None:
        monkeypatch.setattr("os.stat", lambda _: SimpleNamespace(st_size=size))
    before = process.open_files_now()
    with Path(__file__).open():
        assert process.open_files_now() == before + 1


def test_without_proc_open_files_are_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_: object) -> None:
        raise FileNotFoundError

    monkeypatch.setattr("os.stat", missing)
    assert process.open_files_now() == 0
