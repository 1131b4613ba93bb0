"""The container image of `contrib/oci`: which command its entry point runs, and its files."""

from __future__ import annotations

import fnmatch
import http.client
import os
import re
import shlex
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pyderp.keys import NodePrivate
from tests.interop.peers import REPOSITORY

OCI = REPOSITORY / "contrib" / "oci"
BUILD = (OCI / "Containerfile").read_text()
COMPOSE = (OCI / "compose.yaml").read_text()
GUIDE = (REPOSITORY / "docs" / "howto" / "containers.md").read_text()
DERPER_KEY = '{"PrivateKey": "privkey:' + "01" * 32 + '"}'

STUBS = {
    # The program that the entry point runs at the end: its arguments, and its home.
    "pyderp": 'printf "%s\\n" "$@"; echo "HOME=$HOME"',
    "id": 'echo "$STUB_UID"',
    "find": 'echo "find $*" >> "$STUB_LOG"',
    "chown": 'echo "chown $*" >> "$STUB_LOG"',
    "setpriv": """
        echo "setpriv $*" >> "$STUB_LOG"
        case "$STUB_SETPRIV $*" in never* | *"no-ambient "*--ambient*) exit 1 ;; esac
        while [ "${1#--}" != "$1" ]; do shift; done
        exec "$@"
    """,
}
"""Programs that the entry point calls, as a container's root would need them."""


class Image:
    """A file system like that of the image, in a folder."""

    def __init__(self, folder: Path) -> None:
        self.state = folder / "state"
        self.derper_key = folder / "derper" / "derper.key"
        self.log = folder / "log"
        self.log.write_text("")
        self.bin = folder / "bin"
        self.bin.mkdir()
        for name, text in STUBS.items():
            path = self.bin / name
            path.write_text(f"#!/bin/sh\n{text}\n")
            path.chmod(0o755)

    def run(
        self, *args: str, uid: int = 3478, setpriv: str = "", **more: str
    ) -> tuple[list[str], str]:
        """Start a container; returns the command line of pyderp, and standard error."""
        done = subprocess.run(
            ["/bin/sh", OCI / "entrypoint.sh", *args],
            capture_output=True,
            text=True,
            timeout=50,
            check=True,
            env={
                "PATH": f"{self.bin}:{os.environ['PATH']}",
                "HOME": "/root",
                "STATE_DIRECTORY": str(self.state),
                "DERPER_KEY": str(self.derper_key),
                "STUB_UID": str(uid),
                "STUB_LOG": str(self.log),
                "STUB_SETPRIV": setpriv,
                **more,
            },
        )
        return done.stdout.splitlines()[:-1], done.stderr

    def old_volume(self) -> None:
        """Mount a volume of a derper."""
        self.derper_key.parent.mkdir()
        self.derper_key.write_text(DERPER_KEY)


@pytest.fixture
def image(tmp_path: Path) -> Image:
    return Image(tmp_path)


@pytest.mark.parametrize(
    ("line", "called"),
    [
        ("--hostname=derp.example.com", "relay --hostname=derp.example.com"),
        ("", "relay"),
        ("-a :8443 --no-tls", "relay -a :8443 --no-tls"),
        ("--http-port -1 -c /x/relay.key", "relay --http-port -1 -c /x/relay.key"),
        ("relay --check", "relay --check"),
        ("pyderp relay --check", "relay --check"),
        ("/opt/pyderp/bin/pyderp key new", "key new"),
        ("ping https://derp.example.com/derp", "ping https://derp.example.com/derp"),
        ("--version", "relay --version"),
        # derper's
        ("derper --hostname=a.example", "derper --hostname=a.example"),
        ("/app/derper -hostname a.example", "derper -hostname a.example"),
        ("/usr/local/bin/derper", "derper"),
        ("-hostname=a.example -verify-clients", "derper -hostname=a.example -verify-clients"),
        ("--hostname=a.example -a=:8443", "derper --hostname=a.example -a=:8443"),
        ("-c /x/derper.key -certmode manual", "derper -c /x/derper.key -certmode manual"),
    ],
)
@pytest.mark.parametrize("uid", [0, 3478])
def test_command_lines_of_both_programs_are_accepted(
    image: Image, line: str, called: str, uid: int
) -> None:
    assert image.run(*line.split(), uid=uid)[0] == called.split()


def test_arguments_with_spaces_stay_whole(image: Image) -> None:
    args, _ = image.run("--home=a b", "--disallow-app-names=*", uid=0)
    assert args == ["relay", "--home=a b", "--disallow-app-names=*"]


def test_root_gives_the_files_to_the_user_and_becomes_it(image: Image) -> None:
    """With the right to open low ports, and no other; a folder of the host belongs to root."""
    image.run("--hostname=a.example", uid=0)
    *_, checked, started = log = image.log.read_text().splitlines()
    assert f"find {image.state} -xdev -user 0 -exec chown -h pyderp:pyderp {{}} +" in log
    for line in (checked, started):
        assert line.startswith("setpriv --reuid=pyderp --regid=pyderp --init-groups ")
        for kind in ("bounding-set", "inh-caps", "ambient-caps"):
            assert f" --{kind}=-all,+net_bind_service " in line
    assert started.endswith(" pyderp relay --hostname=a.example")


def test_with_fewer_rights_it_still_starts(image: Image) -> None:
    """`--cap-drop`: without the right to low ports, or as root if it cannot change the user."""
    args, error = image.run("--hostname=a.example", uid=0, setpriv="no-ambient ")
    assert (args, error) == (["relay", "--hostname=a.example"], "")
    assert image.log.read_text().splitlines()[-1] == (
        "setpriv --reuid=pyderp --regid=pyderp --init-groups --no-new-privs "
        "pyderp relay --hostname=a.example"
    )
    args, error = image.run("--hostname=a.example", uid=0, setpriv="never")
    assert args == ["relay", "--hostname=a.example"]
    assert "may not change its user" in error


@pytest.mark.parametrize(("line", "uid"), [("--check", 3478), ("-hostname=a.example", 0)])
def test_users_and_derpers_files_are_left_alone(image: Image, line: str, uid: int) -> None:
    image.old_volume()
    image.run(line, uid=uid)
    assert image.log.read_text() == ""
    assert not image.state.exists()


def test_the_key_of_an_old_derper_volume_is_copied_once(image: Image) -> None:
    """So the relay's identity stays. The volume does not change."""
    image.old_volume()
    error = image.run("--hostname=a.example", uid=0)[1]
    key = image.state / "relay.key"
    assert f"{key} is a copy of {image.derper_key}" in error
    assert NodePrivate.load(key).to_text() == "privkey:" + "01" * 32
    assert key.stat().st_mode & 0o777 == 0o600
    assert f"chown pyderp:pyderp {key}.new" in image.log.read_text()
    assert [path.name for path in image.state.iterdir()] == ["relay.key"]

    image.derper_key.write_text(DERPER_KEY.replace("01", "02"))
    assert image.run("--hostname=a.example", uid=0)[1] == ""
    assert NodePrivate.load(key).to_text() == "privkey:" + "01" * 32


@pytest.mark.parametrize(
    ("line", "more"),
    [
        ("-c /x/relay.key", {}),
        ("--key-file=/x/relay.key", {}),
        ("--dev", {}),
        ("--hostname=a", {"PYDERP_KEY_FILE": "/x/relay.key"}),
        ("key new", {}),
    ],
)
def test_no_key_is_copied_if_the_command_line_names_one(
    image: Image, line: str, more: dict[str, str]
) -> None:
    image.old_volume()
    assert image.run(*line.split(), uid=0, **more)[1] == ""
    assert list(image.state.iterdir()) == []


def test_the_key_is_copied_beside_a_settings_file(image: Image) -> None:
    image.old_volume()
    assert "is a copy" in image.run("--config-file=/x/relay.toml", uid=0)[1]


# The files


def copied() -> list[str]:
    """The files that the build file copies from the repository."""
    lines = re.findall(r"^COPY (?!--from)(.*) \S+$", BUILD, re.M)
    return [word for line in lines for word in line.split()]


def test_files_that_the_image_is_built_from_exist() -> None:
    assert {"src", "requirements.txt", "contrib/oci/entrypoint.sh"} <= set(copied())
    assert all((REPOSITORY / name).exists() for name in copied())
    assert os.access(OCI / "entrypoint.sh", os.X_OK)
    assert "--require-hashes" in BUILD
    assert "EXPOSE 443/tcp 80/tcp 3478/udp" in BUILD
    assert not re.search(r"https?://(?!127)", BUILD)


@pytest.mark.parametrize("given", ["", "127.0.0.2:{}", "localhost:{}"])
def test_the_health_check_requests_the_configured_address(
    given: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By default port 80 of 127.0.0.1; a status other than 200 is not healthy."""
    asked: list[tuple[str, int, str]] = []
    statuses = [200, 500]

    class Recorder(http.client.HTTPConnection):
        def request(self, method: str, url: str, *_: object, **__: object) -> None:
            asked.append((self.host, self.port, f"{method} {url}"))

        def getresponse(self) -> Any:
            return SimpleNamespace(status=statuses[len(asked) - 1])

    check = re.search(r'"-c", "(.*)"\]', BUILD)
    assert check
    monkeypatch.setenv("HEALTH_ADDRESS", given.format(9090))
    monkeypatch.setattr(http.client, "HTTPConnection", Recorder)
    code = compile(check[1], "HEALTHCHECK", "exec")
    for healthy in (True, False):
        with pytest.raises(SystemExit) as caught:
            exec(code, {})
        assert bool(caught.value.code) is not healthy
    host = given.partition(":")[0] or "127.0.0.1"
    assert asked == [(host, 9090 if given else 80, "GET /debug/check")] * 2


def test_the_build_context_has_the_files_that_are_copied() -> None:
    """For podman, and by the file name that docker reads."""
    lines = (REPOSITORY / ".containerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    assert {rule[1:] for rule in rules if rule.startswith("!")} == set(copied())
    assert [rule for rule in rules[1:] if not rule.startswith("!")] == ["**/__pycache__"]
    docker = OCI / "Containerfile.dockerignore"
    assert docker.read_text() == (REPOSITORY / ".containerignore").read_text()


def test_the_user_of_the_image_is_that_of_the_pages_and_of_the_entry_point() -> None:
    assert "useradd --uid 3478 " in BUILD
    assert "--user=3478" in GUIDE
    assert "--user=3478" in (OCI / "entrypoint.sh").read_text()
    assert "/opt/pyderp/bin:$PATH" in BUILD  # where the entry point finds pyderp


@pytest.mark.parametrize("name", ["entrypoint.sh"])
def test_the_entry_point_is_plain_sh(name: str) -> None:
    assert (OCI / name).read_text().startswith("#!/bin/sh\n")
    subprocess.run(["/bin/sh", "-n", OCI / name], check=True)


def test_the_compose_file_agrees_with_the_guide(image: Image) -> None:
    """The same volume, network and stop time; the build file exists, and its flags do."""
    command = re.findall(r"^      (?:# )?- (--.*)$", COMPOSE, re.M)
    assert image.run(*command)[0] == ["relay", "--hostname=derp.example.com", "--verify-clients"]
    assert "pyderp:/var/lib/pyderp" in COMPOSE
    assert "network_mode: host" in COMPOSE
    assert "stop_grace_period: 30s" in COMPOSE
    context = re.search(r"context: (\S+)", COMPOSE)
    dockerfile = re.search(r"dockerfile: (\S+)", COMPOSE)
    assert context
    assert dockerfile
    assert (OCI / context[1] / dockerfile[1]).resolve() == OCI / "Containerfile"


def commands(text: str) -> list[list[str]]:
    """The command lines of containers in a page."""
    found = re.findall(r"^(?:\$ )?((?:podman|docker) run (?:.*\\\n)*.*)$", text, re.M)
    return [shlex.split(each.replace("\\\n", " ")) for each in found]


PAGES = [*sorted((REPOSITORY / "docs").rglob("*.md")), REPOSITORY / "contrib" / "README.md"]


def test_containers_keep_their_state_and_see_addresses() -> None:
    """Every command line of the pages, as operators may copy any of them."""
    found = [each for page in PAGES for each in commands(page.read_text())]
    assert len(found) >= 5
    for words in found:
        if "-d" in words:
            assert {"--network=host", "pyderp:/var/lib/pyderp", "pyderp"} <= set(words), words
        # podman refuses both with the host's network, or as another user than root.
        assert not any(word.startswith(("--sysctl", "--ulimit")) for word in words), words


def test_the_folder_of_tailscaled_is_mounted_and_not_its_socket() -> None:
    """Each start of tailscaled makes a new socket: a mount of the old one would be stale."""
    texts = [page.read_text() for page in PAGES]
    texts += [path.read_text() for path in OCI.iterdir()]
    mounts = [each for text in texts for each in re.findall(r"\S*tailscale\S*:/\S*", text)]
    assert len(mounts) >= 3
    for mount in mounts:
        assert fnmatch.fnmatch(mount, "/var/run/tailscale:/var/run/tailscale"), mount
