"""Answers of receivers that wait to be stored."""

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass

from app.bus import Dispatcher, Lease, lifecycle
from app.bus.invoke import Answer
from app.errors import DatabaseUnavailable

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
    """Stores answers by a dispatcher; each is kept until then, however long that fails and whatever the reason. For any
    thread.

    They are stored together. After a failure each of them is tried by itself, so that one which can't be stored holds
    up no other; that one is tried again after 1, 2, 4 and more seconds, up to LONGEST_WAIT_SECONDS.
    """

    def __init__(self, dispatcher: Dispatcher) -> None:
        self.dispatcher = dispatcher
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

    def _take(self) -> tuple[list[tuple[Lease, Answer]], bool]:
        """What is to be stored next, and whether that is one by itself. All are kept until they are settled."""
        with self._lock:
            if self._separated:
                now = time.monotonic()
                for lease, each in self._separated.items():
                    if each.due <= now:
                        return [(lease, each.answer)], True
            return self._fresh[:], False

    def _settled(self, answers: list[tuple[Lease, Answer]]) -> None:
        """They are stored, or were lost to another dispatcher."""
        gone = {lease for lease, _ in answers}
        with self._lock:
            self._fresh = [each for each in self._fresh if each[0] not in gone]
            for lease in gone:
                self._separated.pop(lease, None)

    def _separate(self, answers: list[tuple[Lease, Answer]]) -> None:
        """Their transaction failed: try each by itself, at once."""
        with self._lock:
            for lease, answer in answers:
                self._separated.setdefault(lease, Separated(answer))
            self._fresh = [each for each in self._fresh if each[0] not in self._separated]

    def seconds_until_due(self) -> float:
        """Until something can be tried; infinite where nothing waits."""
        with self._lock:
            if self._fresh:
                return 0.0
            soonest = min((each.due for each in self._separated.values()), default=float("inf"))
        return max(0.0, soonest - time.monotonic())

    def settle_and_claim(self, capacity: Mapping[str, int], alone: bool = False) -> tuple[bool, list[Lease]]:
        """Settle what waits, and claim. What can't be stored waits on, whatever the reason.

        Returns whether anything was settled or claimed, and the new leases. Raises DatabaseUnavailable, and whatever
        else kept the transaction from its end.
        """
        answers, by_itself = self._take()
        try:
            wanted = {} if by_itself else capacity
            _, claimed, unstored = self.dispatcher.settle_and_claim(answers, wanted, alone=alone)
        except BaseException as error:
            if not by_itself:
                self._separate(answers)
                raise
            self._step_back(*answers[0], error)
            if isinstance(error, DatabaseUnavailable):
                raise
            return True, []
        for each in unstored:
            self._step_back(each.lease, each.answer, each.error)
        left = {each.lease for each in unstored}
        self._settled([each for each in answers if each[0] not in left])
        return bool(answers or claimed), claimed

    def _step_back(self, lease: Lease, answer: Answer, error: BaseException) -> None:
        """It could not be stored by itself: others go first. Say so, the more rarely the more often it has failed."""
        self._separate([(lease, answer)])
        with self._lock:
            each = self._separated[lease]
            each.due = time.monotonic() + min(2.0**each.failures, LONGEST_WAIT_SECONDS)
            each.failures += 1
        if each.failures.bit_count() == 1:
            self.report_unstored(lease, error, each.failures)

    def report_unstored(self, lease: Lease, error: BaseException, failures: int) -> None:
        sender = self.dispatcher.sender
        lifecycle.report(lifecycle.answer_unstored, sender, lease=lease, error=error, failures=failures)
