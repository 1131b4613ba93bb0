"""The relays that are compared: how each is started, and its versions."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from . import machine, peers
from .errors import BenchError
from .figures import FAST, PURE, REFERENCE
from .processes import RelayCommand

PYDERP = "python -m pyderp relay --native={native} {dev} -a 127.0.0.1:{port} -c {key} {tls}"
DERPER = "derper -a 127.0.0.1:{port} -stun=false -http-port=-1 -c {key} {tls}"
IROH = "iroh-relay"
IROH_CONFIG = (
    """\
enable_relay = true
enable_metrics = false
enable_quic_addr_discovery = false
http_bind_addr = "127.0.0.1:{http}"
""",
    """\
[tls]
https_bind_addr = "127.0.0.1:{port}"
hostname = ["localhost"]
cert_mode = "Manual"
manual_cert_path = "{certdir}/localhost.crt"
manual_key_path = "{certdir}/localhost.key"
""",
)
ENGINES: Mapping[str, str] = {"pure": "off", "fast": "on"}


def fast_version(python: str) -> str | None:
    """Return the version of the native part in a Python; `None` if there is none."""
    program = "import pyderp_fast; print(pyderp_fast.VERSION)"
    try:
        done = subprocess.run(
            [python, "-c", program], capture_output=True, text=True, timeout=60, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise BenchError(f"cannot run {python}: {exc}") from exc
    return done.stdout.strip() or None


def derper(chosen: str) -> RelayCommand:
    """Return Go's relay."""
    program = str(peers.find_derper(chosen))
    return RelayCommand(REFERENCE, DERPER, {"derper": program})


def pyderps(python: str, engines: Sequence[str]) -> list[RelayCommand]:
    """Return pyderp with each engine; the native one only if it is installed."""
    peers.check_pyderp(python)
    out = []
    for engine in engines:
        if engine == "fast" and fast_version(python) is None:
            sys.stderr.write("pyderp-fast is not installed (make fast): only pure Python\n")
            continue
        name = FAST if engine == "fast" else PURE
        template = PYDERP.replace("{native}", ENGINES[engine])
        out.append(RelayCommand(name, template, {"python": python}))
    if not out:
        raise BenchError("no engine of pyderp is left to measure")
    return out


def iroh(program: Path) -> RelayCommand:
    """Return iroh-relay, whose protocol the load generator also speaks.

    With TLS it also listens without TLS, which must be on another port: on any free one.
    """
    if not program.is_file():
        raise BenchError(f"no {program.name} there: `make bench-iroh` builds it")
    plain, tls = IROH_CONFIG
    return RelayCommand(
        IROH,
        "iroh-relay --config-path {config}",
        {IROH: str(program.absolute())},
        loadgen_args=("-iroh",),
        config=(plain.replace(":{http}", ":{port}"), plain.replace(":{http}", ":0") + tls),
    )


def custom(template: str, number: int, python: str) -> RelayCommand:
    """Return a relay that the user's command line starts."""
    try:
        words = shlex.split(template)
    except ValueError as exc:
        raise BenchError(f"--command: {exc}") from exc
    if "{port}" not in template:
        raise BenchError("--command has no {port} in it")
    programs: dict[str, str] = {}
    if words[0] == "python":
        programs["python"] = python
    elif words[0] == "derper":
        programs["derper"] = str(peers.find_derper())
    return RelayCommand(f"command-{number}", template, programs)


def versions(python: str, relays: Sequence[RelayCommand]) -> dict[str, str]:
    """Return the versions of the programs that are compared."""
    out: dict[str, str] = {}
    for relay in relays:
        if "python" in relay.programs:
            out |= machine.python_versions(python)
        if relay.name == FAST:
            out[FAST] = f"{fast_version(python)}, TLS by rustls; {PURE} is the same without it"
        if "derper" in relay.programs:
            out["derper"] = machine.derper_version(Path(relay.programs["derper"]))
        if relay.name == IROH:
            out[IROH] = machine.program_version(Path(relay.programs[IROH]))
    return out


def shown_commands(
    relays: Sequence[RelayCommand], loadgen: Mapping[str, Sequence[str]]
) -> dict[str, str]:
    """Return the command lines, without paths of this machine."""
    out: dict[str, str] = {}
    for relay in relays:
        for tls, way in ((False, "no TLS"), (True, "TLS")):
            out[f"{relay.name}, {way}"] = shlex.join(relay.words(tls=tls))
    for name, args in loadgen.items():
        if args:
            start = ("loadgen", "-addr", "127.0.0.1:{port}", "-pid", "{pid}")
            out[f"load, {name}"] = " ".join((*start, *args))
    return out
