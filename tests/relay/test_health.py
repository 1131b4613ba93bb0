"""Which connections get which Health text, and when it is cleared."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest

from pyderp.relay.connection import Connection
from pyderp.relay.health import HealthReporter, Trouble, expiry_text

from .world import World

DUPLICATE = Trouble.DUPLICATE.value
LIMITED = Trouble.RATE_LIMITED.value
CERTIFICATE = "the relay's certificate is about to expire"


class Recorder(HealthReporter):
    """Records the texts that it sends."""

    sent_texts: list[tuple[Connection, str]]

    def _send(self, connection: Connection, text: str) -> None:
        super()._send(connection, text)
        assert not connection.has_left
        self.sent_texts.append((connection, text))


class Watched:
    """A HealthReporter over a world's connections, with one tick a second."""

    def __init__(self, *, send_to_all: bool = False) -> None:
        self.world = World()
        self.watch = Recorder(self.world.router, lambda: self.world.now, send_to_all=send_to_all)
        self.watch.sent_texts = []

    @property
    def received(self) -> dict[Connection, list[str]]:
        """The texts that each connection got so far."""
        received: dict[Connection, list[str]] = {}
        for connection, text in self.watch.sent_texts:
            received.setdefault(connection, []).append(text)
        return received

    def join(self, name: str) -> Connection:
        connection = self.world.join(name).connection
        connection.takes_health = True
        self.watch.on_login(connection)
        return connection

    def leave(self, connection: Connection) -> None:
        peer = next(each for each in self.world.peers if each.connection is connection)
        self.world.leave(peer)
        self.watch.on_leave(connection)

    def tick(self, seconds: float = 1.0) -> list[tuple[Connection, str]]:
        """Let time pass, up to a second; return the texts sent at the tick."""
        self.world.now += seconds
        before = len(self.watch.sent_texts)
        self.watch.tick(self.world.now)
        return self.watch.sent_texts[before:]

    def ticks(self, count: int) -> list[tuple[Connection, str]]:
        return [each for _ in range(count) for each in self.tick()]

    def take(self, *turns: Connection, every: float = 0.0) -> None:
        """Let connections take over their key in turn, `every` seconds apart."""
        for connection in turns:
            self.watch.on_takeover(connection)
            self.world.now += every

    def wait(self, connection: Connection, seconds: float) -> None:
        self.watch.on_wait(connection, seconds)

    def remembers(self) -> int:
        """Return the number of entries in all tables of the HealthReporter."""
        tables = [v for v in vars(self.watch).values() if isinstance(v, (dict, set))]
        assert len(tables) >= 6
        return sum(map(len, tables))


@pytest.fixture
def at() -> Watched:
    return Watched()


def test_without_trouble_nothing_is_sent_or_remembered(at: Watched) -> None:
    one = at.join("a")
    assert at.ticks(100) == []
    at.leave(one)
    assert at.remembers() == 0


# Duplicates


def test_four_takeovers_in_ten_seconds_are_reported_to_all_connections_of_the_key(
    at: Watched,
) -> None:
    one, two, other = at.join("a"), at.join("a"), at.join("b")
    at.take(one, two, one, every=3.3)
    assert at.tick(0) == []
    at.take(two)
    assert at.tick() == [(one, DUPLICATE), (two, DUPLICATE)]
    assert other not in at.received


def test_slower_takeovers_are_not_reported(at: Watched) -> None:
    one, two = at.join("a"), at.join("a")
    for _ in range(10):
        at.take(one, two, every=3.4)
        assert at.tick() == []


def test_takeovers_of_other_keys_do_not_count(at: Watched) -> None:
    connections = [at.join(name) for name in "aabb"]
    at.take(*connections)
    assert at.tick() == []


def test_duplicates_are_reported_once_and_cleared_after_a_quiet_minute(at: Watched) -> None:
    one, two = at.join("a"), at.join("a")
    for _ in range(20):
        at.take(one, two, one, two)
        at.tick()
    assert at.received == {one: [DUPLICATE], two: [DUPLICATE]}
    assert at.ticks(59) == []
    assert at.tick() == [(one, ""), (two, "")]
    assert at.ticks(100) == []
    assert at.remembers() == 0


def test_a_new_duplicate_starts_healthy(at: Watched) -> None:
    one, two = at.join("a"), at.join("a")
    at.take(one, two, one, two)
    at.tick()
    late = at.join("a")
    assert at.tick() == []
    at.take(late, one, late, one)
    assert at.tick() == [(late, DUPLICATE)]


def test_a_connection_that_left_gets_nothing_and_is_forgotten(at: Watched) -> None:
    one, two = at.join("a"), at.join("a")
    at.take(one, two, one, two)
    at.leave(two)
    assert at.tick() == [(one, DUPLICATE)]
    at.leave(one)
    assert at.ticks(60) == []
    assert at.remembers() == 0


def test_a_single_takeover_is_forgotten(at: Watched) -> None:
    one = at.join("a")
    at.join("a")
    at.take(one)
    assert at.remembers() == 1
    at.ticks(11)
    assert at.remembers() == 0


# Waiting


def test_a_connection_that_waits_most_of_the_time_gets_a_health_text(at: Watched) -> None:
    one, other = at.join("a"), at.join("b")
    for _ in range(14):
        at.wait(one, 0.6)
        at.wait(other, 0.4)
        assert at.tick() == []
    for _ in range(30):
        at.wait(one, 0.6)
        at.wait(other, 0.4)
        at.tick()
    assert at.received == {one: [LIMITED]}


def test_waiting_more_than_half_of_thirty_seconds_is_reported(at: Watched) -> None:
    one = at.join("a")
    at.wait(one, 15.0)
    assert at.ticks(100) == []
    at.wait(one, 15.1)
    assert at.ticks(15) == []
    assert at.tick() == [(one, LIMITED)]


def test_a_long_wait_is_reported_while_it_lasts(at: Watched) -> None:
    one = at.join("a")
    at.wait(one, 60_000.0)
    assert at.ticks(15) == []
    assert at.tick() == [(one, LIMITED)]
    assert at.ticks(1000) == []


def test_a_wait_that_ends_early_counts_only_until_its_end(at: Watched) -> None:
    """The next wait then counts from its own start."""
    one, other = at.join("a"), at.join("b")
    at.wait(one, 60_000.0)
    at.ticks(14)
    at.watch.end_wait(one)
    at.watch.end_wait(other)
    assert at.ticks(5) == []
    at.wait(one, 1.0)
    assert at.ticks(100) == []
    assert at.remembers() == 0


def test_waits_that_overlap_count_once(at: Watched) -> None:
    """A growing debt is one wait that ends later."""
    one = at.join("a")
    for _ in range(100):
        at.wait(one, 10.0)
    assert at.ticks(100) == []
    for seconds in (1.0, 5.0, 3.0):
        at.wait(one, seconds)
    at.tick(0.5)
    at.wait(one, 14.0)
    assert at.ticks(100) == []


def test_many_short_waits_add_up(at: Watched) -> None:
    one = at.join("a")
    for _ in range(320):
        at.wait(one, 0.06)
        at.tick(0.1)
    assert at.received == {one: [LIMITED]}


def test_rate_limited_is_cleared_a_minute_after_the_last_time_it_was_true(at: Watched) -> None:
    one = at.join("a")
    at.wait(one, 20.0)
    at.ticks(20)
    assert at.received == {one: [LIMITED]}
    # The last 30 seconds hold more than 15 of waiting until 34 seconds after the start.
    assert at.ticks(34 + 59 - 20) == []
    assert at.tick() == [(one, "")]
    assert at.remembers() == 0


def test_a_connection_that_left_while_waiting_is_forgotten(at: Watched) -> None:
    one = at.join("a")
    at.wait(one, 60_000.0)
    at.ticks(20)
    at.leave(one)
    assert at.remembers() == 0
    assert at.ticks(100) == []


# The certificate


def test_all_connections_get_the_certificate_problem_once(at: Watched) -> None:
    one, two = at.join("a"), at.join("b")
    at.watch.set_certificate_problem(CERTIFICATE)
    assert at.tick() == [(one, CERTIFICATE), (two, CERTIFICATE)]
    at.watch.set_certificate_problem(CERTIFICATE)
    assert at.tick() == []
    at.watch.set_certificate_problem("it has expired")
    assert at.tick() == [(one, "it has expired"), (two, "it has expired")]
    at.watch.set_certificate_problem(None)
    assert at.tick() == [(one, ""), (two, "")]
    assert at.remembers() == 0


def test_a_new_login_gets_the_certificate_problem_at_once_and_once(at: Watched) -> None:
    at.watch.set_certificate_problem(CERTIFICATE)
    one = at.join("a")
    assert at.received == {one: [CERTIFICATE]}
    assert at.ticks(10) == []
    at.watch.set_certificate_problem(None)
    assert at.tick() == [(one, "")]
    other = at.join("b")
    assert other not in at.received


def test_a_problem_that_ends_before_a_tick_is_not_sent(at: Watched) -> None:
    at.join("a")
    at.watch.set_certificate_problem(CERTIFICATE)
    at.watch.set_certificate_problem(None)
    assert at.tick() == []


def test_a_problem_is_sent_to_many_connections_over_several_ticks(at: Watched) -> None:
    crowd = {at.join(f"{n:032}") for n in range(2500)}
    at.watch.set_certificate_problem(CERTIFICATE)
    sent = [at.tick() for _ in range(4)]
    assert [len(each) for each in sent] == [1000, 1000, 500, 0]
    assert {connection for each in sent for connection, _ in each} == crowd


# Several at once


def test_several_troubles_are_one_text_and_are_cleared_one_by_one(at: Watched) -> None:
    one, two = at.join("a"), at.join("a")
    at.wait(one, 20.0)
    at.ticks(20)
    at.take(one, two, one, two)
    at.watch.set_certificate_problem(CERTIFICATE)
    at.ticks(200)
    at.watch.set_certificate_problem(None)
    at.tick()
    assert at.received[one] == [
        LIMITED,
        f"{DUPLICATE}; {LIMITED}; {CERTIFICATE}",
        f"{LIMITED}; {CERTIFICATE}",
        CERTIFICATE,
        "",
    ]
    assert at.received[two] == [f"{DUPLICATE}; {CERTIFICATE}", CERTIFICATE, ""]
    assert at.remembers() == 0


@pytest.mark.parametrize("text", [each.value for each in Trouble])
def test_texts_fit_a_line_that_a_client_shows(text: str) -> None:
    assert text.isprintable()
    assert text.isascii()
    assert len(text) < 250


# The text about the certificate

END = datetime(2026, 4, 1, 12, 30, tzinfo=UTC)


def test_the_text_about_a_certificate_that_expires_soon() -> None:
    text = expiry_text("derp.example.com", END, END - timedelta(days=18))
    assert "derp.example.com expires on 2026-04-01 12:30 UTC" in text
    assert text.isprintable()
    assert expiry_text("derp.example.com", END, END - timedelta(seconds=1)) == text


def test_the_text_about_an_expired_certificate() -> None:
    text = expiry_text("derp.example.com", END, END)
    assert "derp.example.com expired on 2026-04-01 12:30 UTC" in text


def test_the_text_about_a_certificate_is_in_utc_whatever_the_time_zones() -> None:
    zone = timezone(timedelta(hours=5))
    now = END - timedelta(days=1)
    text = expiry_text("derp.example.com", END.astimezone(zone), now.astimezone(zone))
    assert text == expiry_text("derp.example.com", END, now)


# Clients that are not known to accept Health frames


@pytest.mark.parametrize("send_to_all", [False, True])
def test_a_client_not_known_to_accept_health_frames_gets_none_unless_all_do(
    send_to_all: bool,
) -> None:
    """For none of the three troubles. A known connection of the same key gets them all the same."""
    at = Watched(send_to_all=send_to_all)
    bare, known = at.join("a"), at.join("a")
    bare.takes_health = False
    at.take(bare, known, bare, known)
    at.wait(bare, 20.0)
    at.ticks(20)
    at.watch.set_certificate_problem(CERTIFICATE)
    at.tick()
    at.watch.on_login(bare)
    assert at.received.get(bare, [""])[-1] == (CERTIFICATE if send_to_all else "")
    assert at.received[known] == [DUPLICATE, f"{DUPLICATE}; {CERTIFICATE}"]


def test_close_stops_takeover_events(at: Watched) -> None:
    registry = at.world.router.registry
    assert registry.on_takeover == at.watch.on_takeover
    at.watch.close()
    assert registry.on_takeover is None


def test_waits_within_one_second_count_once(at: Watched) -> None:
    """Three waits of 0.3 seconds between two ticks are no wait in the seconds that follow."""
    one = at.join("a")
    at.tick()
    for _ in range(3):
        at.wait(one, 0.3)
        at.tick(0.32)
    assert at.ticks(100) == []
    assert at.remembers() == 0


def test_health_frames_with_a_text_and_empty_ones_are_counted(at: Watched) -> None:
    one, two = at.join("a"), at.join("b")
    at.watch.set_certificate_problem(CERTIFICATE)
    at.tick()
    at.watch.set_certificate_problem("it has expired")
    at.tick()
    at.leave(two)
    at.watch.set_certificate_problem(None)
    assert at.tick() == [(one, "")]
    # The only integers among the attributes: frames with a text, then empty ones.
    assert [each for each in vars(at.watch).values() if type(each) is int] == [4, 1]
