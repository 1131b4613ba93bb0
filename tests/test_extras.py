"""What works without the extras of the package, and the error when an extra is missing."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from pyderp.errors import ConfigError, MissingExtra
from pyderp.extras import needs

from .onlybase import BASE

ROOT = Path(__file__).parent.parent
BOUND = 50.0
"""Seconds that a process may take on a busy machine."""


def only_base(*words: str, beside: str = "", **extra: str) -> subprocess.CompletedProcess[str]:
    """Run a module in a Python that has no package but pyderp's own dependencies."""
    kept = {name: text for name, text in os.environ.items() if not name.startswith("PYDERP_")}
    return subprocess.run(
        [sys.executable, "-m", "tests.onlybase", beside, *words],
        cwd=ROOT,
        env={**kept, **extra},
        capture_output=True,
        text=True,
        timeout=BOUND,
        check=False,
    )


def script(tmp_path: Path, text: str) -> subprocess.CompletedProcess[str]:
    """Run a text as a program there."""
    (tmp_path / "userscript.py").write_text(text)
    return only_base("userscript", PYTHONPATH=str(tmp_path), beside="userscript")


def project() -> dict[str, Any]:
    metadata: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return metadata


def test_the_tests_block_all_packages_that_a_bare_install_lacks() -> None:
    wanted = [re.split(r"[<>=!~;\[ ]", text)[0] for text in project()["dependencies"]]
    assert sorted(wanted) == sorted(BASE)


def test_the_extra_relay_is_enough_for_the_relay_s_command() -> None:
    """And `requirements.txt`, which is for it, pins all its packages and none for other extras."""
    extras = project()["optional-dependencies"]
    assert "pyderp[cli]" in extras["relay"]
    listed = [*project()["dependencies"], *extras["cli"], *extras["relay"][1:]]
    wanted = {re.split(r"[<>=!~;\[ ]", text)[0] for text in listed}
    pinned = set(re.findall(r"^([\w.-]+)==", (ROOT / "requirements.txt").read_text(), re.MULTILINE))
    assert wanted <= pinned
    assert not pinned & {"msgspec", "anyio", "matplotlib"}


# Without extras

CLIENTS = """
from pyderp import Client, ClientConfig, NetworkSettings, NodePrivate, SealedPeer, is_transient
from pyderp import blocking, watch_mesh
from pyderp.testing import RelayThread

for tls in (False, True):
    for websocket in (False, True):
        config = ClientConfig(
            websocket=websocket, network=NetworkSettings(use_derp_http=not tls)
        )
        with (
            RelayThread(tls=tls) as relay,
            blocking.Client.for_region(relay.region, config=config) as a,
            blocking.Client.for_region(relay.region, config=config) as b,
        ):
            for client in (a, b):
                client.recv(timeout=20)
            a.send(b.self_public_key, b"hello")
            print(tls, websocket, b.recv(timeout=20).data)
"""


def test_clients_and_a_relay_need_no_extra(tmp_path: Path) -> None:
    done = script(tmp_path, CLIENTS)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        f"{tls} {websocket} b'hello'" for tls in (False, True) for websocket in (False, True)
    ]


USERS_TESTS = """
import pytest

import pyderp


def test_packets(derp_relay, derp_clients):
    a, b = derp_clients
    a.send(b.self_public_key, b"hello")
    assert b.recv(timeout=20).data == b"hello"


@pytest.mark.derp_relay(
    pyderp.RelayConfig(admission=pyderp.AdmissionConfig(url="http://127.0.0.1:1/"))
)
def test_admission(derp_relay):
    pass
"""


def test_the_pytest_plugin_needs_no_extra_and_names_the_one_that_a_relay_lacks(
    tmp_path: Path,
) -> None:
    (tmp_path / "test_users.py").write_text(USERS_TESTS)
    done = only_base(
        *("pytest", "-p", "pyderp.testing.plugin", "-p", "no:cacheprovider", "-q"),
        *("--rootdir", str(tmp_path), "-c", os.devnull, str(tmp_path / "test_users.py")),
        beside="pytest,_pytest,py,pluggy,iniconfig,packaging,pygments,test_users",
        PYTEST_DISABLE_PLUGIN_AUTOLOAD="1",
        PYTEST_ADDOPTS="",
    )
    assert "1 passed, 1 error" in done.stdout, done.stdout + done.stderr
    assert (
        "MissingExtra: questions to an admission URL need the package aiohttp, which is not "
        "installed: pip install 'pyderp[relay]'"
    ) in done.stdout


# The command


@pytest.mark.parametrize(
    ("words", "extra"),
    [
        ([], "cli"),
        (["--help"], "cli"),
        (["ping", "https://h/derp", "--json"], "cli"),
        (["relay", "--dev"], "relay"),
        (["derper", "-dev"], "relay"),
    ],
)
def test_the_command_without_its_extra_prints_one_line_with_the_remedy(
    words: list[str], extra: str
) -> None:
    done = only_base("pyderp", *words)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == (
        f"pyderp: the command is not installed, only the library: pip install 'pyderp[{extra}]'\n"
    )


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (
            ["--hostname=relay.example.com", "--certmode=letsencrypt", "--certdir=certs"],
            r"certificates by ACME need the package \w+",
        ),
        (
            ["--dev", "--verify-client-url=http://127.0.0.1:1/"],
            "questions to an admission URL need the package aiohttp",
        ),
        (
            ["--dev", "--unpublished-bootstrap-dns-names=a.example.com/b.example.com"],
            "TXT records for bootstrap DNS need the package dns",
        ),
    ],
)
@pytest.mark.parametrize("check", [[], ["--check"]], ids=["start", "check"])
def test_a_relay_s_command_names_the_extra_that_its_settings_need(
    tmp_path: Path, flags: list[str], text: str, check: list[str]
) -> None:
    """With the command's own extra only."""
    beside = "typer,rich,click,annotated_doc,shellingham,typing_extensions,pydantic"
    key = tmp_path / "relay.key"
    done = only_base(
        *("pyderp", "relay", "-a", "127.0.0.1:0", "-c", str(key), "--no-stun", "--http-port=-1"),
        *(flag.replace("=certs", f"={tmp_path}") for flag in flags),
        *check,
        beside=beside,
    )
    assert done.returncode == 1
    wanted = rf"pyderp: {text}, which is not installed: pip install 'pyderp\[relay\]'"
    assert re.fullmatch(wanted, done.stderr.splitlines()[-1]), done.stderr


# The error


def test_the_error_names_the_extra_for_programs() -> None:
    with pytest.raises(MissingExtra) as caught, needs("relay", "questions"):
        raise ModuleNotFoundError("no", name="aiohttp.web")
    assert caught.value.extra == "relay"
    assert isinstance(caught.value, ConfigError)


def test_a_missing_module_of_pyderp_is_no_missing_extra() -> None:
    with pytest.raises(ModuleNotFoundError), needs("relay", "questions"):
        raise ModuleNotFoundError("no", name="pyderp.nothing")


def test_anyio_is_an_extra(tmp_path: Path) -> None:
    done = script(tmp_path, "import pyderp.wsconn\nimport pyderp.wsconn.for_anyio\n")
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.endswith(
        "MissingExtra: byte streams for anyio need the package anyio, which is not installed: "
        "pip install 'pyderp[anyio]'"
    )
