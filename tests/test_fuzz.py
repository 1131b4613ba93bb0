"""A short fuzzing run: the seeds, and fixed mutations of them, through each target of `fuzz/`."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from fuzz import make_corpus
from fuzz.mutate import mutations
from fuzz.targets import NAMES, load, seeds

ROOT: Final = Path(__file__).parent.parent

MUTATIONS: Final = {
    "client_frames": 2000,
    "first_bytes": 6000,
    "http_reply": 2500,
    "http_requests": 2500,
    "login": 4000,
    "maps": 2000,
    "metacert": 4000,
    "relay_frames": 2000,
    "tls_records": 700,
    "upgrade_reply": 2500,
    "websocket": 4000,
}
"""How many of each: at most a second or two of work."""


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    """A target's name."""
    target: str = request.param
    return target


def played(name: str, inputs: Iterator[tuple[str, bytes]]) -> int:
    """Play inputs; a failure names the input, so that it can be made a seed."""
    target = load(name)
    count = 0
    for label, data in inputs:
        count += 1
        try:
            target.one_input(data)
        except Exception as e:
            e.add_note(f"fuzz target {name}, {label}: bytes.fromhex({data.hex()!r})")
            raise
    return count


class TestCorpus:
    def test_is_what_make_corpus_makes(self, name: str) -> None:
        """A program makes the seeds."""
        committed = {path.name: path.read_bytes() for path in seeds(name)}
        assert committed == make_corpus.make()[name]

    def test_seeds_are_few_and_small(self) -> None:
        """The repository stays small."""
        sizes = [path.stat().st_size for name in NAMES for path in seeds(name)]
        assert len(sizes) <= 10 * len(NAMES)
        assert max(sizes) < 2048


class TestTargets:
    def test_seeds(self, name: str) -> None:
        """No seed fails; these are also the regression tests of old findings."""
        paths = seeds(name)
        assert played(name, ((path.name, path.read_bytes()) for path in paths)) == len(paths)

    def test_mutations_of_seeds(self, name: str) -> None:
        """No mutation of a seed fails; they are the same each time."""
        target = load(name)
        inputs = mutations(
            [path.read_bytes() for path in seeds(name)],
            target.tokens,
            count=MUTATIONS[name],
            seed=name,
        )
        labelled = ((f"mutation {i}", data) for i, data in enumerate(inputs))
        assert played(name, labelled) == MUTATIONS[name]

    def test_hostile_bytes_without_structure(self, name: str) -> None:
        """Neither the empty input, nor single bytes, nor long runs of one byte fail."""
        single = [bytes((n,)) for n in range(256)]
        runs = [bytes((n,)) * 3000 for n in (0x00, 0x01, 0x20, 0x2F, 0x7F, 0x80, 0xFF)]
        inputs = [b"", *single, *runs]
        assert played(name, ((f"{len(x)} bytes", x) for x in inputs)) == len(inputs)

    @pytest.mark.slow
    @pytest.mark.skipif(
        importlib.util.find_spec("atheris") is None, reason="atheris is not installed"
    )
    def test_a_second_of_atheris(self, name: str) -> None:
        """`fuzz/run.py` works, finds nothing in a second, and does not change the corpus."""
        before = {path: path.read_bytes() for path in seeds(name)}
        command = [sys.executable, "fuzz/run.py", "--seconds", "1", "--target", name]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "nothing found" in done.stdout
        assert {path: path.read_bytes() for path in seeds(name)} == before


class TestMutator:
    def test_the_result_is_the_same_each_time(self) -> None:
        """A failure in one run is a failure in the next; different inputs have different
        results."""
        made = [list(mutations([b"seed", b""], [b"token"], count=500, seed="s")) for _ in range(2)]
        assert made[0] == made[1]
        assert len(set(made[0])) > 250
