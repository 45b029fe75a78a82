"""Group commit: callers share a transaction, and a fault of one harms no other. On SQLite there is one write lock."""

import errno
import fcntl
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, select
from sqlalchemy.exc import IntegrityError

from app.bus.outbox import record, record_into
from app.bus.tables import StoredEvent
from app.db import Database, Dialect, Prepared, Transaction, sqlite_module
from app.db.group_commit import Work
from app.db.write_queue import (
    FIRST_TRY,
    LONGEST_FIRST_PAUSE_SECONDS,
    LONGEST_WAIT_SECONDS,
    PAUSE_SECONDS,
    WriteQueue,
)
from app.errors import DatabaseUnavailable, OrderConflict
from app.events import OrderCreated, order_created
from app.orders import set_email, take_order
from app.orders.models import Order, User
from tests.support.waiting import until

Function = Callable[[Transaction], Any]

BUSY = sqlite_module().OperationalError("database is locked")
BUSY.sqlite_errorcode = 5
FAILING_DISK = sqlite_module().OperationalError("disk I/O error")
FAILING_DISK.sqlite_errorcode = 10

on_sqlite = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
on_postgresql = pytest.mark.parametrize(
    "database_url", [pytest.param("postgresql", marks=pytest.mark.postgres)], indirect=True
)


class WatchedDatabase(Database):
    """Notes how many works each transaction has, and fails where a test says so."""

    def __init__(self, *arguments: Any, **how: Any) -> None:
        super().__init__(*arguments, **how)
        self.batches: list[int] = []
        self.tries = 0
        self.begin_fault: Callable[[], BaseException | None] = lambda: None
        self.commit_fault: Callable[[], BaseException | None] = lambda: None

    def run_batch(self, take_works: Callable[[], list[Work]]) -> None:
        def taken() -> list[Work]:
            works = take_works()
            self.batches.append(len(works))
            return works

        self.tries += 1
        if (fault := self.begin_fault()) is not None:
            raise fault
        super().run_batch(taken)

    def commit(self, connection: Connection) -> None:
        if (fault := self.commit_fault()) is not None:
            raise fault
        super().commit(connection)


class Callers:
    """Threads that have works done at once: the first leads until all the others queue behind it."""

    def __init__(self, database: WatchedDatabase) -> None:
        self.database = database

    def transact(self, function: Function) -> Any:
        """As a request does it: on PostgreSQL only works with a lock order share a commit."""
        return self.database.transact(function, getattr(function, "lock_order", ""))

    def do(self, *functions: Function) -> list[Any]:
        """What each returned, or the exception that it ended with."""
        return self.call(*(partial(self.transact, function) for function in functions))

    def call(self, *calls: Callable[[], Any]) -> list[Any]:
        """What each returned, or the exception that it ended with. Each has one work done."""
        entered, go_on = threading.Event(), threading.Event()
        results: list[Any] = [None] * len(calls)

        def first(_: Transaction) -> None:
            entered.set()
            assert go_on.wait(20)

        def run(n: int, call: Callable[[], Any]) -> None:
            try:
                results[n] = call()
            except BaseException as error:
                results[n] = error

        leader = threading.Thread(target=self.transact, args=[first])
        leader.start()
        assert entered.wait(20)
        threads = [threading.Thread(target=run, args=each) for each in enumerate(calls)]
        for n, thread in enumerate(threads, 1):
            thread.start()
            until(lambda n=n: self.database.group_commit.waiting == n)  # type: ignore[misc]
        go_on.set()
        for thread in (leader, *threads):
            thread.join(20)
        return results


@pytest.fixture
def database(database_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[WatchedDatabase]:
    monkeypatch.setattr("app.db.group_commit.QUEUE_SECONDS", 60)  # nobody leads beside another
    monkeypatch.setattr("app.db.admission.STUCK_SECONDS", 60)  # a leader that waits for the test is no stuck database
    database = WatchedDatabase(database_url)
    yield database
    database.close()


@pytest.fixture
def callers(database: WatchedDatabase) -> Callers:
    return Callers(database)


def adds(user_id: str) -> Function:
    def work(transaction: Transaction) -> str:
        transaction.session.add(User(user_id=user_id))
        return user_id

    return work


def users(database: Database) -> list[str]:
    with database.read() as session:
        return sorted(session.scalars(select(User.user_id)))


class Stopped(BaseException):
    """As SystemExit and KeyboardInterrupt are."""


def test_threads_that_arrive_during_a_commit_share_the_next_one(callers: Callers) -> None:
    assert callers.do(adds("a"), adds("b"), adds("c")) == ["a", "b", "c"]
    assert callers.database.batches == [1, 3]
    assert users(callers.database) == ["a", "b", "c"]


@pytest.fixture
def inserted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows each prepared INSERT had."""
    counts: list[int] = []
    for_rows = Prepared.for_rows

    def counting(self: Prepared, dialect: Dialect, rows: Any) -> tuple[str, list[Any]]:
        counts.append(len(rows))
        return for_rows(self, dialect, rows)

    monkeypatch.setattr(Prepared, "for_rows", counting)
    return counts


def test_events_of_all_works_are_inserted_by_one_statement(callers: Callers, inserted: list[int]) -> None:
    def records(order_id: str) -> Function:
        event = OrderCreated(order_id=order_id, user_id="1", total_price=Decimal(1))
        return lambda transaction: record(transaction, event, source="test", owed=[])

    callers.do(records("a"), records("b"), records("c"))
    assert inserted == [3]
    with callers.database.read() as session:
        assert sorted(session.scalars(select(StoredEvent.order_id))) == ["a", "b", "c"]


def test_orders_of_a_commit_are_inserted_by_one_statement_and_each_is_told_its_own(
    callers: Callers, inserted: list[int]
) -> None:
    def takes(order_id: str, event_id: str, price: int = 1) -> Callable[[], str | None]:
        event = OrderCreated(order_id=order_id, user_id="1", total_price=Decimal(price))
        return partial(take_order, callers.database, "test", event, event_id)

    callers.database.before_work = record_into
    assert takes("stored", "0")() is None
    inserted.clear()
    with order_created.muted():  # other tests of this process may have connected receivers
        new, first, again, replayed, conflict = callers.call(
            *(takes("new", "1"), takes("twice", "2"), takes("twice", "3"), takes("stored", "4")),
            takes("stored", "5", price=2),
        )
    assert callers.database.batches == [1, 1, 5]
    assert inserted == [5, 2], "the orders, and the events of those that were new"
    assert (new, first, again, replayed) == (None, None, "2", "0")
    assert isinstance(conflict, OrderConflict)
    with callers.database.read() as session:
        assert sorted(session.scalars(select(StoredEvent.event_id))) == ["0", "1", "2"]
        assert {row.order_id: row.event_id for row in session.execute(select(Order.order_id, Order.event_id))} == {
            "stored": "0",
            "new": "1",
            "twice": "2",
        }


def test_works_lock_rows_in_one_order_whichever_came_first(callers: Callers) -> None:
    done: list[str] = []

    def of(user_id: str) -> Function:
        def work(_: Transaction) -> None:
            done.append(user_id)

        work.lock_order = user_id  # type: ignore[attr-defined]
        return work

    callers.do(of("b"), of("c"), of("a"))
    assert callers.database.batches == [1, 3]
    assert done == ["a", "b", "c"]


def test_postponed_writes_come_last_and_in_one_order(callers: Callers) -> None:
    done: list[str] = []

    def of(order_id: str, user_id: str) -> Function:
        def work(transaction: Transaction) -> None:
            transaction.postpone(user_id, lambda: done.append(user_id))
            done.append(order_id)

        work.lock_order = order_id  # type: ignore[attr-defined]
        return work

    callers.do(of("2", "b"), of("3", "a"), of("1", "c"))
    assert callers.database.batches == [1, 3]
    assert done == ["1", "2", "3", "a", "b", "c"]


def test_an_error_undoes_its_own_work_only(callers: Callers) -> None:
    def wrong(transaction: Transaction) -> None:
        set_email(transaction, "wrong", "ann@example.com")  # a prepared statement, of which the session knows nothing
        transaction.session.add(User(user_id="wrong too"))
        transaction.session.flush()
        raise ValueError("no")

    first, error, last = callers.do(adds("a"), wrong, adds("b"))
    assert (first, str(error), last) == ("a", "no", "b")
    assert callers.database.batches == [1, 3, 1, 1, 1], "all together, then each alone"
    assert users(callers.database) == ["a", "b"]


def test_a_flush_that_fails_undoes_its_own_work_only(callers: Callers) -> None:
    callers.transact(adds("a"))
    first, error, last = callers.do(adds("b"), adds("a"), adds("c"))
    assert (first, last) == ("b", "c")
    assert isinstance(error, IntegrityError)
    assert users(callers.database) == ["a", "b", "c"]


def test_when_a_shared_commit_fails_each_work_runs_again_by_itself(callers: Callers) -> None:
    database = callers.database
    database.commit_fault = lambda: BUSY if database.batches[-1] > 1 else None
    assert callers.do(adds("a"), adds("b"), adds("c")) == ["a", "b", "c"]
    assert database.batches == [1, 3, 1, 1, 1]
    assert users(database) == ["a", "b", "c"]


def test_listeners_are_told_the_facts_of_the_run_that_was_committed(callers: Callers) -> None:
    runs: list[str] = []

    def wrong_at_first(transaction: Transaction) -> str:
        runs.append("run")
        transaction.facts["noted"] = len(runs)
        transaction.session.add(User(user_id="b"))
        if len(runs) == 1:
            raise ValueError("no")
        return "b"

    told: list[Any] = []

    callers.database.on_commit = told.extend
    assert callers.do(adds("a"), wrong_at_first, adds("c")) == ["a", "b", "c"]
    assert told == [{"noted": 2}]
    assert users(callers.database) == ["a", "b", "c"]


@on_sqlite
@pytest.mark.parametrize("code", [13, 10], ids=["the disk is full", "the disk fails"])
def test_when_a_commit_finds_the_disk_in_trouble_all_are_told_and_nothing_of_it_stays(
    callers: Callers, code: int
) -> None:
    database, told = callers.database, []
    trouble = sqlite_module().OperationalError("no")
    trouble.sqlite_errorcode = code

    def notes(transaction: Transaction) -> None:
        transaction.facts["noted"] = True
        transaction.session.add(User(user_id="b"))

    database.on_commit = told.extend
    database.commit_fault = lambda: trouble if database.batches[1:] else None
    results = callers.do(adds("a"), notes)
    assert [type(result) for result in results] == [DatabaseUnavailable, DatabaseUnavailable]
    assert told == []
    assert users(database) == []
    database.commit_fault = lambda: None
    assert callers.do(adds("a"), notes) == ["a", None]
    assert users(database) == ["a", "b"]
    assert told == [{"noted": True}]


@on_postgresql
def test_a_row_that_somebody_keeps_locked_holds_up_only_works_that_want_it(
    callers: Callers, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.db.group_commit.QUEUE_SECONDS", 0.5)
    database, other = callers.database, Database(database_url)
    database.transact(adds("locked"))
    held, let_go = threading.Event(), threading.Event()

    def hold(transaction: Transaction) -> None:
        set_email(transaction, "locked", "ann@example.com")
        held.set()
        assert let_go.wait(20)

    def wants(transaction: Transaction) -> str:
        set_email(transaction, "locked", "bob@example.com")
        return "locked"

    results: list[Any] = []
    threads = [
        threading.Thread(target=other.transact, args=[hold]),
        threading.Thread(target=lambda: results.extend(callers.do(adds("a"), wants, adds("b")))),
    ]
    threads[0].start()
    assert held.wait(20)
    threads[1].start()
    until(lambda: users(database) == ["a", "b", "locked"], seconds=8)  # before the timeout of a database
    assert not let_go.is_set()
    let_go.set()
    for thread in threads:
        thread.join(20)
    assert results == ["a", "locked", "b"]
    with database.read() as session:
        assert session.scalar(select(User.email).where(User.user_id == "locked")) == "bob@example.com"
    other.close()


@on_postgresql
def test_on_postgresql_a_work_that_hangs_holds_up_neither_requests_nor_a_dispatcher(
    callers: Callers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.db.group_commit.QUEUE_SECONDS", 0.05)
    database = callers.database
    entered, go_on = threading.Event(), threading.Event()

    def hangs(_: Transaction) -> None:
        entered.set()
        assert go_on.wait(20)

    hanging = threading.Thread(target=callers.transact, args=[hangs])
    hanging.start()
    assert entered.wait(20)
    assert [callers.transact(adds("a")), callers.transact(adds("b"))] == ["a", "b"]
    monkeypatch.setattr("app.db.group_commit.QUEUE_SECONDS", 60)  # more than this test may take
    assert database.transact(adds("c")) == "c", "a dispatcher's transactions run side by side"
    go_on.set()
    hanging.join(20)
    assert database.group_commit.leaders == 0


@on_sqlite
@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (sqlite_module().IntegrityError("refused"), sqlite_module().IntegrityError),
        (FAILING_DISK, DatabaseUnavailable),
        (PermissionError("no"), PermissionError),
        (Stopped(), Stopped),
    ],
)
def test_a_transaction_that_cannot_even_begin_is_no_success_and_stops_nobody_after_it(
    database: WatchedDatabase, error: BaseException, raised: type[BaseException]
) -> None:
    """A file is damaged, say: an order must not be answered as if it were stored."""
    database.begin_fault = lambda: error
    with pytest.raises(raised):
        database.transact(adds("a"))
    database.begin_fault = lambda: None
    assert database.transact(adds("b")) == "b"
    assert users(database) == ["b"]


def test_a_shared_commit_that_never_succeeds_is_an_error_to_all(callers: Callers) -> None:
    refused = sqlite_module().IntegrityError("refused")
    callers.database.commit_fault = lambda: refused if callers.database.batches[1:] else None
    results = callers.do(adds("a"), adds("b"), adds("c"))
    assert [str(result) for result in results] == ["refused"] * 3
    assert users(callers.database) == []


def test_when_the_leader_is_stopped_the_others_do_their_works_themselves(callers: Callers) -> None:
    stopped = Stopped()

    def stops(_: Transaction) -> None:
        raise stopped

    assert callers.do(stops, adds("a"), adds("b")) == [stopped, "a", "b"]
    assert users(callers.database) == ["a", "b"]


def test_no_session_ends_the_transaction_that_others_share(callers: Callers) -> None:
    results = callers.do(
        adds("a"),
        lambda transaction: transaction.session.rollback(),
        lambda transaction: transaction.session.commit(),
        adds("b"),
    )
    assert [type(result) for result in results] == [str, RuntimeError, RuntimeError, str]
    assert users(callers.database) == ["a", "b"]


def test_each_work_runs_in_its_callers_context(callers: Callers) -> None:
    """One thread runs the works of many; each sees its own caller's request, and the cause of its own events."""
    caller = ContextVar("caller", default="nobody")
    transact = callers.transact

    def from_its_own(function: Function) -> Any:
        caller.set(threading.current_thread().name)
        return transact(lambda transaction: (threading.current_thread().name, caller.get(), function(transaction)))

    callers.transact = from_its_own  # type: ignore[method-assign]
    found = callers.do(adds("a"), adds("b"))
    assert found[0][0] == found[1][0], "one thread did both"
    assert found[0][1] != found[1][1], "each for its own caller"


# Processes that write one SQLite file


@on_sqlite
def test_a_write_lock_that_others_hold_for_long_is_waited_for(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite gives up before the transaction does: then it is tried again."""
    monkeypatch.setattr("app.db.sqlite.BUSY_SECONDS", 0.001)
    database = WatchedDatabase(database_url)
    other = sqlite_module().connect(database_url.removeprefix("sqlite:///"), isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    writer = threading.Thread(target=database.transact, args=[adds("a")])
    writer.start()
    until(lambda: database.tries > 2)
    other.execute("ROLLBACK")
    writer.join(20)
    assert users(database) == ["a"]
    other.close()
    database.close()


@pytest.fixture
def queue(tmp_path: Path) -> Iterator[WriteQueue]:
    queue = WriteQueue(tmp_path / "orders.db")
    with queue:  # which makes its files
        pass
    yield queue
    queue.close()


@pytest.fixture
def other_process(queue: WriteQueue, tmp_path: Path) -> Iterator[int]:
    """The file that is locked by whoever writes, as another process has opened it."""
    with (tmp_path / "orders.db-writing").open() as file:
        yield file.fileno()


def lock(file: int) -> None:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_place_in_the_queue_is_held_while_writing_and_no_longer(queue: WriteQueue, other_process: int) -> None:
    with queue, pytest.raises(BlockingIOError):
        lock(other_process)
    lock(other_process)


def test_a_process_that_was_stopped_while_writing_is_not_waited_for_long(
    queue: WriteQueue, other_process: int, tmp_path: Path
) -> None:
    lock(other_process)
    began = time.monotonic()
    with queue:
        assert time.monotonic() - began >= LONGEST_WAIT_SECONDS
    with (tmp_path / "orders.db-next").open() as following:
        lock(following.fileno())  # nothing is held on to


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EMFILE, errno.EROFS])
def test_without_its_files_there_is_no_queue_and_none_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """A full disk, or a file that root's command made, is no reason to fail."""
    opened = os.open

    def refuse(path: Any, *how: Any) -> int:
        if str(path).endswith("-writing"):
            raise OSError(number, os.strerror(number))
        return opened(path, *how)

    queue, done = WriteQueue(tmp_path / "orders.db"), []
    with monkeypatch.context() as without:
        without.setattr(os, "open", refuse)
        for _ in range(2):
            with queue:
                done.append("without")
    with queue, (tmp_path / "orders.db-writing").open() as other, pytest.raises(BlockingIOError):
        lock(other.fileno())
    assert done == ["without", "without"]
    queue.close()


def test_a_process_knows_how_often_others_are_writing(queue: WriteQueue, other_process: int) -> None:
    def contention() -> float:
        with queue:
            return queue.contention

    until(lambda: contention() < 0.1)
    lock(other_process)
    for _ in range(8):
        contention()
    assert queue.contention > 0.5
    fcntl.flock(other_process, fcntl.LOCK_UN)
    until(lambda: contention() < 0.1)


@pytest.mark.parametrize(
    ("usual_wait_seconds", "first_pause_seconds"),
    [
        (0.001, 0.001 * FIRST_TRY),
        (LONGEST_WAIT_SECONDS, LONGEST_FIRST_PAUSE_SECONDS),  # a stopped process was waited for: not again so long
    ],
)
def test_the_first_try_comes_when_most_of_the_usual_wait_is_over(
    queue: WriteQueue,
    other_process: int,
    monkeypatch: pytest.MonkeyPatch,
    usual_wait_seconds: float,
    first_pause_seconds: float,
) -> None:
    pauses: list[float] = []

    def wait(seconds: float) -> None:
        pauses.append(seconds)  # no longer: a busy machine would sleep past the longest wait
        if len(pauses) == 2:
            fcntl.flock(other_process, fcntl.LOCK_UN)

    monkeypatch.setattr(time, "sleep", wait)
    lock(other_process)
    queue.usual_wait_seconds = usual_wait_seconds
    with queue:
        assert pauses == [first_pause_seconds, PAUSE_SECONDS]
