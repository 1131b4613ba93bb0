"""Which clients get which addresses; the vectors come from Go's tests and a running derper."""

from __future__ import annotations

import json
import statistics
from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyderp.errors import ConfigError
from pyderp.relay.bootstrap import (
    MAX_QUERIED,
    BootstrapAnswers,
    BootstrapCounters,
    BootstrapName,
    LastGood,
    in_percentage,
    percentage,
)

PUBLISHED = {"login.example.com": ["192.0.2.1", "2001:db8::1"]}
PUBLIC = b'{\n\t"login.example.com": [\n\t\t"192.0.2.1",\n\t\t"2001:db8::1"\n\t]\n}'
SECRET = b'{\n\t"new.example.com": [\n\t\t"192.0.2.9"\n\t]\n}'


def never() -> float:
    """Fail: no random number may be drawn."""
    raise AssertionError


def is_ordinary(address: IPv4Address | IPv6Address) -> bool:
    """Return whether an address needs no random number."""
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return not (mapped or address).is_loopback


def make(percent: int = 100, addresses: tuple[str, ...] = ("192.0.2.9",)) -> BootstrapAnswers:
    """Return answers with one published and one unpublished name."""
    answers = BootstrapAnswers()
    answers.publish(PUBLISHED)
    answers.keep_for_askers({"new.example.com": (addresses, percent)})
    return answers


class TestName:
    @pytest.mark.parametrize(
        ("text", "name", "txt"),
        [
            ("a.example", "a.example", ""),
            ("a.example/t.example", "a.example", "t.example"),
            (" a.example / t.example ", "a.example", "t.example"),
            ("a/b/c", "a", "b/c"),
        ],
    )
    def test_entries_are_parsed(self, text: str, name: str, txt: str) -> None:
        assert BootstrapName.parse(text) == BootstrapName(name, txt)

    @pytest.mark.parametrize("text", ["", " ", "/t.example", "a.example/"])
    def test_an_entry_without_a_name_is_refused(self, text: str) -> None:
        with pytest.raises(ConfigError, match="want NAME or NAME/TXTNAME"):
            BootstrapName.parse(text)


@pytest.mark.parametrize(
    ("texts", "percent"),
    [
        ([], 0),
        (["50"], 50),
        (["0"], 0),
        (["100"], 100),
        (["+7"], 7),
        (["007"], 7),
        (["10", "20"], 20),
        (["20", "101"], 20),
        (["20", "-1", "x", "", " 30", "3_0", "1.5", "٣", "9" * 5000], 20),
        (["50%"], 0),
    ],
)
def test_the_percentage_is_read_from_txt_records(texts: list[str], percent: int) -> None:
    assert percentage(texts) == percent


class TestInPercentage:
    @pytest.mark.parametrize("address", ["", "1.2.3.4", "127.0.0.1", "no address"])
    def test_0_and_100_percent_need_no_address(self, address: str) -> None:
        assert not in_percentage(address, 0, uniform=never)
        assert in_percentage(address, 100, uniform=never)

    @pytest.mark.parametrize("address", ["", "@", "1.2.3.4:5"])
    def test_a_client_without_an_address_is_in_no_percentage(self, address: str) -> None:
        assert not in_percentage(address, 50, uniform=never)
        assert not in_percentage(address, 99, uniform=never)

    @pytest.mark.parametrize(
        ("last", "inside"),
        [(4, True), (5, True), (6, False), (7, True), (8, False), (9, True), (10, True)],
    )
    def test_addresses_are_spread_as_by_go(self, last: int, inside: bool) -> None:
        assert in_percentage(f"1.2.3.{last}", 50, uniform=never) is inside
        assert in_percentage(f"::ffff:1.2.3.{last}", 50, uniform=never) is inside

    def test_the_share_is_the_percentage(self) -> None:
        def inside(number: int) -> bool:
            return in_percentage(f"1.2.{number >> 8}.{number & 255}", 50, uniform=never)

        assert statistics.mean(map(inside, range(65536))) == pytest.approx(0.5, abs=0.005)

    @given(st.ip_addresses().filter(is_ordinary))
    def test_a_larger_percentage_only_adds(self, address: IPv4Address | IPv6Address) -> None:
        belongs = [in_percentage(str(address), percent, uniform=never) for percent in range(101)]
        assert belongs == sorted(belongs)

    @pytest.mark.parametrize("address", ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"])
    def test_on_loopback_a_random_number_decides(self, address: str) -> None:
        assert in_percentage(address, 1, uniform=lambda: 0.49)
        assert not in_percentage(address, 99, uniform=lambda: 0.5)


class TestAnswers:
    def test_before_the_first_round_the_answer_is_empty(self) -> None:
        assert BootstrapAnswers().answer("", "1.2.3.4", uniform=never) == b""

    def test_if_all_look_ups_failed_the_answer_is_null(self) -> None:
        answers = make()
        answers.publish({})
        assert answers.answer("", "1.2.3.4", uniform=never) == b"null"

    def test_all_published_names_are_in_one_answer(self) -> None:
        answers = make()
        for name in ("", "login.example.com", "random.example.com", "NEW.example.com"):
            assert answers.answer(name, "1.2.3.4", uniform=never) == PUBLIC

    def test_names_are_sorted_and_addresses_are_not(self) -> None:
        answers = BootstrapAnswers()
        answers.publish({"b": ["2", "1"], "a": []})
        body = answers.answer("", "", uniform=never)
        assert body == b'{\n\t"a": [],\n\t"b": [\n\t\t"2",\n\t\t"1"\n\t]\n}'

    def test_an_unpublished_name_is_answered_alone(self) -> None:
        answers = make()
        assert answers.answer("new.example.com", "1.2.3.4", uniform=never) == SECRET
        assert answers.counters == BootstrapCounters(
            requests=1, unpublished_hits=1, queried_domains=1
        )

    def test_an_unpublished_name_with_an_empty_list_is_a_miss(self) -> None:
        answers = make(addresses=())
        assert answers.answer("new.example.com", "1.2.3.4", uniform=never) == PUBLIC
        assert answers.counters == BootstrapCounters(
            requests=1, unpublished_misses=1, queried_domains=1
        )

    def test_an_unknown_name_is_a_miss(self) -> None:
        answers = make()
        answers.answer("random.example.com", "1.2.3.4", uniform=never)
        assert answers.counters == BootstrapCounters(
            requests=1, unpublished_misses=1, queried_domains=1
        )

    def test_a_client_outside_the_percentage_gets_the_published_names(self) -> None:
        answers = make(50)
        assert answers.answer("new.example.com", "1.2.3.4", uniform=never) == SECRET
        assert answers.answer("new.example.com", "1.2.3.6", uniform=never) == PUBLIC
        assert answers.counters == BootstrapCounters(
            requests=2,
            unpublished_hits=2,
            unpublished_percent_misses=1,
            unpublished_misses=1,
            queried_domains=1,
        )

    def test_a_published_name_is_a_hit_if_it_has_addresses(self) -> None:
        answers = make()
        answers.publish({**PUBLISHED, "empty.example.com": []})
        answers.answer("login.example.com", "", uniform=never)
        answers.answer("empty.example.com", "", uniform=never)
        assert answers.counters == BootstrapCounters(
            requests=2, published_hits=1, published_misses=1, queried_domains=2
        )

    def test_without_a_name_only_the_request_counts(self) -> None:
        answers = make()
        answers.answer("", "", uniform=never)
        assert answers.counters == BootstrapCounters(requests=1)

    def test_each_queried_name_is_counted_once(self) -> None:
        answers = BootstrapAnswers()
        for name in ("a", "b", "c", "a", "b", "d", "e", "e"):
            answers.answer(name, "", uniform=never)
        assert answers.counters.queried_domains == 5

    def test_too_many_queried_names_are_forgotten(self) -> None:
        answers = BootstrapAnswers()
        for number in range(MAX_QUERIED):
            answers.answer(str(number), "", uniform=never)
        assert answers.counters.queried_domains == MAX_QUERIED
        answers.answer("one more", "", uniform=never)
        assert answers.counters.queried_domains == 0

    def test_long_names_take_no_memory(self) -> None:
        answers = BootstrapAnswers()
        for number in range(100):
            answers.answer("x" * 255 + str(number), "", uniform=never)
        assert answers.counters.queried_domains == 1

    @given(st.text(max_size=20), st.text(max_size=20))
    def test_any_query_is_answered(self, name: str, address: str) -> None:
        body = make(50).answer(name, address, uniform=never)
        assert json.loads(body) in (PUBLISHED, json.loads(SECRET))


def test_a_found_value_is_kept_until_it_is_too_old_or_known_to_be_gone() -> None:
    known: LastGood[int] = LastGood(10)
    assert known.get("a", 0) is None
    known.found("a", 1, 0)
    known.found("b", 2, 5)
    assert [known.get(name, 9.9) for name in "ab"] == [1, 2]
    assert [known.get(name, 10) for name in "ab"] == [None, 2]
    known.found("a", 3, 12)
    known.gone("b")
    known.gone("c")
    assert [known.get(name, 13) for name in "abc"] == [3, None, None]
