"""Transactional receivers of what an answer publishes run in the transaction that publishes it."""

from collections.abc import Callable
from typing import Any

import pytest

from app.answers import Discard, Done, RetryAfter
from app.db import Transaction
from app.errors import Unreachable
from app.events import NotificationSent, OrderCreated, notification_sent, order_created
from tests.support.shop import Shop

SENT = NotificationSent(order_id="1001", user_id="42", recipient="ann@example.com", message_id="<1@shop.example>")


def tell(sender: str, event: OrderCreated) -> Done:
    """A receiver with its effects elsewhere."""
    return Done(SENT)


def pay(transaction: Transaction, count: int = 1) -> None:
    transaction.driver.execute(f"UPDATE users SET orders_count = orders_count + {count}")


class Follower:
    """A transactional receiver: it writes, and then does as ``acts`` says, one for each call; else it returns."""

    __name__ = "follow"

    def __init__(self, *acts: Any) -> None:
        self.acts = list(acts)
        self.calls = 0

    def __call__(self, sender: str, event: NotificationSent, transaction: Transaction) -> Any:
        self.calls += 1
        pay(transaction)
        act = self.acts.pop(0) if self.acts else None
        if isinstance(act, BaseException):
            raise act
        return act


@pytest.fixture
def follow(shop: Shop) -> Callable[..., Follower]:
    def connected(*acts: Any) -> Follower:
        shop.only(tell)
        follower = Follower(*acts)
        shop.only(follower, notification_sent)
        shop.place_order(email="ann@example.com")
        return follower

    return connected


def test_it_is_done_with_the_answer_that_published_it(shop: Shop, follow: Callable[..., Follower]) -> None:
    follow()
    (told, followed) = shop.dispatch()
    assert (told.lease.receiver, followed.lease.receiver) == ("tell", "follow")
    assert shop.user().orders_count == 1
    delivery = shop.delivery("follow")
    assert (delivery.state, delivery.attempts, delivery.outcome) == ("done", 1, "ok")
    assert delivery.delivery_id == followed.lease.delivery_id
    assert delivery.leased_by == shop.dispatcher.name
    assert delivery.settled_at == delivery.created_at == shop.clock.now()
    assert shop.outcomes("follow") == ["ok"]
    assert shop.dispatch() == []
    cause, published = shop.timeline()
    assert published["cause_id"] == cause["event_id"]


@pytest.mark.parametrize(
    "act",
    [ValueError("no"), SystemExit(1), Unreachable(), RetryAfter(5, "later"), Discard("never"), "no answer"],
    ids=lambda act: type(act).__name__,
)
def test_where_it_does_not_succeed_it_is_tried_like_any_other(
    shop: Shop, follow: Callable[..., Follower], act: Any
) -> None:
    """Of that try nothing stays: no write, no attempt."""
    follow(act)
    (told,) = shop.dispatch()
    assert told.lease.receiver == "tell"
    assert shop.user().orders_count == 0
    delivery = shop.delivery("follow")
    assert (delivery.state, delivery.attempts, delivery.outcome, delivery.reason) == ("ready", 0, None, None)
    assert shop.outcomes("follow") == []
    (followed,) = shop.dispatch()
    assert (followed.lease.receiver, followed.state) == ("follow", "done")
    assert shop.user().orders_count == 1
    assert shop.outcomes("follow") == ["ok"]


def test_one_that_does_not_succeed_takes_the_others_back_and_not_the_answer(
    shop: Shop, follow: Callable[..., Follower]
) -> None:
    follow(ValueError("no"), None)

    def writes_too(sender: str, event: NotificationSent, transaction: Transaction) -> None:
        pay(transaction, 10)

    shop.receive(writes_too, notification_sent)
    shop.dispatch()
    assert shop.states() == {"tell": "done", "follow": "ready", "writes_too": "ready"}
    assert shop.user().orders_count == 0
    shop.dispatch()
    assert shop.states() == {"tell": "done", "follow": "done", "writes_too": "done"}
    assert shop.user().orders_count == 11


def test_one_with_its_effects_elsewhere_waits_for_the_commit(shop: Shop, follow: Callable[..., Follower]) -> None:
    follow()
    called: list[str] = []

    def elsewhere(sender: str, event: NotificationSent) -> None:
        called.append(event.order_id)

    shop.receive(elsewhere, notification_sent)
    shop.dispatch()
    assert shop.states() == {"tell": "done", "follow": "done", "elsewhere": "ready"}
    assert called == []
    shop.dispatch()
    assert called == ["1001"]


def test_an_open_circuit_breaker_holds_it_up(shop: Shop, follow: Callable[..., Follower]) -> None:
    follower = follow()
    shop.execute(
        "INSERT INTO circuit_breakers (receiver, opened_at, failures, probe_at) VALUES ('follow', :now, 2, :later)",
        now=shop.clock.now(),
        later=shop.clock.now().replace(year=2100),
    )
    shop.dispatch()
    assert follower.calls == 0
    assert shop.delivery("follow").state == "ready"


def test_after_a_death_it_waits_for_its_own_turn(shop: Shop, follow: Callable[..., Follower]) -> None:
    """It may be this receiver that killed the process: then the answer shall be stored before it is called again."""
    follower = follow()
    shop.bus.dispatcher().claim({"tell": 1})
    shop.clock.advance(90)
    (told,) = shop.dispatch()
    assert told.lease.in_doubt
    assert follower.calls == 0
    assert shop.states() == {"tell": "done", "follow": "ready"}


def test_of_a_lost_lease_nothing_follows(shop: Shop, follow: Callable[..., Follower]) -> None:
    follower = follow()
    (lease,) = shop.dispatcher.claim({"tell": 1})
    answer = shop.dispatcher.invoke(lease)
    shop.execute("UPDATE deliveries SET lease_token = lease_token + 1")
    assert shop.dispatcher.settle([(lease, answer)]) == []
    assert follower.calls == 0
    assert [kind for kind, _ in shop.events()] == ["OrderCreated"]


def test_what_it_publishes_itself_waits_for_a_dispatcher(shop: Shop, follow: Callable[..., Follower]) -> None:
    """One step at a time: a chain of receivers makes no transaction without an end."""
    again = OrderCreated(order_id="1001", user_id="42", total_price="1.00", email=None)  # type: ignore[arg-type]
    follow(Done(again), Done(again))
    shop.dispatch()
    assert [delivery.state for delivery in shop.deliveries("tell")] == ["done", "ready"]


def test_an_event_that_a_request_sends_is_not_delivered_in_its_transaction(shop: Shop) -> None:
    follower = Follower()
    shop.only(follower, order_created)
    shop.place_order()
    assert follower.calls == 0
    assert shop.delivery("follow").state == "ready"
