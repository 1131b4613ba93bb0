"""What remains of something that has ended: objects, cycles, tasks, timers, descriptors, errors.

    async with none_left():
        await one_ending()

The cyclic collector is off within the block. So an object that only it would free counts as
left, as does one that is still referenced. Objects that exist when the block begins do not
count; run an ending once before, if it fills a cache or imports a module.

The block itself must drop its references: its locals, and an exception that a local names, whose
traceback leads back to them (`pytest.raises(...) as caught` is one). Best is one call, as above.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import socket
import ssl
import weakref
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from types import AsyncGeneratorType, CoroutineType, FrameType, GeneratorType, TracebackType
from typing import Any, Final

__all__ = ["Leftovers", "Snapshot", "collector_off", "none_left", "none_left_now"]

PATIENCE: Final = 10.0
"""Seconds for work under way: the last callbacks, a reset from the kernel."""
LONGEST_TIMER: Final = 0.5
"""Seconds until a remaining timer may fire: a longer one would keep its object."""
_ROOTS: Final = ("pyderp", "websockets", "h11", "aiohttp", "python_socks", "acme", "urllib3")
_TRANSPORTS: Final = ("asyncio.selector_events", "asyncio.sslproto", "uvloop.loop")
_OUR_CODE: Final = f"{os.sep}pyderp{os.sep}"
_LOOK_FOR_CYCLES: Final = 0.05
"""Seconds of a pause from which on cycles are looked for; after more than a second in all."""
_PROXIES: Final = (weakref.ProxyType, weakref.CallableProxyType)
_CHAINS: Final = 3
"""Chains of references that a report shows."""


@dataclass
class Leftovers:
    """What exists now and did not exist before."""

    objects: Counter[str] = field(default_factory=Counter)
    """Objects by type: pyderp's, those of the libraries below it, sockets, transports."""
    cycles: Counter[str] = field(default_factory=Counter)
    """Objects of any type that only the cyclic collector frees."""
    tasks: list[str] = field(default_factory=list)
    timers: list[str] = field(default_factory=list)
    descriptors: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    """Reports of the loop, such as an exception that was not retrieved."""
    chains: list[str] = field(default_factory=list)
    """Reference chains of some of the objects in cycles."""

    def __bool__(self) -> bool:
        return any(
            (self.objects, self.cycles, self.tasks, self.timers, self.descriptors, self.errors)
        )

    def __str__(self) -> str:
        lines = []
        for name in ("objects", "cycles"):
            counts: Counter[str] = getattr(self, name)
            lines += [f"{name}: {count} × {kind}" for kind, count in counts.most_common(25)]
        for name in ("tasks", "timers", "descriptors", "errors", "chains"):
            lines += [f"{name}: {text}" for text in getattr(self, name)]
        return "\n".join(lines) or "nothing"


class Snapshot:
    """What exists now; `left` returns what was made later and still exists.

    Args:
        but: types, by `module.name`, whose objects may stay: those that a cache keeps.
        libraries: packages that leave cycles of their own, which do not count as long as no
            object of pyderp is in them.
    """

    def __init__(self, *, but: Iterable[str] = (), libraries: Iterable[str] = ()) -> None:
        self._but = frozenset(but)
        self._libraries = frozenset(libraries)
        self._errors: list[str] = []
        self._loop = _running_loop()
        gc.collect()
        # Objects that exist now are kept out of every later search: `gc.get_objects` and the
        # collector skip them. In a process that has run many tests they are most of the heap.
        gc.freeze()
        # Not kept alive: a task that ends meanwhile would hold the error that it ends with.
        self._tasks = weakref.WeakSet(_tasks(self._loop))
        self._timers = {id(t) for t in _timers(self._loop)}
        self._descriptors = _descriptors()

    def left(self, *, cycles: bool = True) -> Leftovers:
        """What is left now.

        Args:
            cycles: look for cycles as well, which frees them.
        """
        found = Leftovers(errors=list(self._errors))
        found.tasks = [repr(t) for t in _tasks(self._loop) if t not in self._tasks]
        found.timers = [
            repr(t)
            for t in _timers(self._loop)
            if id(t) not in self._timers and t.when() - t._loop.time() > LONGEST_TIMER
        ]
        found.descriptors = sorted(_descriptors() - self._descriptors)
        found.objects = self._objects()
        if cycles:
            self._look_for_cycles(found)
            gc.collect()  # frees what was found
        return found

    def _objects(self) -> Counter[str]:
        """Objects that were made later and count, by kind."""
        return Counter(_kind(o) for o in gc.get_objects() if self._counts(o))

    def _look_for_cycles(self, found: Leftovers) -> None:
        _free_husks()
        before = self._objects()
        gc.set_debug(gc.DEBUG_SAVEALL)
        try:
            gc.collect()
        finally:
            gc.set_debug(0)
        # A finalizer may break its cycle, as that of a generator that was not used up does.
        # What it frees is no longer garbage, and no reference count would have freed it.
        finalized = before - self._objects()
        garbage = gc.garbage[:]
        gc.garbage.clear()
        if self._libraries and not finalized and not any(self._counts(o) for o in garbage):
            return
        found.cycles = Counter(_kind(o) for o in garbage) + finalized
        found.chains = _chains([o for o in garbage if self._counts(o)] or garbage, garbage)

    @contextlib.contextmanager
    def errors_noted(self) -> Iterator[None]:
        """Record what the loop reports, and report it."""
        loop = self._loop
        assert loop is not None
        before = loop.get_exception_handler()

        def note(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
            self._errors.append(f"{context.get('message')}: {context.get('exception')!r}")
            if before is not None:
                before(loop, context)

        loop.set_exception_handler(note)
        try:
            yield
        finally:
            loop.set_exception_handler(before)

    def _counts(self, o: object) -> bool:
        # By type and not by isinstance, which asks the object that a weak proxy stands for.
        if issubclass(type(o), _PROXIES):
            return False
        code = _code(o)
        if code is not None:
            return _OUR_CODE in code and "/tests/" not in code
        kind = type(o)
        module = str(kind.__module__)
        if isinstance(o, type):
            return False
        if isinstance(o, socket.socket):
            return o.fileno() >= 0
        if module.startswith(_TRANSPORTS):
            return kind.__name__.endswith(("Transport", "SSLProtocol")) and not (
                _is_husk(o) or self._is_of_library(o)
            )
        if isinstance(o, (ssl.SSLObject, ssl.SSLSocket)):
            return True
        root = module.partition(".")[0]
        if root not in _ROOTS or root in self._libraries:
            return False
        return f"{module}.{kind.__qualname__}" not in self._but

    def _is_of_library(self, transport: object) -> bool:
        protocol = getattr(transport, "get_protocol", lambda: None)()
        roots = {type(o).__module__.partition(".")[0] for o in (transport, protocol)}
        return bool(roots & self._libraries)


@contextlib.contextmanager
def collector_off() -> Iterator[None]:
    """Only reference counts free objects within the block."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@contextlib.asynccontextmanager
async def none_left(
    *,
    but: Iterable[str] = (),
    libraries: Iterable[str] = (),
    patience: float = PATIENCE,
    settled: Callable[[], object] = lambda: True,
) -> AsyncIterator[Snapshot]:
    """Nothing that begins within the block may be left after it.

    Args:
        but: types, by `module.name`, whose objects may stay.
        libraries: packages that may leave cycles of their own.
        patience: seconds to wait for work under way; what is left in a cycle or behind a
            long timer takes as long to be found.
        settled: whether the other side is ready as well; the search begins only then.
    """
    with collector_off():
        snapshot = Snapshot(but=but, libraries=libraries)
        with snapshot.errors_noted():
            yield snapshot
            left = await _settle(snapshot, patience, settled)
    assert not left, f"left over:\n{left}"


@contextlib.contextmanager
def none_left_now(*, but: Iterable[str] = (), libraries: Iterable[str] = ()) -> Iterator[Snapshot]:
    """As `none_left`, for code that needs no event loop."""
    with collector_off():
        snapshot = Snapshot(but=but, libraries=libraries)
        yield snapshot
        left = snapshot.left()
    assert not left, f"left over:\n{left}"


async def _settle(snapshot: Snapshot, patience: float, settled: Callable[[], object]) -> Leftovers:
    """What is left once nothing changes any more."""
    loop = asyncio.get_running_loop()
    end = loop.time() + patience
    pause = 0.0
    while True:
        for _ in range(5):
            await asyncio.sleep(0)
        await asyncio.sleep(pause)
        pause = min(pause + 0.002, 0.2)
        if settled() and not snapshot.left(cycles=False):
            return snapshot.left()
        # Waiting frees no cycle. The search for cycles is slow, so not in each turn.
        if pause > _LOOK_FOR_CYCLES:
            left = snapshot.left()
            if left.cycles or left.errors:
                return left
        if loop.time() > end:
            return snapshot.left()


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _tasks(loop: asyncio.AbstractEventLoop | None) -> set[asyncio.Task[Any]]:
    return set() if loop is None else asyncio.all_tasks(loop)


def _timers(loop: asyncio.AbstractEventLoop | None) -> list[Any]:
    """Timers that will fire. A cancelled one has dropped its callback."""
    if not isinstance(loop, asyncio.BaseEventLoop):
        return []  # uvloop lists none; an object that one of its timers holds is found as an object
    scheduled: list[asyncio.TimerHandle] = getattr(loop, "_scheduled")  # noqa: B009
    return [timer for timer in scheduled if not timer.cancelled()]


def _descriptors() -> set[str]:
    found = set()
    for name in os.listdir("/proc/self/fd"):
        # The descriptor of the listing itself is closed by now.
        with contextlib.suppress(OSError):
            target = os.readlink(f"/proc/self/fd/{name}")
            if target != os.devnull:  # uvloop opens one and keeps it
                found.add(f"{name} -> {target}")
    return found


def _is_husk(o: object) -> bool:
    """Whether it is a transport of asyncio that holds nothing but itself."""
    return (
        issubclass(type(o), asyncio.Transport)
        and type(o).__module__ == "asyncio.selector_events"
        and getattr(o, "_protocol", None) is None
    )


def _free_husks() -> None:
    """Break the cycle in asyncio's transports: each keeps a bound method of its own.

    The standard library makes it, and uvloop does not, so it does not count as left.
    """
    for o in gc.get_objects():
        if _is_husk(o):
            for name in ("_read_ready_cb", "_write_ready"):
                vars(o).pop(name, None)


def _code(o: object) -> str | None:
    """The file of the code that an object runs; `None`: it runs none."""
    code: Any = None
    if isinstance(o, CoroutineType):
        code = o.cr_code
    elif isinstance(o, GeneratorType):
        code = o.gi_code
    elif isinstance(o, AsyncGeneratorType):
        code = o.ag_code
    elif isinstance(o, FrameType):
        code = o.f_code
    elif isinstance(o, TracebackType):
        code = o.tb_frame.f_code
    return None if code is None else str(code.co_filename)


def _kind(o: object) -> str:
    """The type of an object as text; for code with its name."""
    if issubclass(type(o), _PROXIES):
        return "weak proxy"
    for attribute in ("cr_code", "gi_code", "ag_code", "f_code"):
        code = getattr(type(o), attribute, None) and getattr(o, attribute)
        if code is not None:
            return f"{type(o).__name__} {code.co_qualname}"
    if isinstance(o, TracebackType):
        return f"traceback {o.tb_frame.f_code.co_name}"
    return f"{type(o).__module__}.{type(o).__qualname__}"


def _chains(starts: Sequence[object], garbage: Sequence[object]) -> list[str]:
    """The shortest chain from some objects back to themselves."""
    inside = {id(o): o for o in garbage}
    chains: list[str] = []
    seen: set[str] = set()
    for start in starts:
        kind = _kind(start)
        if kind in seen:
            continue
        seen.add(kind)
        chain = _cycle(start, inside)
        if chain:
            chains.append(" → ".join(map(_kind, chain)))
        if len(chains) == _CHAINS:
            break
    return chains


def _cycle(start: object, inside: dict[int, object]) -> list[object]:
    came_from: dict[int, object] = {}
    waiting = deque([start])
    while waiting:
        at = waiting.popleft()
        for target in gc.get_referents(at):
            if target is start:
                chain = [start, at]
                while chain[-1] is not start:
                    chain.append(came_from[id(chain[-1])])
                return chain[::-1]
            if id(target) in inside and id(target) not in came_from:
                came_from[id(target)] = at
                waiting.append(target)
    return []
