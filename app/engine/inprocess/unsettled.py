"""Answers of receivers that wait to be stored."""

import threading
import time
from dataclasses import dataclass

from app.bus import Lease
from app.bus.invoke import Answer

LONGEST_WAIT_SECONDS = 60.0
"""Between tries to store an answer that can't be stored by itself."""


@dataclass(slots=True)
class Separated:
    """An answer whose transaction failed. ``due`` is when it is tried next, by the monotonic clock."""

    answer: Answer
    failures: int = 0
    """How often it failed by itself."""
    due: float = 0.0


class UnsettledAnswers:
    """Answers, each kept until it is stored, however long that fails and whatever the reason. For any thread.

    They are stored together. After a failure each of them is tried by itself, so that one which can't be stored holds
    up no other; that one is tried again after 1, 2, 4 and more seconds, up to LONGEST_WAIT_SECONDS.
    """

    def __init__(self) -> None:
        self._fresh: list[tuple[Lease, Answer]] = []
        self._separated: dict[Lease, Separated] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._fresh) + len(self._separated)

    @property
    def separated(self) -> int:
        """How many are tried by themselves."""
        return len(self._separated)

    def all(self) -> list[tuple[Lease, Answer]]:
        with self._lock:
            return self._fresh + [(lease, each.answer) for lease, each in self._separated.items()]

    def add(self, *answers: tuple[Lease, Answer]) -> None:
        with self._lock:
            self._fresh += answers

    def take(self) -> tuple[list[tuple[Lease, Answer]], bool]:
        """What is to be stored next, and whether that is one by itself. All are kept until they are ``settled``."""
        with self._lock:
            if self._separated:
                now = time.monotonic()
                for lease, each in self._separated.items():
                    if each.due <= now:
                        return [(lease, each.answer)], True
            return self._fresh[:], False

    def settled(self, answers: list[tuple[Lease, Answer]]) -> None:
        """They are stored, or were lost to another dispatcher."""
        gone = {lease for lease, _ in answers}
        with self._lock:
            self._fresh = [each for each in self._fresh if each[0] not in gone]
            for lease in gone:
                self._separated.pop(lease, None)

    def separate(self, answers: list[tuple[Lease, Answer]]) -> None:
        """Their transaction failed: try each by itself, at once."""
        with self._lock:
            for lease, answer in answers:
                self._separated.setdefault(lease, Separated(answer))
            self._fresh = [each for each in self._fresh if each[0] not in self._separated]

    def step_back(self, lease: Lease, answer: Answer) -> int:
        """It could not be stored by itself: let the others go first. Returns how often that has happened."""
        self.separate([(lease, answer)])
        with self._lock:
            each = self._separated[lease]
            each.due = time.monotonic() + min(2.0**each.failures, LONGEST_WAIT_SECONDS)
            each.failures += 1
            return each.failures

    def seconds_until_due(self) -> float:
        """Until something can be tried; infinite where nothing waits."""
        with self._lock:
            if self._fresh:
                return 0.0
            soonest = min((each.due for each in self._separated.values()), default=float("inf"))
        return max(0.0, soonest - time.monotonic())
