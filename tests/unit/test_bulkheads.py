"""Bulkheads: how many of a Celery worker's processes one receiver may occupy."""

from typing import Any

from app.engine.celery.bulkheads import Bulkheads


class Request:
    """One message, as Celery's worker hands it on."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.told: list[str] = []

    def on_success(self, result: Any) -> None:
        self.told.append("success")

    def on_failure(self, error: Any) -> None:
        self.told.append("failure")

    def on_timeout(self, soft: bool, timeout: float) -> None:
        self.told.append("soft" if soft else "hard")


def bulkheads(started: list[Request], **limits: int) -> Bulkheads:
    return Bulkheads(started.append, limits.get)


def test_a_receiver_without_a_limit_may_use_all() -> None:
    started: list[Request] = []
    hands = bulkheads(started, mail=2)
    for _ in range(5):
        hands(Request("records"))
    assert len(started) == 5


def test_what_is_beyond_the_limit_waits_in_its_order() -> None:
    started: list[Request] = []
    hands = bulkheads(started, mail=2)
    mails = [Request("mail") for _ in range(5)]
    for each in mails:
        hands(each)
    hands(Request("records"))
    assert [started.index(each) for each in mails[:2]] == [0, 1]
    assert len(started) == 3, "two mails, and the record"

    mails[0].on_success(None)
    assert started[-1] is mails[2]
    assert mails[0].told == ["success"]
    mails[1].on_failure(None)
    assert started[-1] is mails[3]


def test_what_no_process_had_begun_when_the_connection_broke_is_forgotten() -> None:
    """Celery tells no end of it, and the broker hands it out again: it must not keep its receiver's places for ever."""
    started: list[Request] = []
    hands = bulkheads(started, mail=2)
    begun, dropped, waiting = (Request("mail") for _ in range(3))
    for each in (begun, dropped, waiting):
        hands(each)
    hands.forget_all_but({begun})
    again = [Request("mail") for _ in range(2)]
    for each in again:
        hands(each)
    assert started == [begun, dropped, again[0]], "one place was free"

    dropped.on_failure(None)
    assert len(started) == 3, "its place was given to another long ago"
    begun.on_success(None)
    assert started[-1] is again[1]


def test_a_request_ends_once_however_often_that_is_told() -> None:
    """The soft limit is no end; the process that is killed at the hard one is told as a failure as well."""
    started: list[Request] = []
    hands = bulkheads(started, mail=1)
    mails = [Request("mail") for _ in range(3)]
    for each in mails:
        hands(each)
    mails[0].on_timeout(True, 1)
    assert started == mails[:1]
    mails[0].on_timeout(False, 2)
    mails[0].on_failure(None)
    assert started == mails[:2]
    assert mails[0].told == ["soft", "hard", "failure"]
