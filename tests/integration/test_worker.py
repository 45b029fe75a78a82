"""The loop around the dispatcher: woken, not polling; one receiver's trouble kept from the others; a clean stop."""

import contextlib
import errno
import logging
import os
import resource
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Connection, text

from app.bus import Lease, lifecycle, prune, queries
from app.clock import Clock
from app.db import Database, Transaction
from app.engine.inprocess import pool, stopwatch, wakeup, watchdog, worker
from app.engine.inprocess.wakeup_sender import WakeupSender
from app.errors import DatabaseUnavailable, Refused, Unreachable
from app.events import OrderCreated, order_created
from app.observe.lines import LineHandler
from config import Settings
from tests.support.api import listening
from tests.support.logging import handling
from tests.support.postgres import Door
from tests.support.shop import Shop
from tests.support.waiting import until


class LiveShop(Shop):
    """A shop whose clock runs, for the worker's threads wait in real time."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings, Clock())


@pytest.fixture
def shop(settings: Settings) -> Iterator[LiveShop]:
    made = LiveShop(settings.model_copy(update={"poll_seconds": 60.0, "lease_seconds": 3.0, "shutdown_seconds": 5.0}))
    yield made
    made.close()


class Hanging:
    """A receiver that hangs until it is let go."""

    __name__ = "hanging"

    def __init__(self) -> None:
        self.entered = threading.Semaphore(0)
        self.let_go = threading.Event()
        self.calls = 0
        self.error: Exception | None = None

    def __call__(self, sender: str, event: OrderCreated) -> None:
        self.calls += 1
        self.entered.release()
        self.let_go.wait(30)
        if self.error is not None:
            raise self.error


def alive_dispatchers(shop: Shop) -> int:
    """Those that claim: a Celery worker's processes are not counted."""
    with shop.database.read() as session:
        alive = queries.dispatchers(session, shop.clock.now(), timedelta(seconds=30))
    return sum(not each.needs_relay for each in alive)


def all_are_done(shop: LiveShop) -> bool:
    return {delivery.state for delivery in shop.deliveries()} == {"done"}


def test_an_order_is_dealt_with_at_once_though_the_poll_is_a_minute_away(shop: LiveShop) -> None:
    shop.engine.start()
    until(lambda: alive_dispatchers(shop) == 1)
    begun = time.monotonic()
    shop.place_order()
    until(lambda: all_are_done(shop))
    assert time.monotonic() - begun < 10
    assert (shop.order().notification, shop.user().orders_count) == ("sent", 1)


def test_what_waited_before_the_start_is_dealt_with(shop: LiveShop) -> None:
    """Killed between commit and dispatch: it is delivered after a restart without another request."""
    shop.place_order()
    shop.engine.start()
    until(lambda: shop.order().notification == "sent")


def test_a_retry_is_woken_by_its_time_and_not_by_the_poll(shop: LiveShop) -> None:
    calls: list[float] = []

    def flaky(sender: str, event: OrderCreated) -> None:
        calls.append(time.monotonic())
        if len(calls) == 1:
            raise RuntimeError

    shop.policy.seconds = 0.3
    shop.only(flaky)
    shop.engine.start()
    shop.place_order()
    until(lambda: len(calls) == 2)
    assert 0.29 < calls[1] - calls[0] < 10


def test_another_process_that_only_publishes_wakes_the_dispatcher(shop: LiveShop, settings: Settings) -> None:
    shop.engine.start()
    until(lambda: alive_dispatchers(shop) == 1)
    publisher = LiveShop(settings)  # the same database, and no worker of its own
    try:
        publisher.place_order()
        until(lambda: shop.order().notification == "sent", 15)
    finally:
        publisher.close()


def test_a_hanging_receiver_holds_up_nobody_else(shop: LiveShop) -> None:
    hanging = Hanging()
    shop.receive(hanging)
    shop.engine.start()
    for n in range(5):
        shop.place_order(f"{n}")
    until(lambda: all(shop.order(f"{n}").notification == "sent" for n in range(5)))
    assert hanging.calls == 1
    states = {delivery.state for delivery in shop.deliveries("hanging")}
    expected = {"ready", "leased"}
    assert (
        states <= expected if shop.settings.bus_engine == "celery" else states == expected
    )  # messages may wait leased
    hanging.let_go.set()
    until(lambda: all_are_done(shop))


def test_an_outage_is_found_out_once_by_each_thread(shop: LiveShop) -> None:
    """Each thread finds out once; what waits spends no attempt."""
    tried: list[str] = []

    def down(sender: str, event: OrderCreated) -> None:
        tried.append(event.order_id)
        raise Unreachable

    shop.policy.seconds = 3600
    shop.only(down, concurrency=2)
    for n in range(30):
        shop.place_order(f"{n}")
    shop.engine.start()
    until(lambda: shop.count("circuit_breakers") == 1)
    until(
        lambda: shop.execute_scalar("SELECT failures FROM circuit_breakers") == 3
    )  # two threads, or one twice; a first probe
    until(lambda: shop.execute_scalar("SELECT count(*) FROM deliveries WHERE state = 'leased'") == 0)
    assert len(tried) <= 6
    assert shop.execute_scalar("SELECT count(*) FROM deliveries WHERE attempts = 0") >= 24


@pytest.fixture
def hanging_with_nine_prefetched(shop: LiveShop, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hanging]:
    """A receiver that was quick once, so that deliveries are claimed ahead, and hangs with the second one."""
    monkeypatch.setattr(pool, "QUICK_SECONDS", 20)
    monkeypatch.setattr(pool, "STALLED_SECONDS", 60)
    hanging = Hanging()
    shop.only(hanging)
    hanging.let_go.set()
    shop.engine.start()
    shop.place_order("quick")
    until(lambda: shop.delivery("hanging").state == "done")
    hanging.let_go.clear()
    for n in range(10):
        shop.place_order(f"{n}")
    until(lambda: states_of_hanging(shop) == ["done"] + ["leased"] * 10)
    until(lambda: hanging.calls == 2)  # all may be leased before a thread has begun the first
    yield hanging
    hanging.let_go.set()


def states_of_hanging(shop: Shop) -> list[str]:
    return [delivery.state for delivery in shop.deliveries("hanging")]


@pytest.mark.inprocess("what threads have claimed ahead")
def test_what_was_prefetched_is_given_back_behind_one_that_hangs(
    shop: LiveShop, hanging_with_nine_prefetched: Hanging, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "STALLED_SECONDS", 0.05)
    until(lambda: states_of_hanging(shop) == ["done", "leased"] + ["ready"] * 9)
    hanging_with_nine_prefetched.let_go.set()
    until(lambda: states_of_hanging(shop) == ["done"] * 11)
    assert hanging_with_nine_prefetched.calls == 11


@pytest.mark.inprocess("what threads have claimed ahead")
def test_what_was_prefetched_is_given_back_at_a_stop(shop: LiveShop, hanging_with_nine_prefetched: Hanging) -> None:
    hanging = hanging_with_nine_prefetched
    stopped: list[bool] = []
    stopping = threading.Thread(target=lambda: stopped.append(shop.engine.stop()))
    stopping.start()
    until(lambda: states_of_hanging(shop) == ["done", "leased"] + ["ready"] * 9)
    hanging.let_go.set()
    stopping.join(20)
    assert (stopped, hanging.calls) == ([True], 2)
    assert [delivery.attempts for delivery in shop.deliveries("hanging")] == [1, 1] + [0] * 9


@pytest.mark.inprocess("what threads have claimed ahead")
def test_what_was_prefetched_is_given_back_when_the_backend_is_found_down(
    shop: LiveShop, hanging_with_nine_prefetched: Hanging
) -> None:
    """One attempt and some probes find it out; what waits spends none."""
    hanging = hanging_with_nine_prefetched
    shop.policy.seconds = 3600
    hanging.error = Unreachable()
    hanging.let_go.set()
    until(lambda: shop.count("circuit_breakers") == 1 and "leased" not in states_of_hanging(shop))
    assert [delivery.attempts for delivery in shop.deliveries("hanging")].count(0) >= 5


def test_a_receiver_slower_than_its_lease_runs_once(shop: LiveShop, settings: Settings) -> None:
    hanging = Hanging()
    shop.only(hanging)
    shop.engine.start()
    other = LiveShop(settings.model_copy(update={"poll_seconds": 0.1, "lease_seconds": 3.0}))
    other.engine.start()
    try:
        shop.place_order()
        assert hanging.entered.acquire(timeout=10)
        first_end = shop.delivery("hanging").due_at
        until(lambda: Clock().now() > first_end)
        until(lambda: shop.delivery("hanging").due_at > first_end)
        hanging.let_go.set()
        until(lambda: shop.delivery("hanging").state == "done")
    finally:
        hanging.let_go.set()
        other.close()
    assert hanging.calls == 1
    assert shop.outcomes("hanging") == ["ok"]


@pytest.mark.inprocess("how a stop waits for receivers' threads")
def test_a_stop_waits_for_the_receiver_and_keeps_its_result(shop: LiveShop) -> None:
    hanging = Hanging()
    shop.only(hanging)
    running = shop.engine.start()
    shop.place_order("1")
    assert hanging.entered.acquire(timeout=10)
    shop.place_order("2")
    stopped: list[bool] = []
    stopping = threading.Thread(target=lambda: stopped.append(shop.engine.stop()))
    stopping.start()
    stopping.join(0.5)
    assert running.stopping
    assert stopped == []
    hanging.let_go.set()
    stopping.join(20)
    assert stopped == [True]
    assert [delivery.state for delivery in shop.deliveries()] == ["done", "ready"]
    assert alive_dispatchers(shop) == 0


@pytest.mark.inprocess("how a stop waits for receivers' threads")
def test_a_stop_does_not_wait_for_ever(shop: LiveShop) -> None:
    object.__setattr__(shop.bus.settings, "shutdown_seconds", 0.2)
    hanging = Hanging()
    shop.only(hanging)
    shop.engine.start()
    shop.place_order()
    assert hanging.entered.acquire(timeout=10)
    begun = time.monotonic()
    assert shop.engine.stop() is False
    assert time.monotonic() - begun < 10
    assert shop.delivery("hanging").state == "leased"
    hanging.let_go.set()
    until(lambda: shop.delivery("hanging").state == "done")  # its lease has not run out: it may still settle


@pytest.mark.inprocess("how a stop waits for receivers' threads")
def test_a_stop_ends_though_the_database_never_returns(
    shop: LiveShop, monkeypatch: pytest.MonkeyPatch, wait_for_threads: Callable[[], None]
) -> None:
    """As where a disk hangs: nobody can give up a system call, but one can leave the thread that is in it behind."""
    object.__setattr__(shop.bus.settings, "shutdown_seconds", 0.5)
    hangs, let_go = threading.Event(), threading.Event()
    commit = shop.database.commit

    def hanging(connection: Connection) -> None:
        hangs.set()
        let_go.wait(30)
        commit(connection)

    shop.engine.start()
    until(lambda: alive_dispatchers(shop) == 1)
    monkeypatch.setattr(shop.database, "commit", hanging)
    ordering = threading.Thread(target=shop.place_order)
    ordering.start()
    assert hangs.wait(20)
    begun = time.monotonic()
    shop.engine.stop()
    assert time.monotonic() - begun < 0.5 + 3
    assert not let_go.is_set()
    let_go.set()
    ordering.join(20)
    wait_for_threads()


@pytest.mark.inprocess("how a stop waits for receivers' threads")
def test_a_stop_while_the_database_is_away_waits_for_the_receiver_all_the_same(
    shop: LiveShop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it does can be stored again, should the database be back by then."""
    hanging = Hanging()
    shop.only(hanging)
    running = shop.engine.start()
    shop.place_order()
    assert hanging.entered.acquire(timeout=10)
    transact = shop.database.transact

    def away(_: Any) -> None:
        raise DatabaseUnavailable

    monkeypatch.setattr(shop.database, "transact", away)
    stopped: list[bool] = []
    stopping = threading.Thread(target=lambda: stopped.append(shop.engine.stop()))
    stopping.start()
    until(lambda: running.stopping)
    monkeypatch.setattr(shop.database, "transact", transact)
    assert stopped == []
    hanging.let_go.set()
    stopping.join(20)
    assert stopped == [True]
    assert shop.outcomes("hanging") == ["ok"]


def test_under_write_contention_deliveries_are_put_off_and_yet_done(
    shop: LiveShop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(shop.database.dialect), "write_contention", 1.0)
    shop.engine.start()
    until(lambda: alive_dispatchers(shop) == 1)
    begun = time.monotonic()
    shop.place_order()
    until(lambda: shop.order().notification == "sent")
    assert time.monotonic() - begun >= worker.DEFER_SECONDS


def test_starting_twice_is_starting_once(shop: LiveShop) -> None:
    assert shop.engine.start() is shop.engine.start()
    assert shop.engine.stop()
    assert shop.engine.stop()


def test_a_backlog_drains(shop: LiveShop) -> None:
    for n in range(150):
        shop.place_order(f"{n}", user_id=f"{n % 7}")
    shop.engine.start()
    until(lambda: shop.count("attempts") == 450, 50)
    assert {delivery.state for delivery in shop.deliveries()} == {"done"}


@pytest.mark.inprocess("one process tells an outage once")
def test_the_dispatcher_outlives_a_database_that_goes_away(shop: LiveShop, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says so once, tries again, and what a receiver did meanwhile is recorded and not repeated."""
    said: list[str] = []
    refused: list[object] = []
    away = threading.Event()
    transact, read = shop.database.transact, shop.database.read

    def maybe(what: Any) -> Any:
        def asked(*args: Any) -> Any:
            if away.is_set():
                refused.append(args)
                raise DatabaseUnavailable
            return what(*args)

        return asked

    def lost(_: object, error: Exception) -> None:
        said.append("lost")

    def back(_: object) -> None:
        said.append("back")

    hanging = Hanging()
    shop.only(hanging)
    shop.engine.start()
    shop.place_order()
    assert hanging.entered.acquire(timeout=10)
    with lifecycle.database_lost.connected_to(lost), lifecycle.database_back.connected_to(back):
        monkeypatch.setattr(shop.database, "transact", maybe(transact))
        monkeypatch.setattr(shop.database, "read", maybe(read))
        away.set()
        hanging.let_go.set()
        until(lambda: said == ["lost"] and len(refused) > 4)
        away.clear()
        until(lambda: shop.delivery("hanging").state == "done")
        until(lambda: said == ["lost", "back"])
    assert hanging.calls == 1


@pytest.mark.inprocess("one process tells an outage once")
@pytest.mark.postgres
@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_a_restart_of_postgresql_costs_no_delivery_and_no_second_call(
    postgres_url: str, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    """Every connection is cut, and for a while there are no new ones: a line when it begins, and one when it ends."""
    said: list[str] = []
    hanging = Hanging()
    with Door(postgres_url) as door:
        door.open()
        through = settings.model_copy(update={"database_url": door.url, "database_timeout": 0.5, "poll_seconds": 60.0})
        shop, publisher = LiveShop(through), LiveShop(through)
        with (
            contextlib.closing(shop),
            contextlib.closing(publisher),
            lifecycle.database_lost.connected_to(said_by(said, "lost")),
            lifecycle.database_back.connected_to(said_by(said, "back")),
        ):
            shop.receive(hanging)
            shop.engine.start()
            assert publisher.post(order_id="before").status_code == 201
            assert hanging.entered.acquire(timeout=20)
            until(lambda: shop.order("before").notification == "sent")

            door.shut()
            assert publisher.post(order_id="meanwhile").status_code == 503
            hanging.let_go.set()
            until(lambda: said == ["lost"])
            door.open()
            until(lambda: said == ["lost", "back"])

            until(lambda: shop.delivery("hanging").state == "done")
            assert (hanging.calls, shop.outcomes("hanging")) == (1, ["ok"])
            assert publisher.post(order_id="meanwhile").status_code == 201
            until(lambda: shop.order("meanwhile").notification == "sent" and all_are_done(shop))
            assert said == ["lost", "back"]
    lost = [record.getMessage() for record in caplog.records if record.name == "app.bus"]
    assert lost == ["database lost"], "from ERROR on: these settings' LOG_LEVEL"


def said_by(said: list[str], word: str) -> Callable[..., None]:
    def listener(*_: object, **__: object) -> None:
        said.append(word)

    return listener


def test_a_fault_of_the_dispatcher_is_reported_and_ends_nothing(
    shop: LiveShop, monkeypatch: pytest.MonkeyPatch
) -> None:
    faults: list[Exception] = []

    def listener(_: object, error: Exception) -> None:
        faults.append(error)

    running = shop.engine.start()
    until(lambda: alive_dispatchers(shop) == 1)
    next_due = running.dispatcher.next_due
    with lifecycle.dispatcher_failed.connected_to(listener):
        monkeypatch.setattr(running.dispatcher, "next_due", lambda: 1 / 0)
        shop.place_order()
        until(lambda: faults)
        monkeypatch.setattr(running.dispatcher, "next_due", next_due)
        until(lambda: shop.order().notification == "sent")
    assert isinstance(faults[0], ZeroDivisionError)


def test_a_fault_while_it_waits_ends_nothing_either(shop: LiveShop, monkeypatch: pytest.MonkeyPatch) -> None:
    running = shop.engine.start()
    until(lambda: alive_dispatchers(shop) == 1)
    wait, failed = running.wakeup.wait, threading.Event()

    def fail(timeout: float) -> bool:
        failed.set()
        raise OSError("no more descriptors")

    monkeypatch.setattr(running.wakeup, "wait", fail)
    running.wakeup.wake()
    assert failed.wait(20)
    monkeypatch.setattr(running.wakeup, "wait", wait)
    shop.place_order()
    until(lambda: shop.order().notification == "sent")


# Receivers that do not return, and threads that end


@pytest.fixture
def ended(shop: LiveShop) -> threading.Event:
    """The watchdog has ended the process, or would have."""
    ended = threading.Event()
    shop.engine.end_process = ended.set
    return ended


@contextlib.contextmanager
def reasons_of_the_end() -> Iterator[list[str]]:
    reasons: list[str] = []

    def listener(_: object, reason: str) -> None:
        reasons.append(reason)

    with lifecycle.process_given_up.connected_to(listener):
        yield reasons


class HangingFor(Hanging):
    """It hangs for one order, and is quick for all others."""

    def __call__(self, sender: str, event: OrderCreated) -> None:
        if event.order_id == "hangs":
            super().__call__(sender, event)


@pytest.mark.inprocess("threads of one process")
def test_a_receiver_that_does_not_return_is_written_off(shop: LiveShop, ended: threading.Event) -> None:
    """The only thread of the receiver: another goes on in its stead, and the attempt reads unknown."""
    hanging = HangingFor()
    shop.policy.seconds, shop.policy.attempts = 0.1, 2
    shop.only(hanging, timeout_seconds=1)
    shop.engine.start()
    shop.place_order("hangs")
    assert hanging.entered.acquire(timeout=10)
    for n in range(5):
        shop.place_order(f"{n}")
    until(lambda: [delivery.state for delivery in shop.deliveries()] == ["dead"] + ["done"] * 5, 30)
    dead = shop.deliveries()[0]
    assert (dead.attempts, dead.outcome) == (2, "unknown")
    assert (dead.reason or "").startswith("the receiver has not returned after ")
    hanging.let_go.set()
    shop.place_order("later")
    until(lambda: shop.deliveries()[-1].state == "done")
    assert shop.deliveries()[0].state == "dead", "what it said later changes nothing"
    assert not ended.is_set()


@pytest.mark.inprocess("threads of one process")
def test_a_receiver_that_does_not_return_is_held_for_a_person_where_that_is_wanted(shop: LiveShop) -> None:
    hanging = Hanging()
    shop.only(hanging, timeout_seconds=1, hold_unknown=True)
    shop.engine.start()
    shop.place_order()
    until(lambda: shop.delivery("hanging").state == "dead", 30)
    hanging.let_go.set()
    assert (hanging.calls, shop.delivery("hanging").outcome) == (1, "unknown")


@pytest.mark.inprocess("threads of one process")
def test_a_receiver_that_hangs_in_its_transaction_ends_the_process(
    shop: LiveShop, ended: threading.Event, wait_for_threads: Callable[[], None]
) -> None:
    """Nothing else frees its locks."""
    let_go = threading.Event()

    def inside(sender: str, event: OrderCreated, transaction: Transaction) -> None:
        let_go.wait(60)

    shop.only(inside, timeout_seconds=1)
    shop.engine.start()
    with reasons_of_the_end() as reasons:
        shop.place_order()
        assert ended.wait(30)
    let_go.set()
    shop.engine.stop()
    wait_for_threads()
    assert "inside has not returned for order 1001 after " in reasons[0]
    assert reasons[0].endswith("and holds a transaction open")


@pytest.mark.inprocess("threads of one process")
def test_a_when_dead_that_hangs_ends_the_process(
    shop: LiveShop, ended: threading.Event, wait_for_threads: Callable[[], None]
) -> None:
    let_go = threading.Event()

    def refused(sender: str, event: OrderCreated) -> None:
        raise Refused

    def announce(event: OrderCreated, reason: str) -> Any:
        let_go.wait(60)
        raise RuntimeError

    shop.only(refused, when_dead=announce, timeout_seconds=1)
    shop.engine.start()
    with reasons_of_the_end() as reasons:
        shop.place_order()
        assert ended.wait(30)
    let_go.set()
    shop.engine.stop()
    wait_for_threads()
    assert "refused has not returned for order 1001 after " in reasons[0]


@pytest.mark.inprocess("threads of one process")
def test_many_threads_that_hang_end_the_process_once_the_others_are_done(
    shop: LiveShop, ended: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watchdog, "MOST_HANGING", 1)
    hanging = Hanging()
    shop.policy.seconds = 3600
    shop.receive(hanging, concurrency=2, timeout_seconds=1)
    shop.engine.start()
    with reasons_of_the_end() as reasons:
        for n in range(2):
            shop.place_order(f"{n}")
        assert ended.wait(30)
    hanging.let_go.set()
    assert reasons[0].endswith("as 1 others before")
    assert {delivery.state for delivery in shop.deliveries()} == {"done", "ready"}
    until(lambda: alive_dispatchers(shop) == 0)  # a sign-off that takes longer than a second is not waited for


@pytest.mark.inprocess("threads of one process")
def test_what_runs_for_long_is_told_of(shop: LiveShop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once, and then more and more rarely."""
    monkeypatch.setattr(stopwatch, "WARN_SECONDS", 1)
    told: list[tuple[str, float]] = []

    def listener(_: object, lease: Lease, seconds: float) -> None:
        told.append((lease.order_id, seconds))

    hanging = Hanging()
    shop.only(hanging)
    shop.engine.start()
    with lifecycle.receiver_still_runs.connected_to(listener):
        shop.place_order()
        until(lambda: len(told) == 2)
    hanging.let_go.set()
    assert [order_id for order_id, _ in told] == ["1001", "1001"]
    assert told[1][1] >= 2 * told[0][1] >= 2


@pytest.mark.inprocess("threads of one process")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_ends_by_itself_is_replaced(shop: LiveShop, monkeypatch: pytest.MonkeyPatch) -> None:
    faults: list[BaseException] = []

    def listener(_: object, error: BaseException) -> None:
        faults.append(error)

    shop.only(lambda sender, event: None, name="quick")
    running = shop.engine.start()
    until(lambda: alive_dispatchers(shop) == 1)
    wake, failures = running.wakeup.wake, [MemoryError()]

    def fail() -> None:
        if failures and threading.current_thread().name == "quick":
            raise failures.pop()
        wake()

    monkeypatch.setattr(running.wakeup, "wake", fail)
    with lifecycle.dispatcher_failed.connected_to(listener):
        for n in range(3):
            shop.place_order(f"{n}")
            until(lambda n=n: [delivery.state for delivery in shop.deliveries()] == ["done"] * (n + 1))  # type: ignore[misc]
        until(lambda: faults)
    assert [str(fault) for fault in faults] == [
        "a thread for quick ended by itself, with 0 deliveries that are not settled"
    ]


@pytest.mark.inprocess("threads of one process")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_dispatcher_whose_own_thread_ends_ends_the_process(
    shop: LiveShop, ended: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = shop.engine.start()
    until(lambda: alive_dispatchers(shop) == 1)

    def no_memory(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(running.dispatcher, "next_due", no_memory)
    monkeypatch.setattr(lifecycle, "report", no_memory)
    running.wakeup.wake()
    assert ended.wait(20)
    assert not running.alive


class Unwritable:
    """Where a log goes that nobody can write any more."""

    def __init__(self, error: Exception) -> None:
        self.error, self.tries = error, 0

    def write(self, _: str) -> int:
        self.tries += 1
        raise self.error


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "the disk is full"), BrokenPipeError(), ValueError("I/O operation on closed file")]
)
def test_a_log_that_cannot_be_written_stops_neither_orders_nor_deliveries(shop: LiveShop, error: Exception) -> None:
    """Each order has its line, each commit that ended leases its own, and each of these a traceback beside it."""
    stream = Unwritable(error)
    shop.app.extensions["bus_log"].level = logging.INFO
    handler = LineHandler(stream)  # type: ignore[arg-type]
    shop.engine.start()
    until(lambda: alive_dispatchers(shop) == 1)
    with handling(handler), lifecycle.deliveries_settled.connected_to(lambda *_, **__: 1 / 0):
        for n in range(5):
            assert shop.post(order_id=n).status_code == 201
        until(lambda: all_are_done(shop))
    assert stream.tries > 5 + 2 * 2


def test_a_receiver_nobody_knows_is_looked_for_at_the_start(shop: LiveShop) -> None:
    shop.only(lambda sender, event: None, name="old_name")
    shop.place_order()
    order_created.disconnect(order_created.subscriptions["old_name"].receiver)
    shop.execute("UPDATE deliveries SET due_at = :then", then=Clock().now().replace(year=2020))
    shop.engine.start()
    until(lambda: shop.delivery("old_name").reason)
    assert "no receiver named 'old_name'" in (shop.delivery("old_name").reason or "")


def test_what_is_old_is_forgotten_without_anybody_asking(shop: LiveShop, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch at a time, with other work between. Orders are kept."""
    monkeypatch.setattr(worker, "PRUNE_SECONDS", 0)
    monkeypatch.setattr(prune, "BATCH", 4)
    forgotten: list[int] = []

    def listener(_: object, count: int) -> None:
        forgotten.append(count)

    for n in range(5):
        shop.place_order(f"{n}")
    shop.dispatch_all()
    long_ago = Clock().now().replace(year=2020)
    shop.execute("UPDATE events SET occurred_at = :then", then=long_ago)
    shop.execute("UPDATE deliveries SET settled_at = :then", then=long_ago)
    shop.place_order("young")
    with lifecycle.events_pruned.connected_to(listener):
        shop.engine.start()
        until(lambda: shop.engine.wake() or sum(forgotten) == 10)
    until(lambda: shop.order("young").notification == "sent")
    assert forgotten == [4, 4, 2]
    assert {event["data"]["order_id"] for n in range(5) for event in shop.timeline(f"{n}")} == set()
    assert len(shop.timeline("young")) == 2
    assert shop.count("orders") == 6


def test_wake_sockets_of_killed_processes_are_cleared_away(shop: LiveShop) -> None:
    if not shop.database.is_sqlite:
        pytest.skip("PostgreSQL wakes by NOTIFY")
    folder = wakeup.socket_folder(shop.database)
    folder.mkdir(exist_ok=True)
    left = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    left.bind(str(folder / "1-gone"))
    left.close()
    WakeupSender(shop.database).wake()
    assert list(folder.iterdir()) == []


def test_a_dispatcher_that_cannot_be_called_still_runs(shop: LiveShop, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = wakeup.socket_folder(shop.database)
    monkeypatch.setattr(wakeup, "socket_folder", lambda _: folder.with_name("orders.db") / "no folder")
    shop.engine.start()
    shop.place_order()
    until(lambda: shop.order().notification == "sent")


def test_a_process_with_thousands_of_open_files_is_woken_too(sqlite_url: str) -> None:
    """select() refuses descriptors beyond 1023."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 1200:
        pytest.skip("a process may not have that many files here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 1200), hard))
    try:
        with contextlib.ExitStack() as held:
            for _ in range(1100):
                held.enter_context(open(os.devnull))  # noqa: PTH123 - a device
            waiting = wakeup.Wakeup(Database(sqlite_url))
            held.callback(waiting.close)
            waiting.open()
            assert not waiting.wait(0)
            waiting.wake()
            assert waiting.wait(20)
            WakeupSender(waiting.database).wake()
            assert waiting.wait(20)
            assert not waiting.wait(0)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.postgres
@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_a_dispatcher_that_cannot_listen_says_so_once_and_listens_again(
    shop: LiveShop, settings: Settings, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.engine.inprocess.wakeup.LISTENER_CHECK_SECONDS", 600)  # a check would be its last query
    shop.engine.start()
    until(lambda: alive_dispatchers(shop) == 1)
    with listening(caplog) as heard:
        for times in (1, 2):
            until(lambda: shop.execute_scalar(CUT_OFF_LISTENERS) == 1)
            until(lambda times=times: heard.text.count("only the poll") == times)  # type: ignore[misc]
    until(lambda: listeners(shop) == 1)
    assert heard.text.count("only the poll") == 2
    publisher = LiveShop(settings)
    try:
        publisher.place_order()
        until(lambda: shop.order().notification == "sent", 15)
    finally:
        publisher.close()


CUT_OFF_LISTENERS = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE query LIKE 'LISTEN %'"


def listeners(shop: LiveShop) -> int:
    return int(shop.execute_scalar("SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'LISTEN %'"))


def test_a_path_too_long_for_a_socket_finds_a_shorter_one() -> None:
    long = Database("sqlite:////tmp/" + "x" * 60 + "/orders.db")
    short = Database("sqlite:////tmp/x/orders.db")
    assert wakeup.socket_folder(short).name == "orders.db-wake"
    assert len(str(wakeup.socket_folder(long))) <= wakeup.LONGEST_SOCKET_FOLDER
    assert wakeup.socket_folder(long) == wakeup.socket_folder(long)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")  # that is just what is tested
def test_a_forked_child_begins_without_its_parents_connections(shop: LiveShop) -> None:
    def kept() -> int:
        return shop.database.engine.pool.checkedin()  # type: ignore[attr-defined]  # a pool that keeps connections

    shop.place_order()
    assert shop.order().status == "created"
    assert kept() == 1
    pid = os.fork()
    if pid == 0:
        try:
            os._exit(kept())
        finally:
            os._exit(9)
    assert os.waitpid(pid, 0) == (pid, 0)
    assert kept() == 1


def status_of_a_fork(shop: LiveShop) -> int | None:
    """0 where the forked child dispatches beside its parent, and stops; None where it hangs."""
    before = alive_dispatchers(shop)
    pid = os.fork()
    if pid == 0:
        try:
            until(lambda: alive_dispatchers(shop) == before + 1, 10)
            shop.engine.stop()
            os._exit(0 if shop.database.read().__enter__().execute(text("SELECT 1")).scalar() == 1 else 1)
        finally:
            os._exit(2)
    ended: list[int] = []
    with contextlib.suppress(AssertionError):
        until(lambda: ended.extend(status for found, status in [os.waitpid(pid, os.WNOHANG)] if found) or ended, 25)
    if ended:
        return ended[0]
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


@pytest.mark.inprocess("threads of one process")
def test_a_forked_child_opens_its_own_connections_and_dispatches_anew(shop: LiveShop) -> None:
    """A server that loads the application, starts it and forks afterwards."""
    shop.engine.start()
    until(lambda: alive_dispatchers(shop) == 1)
    # A thread may hold one of SQLite's own locks at the moment of a fork (docs/guarantees.md): then it is tried anew.
    statuses = (status for _ in range(3) if (status := status_of_a_fork(shop)) is not None)
    assert next(statuses, None) == 0
    shop.place_order()
    until(lambda: shop.order().notification == "sent")
