"""Operators' acts: what they touch, what can be seen of them, and what an abort takes back."""

import threading
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Connection, text
from sqlalchemy import event as sqlalchemy_event

from app.bus import Act, Filter, acts, operate
from app.bus.acts import ActView, Progress
from app.db import sqlite_module
from app.errors import ActNotFound, Deferred, InDoubt, OrderNotFound, Refused, SpreadTooLong, Unreachable
from app.events import OrderCreated
from app.resend import resend
from tests.support.shop import START, Shop


class Server:
    """A receiver that answers as it is told, by order, and else as the first word says."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.by_order: dict[str, Exception | None] = {}
        self.tried: list[str] = []

    def __call__(self, sender: str, event: OrderCreated) -> None:
        self.tried.append(event.order_id)
        if error := self.by_order.get(event.order_id, self.error):
            raise error


@pytest.fixture
def server(shop: Shop) -> Server:
    """The only receiver. It refuses everything."""
    made = Server(Refused("550 no"))
    shop.only(made, name="server")
    return made


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operate, "BATCH", 2)


def place(shop: Shop, count: int) -> None:
    for number in range(count):
        shop.place_order(f"{number}")


def act_of(shop: Shop, act_id: int = 1) -> ActView:
    with shop.database.read() as session:
        return acts.find_act(session, act_id, shop.clock.now())


def progress(shop: Shop, act_id: int = 1) -> Progress:
    found = act_of(shop, act_id).progress
    assert found is not None
    return found


def states(shop: Shop) -> list[str]:
    return [delivery.state for delivery in shop.deliveries()]


def rows(shop: Shop) -> list[Any]:
    """All that an act may change."""
    with shop.database.read() as session:
        columns = "delivery_id, state, due_at, attempts, outcome, reason, settled_at"
        return list(session.execute(text(f"SELECT {columns} FROM deliveries ORDER BY delivery_id")))


def fail_all(shop: Shop, count: int) -> None:
    place(shop, count)
    shop.dispatch()


# Which are touched


def test_waiting_and_dead_ones_are_retried_and_discarded_ones_when_asked_for(shop: Shop, server: Server) -> None:
    server.by_order = {"1": Deferred("450 later")}
    fail_all(shop, 3)
    shop.bus.discard(Filter(order_id="2"), "a test", by="ops")
    assert states(shop) == ["dead", "ready", "discarded"]

    assert shop.bus.retry(Filter(), by="ops") == 2
    assert states(shop) == ["ready", "ready", "discarded"]
    assert {delivery.due_at for delivery in shop.deliveries()[:2]} == {START}
    assert shop.bus.retry(Filter(state="discarded"), by="ops") == 1


def test_one_that_waits_becomes_due_and_nothing_else_of_it_changes(shop: Shop, server: Server) -> None:
    server.error = Deferred("450 later")
    fail_all(shop, 1)
    waiting = shop.delivery("server")
    assert waiting.due_at > START
    shop.bus.retry(Filter(), by="ops")
    due = shop.delivery("server")
    kept = ("state", "attempts", "outcome", "reason", "settled_at", "lease_token")
    assert due.due_at == START
    assert {name: getattr(due, name) for name in kept} == {name: getattr(waiting, name) for name in kept}
    assert [end.outcome for end in shop.dispatch()] == ["deferred"]
    assert shop.deliveries()[0].attempts == 2


def test_one_that_is_overdue_does_not_lose_its_place(shop: Shop, server: Server) -> None:
    place(shop, 1)
    shop.clock.advance(60)
    assert shop.bus.retry(Filter(), by="ops") == 1
    assert shop.deliveries()[0].due_at == START


def test_one_in_doubt_stays_in_doubt_and_no_copy_is_forgotten(shop: Shop) -> None:
    tried: list[str] = []

    def sender(_: str, event: OrderCreated) -> None:
        tried.append(event.order_id)
        raise InDoubt("no answer")

    shop.only(sender, unknown_limit=2)
    shop.place_order("1")
    shop.dispatch()
    assert shop.delivery("sender").outcome == "unknown"

    shop.bus.retry(Filter(), by="ops")
    (lease,) = shop.dispatcher.claim({"sender": 1})
    assert (lease.in_doubt, lease.unknown) == (True, 1)
    shop.dispatcher.deliver([lease])
    assert (tried, shop.delivery("sender").state) == (["1", "1"], "dead")


def test_what_runs_is_spared(shop: Shop, server: Server) -> None:
    place(shop, 2)
    shop.dispatcher.claim({"server": 1})
    assert shop.bus.retry(Filter(), by="ops") == 1
    assert shop.bus.retry(Filter(state="leased"), by="ops") == 0
    assert shop.bus.discard(Filter(state="leased"), "a test", by="ops") == 0
    assert states(shop) == ["leased", "ready"]


def test_what_came_after_the_count_is_not_touched(shop: Shop, server: Server) -> None:
    """Neither a delivery that was made since, nor one that went dead since: also not one that had been counted."""
    server.by_order = {"1": Deferred("450 later")}
    fail_all(shop, 2)
    shop.place_order("2")
    (leased,) = shop.dispatcher.claim({"server": 1})
    assert leased.order_id == "2"
    chosen = shop.bus.choose(Act("retry", Filter(), "ops"))
    assert len(chosen) == 2

    server.by_order = {}
    shop.dispatcher.deliver([leased])
    shop.clock.advance(60)
    shop.dispatch()
    shop.place_order("3")
    assert states(shop) == ["dead", "dead", "dead", "ready"]
    done = shop.bus.carry_out(chosen)
    assert (done.deliveries, states(shop)) == (1, ["ready", "dead", "dead", "ready"])
    assert (act_of(shop).counted, act_of(shop).deliveries) == (2, 1)


def test_of_two_people_who_act_at_once_each_touches_what_still_matches(shop: Shop, server: Server) -> None:
    fail_all(shop, 2)
    mine = shop.bus.choose(Act("retry", Filter(state="dead"), "ann"))
    shop.bus.discard(Filter(order_id="0"), "closed", by="bob")
    assert shop.bus.carry_out(mine).deliveries == 1
    assert states(shop) == ["discarded", "ready"]


@pytest.mark.postgres
@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_what_a_dispatcher_settles_at_this_moment_is_seen_as_it_then_is(shop: Shop, server: Server) -> None:
    """The act waits for its row, which it had chosen, and finds it tried. On SQLite one comes first."""
    server.error = Deferred("450 later")
    fail_all(shop, 1)
    chosen = shop.bus.choose(Act("retry", Filter(), "ops"))
    shop.clock.advance(60)
    counts: list[int] = []
    acting = threading.Thread(target=lambda: counts.append(shop.bus.carry_out(chosen).deliveries))
    (lease,) = shop.dispatcher.claim({"server": 1})

    def before_execute(_: Any, __: Any, statement: str, *___: Any) -> None:
        if statement.startswith("SELECT attempts"):  # the breaker's question, in the transaction that settles
            acting.start()

    sqlalchemy_event.listen(shop.database.engine, "before_cursor_execute", before_execute)
    shop.dispatcher.deliver([lease])
    if not acting.ident:
        acting.start()
    acting.join(20)
    assert counts == [0]


# How they are spread


def test_the_tries_are_spread_evenly(shop: Shop, server: Server, small_batches: None) -> None:
    fail_all(shop, 5)
    done = shop.bus.carry_out(shop.bus.choose(Act("retry", Filter(), "ops", over_seconds=600)))
    assert done.deliveries == 5
    due = [delivery.due_at - START for delivery in shop.deliveries()]
    assert due == [timedelta(seconds=120 * number) for number in range(5)]
    shop.dispatch()
    assert server.tried[5:] == ["0"]


def test_what_is_spread_stays_spread_when_the_breaker_closes(shop: Shop, server: Server) -> None:
    """Else the mail server that came back would have all of them at once."""
    server.error = Unreachable("no route")
    fail_all(shop, 4)
    shop.clock.advance(1)
    shop.dispatch()
    shop.bus.carry_out(shop.bus.choose(Act("retry", Filter(), "ops", over_seconds=400, probe=True)))
    server.error = None
    shop.dispatch()
    assert shop.count("circuit_breakers") == 0
    later = [d.due_at - shop.clock.now() for d in shop.deliveries() if d.state == "ready"]
    assert later == [timedelta(seconds=100 * number) for number in range(1, 4)]


def test_a_spread_over_longer_than_any_wait_is_refused(shop: Shop) -> None:
    with pytest.raises(SpreadTooLong, match="over 3600 s at most, which is RETRY_MAX_SECONDS"):
        shop.bus.choose(Act("retry", Filter(), "ops", over_seconds=3601))


# The circuit breaker


def test_a_probe_is_due_now_when_it_is_asked_for(shop: Shop, server: Server) -> None:
    server.error = Unreachable("no route")
    fail_all(shop, 3)
    shop.clock.advance(60)
    shop.dispatch()
    server.error = None
    assert shop.dispatch() == []

    shop.bus.retry(Filter(), by="ops")
    assert shop.dispatch() == [], "what is due waits for the breaker"
    shop.bus.carry_out(shop.bus.choose(Act("retry", Filter(), "ops", probe=True)))
    assert [end.state for end in shop.dispatch()] == ["done"]
    assert len(shop.dispatch()) == 2


def test_no_second_probe_beside_one_that_is_under_way(shop: Shop, server: Server) -> None:
    server.error = Unreachable("no route")
    fail_all(shop, 3)
    shop.clock.advance(60)
    (probe,) = shop.dispatcher.claim({"server": 3})
    assert probe.probe
    shop.dispatcher.heartbeat()  # extends it
    shop.bus.carry_out(shop.bus.choose(Act("retry", Filter(), "ops", probe=True)))
    assert shop.bus.dispatcher().claim({"server": 3}) == []


# What is seen of them


def test_an_act_is_counted_to_its_end(shop: Shop, server: Server) -> None:
    fail_all(shop, 4)
    shop.bus.retry(Filter(), by="ops")
    assert progress(shop) == Progress(left=4, receivers=("server",), left_to=("server",))

    server.error = None
    server.by_order = {"1": Refused("550 still no"), "2": Deferred("450 later")}
    shop.dispatch()
    assert progress(shop) == Progress(done=2, failed={"deferred": 1, "refused": 1}, receivers=("server",))
    assert act_of(shop).state == "ended"

    shop.clock.advance(91 * 86400)
    shop.bus.discard(Filter(), "a test", by="ops")
    shop.bus.prune()
    assert (progress(shop).forgotten, progress(shop).discarded) == (2, 2)


def test_acts_are_listed_newest_first_and_large_ones_not_counted(
    shop: Shop, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_all(shop, 2)
    shop.bus.retry(Filter(), by="ann")
    shop.bus.discard(Filter(order_id="1"), "closed", by="bob")
    monkeypatch.setattr(acts, "COUNTED_IN_LISTS", 1)
    with shop.database.read() as session:
        found, cursor = acts.list_acts(session, shop.clock.now())
        first, before = acts.list_acts(session, shop.clock.now(), limit=1)
        second, _ = acts.list_acts(session, shop.clock.now(), limit=1, before=before)
    assert [(act.action, act.acted_by, act.filter, act.reason) for act in found] == [
        ("discard", "bob", {"order_id": "1"}, "closed"),
        ("retry", "ann", {}, None),
    ]
    assert [act.progress and act.progress.discarded for act in found] == [1, None]
    assert cursor is None
    assert [act.act_id for act in first + second] == [2, 1]


def test_an_unknown_act_is_an_error(shop: Shop) -> None:
    with pytest.raises(ActNotFound, match="there is no act 7"):
        act_of(shop, 7)
    with pytest.raises(ActNotFound, match="there is no act 7"):
        shop.bus.abort(7, by="ops")


# One that was left in the middle


@pytest.fixture
def left(shop: Shop, server: Server, small_batches: None) -> Shop:
    """An act on five whose process died after two."""

    def die(_: int) -> None:
        raise KeyboardInterrupt

    fail_all(shop, 5)
    with pytest.raises(KeyboardInterrupt):
        shop.bus.carry_out(shop.bus.choose(Act("retry", Filter(), "ops", over_seconds=100)), die)
    return shop


def test_an_act_that_was_left_in_the_middle_is_seen(left: Shop) -> None:
    act = act_of(left)
    assert (act.counted, act.deliveries, act.ended_at, act.state) == (5, 2, None, "running")
    left.clock.advance(61)
    assert act_of(left).state == "left"


def test_the_same_command_goes_on_with_it(left: Shop) -> None:
    """What it had touched keeps its time."""
    before = left.deliveries()[1].due_at
    left.clock.advance(7)
    chosen = left.bus.choose(Act("retry", Filter(), "ops", over_seconds=100))
    assert (chosen.act_id, chosen.touched, len(chosen)) == (1, 2, 3)
    assert left.bus.carry_out(chosen).deliveries == 3
    act = act_of(left)
    assert (act.counted, act.deliveries, act.state) == (5, 5, "ended")
    assert left.deliveries()[1].due_at == before
    assert len(left.bus.choose(Act("retry", Filter(), "ops", over_seconds=100))) == 5, "a new act"


@pytest.mark.parametrize("what", ["tried", "discarded"])
def test_it_begins_anew_once_something_that_it_had_touched_is_selected_again(left: Shop, what: str) -> None:
    """Else the command would not do what it says."""
    act = Act("retry", Filter(), "ops", over_seconds=100)
    if what == "tried":
        left.dispatch()
        assert states(left) == ["dead", "ready", "dead", "dead", "dead"]
    else:
        left.bus.discard(Filter(order_id="0"), "closed", by="ops")
        left.execute("UPDATE deliveries SET state = 'dead' WHERE delivery_id = 1")
    chosen = left.bus.choose(act)
    assert (chosen.act_id, len(chosen)) == (None, 5)
    assert left.bus.carry_out(chosen).deliveries == 5


@pytest.mark.parametrize(
    "act",
    [
        Act("retry", Filter(), "somebody else", over_seconds=100),
        Act("retry", Filter(), "ops"),
        Act("retry", Filter(order_id="1"), "ops", over_seconds=100),
        Act("discard", Filter(), "ops", "a test"),
    ],
    ids=lambda act: f"{act.action} {act.which} {act.by}",
)
def test_another_command_does_not(left: Shop, act: Act) -> None:
    assert left.bus.choose(act).act_id is None


def test_two_processes_that_go_on_with_it_touch_nothing_twice(left: Shop) -> None:
    both = [left.bus.choose(Act("retry", Filter(), "ops", over_seconds=100)) for _ in range(2)]
    assert [left.bus.carry_out(chosen).deliveries for chosen in both] == [3, 0]
    assert act_of(left).deliveries == 5


# Abort


def test_what_is_not_tried_yet_goes_back_to_what_it_was(shop: Shop, server: Server, small_batches: None) -> None:
    server.by_order = {"4": Deferred("450 later")}
    fail_all(shop, 6)
    shop.bus.discard(Filter(order_id="5"), "closed", by="ops")
    before = rows(shop)
    shop.clock.advance(5)
    for which in (Filter(), Filter(state="discarded")):
        shop.bus.carry_out(shop.bus.choose(Act("retry", which, "ops", over_seconds=100)))
    server.error = None
    shop.dispatch()  # the first of each
    held = shop.deliveries()[1]
    shop.execute("UPDATE deliveries SET due_at = :now WHERE delivery_id = 2", now=shop.clock.now())
    shop.dispatcher.claim({"server": 1})

    assert (shop.bus.abort(2, by="ann"), shop.bus.abort(3, by="ann")) == (3, 0)
    after = rows(shop)
    assert (after[0].state, after[1].state, after[5].state) == ("done", "leased", "done")
    assert after[2:5] == before[2:5]
    act = act_of(shop, 2)
    assert (act.state, act.aborted_by, act.aborted_at) == ("aborted", "ann", shop.clock.now())
    assert progress(shop, 2) == Progress(done=1, left=1, taken_back=3, receivers=("server",), left_to=(held.receiver,))
    assert act_of(shop, 3).state == "ended", "of it nothing was left"
    assert shop.bus.abort(2, by="ann") == 0


def test_what_failed_since_stays(shop: Shop, server: Server) -> None:
    fail_all(shop, 2)
    server.by_order = {"0": Deferred("450 later"), "1": Refused("550 still no")}
    shop.bus.retry(Filter(), by="ops")
    shop.dispatch()
    assert shop.bus.abort(1, by="ops") == 0
    assert states(shop) == ["ready", "dead"]


def test_what_a_later_act_touched_is_that_acts(shop: Shop, server: Server) -> None:
    fail_all(shop, 2)
    shop.bus.carry_out(shop.bus.choose(Act("retry", Filter(), "ops", over_seconds=100)))
    shop.bus.retry(Filter(order_id="1"), by="ops")
    assert shop.bus.abort(1, by="ops") == 1
    assert states(shop) == ["dead", "ready"]
    assert shop.bus.abort(2, by="ops") == 1
    assert shop.bus.abort(1, by="ops") == 1, "once that act is taken back it is the first one's again"
    assert states(shop) == ["dead", "dead"]


def test_an_act_that_goes_on_ends_when_it_is_aborted(shop: Shop, server: Server, small_batches: None) -> None:
    fail_all(shop, 5)
    chosen = shop.bus.choose(Act("retry", Filter(), "ops"))
    taken_back: list[int] = []
    done = shop.bus.carry_out(chosen, lambda _: taken_back.append(shop.bus.abort(1, by="ann")))
    assert (done.deliveries, done.aborted, taken_back) == (2, True, [2])
    assert states(shop) == ["dead"] * 5
    assert shop.bus.choose(Act("retry", Filter(), "ops")).act_id is None, "it does not go on"


def test_a_discard_that_is_over_can_not_be_aborted(shop: Shop, server: Server) -> None:
    fail_all(shop, 1)
    shop.bus.discard(Filter(), "closed", by="ops")
    assert shop.bus.abort(1, by="ops") == 0
    assert (states(shop), act_of(shop).state) == (["discarded"], "ended")


@pytest.mark.postgres
@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_what_is_tried_at_this_moment_is_not_taken_back(shop: Shop, server: Server) -> None:
    """The abort has read that it waits, and locks it only once a dispatcher has tried it. On SQLite one comes first."""
    server.error = Deferred("450 later")
    fail_all(shop, 1)
    shop.bus.retry(Filter(), by="ops")
    tried: list[Any] = []

    def before_execute(_: Any, __: Any, statement: str, *___: Any) -> None:
        if statement.endswith("FOR UPDATE") and "FROM deliveries" in statement and not tried:
            tried.append(None)
            trying = threading.Thread(target=lambda: tried.extend(shop.bus.dispatcher().run_once()))
            trying.start()
            trying.join(20)

    sqlalchemy_event.listen(shop.database.engine, "before_cursor_execute", before_execute)
    assert shop.bus.abort(1, by="ops") == 0
    assert [end.outcome for end in tried[1:]] == ["deferred"]
    assert shop.deliveries()[0].attempts == 2


# Lists


def test_reasons_of_one_kind_are_one_group(shop: Shop, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.by_order = {f"{n}": Refused(f"550 5.1.1 <u{n}@x.example>: no such user") for n in range(3)}
    server.by_order["3"] = Deferred("450 4.7.1 come back in 7 seconds")
    server.error = None
    fail_all(shop, 5)
    with shop.database.read() as session:
        groups, complete = operate.group_by_reason(session, Filter(), operate.NOT_DONE)
        monkeypatch.setattr(operate, "GROUPED_AT_MOST", 3)
        _, of_more = operate.group_by_reason(session, Filter(), operate.NOT_DONE)
        _, of_three = operate.group_by_reason(session, Filter(state="dead"), operate.NOT_DONE)
    assert [(g.deliveries, g.state, g.outcome, g.reason, g.example_order_id) for g in groups] == [
        (3, "dead", "refused", "550 5.1.1 <address>: no such user", "2"),
        (1, "ready", "deferred", "450 4.7.1 come back in <n> seconds", "3"),
    ]
    assert (complete, of_more, of_three) == (True, False, True)


def test_the_next_try_is_what_an_open_breaker_lets_through(shop: Shop, server: Server) -> None:
    server.error = Unreachable("no route")
    fail_all(shop, 2)
    shop.clock.advance(60)
    shop.dispatch()
    shop.bus.retry(Filter(), by="ops")
    with shop.database.read() as session:
        found, _ = operate.find(session, Filter())
        tries = operate.next_tries(session, found, shop.clock.now())
    assert set(tries) == {1, 2}
    assert all(at > shop.clock.now() for at in tries.values())


@pytest.fixture
def explained(shop: Shop) -> Iterator[list[str]]:
    """SQLite's plans of the statements that are executed."""
    statements: list[tuple[str, Any]] = []
    sqlalchemy_event.listen(
        shop.database.engine, "before_cursor_execute", lambda _, __, sql, values, *___: statements.append((sql, values))
    )
    plans: list[str] = []
    yield plans
    with shop.database.read() as session:
        driver = session.connection().connection.dbapi_connection
        for sql, values in statements.copy():
            if sql.startswith("SELECT"):
                plans += [row[3] for row in driver.execute(f"EXPLAIN QUERY PLAN {sql}", values)]
    assert plans
    assert not [
        plan
        for plan in plans
        if plan.startswith("SCAN deliveries") or plan.endswith("deliveries USING INTEGER PRIMARY KEY (rowid>?)")
    ]


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize(
    "which",
    [Filter(), Filter(receiver="server"), Filter(state="dead"), Filter(state="discarded"), Filter(order_id="1")],
)
def test_what_is_done_is_not_looked_at(shop: Shop, server: Server, explained: list[str], which: Filter) -> None:
    """Whatever is listed, grouped or counted: with a million that are done, it costs no more."""
    fail_all(shop, 2)
    with shop.database.read() as session:
        operate.find(session, which, states=operate.NOT_DONE)
        operate.group_by_reason(session, which, operate.NOT_DONE)
        operate.count(session, "retry", which)
        operate.choose(session, Act("retry", which, "ops"))


# Send again


def sent(shop: Shop) -> list[Any]:
    return list(shop.mailer.outbox)


def test_a_notification_is_sent_again_as_a_new_mail(shop: Shop) -> None:
    shop.place_order(email="ann@example.com")
    shop.dispatch_all()
    shop.clock.advance(3600)
    resent = resend(shop.bus, "1001", by="cli:ann", reason="asked by phone")
    shop.dispatch_all()
    first, second = sent(shop)
    assert second.recipients == ["ann@example.com"]
    assert first.msgId != second.msgId
    assert resent.event_id in second.msgId
    assert first.body == second.body, "the time of the order, too"
    assert second.date - first.date == 3600
    (asked,) = [event for event in shop.timeline() if event["type"] == "NotificationRequested"]
    assert (asked["source"], asked["data"]["requested_by"]) == ("cli:ann", "cli:ann")
    act = act_of(shop)
    assert (act.action, act.filter, act.reason, act.acted_by) == (
        "resend",
        {"order_id": "1001"},
        "asked by phone",
        "cli:ann",
    )
    assert progress(shop) == Progress(done=1, receivers=("send_email_notification",))


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_it_is_asked_for_once_though_the_answer_to_the_commit_got_lost(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop.place_order()
    shop.dispatch_all()
    commit, lost = shop.database.commit, [True]

    def commit_and_lose_the_answer(connection: Connection) -> None:
        commit(connection)
        if lost and lost.pop():
            error = sqlite_module().OperationalError("database is locked")
            error.sqlite_errorcode = 5
            raise error

    monkeypatch.setattr(shop.database, "commit", commit_and_lose_the_answer)
    assert resend(shop.bus, "1001", by="ops").act_id == 1
    shop.dispatch_all()
    assert (len(sent(shop)), shop.count("operator_acts")) == (2, 1)


def test_there_must_be_such_an_order(shop: Shop) -> None:
    with pytest.raises(OrderNotFound, match="there is no order 7"):
        resend(shop.bus, "7", by="ops")
    assert (shop.count("events"), shop.count("operator_acts")) == (0, 0)


@pytest.mark.parametrize(
    "first, then, reads",
    [
        ("refused", "sent", "sent"),
        ("skipped", "sent", "sent"),
        ("sent", "refused", "sent"),
        ("sent", "skipped", "sent"),
        ("skipped", "refused", "failed"),
    ],
)
def test_the_orders_record_reads_right_afterwards(shop: Shop, first: str, then: str, reads: str) -> None:
    """Its notification was sent if any of its mails was."""
    shop.place_order(user_id="42")
    deliver = shop.mailer.backend.deliver

    def mail_server(answer: str) -> None:
        def refuse(*_: object) -> None:
            raise Refused("550 no")

        shop.mailer.backend.deliver = refuse if answer == "refused" else deliver
        address = None if answer == "skipped" else "users.example"
        shop.app.extensions["settings"] = shop.settings.model_copy(update={"user_email_domain": address})

    mail_server(first)
    shop.dispatch_all()
    resend(shop.bus, "1001", by="ops")
    mail_server(then)
    shop.dispatch_all()
    assert shop.order().notification == reads


def test_what_was_asked_for_again_and_is_not_tried_yet_can_be_taken_back(shop: Shop) -> None:
    shop.place_order()
    shop.dispatch_all()
    resend(shop.bus, "1001", by="ops")
    assert shop.bus.abort(1, by="ann") == 1
    shop.dispatch_all()
    assert len(sent(shop)) == 1
    again = shop.deliveries("send_email_notification")[1]
    assert (again.state, again.reason) == ("discarded", "act 1, which asked for it, was aborted")
    assert shop.order().notification == "sent"
