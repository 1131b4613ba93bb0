"""The units of `contrib/`: systemd accepts them; flags in their files exist."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from scripts import check_docs

from pyderp.cli.doctorlines import CODES
from pyderp.cli.relay.flags import FLAGS
from pyderp.doctor.finding import Result
from tests.interop.peers import REPOSITORY, need

UNITS = REPOSITORY / "contrib" / "systemd"
SERVICES = ["pyderp.service", "pyderp@.service"]
SOCKETS = ["pyderp.socket", "pyderp-http.socket"]
DOCTOR = ["pyderp-doctor.service", "pyderp-doctor.timer"]
CRON = REPOSITORY / "contrib" / "cron" / "pyderp-doctor"
EXPOSED = 2.0
"""The highest allowed result of `systemd-analyze security`; 10 is no protection at all."""


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """A folder with the units, and their program."""
    program = tmp_path / "bin" / "pyderp"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    folder = tmp_path / "units"
    folder.mkdir()
    for path in UNITS.iterdir():
        text = path.read_text().replace("/opt/pyderp", str(tmp_path))
        (folder / path.name).write_text(text)
    return folder


def analyze(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(need("systemd-analyze")), "--no-pager", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )


def test_systemd_accepts_the_units(units: Path) -> None:
    """Without a warning: systemd ignores unknown options otherwise."""
    done = analyze("verify", "--man=no", *(units / name for name in (*SERVICES, *SOCKETS, *DOCTOR)))
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_a_mistake_in_a_unit_is_found(units: Path) -> None:
    path = units / "pyderp.service"
    path.write_text(path.read_text().replace("ProtectSystem=strict", "ProtectSystem=very"))
    assert "protect system" in analyze("verify", "--man=no", path).stderr


@pytest.mark.parametrize("name", ["pyderp.service", "pyderp@a.service", DOCTOR[0]])
def test_the_services_are_hardened(units: Path, name: str) -> None:
    if "@" in name:
        (units / "pyderp@.service").rename(units / name)
    done = analyze("security", "--offline=yes", units / name)
    match = re.search(r"Overall exposure level for \S+: ([\d.]+)", done.stdout)
    assert match, done.stderr
    assert float(match[1]) <= EXPOSED


def section(name: str, wanted: str) -> dict[str, list[str]]:
    """A section of a unit; an option may be there several times."""
    found: dict[str, list[str]] = {}
    now = ""
    for line in (UNITS / name).read_text().splitlines():
        if line.startswith("["):
            now = line.strip("[]")
        elif now == wanted and "=" in line and not line.startswith("#"):
            option, _, value = line.partition("=")
            found.setdefault(option, []).append(value)
    return found


def commands() -> Iterator[list[str]]:
    for name in SERVICES:
        yield shlex.split(section(name, "Service")["ExecStart"][0])
    lines = (REPOSITORY / "contrib").rglob("*")
    for path in lines:
        if path.is_file():
            for line in re.findall(
                r"^# .*?(pyderp relay .*(?:\n# {3}.*)*)", path.read_text(), re.M
            ):
                yield shlex.split(line.replace("\\\n#", ""))


def test_each_flag_in_the_units_exists() -> None:
    known = {f"--{flag.name}" for flag in FLAGS} | {each for flag in FLAGS for each in flag.also}
    found = [word.partition("=")[0] for command in commands() for word in command]
    flags = [word for word in found if word.startswith("-")]
    assert {"--config-file", "--reuse-port", "--trusted-proxy", "--proxy-protocol"} <= set(flags)
    assert set(flags) <= known


def drop_ins() -> dict[str, str]:
    """The drop-ins that the pages have for `systemctl edit pyderp`, by page and place."""
    found: dict[str, str] = {}
    for page in sorted((REPOSITORY / "docs").rglob("*.md")):
        blocks = re.findall(r"^```ini\n(\[Service\]\n.*?)^```$", page.read_text(), re.M | re.S)
        found |= {f"{page.stem} {n}": each for n, each in enumerate(blocks) if "Exec" not in each}
    return found


@pytest.mark.parametrize("name", drop_ins())
def test_systemd_accepts_the_drop_ins_of_the_pages(units: Path, name: str) -> None:
    folder = units / "pyderp.service.d"
    folder.mkdir()
    (folder / "override.conf").write_text(drop_ins()[name])
    done = analyze("verify", "--man=no", units / "pyderp.service")
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    (folder / "override.conf").write_text(drop_ins()[name].replace("=", "Wrong=", 1))
    assert (
        "override.conf:2: Unknown key"
        in analyze("verify", "--man=no", units / "pyderp.service").stderr
    )


def test_the_doctor_is_called_with_existing_flags() -> None:
    """By the unit and by cron; warnings do not make the unit fail."""
    service = section(DOCTOR[0], "Service")
    words = shlex.split(service["ExecStart"][0])
    assert words[1:] == ["doctor", "/etc/pyderp/derpmap.json", "--quiet"]
    line = CRON.read_text().splitlines()[-1]
    assert shlex.split(line)[6:] == words
    known = {flag for option in check_docs.options("doctor") for flag in option.flags}
    assert {word for word in words if word.startswith("-")} <= known
    assert service["SuccessExitStatus"] == [str(CODES[Result.WARN])]


def test_both_services_differ_in_user_and_reuse_port_only() -> None:
    """The second is a copy, so a change of one must be made in the other."""
    plain, template = (section(name, "Service") for name in SERVICES)
    differ = {name for name in plain | template if plain.get(name) != template.get(name)}
    assert differ == {"ExecStart", "User"}
    assert template["ExecStart"] == [f"{plain['ExecStart'][0]} --reuse-port"]


def test_the_ports_are_those_of_the_relay() -> None:
    main, side = (section(name, "Socket") for name in SOCKETS)
    assert (main["ListenStream"], main["ListenDatagram"]) == (["443"], ["3478"])
    assert (side["ListenStream"], side["FileDescriptorName"]) == (["80"], ["http"])
    assert side["Service"] == ["pyderp.service"]
