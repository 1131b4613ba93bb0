from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from pyderp.admission.verdict import Memory, excerpt

KEYS = st.integers(0, 6)


def test_an_excerpt_is_one_short_printable_line() -> None:
    assert excerpt(" no such node\n") == "no such node"
    assert excerpt("a\nb\x1b[0m") == r"a\nb\x1b[0m"
    assert len(excerpt("x" * 200)) == 200
    assert excerpt("x" * 201) == "x" * 199 + "…"


def test_a_value_is_returned_until_its_lifetime_ends() -> None:
    memory: Memory[str, int] = Memory(10, 5)
    memory.put("a", 1, 100)
    assert memory.get("a", 109.9) == 1
    assert memory.get("a", 110) is None
    assert len(memory) == 0


def test_using_a_value_does_not_extend_its_lifetime() -> None:
    memory: Memory[str, int] = Memory(10, 5)
    memory.put("a", 1, 0)
    assert memory.get("a", 9) == 1
    assert memory.get("a", 11) is None


def test_the_least_recently_used_is_forgotten_first() -> None:
    memory: Memory[str, int] = Memory(10, 2)
    memory.put("a", 1, 0)
    memory.put("b", 2, 0)
    assert memory.get("a", 1) == 1
    memory.put("c", 3, 1)
    assert [memory.get(key, 1) for key in "abc"] == [1, None, 3]


def test_storing_again_is_a_use() -> None:
    memory: Memory[str, int] = Memory(10, 2)
    for key in "abac":
        memory.put(key, 1, 0)
    assert [memory.get(key, 0) for key in "abc"] == [1, None, 1]


def test_without_a_lifetime_nothing_is_kept() -> None:
    memory: Memory[str, int] = Memory(0, 5)
    memory.put("a", 1, 0)
    assert memory.get("a", 0) is None
    assert len(memory) == 0


class Remembering(RuleBasedStateMachine):
    """Any sequence of uses, compared with a list that is searched from its end."""

    @initialize(size=st.integers(1, 4), lifetime=st.sampled_from([0, 3, 10]))
    def begin(self, size: int, lifetime: int) -> None:
        self.size = size
        self.lifetime = lifetime
        self.now = 0
        self.serial = 0
        self.memory: Memory[int, int] = Memory(lifetime, size)
        self.model: list[tuple[int, int, int]] = []
        """Key, value and time of storing; the most recently used last."""

    @rule(by=st.integers(0, 5))
    def pass_time(self, by: int) -> None:
        self.now += by

    @rule(key=KEYS)
    def put(self, key: int) -> None:
        self.serial += 1
        self.memory.put(key, self.serial, self.now)
        if self.lifetime:
            kept = [entry for entry in self.model if entry[0] != key]
            self.model = [*kept, (key, self.serial, self.now)][-self.size :]

    @rule(key=KEYS)
    def get(self, key: int) -> None:
        found = [entry for entry in self.model if entry[0] == key]
        self.model = [entry for entry in self.model if entry[0] != key]
        good = [entry for entry in found if self.now < entry[2] + self.lifetime]
        self.model += good
        assert self.memory.get(key, self.now) == (good[0][1] if good else None)

    @invariant()
    def holds_what_the_model_holds(self) -> None:
        if hasattr(self, "memory"):
            assert len(self.memory) == len(self.model) <= self.size


TestRemembering = Remembering.TestCase
TestRemembering.settings = settings(max_examples=50, stateful_step_count=20)
