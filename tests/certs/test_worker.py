from __future__ import annotations

import asyncio
import threading

import pytest

from pyderp.certs import worker as worker_module
from pyderp.certs.worker import Stopped, Worker
from tests.conftest import Run


def test_jobs_give_and_raise(run: Run) -> None:
    async def main() -> None:
        worker = Worker()
        assert await worker.run(lambda: 1) == 1
        with pytest.raises(ZeroDivisionError):
            await worker.run(lambda: 1 // 0)
        assert await worker.stopped()

    run(main())


def test_a_second_job_waits_for_the_first_also_if_nobody_else_does(run: Run) -> None:
    async def main() -> None:
        worker = Worker()
        begun, go = asyncio.Event(), threading.Event()
        loop = asyncio.get_running_loop()
        done = []

        def job() -> None:
            loop.call_soon_threadsafe(begun.set)
            go.wait()
            done.append("first")

        first = asyncio.create_task(worker.run(job))
        await begun.wait()
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        second = asyncio.create_task(worker.run(lambda: done.append("second")))
        await asyncio.sleep(0)
        go.set()
        await second
        assert done == ["first", "second"]

    run(main())


def test_when_no_thread_can_be_started_the_next_job_still_runs(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        worker = Worker()
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", no_thread)
            with pytest.raises(RuntimeError, match="can't start"):
                await worker.run(lambda: 1)
        assert await worker.stopped()
        assert await worker.run(lambda: 2) == 2

    def no_thread(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    run(main())


def test_a_job_that_sleeps_is_stopped(run: Run) -> None:
    async def main() -> None:
        worker = Worker()
        job = asyncio.create_task(worker.run(lambda: worker.sleep(60)))
        await asyncio.sleep(0)
        worker.stop()
        with pytest.raises(Stopped):
            await job
        assert await worker.stopped()
        with pytest.raises(Stopped):
            worker.check()

    run(main())


def test_a_job_that_hangs_is_left_alone(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_module, "_PATIENCE", 0.05)
    go = threading.Event()

    async def main() -> None:
        worker = Worker()
        job = asyncio.create_task(worker.run(go.wait))
        await asyncio.sleep(0)
        job.cancel()
        worker.stop()
        assert not await worker.stopped()

    run(main())
    threads = [each for each in threading.enumerate() if each.name == "pyderp-acme"]
    assert [each.daemon for each in threads] == [True]
    go.set()  # the loop has ended by now
    threads[0].join(5)
    assert not threads[0].is_alive()
