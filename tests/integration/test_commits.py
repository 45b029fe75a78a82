"""Callers share a commit; what one of them does wrong is its own affair. On SQLite processes take turns."""

import errno
import fcntl
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, select
from sqlalchemy.exc import IntegrityError

from app.bus.outbox import record
from app.bus.tables import StoredEvent
from app.db import Database, Prepared, Transaction, sqlite_module
from app.db.group_commit import Commits
from app.db.write_queue import LONGEST_PAUSE, PATIENCE, PAUSE, SKIPPED, Turns
from app.errors import DatabaseUnavailable
from app.events import OrderCreated
from app.orders import set_email
from app.orders.models import User
from tests.support.waiting import until

Work = Callable[[Transaction], Any]

BUSY = sqlite_module().OperationalError("database is locked")
BUSY.sqlite_errorcode = 5


class Crowd:
    """Has works done at once: the first holds the lead until all the others queue behind it."""

    def __init__(self, database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
        self.database = database
        self.batches: list[int] = []
        """The sizes of all that was tried at once."""
        monkeypatch.setattr("app.db.group_commit.PATIENCE", 20)  # nobody leads beside another
        fill = Commits.fill

        def counting(commits: Commits, batch: list[Any]) -> None:
            fill(commits, batch)
            self.batches.append(len(batch))

        monkeypatch.setattr(Commits, "fill", counting)

    def transact(self, work: Work) -> Any:
        """As a request does it: on PostgreSQL only these share a commit."""
        with self.database.commits.expected():
            return self.database.transact(work, getattr(work, "lock_order", ""))

    def do(self, *works: Work) -> list[Any]:
        """What each returned, or the exception that it ended with."""
        entered, go_on = threading.Event(), threading.Event()
        results: list[Any] = [None] * len(works)

        def first(_: Transaction) -> None:
            entered.set()
            assert go_on.wait(20)

        def run(n: int, work: Work) -> None:
            try:
                results[n] = self.transact(work)
            except BaseException as error:
                results[n] = error

        leader = threading.Thread(target=self.transact, args=[first])
        leader.start()
        assert entered.wait(20)
        threads = [threading.Thread(target=run, args=each) for each in enumerate(works)]
        for n, thread in enumerate(threads, 1):
            thread.start()
            until(lambda n=n: len(self.database.commits.queue) == n)  # type: ignore[misc]
        go_on.set()
        for thread in (leader, *threads):
            thread.join(20)
        return results


@pytest.fixture
def crowd(database_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Crowd]:
    database = Database(database_url)
    yield Crowd(database, monkeypatch)
    database.close()


@pytest.fixture
def sqlite_crowd(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Crowd]:
    database = Database(sqlite_url)
    yield Crowd(database, monkeypatch)
    database.close()


def adds(user_id: str) -> Work:
    def work(session: Transaction) -> str:
        session.add(User(user_id=user_id))
        return user_id

    return work


def users(database: Database) -> list[str]:
    with database.read() as session:
        return sorted(session.scalars(select(User.user_id)))


def test_who_comes_while_another_commits_shares_the_next_commit(crowd: Crowd) -> None:
    assert crowd.do(adds("a"), adds("b"), adds("c")) == ["a", "b", "c"]
    assert crowd.batches == [1, 3]
    assert users(crowd.database) == ["a", "b", "c"]


def test_what_all_of_them_record_takes_one_statement(crowd: Crowd, monkeypatch: pytest.MonkeyPatch) -> None:
    inserted: list[int] = []
    at_once = Prepared.at_once

    def counting(self: Prepared, session: Any, rows: Any) -> None:
        inserted.append(len(rows))
        at_once(self, session, rows)

    def records(order_id: str) -> Work:
        event = OrderCreated(order_id=order_id, user_id="1", total_price=Decimal(1))
        return lambda _: record(event, source="test", subscriptions=[])

    monkeypatch.setattr(Prepared, "at_once", counting)
    crowd.do(records("a"), records("b"), records("c"))
    assert inserted == [3]
    with crowd.database.read() as session:
        assert sorted(session.scalars(select(StoredEvent.order_id))) == ["a", "b", "c"]


def test_works_lock_rows_in_one_order_whoever_came_first(crowd: Crowd) -> None:
    done: list[str] = []

    def of(user_id: str) -> Work:
        def work(_: Transaction) -> None:
            done.append(user_id)

        work.lock_order = user_id  # type: ignore[attr-defined]
        return work

    crowd.do(of("b"), of("c"), of("a"))
    assert crowd.batches == [1, 3]
    assert done == ["a", "b", "c"]


def test_a_lock_that_others_hold_for_long_is_waited_for(sqlite_crowd: Crowd, sqlite_url: str) -> None:
    """SQLite gives up before us: then it is asked again."""
    crowd = sqlite_crowd
    other = Database(sqlite_url)
    with crowd.database.engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA busy_timeout=0")  # the pool hands it out again
    held, let_go = threading.Event(), threading.Event()

    def hold(_: Transaction) -> None:
        held.set()
        assert let_go.wait(20)

    holder = threading.Thread(target=other.transact, args=[hold])
    holder.start()
    assert held.wait(20)
    refused: list[BaseException] = []

    give_up = crowd.database.commits._give_up

    def counting(waiting: Any, pause: float, error: Exception) -> None:
        refused.append(error)
        let_go.set()
        give_up(waiting, pause, error)

    crowd.database.commits._give_up = counting  # type: ignore[method-assign]
    assert crowd.database.transact(adds("a")) == "a"
    holder.join(20)
    assert refused
    assert users(crowd.database) == ["a"]
    other.close()


def test_a_commit_waits_for_who_is_on_the_way(crowd: Crowd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.db.group_commit.COMPANY_SECONDS", 20)
    database = crowd.database
    on_the_way = threading.Event()

    def late() -> None:
        with database.commits.expected():
            on_the_way.set()
            until(lambda: database.commits.leads)
            database.transact(adds("b"))

    other = threading.Thread(target=late)
    other.start()
    assert on_the_way.wait(20)
    crowd.transact(adds("a"))
    other.join(20)
    assert crowd.batches == [2]
    assert users(database) == ["a", "b"]


def test_who_was_expected_and_turns_back_is_not_waited_for(crowd: Crowd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.db.group_commit.COMPANY_SECONDS", 20)
    database = crowd.database
    on_the_way = threading.Event()

    def turns_back() -> None:
        with database.commits.expected():
            on_the_way.set()
            until(lambda: database.commits.leads)

    other = threading.Thread(target=turns_back)
    other.start()
    assert on_the_way.wait(20)
    began = time.monotonic()
    crowd.transact(adds("a"))
    assert time.monotonic() - began < 10
    other.join(20)
    crowd.transact(adds("b"))  # nor does one wait for oneself
    assert time.monotonic() - began < 10
    assert users(database) == ["a", "b"]


def test_an_error_undoes_its_own_work_only(crowd: Crowd) -> None:
    def wrong(session: Transaction) -> None:
        set_email(session, "wrong", "ann@example.com")  # a prepared statement, of which the session knows nothing
        session.add(User(user_id="wrong too"))
        session.flush()
        raise ValueError("no")

    first, error, last = crowd.do(adds("a"), wrong, adds("b"))
    assert (first, str(error), last) == ("a", "no", "b")
    assert crowd.batches == [1, 3, 1, 1, 1], "all together, then each alone"
    assert users(crowd.database) == ["a", "b"]


def test_a_flush_that_fails_undoes_its_own_work_only(crowd: Crowd) -> None:
    crowd.transact(adds("a"))
    first, error, last = crowd.do(adds("b"), adds("a"), adds("c"))
    assert (first, last) == ("b", "c")
    assert isinstance(error, IntegrityError)
    assert users(crowd.database) == ["a", "b", "c"]


def failing_commits(error: Exception, when: Callable[[], object]) -> Callable[..., None]:
    """A ``Database._commit`` that raises ``error`` when ``when()`` says so."""
    commit = Database._commit

    def fail(self: Database, connection: Connection) -> None:
        if when():
            raise error
        commit(self, connection)

    return fail


def test_when_a_shared_commit_fails_each_runs_again_by_itself(crowd: Crowd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Database, "_commit", failing_commits(BUSY, lambda: crowd.batches[-1] > 1))
    assert crowd.do(adds("a"), adds("b"), adds("c")) == ["a", "b", "c"]
    assert crowd.batches == [1, 3, 1, 1, 1]
    assert users(crowd.database) == ["a", "b", "c"]


def test_each_is_told_what_came_of_its_last_run(crowd: Crowd) -> None:
    runs: list[str] = []

    def wrong_at_first(session: Transaction) -> str:
        runs.append("run")
        session.facts["noted"] = len(runs)
        session.add(User(user_id="b"))
        if len(runs) == 1:
            raise ValueError("no")
        return "b"

    told: list[Any] = []

    def listener(_: Database, facts: list[dict[str, Any]]) -> None:
        told.extend(facts)

    with crowd.database.committed.connected_to(listener):
        assert crowd.do(adds("a"), wrong_at_first, adds("c")) == ["a", "b", "c"]
    assert told == [{"noted": 2}]
    assert users(crowd.database) == ["a", "b", "c"]


@pytest.mark.parametrize("code", [13, 10], ids=["the disk is full", "the disk fails"])
def test_when_a_commit_finds_the_disk_in_trouble_all_are_told_and_nothing_of_it_stays(
    sqlite_crowd: Crowd, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    crowd, told = sqlite_crowd, []
    trouble = sqlite_module().OperationalError("no")
    trouble.sqlite_errorcode = code

    def listener(_: Database, facts: list[dict[str, Any]]) -> None:
        told.append(facts)

    def notes(session: Transaction) -> None:
        session.facts["noted"] = True
        session.add(User(user_id="b"))

    with crowd.database.committed.connected_to(listener):
        with monkeypatch.context() as broken:
            broken.setattr(Database, "_commit", failing_commits(trouble, lambda: crowd.batches[1:]))
            results = crowd.do(adds("a"), notes)
        assert [type(result) for result in results] == [DatabaseUnavailable, DatabaseUnavailable]
        assert told == []
        assert users(crowd.database) == []
        assert crowd.do(adds("a"), notes) == ["a", None]
    assert users(crowd.database) == ["a", "b"]
    assert told == [[{"noted": True}]]


@pytest.mark.postgres
def test_a_row_that_somebody_keeps_locked_holds_up_only_who_wants_it(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    database, other = Database(postgres_url), Database(postgres_url)
    crowd = Crowd(database, monkeypatch)
    monkeypatch.setattr("app.db.group_commit.PATIENCE", 0.5)
    database.transact(adds("locked"))
    held, let_go = threading.Event(), threading.Event()

    def hold(session: Transaction) -> None:
        set_email(session, "locked", "ann@example.com")
        held.set()
        assert let_go.wait(20)

    def wants(session: Transaction) -> str:
        set_email(session, "locked", "bob@example.com")
        return "locked"

    results: list[Any] = []
    threads = [
        threading.Thread(target=other.transact, args=[hold]),
        threading.Thread(target=lambda: results.extend(crowd.do(adds("a"), wants, adds("b")))),
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
    for each in (database, other):
        each.close()


@pytest.mark.postgres
def test_on_postgresql_one_that_hangs_holds_up_neither_requests_nor_a_dispatcher(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = Database(postgres_url)
    entered, go_on = threading.Event(), threading.Event()

    def hangs(_: Transaction) -> None:
        entered.set()
        assert go_on.wait(20)

    def request(work: Work) -> Any:
        with database.commits.expected():
            return database.transact(work)

    hanging = threading.Thread(target=request, args=[hangs])
    hanging.start()
    assert entered.wait(20)
    assert [request(adds("a")), request(adds("b"))] == ["a", "b"]
    monkeypatch.setattr("app.db.group_commit.PATIENCE", 20)
    began = time.monotonic()
    assert database.transact(adds("c")) == "c", "a dispatcher's transactions run side by side"
    assert time.monotonic() - began < 10
    go_on.set()
    hanging.join(20)
    assert database.commits.leads == 0
    database.close()


class Stopped(BaseException):
    """As SystemExit and KeyboardInterrupt are."""


@pytest.mark.parametrize("error", [sqlite_module().DatabaseError("malformed"), PermissionError("no"), Stopped()])
def test_what_cannot_even_begin_is_no_success_and_stops_nobody_after_it(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    """A file is damaged, say, or a lock can't be opened: an order must not be answered as if it were stored."""
    broken, once = [True], Database._once

    def fail(self: Database, batch: list[Any]) -> None:
        if broken:
            raise error
        once(self, batch)

    monkeypatch.setattr(Database, "_once", fail)
    database = Database(sqlite_url)
    with pytest.raises(type(error)):
        database.transact(adds("a"))
    broken.clear()
    assert database.transact(adds("b")) == "b"
    assert users(database) == ["b"]
    database.close()


def test_a_shared_commit_that_never_succeeds_is_an_error_to_all(crowd: Crowd, monkeypatch: pytest.MonkeyPatch) -> None:
    malformed = sqlite_module().DatabaseError("malformed")
    monkeypatch.setattr(Database, "_commit", failing_commits(malformed, lambda: crowd.batches[1:]))
    results = crowd.do(adds("a"), adds("b"), adds("c"))
    assert [str(result) for result in results] == ["malformed"] * 3
    assert users(crowd.database) == []


def test_when_the_leader_is_stopped_the_others_do_their_works_themselves(crowd: Crowd) -> None:
    stopped = Stopped()

    def stops(_: Transaction) -> None:
        raise stopped

    assert crowd.do(stops, adds("a"), adds("b")) == [stopped, "a", "b"]
    assert users(crowd.database) == ["a", "b"]


def test_nobody_ends_the_others_transaction(crowd: Crowd) -> None:
    results = crowd.do(adds("a"), lambda session: session.rollback(), lambda session: session.commit(), adds("b"))
    assert [type(result) for result in results] == [str, RuntimeError, RuntimeError, str]
    assert users(crowd.database) == ["a", "b"]


def test_each_work_runs_in_its_callers_context(crowd: Crowd) -> None:
    """One thread does the work of many; each sees its own caller's request, and the cause of its own events."""
    caller = ContextVar("caller", default="nobody")
    transact = crowd.transact

    def from_its_own(work: Work) -> Any:
        caller.set(threading.current_thread().name)
        return transact(lambda session: (threading.current_thread().name, caller.get(), work(session)))

    crowd.transact = from_its_own  # type: ignore[method-assign]
    found = crowd.do(adds("a"), adds("b"))
    assert found[0][0] == found[1][0], "one thread did both"
    assert found[0][1] != found[1][1], "each for its own caller"


def test_who_leads_waits_for_its_own_sake_and_no_longer(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The database is busy. Who came first is told when its own time is up, though another shares its commit."""
    once = Database._once
    entered, go_on, told = threading.Event(), threading.Event(), threading.Event()
    ends: dict[str, Any] = {}

    def busy_until_told(self: Database, batch: list[Any]) -> None:
        if entered.is_set() and not told.is_set():
            raise BUSY
        once(self, batch)

    def holder(_: Transaction) -> None:
        entered.set()
        assert go_on.wait(20)

    def place(user_id: str) -> None:
        try:
            ends[user_id] = database.transact(adds(user_id))
        except DatabaseUnavailable as error:
            ends[user_id] = error
            told.set()

    monkeypatch.setattr(Database, "_once", busy_until_told)
    database = Database(sqlite_url, timeout=0.5)
    threads = [threading.Thread(target=database.transact, args=[holder])]
    threads[0].start()
    assert entered.wait(20)
    for n, user_id in enumerate(("first", "second"), 1):
        threads.append(threading.Thread(target=place, args=[user_id]))
        threads[-1].start()
        until(lambda n=n: len(database.commits.queue) == n)  # type: ignore[misc]
    database.commits.queue[1].began += 5  # as if it had come so much later
    go_on.set()
    for thread in threads:
        thread.join(20)
    assert isinstance(ends["first"], DatabaseUnavailable)
    assert ends["second"] == "second"
    assert users(database) == ["second"]
    database.close()


def test_a_turn_is_waited_for_and_then_taken_all_the_same(tmp_path: Path) -> None:
    """Somebody was stopped while he held it."""
    turns = Turns(tmp_path / "orders.db")
    with turns.taken():
        pass
    with (tmp_path / "orders.db-turn").open() as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        began = time.monotonic()
        with turns.taken():
            assert time.monotonic() - began >= PATIENCE
    with (tmp_path / "orders.db-next").open() as other:
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)  # nothing is held on to
    turns.forget()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EMFILE, errno.EROFS])
def test_without_its_files_there_is_no_turn_to_be_had_and_none_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """They are courtesy: a full disk, or a file that root's command made, is no reason to fail."""
    opened = os.open

    def refuse(path: Any, *how: Any) -> int:
        if str(path).endswith("-turn"):
            raise OSError(number, os.strerror(number))
        return opened(path, *how)

    turns, done = Turns(tmp_path / "orders.db"), []
    with monkeypatch.context() as without:
        without.setattr(os, "open", refuse)
        for _ in range(2):
            with turns.taken():
                done.append("without")
    with turns.taken(), (tmp_path / "orders.db-turn").open() as other:
        with pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        done.append("with")
    assert done == ["without", "without", "with"]
    turns.forget()


def test_a_process_knows_whether_others_queue_for_the_turn(tmp_path: Path) -> None:
    turns = Turns(tmp_path / "orders.db")

    def crowding() -> float:
        with turns.taken():
            return turns.crowding

    until(lambda: crowding() < 0.1)
    with (tmp_path / "orders.db-turn").open() as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        for _ in range(8):
            crowding()
    assert turns.crowding > 0.5
    until(lambda: crowding() < 0.1)
    turns.forget()


def test_who_usually_waits_for_the_turn_does_not_look_before_most_of_that_is_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns, pauses, sleep = Turns(tmp_path / "orders.db"), [], time.sleep
    with turns.taken():
        pass
    with (tmp_path / "orders.db-turn").open() as other:
        fcntl.flock(other, fcntl.LOCK_EX)

        def wait(seconds: float) -> None:
            pauses.append(seconds)
            sleep(seconds)
            if len(pauses) == 2:
                fcntl.flock(other, fcntl.LOCK_UN)

        monkeypatch.setattr(time, "sleep", wait)
        turns.usual_wait = 0.001
        with turns.taken():
            assert pauses == [SKIPPED * 0.001, PAUSE]
        pauses.clear()
        fcntl.flock(other, fcntl.LOCK_EX)
        turns.usual_wait = PATIENCE
        with turns.taken():
            assert pauses == [LONGEST_PAUSE, PAUSE]
        assert turns.usual_wait < PATIENCE
    turns.forget()
