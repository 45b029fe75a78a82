"""The bus: what is remembered, what is delivered, and what happens when a receiver fails."""

import asyncio
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session

from app.answers import Discard, Done, RetryAfter
from app.bus import Dispatcher, Filter, LeaseEnd, lifecycle
from app.bus.claim import Claim
from app.bus.leases import Lease
from app.clock import uuid7
from app.db import Transaction
from app.errors import DatabaseUnavailable, Deferred, NestedTransaction, OutsideTransaction, Refused
from app.events import NotificationSent, OrderCreated, notification_sent, order_created
from app.orders import confirm_order, place_order, records, set_email
from tests.support.logging import handling
from tests.support.shop import Shop, not_begun
from tests.support.waiting import somebody_waits, until

CREATED = OrderCreated(order_id="1001", user_id="42", total_price=Decimal("19.99"))
SENT = NotificationSent(order_id="1001", user_id="42", recipient="a@b.example", message_id="<x@y>")


class Failing:
    """A receiver that fails a number of times, and remembers its calls."""

    __name__ = "failing"

    def __init__(self, times: int = 10**9, error: Exception | None = None) -> None:
        self.times, self.error, self.calls = times, error or RuntimeError("no luck"), 0

    def __call__(self, sender: Any, event: OrderCreated) -> None:
        self.calls += 1
        if self.calls <= self.times:
            raise self.error


# Publishing


def test_sending_outside_a_transaction_says_how_to_mend_it(shop: Shop) -> None:
    with pytest.raises(OutsideTransaction, match=r"inside db.transact\(work\)"):
        order_created.send("here", event=CREATED)


def test_a_transaction_in_a_transaction_is_refused_at_once(shop: Shop) -> None:
    """On SQLite the inner one would wait for a lock that the outer one holds."""
    with pytest.raises(NestedTransaction):
        shop.database.transact(lambda _: shop.database.transact(lambda _: None))


def test_what_is_rolled_back_leaves_nothing(shop: Shop) -> None:
    def work(transaction: Transaction) -> None:
        order_created.send("here", event=CREATED)
        raise KeyError

    with pytest.raises(KeyError):
        shop.database.transact(work)
    assert (shop.count("events"), shop.count("deliveries")) == (0, 0)
    shop.place_order()
    assert shop.count("orders") == 1


def test_an_event_without_receivers_is_stored_and_waits_for_nobody(shop: Shop) -> None:
    with order_created.muted():
        shop.place_order()
    assert (shop.count("events"), shop.count("deliveries")) == (1, 0)
    assert shop.dispatch() == []


def test_a_receiver_sees_the_order_that_the_event_tells_of(shop: Shop) -> None:
    seen = []

    def look(sender: str, event: OrderCreated, transaction: Transaction) -> None:
        seen.append((sender, transaction.session.execute(text("SELECT total_price FROM orders")).scalar_one()))

    shop.only(look)
    shop.place_order(price="0.30")
    shop.dispatch()
    assert [(sender, Decimal(price)) for sender, price in seen] == [("test", Decimal("0.30"))]


def test_what_a_receiver_publishes_carries_cause_and_correlation(shop: Shop) -> None:
    root = shop.place_order()
    shop.dispatch_all()
    first, second = shop.timeline()
    assert (first["event_id"], first["cause_id"], first["correlation_id"]) == (root, None, root)
    assert (second["type"], second["cause_id"], second["correlation_id"]) == ("NotificationSent", root, root)
    assert second["source"] == "send_email_notification"


def test_a_receiver_publishes_inside_its_own_transaction(shop: Shop) -> None:
    def publish(sender: str, event: OrderCreated, transaction: Transaction) -> None:
        notification_sent.send("publish", event=SENT)

    shop.only(publish)
    root = shop.place_order()
    shop.dispatch_all()
    assert [(e["type"], e["cause_id"]) for e in shop.timeline()] == [("OrderCreated", None), ("NotificationSent", root)]


def test_what_a_failing_receiver_published_is_gone(shop: Shop) -> None:
    heard: list[Any] = []

    def listener(_: object, events: list[Any]) -> None:
        heard.extend(event.type for event in events)

    def publish_and_fail(sender: str, event: OrderCreated, transaction: Transaction) -> None:
        notification_sent.send("here", event=SENT)
        raise RuntimeError

    shop.only(publish_and_fail)
    shop.place_order()
    with lifecycle.events_recorded.connected_to(listener):
        shop.dispatch()
    assert [e["type"] for e in shop.timeline()] == ["OrderCreated"]
    assert heard == []


# Delivering


def test_a_batch_locks_users_rows_in_the_order_in_which_others_do(shop: Shop) -> None:
    """Two dispatchers, or a dispatcher and the orders of a commit, would else wait for each other."""
    seen: list[tuple[str, str]] = []

    def look(sender: str, event: OrderCreated, transaction: Transaction) -> None:
        seen.append((event.user_id, event.order_id))

    shop.only(look)
    for order_id, user_id in (("1", "b"), ("2", "a"), ("3", "b"), ("4", "a")):
        shop.place_order(order_id, user_id)
    shop.dispatch()
    assert seen == [("a", "2"), ("a", "4"), ("b", "1"), ("b", "3")]


def test_one_bad_receiver_does_not_affect_the_others(shop: Shop) -> None:
    failing = Failing()
    shop.receive(failing)
    shop.place_order()
    shop.dispatch_all()
    assert shop.states() == {
        "update_user_order_record": "done",
        "send_email_notification": "done",
        "failing": "ready",
        "update_order_notification": "done",
    }


def test_a_retry_runs_only_the_receiver_that_failed(shop: Shop) -> None:
    failing = Failing(times=1)
    shop.receive(failing)
    shop.place_order()
    shop.dispatch_all()
    shop.clock.advance(60)
    shop.dispatch_all()
    assert failing.calls == 2
    assert shop.user().orders_count == 1
    assert len(shop.mailer.outbox) == 1


def test_a_failed_delivery_waits_as_long_as_the_policy_says(shop: Shop) -> None:
    """Not a second less, and then it is tried again."""
    shop.only(Failing(times=1))
    shop.place_order()

    (settled,) = shop.dispatch()
    assert (settled.state, settled.outcome) == ("ready", "bug")
    assert shop.delivery("failing").reason == "RuntimeError: no luck"

    shop.clock.advance(59.9)
    assert shop.dispatch() == []

    shop.clock.advance(0.1)
    assert [settled.state for settled in shop.dispatch()] == ["done"]
    assert shop.outcomes("failing") == ["bug", "ok"]


def test_a_delivery_goes_dead_when_the_budget_is_spent(shop: Shop) -> None:
    shop.only(Failing(error=Deferred("450 greylisted")))
    shop.place_order()
    for _ in range(3):
        shop.dispatch()
        shop.clock.advance(60)
    assert shop.outcomes("failing") == ["deferred", "deferred", "deferred"]
    delivery = shop.delivery("failing")
    assert (delivery.state, delivery.reason) == ("dead", "450 greylisted")
    assert shop.dispatch() == []


def test_a_refusal_is_not_tried_again(shop: Shop) -> None:
    failing = Failing(error=Refused("550 no such user"))
    shop.only(failing)
    shop.place_order()
    shop.dispatch_all()
    assert (failing.calls, shop.delivery("failing").state, shop.outcomes("failing")) == (1, "dead", ["refused"])


def test_giving_up_publishes_what_the_receiver_asked_for(shop: Shop) -> None:
    def announce(event: OrderCreated, reason: str) -> NotificationSent:
        return NotificationSent(order_id=event.order_id, user_id=event.user_id, recipient=reason, message_id="")

    shop.only(Failing(error=Refused("never")), when_dead=announce)
    root = shop.place_order()
    shop.dispatch_all()
    _, last = shop.timeline()
    assert (last["type"], last["data"]["recipient"], last["cause_id"]) == ("NotificationSent", "never", root)


def test_a_receiver_that_cannot_even_give_up_goes_dead_nonetheless(shop: Shop) -> None:
    def announce(event: OrderCreated, reason: str) -> NotificationSent:
        raise LookupError("oh")

    shop.only(Failing(error=Refused("never")), when_dead=announce)
    shop.place_order()
    shop.dispatch()
    delivery = shop.delivery("failing")
    assert (delivery.state, delivery.reason) == ("dead", "never; and when_dead failed: LookupError: oh")


def test_last_words_that_cannot_be_stored_keep_no_delivery_from_going_dead(shop: Shop) -> None:
    unstorable = NotificationSent(order_id="\ud800", user_id="42", recipient="", message_id="")
    shop.only(Failing(error=Refused("never")), when_dead=lambda event, reason: unstorable)
    shop.place_order()
    shop.dispatch()
    delivery = shop.delivery("failing")
    assert (delivery.state, shop.outcomes("failing")) == ("dead", ["refused"])
    assert delivery.reason.startswith("never; and when_dead failed: ")
    assert len(shop.timeline()) == 1


@pytest.mark.parametrize("transactional", [True, False])
def test_not_yet_spends_no_attempt(shop: Shop, transactional: bool) -> None:
    answers = [RetryAfter(10, "the stock is being counted"), None]

    def inside(sender: str, event: OrderCreated, transaction: Transaction) -> Any:
        return answers.pop(0)

    def outside(sender: str, event: OrderCreated) -> Any:
        return answers.pop(0)

    shop.only(inside if transactional else outside, name="patient")
    shop.place_order()
    shop.dispatch()
    delivery = shop.delivery("patient")
    assert (delivery.state, delivery.attempts, delivery.reason) == ("ready", 0, "the stock is being counted")
    assert shop.outcomes("patient") == []
    shop.clock.advance(9.9)
    assert shop.dispatch() == []
    shop.clock.advance(0.1)
    shop.dispatch()
    assert shop.delivery("patient").state == "done"


def test_a_receiver_may_answer_that_it_is_not_needed(shop: Shop) -> None:
    shop.only(lambda sender, event: Discard("not on Sundays"), name="sunday")
    shop.place_order()
    shop.dispatch_all()
    delivery = shop.delivery("sunday")
    assert (delivery.state, delivery.reason) == ("discarded", "not on Sundays")


@pytest.mark.parametrize("transactional", [True, False])
def test_a_reason_is_stored_though_a_column_cannot_take_all_of_it(shop: Shop, transactional: bool) -> None:
    answer = Discard("no\0t on \ud800" + 2000 * "x")

    def inside(sender: str, event: OrderCreated, transaction: Transaction) -> Any:
        return answer

    shop.only(inside if transactional else lambda sender, event: answer, name="odd")
    shop.place_order()
    shop.dispatch()
    delivery = shop.delivery("odd")
    assert (delivery.state, delivery.reason[:9]) == ("discarded", "not on ?x")


@pytest.mark.parametrize("answer", ["fine", Discard, 0, False])
def test_an_answer_of_another_kind_is_a_bug(shop: Shop, answer: Any) -> None:
    shop.only(lambda sender, event: answer, name="odd")
    shop.place_order()
    shop.dispatch()
    assert "return nothing, Done, Discard or RetryAfter" in (shop.delivery("odd").reason or "")


def test_publishing_what_is_no_event_is_a_bug_and_not_a_loop(shop: Shop) -> None:
    shop.only(lambda sender, event: Done("NotificationSent"), name="odd")  # type: ignore[arg-type]
    shop.place_order()
    shop.dispatch()
    assert (shop.delivery("odd").state, shop.outcomes("odd")) == ("ready", ["bug"])


def test_a_database_that_is_away_is_no_fault_of_the_delivery(shop: Shop) -> None:
    shop.only(Failing(times=1, error=DatabaseUnavailable()))
    shop.place_order()
    shop.dispatch()
    assert (shop.delivery("failing").state, shop.delivery("failing").attempts) == ("ready", 0)
    shop.clock.advance(5)
    shop.dispatch()
    assert shop.outcomes("failing") == ["ok"]


def test_what_nobody_expected_is_reported_with_its_traceback(shop: Shop) -> None:
    raised: list[Any] = []

    def listener(_: object, lease: Any, error: Exception) -> None:
        raised.append((lease.receiver, error))

    bug = LookupError("a bug")
    shop.only(Failing(error=bug))
    shop.place_order()
    with lifecycle.receiver_raised.connected_to(listener):
        shop.dispatch()
    assert raised == [("failing", bug)]
    assert bug.__traceback__ is not None


class GeventTimeout(BaseException):
    """As gevent's, and pytest's own outcomes: no Exception."""


class Wordless(Exception):
    """Its words can't be had."""

    def __str__(self) -> str:
        raise SystemExit("no words")


FOREIGN: dict[str, tuple[BaseException, str]] = {
    "SystemExit": (SystemExit(1), "SystemExit: 1"),
    "SystemExit without a code": (SystemExit(), "SystemExit: raised without a word"),
    "CancelledError": (asyncio.CancelledError(), "CancelledError: raised without a word"),
    "KeyboardInterrupt": (KeyboardInterrupt(), "KeyboardInterrupt: raised without a word"),
    "GeneratorExit": (GeneratorExit(), "GeneratorExit: raised without a word"),
    "StopIteration": (StopIteration(7), "StopIteration: 7"),
    "a BaseException of its own": (GeventTimeout("3 seconds"), "GeventTimeout: 3 seconds"),
    "MemoryError": (MemoryError(), "MemoryError: raised without a word"),
    "words that raise": (Wordless(), "Wordless: its words can't be shown, because that raises SystemExit"),
}


@pytest.mark.parametrize("transactional", [True, False])
@pytest.mark.parametrize("kind", FOREIGN)
def test_whatever_a_receiver_raises_is_its_own_failed_attempt(shop: Shop, kind: str, transactional: bool) -> None:
    """The others of its batch are done, of its own work nothing stays, and its thread goes on."""
    error, reason = FOREIGN[kind]

    def work(event: OrderCreated) -> None:
        if event.order_id == "2":
            raise error

    def inside(sender: str, event: OrderCreated, transaction: Transaction) -> None:
        set_email(transaction, f"user of {event.order_id}", "a@b.example")
        transaction.flush()
        work(event)

    def outside(sender: str, event: OrderCreated) -> None:
        work(event)

    shop.only(inside if transactional else outside, name="foreign")
    for order_id in "123":
        shop.place_order(order_id)
    shop.dispatch()
    states = {(delivery.state, delivery.reason) for delivery in shop.deliveries("foreign")}
    assert states == {("done", None), ("ready", reason)}
    assert shop.count("users") == (2 if transactional else 0)
    assert shop.execute_scalar("SELECT outcome FROM attempts WHERE outcome != 'ok'") == "bug"


class LazyAnswer:
    """An answer that raises as soon as it is looked at, as a proxy outside its context does."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        raise self.error


class LazyEvent:
    """What is published and raises when it is stored."""

    def __str__(self) -> str:
        raise SystemExit("too late")


@pytest.mark.parametrize("transactional", [True, False])
@pytest.mark.parametrize(
    "answer, reason",
    [
        (lambda: LazyAnswer(SystemExit("late")), "SystemExit: late"),
        (lambda: RetryAfter("soon", "no number"), "TypeError: "),  # type: ignore[arg-type]
        (lambda: Done(replace(SENT, recipient=LazyEvent())), "SystemExit: too late"),  # type: ignore[arg-type]
    ],
)
def test_an_answer_that_raises_when_it_is_used_is_a_failed_attempt(
    shop: Shop, answer: Callable[[], Any], reason: str, transactional: bool
) -> None:
    def inside(sender: str, event: OrderCreated, transaction: Transaction) -> Any:
        set_email(transaction, f"user of {event.order_id}", "a@b.example")
        transaction.flush()
        return answer() if event.order_id == "1" else None

    def outside(sender: str, event: OrderCreated) -> Any:
        return answer() if event.order_id == "1" else None

    shop.only(inside if transactional else outside, name="lazy")
    for order_id in "12":
        shop.place_order(order_id)
    shop.dispatch()
    first, second = shop.deliveries("lazy")
    assert (first.state, second.state) == ("ready", "done")
    assert (first.reason or "").startswith(reason)
    assert shop.count("users") == transactional, "of its own work nothing stays"


def test_what_hangs_around_a_receiver_may_raise_anything_too(shop: Shop) -> None:
    """The teardown of its application context, a listener, somebody's log handler."""

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise GeventTimeout("the log")

    def leave(*_: object, **__: object) -> None:
        raise SystemExit("at the end of the context")

    shop.app.teardown_appcontext(leave)
    shop.only(Failing(times=0))
    shop.place_order()
    with handling(Handler()), lifecycle.deliveries_settled.connected_to(leave):
        shop.dispatch()
    assert (shop.delivery("failing").state, shop.delivery("failing").reason) == (
        "ready",
        "SystemExit: at the end of the context",
    )


def test_when_dead_may_raise_anything_too(shop: Shop) -> None:
    def announce(event: OrderCreated, reason: str) -> NotificationSent:
        raise SystemExit(3)

    shop.only(Failing(error=Refused("never")), when_dead=announce)
    shop.place_order()
    shop.dispatch()
    delivery = shop.delivery("failing")
    assert (delivery.state, delivery.reason) == ("dead", "never; and when_dead failed: SystemExit: 3")


def test_a_failed_receivers_partial_work_never_stays(shop: Shop) -> None:
    error: list[Exception | None] = [RuntimeError("half way")]

    def half(sender: str, event: OrderCreated, transaction: Transaction) -> None:
        set_email(transaction, "halved", "a@b.example")
        if failure := error.pop():
            raise failure
        error.append(None)

    shop.only(half)
    shop.place_order()
    shop.dispatch()
    assert shop.count("users") == 0
    error.append(None)
    shop.clock.advance(60)
    shop.dispatch()
    assert shop.count("users") == 1


def test_of_a_batch_only_what_failed_is_tried_again(shop: Shop) -> None:
    answers: dict[str, Any] = {"2": RuntimeError("a bug"), "4": RetryAfter(5, "not yet"), "5": Done("nonsense")}  # type: ignore[arg-type]
    called: list[str] = []

    def count_up(sender: str, event: OrderCreated, transaction: Transaction) -> Any:
        called.append(event.order_id)
        confirm_order(transaction, event.order_id)
        if isinstance(answer := answers.get(event.order_id), Exception):
            raise answer
        return answer

    shop.only(count_up)
    for number in range(1, 7):
        shop.place_order(f"{number}")
    shop.dispatch()
    assert [delivery.state for delivery in shop.deliveries()] == ["done", "ready", "done", "ready", "ready", "done"]
    assert shop.user().orders_count == 3
    assert [called.count(failed) for failed in answers] == [1, 1, 1]
    answers.clear()
    shop.clock.advance(600)
    shop.dispatch_all()
    assert shop.user().orders_count == 6
    attempts = [
        outcome for (outcome,) in shop.execute_all("SELECT outcome FROM attempts ORDER BY delivery_id, attempt_id")
    ]
    assert attempts == ["ok", "bug", "ok", "ok", "ok", "bug", "ok", "ok"]


@pytest.mark.parametrize("answer", [Done("nonsense"), Discard("no", "nonsense")])  # type: ignore[arg-type]
def test_the_work_of_a_receiver_whose_answer_cannot_be_stored_does_not_stay(shop: Shop, answer: Any) -> None:
    def half(sender: str, event: OrderCreated, transaction: Transaction) -> Any:
        set_email(transaction, "halved", "a@b.example")
        return answer

    shop.only(half)
    shop.place_order()
    shop.dispatch()
    assert (shop.count("users"), shop.delivery("half").state, shop.outcomes("half")) == (0, "ready", ["bug"])


def test_a_broken_statement_spoils_only_its_own_receiver(shop: Shop) -> None:
    """On PostgreSQL an error ends the transaction, unless it happens in a savepoint."""

    def broken(sender: str, event: OrderCreated, transaction: Transaction) -> None:
        transaction.session.execute(text("SELECT nothing FROM nowhere"))

    shop.receive(broken)
    shop.place_order()
    shop.dispatch_all()
    assert shop.states()["update_user_order_record"] == "done"
    assert (shop.delivery("broken").state, shop.outcomes("broken")) == ("ready", ["bug"])


def test_every_receiver_gets_just_what_it_names(shop: Shop) -> None:
    seen: list[Any] = []

    def all_of_it(sender: str, event: OrderCreated, transaction: Transaction, delivery: Any) -> None:
        seen.append((sender, event.order_id, isinstance(transaction, Transaction), delivery.event_id, delivery.spent))

    def nothing(sender: str) -> None:
        seen.append(sender)

    def anything(sender: str, **rest: Any) -> None:
        seen.append(sorted(rest))

    for receiver in (all_of_it, nothing, anything):
        shop.receive(receiver)
    event_id = shop.place_order()
    shop.dispatch()
    assert seen == [("test", "1001", True, event_id, 0), "test", ["delivery", "event"]]


# Faults


@pytest.mark.parametrize("damage", ["{", '{"order_id": 5}', "null", "\u0001"])
def test_an_undecodable_event_goes_dead_with_its_bytes_intact(shop: Shop, damage: str) -> None:
    shop.place_order()
    shop.execute("UPDATE events SET data = :damage", damage=damage)
    shop.place_order("1002")
    shop.dispatch_all()
    dead = [delivery for delivery in shop.deliveries() if delivery.state == "dead"]
    assert [delivery.receiver for delivery in dead] == ["update_user_order_record", "send_email_notification"]
    assert all((delivery.reason or "").startswith("undecodable event: ") for delivery in dead)
    assert shop.order("1002").status == "confirmed"
    with shop.database.read() as session:
        assert session.execute(text("SELECT data FROM events ORDER BY position LIMIT 1")).scalar_one() == damage


def test_text_that_is_no_longer_utf_8_breaks_no_query(shop: Shop) -> None:
    if not shop.database.is_sqlite:
        pytest.skip("PostgreSQL refuses to store it")
    shop.place_order()
    shop.execute("UPDATE events SET data = CAST(x'7bff' AS TEXT)")
    shop.place_order("1002")
    shop.dispatch_all()
    assert {d.state for d in shop.deliveries()} == {"dead", "done"}
    assert shop.timeline()[0]["data"] == "{\ufffd"
    with shop.database.read() as session:
        assert session.execute(text("SELECT hex(data) FROM events LIMIT 1")).scalar_one() == "7BFF"


def test_poison_at_the_head_does_not_starve_what_comes_later(shop: Shop) -> None:
    calls: list[str] = []

    def choosy(sender: str, event: OrderCreated) -> None:
        calls.append(event.order_id)
        if event.order_id.startswith("bad"):
            raise RuntimeError

    shop.only(choosy)
    for n in range(25):
        shop.place_order(f"bad-{n}")
    shop.place_order("good")
    shop.dispatch()
    shop.dispatch()
    assert "good" in calls


def test_what_failed_waits_behind_what_was_not_tried(shop: Shop) -> None:
    """Both are due; the one that failed was recorded first, and became due last."""
    shop.only(Failing(times=1))
    for order_id in ("failed", "untried"):
        shop.place_order(order_id)
    shop.dispatcher.deliver(shop.dispatcher.claim({"failing": 1}))
    shop.clock.advance(60)
    assert [lease.order_id for lease in shop.dispatcher.claim({"failing": 2})] == ["untried", "failed"]


def test_a_receiver_that_is_gone_is_a_visible_error_and_no_endless_loop(shop: Shop) -> None:
    missing: list[str] = []

    def listener(_: object, lease: Any) -> None:
        missing.append(lease.receiver)

    shop.only(Failing(times=0), name="old_name")
    shop.place_order()
    order_created.disconnect(order_created.subscriptions["old_name"].receiver)
    assert shop.dispatch() == []
    assert shop.dispatcher.claim_without_receiver() == []  # a process that knows it may just be busy

    shop.clock.advance(61)
    with lifecycle.receiver_missing.connected_to(listener):
        (lease,) = shop.dispatcher.claim_without_receiver()
        (settled,) = shop.dispatcher.deliver([lease])
    assert missing == ["old_name"]
    assert (settled.state, settled.outcome) == ("ready", None)
    delivery = shop.delivery("old_name")
    assert delivery.attempts == 0
    assert delivery.reason == "no receiver named 'old_name' is connected to OrderCreated; connect it, or discard this"

    shop.clock.advance(86400)
    shop.dispatcher.deliver(shop.dispatcher.claim_without_receiver())
    assert shop.delivery("old_name").state == "dead"
    assert shop.outcomes("old_name") == []


def test_a_receiver_that_comes_back_gets_what_waited(shop: Shop) -> None:
    """As in a rolling deploy, where the old code does not know it yet."""
    receiver = Failing(times=0)
    shop.only(receiver, name="newcomer")
    shop.place_order()
    order_created.disconnect(receiver)
    shop.clock.advance(61)
    shop.dispatcher.deliver(shop.dispatcher.claim_without_receiver())
    order_created.connect(receiver, name="newcomer")
    shop.clock.advance(60)
    shop.dispatch()
    assert (receiver.calls, shop.delivery("newcomer").state, shop.delivery("newcomer").attempts) == (1, "done", 1)


def test_a_listener_that_fails_harms_nobody(shop: Shop, caplog: pytest.LogCaptureFixture) -> None:
    def listener(*_: object, **__: object) -> None:
        raise RuntimeError("deaf")

    with lifecycle.deliveries_settled.connected_to(listener), lifecycle.events_recorded.connected_to(listener):
        shop.place_order()
        shop.dispatch_all()
    assert set(shop.states().values()) == {"done"}


# Leases


def test_two_dispatchers_share_a_backlog_without_double_effect(shop: Shop) -> None:
    shop.place_orders(60)
    dispatchers = [shop.bus.dispatcher() for _ in range(2)]
    failures: list[BaseException] = []

    def drain(dispatcher: Dispatcher) -> None:
        try:
            while dispatcher.run_once():
                pass
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=drain, args=(dispatcher,)) for dispatcher in dispatchers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    shop.dispatch_all()
    assert failures == []
    assert (shop.user().orders_count, shop.user().total_spent) == (60, Decimal("1199.40"))
    assert len({message.msgId for message in shop.mailer.outbox}) == len(shop.mailer.outbox) == 60


@pytest.mark.postgres
@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_what_another_is_claiming_at_this_moment_is_passed_over(shop: Shop) -> None:
    """Not waited for, and not taken twice. On SQLite nobody else can be claiming: it has one write lock."""
    shop.only(lambda sender, event: None, name="plain")
    shop.place_order("1")
    shop.place_order("2")
    others: list[Lease] = []

    def claim(transaction: Transaction) -> list[Lease]:
        first = Claim(transaction, shop.dispatcher.retries, timedelta(seconds=30), "first", alone=False)
        first.take("plain", 1)
        other = threading.Thread(target=lambda: others.extend(shop.bus.dispatcher().claim({"plain": 5})))
        other.start()
        other.join(4)
        return first.leases

    taken = shop.database.transact(claim)
    assert [lease.order_id for lease in taken + others] == ["1", "2"]


@pytest.mark.postgres
@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_what_is_about_to_be_settled_is_not_taken_over(shop: Shop) -> None:
    """Its lease ends while its receiver runs. On SQLite nobody else can be claiming."""
    other = shop.bus.dispatcher()
    taken: list[Lease] = []

    def slow(sender: str, event: OrderCreated, transaction: Transaction) -> None:
        shop.clock.advance(30)
        claiming = threading.Thread(target=lambda: taken.extend(other.claim({"slow": 1})))
        claiming.start()
        claiming.join(20)

    shop.only(slow)
    shop.place_order()
    assert [end.state for end in shop.dispatch()] == ["done"]
    assert taken == []


@pytest.mark.postgres
@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_two_orders_of_one_user_counted_at_once_are_both_counted(shop: Shop) -> None:
    """The second to come waits for the first one's row, and reads it again."""
    shop.place_order("1")
    shop.place_order("2")
    shop.database.transact(lambda transaction: set_email(transaction, "42", "a@b.example"))
    counted: list[threading.Thread] = []

    def first(transaction: Transaction) -> None:
        confirm_order(transaction, "1")
        transaction.session.flush()
        second = threading.Thread(target=lambda: shop.database.transact(lambda inner: confirm_order(inner, "2")))
        second.start()
        until(lambda: somebody_waits(shop.database))
        counted.append(second)

    shop.database.transact(first)
    counted[0].join(20)
    assert (shop.user().orders_count, shop.user().total_spent) == (2, Decimal("39.98"))


@pytest.mark.postgres
@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_two_orders_of_one_user_read_at_once_are_both_counted(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second comes when the first is about to add to the record."""
    shop.place_order("1", email="a@b.example")
    shop.place_order("2")
    second = threading.Thread(
        target=lambda: shop.database.transact(lambda transaction: confirm_order(transaction, "2"))
    )
    add_to_record = records.ADD_TO_RECORD

    def add_late(transaction: Transaction, values: Any) -> Any:
        if values["order_id"] == "1":
            second.start()
            until(lambda: somebody_waits(shop.database) or not second.is_alive())
        return add_to_record(transaction, values)

    monkeypatch.setattr(records, "ADD_TO_RECORD", add_late)
    shop.database.transact(lambda transaction: confirm_order(transaction, "1"))
    second.join(20)
    assert (shop.user().orders_count, shop.user().total_spent) == (2, Decimal("39.98"))


def test_what_is_leased_is_not_claimed_again_until_the_lease_ends(shop: Shop) -> None:
    shop.only(Failing(times=0))
    shop.place_order()
    first, second = shop.bus.dispatcher(), shop.bus.dispatcher()
    (lease,) = first.claim({"failing": 5})
    shop.clock.advance(29.9)
    assert second.claim({"failing": 5}) == []
    shop.clock.advance(0.1)
    (taken,) = second.claim({"failing": 5})
    assert (taken.in_doubt, taken.token, taken.spent) == (True, lease.token + 1, 0)
    assert shop.outcomes("failing") == ["unknown"]


def test_a_lease_is_extended_while_the_receiver_runs(shop: Shop) -> None:
    shop.only(Failing(times=0))
    shop.place_order()
    first, second = shop.bus.dispatcher(), shop.bus.dispatcher()
    (lease,) = first.claim({"failing": 5})
    for _ in range(5):
        shop.clock.advance(20)
        first.heartbeat()
        assert second.claim({"failing": 5}) == []
    assert [settled.state for settled in first.deliver([lease])] == ["done"]


def test_a_lease_that_no_thread_has_is_not_extended(shop: Shop) -> None:
    """Were it extended, nobody would ever try the delivery again."""
    shop.only(Failing(times=0))
    shop.place_order("1")
    shop.place_order("2")
    held = shop.dispatcher.claim({"failing": 2})
    for _ in range(3):
        shop.clock.advance(10)
        shop.dispatcher.heartbeat(held[1:])
    assert [end.lease.order_id for end in shop.bus.dispatcher().run_once()] == ["1"]
    assert [end.lease.order_id for end in shop.dispatcher.deliver(held)] == ["2"]


def test_a_late_process_settles_nothing(shop: Shop) -> None:
    """It was paused past its lease while its receiver ran; another has done the work meanwhile."""
    late, other = shop.bus.dispatcher(), shop.bus.dispatcher()
    calls: list[str] = []

    def slow(sender: str, event: OrderCreated) -> None:
        calls.append("call")
        if len(calls) == 1:
            shop.clock.advance(30)
            assert [settled.state for settled in other.run_once()] == ["done"]

    shop.only(slow)
    shop.place_order()
    with lost_leases() as lost:
        assert late.run_once() == []
    assert lost == [shop.delivery("slow").delivery_id]
    assert (len(calls), shop.delivery("slow").state) == (2, "done")


@pytest.mark.parametrize("orders", [1, 3])
def test_a_late_process_calls_no_receiver_with_a_session(shop: Shop, orders: int) -> None:
    """The wall clock was set forward, so another took over what this one has claimed; part of it."""
    late, other = shop.bus.dispatcher(), shop.bus.dispatcher()

    def counting(sender: str, event: OrderCreated, transaction: Transaction) -> None:
        place_order(transaction, order_id=uuid7(), user_id="x", total_price=Decimal(1), email=None, event_id=uuid7())

    shop.only(counting)
    for number in range(orders):
        shop.place_order(order_id=str(number))
    leases = late.claim({"counting": orders})
    shop.clock.jump(30)
    (taken,) = other.deliver(other.claim({"counting": 1}))
    with lost_leases() as lost:
        assert [settled.state for settled in late.deliver(leases)] == ["done"] * (orders - 1)
    assert lost == [taken.lease.delivery_id]
    assert shop.count("orders") == 2 * orders


def test_a_lost_lease_spoils_no_answer_that_is_settled_with_it(shop: Shop) -> None:
    shop.only(Failing(times=0))
    shop.place_order("1")
    shop.place_order("2")
    held = shop.dispatcher.claim({"failing": 2})
    shop.clock.jump(30)
    (taken,) = shop.bus.dispatcher().claim({"failing": 1})
    with lost_leases() as lost:
        ends = shop.dispatcher.settle([(lease, Done()) for lease in held])
    assert [end.lease.order_id for end in ends] == ["2"]
    assert lost == [taken.delivery_id]


@contextmanager
def lost_leases() -> Iterator[list[int]]:
    """The deliveries whose leases are reported as lost in the block."""
    lost: list[int] = []

    def listener(_: object, lease: Any) -> None:
        lost.append(lease.delivery_id)

    with lifecycle.lease_lost.connected_to(listener):
        yield lost


def test_a_process_that_was_paused_past_its_lease_does_not_begin(shop: Shop) -> None:
    receiver = Failing(times=0)
    shop.only(receiver)
    shop.place_order()
    (lease,) = shop.dispatcher.claim({"failing": 1})
    shop.clock.advance(30)
    assert shop.dispatcher.deliver([lease]) == []
    assert receiver.calls == 0


@pytest.mark.parametrize("transactional", [True, False])
def test_a_lease_that_ran_out_before_it_was_begun_is_left_to_others(shop: Shop, transactional: bool) -> None:
    """Were the late process to extend it, nobody would ever try the delivery."""
    calls: list[str] = []

    def inside(sender: str, event: OrderCreated, session: Session) -> None:
        calls.append(event.order_id)

    def outside(sender: str, event: OrderCreated) -> None:
        calls.append(event.order_id)

    shop.only(inside if transactional else outside, name="receiver")
    shop.place_order()
    (lease,) = shop.dispatcher.claim({"receiver": 1})
    shop.clock.advance(30)
    if transactional:
        assert shop.dispatcher.deliver_transactional([lease]) == []
    else:
        assert shop.dispatcher.invoke(lease) is None
    shop.dispatcher.heartbeat()
    assert [end.state for end in shop.bus.dispatcher().run_once()] == ["done"]
    assert calls == ["1001"]


def test_what_was_not_begun_is_given_back_at_a_stop(shop: Shop) -> None:
    shop.only(Failing(times=0))
    shop.place_order()
    shop.dispatcher.settle(not_begun(shop.dispatcher.claim({"failing": 1})))
    delivery = shop.delivery("failing")
    assert (delivery.state, delivery.attempts) == ("ready", 0)
    assert [settled.state for settled in shop.bus.dispatcher().run_once()] == ["done"]


@pytest.mark.parametrize("tries_again", [True, False])
def test_what_cannot_be_given_back_is_held_until_it_is_given_up(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, tries_again: bool
) -> None:
    """The database is away. Whoever holds the lease tries again, or abandons it, so that it runs out."""
    shop.only(Failing(times=0))
    shop.place_order()
    leases = shop.dispatcher.claim({"failing": 1})

    def away(_: Any) -> None:
        raise DatabaseUnavailable

    with monkeypatch.context() as broken:
        broken.setattr(shop.database, "transact", away)
        with pytest.raises(DatabaseUnavailable):
            shop.dispatcher.settle(not_begun(leases))
    for _ in range(3):
        shop.clock.advance(10)
        shop.dispatcher.heartbeat()
    assert shop.bus.dispatcher().run_once() == []
    if tries_again:
        shop.dispatcher.settle(not_begun(leases))
    else:
        shop.dispatcher.abandon(leases)
    for _ in range(3):
        shop.clock.advance(10)
        shop.dispatcher.heartbeat()
    assert [end.state for end in shop.bus.dispatcher().run_once()] == ["done"]
    assert shop.outcomes("failing") == (["ok"] if tries_again else ["unknown", "ok"])


# After a death nobody knows whose fault it was


def claim_and_die(shop: Shop, limit: int = 20) -> list[Lease]:
    """A process claims deliveries to ``failing``, and dies; its leases run out."""
    claimed = shop.bus.dispatcher().claim({"failing": limit})
    shop.clock.advance(30)
    return claimed


def test_what_kills_its_process_each_time_is_given_up(shop: Shop) -> None:
    """Once it was tried alone, each attempt is charged, and waits as the policy says."""
    shop.only(Failing(times=0), when_dead=lambda event, reason: SENT)
    shop.place_order()
    claim_and_die(shop)
    for spent in range(3):
        (lease,) = claim_and_die(shop)
        assert (lease.spent, lease.in_doubt) == (spent, True)
        assert claim_and_die(shop) == []
        shop.clock.advance(30)
    delivery = shop.delivery("failing")
    assert (delivery.state, delivery.attempts) == ("dead", 3)
    assert shop.outcomes("failing") == ["unknown"] * 4
    assert "given up: tried alone, its attempts end without a result" in (delivery.reason or "")
    assert len(shop.timeline()) == 2


def test_what_was_claimed_together_with_a_killer_is_not_given_up_with_it(shop: Shop) -> None:
    """Though a single attempt is all that anybody has. The others are charged for what they did, and nothing else."""
    shop.policy.attempts = 1
    shop.only(Failing(times=0))
    for order_id in "12345":
        shop.place_order(order_id)
    assert len(claim_and_die(shop)) == 5
    alone = []
    while leases := shop.dispatcher.claim({"failing": 20}):
        (lease,) = leases
        alone.append(lease.order_id)
        if lease.order_id == "3":
            shop.dispatcher.abandon(leases)  # as its process died
            shop.clock.advance(30)
        else:
            shop.dispatcher.deliver(leases)
    assert alone == ["1", "2", "3", "4", "5"]
    found = [(delivery.state, delivery.attempts) for delivery in shop.deliveries("failing")]
    assert found == [("done", 1), ("done", 1), ("dead", 1), ("done", 1), ("done", 1)]


def test_the_expired_attempt_tells_when_it_began_and_who_made_it(shop: Shop) -> None:
    shop.only(Failing(times=0))
    shop.place_order()
    (lease,) = claim_and_die(shop)
    shop.dispatch()
    columns = "lease_token, outcome, detail, dispatcher"
    with shop.database.read() as session:
        first, second = session.execute(text(f"SELECT {columns} FROM attempts ORDER BY attempt_id"))
    reason = "no result: its process died, or was held up past the lease"
    assert first == (lease.token, "unknown", reason, lease.leased_by)
    assert (second.lease_token, second.outcome) == (lease.token + 1, "ok")


def test_what_is_in_doubt_begins_while_nothing_else_does(shop: Shop) -> None:
    """Not before what has just begun had time to kill the process, and nothing begins until it had its own."""
    shop.only(Failing(times=0))
    shop.place_order("1")
    claim_and_die(shop)
    me = shop.dispatcher
    shop.place_order("2")
    (other,) = me.claim({"failing": 20})
    assert (other.order_id, other.in_doubt) == ("2", False)

    assert me.claim({"failing": 20}) == []
    shop.clock.advance(me.rest_seconds([], alone=True))
    (alone,) = me.claim({"failing": 20})
    assert (alone.order_id, alone.in_doubt) == ("1", True)

    shop.place_order("3")
    assert me.claim({"failing": 20}) == []
    shop.clock.advance(me.rest_seconds([], alone=False))
    assert [lease.order_id for lease in me.claim({"failing": 20})] == ["3"]


def test_one_in_doubt_and_others_take_turns(shop: Shop) -> None:
    shop.only(Failing(times=0))
    for order_id in "12":
        shop.place_order(order_id)
    claim_and_die(shop)
    rounds = []
    for number in range(3, 7):
        shop.place_order(str(number))
        rounds.append([end.lease.order_id for end in shop.dispatch()])
    assert rounds == [["3"], ["1"], ["4", "5"], ["2"]]


@pytest.mark.parametrize("others", [1, 3])
def test_each_of_several_dispatchers_tries_one_in_doubt_at_a_time(shop: Shop, others: int) -> None:
    shop.only(Failing(times=0))
    for number in range(8):
        shop.place_order(str(number))
    claim_and_die(shop)
    claimed = [shop.bus.dispatcher().claim({"failing": 20}) for _ in range(others)]
    assert [len(leases) for leases in claimed] == [1] * others
    assert len({leases[0].delivery_id for leases in claimed}) == others


@pytest.mark.parametrize("jump", [-7200, 7200])
def test_a_jump_of_the_wall_clock_loses_nothing_and_doubles_nothing(shop: Shop, jump: float) -> None:
    shop.place_order()
    leases = shop.dispatcher.claim(dict.fromkeys(["update_user_order_record", "send_email_notification"], 5))
    shop.clock.jump(jump)
    other = shop.bus.dispatcher()
    taken = other.run_once()
    for batch in shop.dispatcher.batches(leases):
        shop.dispatcher.deliver(batch)
    shop.clock.jump(-jump)
    shop.clock.advance(1)
    shop.dispatch_all()
    shop.clock.advance(10_000)
    shop.dispatch_all()
    assert set(shop.states().values()) == {"done"}
    assert shop.user().orders_count == 1
    copies = len(shop.mailer.outbox)
    assert copies == 1 + shop.outcomes("send_email_notification").count("unknown")
    assert bool(taken) == (jump > 0)
    assert len({message.msgId for message in shop.mailer.outbox}) == 1


# What a person does


def test_a_dead_delivery_is_retried_with_a_new_budget_and_its_attempts_stay(shop: Shop) -> None:
    failing = Failing(times=3)
    shop.only(failing)
    shop.place_order()
    for _ in range(3):
        shop.dispatch()
        shop.clock.advance(60)
    assert shop.delivery("failing").state == "dead"

    assert shop.bus.retry(Filter(receiver="failing"), by="test") == 1
    assert shop.bus.retry(Filter(receiver="failing", state="dead"), by="test") == 0

    assert [settled.state for settled in shop.dispatch()] == ["done"]
    assert shop.outcomes("failing") == ["bug", "bug", "bug", "ok"]
    assert shop.delivery("failing").attempts == 1


def test_a_filter_selects_by_every_field(shop: Shop) -> None:
    shop.policy.attempts = 1
    shop.only(Failing(error=Deferred("450 50% _grey_")))
    shop.place_orders(3)
    shop.dispatch()
    matching: list[tuple[Filter, int]] = [
        (Filter(order_id="1"), 1),
        (Filter(outcome="deferred"), 3),
        (Filter(outcome="bug"), 0),
        (Filter(reason="50% _grey"), 3),
        (Filter(reason="50_ "), 0),
        (Filter(event_type="NotificationSent"), 0),
        (Filter(user_id="42"), 3),
        (Filter(user_id="43"), 0),
        (Filter(older_than=shop.clock.now()), 0),
        (Filter(delivery_id=1, state="dead"), 1),
    ]
    for which, count in matching:
        assert shop.bus.discard(which, "a test", by="test") == count
        assert shop.bus.retry(Filter(state="discarded"), by="test") == count
        shop.dispatch()


def test_discarding_needs_a_reason_and_spares_what_is_running(shop: Shop) -> None:
    shop.only(Failing(times=0))
    shop.place_order("1")
    shop.dispatcher.claim({"failing": 1})
    shop.place_order("2")
    assert shop.bus.discard(Filter(), "a duplicate import", by="test") == 1
    assert [(d.state, d.reason) for d in shop.deliveries()] == [("leased", None), ("discarded", "a duplicate import")]


# Reports


def test_every_settle_is_reported_after_its_commit(shop: Shop) -> None:
    seen: list[tuple[str, str]] = []

    def listener(_: object, ends: list[LeaseEnd]) -> None:
        seen.extend((end.lease.receiver, shop.delivery(end.lease.receiver).state) for end in ends)

    with lifecycle.deliveries_settled.connected_to(listener):
        shop.place_order()
        shop.dispatch_all()
    assert seen == [
        ("update_user_order_record", "done"),
        ("send_email_notification", "done"),
        ("update_order_notification", "done"),
    ]
