"""Environment variables that look like settings of the relay and are none."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Final

from pyderp.cli.relay.flags import FLAGS, Flag

__all__ = ["unknown_variables"]

_PREFIX: Final = "PYDERP_"
_KNOWN: Final = {flag.variable for flag in FLAGS if flag.variable}
_OTHERS: Final = {"PYDERP_KEY", "PYDERP_REQUIRE_PEERS", "PYDERP_SUMS_SECONDS", "PYDERP_SUMS_SEED"}
"""Variables of the other commands, and of this project's tests, which start relays."""
_SPELLINGS: Final = {
    each.lstrip("-").upper().replace("-", "_"): flag
    for flag in reversed(FLAGS)
    for each in (flag.go_name, *flag.also, flag.name)
    if each
}
# Kubernetes and Docker set these in every container beside a service that is called pyderp:
# PYDERP_SERVICE_HOST, PYDERP_RELAY_PORT_443_TCP_ADDR, PYDERP_PORT=tcp://10.0.0.1:443.
_SERVICE: Final = re.compile(
    r"PYDERP_(?:\w+_)?(?:SERVICE_HOST|SERVICE_PORT(?:_\w+)?"
    r"|PORT_\d+_(?:TCP|UDP|SCTP)(?:_(?:ADDR|PORT|PROTO))?)"
)
_SERVICE_PORT: Final = re.compile(r"PYDERP_(?:\w+_)?PORT")
_SERVICE_URL: Final = re.compile(r"(?:tcp|udp|sctp)://")


def unknown_variables(environment: Mapping[str, str]) -> Iterator[str]:
    """Yields a line for each variable that begins with `PYDERP_`, in any case, but is no setting.

    It has the name only: the value may be a secret.
    """
    for name, value in sorted(environment.items()):
        if not name.upper().startswith(_PREFIX) or name in _KNOWN or name in _OTHERS:
            continue
        if not _of_a_service(name, value):
            yield f"{name} in the environment: {_advice(name)}"


def _of_a_service(name: str, value: str) -> bool:
    if _SERVICE_PORT.fullmatch(name) and _SERVICE_URL.match(value):
        return True
    return _SERVICE.fullmatch(name) is not None


def _advice(name: str) -> str:
    spelling = name[len(_PREFIX) :].upper().replace("-", "_")
    if flag := _SPELLINGS.get(spelling):
        return f"no such setting; {_how(flag)}"
    # Not at the top: usually all variables are known.
    import difflib

    near = difflib.get_close_matches(spelling, _SPELLINGS, n=1)
    return f"no such setting; {_how(_SPELLINGS[near[0]])}" if near else "no such setting; remove it"


def _how(flag: Flag) -> str:
    if flag.variable:
        return f"did you mean {flag.variable}?"
    return f"--{flag.name} is a flag of the command line only"
