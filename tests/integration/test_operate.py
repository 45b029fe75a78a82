"""What people may do with deliveries, what is kept about it, and what is forgotten in time."""

import threading
from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import event as sqlalchemy_event
from sqlalchemy import select, text

from app.bus import Act, Filter, operate, prune, queries
from app.bus.tables import OperatorAct
from app.db import Transaction
from app.errors import Deferred, InDoubt, Refused, TimedOut
from app.events import OrderCreated, order_created
from tests.support.shop import START, Shop, not_begun
from tests.support.waiting import somebody_waits, until


def refuse(sender: str, event: OrderCreated) -> None:
    raise Refused("550 no")


def acts(shop: Shop) -> list[Any]:
    with shop.database.read() as session:
        return list(
            session.execute(
                text("SELECT acted_by, action, filter, reason, deliveries FROM operator_acts ORDER BY act_id")
            )
        )


def moments(shop: Shop) -> list[datetime]:
    with shop.database.read() as session:
        return list(session.scalars(select(OperatorAct.acted_at).order_by(OperatorAct.act_id)))


def test_an_act_is_recorded_with_when_who_what_why_and_how_many(shop: Shop) -> None:
    shop.only(refuse)
    shop.place_orders(3)
    shop.dispatch()
    assert shop.bus.discard(Filter(receiver="refuse", user_id="42"), "closed account", by="ops") == 3
    shop.clock.advance(60)
    shop.bus.retry(Filter(order_id="1", state="discarded"), by="mary")
    assert moments(shop) == [START, START + timedelta(seconds=60)]
    assert acts(shop) == [
        ("ops", "discard", '{"receiver": "refuse", "user_id": "42"}', "closed account", 3),
        ("mary", "retry", '{"state": "discarded", "order_id": "1"}', None, 1),
    ]


@pytest.mark.parametrize("name", ["a\0b", "\x1b[31mred", "x" * 300, "\u202ereversed", "\udcff", "安"], ids=ascii)
def test_an_act_is_recorded_under_whatever_name_somebody_chose(shop: Shop, name: str) -> None:
    """What can be seen of it: neither database takes all of this, and somebody reads it in a terminal."""
    shop.bus.retry(Filter(), by=f"operator:{name}")
    (act,) = acts(shop)
    assert act.acted_by.startswith("operator:")
    assert act.acted_by.isprintable()
    assert len(act.acted_by) <= 100
    assert ("安" in act.acted_by) == (name == "安")


def test_an_act_on_many_goes_in_batches_and_counts_all(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operate, "BATCH", 10)
    shop.only(refuse)
    shop.place_orders(25)
    shop.dispatch_all()
    with shop.database.read() as session:
        assert operate.count(session, "retry", Filter(state="dead")) == 25
    assert shop.bus.retry(Filter(state="dead"), by="ops") == 25
    assert {delivery.state for delivery in shop.deliveries()} == {"ready"}
    assert acts(shop)[0].deliveries == 25


def test_a_replay_keeps_the_order(shop: Shop) -> None:
    """Though those that are due at one moment went dead in another order, and in several batches are made due again."""
    down, tried = True, []

    def receiver(sender: str, event: OrderCreated) -> None:
        if down:
            raise Refused("550 no")
        tried.append(int(event.order_id))

    shop.only(receiver)
    shop.place_orders(50)
    leases = shop.dispatcher.claim({"receiver": 50})
    for lease in leases[::-1]:
        shop.dispatcher.deliver([lease])
    down = False
    assert shop.bus.retry(Filter(receiver="receiver"), by="ops") == 50
    shop.dispatch_all()
    assert tried == list(range(50))


def test_deliveries_are_found_page_by_page(shop: Shop) -> None:
    shop.only(refuse)
    shop.place_orders(5)
    shop.dispatch()
    seen, after = [], 0
    while after is not None:
        with shop.database.read() as session:
            page, after = operate.find(session, Filter(state="dead"), after=after, limit=2)  # type: ignore[assignment]
        seen += [row.order_id for row in page]
    assert seen == ["0", "1", "2", "3", "4"]


def test_what_was_sent_is_not_marked_failed_by_an_older_fact(shop: Shop) -> None:
    """The mail went dead, was retried and sent; the news of its failure is dealt with only afterwards."""
    shop.execute("UPDATE users SET email = NULL")
    shop.place_order(email="nobody@nowhere.example")
    shop.mailer.backend.deliver, deliver = _refuse, shop.mailer.backend.deliver
    shop.dispatcher.deliver(shop.dispatcher.claim({"send_email_notification": 1}))
    shop.mailer.backend.deliver = deliver
    shop.bus.retry(Filter(receiver="send_email_notification"), by="ops")
    shop.dispatcher.deliver(shop.dispatcher.claim({"send_email_notification": 1}))
    failed, _ = shop.deliveries("update_order_notification")
    shop.execute(
        "UPDATE deliveries SET due_at = :later WHERE delivery_id = :d",
        later=shop.clock.now() + timedelta(1),
        d=failed.delivery_id,
    )
    shop.dispatch_all()
    assert shop.order().notification == "sent"
    shop.clock.advance(90_000)
    shop.dispatch_all()
    assert shop.order().notification == "sent"
    assert {delivery.state for delivery in shop.deliveries()} == {"done"}


def _refuse(*_: object) -> None:
    raise Refused("550 no")


# What follows when a process died in the middle


def test_an_unknown_attempt_is_repeated_by_default(shop: Shop) -> None:
    calls: list[str] = []
    shop.only(lambda sender, event: calls.append(event.order_id), name="sender")
    shop.place_order()
    shop.bus.dispatcher().claim({"sender": 1})
    shop.clock.advance(30)
    shop.dispatch()
    assert calls == ["1001"]
    assert shop.outcomes("sender") == ["unknown", "ok"]


def test_an_unknown_attempt_can_be_left_to_a_person(shop: Shop) -> None:
    calls: list[str] = []
    shop.only(lambda sender, event: calls.append(event.order_id), name="sender", hold_unknown=True)
    shop.place_order()
    shop.bus.dispatcher().claim({"sender": 1})
    shop.clock.advance(30)
    shop.dispatch()
    assert (calls, shop.delivery("sender").state) == ([], "dead")
    assert shop.delivery("sender").reason == "its last attempt's outcome is unknown; retry it, or discard it"
    assert shop.outcomes("sender") == ["unknown"]

    shop.bus.retry(Filter(outcome="unknown"), by="ops")
    shop.dispatch()
    assert calls == ["1001"]


def test_unknown_attempts_have_a_budget_of_their_own(shop: Shop) -> None:
    """Those of processes that died, and those that a receiver could not tell the end of; an act begins a new one."""
    left: list[Exception | None] = [TimedOut(), InDoubt("no answer"), Deferred(), InDoubt("no answer"), None]

    def sender(_: str, event: OrderCreated) -> None:
        if error := left.pop(0):
            raise error

    def try_it() -> None:
        shop.dispatch()
        shop.clock.advance(60)

    shop.policy.attempts = 100
    shop.only(sender, unknown_limit=3)
    shop.place_order()
    shop.bus.dispatcher().claim({"sender": 1})
    shop.clock.advance(30)
    for _ in range(5):
        try_it()
    assert shop.outcomes("sender") == ["unknown", "timeout", "unknown", "deferred", "unknown"]
    assert shop.delivery("sender").state == "dead"
    fate = "its fate is unknown: up to 3 copies may have arrived; retry it, or discard it"
    assert shop.delivery("sender").reason == f"{fate}. no answer"

    shop.bus.retry(Filter(), by="ops")
    for _ in range(4):  # the third finds that it has to wait: what was tried alone is charged
        shop.bus.dispatcher().claim({"sender": 1})
        shop.clock.advance(90)
    for _ in range(2):
        shop.dispatch()
        shop.clock.advance(90)
    assert (shop.delivery("sender").state, shop.delivery("sender").reason) == ("dead", fate)
    assert left == [None], "the fourth time it was not begun"

    shop.bus.retry(Filter(), by="ops")
    shop.dispatch()
    assert (left, shop.delivery("sender").state) == ([], "done")


@pytest.mark.parametrize("how", ["given back", "by code that does not know its receiver"])
def test_an_unknown_attempt_is_left_to_a_person_also_when_the_next_has_not_begun_it(shop: Shop, how: str) -> None:
    calls: list[str] = []

    def sender(_: str, event: OrderCreated) -> None:
        calls.append(event.order_id)

    shop.only(sender, hold_unknown=True)
    shop.place_order()
    shop.bus.dispatcher().claim({"sender": 1})
    if how == "given back":
        shop.clock.advance(30)
        shop.dispatcher.settle(not_begun(shop.dispatcher.claim({"sender": 1})))
    else:
        order_created.disconnect(sender)
        shop.clock.advance(91)
        shop.dispatcher.deliver(shop.dispatcher.claim_without_receiver())
        order_created.connect(sender)
        shop.clock.advance(60)
    shop.dispatch()
    assert (calls, shop.delivery("sender").state, shop.outcomes("sender")) == ([], "dead", ["unknown"])

    shop.bus.retry(Filter(outcome="unknown"), by="ops")
    shop.dispatcher.settle(not_begun(shop.dispatcher.claim({"sender": 1})))
    shop.dispatch()
    assert (calls, shop.outcomes("sender")) == (["1001"], ["unknown", "ok"])


@pytest.mark.postgres
@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_what_a_person_discards_at_this_moment_is_not_claimed(shop: Shop) -> None:
    """It has been chosen, and is not changed yet. On SQLite one comes first."""
    shop.only(refuse)
    shop.place_order()
    claimed: list[Any] = []

    def before_execute(_: Any, __: Any, statement: str, *___: Any) -> None:
        if statement.startswith("INSERT INTO operator_act_deliveries"):
            claiming = threading.Thread(target=lambda: claimed.extend(shop.bus.dispatcher().claim({"refuse": 1})))
            claiming.start()
            claiming.join(20)

    sqlalchemy_event.listen(shop.database.engine, "before_cursor_execute", before_execute)
    assert shop.bus.discard(Filter(), "not wanted", by="ops") == 1
    assert claimed == []


# What is forgotten


def test_what_is_finished_and_old_is_forgotten_and_orders_are_not(shop: Shop) -> None:
    shop.place_order("old")
    shop.dispatch_all()
    shop.clock.advance(90 * 86400)
    assert shop.bus.prune() == 0
    shop.clock.advance(1)
    shop.place_order("young")
    assert shop.bus.prune() == 2  # OrderCreated and NotificationSent
    assert shop.timeline("old") == []
    assert [event["type"] for event in shop.timeline("young")] == ["OrderCreated"]
    assert shop.order("old").status == "confirmed"
    assert shop.count("attempts") == 0


@pytest.mark.parametrize("state", ["ready", "leased", "dead"])
def test_what_is_not_finished_is_never_forgotten(shop: Shop, state: str) -> None:
    shop.only(refuse)
    shop.place_order()
    if state == "leased":
        shop.dispatcher.claim({"refuse": 1})
    if state == "dead":
        shop.dispatch()
    shop.clock.advance(400 * 86400)
    assert shop.bus.prune() == 0
    assert shop.delivery("refuse").state == state


@pytest.mark.postgres
@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_what_a_person_retries_at_this_moment_is_not_forgotten(shop: Shop) -> None:
    """Forgetting has read that it was finished, and waits for the person's transaction. On SQLite one comes first."""
    shop.only(refuse)
    shop.place_order("1")
    shop.place_order("2")
    shop.dispatch()
    shop.bus.discard(Filter(), "settled by hand", by="ops")
    shop.clock.advance(91 * 86400)
    forgotten: list[int] = []
    forgetting = threading.Thread(target=lambda: forgotten.append(shop.bus.prune()))

    chosen = shop.bus.choose(Act("retry", Filter(order_id="1", state="discarded"), "ops"))

    def retry(transaction: Transaction) -> None:
        act_id = operate.record_act(transaction, "retry", chosen.act.which, "ops", None, counted=1)
        operate.act_on_batch(transaction, act_id, chosen, 0, shop.clock.now())
        transaction.session.flush()
        forgetting.start()
        until(lambda: somebody_waits(shop.database))

    shop.database.transact(retry)
    forgetting.join(20)
    assert forgotten == [1]
    assert [(row["data"]["order_id"], row["deliveries"][0]["state"]) for row in shop.timeline("1")] == [("1", "ready")]
    assert shop.timeline("2") == []


def test_what_ended_lately_is_kept_however_old_it_is(shop: Shop) -> None:
    shop.only(refuse)
    shop.place_order()
    shop.dispatch()
    shop.clock.advance(400 * 86400)
    shop.bus.discard(Filter(), "settled by hand", by="ops")
    assert shop.bus.prune() == 0
    shop.clock.advance(90 * 86400 + 1)
    assert shop.bus.prune() == 1
    assert shop.count("operator_act_deliveries") == 0
    assert [act.deliveries for act in acts(shop)] == [1], "who did what is kept"


def test_what_is_young_is_kept_though_it_is_owed_to_nobody(shop: Shop) -> None:
    with order_created.muted():
        shop.place_order()
    shop.clock.advance(90 * 86400)
    assert shop.bus.prune() == 0
    shop.clock.advance(1)
    assert shop.bus.prune() == 1


def test_forgetting_goes_in_batches_past_what_must_stay(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prune, "BATCH", 4)
    shop.only(refuse)
    shop.place_orders(10)
    shop.dispatch()
    for n in range(0, 10, 2):
        shop.bus.discard(Filter(order_id=f"{n}"), "test", by="ops")
    shop.clock.advance(91 * 86400)
    assert shop.bus.prune(batches=1) == 4
    assert shop.bus.prune() == 1
    assert [delivery.state for delivery in shop.deliveries()] == ["dead"] * 5


def test_a_place_in_the_feed_is_never_used_again(shop: Shop) -> None:
    """A reader of the feed whose cursor is past it would never see what took it."""
    shop.place_order("1")
    shop.dispatch_all()
    with shop.database.read() as session:
        first, cursor = queries.feed(session, None, 10)
    shop.clock.advance(91 * 86400)
    shop.bus.prune()
    shop.place_order("2")
    with shop.database.read() as session:
        later, _ = queries.feed(session, cursor, 10)
    assert [row.order_id for row in later] == ["2"]
    assert first[-1].position < later[0].position
