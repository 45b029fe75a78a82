"""Recorded events, given to one receiver: counted first, only what was counted, and never twice."""

import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import select, text

from app.bus import Replay, operate, prune, replay
from app.bus.tables import ActDelivery, OperatorAct
from app.db import Transaction
from app.errors import Refused, ReplayRefused, SpreadTooLong
from app.events import OrderCreated, order_created
from tests.support.shop import START, Shop
from tests.support.waiting import somebody_waits, until

MAIL = "send_email_notification"
LATE = Replay("late", "OrderCreated")


def run(shop: Shop, which: Replay = LATE, **how: Any) -> int:
    done = shop.bus.replay(which, shop.bus.find_recorded(which), by="ann", **how)
    return int(done.deliveries)


def act(shop: Shop) -> OperatorAct:
    with shop.database.read() as session:
        return session.scalars(select(OperatorAct).order_by(OperatorAct.act_id.desc())).first() or OperatorAct()


def test_a_new_receiver_is_given_what_was_recorded_before_it_came_once(shop: Shop, late: list[str]) -> None:
    assert run(shop) == 3
    shop.dispatch_all()
    assert late == ["0", "1", "2"]
    assert run(shop) == 0
    shop.place_order("3")
    shop.dispatch_all()
    assert run(shop) == 0
    assert late == ["0", "1", "2", "3"]


@pytest.mark.parametrize(
    ("conditions", "orders"),
    [
        ({"since": START + timedelta(seconds=60)}, ["1", "2"]),
        ({"since": START + timedelta(seconds=60, microseconds=1)}, ["2"]),
        ({"until": START + timedelta(seconds=60)}, ["0"]),
        ({"until": START + timedelta(seconds=60, microseconds=1)}, ["0", "1"]),
        ({"since": START, "until": START}, []),
        ({"order_id": "1"}, ["1"]),
        ({"order_id": "1", "since": START + timedelta(seconds=61)}, []),
        ({"order_id": "nobody's"}, []),
    ],
    ids=str,
)
def test_only_what_was_asked_for(
    shop: Shop, late: list[str], monkeypatch: pytest.MonkeyPatch, conditions: Any, orders: list[str]
) -> None:
    """However few events are looked at in one query."""
    for window in (1, 2, 10_000):
        monkeypatch.setattr(replay, "WINDOW", window)
        which = Replay("late", "OrderCreated", **conditions)
        assert shop.bus.find_recorded(which).events == len(orders)
        assert shop.bus.find_recorded(which).deliveries == len(orders)
    assert run(shop, which) == len(orders)
    shop.dispatch_all()
    assert late == orders


def test_another_type_of_event_is_not_replayed(shop: Shop, late: list[str]) -> None:
    assert shop.count("events") == 6  # three mails were sent
    assert run(shop) == 3


def test_what_is_found_is_told_before(shop: Shop, late: list[str]) -> None:
    shop.place_order("3")
    (waiting, *_) = shop.dispatcher.claim({"late": 1})
    found = shop.bus.find_recorded(LATE)
    assert (found.events, found.deliveries, found.finished, found.under_way) == (4, 3, 0, 1)
    assert (found.oldest_at, found.kept_since) == (START, START)
    shop.dispatcher.deliver([waiting])
    found = shop.bus.find_recorded(LATE)
    assert (found.events, found.deliveries, found.finished, found.under_way) == (4, 3, 1, 0)


def test_what_was_pruned_is_gone_and_said_to_be(shop: Shop, late: list[str]) -> None:
    shop.clock.advance(91 * 86400)
    shop.place_order("young")
    shop.bus.prune()
    found = shop.bus.find_recorded(LATE)
    assert found.kept_since is not None
    assert found.kept_since > START
    assert found.events == 1


def test_where_nothing_was_ever_recorded_nothing_is_found(shop: Shop) -> None:
    found = shop.bus.find_recorded(Replay(MAIL, "OrderCreated"))
    assert (found.events, found.deliveries, found.oldest_at, found.kept_since) == (0, 0, None, None)
    assert run(shop, Replay(MAIL, "OrderCreated")) == 0


def test_only_what_was_counted_is_touched(shop: Shop, late: list[str]) -> None:
    found = shop.bus.find_recorded(LATE)
    with order_created.muted():
        shop.place_order("later")
    assert shop.bus.replay(LATE, found, by="ann").deliveries == 3
    assert shop.bus.find_recorded(LATE).deliveries == 1


def test_it_goes_in_batches_in_order_and_tells_how_far_it_is(
    shop: Shop, late: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operate, "BATCH", 2)
    told: list[int] = []
    assert run(shop, on_progress=told.append) == 3
    assert told == [2, 1]
    shop.dispatch_all()
    assert late == ["0", "1", "2"]


def test_it_is_spread(shop: Shop, late: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operate, "BATCH", 2)
    now = shop.clock.now()
    assert run(shop, over_seconds=30) == 3
    assert [delivery.due_at for delivery in shop.deliveries("late")] == [
        now,
        now + timedelta(seconds=10),
        now + timedelta(seconds=20),
    ]
    shop.dispatch_all()
    assert late == ["0"]


def test_it_is_not_spread_over_longer_than_anything_may_wait(shop: Shop, late: list[str]) -> None:
    """A due time further ahead would be taken for one from before a clock was set back."""
    assert run(shop, over_seconds=shop.policy.maximum) == 3
    with pytest.raises(SpreadTooLong):
        run(shop, over_seconds=shop.policy.maximum + 1)


def test_the_act_is_recorded_with_what_it_touched(shop: Shop, late: list[str]) -> None:
    which = Replay("late", "OrderCreated", since=START + timedelta(seconds=60))
    run(shop, which, over_seconds=30)
    found = act(shop)
    assert (found.acted_by, found.action, found.counted, found.deliveries) == ("ann", "replay", 2, 2)
    assert found.filter == (
        '{"receiver": "late", "event_type": "OrderCreated", "since": "2026-11-23T08:01:00.000000Z"}'
    )
    assert (found.over_seconds, found.ended_at, found.aborted_at) == (30, shop.clock.now(), None)
    with shop.database.read() as session:
        touched = session.scalars(select(ActDelivery).order_by(ActDelivery.delivery_id)).all()
    assert [each.delivery_id for each in touched] == [each.delivery_id for each in shop.deliveries("late")]
    assert {each.state_before for each in touched} == {"discarded"}
    shop.dispatch_all()
    shop.clock.advance(91 * 86400)
    shop.dispatch_all()
    shop.clock.advance(91 * 86400)
    assert shop.bus.prune() == 6


def test_one_that_is_aborted_ends_there(shop: Shop, late: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operate, "BATCH", 1)

    def abort(_: int) -> None:
        shop.execute("UPDATE operator_acts SET aborted_at = acted_at")

    assert run(shop, on_progress=abort) == 1
    assert (act(shop).counted, act(shop).deliveries, act(shop).ended_at) == (3, 1, None)
    assert len(shop.deliveries("late")) == 1


# Again


def test_forced_it_gives_again_what_was_dealt_with(shop: Shop) -> None:
    """With a new budget, and not what is being tried, or waits anyway."""
    outcomes: dict[str, Callable[[], None]] = {}

    def fail() -> None:
        raise Refused("550 no")

    def lost(sender: str, event: OrderCreated) -> None:
        calls.append(event.order_id)
        outcomes.get(event.order_id, lambda: None)()

    calls: list[str] = []
    outcomes["dead"] = fail
    shop.only(lost)
    for order_id in ("done", "dead", "discarded", "leased", "ready"):
        shop.place_order(order_id)
    shop.execute("UPDATE deliveries SET state = 'discarded', settled_at = due_at, reason = 'x' WHERE delivery_id = 3")
    done, dead, leased = shop.dispatcher.claim({"lost": 3})
    for lease in (done, dead):
        shop.dispatcher.deliver([lease])
    shop.clock.advance(5)
    which = Replay("lost", "OrderCreated", force=True)
    found = shop.bus.find_recorded(which)
    assert (found.events, found.finished, found.under_way, found.deliveries) == (5, 3, 2, 3)
    assert shop.bus.find_recorded(Replay("lost", "OrderCreated")).deliveries == 0

    assert run(shop, which) == 3
    deliveries = shop.deliveries()
    assert [delivery.state for delivery in deliveries] == ["ready", "ready", "ready", "leased", "ready"]
    assert [(each.attempts, each.outcome, each.settled_at) for each in deliveries[:3]] == [(0, None, None)] * 3
    assert deliveries[3].lease_token == leased.token
    with shop.database.read() as session:
        touched = session.scalars(select(ActDelivery).order_by(ActDelivery.delivery_id)).all()
    assert [(each.state_before, each.reason_before) for each in touched] == [
        ("done", None),
        ("dead", "550 no"),
        ("discarded", "x"),
    ]
    outcomes.clear()
    calls.clear()
    shop.dispatch_all()
    assert sorted(calls) == ["dead", "discarded", "done", "ready"]


def test_a_receiver_in_a_transaction_stays_exact(shop: Shop) -> None:
    """A new one is given each event once, its effect and its delivery's end in one transaction."""

    def counted(sender: str, event: OrderCreated, transaction: Transaction) -> None:
        transaction.session.execute(text("UPDATE users SET orders_count = orders_count + 100"))
        if not failed:
            failed.append(event.order_id)
            raise RuntimeError("no luck")

    failed: list[str] = []
    shop.place_orders(3)
    shop.dispatch_all()
    shop.receive(counted)
    which = Replay("counted", "OrderCreated")
    assert (run(shop, which), run(shop, which)) == (3, 0)
    shop.dispatch_all()
    shop.clock.advance(60)
    shop.dispatch_all()
    assert shop.user().orders_count == 303
    with pytest.raises(ReplayRefused, match="so what it did is in the database exactly once"):
        run(shop, Replay("counted", "OrderCreated", force=True))
    with pytest.raises(ReplayRefused, match="flask bus retry --receiver update_user_order_record"):
        run(shop, Replay("update_user_order_record", "OrderCreated", force=True))
    assert shop.user().orders_count == 303


@pytest.mark.parametrize(
    ("which", "why"),
    [
        (
            Replay("late", "OrderCreated"),
            r"'late' is not connected: to replay OrderCreated to it, write order_",
        ),
        (Replay("update_order_notification", "OrderCreated"), "is connected to another signal only"),
        (Replay(MAIL, "NotificationSent"), r"write notification_sent\.connect\(send_email_notification\)"),
        (Replay(MAIL, "OrderMade"), "no signal carries events of type 'OrderMade'; there are: NotificationFailed, "),
        (Replay("a\0b\udcff", "OrderCreated"), "is not connected"),
    ],
    ids=ascii,
)
def test_a_receiver_that_does_not_take_these_events_is_refused(shop: Shop, which: Replay, why: str) -> None:
    with pytest.raises(ReplayRefused, match=why) as refused:
        shop.bus.find_recorded(which)
    assert str(refused.value).isprintable()


# Others, at the same moment


@pytest.mark.postgres
@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_what_is_replayed_at_this_moment_is_not_forgotten(shop: Shop, late: list[str]) -> None:
    """Forgetting has found the events, and waits for the replay. On SQLite one comes first."""
    shop.clock.advance(91 * 86400)
    found = shop.bus.find_recorded(LATE)
    forgotten: list[int] = []
    forgetting = threading.Thread(target=lambda: forgotten.append(shop.bus.prune()))

    def work(transaction: Transaction) -> int | None:
        act_id = operate.record_act(transaction, "replay", LATE, "ann", None, counted=3)
        due = dict.fromkeys(found.places, transaction.now)
        made = replay.replay_batch(transaction, act_id, LATE, due)
        forgetting.start()
        until(lambda: somebody_waits(shop.database))
        return made

    assert shop.database.transact(work) == 3
    forgetting.join(20)
    assert forgotten == [3], "the mails' own events"
    shop.dispatch_all()
    assert late == ["0", "1", "2"]


@pytest.mark.postgres
@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_two_replays_at_once_give_each_event_once(shop: Shop, late: list[str]) -> None:
    found = shop.bus.find_recorded(LATE)
    other: list[int] = []
    second = threading.Thread(target=lambda: other.append(shop.bus.replay(LATE, found, by="bob").deliveries))

    def work(transaction: Transaction) -> int | None:
        act_id = operate.record_act(transaction, "replay", LATE, "ann", None, counted=3)
        made = replay.replay_batch(transaction, act_id, LATE, dict.fromkeys(found.places, transaction.now))
        second.start()
        until(lambda: somebody_waits(shop.database))
        return made

    assert shop.database.transact(work) == 3
    second.join(20)
    assert other == [0]
    shop.dispatch_all()
    assert late == ["0", "1", "2"]


def test_what_is_pruned_between_the_count_and_the_act_is_left_out(shop: Shop, late: list[str]) -> None:
    found = shop.bus.find_recorded(LATE)
    shop.clock.advance(91 * 86400)
    assert prune.prune(shop.database, timedelta(days=90)) == 6
    assert shop.bus.replay(LATE, found, by="ann").deliveries == 0
    assert (act(shop).counted, act(shop).deliveries) == (3, 0)
