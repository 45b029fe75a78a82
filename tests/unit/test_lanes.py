"""How much a lane is handed: as many as it has threads, and ahead of these what it would get done in no time."""

import queue
import threading
from collections.abc import Iterator
from typing import Any, cast

import pytest

from app.bus.leases import Lease
from app.engine.inprocess.receiver_threads import MOST_UNSTORED, Lane, Settler
from tests.support.waiting import until


class Held:
    """A lane whose tries wait to be let go."""

    def __init__(self) -> None:
        self.begun: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.let_go = threading.Event()
        self.lane = Lane("test", 2, 2, self.attempt, lambda: None, most_ahead=5)

    def attempt(self, batch: list[Lease]) -> None:
        self.begun.put(batch)
        assert self.let_go.wait(20)


@pytest.fixture
def held() -> Iterator[Held]:
    made = Held()
    yield made
    made.let_go.set()
    made.lane.end()
    assert made.lane.join(20)


def a_lease() -> Lease:
    return cast(Lease, object())


def test_nothing_is_handed_ahead_until_tries_are_known_to_be_quick(held: Held) -> None:
    assert held.lane.room == 2
    held.lane.learn(0.04)
    assert held.lane.room == 2 + 2
    for _ in range(50):
        held.lane.learn(0.0001)
    assert held.lane.room == 2 + 5
    held.lane.learn(3)
    assert held.lane.room == 2


def test_what_no_thread_has_begun_is_taken_back(held: Held) -> None:
    leases = [a_lease() for _ in range(4)]
    for lease in leases:
        held.lane.put([lease])
    begun = [held.begun.get(timeout=20)[0] for _ in range(2)]
    assert not held.lane.is_late()
    until(held.lane.is_late)
    assert held.lane.waits()
    assert [lease for lease in leases if lease not in begun] == held.lane.take_back()
    assert held.lane.room == 0
    assert not held.lane.waits()


def test_a_thread_that_is_to_end_ends_though_another_takes_work_back(held: Held) -> None:
    for _ in range(2):
        held.lane.put([a_lease()])
        held.begun.get(timeout=20)
    held.lane.end()
    assert held.lane.take_back() == []
    held.let_go.set()
    assert held.lane.join(20)


def test_answers_that_gather_are_stored_together_and_none_is_left_behind() -> None:
    stored: list[int] = []
    busy, go_on = threading.Event(), threading.Event()

    def settle(answers: list[Any]) -> None:
        stored.append(len(answers))
        busy.set()
        assert go_on.wait(20)

    settler = Settler(settle, lambda _: None, lambda: None)
    settler.put(a_lease(), cast(Any, "first"))
    assert busy.wait(20)
    for _ in range(3):
        settler.put(a_lease(), cast(Any, "more"))
    go_on.set()
    assert settler.end(20)
    assert stored == [1, 3]
    settler.put(a_lease(), cast(Any, "late"))
    assert stored == [1, 3, 1]


def test_who_cannot_store_what_is_answered_is_handed_no_more() -> None:
    """And somebody is told when there is room again."""
    busy, go_on, freed = threading.Event(), threading.Event(), threading.Event()

    def settle(_: list[Any]) -> None:
        busy.set()
        assert go_on.wait(20)

    settler = Settler(settle, lambda _: None, freed.set)
    settler.put(a_lease(), cast(Any, "first"))
    assert busy.wait(20)
    for _ in range(MOST_UNSTORED - 1):
        settler.put(a_lease(), cast(Any, "more"))
    assert settler.room == 0
    go_on.set()
    assert freed.wait(20)
    assert settler.end(20)
    assert settler.room == MOST_UNSTORED
