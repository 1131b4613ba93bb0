"""For tests of programs that speak DERP: relays on a free port, pairs of clients, faults on demand.

`pyderp.testing.plugin` has fixtures for pytest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pyderp.testing.faults import FaultyRelay as FaultyRelay
    from pyderp.testing.pipe import FaultCounters as FaultCounters
    from pyderp.testing.pipe import Junk as Junk
    from pyderp.testing.pipe import Way as Way
    from pyderp.testing.relays import RelayThread as RelayThread
    from pyderp.testing.relays import client_pair as client_pair
    from pyderp.testing.relays import relay as relay

_HOMES: Final = {
    "FaultCounters": "pipe",
    "FaultyRelay": "faults",
    "Junk": "pipe",
    "RelayThread": "relays",
    "Way": "pipe",
    "client_pair": "relays",
    "relay": "relays",
}
"""Name → its module, which is imported when the name is first used: pytest imports this package
for the plugin wherever pyderp is installed, and must not become slower by that."""


if not TYPE_CHECKING:  # type checkers know the imports above, and no other names
    __all__ = sorted(_HOMES)

    def __getattr__(name: str) -> object:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
