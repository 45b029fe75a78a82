"""Transactions: one function for all writes, on two databases."""

import contextlib
import random
import re
import select
import sqlite3
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from app import create_app, db
from app.bus import breaker, leases, mark, outbox, queries
from app.bus.outbox import record
from app.bus.tables import UNFINISHED
from app.clock import uuid7
from app.db import Database, Prepared, Transaction, sqlite, sqlite_module
from app.errors import DatabaseUnavailable
from app.events import OrderCreated, order_created
from app.orders import confirm_order, place_order, records, set_email
from app.orders.models import User
from config import Settings
from tests.support.shop import Shop
from tests.support.waiting import until


def test_sqlite_is_durable_and_says_so(sqlite_url: str) -> None:
    database = Database(sqlite_url)
    with database.read() as session:
        found = {
            name: session.execute(text(f"PRAGMA {name}")).scalar_one()
            for name in ("journal_mode", "synchronous", "foreign_keys", "journal_size_limit", "temp_store")
        }
    assert found == {
        "journal_mode": "wal",
        "synchronous": 2,
        "foreign_keys": 1,
        "journal_size_limit": 64 * 1024**2,
        "temp_store": 2,
    }
    database.close()


def test_a_wal_that_a_reader_made_grow_shrinks_when_the_reader_is_gone(sqlite_url: str) -> None:
    """SQLite keeps the file at the size that it once reached, unless it is told not to."""
    database = Database(sqlite_url)
    wal = Path(f"{database.dialect.file}-wal")

    def fill(megabytes: int) -> None:
        work = f"CREATE TABLE IF NOT EXISTS filler (x); INSERT INTO filler VALUES (zeroblob({megabytes * 1_000_000}))"
        for statement in work.split(";"):
            database.transact(lambda transaction, statement=statement: bool(transaction.driver.execute(statement)))

    fill(1)
    with database.read() as reader:
        reader.execute(text("SELECT 1 FROM filler")).all()
        fill(80)
    grown = wal.stat().st_size
    fill(5)  # which empties the WAL into the database
    fill(1)  # which begins it anew
    assert grown > sqlite.WAL_LIMIT_BYTES >= wal.stat().st_size
    database.close()


def test_a_pragma_that_sqlite_refuses_is_an_error() -> None:
    """A database in memory can't be in WAL mode, and does not say so."""
    connection = sqlite_module().connect(":memory:")
    with pytest.raises(DatabaseUnavailable, match="refuses PRAGMA journal_mode=wal"):
        sqlite.set_pragmas(connection, 1)
    connection.close()


def test_the_driver_carries_a_sqlite_without_the_wal_reset_bug() -> None:
    assert sqlite.is_safe(sqlite_module().sqlite_version_info), sqlite_module().sqlite_version


@pytest.mark.parametrize(
    ("version", "safe"),
    [
        ((3, 51, 3), True),
        ((3, 51, 2), False),
        ((3, 52, 0), True),
        ((3, 50, 7), True),
        ((3, 50, 6), False),
        ((3, 44, 6), True),
        ((3, 44, 5), False),
        ((3, 45, 1), False),
        ((3, 40, 1), False),
    ],
)
def test_versions_with_the_wal_reset_bug_are_known(version: tuple[int, int, int], safe: bool) -> None:
    assert sqlite.is_safe(version) is safe


@pytest.mark.parametrize("safe", [True, False])
def test_a_start_with_the_wal_reset_bug_says_so(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, safe: bool
) -> None:
    monkeypatch.setattr(sqlite, "FIXED_VERSIONS", ((0,) if safe else (9999,),))
    create_app(settings.model_copy(update={"log_level": "WARNING"})).extensions["database"].close()
    told = caplog.text
    version = sqlite_module().sqlite_version
    named = f"SQLite {version} can corrupt a database" in told
    assert named == (settings.is_sqlite and not safe)
    assert ("pip install pysqlite3" in told) == named


def test_without_pysqlite3_the_standard_library_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("pysqlite3", "pysqlite3.dbapi2"):
        monkeypatch.setitem(sys.modules, name, None)  # which makes its import fail
    assert sqlite_module() is sqlite3


def test_an_error_rolls_everything_back_and_is_passed_on(shop: Shop) -> None:
    def work(transaction: Transaction) -> None:
        transaction.session.add(User(user_id="1"))
        transaction.session.flush()
        raise LookupError

    with pytest.raises(LookupError):
        shop.database.transact(work)
    assert shop.count("users") == 0


def test_a_fault_of_the_statement_is_not_retried(shop: Shop) -> None:
    calls: list[int] = []

    def work(transaction: Transaction) -> None:
        calls.append(1)
        transaction.session.execute(text("INSERT INTO users (user_id) VALUES (NULL)"))

    with pytest.raises(IntegrityError):
        shop.database.transact(work)
    assert calls == [1]


def test_a_busy_database_is_waited_for(sqlite_url: str) -> None:
    database, holder = Database(sqlite_url, timeout=10), sqlite_module().connect(sqlite_url.removeprefix("sqlite:///"))
    holder.isolation_level = None
    holder.execute("BEGIN IMMEDIATE")
    done = threading.Event()
    writer = threading.Thread(
        target=lambda: (database.transact(lambda transaction: transaction.session.add(User(user_id="1"))), done.set())
    )
    writer.start()
    assert not done.is_set()
    holder.execute("ROLLBACK")
    assert done.wait(10)
    writer.join()
    holder.close()
    database.close()


def test_a_database_busy_for_too_long_is_unavailable_and_nothing_is_stored(sqlite_url: str) -> None:
    database, holder = Database(sqlite_url, timeout=0.2), sqlite_module().connect(sqlite_url.removeprefix("sqlite:///"))
    holder.isolation_level = None
    holder.execute("BEGIN IMMEDIATE")
    with pytest.raises(DatabaseUnavailable):
        database.transact(lambda transaction: transaction.session.add(User(user_id="1")))
    with database.read() as session:  # readers need no lock
        assert session.execute(text("SELECT count(*) FROM users")).scalar_one() == 0
    holder.execute("ROLLBACK")
    holder.close()
    database.transact(lambda transaction: transaction.session.add(User(user_id="1")))
    database.close()


def test_a_write_lost_to_a_transient_fault_runs_again_as_a_whole(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    faults = [shop.database.engine.dialect.dbapi.OperationalError("no connection") for _ in range(2)]  # type: ignore[union-attr]
    seen: list[datetime] = []
    commit = shop.database.commit

    def failing(connection: Connection) -> None:
        if faults:
            raise faults.pop()
        commit(connection)

    monkeypatch.setattr(shop.database, "commit", failing)

    def work(transaction: Transaction) -> str:
        seen.append(transaction.now)
        transaction.session.add(User(user_id="1"))
        return "done"

    assert shop.database.transact(work) == "done"
    assert len(seen) == 3
    assert shop.count("users") == 1


def test_a_database_that_is_not_there_is_unavailable() -> None:
    database = Database("postgresql+psycopg://nobody@127.0.0.1:1/nothing", timeout=0.2)
    with pytest.raises(DatabaseUnavailable):
        database.transact(lambda transaction: transaction.session.execute(text("SELECT 1")))
    with pytest.raises(DatabaseUnavailable), database.read() as session:
        session.execute(text("SELECT 1"))


def test_a_process_that_was_stopped_in_a_transaction_begins_it_again(postgres_url: str) -> None:
    """The server has ended it meanwhile, so that nobody waits for what it held."""
    database, watcher = Database(postgres_url), Database(postgres_url)
    runs: list[int] = []

    def work(transaction: Transaction) -> None:
        session = transaction.session
        runs.append(session.execute(text("SELECT pg_backend_pid()")).scalar_one())
        if len(runs) == 1:
            session.execute(text("SET LOCAL idle_in_transaction_session_timeout = 1"))
            until(lambda: not alive(runs[0]))
        session.add(User(user_id="1"))

    def alive(backend: int) -> bool:
        with watcher.read() as session:
            query = text("SELECT count(*) FROM pg_stat_activity WHERE pid = :backend")
            return bool(session.execute(query, {"backend": backend}).scalar_one())

    database.transact(work)
    assert len(runs) == 2
    for each in (database, watcher):
        each.close()


def test_two_users_locked_in_opposite_order_end_well(postgres_url: str) -> None:
    """PostgreSQL ends one of the two as the victim of a deadlock; it runs again."""
    database = Database(postgres_url)
    both = threading.Barrier(2, timeout=10)
    runs: list[str] = []

    def count(first: str, second: str) -> None:
        waited: list[int] = []

        def work(transaction: Transaction) -> None:
            session = transaction.session
            runs.append(first)
            lock = "UPDATE users SET orders_count = orders_count + 1 WHERE user_id = :u"
            session.execute(text(lock), {"u": first})
            if not waited:
                waited.append(1)
                both.wait()
            session.execute(text(lock), {"u": second})

        database.transact(work)

    database.transact(lambda transaction: transaction.session.add_all([User(user_id="a"), User(user_id="b")]))
    threads = [threading.Thread(target=count, args=pair) for pair in (("a", "b"), ("b", "a"))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    with database.read() as session:
        assert session.execute(text("SELECT orders_count FROM users")).scalars().all() == [2, 2]
    assert len(runs) == 3
    database.close()


def test_a_transaction_that_reads_first_can_still_write(sqlite_url: str) -> None:
    """One that began as a reader would fail as soon as another has written, whatever the busy timeout."""
    database, driver = Database(sqlite_url), sqlite_module()
    other = driver.connect(sqlite_url.removeprefix("sqlite:///"), timeout=0, isolation_level=None)

    def work(transaction: Transaction) -> None:
        session = transaction.session
        assert session.execute(text("SELECT count(*) FROM users")).scalar_one() == 0
        with pytest.raises(driver.OperationalError, match="locked"):
            other.execute("DELETE FROM users")
        session.add(User(user_id="1"))

    database.transact(work)
    other.close()
    database.close()


def test_readers_see_one_moment(shop: Shop) -> None:
    with shop.database.read() as session:
        before = session.execute(text("SELECT count(*) FROM orders")).scalar_one()
        shop.place_order()
        after = session.execute(text("SELECT count(*) FROM orders")).scalar_one()
    assert (before, after) == (0, 0)


@pytest.mark.parametrize("price", ["0.00", "0.10", "0.30", "19.99", "9999999999.99"])
def test_money_is_exact_and_reads_well(shop: Shop, price: str) -> None:
    shop.place_order(price=price)
    assert shop.order().total_price == Decimal(price)
    with shop.database.read() as session:
        assert str(session.execute(text("SELECT total_price FROM orders")).scalar_one()) == price


def test_sums_are_exact(shop: Shop) -> None:
    for n in range(30):
        shop.place_order(f"{n}", price="0.10")
    for n in range(3):
        shop.place_order(f"big-{n}", price="9999999999.99")
    shop.dispatch_all()
    assert shop.user().total_spent == Decimal("30000000002.97")


def test_times_are_utc_and_sort_as_text(sqlite_url: str) -> None:
    database = Database(sqlite_url)
    moment = datetime(2026, 11, 23, 1, 0, tzinfo=timezone(timedelta(hours=8)))
    database.transact(lambda transaction: transaction.session.add(User(user_id="1", last_order_at=moment)))
    with database.read() as session:
        assert session.execute(text("SELECT last_order_at FROM users")).scalar_one() == "2026-11-22T17:00:00.000000Z"
        found = session.get_one(User, "1").last_order_at
    assert (found, found.tzinfo if found else None) == (moment, UTC)
    assert db.iso(moment) < db.iso(moment + timedelta(microseconds=1))
    database.close()


def test_fifty_identical_orders_at_once_are_one(shop: Shop) -> None:
    results: list[str | None] = []
    start = threading.Barrier(50)

    def place() -> None:
        event_id = uuid7()

        def work(transaction: Transaction) -> str | None:
            facts: dict[str, Any] = {"order_id": "1", "user_id": "2", "total_price": Decimal(3), "email": "a@b.example"}
            earlier = place_order(transaction, **facts, event_id=event_id)
            if earlier is None:
                order_created.send("test", event=OrderCreated(**facts), event_id=event_id)
            return earlier

        start.wait()
        results.append(shop.database.transact(work))

    threads = [threading.Thread(target=place) for _ in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results.count(None) == 1
    assert len(results) == 50
    assert {result for result in results if result} == {shop.order("1").event_id}
    assert (shop.count("orders"), shop.count("events")) == (1, 1)


def test_the_latest_order_is_the_users_last_whatever_order_they_are_counted_in(shop: Shop) -> None:
    for n in range(3):
        shop.place_order(f"{n}")
        shop.clock.advance(1)
    for order_id in ("1", "2", "0"):
        shop.database.transact(lambda transaction, order_id=order_id: confirm_order(transaction, order_id))  # type: ignore[misc]
    assert (shop.user().last_order_id, shop.user().orders_count) == ("2", 3)


def test_a_reader_of_the_feed_misses_nothing_that_commits_late(postgres_url: str) -> None:
    """On PostgreSQL a transaction that began first may commit last; its events must not appear behind the cursor."""
    database = Database(postgres_url)
    began, go_on = threading.Event(), threading.Event()

    def slow(transaction: Transaction) -> None:
        _record(transaction, "slow")
        transaction.write_postponed()  # and with them the transaction's id
        began.set()
        assert go_on.wait(20)

    def feed(after: str | None) -> tuple[list[str], str | None]:
        with database.read() as session:
            found, cursor = queries.feed(session, after, 10)
            return [row.order_id for row in found], cursor

    thread = threading.Thread(target=lambda: database.transact(slow))
    thread.start()
    assert began.wait(20)
    database.transact(lambda transaction: _record(transaction, "quick"))
    seen, cursor = feed(None)
    assert seen == [], "what is later than a running transaction is not shown yet"
    go_on.set()
    thread.join()
    until(lambda: feed(cursor)[0] == ["slow", "quick"])
    _, cursor = feed(cursor)
    assert feed(cursor)[0] == []
    database.close()


def test_a_reader_of_the_feed_sees_each_event_once_whatever_commits_when(postgres_url: str) -> None:
    """Four writers hold transactions open for as long as they please, and roll some back; a reader pages along."""
    database, writers, each = Database(postgres_url), 4, 40
    seen: list[str] = []

    def write(writer: int) -> None:
        rng = random.Random(writer)
        for n in range(each):

            def work(transaction: Transaction, n: int = n) -> None:
                _record(transaction, f"{writer}-{n}")
                transaction.write_postponed()
                transaction.session.execute(text(f"SELECT pg_sleep({rng.choice((0, 0.001, 0.02))})"))
                if n % 5 == 4:
                    raise LookupError

            with contextlib.suppress(LookupError):
                database.transact(work)

    def page(after: str | None) -> str | None:
        with database.read() as session:
            found, cursor = queries.feed(session, after, 7)
        seen.extend(row.order_id for row in found)
        return cursor

    expected = {f"{writer}-{n}" for writer in range(writers) for n in range(each) if n % 5 != 4}
    threads = [threading.Thread(target=write, args=[writer]) for writer in range(writers)]
    for thread in threads:
        thread.start()
    cursor = None
    while any(thread.is_alive() for thread in threads):
        cursor = page(cursor)
    deadline = time.monotonic() + 20
    while len(seen) < len(expected) and time.monotonic() < deadline:  # a transaction of another database may hold it up
        cursor = page(cursor)
    assert sorted(seen) == sorted(expected)
    database.close()


def test_a_query_in_the_transaction_finds_what_was_recorded_in_it(shop: Shop) -> None:
    """It is inserted when the transaction ends, and sooner for a query."""

    def work(transaction: Transaction) -> list[str]:
        _record(transaction, "1")
        return list(transaction.session.scalars(text("SELECT order_id FROM events")))

    assert shop.database.transact(work) == ["1"]
    assert shop.count("events") == 1


def test_a_transaction_that_is_gone_is_run_again_and_no_statement_stands_alone(shop: Shop) -> None:
    """SQLite rolls back by itself where the disk is full. Then a statement would be a transaction of its own."""
    runs: list[int] = []

    def work(transaction: Transaction) -> None:
        runs.append(1)
        transaction.session.add(User(user_id=f"of run {len(runs)}"))
        with transaction.savepoint():
            if len(runs) == 1:
                transaction.driver.execute("ROLLBACK")

    shop.database.transact(work)
    assert len(runs) == 2
    assert shop.execute_scalar("SELECT user_id FROM users") == "of run 2"


def test_a_failure_in_a_transaction_that_is_gone_is_not_the_failures_alone(shop: Shop) -> None:
    """What is caught outside of a savepoint would else go on without what was done before it."""
    runs: list[int] = []

    def work(transaction: Transaction) -> None:
        runs.append(1)
        set_email(transaction, "1", "ann@example.com")
        with contextlib.suppress(LookupError), transaction.savepoint():
            if len(runs) == 1:
                transaction.driver.execute("ROLLBACK")
            raise LookupError

    shop.database.transact(work)
    assert len(runs) == 2
    assert shop.user("1").email == "ann@example.com"


def _record(transaction: Transaction, order_id: str) -> None:
    event = OrderCreated(order_id=order_id, user_id="1", total_price=Decimal(1))
    record(transaction, event, source="test", owed=[])


def test_the_feed_refuses_a_cursor_it_did_not_make(shop: Shop) -> None:
    for cursor in ("", "5", "-", "1-", "-1", "a-b", "1-²", "9" * 30 + "-1"):
        with pytest.raises(ValueError, match="not a cursor"), shop.database.read() as session:
            queries.feed(session, cursor, 10)


@pytest.fixture
def sqlite_database(sqlite_url: str) -> Iterator[Database]:
    database = Database(sqlite_url)
    yield database
    database.close()


@pytest.mark.parametrize(
    ("query", "index"),
    [
        (f"SELECT min(due_at) FROM deliveries WHERE receiver = 'x' AND {UNFINISHED}", "deliveries_due"),
        (
            f"SELECT * FROM deliveries WHERE receiver = 'x' AND due_at <= 'y' AND {UNFINISHED} ORDER BY due_at LIMIT 5",
            "deliveries_due",
        ),
        ("SELECT receiver FROM deliveries WHERE deliveries.state = 'dead' GROUP BY receiver", "deliveries_dead"),
        ("SELECT * FROM events WHERE order_id = 'x'", "events_order_id"),
        ("SELECT * FROM orders WHERE user_id = 'x' ORDER BY event_id DESC LIMIT 5", "orders_user_id_event_id"),
        ("SELECT * FROM orders ORDER BY event_id DESC LIMIT 5", "orders_event_id"),
    ],
)
def test_a_hot_query_uses_its_index(sqlite_database: Database, query: str, index: str) -> None:
    """Its cost must not grow with history: the partial indexes hold only what is unfinished."""
    with sqlite_database.read() as session:
        plan = " ".join(row.detail for row in session.execute(text(f"EXPLAIN QUERY PLAN {query}")))
    assert f"USING INDEX {index}" in plan or f"USING COVERING INDEX {index}" in plan, plan
    assert "TEMP B-TREE FOR ORDER" not in plan


STATEMENTS = {
    "leases.select_tokens": leases.select_tokens(3),
    "leases.claim": leases.claim(3),
    "leases.claim, ordered": leases.claim(3, ordered=True),
    "leases.find_numbered": leases.find_numbered(3),
    "leases.still_first": leases.still_first(3),
    **{f"records.MARK_NOTIFICATION[{state}]": made for state, made in records.MARK_NOTIFICATION.items()},
    **{
        f"{module.__name__}.{name}": made
        for module in (breaker, leases, mark, records, outbox)
        for name, made in vars(module).items()
        if isinstance(made, Prepared)
    },
}
"""The very statements that are prepared."""


def test_the_prepared_statements_are_found() -> None:
    assert len(STATEMENTS) > 15


@pytest.mark.parametrize("name", STATEMENTS)
def test_a_statement_of_every_order_scans_no_table(sqlite_database: Database, name: str) -> None:
    """But ``circuit_breakers`` and ``paused_receivers``, which have a row for each receiver that is, and no more;
    ``dispatchers``, which has a few; and what a subquery has found by an index."""
    compiled = STATEMENTS[name].compiled(sqlite_database.dialect)
    explain, unknown = f"EXPLAIN QUERY PLAN {compiled.sql}", [None] * len(compiled.parameters)
    plan = sqlite_database.query(lambda reader: [row[3] for row in reader.driver.execute(explain, unknown)])
    small = r"SCAN (?!circuit_breakers|paused_receivers|dispatchers|found|CONSTANT|\d+-ROW VALUES)"
    scanned = [step for step in plan if re.match(small, step)]
    assert not scanned, plan
    assert not any("TEMP B-TREE" in step for step in plan), plan


# Between processes


def test_what_one_process_notifies_another_hears(postgres_url: str) -> None:
    database, other = Database(postgres_url), Database(postgres_url)
    listener = database.dialect.listen("deliveries")
    assert listener is not None
    assert not select.select([listener], [], [], 0)[0]
    other.dialect.notify("deliveries")
    assert select.select([listener], [], [], 20)[0]
    listener.drain()
    assert not select.select([listener], [], [], 0)[0]
    listener.close()
    with pytest.raises(DatabaseUnavailable):
        listener.fileno()
    for each in (database, other):
        each.close()


def test_a_listener_that_the_server_ended_says_so(postgres_url: str) -> None:
    database = Database(postgres_url)
    listener = database.dialect.listen("deliveries")
    assert listener is not None
    with database.read() as session:
        ends = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'LISTEN%'"
        session.execute(text(ends))

    def hears_the_end() -> None:
        while select.select([listener], [], [], 20)[0]:
            listener.drain()

    with pytest.raises(DatabaseUnavailable):
        hears_the_end()
    listener.close()
    database.close()


def test_nobody_listens_where_there_is_no_server() -> None:
    database = Database("postgresql+psycopg://nobody@127.0.0.1:1/nothing", timeout=0.2)
    with pytest.raises(DatabaseUnavailable):
        database.dialect.listen("deliveries")
    with pytest.raises(DatabaseUnavailable):
        database.dialect.notify("deliveries")


def test_a_database_file_has_no_listeners(sqlite_database: Database) -> None:
    assert sqlite_database.dialect.listen("deliveries") is None
    sqlite_database.dialect.notify("deliveries")


def test_a_transactions_session_is_sqlalchemys_own(shop: Shop) -> None:
    def fails(session: Session) -> None:
        with session.begin_nested():
            session.add(User(user_id="1"))
            session.flush()
            session.execute(text("INSERT INTO users (user_id) VALUES (NULL)"))

    def work(transaction: Transaction) -> None:
        session = transaction.session
        assert isinstance(session, Session)
        assert transaction.session is session
        with pytest.raises(IntegrityError):
            fails(session)
        session.add(User(user_id="2"))

    shop.database.transact(work)
    assert shop.execute_scalar("SELECT user_id FROM users") == "2"


def test_what_a_savepoint_undoes_is_gone_and_the_rest_stays(shop: Shop) -> None:
    def fails(transaction: Transaction) -> None:
        with transaction.savepoint():
            transaction.session.add(User(user_id="undone"))
            _record(transaction, "undone")
            raise LookupError

    def work(transaction: Transaction) -> None:
        transaction.session.add(User(user_id="kept"))
        _record(transaction, "kept")
        with pytest.raises(LookupError):
            fails(transaction)

    shop.database.transact(work)
    assert shop.execute_scalar("SELECT user_id FROM users") == "kept"
    assert shop.execute_scalar("SELECT order_id FROM events") == "kept"
