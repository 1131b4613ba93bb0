"""For tests of programs that speak DERP: relays on a free port, pairs of clients, faults on demand.

`pyderp.testing.plugin` has fixtures for pytest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyderp.testing.faults import FaultyRelay
    from pyderp.testing.plan import FaultCounters, Junk, Way
    from pyderp.testing.relays import client_pair, relay
    from pyderp.testing.threads import RelayThread

__all__ = [
    "FaultCounters",
    "FaultyRelay",
    "Junk",
    "RelayThread",
    "Way",
    "client_pair",
    "relay",
]

_HOMES = {
    "FaultCounters": "plan",
    "FaultyRelay": "faults",
    "Junk": "plan",
    "RelayThread": "threads",
    "Way": "plan",
    "client_pair": "relays",
    "relay": "relays",
}


if not TYPE_CHECKING:  # where it would make every name look defined

    def __getattr__(name: str) -> object:
        # pytest imports this package, for the plugin, in every run of everybody who has pyderp.
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
