"""A person pauses a receiver, and resumes it: in all processes, at once, on the record."""

import threading
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import select

from app import doctor
from app.bus import Filter, pause
from app.bus.claim import Claim
from app.bus.tables import OperatorAct
from app.bus.troubles import Cause
from app.clock import Clock
from app.db import Transaction
from app.engine.inprocess import pool
from app.errors import UnknownReceiver, Unreachable
from app.events import OrderCreated
from config import Settings
from tests.support.api import Api, parse
from tests.support.shop import START, Shop
from tests.support.waiting import somebody_waits, until

MAIL = "send_email_notification"


class Tried:
    """A receiver that remembers what it was given, and fails while it has an ``error``."""

    __name__ = "tried"

    def __init__(self) -> None:
        self.orders: list[str] = []
        self.error: Exception | None = None

    def __call__(self, sender: str, event: OrderCreated) -> None:
        self.orders.append(event.order_id)
        if self.error:
            raise self.error


@pytest.fixture
def tried(shop: Shop) -> Tried:
    made = Tried()
    shop.only(made)
    return made


def states(shop: Shop) -> list[str]:
    return [delivery.state for delivery in shop.deliveries()]


def test_nothing_is_delivered_to_a_paused_receiver_and_all_to_the_others(shop: Shop) -> None:
    assert shop.bus.pause(MAIL, "the provider asked for it", by="ann")
    shop.place_order()
    shop.dispatch_all()
    assert shop.states() == {"update_user_order_record": "done", MAIL: "ready"}
    assert shop.dispatcher.next_due() == {}

    assert shop.bus.resume(MAIL, by="ann")
    shop.dispatch_all()
    assert shop.order().notification == "sent"
    assert shop.delivery(MAIL).attempts == 1


def test_what_is_being_tried_ends(shop: Shop, tried: Tried) -> None:
    shop.place_order()
    (lease,) = shop.dispatcher.claim({"tried": 1})
    shop.bus.pause("tried", "a test", by="ann")
    shop.dispatcher.deliver([lease])
    assert states(shop) == ["done"]


def test_a_pause_outlives_the_processes(shop: Shop, tried: Tried) -> None:
    shop.place_order()
    shop.bus.pause("tried", "a test", by="ann")
    assert Shop(shop.settings, shop.clock).dispatch() == []
    shop.bus.resume("tried", by="ann")
    Shop(shop.settings, shop.clock).dispatch()
    assert tried.orders == ["1001"]


def test_no_probe_is_made_while_it_is_paused(shop: Shop, tried: Tried) -> None:
    """And a pause spends no attempt, and makes no wait longer."""
    tried.error = Unreachable("no route")
    for n in range(3):
        shop.place_order(f"{n}")
    shop.dispatcher.deliver(shop.dispatcher.claim({"tried": 1}))
    shop.bus.pause("tried", "a test", by="ann")
    shop.clock.advance(3600)
    assert shop.dispatch() == []
    tried.error = None
    shop.bus.resume("tried", by="ann")
    shop.dispatch_all()
    assert tried.orders == ["0", "2", "1", "0"]
    assert shop.count("circuit_breakers") == 0


def test_a_lease_that_ran_out_meanwhile_is_found_after_the_pause(shop: Shop, tried: Tried) -> None:
    shop.place_order()
    shop.bus.dispatcher().claim({"tried": 1})
    shop.bus.pause("tried", "a test", by="ann")
    shop.clock.advance(30)
    assert shop.dispatch() == []
    shop.bus.resume("tried", by="ann")
    shop.dispatch()
    assert shop.outcomes("tried") == ["unknown", "ok"]


def test_both_acts_are_recorded_with_when_who_and_why(shop: Shop) -> None:
    shop.bus.pause(MAIL, "the provider asked for it", by="ann")
    shop.clock.advance(60)
    shop.bus.resume(MAIL, by="bob", reason="it is over")
    with shop.database.read() as session:
        acts = list(session.scalars(select(OperatorAct).order_by(OperatorAct.act_id)))
    assert [(act.acted_at, act.acted_by, act.action, act.filter, act.reason) for act in acts] == [
        (START, "ann", "pause", str(Filter(receiver=MAIL)), "the provider asked for it"),
        (START + timedelta(seconds=60), "bob", "resume", str(Filter(receiver=MAIL)), "it is over"),
    ]
    assert [(act.counted, act.deliveries, act.ended_at == act.acted_at) for act in acts] == [(None, 0, True)] * 2


def test_a_second_pause_changes_nothing_and_a_second_resume_neither(shop: Shop) -> None:
    assert shop.bus.pause(MAIL, "first", by="ann")
    assert not shop.bus.pause(MAIL, "second", by="bob")
    with shop.database.read() as session:
        (paused,) = (each for each in pause.receivers(session) if each.paused_at)
    assert (paused.receiver, paused.state, paused.paused_at, paused.paused_by, paused.reason) == (
        MAIL,
        "paused",
        START,
        "ann",
        "first",
    )
    assert shop.bus.resume(MAIL, by="ann")
    assert not shop.bus.resume(MAIL, by="ann")
    assert shop.count("operator_acts") == 2


@pytest.mark.parametrize("name", ["send_mail", "", "\0", "\udcff", "x" * 300], ids=ascii)
def test_an_unknown_receiver_is_refused_with_the_known_ones(shop: Shop, name: str) -> None:
    for act in (lambda: shop.bus.pause(name, "a test", by="ann"), lambda: shop.bus.resume(name, by="ann")):
        with pytest.raises(UnknownReceiver, match=f"there are: {MAIL}, update_order_notification, update_user_"):
            act()
    assert shop.count("operator_acts") == shop.count("paused_receivers") == 0


def test_one_that_is_not_connected_any_more_can_be_resumed(shop: Shop) -> None:
    shop.bus.pause(MAIL, "a test", by="ann")
    shop.execute("UPDATE paused_receivers SET receiver = 'gone'")
    with shop.database.read() as session:
        assert [each.receiver for each in pause.receivers(session) if not each.connected] == ["gone"]
    assert shop.bus.resume("gone", by="ann")


# Claims that run at that moment


@pytest.mark.postgres
@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_a_pause_waits_for_the_claims_that_began_before_it(shop: Shop, tried: Tried) -> None:
    """So that none can begin to try anything once the pause is told to be there. On SQLite nobody else can claim."""
    for n in range(4):
        shop.place_order(f"{n}")
    paused: list[bool] = []
    pausing = threading.Thread(target=lambda: paused.append(shop.bus.pause("tried", "a test", by="ann")))

    def claim(transaction: Transaction) -> int:
        mine = Claim(transaction, shop.dispatcher.retries, timedelta(seconds=30), "first", alone=False)
        mine.take("tried", 2)
        pausing.start()
        until(lambda: somebody_waits(shop.database))
        assert paused == []
        return len(mine.leases)

    assert shop.database.transact(claim) == 2
    pausing.join(20)
    assert paused == [True]
    assert states(shop) == ["leased", "leased", "ready", "ready"]
    assert shop.dispatcher.claim({"tried": 2}) == []


@pytest.mark.postgres
@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_a_claim_that_meets_a_pause_takes_nothing(shop: Shop, tried: Tried) -> None:
    """It waits for the pause's commit, and then reads it."""
    shop.place_order()
    claimed: list[Any] = []
    claiming = threading.Thread(target=lambda: claimed.append(shop.dispatcher.claim({"tried": 1})))

    def work(transaction: Transaction) -> bool:
        is_new = pause.pause(transaction, "tried", "ann", "a test")
        claiming.start()
        until(lambda: somebody_waits(shop.database))
        return is_new

    assert shop.database.transact(work)
    claiming.join(20)
    assert claimed == [[]]
    assert states(shop) == ["ready"]


# The processes that dispatch


class LiveShop(Shop):
    """A shop whose clock runs, for the worker's threads wait in real time."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings.model_copy(update={"poll_seconds": 60.0}), Clock())


@pytest.fixture
def live(settings: Settings) -> Iterator[LiveShop]:
    made = LiveShop(settings)
    yield made
    made.close()


@pytest.fixture
def elsewhere(live: LiveShop) -> Iterator[LiveShop]:
    """The same service in another process, which does not dispatch."""
    made = LiveShop(live.settings)
    yield made
    made.close()


@pytest.mark.inprocess("what threads have claimed ahead")
def test_what_was_claimed_ahead_is_given_back_at_once(
    live: LiveShop, elsewhere: LiveShop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though the poll is a minute away, and the receiver is at another delivery."""
    monkeypatch.setattr(pool, "QUICK_SECONDS", 20)
    monkeypatch.setattr(pool, "STALLED_SECONDS", 60)
    let_go, entered = threading.Event(), threading.Event()

    def receiver(sender: str, event: OrderCreated) -> None:
        if event.order_id != "first":
            entered.set()
            assert let_go.wait(30)

    live.only(receiver)
    live.place_order("first")
    live.engine.start()
    until(lambda: states(live) == ["done"])
    for n in range(5):
        live.place_order(f"{n}")
    until(lambda: states(live) == ["done", *["leased"] * 5] and entered.is_set())

    elsewhere.bus.pause("receiver", "a test", by="ann")
    until(lambda: sorted(states(live)) == ["done", "leased", *["ready"] * 4], seconds=10)
    let_go.set()
    until(lambda: sorted(states(live)) == ["done", "done", *["ready"] * 4], seconds=10)

    elsewhere.bus.resume("receiver", by="ann")
    until(lambda: set(states(live)) == {"done"}, seconds=10)


# What says so


def test_it_is_told_as_a_warning_and_its_deliveries_are_not_overdue(shop: Shop) -> None:
    shop.place_order()
    shop.bus.pause(MAIL, "the provider asked for it", by="cli:ann")
    shop.dispatch_all()
    shop.clock.advance(3600)
    shop.dispatcher.heartbeat()
    readiness = shop.bus.watch.look()
    assert readiness.reasons == []
    assert readiness.overdue == timedelta(0)
    (trouble,) = readiness.warnings
    assert (trouble.cause, trouble.receiver) == (Cause.RECEIVER_PAUSED, MAIL)
    assert trouble.text == (
        f"the receiver '{MAIL}' was paused at 2026-11-23T08:00:00.000000Z, and its deliveries wait; "
        f"'flask bus resume {MAIL}' lets it go on"
    )
    assert trouble.detail == "by cli:ann: the provider asked for it"
    (finding,) = (str(each) for each in doctor.examine(shop.app).findings if "was paused" in each.text)
    assert finding.startswith("note ")
    assert finding.endswith("(by cli:ann: the provider asked for it)")

    shop.bus.resume(MAIL, by="ann")
    readiness = shop.bus.watch.look()
    assert [trouble.cause for trouble in readiness.reasons] == [Cause.DELIVERIES_OVERDUE]
    assert readiness.overdue == timedelta(hours=1)


def test_it_is_told_where_nothing_waits_and_where_nobody_answers(shop: Shop, tried: Tried) -> None:
    """A delivery that hangs is told though its receiver is paused; that its backend is down is not."""
    tried.error = Unreachable("no route")
    shop.place_order("1")
    shop.dispatch()
    shop.place_order("2")
    (lease,) = shop.dispatcher.claim({"tried": 1})
    shop.bus.pause("tried", "a test", by="ann")
    for _ in range(7):
        shop.clock.advance(10)
        shop.dispatcher.heartbeat()
    assert [trouble.cause for trouble in shop.bus.watch.look().troubles] == [
        Cause.RECEIVER_PAUSED,
        Cause.RECEIVER_HANGS,
    ]
    shop.dispatcher.deliver([lease])
    assert [trouble.cause for trouble in shop.bus.watch.look().troubles] == [Cause.RECEIVER_PAUSED]


def test_readiness_tells_everybody_that_and_nobody_why(api: Api) -> None:
    """/readyz has no password."""
    api.shop.bus.pause(MAIL, "Mrs. Smith complained", by="cli:ann")
    api.shop.dispatcher.heartbeat()
    answer = api.get("/readyz")
    assert answer.status_code == 200
    (warning,) = parse(answer)["warnings"]
    assert f"the receiver '{MAIL}' was paused" in warning
    assert "ann" not in answer.text
    assert "Smith" not in answer.text
