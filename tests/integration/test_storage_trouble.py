"""Trouble of the database, of every kind: an order is answered 503 or 500 as the table says, and what a receiver did
is kept until it can be stored."""

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import event, text

from app.answers import Done
from app.bus import invoke, lifecycle
from app.clock import Clock
from app.db import Database, postgresql, sqlite_module
from app.db.dialect import CONDEMNING, Trouble
from app.engine.inprocess import worker
from app.events import OrderCreated
from config import Settings
from tests.support.shop import Shop
from tests.support.waiting import until
from tests.unit.test_trouble import SQLSTATES

on_postgresql = pytest.mark.parametrize(
    "database_url", [pytest.param("postgresql", marks=pytest.mark.postgres)], indirect=True
)
on_sqlite = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)

STATES = sorted(
    {
        state if len(state) == 5 else next(s for s in SQLSTATES if s.startswith(state) and s not in postgresql.TROUBLE)
        for state in postgresql.TROUBLE
    }
    | {"72000", "45000"}
)
"""One of each row of the table, and two that no row names."""


class LiveShop(Shop):
    """A shop whose clock runs, for the worker's threads wait in real time; it waits for the database only shortly."""

    def __init__(self, settings: Settings, **more: Any) -> None:
        quick: dict[str, Any] = {"poll_seconds": 60.0, "lease_seconds": 3.0, "shutdown_seconds": 5.0}
        super().__init__(settings.model_copy(update=quick | {"database_timeout": 3.0} | more), Clock())


@pytest.fixture
def shop(settings: Settings) -> Iterator[LiveShop]:
    made = LiveShop(settings)
    yield made
    made.close()


class Notes:
    """A receiver with its effects elsewhere: it notes for which orders it was called."""

    __name__ = "notes"

    def __init__(self) -> None:
        self.calls: list[str] = []

    def __call__(self, sender: str, event: OrderCreated) -> None:
        self.calls.append(event.order_id)


@pytest.fixture
def notes(shop: LiveShop) -> Notes:
    receiver = Notes()
    shop.only(receiver)
    return receiver


def allow_unstored(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(worker, "MOST_UNSTORED", count)
    with contextlib.suppress(ModuleNotFoundError):  # Celery need not be installed
        monkeypatch.setattr("app.engine.celery.runner.MOST_UNSTORED", count)


@contextlib.contextmanager
def raising(url: str, table: str, when: str, code: str, condition: str = "true") -> Iterator[None]:
    """In the block, a trigger raises the SQLSTATE that the SQL ``code`` says for rows that meet the condition."""
    database = Database(url)
    statements = [
        f"CREATE FUNCTION raise_for_test() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF {condition} THEN RAISE "
        f"EXCEPTION 'as the test wants' USING ERRCODE = {code}; END IF; RETURN NEW; END $$",
        f"CREATE TRIGGER raise_for_test BEFORE {when} ON {table} FOR EACH ROW EXECUTE FUNCTION raise_for_test()",
    ]

    def run(*statements: str) -> None:
        database.transact(lambda transaction: [transaction.session.execute(text(each)) for each in statements])

    run(*statements)
    try:
        yield
    finally:
        run("DROP FUNCTION raise_for_test() CASCADE")
        database.close()


@contextlib.contextmanager
def refusing(shop: Shop, when: str, table: str, delivery_id: int | None = None) -> Iterator[None]:
    """In the block, the database refuses to write rows of that delivery, or any row, for the row's own sake."""
    which = "true" if delivery_id is None else f"NEW.delivery_id = {delivery_id}"
    if not shop.database.is_sqlite:
        with raising(shop.settings.database_url, table, when, "'23514'", which):
            yield
        return
    shop.execute(f"CREATE TRIGGER refuse BEFORE {when} ON {table} WHEN {which} BEGIN SELECT RAISE(ABORT, 'no'); END")
    try:
        yield
    finally:
        shop.execute("DROP TRIGGER refuse")


def backend(shop: Shop) -> int:
    """The server's process at the other end of the connection that the next transaction gets."""
    query = text("SELECT pg_backend_pid()")
    return int(shop.database.transact(lambda transaction: transaction.session.execute(query).scalar_one()))


ORDER_OF_DELIVERY = "(SELECT order_id FROM deliveries JOIN events USING (event_id) WHERE delivery_id = NEW.delivery_id)"


@on_postgresql
@pytest.mark.parametrize("state", STATES)
def test_an_order_is_answered_as_the_table_says(shop: LiveShop, database_url: str, state: str) -> None:
    stated = (postgresql.TROUBLE.get(state) or postgresql.TROUBLE.get(state[:2]) or (Trouble.SERVER,))[0]
    before = backend(shop)
    shop.database.timeout = 30  # of each answer: the last try may begin just before the request's time is over
    with raising(database_url, "orders", "INSERT", f"'{state}'"):
        answer = shop.post()
        assert answer.status_code == (500 if stated is Trouble.STATEMENT else 503)
        assert ("Retry-After" in answer.headers) == (answer.status_code == 503)
    assert (backend(shop) == before) == (stated not in CONDEMNING), "the connection is kept, or not"
    assert shop.count("events") == 0
    assert shop.post().status_code == 201


@on_postgresql
def test_after_trouble_with_the_server_no_old_connection_is_used(shop: LiveShop, database_url: str) -> None:
    """After a failover all of them lead to the old primary, those too that met no error."""

    def reading() -> set[int]:
        with shop.database.read() as one, shop.database.read() as other:
            return {session.execute(text("SELECT pg_backend_pid()")).scalar_one() for session in (one, other)}

    before = {backend(shop)} | reading()
    assert reading() <= before, "they are kept"
    with raising(database_url, "orders", "INSERT", "'53100'"):
        assert shop.post().status_code == 503, "after one try: a full disk does not pass within a request"
    assert not before & (reading() | {backend(shop)})


@on_postgresql
def test_what_receivers_did_is_kept_whatever_the_database_says_and_holds_up_no_other(
    shop: LiveShop, notes: Notes, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An order of each class, whose answer can't be stored, and some that nothing is wrong with."""
    allow_unstored(monkeypatch, 1000)
    told: dict[str, list[int]] = {}

    def listener(_: object, lease: Any, error: Exception, failures: int) -> None:
        told.setdefault(lease.order_id, []).append(failures)

    healthy = [f"order-{n}" for n in range(5)]
    with lifecycle.answer_unstored.connected_to(listener):
        shop.engine.start()
        with raising(database_url, "attempts", "INSERT", ORDER_OF_DELIVERY, f"{ORDER_OF_DELIVERY} NOT LIKE 'order-%'"):
            for order_id in (*STATES, *healthy):
                shop.place_order(order_id)
            until(lambda: shop.execute_scalar("SELECT count(*) FROM deliveries WHERE state = 'done'") == len(healthy))
            until(lambda: all(len(told.get(order_id, [])) > 1 for order_id in STATES))
            assert set(told) == set(STATES)
            leased = "SELECT count(*) FROM deliveries WHERE state = 'leased'"
            assert shop.execute_scalar(leased) == len(STATES)
        until(lambda: {delivery.state for delivery in shop.deliveries()} == {"done"}, 30)
    assert sorted(notes.calls) == sorted((*STATES, *healthy)), "each once"
    assert shop.execute_scalar("SELECT count(*) FROM attempts WHERE outcome = 'ok'") == len(notes.calls)
    assert shop.count("attempts") == len(notes.calls)


def test_an_answer_that_a_trigger_refuses_waits_for_longer_than_its_lease(shop: LiveShop, notes: Notes) -> None:
    """It is no failed attempt, its lease is extended, and nobody else's answer waits."""
    with refusing(shop, "INSERT", "attempts", 1):
        shop.engine.start()
        shop.place_order("refused")
        until(lambda: notes.calls == ["refused"])
        first_end = shop.delivery("notes").due_at
        shop.place_order("other")
        until(lambda: [delivery.state for delivery in shop.deliveries()] == ["leased", "done"])
        until(lambda: Clock().now() > first_end)
        until(lambda: shop.deliveries()[0].due_at > first_end)
    until(lambda: [delivery.state for delivery in shop.deliveries()] == ["done", "done"], 30)
    assert notes.calls == ["refused", "other"]
    assert shop.execute_scalar("SELECT count(*) FROM attempts WHERE outcome = 'ok'") == 2


@pytest.mark.parametrize(
    "code", [1, 8, 11, 13, 19, 26], ids=["ERROR", "READONLY", "CORRUPT", "FULL", "CONSTRAINT", "NOTADB"]
)
@on_sqlite
def test_what_receivers_did_is_kept_whatever_sqlite_says_at_a_commit(
    shop: LiveShop, notes: Notes, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    trouble = sqlite_module().OperationalError("as the test wants")
    trouble.sqlite_errorcode = code
    commit, refused = shop.database.commit, []

    def refuse(connection: Any) -> None:
        refused.append(connection)
        raise trouble

    for n in range(3):
        shop.place_order(f"{n}")
    hold, go_on = threading.Semaphore(0), threading.Event()
    call = notes.__class__.__call__

    def waits(self: Notes, sender: str, event: OrderCreated) -> None:
        call(self, sender, event)
        hold.release()
        assert go_on.wait(20)

    monkeypatch.setattr(Notes, "__call__", waits)
    shop.engine.start()
    assert hold.acquire(timeout=20)
    monkeypatch.setattr(shop.database, "commit", refuse)
    go_on.set()
    until(lambda: len(refused) > 2)
    monkeypatch.setattr(shop.database, "commit", commit)
    until(lambda: {delivery.state for delivery in shop.deliveries()} == {"done"}, 30)
    assert sorted(notes.calls) == ["0", "1", "2"]
    assert shop.execute_scalar("SELECT count(*) FROM attempts WHERE outcome = 'ok'") == 3


def test_where_many_answers_cannot_be_stored_nothing_more_is_claimed(
    shop: LiveShop, notes: Notes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a damaged table would have all mails sent, and none of them recorded."""
    allow_unstored(monkeypatch, 3)
    for n in range(70):
        shop.place_order(f"{n}")
    told: list[int] = []

    def listener(_: object, lease: Any, error: Exception, failures: int) -> None:
        told.append(failures)

    with refusing(shop, "INSERT", "attempts"), lifecycle.answer_unstored.connected_to(listener):
        shop.engine.start()
        until(lambda: 2 in told)
        assert len(notes.calls) < 70
    until(lambda: shop.execute_scalar("SELECT count(*) FROM deliveries WHERE state = 'done'") == 70, 60)
    assert len(notes.calls) == 70


# Transactional receivers


@on_postgresql
@pytest.mark.parametrize("state", ["23514", "42P01", "P0001", "40001", "0A000", "53100", "XX001", "45000"])
def test_a_receiver_in_a_transaction_fails_by_its_own_statement_only(
    shop: LiveShop, database_url: str, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    """Trouble of the server's spends no attempt, and what shares the batch is done all the same."""
    stated = (postgresql.TROUBLE.get(state) or postgresql.TROUBLE.get(state[:2]) or (Trouble.SERVER,))[0]
    monkeypatch.setattr(invoke, "UNSTORED_WAIT_SECONDS", 0.2)
    shop.policy.seconds = 0.2
    shop.policy.attempts = 1000
    with raising(database_url, "users", "INSERT OR UPDATE", f"'{state}'", "NEW.user_id = 'bad'"):
        for n in range(3):
            shop.place_order(f"good-{n}", user_id=f"u{n}")
        shop.place_order("bad", user_id="bad")
        shop.engine.start()
        until(lambda: all(shop.order(f"good-{n}").status == "confirmed" for n in range(3)))
        reason = (
            "SELECT reason FROM deliveries JOIN events USING (event_id) "
            "WHERE order_id = 'bad' AND receiver = 'update_user_order_record'"
        )
        until(lambda: "as the test wants" in (shop.execute_scalar(reason) or ""))
        assert shop.order("bad").status == "created"
    until(lambda: shop.order("bad").status == "confirmed", 30)
    outcomes = shop.execute_scalar(
        "SELECT coalesce(string_agg(DISTINCT attempts.outcome, ','), '') FROM attempts "
        "JOIN deliveries USING (delivery_id) WHERE receiver = 'update_user_order_record'"
    )
    assert outcomes == ("bug,ok" if stated is Trouble.STATEMENT else "ok")
    assert [shop.user(user).orders_count for user in ("u0", "u1", "u2", "bad")] == [1, 1, 1, 1]


def test_another_databases_trouble_is_the_receivers_own(shop: LiveShop) -> None:
    """Of another driver's errors nothing is this database's trouble, though its code is the same."""

    def asks_elsewhere(sender: str, event: OrderCreated, transaction: Any) -> None:
        if shop.database.is_sqlite:
            import psycopg

            raise psycopg.errors.lookup("57P01")("of another database")
        error = sqlite_module().OperationalError("of another database")
        error.sqlite_errorcode = 5
        raise error

    shop.only(asks_elsewhere)
    shop.place_order()
    shop.dispatch()
    assert shop.outcomes("asks_elsewhere") == ["bug"]


def test_a_receiver_that_can_not_read_is_tried_again_without_an_attempt(
    shop: LiveShop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mail looks its address up: while the database is away that is nobody's fault."""
    driver: Any = shop.database.engine.dialect.dbapi
    shop.place_order()
    (lease,) = shop.dispatcher.claim({"send_email_notification": 1})
    shop.database.close()
    with contextlib.ExitStack() as undo:

        def refuse(*_: Any) -> None:
            raise driver.OperationalError("connection timeout expired")

        event.listen(shop.database.engine, "checkout", refuse)
        undo.callback(event.remove, shop.database.engine, "checkout", refuse)
        answer = shop.dispatcher.invoke(lease)
    assert isinstance(answer, invoke.RetryAfter), answer


def test_an_answer_that_cannot_be_stored_spoils_none_that_is_settled_with_it(shop: LiveShop, notes: Notes) -> None:
    for order_id in ("1", "2", "3"):
        shop.place_order(order_id)
    held = shop.dispatcher.claim({"notes": 3})
    with refusing(shop, "INSERT", "attempts", 2):
        ends, _, unstored = shop.dispatcher.settle_and_claim([(lease, Done()) for lease in held], {})
    assert [end.lease for end in ends] == [held[0], held[2]]
    assert [each.lease for each in unstored] == [held[1]]
    assert [delivery.state for delivery in shop.deliveries()] == ["done", "leased", "done"]


def test_a_row_that_cannot_be_written_keeps_no_other_lease_from_being_extended(shop: LiveShop, notes: Notes) -> None:
    for order_id in ("1", "2", "3"):
        shop.place_order(order_id)
    held = shop.dispatcher.claim({"notes": 3})
    ends = [delivery.due_at for delivery in shop.deliveries()]
    with refusing(shop, "UPDATE", "deliveries", 2):
        shop.dispatcher.heartbeat()
        assert [new.due_at > old for new, old in zip(shop.deliveries(), ends, strict=True)] == [True, False, True]
    shop.dispatcher.heartbeat()
    assert all(new.due_at > old for new, old in zip(shop.deliveries(), ends, strict=True))
    assert len(shop.dispatcher.deliver(held)) == 3
