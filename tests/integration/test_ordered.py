"""Receivers that are ordered by key: of one order's, or one user's, deliveries one at a time, in their order."""

import json
import re
import threading
from collections import defaultdict
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from app.answers import Discard, Done
from app.bus import Act, Dispatcher, Filter, Replay, leases, operate
from app.bus.invoke import Failure
from app.bus.leases import HELD_BACK, Lease
from app.db import Base, Reader
from app.errors import Refused
from app.events import NotificationSent, OrderCreated, notification_sent, order_created
from app.retry.policy import PROBE_MAXIMUM
from app.states import Outcome
from tests.support.shop import Shop, not_begun
from tests.support.simulation import quiet

DAY = timedelta(days=1)
FAILED = Failure(Outcome.DEFERRED, "come back later")
GIVEN_UP = Failure(Outcome.REFUSED, "no")


class Outside:
    """A receiver with its effects elsewhere, that remembers what it was given."""

    __name__ = "ordered"

    def __init__(self) -> None:
        self.given: list[str] = []
        self.answer: Callable[[str], Any] = lambda _: None

    def __call__(self, sender: str, event: OrderCreated) -> Any:
        self.given.append(event.order_id)
        return self.answer(event.order_id)


@pytest.fixture
def outside(shop: Shop) -> Outside:
    """The only receiver of orders, ordered by user."""
    made = Outside()
    shop.only(made, name="ordered", ordered_by="user_id")
    return made


def claim(shop: Shop, most: int = 10, dispatcher: Dispatcher | None = None) -> list[Lease]:
    return (dispatcher or shop.dispatcher).claim({"ordered": most})


def orders_of(leases: list[Lease]) -> list[str]:
    return [lease.order_id for lease in leases]


def place(shop: Shop, *orders: str) -> None:
    """Each as ``order/user``; one without a user is of the user "a"."""
    for order in orders:
        order_id, _, user_id = order.partition("/")
        shop.place_order(order_id, user_id or "a")


# What a claim may take


def test_of_one_key_one_delivery_is_under_way_at_a_time(shop: Shop, outside: Outside) -> None:
    place(shop, "1", "2", "3/b", "4")
    first = claim(shop)
    assert orders_of(first) == ["1", "3"]
    assert claim(shop) == []
    shop.dispatcher.settle([(first[0], Done())])
    assert orders_of(claim(shop)) == ["2"]


def test_they_come_in_the_order_of_their_events(shop: Shop, outside: Outside) -> None:
    place(shop, *(f"{number}/{'ab'[number % 2]}" for number in range(20)))
    shop.dispatch_all()
    for odd in (0, 1):
        assert [n for n in outside.given if int(n) % 2 == odd] == [f"{n}" for n in range(20) if n % 2 == odd]
    assert len(outside.given) == 20


def test_the_next_is_due_in_the_transaction_that_ends_the_one_before(shop: Shop, outside: Outside) -> None:
    place(shop, "1", "2")
    (lease,) = claim(shop)
    assert claim(shop) == []
    _, claimed, _ = shop.dispatcher.settle_and_claim([(lease, Done())], {"ordered": 10})
    assert orders_of(claimed) == ["2"]


def test_a_receiver_may_be_ordered_by_order(shop: Shop) -> None:
    shop.only(Outside(), name="ordered", ordered_by="order_id")
    place(shop, "1", "2")
    assert orders_of(claim(shop)) == ["1", "2"]
    assert {each.ordering_key for each in shop.deliveries()} == {"1", "2"}


def test_one_that_is_not_ordered_takes_what_it_can(shop: Shop) -> None:
    shop.only(Outside(), name="ordered")
    place(shop, "1", "2")
    assert orders_of(claim(shop)) == ["1", "2"]
    assert {each.ordering_key for each in shop.deliveries()} == {None}


def test_two_receivers_of_one_event_do_not_wait_for_each_other(shop: Shop, outside: Outside) -> None:
    other = Outside()
    shop.receive(other, name="other", ordered_by="user_id")
    place(shop, "1", "2")
    assert len(claim(shop)) == 1
    assert orders_of(shop.dispatcher.claim({"other": 10})) == ["1"]


def test_a_transactional_receiver_is_ordered_too_also_for_what_another_publishes(shop: Shop) -> None:
    """It is not called in the transaction that publishes: another delivery of the key may be before it."""
    heard: list[str] = []

    def hears(sender: str, event: NotificationSent, session: Any) -> None:
        heard.append(event.order_id)

    shop.only(hears, notification_sent, ordered_by="user_id")
    shop.mailer.backend.deliver, deliver = _refuse, shop.mailer.backend.deliver
    place(shop, "1", "2")
    shop.mailer.backend.deliver = deliver
    shop.dispatch_all()
    assert sorted(heard) == ["1", "2"]
    assert {each.state for each in shop.deliveries("hears")} == {"done"}
    assert {each.ordering_key for each in shop.deliveries("hears")} == {"a"}


def _refuse(*_: Any) -> None:
    raise Refused("no")


# What holds the next one up, and what lets it go


def test_one_that_waits_for_its_next_try_holds_up_its_key_and_no_other(shop: Shop, outside: Outside) -> None:
    place(shop, "1", "2", "3/b")
    first, other = claim(shop)
    shop.dispatcher.settle([(first, FAILED), (other, Done())])
    assert claim(shop) == []
    shop.clock.advance(59)
    assert claim(shop) == []
    shop.clock.advance(1)
    (again,) = claim(shop)
    assert again.order_id == "1"
    shop.dispatcher.settle([(again, Done())])
    assert orders_of(claim(shop)) == ["2"]


@pytest.mark.parametrize("answer", [GIVEN_UP, Discard("not needed"), Done()], ids=["dead", "discarded", "done"])
def test_one_that_has_ended_lets_the_next_one_go(shop: Shop, outside: Outside, answer: Any) -> None:
    place(shop, "1", "2")
    (lease,) = claim(shop)
    assert claim(shop) == []
    shop.dispatcher.settle([(lease, answer)])
    assert orders_of(claim(shop)) == ["2"]


def test_one_that_a_person_discards_lets_the_next_one_go(shop: Shop, outside: Outside) -> None:
    place(shop, "1", "2")
    shop.dispatcher.settle([(lease, FAILED) for lease in claim(shop)])
    assert claim(shop) == []
    act(shop, "discard", "1")
    assert orders_of(claim(shop)) == ["2"]


def act(shop: Shop, action: str, order_id: str) -> int:
    with shop.database.read() as session:
        chosen = operate.choose(session, Act(action, Filter(order_id=order_id), "me"))
    return operate.carry_out(shop.database, chosen).act_id


def test_one_that_a_person_retries_waits_for_what_runs_and_comes_before_what_does_not(
    shop: Shop, outside: Outside
) -> None:
    place(shop, "1", "2", "3")
    shop.dispatcher.settle([(lease, GIVEN_UP) for lease in claim(shop)])
    (second,) = claim(shop)
    assert second.order_id == "2"
    act(shop, "retry", "1")
    assert claim(shop) == []
    shop.dispatcher.settle([(second, FAILED)])
    assert orders_of(claim(shop)) == ["1"]


def test_a_retry_that_is_aborted_lets_the_next_one_go(shop: Shop, outside: Outside) -> None:
    place(shop, "1", "2", "3")
    shop.dispatcher.settle([(lease, GIVEN_UP) for lease in claim(shop)])
    (second,) = claim(shop)
    act_id = act(shop, "retry", "1")
    assert claim(shop) == []
    shop.dispatcher.settle([(second, Done())])
    shop.execute("UPDATE deliveries SET due_at = :later WHERE delivery_id = 1", later=shop.clock.now() + DAY)
    assert claim(shop) == []
    assert shop.bus.abort(act_id, "me") == 1
    assert orders_of(claim(shop)) == ["3"]


def test_one_that_was_not_begun_keeps_its_place(shop: Shop, outside: Outside) -> None:
    place(shop, "1", "2")
    shop.dispatcher.settle(not_begun(claim(shop)))
    assert orders_of(claim(shop)) == ["1"]


def test_a_lease_that_ran_out_is_tried_again_before_the_next_one(shop: Shop, outside: Outside) -> None:
    """Its process was killed."""
    place(shop, "1", "2")
    assert orders_of(claim(shop)) == ["1"]
    shop.clock.advance(31)
    other = shop.bus.dispatcher()
    (again,) = claim(shop, dispatcher=other)
    assert (again.order_id, again.in_doubt) == ("1", True)
    assert claim(shop, dispatcher=other) == []
    other.settle([(again, Done())])
    assert orders_of(claim(shop, dispatcher=other)) == ["2"]


def test_a_release_that_is_lost_costs_a_minute(shop: Shop, outside: Outside) -> None:
    """As by a process of an older version, that does not know of keys."""
    place(shop, "1", "2")
    claim(shop)
    claim(shop)
    shop.execute("UPDATE deliveries SET state = 'done', settled_at = created_at WHERE delivery_id = 1")
    assert claim(shop) == []
    shop.clock.advance(HELD_BACK.total_seconds())
    assert orders_of(claim(shop)) == ["2"]


def test_the_newest_key_is_the_probe_while_the_circuit_breaker_is_open(shop: Shop, outside: Outside) -> None:
    place(shop, *(f"{key}/{key}" for key in "abcdef"))
    shop.dispatcher.settle([(lease, Failure(Outcome.UNREACHABLE, "no route")) for lease in claim(shop, 5)])
    place(shop, "first/z", "second/z")
    shop.clock.advance(PROBE_MAXIMUM)
    (probe,) = claim(shop)
    assert (probe.order_id, probe.probe) == ("first", True)


def test_replayed_events_are_ordered_as_well(shop: Shop) -> None:
    place(shop, "1", "2")
    late = Outside()
    shop.receive(late, name="ordered", ordered_by="user_id")
    which = Replay("ordered", "OrderCreated")
    shop.bus.replay(which, shop.bus.find_recorded(which), by="me")
    assert orders_of(claim(shop)) == ["1"]
    assert claim(shop) == []


# A long row


def test_a_long_row_behind_one_delivery_is_looked_at_once(shop: Shop, outside: Outside) -> None:
    place(shop, *(f"{number}" for number in range(200)))
    (first,) = claim(shop)
    place(shop, "other/b")
    assert orders_of(claim(shop)) == ["other"]

    due = shop.execute_scalar("SELECT count(*) FROM deliveries WHERE state = 'ready' AND waits_behind IS NULL")
    assert due == 0, "all are held back"
    assert shop.dispatcher.next_due()["ordered"] > shop.clock.now()
    shop.dispatcher.settle([(first, Done())])
    held = shop.execute_scalar("SELECT count(*) FROM deliveries WHERE waits_behind IS NOT NULL")
    assert held == 198, "one was released"
    assert orders_of(claim(shop)) == ["1"]


@pytest.mark.parametrize("name", ["PLACES_DUE", "PLACES_PROBE", "PLACES_FRESH", "HOLD_BACK", "RELEASE"])
def test_the_claim_looks_at_keys_by_an_index(shop: Shop, name: str) -> None:
    """Its cost does not grow with what has ended, nor with the row behind one delivery."""
    statement = getattr(leases, name)
    words = dict.fromkeys(("name", "of_receiver", "of_key", "due_because"), "x")
    numbers = {"most": 5, "of_delivery": 1, "waits_behind": 1}
    values = words | numbers | dict.fromkeys(("now", "due_at", "at"), shop.clock.now())

    def explain(reader: Reader) -> str:
        compiled = statement.compiled(reader.dialect)
        how = "EXPLAIN QUERY PLAN" if reader.dialect.one_writer else "EXPLAIN"
        if not reader.dialect.one_writer:
            reader.driver.execute("SET enable_seqscan = off")  # of a table that is empty, a scan is the best plan
        rows = reader.driver.execute(f"{how} {compiled.sql}", compiled.bind(values)).fetchall()
        return "\n".join(str(row[-1]) for row in rows)

    plan = shop.database.query(explain)
    shop.database.renew_connections()
    by_its_index = "deliveries_ordered" in plan or name == "HOLD_BACK"
    assert by_its_index, plan
    assert not re.search(r"SCAN (other|deliveries)\b|Seq Scan", plan), plan


def test_what_waits_behind_what_is_told(shop: Shop, outside: Outside, run: Any) -> None:
    place(shop, "1", "2")
    claim(shop)
    claim(shop)
    told = run("orders", "show", "2")
    assert "It waits behind delivery 1 of the same user_id." in told
    assert "1 held back, the first behind delivery 1 of a" in run("bus", "status")
    doctor = shop.app.test_cli_runner().invoke(args=["doctor"]).output
    assert "1 deliveries to ordered wait behind others of their key, the first behind delivery 1 of a" in doctor
    (found,) = [each for each in json.loads(run("bus", "status", "--json"))["receivers"] if each["held_back"]]
    assert found["held_back"] == {"deliveries": 1, "delivery_id": 2, "ordering_key": "a", "waits_behind": 1}
    assert "It waits behind delivery 1" in shop.client.get("/orders/2").text


# Subscribing


@pytest.mark.parametrize("wrong", ["user", "", 1, "email"])
def test_a_key_that_events_do_not_have_is_refused(wrong: Any) -> None:
    with pytest.raises(ValueError, match="give 'order_id' or 'user_id', or leave it out"):
        order_created.connect(Outside(), name="wrong", ordered_by=wrong)


def test_a_receiver_of_two_signals_is_ordered_by_one_key(shop: Shop) -> None:
    receiver = Outside()
    shop.receive(receiver, name="twice", ordered_by="user_id")
    with pytest.raises(ValueError, match="is connected to order_created with ordered_by='user_id'; give the same here"):
        notification_sent.connect(receiver, name="twice", ordered_by="order_id")


# Several dispatchers


def test_several_dispatchers_keep_the_order(shop: Shop, outside: Outside) -> None:
    """Claims and settles race; one in ten attempts fails, one in ten leases is given back."""
    under_way: set[str] = set()
    lock, wrong, done = threading.Lock(), [], defaultdict(list)
    keys, each_of = 6, 12
    place(shop, *(f"{key}-{number:02}/{key}" for number in range(each_of) for key in range(keys)))
    everything = keys * each_of

    def work(number: int) -> None:
        dispatcher = shop.bus.dispatcher()
        count = 0
        while sum(map(len, done.values())) < everything and not wrong:
            for lease in claim(shop, 3, dispatcher):
                count += 1
                with lock:
                    if lease.user_id in under_way:
                        wrong.append(f"two of {lease.user_id}")
                    under_way.add(lease.user_id)
                with lock:
                    under_way.discard(lease.user_id)
                    if count % 10:
                        done[lease.user_id].append(lease.order_id)
                answer = (lease, Done()) if count % 10 else not_begun([lease])[0]
                dispatcher.settle([answer])

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert wrong == []
    assert {key: len(found) for key, found in done.items()} == {f"{key}": each_of for key in range(keys)}
    assert all(found == sorted(found) for found in done.values())


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
@pytest.mark.parametrize("moment", ["before it looks again", "after it has looked"])
@pytest.mark.postgres
def test_one_that_commits_late_does_not_run_beside_another_of_its_key(
    shop: Shop, outside: Outside, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """Delivery 1 is not there yet, for others, when a claim finds delivery 2. It is committed, and claimed by another
    dispatcher, while that claim is under way."""
    place(shop, "1", "2")
    shop.execute("UPDATE deliveries SET state = 'done' WHERE delivery_id = 1")
    where, name = (shop.database.dialect, "try_lock_keys") if moment.startswith("before") else (leases, "hold")
    original, others = getattr(where, name), list[list[Lease]]()

    def claim_of_another() -> None:
        shop.execute("UPDATE deliveries SET state = 'ready' WHERE delivery_id = 1")
        others.append(claim(shop, dispatcher=shop.bus.dispatcher()))

    def interrupted(*arguments: Any) -> Any:
        monkeypatch.setattr(where, name, original)
        result = original(*arguments) if name == "try_lock_keys" else None
        in_between = threading.Thread(target=claim_of_another)
        in_between.start()
        in_between.join(60)
        return original(*arguments) if name == "hold" else result

    monkeypatch.setattr(where, name, interrupted)
    mine = claim(shop)
    assert others == [[]], "the key is locked"
    assert orders_of(mine) == ([] if moment.startswith("before") else ["2"])
    shop.dispatcher.settle(not_begun(mine))
    assert orders_of(claim(shop)) == ["1"]


# Against a model: whatever happens, in whatever order

KEYS = st.sampled_from(["a", "b", "c"])
SOME = st.integers(0, 9)


class Machine(RuleBasedStateMachine):
    """Two dispatchers, a person and a clock."""

    shop: Shop

    def __init__(self) -> None:
        super().__init__()
        empty(self.shop)
        self.dispatchers = [self.shop.bus.dispatcher() for _ in range(2)]
        self.held: list[tuple[Dispatcher, Lease]] = []
        self.placed = 0
        self.retried: set[int] = set()

    @rule(user=KEYS, count=st.integers(1, 3))
    def place(self, user: str, count: int) -> None:
        for _ in range(count):
            self.placed += 1
            self.shop.place_order(f"{self.placed}", user)

    @rule(which=st.sampled_from([0, 1]), most=st.integers(1, 4))
    def claim(self, which: int, most: int) -> None:
        before = self.unfinished()
        for lease in self.dispatchers[which].claim({"ordered": most}):
            earlier = [n for n, key, state in before if key == lease.user_id and n < lease.delivery_id]
            assert earlier == [], "one that came before it is unfinished"
            self.held.append((self.dispatchers[which], lease))

    @precondition(lambda self: self.held)
    @rule(place=SOME, answer=st.sampled_from([Done(), FAILED, GIVEN_UP, Discard("no"), None]))
    def settle(self, place: int, answer: Any) -> None:
        dispatcher, lease = self.held.pop(place % len(self.held))
        dispatcher.settle([(lease, answer)] if answer is not None else not_begun([lease]))

    @precondition(lambda self: self.held)
    @rule(place=SOME)
    def die(self, place: int) -> None:
        """The lease is left to run out."""
        dispatcher, lease = self.held.pop(place % len(self.held))
        dispatcher.abandon([lease])

    @rule(seconds=st.sampled_from([1, 29, 31, 61]))
    def advance(self, seconds: int) -> None:
        """The dispatchers that live extend their leases."""
        self.shop.clock.advance(seconds)
        for dispatcher in self.dispatchers:
            dispatcher.heartbeat()

    @precondition(lambda self: self.placed)
    @rule(place=SOME, action=st.sampled_from(["retry", "discard"]))
    def operate(self, place: int, action: str) -> None:
        act(self.shop, action, f"{place % self.placed + 1}")

    def unfinished(self) -> list[tuple[int, str, str]]:
        return self.shop.execute_all(
            "SELECT delivery_id, ordering_key, state FROM deliveries WHERE state IN ('ready', 'leased') "
            "ORDER BY delivery_id"
        )

    @invariant()
    def one_of_a_key_is_under_way(self) -> None:
        leased = [key for _, key, state in self.unfinished() if state == "leased"]
        assert len(leased) == len(set(leased))

    @invariant()
    def the_first_of_a_key_is_never_held_back(self) -> None:
        unfinished = self.unfinished()
        busy = {key for _, key, state in unfinished if state == "leased"}
        first = {key: number for number, key, _ in reversed(unfinished) if key not in busy}
        held_back = {
            number
            for (number,) in self.shop.execute_all("SELECT delivery_id FROM deliveries WHERE waits_behind IS NOT NULL")
        }
        assert not held_back & set(first.values())

    def teardown(self) -> None:
        """Nothing stays for ever."""
        self.shop.clock.advance(31)
        for _ in range(self.placed * 8):
            for lease in (dispatcher := self.dispatchers[0]).claim({"ordered": 4}):
                dispatcher.settle([(lease, Done())])
            if not self.unfinished():
                break
            self.shop.clock.advance(31)
        assert self.unfinished() == []


def empty(shop: Shop) -> None:
    names = [table.name for table in reversed(Base.metadata.sorted_tables)]
    for name in names:
        shop.execute(f"DELETE FROM {name}")


def test_the_order_holds_whatever_happens(shop: Shop, outside: Outside) -> None:
    with quiet():
        Machine.shop = shop
        run_state_machine_as_test(Machine, settings=hypothesis_settings(max_examples=25, stateful_step_count=30))
