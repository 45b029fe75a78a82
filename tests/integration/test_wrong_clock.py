"""The wall clock ran ahead and was set back: no moment further ahead than any policy sets is believed."""

from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import text

from app.answers import RetryAfter
from app.bus import Filter, lifecycle, queries
from app.errors import Unreachable
from app.events import OrderCreated, order_created
from tests.support.shop import FixedWait, Shop
from tests.support.waiting import until

AHEAD = 86400.0
LEASE = 30.0


class Answering:
    """A receiver that gives these answers, one after the other, and then nothing."""

    __name__ = "answering"

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.calls = 0

    def __call__(self, sender: str, event: OrderCreated) -> Any:
        self.calls += 1
        answer = self.answers.pop(0) if self.answers else None
        if isinstance(answer, Exception):
            raise answer
        return answer


def test_what_failed_while_the_clock_ran_ahead_is_due_when_it_is_set_back(shop: Shop) -> None:
    shop.only(Answering(ValueError("once")))
    shop.clock.jump(AHEAD)
    shop.place_order()
    shop.dispatch()
    shop.clock.jump(-AHEAD)
    assert shop.dispatch() == []

    assert shop.dispatcher.pull_back() == 1
    assert [end.state for end in shop.dispatch()] == ["done"]


def test_what_was_placed_and_not_dealt_with_yet_is_due(shop: Shop) -> None:
    shop.only(Answering())
    shop.clock.jump(AHEAD)
    shop.place_order()
    shop.clock.jump(-AHEAD)
    assert shop.dispatcher.pull_back() == 1
    assert [end.state for end in shop.dispatch()] == ["done"]


def test_what_waits_as_long_as_the_policy_says_is_left_alone(shop: Shop) -> None:
    """Not a second more."""
    shop.only(Answering(ValueError("once")))
    shop.policy.seconds = FixedWait.maximum
    shop.place_order()
    shop.dispatch()
    assert shop.dispatcher.pull_back() == 0
    shop.clock.jump(-1)
    assert shop.dispatcher.pull_back() == 1


@pytest.mark.parametrize("seconds", [FixedWait.maximum + 1, 1e9, float("inf")])
def test_a_receiver_is_asked_again_after_the_longest_wait_of_the_policy(shop: Shop, seconds: float) -> None:
    shop.only(Answering(RetryAfter(seconds, "not yet")))
    shop.place_order()
    shop.dispatch()
    assert shop.dispatcher.pull_back() == 0
    shop.clock.advance(FixedWait.maximum - 1)
    assert shop.dispatch() == []
    shop.clock.advance(1)
    assert [end.state for end in shop.dispatch()] == ["done"]


def test_a_dead_processs_lease_from_a_time_to_come_ends_one_lease_from_now(shop: Shop) -> None:
    receiver = Answering()
    shop.only(receiver)
    shop.clock.jump(AHEAD)
    shop.place_order()
    shop.bus.dispatcher().claim({"answering": 1})  # and dies
    shop.clock.jump(-AHEAD)

    assert shop.dispatcher.pull_back() == 1
    shop.clock.advance(LEASE - 1)
    assert shop.dispatch() == []
    shop.clock.advance(1)
    assert [end.state for end in shop.dispatch()] == ["done"]
    assert shop.outcomes("answering") == ["unknown", "ok"]


def test_a_living_processs_lease_is_not_taken_from_it(shop: Shop) -> None:
    receiver = Answering()
    shop.only(receiver)
    living = shop.bus.dispatcher()
    shop.clock.jump(AHEAD)
    shop.place_order()
    leases = living.claim({"answering": 1})
    shop.clock.jump(-AHEAD)

    assert shop.dispatcher.pull_back() == 1
    assert shop.dispatch() == []
    for _ in range(6):
        shop.clock.advance(LEASE / 3)
        living.heartbeat()
        assert shop.dispatcher.pull_back() == 0
        assert shop.dispatch() == []
    assert [end.state for end in living.deliver(leases)] == ["done"]
    assert receiver.calls == 1


def test_a_probe_is_not_put_off_until_a_time_to_come(shop: Shop) -> None:
    shop.only(Answering(*[Unreachable("no route")] * 3))
    shop.policy.seconds = 1
    shop.clock.jump(AHEAD)
    shop.place_order()
    for _ in range(2):
        shop.dispatch()
        shop.clock.advance(1)
    with shop.database.read() as session:
        assert session.scalar(text("SELECT count(*) FROM circuit_breakers")) == 1
    shop.clock.jump(-AHEAD)

    assert shop.dispatcher.pull_back() == 2  # the delivery and the breaker
    assert [end.outcome for end in shop.dispatch()] == ["unreachable"]


def test_a_retry_by_a_person_is_due_too(shop: Shop) -> None:
    shop.only(Answering(ValueError("once")))
    shop.policy.attempts = 1
    shop.place_order()
    shop.dispatch()
    shop.clock.jump(AHEAD)
    assert shop.bus.retry(Filter(), by="test") == 1
    shop.clock.jump(-AHEAD)
    assert shop.dispatcher.pull_back() == 1
    assert [end.state for end in shop.dispatch()] == ["done"]


def test_a_dead_dispatcher_of_a_time_to_come_does_not_count_as_alive(shop: Shop) -> None:
    dead = shop.bus.dispatcher()
    shop.clock.jump(AHEAD + 60)
    dead.heartbeat()
    shop.clock.jump(-AHEAD - 60)
    shop.dispatcher.heartbeat()
    with shop.database.read() as session:
        alive = queries.dispatchers(session, shop.clock.now(), timedelta(seconds=30))
    assert [each.name for each in alive] == [shop.dispatcher.name]
    shop.dispatcher.sign_off()
    with shop.database.read() as session:
        assert queries.dispatchers(session, shop.clock.now(), timedelta(seconds=30)) == []
    assert shop.count("dispatchers") == 1, "the last one's settings are kept"


def test_events_of_a_time_to_come_keep_nothing_behind_them_from_being_forgotten(shop: Shop) -> None:
    def place(order_id: str) -> None:
        with order_created.muted():
            shop.place_order(order_id)

    shop.clock.jump(AHEAD * 365)
    place("ahead")
    shop.clock.jump(-AHEAD * 365)
    place("behind")
    shop.clock.advance(91 * 86400)
    place("young")
    assert shop.bus.prune() == 1
    shop.clock.advance(366 * 86400)
    assert shop.bus.prune() == 2


def test_a_dispatcher_looks_by_itself_when_it_starts(shop: Shop) -> None:
    shop.only(Answering())
    shop.clock.jump(AHEAD)
    shop.place_order()
    shop.clock.jump(-AHEAD)
    shop.engine.start()
    until(lambda: shop.delivery("answering").state == "done")


def test_what_was_pulled_back_is_told(shop: Shop) -> None:
    told: list[int] = []

    def listener(_: object, count: int) -> None:
        told.append(count)

    with lifecycle.times_pulled_back.connected_to(listener):
        shop.clock.jump(AHEAD)
        shop.place_order()
        shop.dispatcher.pull_back()
        shop.clock.jump(-AHEAD)
        shop.dispatcher.pull_back()
    assert told == [2]
