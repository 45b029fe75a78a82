"""The loop around the dispatcher's step: wait until something is due, claim it, hand it to the threads that try it.

Receivers with a session share one thread, for they share the database's write lock. Every other receiver has threads
of its own: one that hangs holds up nobody else's deliveries. What these answer is stored by one more thread, as much at
a time as has gathered while the last of it was being stored.
"""

import contextlib
import random
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial

from app.bus import breaker as gate
from app.bus import lifecycle as signals
from app.bus.dispatcher import BATCH, MISSING_RECEIVER_WAIT, Answer, Dispatcher, Failure, subscriptions
from app.bus.leases import Lease
from app.db import CROWDED
from app.engine.inprocess.receiver_threads import LATE_SECONDS, Lane, Settler
from app.engine.inprocess.wakeup import Wakeup
from app.errors import DatabaseUnavailable

SHARED = "(with a session)"
"""The lane of all receivers that take a session."""

AWAY_PAUSE = 1.0
"""Seconds between tries while the database is away."""

PASSED_OVER = 0.01
"""Seconds until the next look when another dispatcher was at the rows that are due."""

PRUNE_PAUSE = 3600.0
"""Seconds between looks for what is old enough to be forgotten."""


MOST_AHEAD = 20
"""Should the process die, each of these reads ``unknown``. A receiver that holds such for a person gets none ahead."""

COURTESY_SECONDS = 0.2
"""How long a claim is put off while others queue for the write lock."""


class Worker:
    """Runs a dispatcher until it is stopped. ``poll_seconds`` is the safety net beneath the wake-up."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        wakeup: Wakeup,
        *,
        poll_seconds: float,
        wake_others: Callable[[], None],
        prune: Callable[[], int],
    ):
        self.dispatcher = dispatcher
        self.wakeup = wakeup
        self.poll_seconds = poll_seconds
        self.wake_others = wake_others
        self.prune = prune
        self._stopping = threading.Event()
        self._ended = threading.Event()
        self._lanes: dict[str, Lane] = {}
        self._settler = Settler(self._settle, self._give_way, wakeup.wake)
        self._next_look = 0.0
        self._next_prune = dispatcher.clock.monotonic() + random.uniform(0, PRUNE_PAUSE)  # noqa: S311 - no secret
        self._away = False
        self._saturated = False
        self._telling = threading.Lock()
        self._main = threading.Thread(target=self._run, name="dispatcher", daemon=True)
        self._heart = threading.Thread(target=self._beat, name="dispatcher-heartbeat", daemon=True)
        dispatcher.outlast = self._outlast

    @property
    def alive(self) -> bool:
        return self._main.is_alive()

    def start(self) -> None:
        self.wakeup.open()
        self._main.start()
        self._heart.start()
        signals.report(signals.dispatcher_started, self.dispatcher.sender, name=self.dispatcher.name)

    def stop(self, seconds: float) -> bool:
        """Claim no more, give back what was not begun, wait for receivers that run. Returns whether all ended.

        One that did not end in time keeps its lease, which runs out: another dispatcher then records its attempt as
        ``unknown`` and tries again.
        """
        self._stopping.set()
        self.wakeup.wake()
        self._main.join()
        unbegun = [lease for lane in self._lanes.values() for lease in lane.take_back()]
        for lane in self._lanes.values():
            lane.end()
        deadline = self.dispatcher.clock.monotonic() + seconds
        with contextlib.suppress(DatabaseUnavailable):  # the leases run out by themselves
            self.dispatcher.release(unbegun)
        unfinished = sum(
            not lane.join(max(0.0, deadline - self.dispatcher.clock.monotonic())) for lane in self._lanes.values()
        )
        unfinished += not self._settler.end(max(0.5, deadline - self.dispatcher.clock.monotonic()))
        with contextlib.suppress(DatabaseUnavailable):  # a dispatcher that is seen no more counts as gone
            self.dispatcher.sign_off()
        self._ended.set()
        self.wakeup.close()
        name = self.dispatcher.name
        signals.report(signals.dispatcher_stopped, self.dispatcher.sender, name=name, unfinished=unfinished)
        return not unfinished

    def _run(self) -> None:
        self._beat_once()
        while not self._stopping.is_set():
            try:
                if self._away:
                    self._come_back()
                self._see_to_chores()
                if pause := self._round():
                    self.wakeup.wait(min(pause, max(0.0, self._next_prune - self.dispatcher.clock.monotonic())))
            except DatabaseUnavailable as error:
                self._outlast(error)
            except Exception as error:  # a fault of ours must not end all dispatching
                self._report_fault(error)
                self._stopping.wait(AWAY_PAUSE)

    def _see_to_chores(self) -> None:
        """Now and then: what has no receiver shall become visible, and what is old be forgotten."""
        now = self.dispatcher.clock.monotonic()
        if now >= self._next_look:
            self._next_look = now + MISSING_RECEIVER_WAIT
            self._hand_out(self.dispatcher.claim_unknown())
        if now >= self._next_prune:
            count = self.prune()
            self._next_prune = now + (1 if count else PRUNE_PAUSE)
            if count:
                signals.report(signals.events_pruned, self.dispatcher.sender, count=count)

    def _round(self) -> float:
        """Claim what is due and there is room for. Returns for how many seconds there is nothing to do."""
        due = self.dispatcher.next_due()
        now = self.dispatcher.clock.now()
        overdue = [receiver for receiver, due_at in due.items() if due_at <= now]
        self.dispatcher.release([each for lane in self._lanes.values() if lane.is_late() for each in lane.take_back()])
        capacity = {receiver: room for receiver in overdue if (room := self._room(receiver)) > 0}
        if capacity:
            self._give_way(COURTESY_SECONDS)
            leases = self.dispatcher.claim(capacity)
            self._hand_out(leases)
            return 0 if leases else PASSED_OVER
        self._share(bool(overdue))
        later = [due_at - now for due_at in due.values() if due_at > now]
        pause = min([timedelta(seconds=self.poll_seconds), *later]).total_seconds()
        return min(pause, LATE_SECONDS) if any(lane.waits() for lane in self._lanes.values()) else pause

    def _give_way(self, seconds: float) -> None:
        """Where others queue for the write lock, wait up to so long: orders come first, and deliveries catch up."""
        if (crowding := self.dispatcher.database.crowding) > CROWDED:
            self._stopping.wait(seconds * crowding)

    def _room(self, receiver: str) -> int:
        lane = self._lane(receiver)
        return lane.room if lane.name == SHARED else min(lane.room, self._settler.room)

    def _share(self, saturated: bool) -> None:
        """There is more to do than room for it here: tell the others, once."""
        if saturated and not self._saturated:
            self.wake_others()
        self._saturated = saturated

    def _hand_out(self, leases: list[Lease]) -> None:
        for batch in self.dispatcher.batches(leases):
            self._lane(batch[0].receiver).put(batch)

    def _lane(self, receiver: str) -> Lane:
        known = subscriptions().get(receiver)
        name = SHARED if known and known.transactional else receiver
        if name not in self._lanes:
            if name == SHARED:
                self._lanes[name] = Lane(name, 1, BATCH, self._attempt, self.wakeup.wake)
            else:
                threads = self.dispatcher.options(receiver).concurrency
                ahead = 0 if self.dispatcher.options(receiver).hold_unknown else MOST_AHEAD
                self._lanes[name] = Lane(name, threads, threads, partial(self._call, name), self.wakeup.wake, ahead)
        return self._lanes[name]

    def _attempt(self, batch: list[Lease]) -> None:
        with self._reporting():
            self.dispatcher.attempt(batch)

    def _call(self, name: str, batch: list[Lease]) -> None:
        """In a thread of the lane: call the receiver, and leave its answer to be stored."""
        lane = self._lanes[name]
        for lease in batch:
            with self._reporting():
                self.dispatcher.database.let_work()
                began = self.dispatcher.clock.monotonic()
                answer = self.dispatcher.call(lease)
                if answer is None:
                    continue
                lane.learn(self.dispatcher.clock.monotonic() - began)
                if isinstance(answer, Failure):  # it may close the gate: before more is begun
                    unbegun = lane.take_back() if answer.outcome in gate.DOWN else []
                    self.dispatcher.settle([(lease, answer)])
                    self.dispatcher.release(unbegun)
                else:
                    self._settler.put(lease, answer)

    def _settle(self, answers: list[tuple[Lease, Answer]]) -> None:
        with self._reporting():
            self.dispatcher.settle(answers)

    @contextlib.contextmanager
    def _reporting(self) -> Iterator[None]:
        try:
            yield
        except DatabaseUnavailable as error:  # we are stopping; the leases run out, and another takes them over
            self._database_is_away(error)
        except Exception as error:
            self._report_fault(error)

    def _beat(self) -> None:
        pause = min(self.dispatcher.lease.total_seconds() / 3, 10)
        while not self._ended.wait(pause):
            self._beat_once()

    def _beat_once(self) -> None:
        with self._reporting():
            self.dispatcher.extend()

    def _report_fault(self, error: Exception) -> None:
        signals.report(signals.dispatcher_failed, self.dispatcher.sender, error=error)

    def _outlast(self, error: DatabaseUnavailable) -> bool:
        """The database is away: say so once, wait a little. Returns whether to try again."""
        self._database_is_away(error)
        return not self._stopping.wait(AWAY_PAUSE)

    def _database_is_away(self, error: DatabaseUnavailable) -> None:
        with self._telling:
            if not self._away:
                self._away = True
                signals.report(signals.database_lost, self.dispatcher.sender, error=error)
                self.wakeup.wake()  # the loop shall see when it is back, be it idle until then

    def _come_back(self) -> None:
        """Only a write tells that the database is back: a full disk can still be read.

        Leases ran out that nobody could extend, though their receivers still run. So each dispatcher extends its own
        first, and gives the others time to do the same before it takes anything over.
        """
        self.dispatcher.extend()
        with self._telling:
            self._away = False
            signals.report(signals.database_back, self.dispatcher.sender)
        self._stopping.wait(2 * AWAY_PAUSE)
