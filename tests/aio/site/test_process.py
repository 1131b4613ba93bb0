from __future__ import annotations

import resource
import sys

import pytest

from pyderp.aio.site import process

linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has /proc")


def test_a_process_has_memory() -> None:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    assert peak / 10 < process.memory_now() <= peak * 1.1


def test_without_proc_the_peak_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object, **__: object) -> None:
        raise FileNotFoundError

    monkeypatch.setattr("builtins.open", missing)
    assert process.memory_now() == resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    assert process.network_bytes() is None


@linux
def test_the_machine_started_before_this() -> None:
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
