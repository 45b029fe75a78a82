"""The gate: when it opens, who may start, how the rate grows; by its moves alone, on a clock of numbers."""

import pytest

from app.retry.ages import HORIZON
from app.retry.causes import Cause, classify
from app.retry.fit import fit
from app.retry.gate import WIDE_OPEN, Change, Failed, Gate, Noted, Phase
from app.retry.learned import LearnedPolicy
from app.retry.rate import FORGOTTEN_SECONDS, SLOWEST, Rate
from app.retry.suspicion import THRESHOLD, evidence
from app.retry.table import Table

NOW = 1_800_000_000.0
RECEIVER = "send_email_notification"
UNREACHABLE, TIMEOUT, DEFERRED = classify("unreachable"), classify("timeout"), classify("deferred", 451)
THROTTLED, FULL = classify("throttled", 421), classify("deferred", 452, "4.2.2")
LEASE = 60.0
FIRST_RATE = 9.6
"""Of a backend that took 100 in ten seconds: 0.8 · (100 + 2·√100) / 10."""


class Played:
    """A gate, and what happens to it, at seconds from NOW."""

    def __init__(self, table: Table | None = None) -> None:
        self.gate, self.policy = Gate(RECEIVER), LearnedPolicy(table)
        self.answered_at = 0.0

    def fails(self, delivery: int, at: float, cause: Cause = UNREACHABLE, *, took: float = 0.0, **how: float) -> Noted:
        answered_at = NOW + how.pop("answered_at", -NOW)
        accepted, probe = int(how.pop("accepted", 0)), bool(how.pop("probe", 0))
        began = NOW + at
        return self.gate.fail(Failed(delivery, cause, began, began + took, probe, answered_at, accepted), self.policy)

    def succeeds(self, at: float, *, probe: bool = False) -> Noted:
        return self.gate.succeed(NOW + at, NOW + at + 0.05, probe=probe)

    def may_start(self, at: float, waiting: int = 1, most: int = 100) -> int:
        return self.gate.may_start(self.policy, NOW + at, waiting, most)

    def next_start(self, at: float, waiting: int = 1) -> float:
        return self.gate.next_start(self.policy, NOW + at, waiting) - NOW

    def start(self, at: float, count: int = 1) -> None:
        self.gate.start(NOW + at, count, LEASE)

    def is_down(self, since: float = 0.0) -> "Played":
        self.fails(1, since)
        self.fails(2, since + 1)
        assert self.gate.phase is Phase.OPEN
        return self


def test_two_messages_in_a_row_open_it() -> None:
    """One may fail for its own sake: it waits as the policy says."""
    played = Played()
    assert played.fails(1, 0).own
    noted = played.fails(2, 10)
    assert noted.change is Change.OPENED
    assert not noted.own
    assert played.gate.run.messages == [1, 2]
    assert (played.gate.since, played.gate.failed_at) == (NOW, NOW + 10)


@pytest.mark.parametrize("cause", [TIMEOUT, DEFERRED])
def test_one_message_that_fails_again_and_again_does_not(cause: Cause) -> None:
    """It may be its own fault."""
    played = Played()
    assert all(played.fails(1, at, cause).own for at in range(100))
    assert played.gate.is_wide_open


def test_one_message_whose_connection_is_refused_again_opens_it() -> None:
    """Nothing was said of the message: where few come, an outage must not wait for a second one to be seen."""
    played = Played()
    assert played.fails(1, 0).own
    assert played.fails(1, 3).change is Change.OPENED


def test_an_answer_between_breaks_the_run() -> None:
    played = Played()
    played.fails(1, 0)
    assert played.fails(2, 10, answered_at=5).own
    assert played.gate.run.messages == [2]


def test_a_message_that_hangs_among_successes_hangs_for_its_own_sake() -> None:
    """However many: the backend answered others since each attempt began."""
    played = Played()
    assert all(played.fails(n, n, TIMEOUT, took=10, answered_at=n + 5).own for n in range(20))
    assert played.gate.is_wide_open


def test_a_full_mailbox_never_opens_it() -> None:
    played = Played()
    assert all(played.fails(n, n, FULL).own for n in range(100))
    assert played.gate.is_wide_open


@pytest.mark.parametrize(("lone", "run"), [(5.0, 3), (250.0, 6)])
def test_what_often_fails_alone_needs_a_longer_run(lone: float, run: int) -> None:
    """The threshold is learned: of 500 answers, one in a hundred, or half of them, were such failures."""
    table = fit({}, NOW, lone={RECEIVER: {"451": (lone, 500.0)}})
    played = Played(table)
    opened = [played.fails(n, n, DEFERRED).change for n in range(run)]
    assert opened == [None] * (run - 1) + [Change.OPENED]


def test_false_alarms_raise_what_it_takes() -> None:
    quiet = evidence(None, RECEIVER, DEFERRED, 0.0)
    alarmed = evidence(None, RECEIVER, DEFERRED, 20.0)
    assert alarmed < quiet / 2
    played = Played()
    for n in range(3):
        played.fails(n, n, DEFERRED)
    played.succeeds(10, probe=True)
    assert played.gate.false_alarms == {"451": 3.0}


def alarm(played: Played, at: float, *, mistaken: bool) -> float:
    """Connections are refused until it opens. Returns how long after that the first probe may be made."""
    played.gate.run_dry(NOW + at)
    while played.gate.phase is not Phase.OPEN:
        at += 0.1
        played.fails(1, at)
    probe = first = played.next_start(at)
    if not mistaken:
        played.fails(2, first, probe=True)
        probe = played.next_start(first)
    played.succeeds(probe, probe=True)
    return first - at


def test_where_most_alarms_were_mistaken_the_first_probe_comes_at_once() -> None:
    """With one that waits, ten seconds' delay costs as much as a probe; and after some outages it is as it was."""
    played = Played()
    waits = [alarm(played, 1000.0 * n, mistaken=True) for n in range(1, 8)]
    assert waits[0] > 10
    assert waits[-1] < 0.1
    waits = [alarm(played, 1000.0 * n, mistaken=False) for n in range(10, 20)]
    assert waits[0] < 0.1
    assert waits[-1] > 10


def test_while_open_one_probe_at_a_time_and_at_its_time() -> None:
    played = Played().is_down()
    due = played.next_start(1, waiting=5)
    assert due > 1
    assert played.may_start(due - 0.01, waiting=5) == 0
    assert played.may_start(due + 0.01, waiting=5) == 1
    played.start(due + 0.01)
    assert played.may_start(due + 30, waiting=5) == 0
    assert played.may_start(due + LEASE + 0.02, waiting=5) == 1  # that probe is lost: its process died


def test_more_that_wait_make_the_probe_earlier() -> None:
    played = Played().is_down()
    assert played.next_start(1, waiting=1000) < played.next_start(1, waiting=1)


def test_a_failed_probe_is_a_transition_and_the_next_comes_later() -> None:
    played = Played().is_down()
    played.start(20)
    noted = played.fails(3, 20, probe=True)
    assert noted.tried is not None
    assert (noted.tried.age_from, noted.tried.age_to, noted.tried.gone) == (1, 20, False)
    assert not noted.own
    first = played.next_start(20) - 20
    played.start(100)
    played.fails(4, 100, probe=True)
    assert played.next_start(100) - 100 > first


def test_a_probe_that_comes_through_lets_twice_as_many_flow_each_round() -> None:
    played = Played().is_down()
    played.start(20)
    noted = played.succeeds(20, probe=True)
    assert noted.change is Change.BACK
    assert noted.tried is not None
    assert noted.tried.gone
    flows = []
    at = 20.1
    while played.gate.phase is Phase.RAMP:
        flows.append(played.may_start(at, waiting=1000))
        played.start(at, flows[-1])
        for _ in range(flows[-1]):
            played.succeeds(at)
        at += 0.1
    assert flows == [2, 4, 8, 16, 32]
    assert sum(flows[-1:]) * 2 >= WIDE_OPEN
    assert played.gate.is_wide_open


def test_a_reply_shows_that_a_backend_that_could_not_be_reached_is_back() -> None:
    """Even a reply that refuses that one message."""
    played = Played().is_down()
    played.start(20)
    noted = played.fails(3, 20, DEFERRED, probe=True)
    assert noted.change is Change.BACK
    assert noted.own


def test_those_of_a_ramp_whose_process_died_hold_up_nobody_for_ever() -> None:
    played = Played().is_down()
    played.start(20)
    played.succeeds(20, probe=True)
    played.start(21, 2)
    assert played.may_start(22, waiting=10) == 0
    assert played.may_start(21 + LEASE, waiting=10) == 1


def test_a_backend_that_falls_under_its_backlog_is_drained_at_half_the_rate() -> None:
    played = Played().is_down()
    played.start(20)
    played.succeeds(20, probe=True)
    for n in range(40):
        played.succeeds(20.5)
        assert played.gate.drain_rate is None, n
    played.fails(50, 21, accepted=40)
    played.fails(51, 21, accepted=40)
    assert played.gate.phase is Phase.OPEN
    assert played.gate.drain_rate is None, "it may have been noise: a probe shows it"
    played.start(22)
    played.fails(52, 22, probe=True)
    assert played.gate.drain_rate == 2.0  # 40 in 10 s, halved
    played.start(40)
    played.fails(53, 40, probe=True)
    assert played.gate.drain_rate == 2.0, "it fell over once"
    played.start(60)
    played.succeeds(60, probe=True)
    flowed = 0
    for tick in range(1000):
        at = 60.1 + tick / 100
        count = played.may_start(at, waiting=1000)
        played.start(at, count) if count else None
        for _ in range(count):
            played.succeeds(at)
        flowed += count
    assert 18 <= flowed <= 23  # ten seconds
    played.gate.run_dry(NOW + 71)
    assert played.gate.phase is Phase.CLOSED
    assert played.gate.drain_rate == 2.5


def test_a_failure_by_chance_does_not_slow_a_drain() -> None:
    """Of 100 mails of a backlog one fails alone: were the rate halved each time, the drain would never end."""
    played = Played().is_down()
    played.start(20)
    played.succeeds(20, probe=True)
    for at in range(21, 25):
        played.succeeds(at)
        assert played.fails(at, at, accepted=40).change is Change.OPENED
        played.start(at + 0.5)
        played.succeeds(at + 0.5, probe=True)
    assert played.gate.drain_rate is None


def test_a_backend_that_was_down_for_other_reasons_keeps_its_full_rate() -> None:
    played = Played().is_down()
    played.start(20)
    played.succeeds(20, probe=True)
    played.fails(50, 500, accepted=40)
    played.fails(51, 501, accepted=40)
    assert played.gate.drain_rate is None


def test_throttling_is_learned_as_a_rate() -> None:
    """Of a backend that takes four a second, from refusals alone."""
    rate, taken, refused, bucket, now = Rate(), 0, 0, 0.0, 0.0
    rate.throttle(NOW, NOW, accepted=100)
    for tick in range(60_000):
        now = tick / 100
        bucket = min(4.0, bucket + 0.04)
        assert rate.per_second is not None
        if rate.tokens_now(NOW + now, rate.per_second) < 1:
            continue
        rate.take(NOW + now, 1, rate.per_second)
        if bucket >= 1:
            bucket -= 1
            taken += 1
            rate.succeed()
        else:
            refused += 1
            rate.throttle(NOW + now, NOW + now, accepted=0)
    assert taken > 0.93 * 4 * 600
    assert refused < 0.06 * taken


def test_a_rate_never_stops_all() -> None:
    rate = Rate()
    rate.throttle(NOW, NOW, accepted=100)
    for n in range(1, 1000):
        rate.succeed()
        rate.throttle(NOW + 100 * n, NOW + 100 * n, accepted=0)
    assert rate.per_second == SLOWEST


def test_a_rate_that_holds_nothing_back_is_forgotten() -> None:
    rate = Rate()
    rate.throttle(NOW, NOW, accepted=100)
    assert rate.per_second == FIRST_RATE
    rate.take(NOW + FORGOTTEN_SECONDS + 1, 1, rate.per_second)
    assert rate.per_second is None


@pytest.mark.parametrize(
    ("accepted", "least"),
    [
        (1, 0.2),  # in ten seconds, by chance, of a backend that takes one every four
        (2, 0.3),
        (100, 8.0),
    ],
)
def test_the_first_rate_is_rather_too_high_than_too_low(accepted: int, least: float) -> None:
    """Too low a one grows for ten minutes while all wait; too high a one is cut at the next refusal."""
    rate = Rate()
    rate.throttle(NOW, NOW, accepted)
    assert rate.per_second is not None
    assert least < rate.per_second < 2 * least


def test_several_refusals_in_a_row_lower_a_rate_once() -> None:
    rate = Rate()
    rate.throttle(NOW, NOW, accepted=100)
    for n in range(1, 5):
        rate.throttle(NOW + n, NOW + n, accepted=100)
    assert rate.per_second == FIRST_RATE
    rate.succeed()
    rate.throttle(NOW + 10, NOW + 10, accepted=1)
    assert rate.per_second == pytest.approx(0.7 * FIRST_RATE, rel=0.01)


def test_a_throttled_message_waits_at_the_gate() -> None:
    played = Played()
    noted = played.fails(1, 0, THROTTLED, accepted=100)
    assert noted == Noted()
    assert not played.gate.is_wide_open
    assert played.next_start(0) == pytest.approx(1 / FIRST_RATE)


def test_a_clock_that_jumps_changes_no_more_than_one_wait() -> None:
    """Back by a day, ahead by a year: it waits for a time that is near, and no number overflows."""
    played = Played().is_down()
    assert played.next_start(-86_400) <= played.gate.failed_at - NOW + HORIZON
    played.start(-86_400)
    noted = played.fails(3, -86_400, probe=True)
    assert noted.tried is not None
    assert played.gate.failed_at == NOW + 1
    assert played.may_start(365 * 86_400.0) == 1


def test_ten_million_failures_change_nothing_in_its_size() -> None:
    """Here ten thousand, by as many deliveries; what is kept of them is bounded."""
    table = fit({}, NOW, lone={RECEIVER: {"451": (500.0, 500.0)}})
    played = Played(table)
    for n in range(10_000):
        played.fails(n, n / 100, DEFERRED)
    played.is_down(since=200.0)
    for n in range(10_000):
        played.fails(n, 300 + n, probe=True)
    assert len(played.gate.to_json()) < 2000
    assert played.next_start(10_300) > 10_300


def test_it_survives_its_row() -> None:
    played = Played().is_down()
    played.start(20)
    played.succeeds(20, probe=True)
    played.fails(9, 21, THROTTLED, accepted=7)
    assert Gate.from_json(played.gate.to_json()) == played.gate


def test_the_threshold_is_more_than_one_lone_failure_of_any_kind_weighs() -> None:
    """Unless it is known to be rarer than one in ninety."""
    for cause in (UNREACHABLE, TIMEOUT, DEFERRED):
        assert evidence(None, RECEIVER, cause, 0.0) < THRESHOLD


def test_throttling_replies_of_a_backend_that_takes_nothing_are_an_outage() -> None:
    """No rate can be learned of them: probes follow, and the first that comes through lets the others flow."""
    played = Played()
    assert played.fails(1, 0, THROTTLED).own
    assert played.fails(2, 1, THROTTLED).change is Change.OPENED
    assert played.gate.rate.per_second is None
    played.start(20)
    assert not played.fails(3, 20, THROTTLED, probe=True).own
    assert played.gate.phase is Phase.OPEN
    played.start(60)
    assert played.succeeds(60, probe=True).change is Change.BACK


def test_a_person_may_ask_for_the_next_probe() -> None:
    played = Played().is_down()
    assert played.may_start(2) == 0
    played.gate.asked = True
    assert played.may_start(2) == 1
    played.start(2)
    played.fails(3, 2, probe=True)
    assert played.may_start(2.1) == 0


def test_what_a_ramp_let_start_and_was_not_tried_is_given_back() -> None:
    played = Played().is_down()
    played.start(20)
    played.succeeds(20, probe=True)
    played.start(21, 2)
    played.gate.give_back(NOW + 21)
    assert played.may_start(21, waiting=10) == 1


def test_moments_of_a_time_to_come_are_pulled_back_and_ages_stay() -> None:
    played = Played().is_down(since=3600)
    age = played.gate.failed_at - played.gate.since
    assert played.gate.pull_back(NOW, LEASE)
    assert (played.gate.failed_at, played.gate.failed_at - played.gate.since) == (NOW, age)
    assert not played.gate.pull_back(NOW, LEASE)


def test_throttling_replies_in_the_midst_of_traffic_are_an_outage_where_nothing_passes_any_more() -> None:
    """As of a server that is restarted, or whose disk is full. What they did to the rate is undone."""
    played = Played()
    assert played.fails(1, 0, THROTTLED, accepted=100) == Noted()
    assert played.fails(2, 1, THROTTLED, accepted=90).own
    assert played.fails(3, 2, THROTTLED, accepted=80).change is Change.OPENED
    played.start(9)
    assert not played.fails(4, 9, THROTTLED, accepted=10, probe=True).own
    assert played.gate.phase is Phase.OPEN
    played.start(60)
    assert played.succeeds(60, probe=True).change is Change.BACK
    assert played.gate.rate.per_second is None


def test_an_outage_leaves_the_rate_that_was_known_before() -> None:
    played = Played()
    played.fails(1, 0, THROTTLED, accepted=100)
    played.succeeds(0.5)
    known = played.gate.rate.per_second
    for n in (2, 3, 4):
        played.fails(n, n, THROTTLED)
    assert played.gate.phase is Phase.OPEN
    played.start(9)
    played.fails(5, 9, THROTTLED, probe=True)
    assert played.gate.phase is Phase.OPEN
    assert played.gate.rate.per_second == known


def test_an_alarm_that_the_first_probe_refutes_leaves_the_lower_rate() -> None:
    """The rate was more than twice what the backend takes: it is no outage."""
    played = Played()
    played.fails(1, 0, THROTTLED, accepted=100)
    played.fails(2, 1, THROTTLED)
    played.fails(3, 2, THROTTLED)
    assert played.gate.phase is Phase.OPEN
    played.start(3)
    assert played.succeeds(3, probe=True).change is Change.BACK
    assert played.gate.rate.per_second == pytest.approx(FIRST_RATE, rel=0.01)


def test_a_throttling_reply_between_them_shows_that_lone_failures_are_no_outage() -> None:
    played = Played()
    played.fails(1, 0)
    played.fails(2, 1, THROTTLED, accepted=100)
    assert played.fails(3, 2).own
    assert played.gate.phase is Phase.CLOSED
