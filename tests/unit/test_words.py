"""Words for durations and moments, and the sentence about a receiver."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from app.bus.status import BreakerStatus, PauseStatus, ReceiverStatus, sentence
from app.bus.words import lasting, moment

NOW = datetime(2026, 11, 27, 23, 48, 40, tzinfo=UTC)

IDLE = ReceiverStatus(
    receiver="send_email_notification",
    is_connected=True,
    waiting=0,
    in_flight=0,
    retrying=0,
    next_try_at=None,
    oldest_waits_since=None,
    dead=0,
    skipped=0,
    skipped_among=10_000,
    skipped_because=None,
    ended=0,
    ended_within_seconds=60,
    drained_in_seconds=None,
    breaker=None,
    pause=None,
    is_exact=True,
)
WAITING = replace(IDLE, waiting=499, oldest_waits_since=NOW - timedelta(seconds=183))


@pytest.mark.parametrize(
    "seconds, words",
    [
        (-1, "0 s"),
        (0.9, "0 s"),
        (119, "119 s"),
        (120, "2 min"),
        (7199, "119 min"),
        (7200, "2 h"),
        (2 * 86400 - 1, "47 h"),
        (2 * 86400, "2 days"),
    ],
)
def test_durations(seconds: float, words: str) -> None:
    assert lasting(timedelta(seconds=seconds)) == words


def test_a_moment_of_another_day_has_its_date() -> None:
    assert moment(NOW - timedelta(hours=1), NOW) == "22:48:40"
    assert moment(NOW - timedelta(days=1), NOW) == "2026-11-26 23:48:40"


def test_an_outage_is_told_as_a_person_would() -> None:
    breaker = BreakerStatus(
        opened_at=datetime(2026, 11, 27, 23, 45, 37, tzinfo=UTC),
        failures=5,
        next_probe_at=NOW + timedelta(seconds=24.5),
        reason="mail.example:25 refused the connection; check that it runs, MAIL_SERVER and MAIL_PORT.",
    )
    assert sentence(replace(WAITING, breaker=breaker), NOW) == (
        "send_email_notification: paused by its circuit breaker since 23:45:37: mail.example:25 refused the "
        "connection; next probe in 24 s; 499 wait, the oldest for 3 min"
    )


@pytest.mark.parametrize(
    "status, words",
    [
        (IDLE, "nothing waits"),
        (replace(WAITING, waiting=1), "1 waits, the oldest for 3 min"),
        (replace(WAITING, in_flight=2), "499 wait, the oldest for 3 min; 2 in flight"),
        (
            replace(WAITING, retrying=1, next_try_at=NOW + timedelta(seconds=9)),
            "499 wait, the oldest for 3 min; 1 failed before, next try in 9 s",
        ),
        (replace(IDLE, dead=2, skipped=3), "nothing waits; 2 dead; 3 skipped among the latest 10,000 deliveries"),
        (
            replace(WAITING, ended=100, drained_in_seconds=299),
            "499 wait, the oldest for 3 min; 100 a minute; drained in 4 min",
        ),
        (replace(IDLE, dead=10_000, is_exact=False), "nothing waits; at least 10000 dead"),
    ],
)
def test_what_waits_failed_and_died(status: ReceiverStatus, words: str) -> None:
    assert sentence(status, NOW) == f"send_email_notification: {words}"


def test_of_what_waits_behind_a_breaker_no_next_try_is_told() -> None:
    """The probe comes first, whatever its own time is."""
    breaker = BreakerStatus(NOW, 2, NOW, None)
    told = sentence(replace(WAITING, retrying=7, next_try_at=NOW, breaker=breaker), NOW)
    assert told.endswith("a probe is due; 499 wait, the oldest for 3 min; 7 failed before")


def test_a_receiver_that_nobody_knows_is_told_with_the_cure() -> None:
    told = sentence(replace(WAITING, receiver="gone", is_connected=False), NOW)
    assert told.startswith("gone: nobody takes deliveries to 'gone', which is not connected; connect it, or discard")
    assert told.endswith("499 wait, the oldest for 3 min")


def test_a_pause_by_a_person_is_told_with_who_and_why() -> None:
    pause = PauseStatus(paused_at=NOW - timedelta(minutes=5), paused_by="cli:ann", reason="the provider asked for it")
    told = sentence(replace(WAITING, pause=pause, retrying=2, next_try_at=NOW), NOW)
    assert told.startswith(
        "send_email_notification: paused by cli:ann since 23:43:40: the provider asked for it; 499 wait"
    )
    assert "next try" not in told
