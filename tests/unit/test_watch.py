"""The watch answers in time whatever the database does, and asks it once for all who ask at the same time."""

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from app.bus import watch
from app.bus.troubles import Cause
from app.bus.watch import Watch
from app.clock import Clock
from app.db import Database
from app.errors import DatabaseUnavailable
from config import Settings


class SilentDatabase:
    """Answers nothing until it is let go; then it can't be read."""

    clock = Clock()

    def __init__(self) -> None:
        self.asked = 0
        self.let_go = threading.Event()

    def check_schema(self) -> None:
        self.asked += 1
        self.let_go.wait(30)
        raise DatabaseUnavailable("it is away")


class StuckDatabase(Database):
    """Can be read; a write never ends."""

    written_at = float("-inf")
    trouble: DatabaseUnavailable | None = None

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.let_go = threading.Event()

    def transact(self, *_: Any) -> Any:
        self.let_go.wait(30)


@pytest.fixture
def stuck(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[StuckDatabase]:
    monkeypatch.setattr(watch, "ANSWER_SECONDS", 1.0)  # time to read it
    database = StuckDatabase(sqlite_url)
    yield database
    database.let_go.set()
    database.close()


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "ANSWER_SECONDS", 0.2)


def watch_of(database: Any) -> Watch:
    return Watch(database, Settings.of(), sender=object())


def test_a_silent_database_is_told_in_time_to_all_who_ask() -> None:
    database = SilentDatabase()
    watching = watch_of(database)
    found: list[Any] = []
    askers = [threading.Thread(target=lambda: found.append(watching.look())) for _ in range(20)]
    began = time.monotonic()
    for asker in askers:
        asker.start()
    for asker in askers:
        asker.join(10)
    database.let_go.set()

    assert time.monotonic() - began < 5
    assert [each.troubles[0].cause for each in found] == [Cause.DATABASE_UNREACHABLE] * 20
    assert "has not answered for" in found[0].troubles[0].text
    assert database.asked == 1, "one thread waits for it, not twenty"


def test_the_next_who_asks_is_told_at_once_what_came_of_it() -> None:
    database = SilentDatabase()
    watching = watch_of(database)
    watching.look()
    database.let_go.set()
    deadline = time.monotonic() + 10
    while "it is away" not in watching.look().troubles[0].text:
        assert time.monotonic() < deadline


def test_a_write_that_does_not_end_is_told_as_that_and_alone(stuck: StuckDatabase) -> None:
    """No dispatcher can say that it is alive: that none is would be the wrong cause."""
    (trouble,) = watch_of(stuck).look().troubles
    assert trouble.cause is Cause.DATABASE_UNWRITABLE
    assert "can be read, but has not taken a write for" in trouble.text


def test_a_write_that_is_tried_again_and_again_is_told_with_what_it_meets(stuck: StuckDatabase) -> None:
    stuck.trouble = DatabaseUnavailable("it only reads")
    (trouble,) = watch_of(stuck).look().troubles
    assert trouble.cause is Cause.DATABASE_UNWRITABLE
    assert "can be read, but not written: it only reads" in trouble.text
