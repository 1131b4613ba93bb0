"""The rate limit file, and the token bucket."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyderp.errors import ConfigError
from pyderp.keys import NodePublic
from pyderp.relay.limits import (
    MIN_BURST,
    MOST_KEPT,
    RateBucket,
    RateBuckets,
    RateConfig,
    RateLimit,
    parse_rate_config,
)

WHERE = "rates.json"
KEY = NodePublic(bytes(range(32)))
OTHER = NodePublic(bytes(range(1, 33)))


def parse(value: object) -> RateConfig:
    return parse_rate_config(json.dumps(value).encode(), WHERE)


def refusal(data: bytes | str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_rate_config(data.encode() if isinstance(data, str) else data, WHERE)
    text = str(caught.value)
    assert text.startswith(WHERE)
    assert text.isprintable()
    assert len(text) < 400
    return text


def test_the_minimum_burst_is_the_largest_frame() -> None:
    assert MIN_BURST == 65568


# derper's members


def test_rate_and_burst_are_read() -> None:
    config = parse({"PerClientRateLimitBytesPerSec": 125000, "PerClientRateBurstBytes": 250000})
    assert config == RateConfig(RateLimit(125000, 250000))


def test_a_rate_alone_has_the_minimum_burst() -> None:
    assert parse({"PerClientRateLimitBytesPerSec": 1}).default == RateLimit(1, MIN_BURST)


def test_a_small_burst_is_raised() -> None:
    config = parse({"PerClientRateLimitBytesPerSec": 20000, "PerClientRateBurstBytes": 10})
    assert config.default == RateLimit(20000, MIN_BURST)


@pytest.mark.parametrize(
    "value",
    [
        {},
        {"PerClientRateLimitBytesPerSec": 0, "PerClientRateBurstBytes": 0},
        {"PerClientRateLimitBytesPerSec": None},
        {"PerClientRateBurstBytes": 1 << 20},
        {"PerKey": None},
        {"PerKey": {}},
    ],
)
def test_without_a_rate_there_is_no_limit(value: object) -> None:
    assert parse(value) == RateConfig()


def test_member_names_may_have_any_case_and_the_last_counts() -> None:
    text = b'{"perclientratelimitbytespersec": 7, "PERCLIENTRATELIMITBYTESPERSEC": 8}'
    assert parse_rate_config(text, WHERE).default == RateLimit(8, MIN_BURST)
    text = b'{"PerClientRateLimitBytesPerSec": 7, "PerClientRateLimitBytesPerSec": 9}'
    assert parse_rate_config(text, WHERE).default == RateLimit(9, MIN_BURST)


def test_the_largest_number_of_upstream_is_accepted() -> None:
    config = parse({"PerClientRateLimitBytesPerSec": 2**64 - 1})
    assert config.default == RateLimit(2**64 - 1, MIN_BURST)


def test_unknown_members_are_ignored_and_listed() -> None:
    config = parse({"PerClientRateLimitBytesPerSecond": 5, "x\n" + "y" * 100: []})
    assert config.default is None
    assert config.ignored == ("PerClientRateLimitBytesPerSecond", "x\\n" + "y" * 76 + "…")


# Limits of single keys


def test_a_key_has_its_own_limit() -> None:
    config = parse(
        {
            "PerClientRateLimitBytesPerSec": 5,
            "perkey": {
                str(KEY): {"BytesPerSec": 9, "BurstBytes": 1 << 20, "Label": "the office"},
                str(OTHER): {"bytespersec": 0},
            },
        }
    )
    assert config.limit_for(KEY.raw) == RateLimit(9, 1 << 20)
    assert config.limit_for(OTHER.raw) is None
    assert config.limit_for(bytes(32)) == RateLimit(5, MIN_BURST)
    assert config.labels == {KEY.raw: "the office"}
    assert config.ignored == ()


def test_a_label_is_one_short_line() -> None:
    label = " a\x1b[2J\nb" + "c" * 300
    config = parse({"PerKey": {str(KEY): {"BytesPerSec": 9, "Label": label}}})
    assert config.labels[KEY.raw].startswith("a\\x1b[2J\\nbccc")
    assert len(config.labels[KEY.raw]) == 200


def test_a_key_may_be_limited_while_others_are_not() -> None:
    config = parse({"PerKey": {str(KEY): {"BytesPerSec": 9}}})
    assert config.limit_for(KEY.raw) == RateLimit(9, MIN_BURST)
    assert config.limit_for(OTHER.raw) is None


# Mistakes


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "line 1, column 1: not JSON: Expecting value; want for example"),
        ('{\n "PerKey": }', "line 2, column 12: not JSON"),
        ("{}\n{}", "line 2, column 1: not JSON: Extra data"),
        ('{"PerClientRateLimitBytesPerSec": NaN}', "not JSON: NaN is not a number"),
        ("[" * 100_000, "not JSON: "),
        ('{"a": ' + "9" * 5000 + "}", "not JSON: "),
        ("[]", "want an object {…}, got an array"),
        ("null", "want an object {…}, got null"),
        ('"' + "\u202e" * 200 + '"', 'want an object {…}, got "\\u202e'),
    ],
)
def test_anything_but_a_json_object_is_refused(text: str, says: str) -> None:
    assert says in refusal(text)


def test_invalid_utf8_is_refused_with_its_line() -> None:
    assert "line 2: not UTF-8" in refusal(b'{\n"\xff": 1}')


@pytest.mark.parametrize(
    ("value", "got"),
    [
        (-1, "got -1"),
        (1.0, "got 1.0"),
        (True, "got true"),
        ("5", 'got "5"'),
        ([5], "got an array"),
        ({}, "got an object"),
        (2**64, "got 18446744073709551616"),
    ],
)
@pytest.mark.parametrize("name", ["PerClientRateLimitBytesPerSec", "PerClientRateBurstBytes"])
def test_an_invalid_number_of_bytes_is_refused(name: str, value: object, got: str) -> None:
    text = refusal(json.dumps({name: value}))
    assert f"{name}: want a whole number of bytes, 0 or more, {got}" in text


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ([], "PerKey: want an object {…}, got an array"),
        ({"nodekey:12": {}}, "PerKey[nodekey:12]: want nodekey: and 64 hex digits, got 2"),
        ({"office": {}}, "PerKey[office]: key hex string doesn't have"),
        ({str(KEY): 5}, "want an object {…}, got 5"),
        ({str(KEY): {}}, "BytesPerSec is missing; 0 means no limit"),
        ({str(KEY): {"BytesPerSec": None}}, "BytesPerSec is missing"),
        ({str(KEY): {"BytesPerSec": -2}}, "BytesPerSec: want a whole number"),
        ({str(KEY): {"BytesPerSec": 2, "BurstBytes": "x"}}, "BurstBytes: want a whole number"),
        ({str(KEY): {"BytesPerSec": 2, "Label": 3}}, "Label: want a string, got 3"),
        ({str(KEY): {"BytesPerSec": 2, "Brust": 3}}, "unknown member 'Brust'; want BytesPerSec"),
        (
            {str(KEY): {"BytesPerSec": 1}, str(KEY)[:8] + str(KEY)[8:].upper(): {"BytesPerSec": 2}},
            "this key is there twice",
        ),
    ],
)
def test_a_wrong_limit_of_a_key_is_refused(value: object, says: str) -> None:
    assert says in refusal(json.dumps({"PerKey": value}))


def test_a_repeated_key_is_refused() -> None:
    entry = f'"{KEY}": {{"BytesPerSec": 1}}'
    assert "this key is there twice" in refusal(f'{{"PerKey": {{{entry}, {entry}}}}}')


def test_many_keys_are_read() -> None:
    keys = {f"nodekey:{n:064x}": {"BytesPerSec": n} for n in range(20_000)}
    assert len(parse({"PerKey": keys}).keys) == 20_000


@given(st.binary(max_size=200))
def test_any_bytes_are_parsed_or_refused(data: bytes) -> None:
    problem = ""
    try:
        parse_rate_config(data, WHERE)
    except ConfigError as e:
        problem = str(e)
    assert problem.startswith(WHERE) or isinstance(json.loads(data), dict)


# The bucket


def bucket(rate: int, burst: int) -> RateBucket:
    return RateBucket(RateLimit(rate, burst), 100.0)


def test_the_burst_is_free_and_what_exceeds_it_waits_for_its_rate() -> None:
    """The second full charge at a rate of one burst a second waits for exactly one second."""
    full = bucket(MIN_BURST, MIN_BURST)
    assert full.charge(MIN_BURST, 100.0) == 0
    assert full.charge(MIN_BURST, 100.0) == 1.0
    assert full.charge(0, 101.0) == 0
    assert full.charge(1, 101.0) > 0


def test_debts_add_up_and_shrink_with_time() -> None:
    slow = bucket(1000, 5000)
    assert slow.charge(6000, 100.0) == 1.0
    assert slow.charge(1000, 100.5) == 1.5
    assert slow.charge(0, 101.0) == 1.0
    assert slow.charge(0, 102.0) == 0


def test_a_bucket_never_holds_more_than_the_burst() -> None:
    full = bucket(1000, 5000)
    assert full.charge(0, 10_000.0) == 0
    assert full.charge(5000, 10_000.0) == 0
    assert full.charge(1000, 10_000.0) == 1.0


def test_a_clock_that_goes_back_refills_nothing() -> None:
    full = bucket(1000, 5000)
    assert full.charge(6000, 100.0) == 1.0
    assert full.charge(0, 50.0) == 1.0
    assert full.charge(0, 100.0) == 1.0


@given(
    rate=st.integers(1, 10**7),
    burst=st.integers(MIN_BURST, 10**7),
    sizes=st.lists(st.integers(0, 200_000), min_size=1, max_size=50),
)
def test_waiting_as_long_as_charge_returns_keeps_the_limit(
    rate: int, burst: int, sizes: list[int]
) -> None:
    """Burst and rate are exceeded by the last charge at most."""
    held = bucket(rate, burst)
    now, sent = 100.0, 0
    for size in sizes:
        assert sent <= burst + (now - 100.0) * rate + 1
        now += held.charge(size, now)
        sent += size


# One bucket for each key

SMALL = RateLimit(1000, MIN_BURST)


def spend(buckets: RateBuckets, n: int, size: int = MIN_BURST, now: float = 0.0) -> None:
    """Connect with key `n`, charge `size` bytes, and disconnect."""
    buckets.charge(buckets.of(n.to_bytes(32), SMALL, now), size, now)


def debt(buckets: RateBuckets, n: int, now: float) -> float:
    return buckets.of(n.to_bytes(32), SMALL, now).charge(0, now)


def test_each_key_has_its_own_bucket() -> None:
    buckets = RateBuckets()
    one = buckets.of(KEY.raw, SMALL, 0.0)
    assert buckets.of(KEY.raw, SMALL, 0.0) is one
    assert buckets.of(OTHER.raw, SMALL, 0.0) is not one


def test_a_debt_outlives_the_connections_of_its_key() -> None:
    buckets = RateBuckets()
    spend(buckets, 1, MIN_BURST + 5000)
    assert debt(buckets, 1, 2.0) == 3.0
    spend(buckets, 1, 1000, now=2.0)
    assert debt(buckets, 1, 2.0) == 4.0


def test_a_key_that_sent_nothing_is_not_remembered() -> None:
    buckets = RateBuckets()
    held = buckets.of(KEY.raw, SMALL, 0.0)
    assert len(buckets) == 1
    del held
    assert len(buckets) == 0


def test_buckets_that_are_full_again_are_forgotten() -> None:
    """With 10 new keys a second and 66 s until a bucket is full, there are never more than 700."""
    buckets = RateBuckets()
    for n in range(5000):
        spend(buckets, n, now=n / 10)
        assert len(buckets) <= 700
    assert debt(buckets, 4999, 500.0) == 0
    spend(buckets, 5000, 1, now=10_000.0)
    spend(buckets, 5001, 1, now=10_000.0)
    assert len(buckets) <= 700


def test_beyond_the_bound_the_debt_unused_for_longest_is_forgotten() -> None:
    buckets = RateBuckets()
    held = buckets.of((2).to_bytes(32), SMALL, 0.0)
    for n in range(4):
        spend(buckets, n, 2 * MIN_BURST)
    spend(buckets, 0, 1)
    for n in range(4, 2 * MOST_KEPT):
        spend(buckets, n, 2 * MIN_BURST)
        if n % 100 == 0:
            spend(buckets, 0, 1)
    assert len(buckets) == MOST_KEPT + 1
    assert debt(buckets, 0, 0.0) > 0
    assert debt(buckets, 1, 0.0) == 0
    assert debt(buckets, 2, 0.0) > 0, "it has a connection"
    assert debt(buckets, 3, 0.0) == 0
    assert buckets.charge(held, 1, 0.0) > 0
    assert len(buckets) == MOST_KEPT


@given(
    charges=st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, 200_000), st.floats(0, 100)), max_size=50
    )
)
def test_reconnecting_changes_no_wait(
    charges: list[tuple[int, int, float]],
) -> None:
    """Each key waits as if it had one connection all the time."""
    buckets = RateBuckets()
    staying = [RateBucket(SMALL, 0.0) for _ in range(4)]
    now = 0.0
    for n, size, pause in charges:
        now += pause
        bucket = buckets.of(n.to_bytes(32), SMALL, now)
        wait = staying[n].charge(size, now)
        assert buckets.charge(bucket, size, now) == pytest.approx(wait, abs=1e-6)
        del bucket
