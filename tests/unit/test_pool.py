"""How many deliveries a pool is handed: one for each thread, and more ahead of them while they are quick."""

import queue
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest

from app.bus import Lease
from app.engine.inprocess import pool
from app.engine.inprocess.pool import ReceiverPool
from tests.support.waiting import until


class Held:
    """A pool of two threads whose deliveries wait to be let go."""

    def __init__(self) -> None:
        self.begun: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.let_go = threading.Event()
        self.freed = threading.Semaphore(0)
        self.pool = ReceiverPool("test", 2, self.deliver, self.freed.release, prefetch=5)

    def deliver(self, batch: list[Lease]) -> None:
        self.begun.put(batch)
        assert self.let_go.wait(20)


@pytest.fixture
def held() -> Iterator[Held]:
    made = Held()
    yield made
    made.let_go.set()
    made.pool.end()
    until(lambda: made.pool.running == 0)


def a_lease() -> Lease:
    return cast(Lease, object())


def test_nothing_is_prefetched_before_a_delivery_was_quick(held: Held, monkeypatch: pytest.MonkeyPatch) -> None:
    assert held.pool.free_slots == 2
    monkeypatch.setattr(pool, "QUICK_SECONDS", 20)
    held.let_go.set()
    held.pool.submit([a_lease()])
    assert held.freed.acquire(timeout=20)
    assert held.pool.free_slots == 2 + 5


def test_what_waits_for_one_receiver_is_taken_back_and_the_others_stays(held: Held) -> None:
    """Those that share a transaction lie in one batch. What a thread is at is not taken back."""
    one, other = (cast(Lease, SimpleNamespace(receiver=name)) for name in ("one", "other"))
    for _ in range(2):
        held.pool.submit([one])
        held.begun.get(timeout=20)
    for batch in ([one, other, one], [one], [other]):
        held.pool.submit(batch)
    assert held.pool.take_back_of({"one", "third"}) == [one, one, one]
    assert held.pool.leases == [other, other, one, one]


def test_a_slow_delivery_ends_prefetching(held: Held, monkeypatch: pytest.MonkeyPatch) -> None:
    held.let_go.set()
    for limit, slots in ((20, 7), (-1, 2)):
        monkeypatch.setattr(pool, "QUICK_SECONDS", limit)
        held.pool.submit([a_lease()])
        assert held.freed.acquire(timeout=20)
        assert held.pool.free_slots == slots


def test_a_slot_is_free_before_anybody_is_told(held: Held) -> None:
    slots: list[int] = []
    told = ReceiverPool("told", 1, lambda _: None, lambda: slots.append(told.free_slots))
    told.submit([a_lease()])
    until(lambda: slots == [1])
    told.end()


def test_what_no_thread_has_begun_is_taken_back(held: Held) -> None:
    leases = [a_lease() for _ in range(4)]
    for lease in leases:
        held.pool.submit([lease])
    begun = [held.begun.get(timeout=20)[0] for _ in range(2)]
    assert not held.pool.stalled
    until(lambda: held.pool.stalled)
    assert held.pool.waiting
    assert [lease for lease in leases if lease not in begun] == held.pool.take_back()
    assert held.pool.free_slots == 0
    assert not held.pool.waiting


def test_what_a_pool_has_is_what_waits_and_what_its_threads_are_at(held: Held) -> None:
    leases = [a_lease() for _ in range(3)]
    for lease in leases:
        held.pool.submit([lease])
    for _ in range(2):
        held.begun.get(timeout=20)
    assert set(held.pool.leases) == set(leases)
    held.let_go.set()
    until(lambda: held.pool.leases == [])


def test_a_pool_is_idle_while_a_thread_would_begin_at_once(held: Held) -> None:
    """Where none would, a delivery in doubt is left to others: if the process died, it would count as tried."""
    assert held.pool.idle
    held.pool.submit([a_lease()])
    held.begun.get(timeout=20)
    assert held.pool.idle
    held.pool.submit([a_lease()])
    assert not held.pool.idle
    held.begun.get(timeout=20)
    assert not held.pool.idle
    held.let_go.set()
    until(lambda: held.pool.idle)


def test_a_pool_whose_threads_have_been_busy_for_long_is_handed_nothing() -> None:
    """What it would be handed ahead could only be given back."""
    let_go = threading.Event()
    slow = ReceiverPool("slow", 1, lambda _: assert_let_go(let_go), lambda: None, batch=20)
    assert slow.free_slots == 20
    slow.submit([a_lease()])
    until(lambda: slow.free_slots == 0)
    let_go.set()
    until(lambda: slow.free_slots == 20)
    slow.end()


def assert_let_go(event: threading.Event) -> None:
    assert event.wait(20)


def test_a_thread_that_hangs_is_written_off_and_another_goes_on_in_its_stead(held: Held) -> None:
    hanging = [a_lease(), a_lease()]
    for lease in hanging:
        held.pool.submit([lease])
        held.begun.get(timeout=20)
    assert held.pool.free_slots == 0
    assert held.pool.write_off(hanging[0])
    assert not held.pool.write_off(hanging[0])
    assert (held.pool.leases, held.pool.free_slots) == ([hanging[1]], 1)
    another = a_lease()
    held.pool.submit([another])
    assert held.begun.get(timeout=20) == [another]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_ended_by_itself_is_replaced_and_what_it_had_is_known() -> None:
    done: list[Any] = []
    dying: list[threading.Thread] = []
    woken = threading.Semaphore(0)

    def deliver(batch: list[Lease]) -> None:
        if batch[0] is first:
            dying.append(threading.current_thread())
            raise SystemExit
        done.append(batch)

    first, second = a_lease(), a_lease()
    pool = ReceiverPool("test", 1, deliver, woken.release)
    pool.submit([first])
    assert woken.acquire(timeout=20), "whoever replaces it is told"
    assert (pool.leases, pool.running) == ([], 0), "nobody has it any more"
    assert pool.replace_ended() == [[first]]
    assert pool.replace_ended() == []
    pool.submit([second])
    until(lambda: done == [[second]])
    pool.end()
    dying[0].join(20)  # pytest notes its exception last of all, and would hold it against the next test


def test_a_thread_that_is_to_end_ends_though_another_takes_work_back(held: Held) -> None:
    for _ in range(2):
        held.pool.submit([a_lease()])
        held.begun.get(timeout=20)
    held.pool.end()
    assert held.pool.take_back() == []
    assert held.pool.running == 2
    held.let_go.set()
    until(lambda: held.pool.running == 0)
