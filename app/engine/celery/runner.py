"""What a process of a Celery worker does with a message: take, invoke, settle; and keep its lease while that lasts."""

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from typing import Any

from app.bus import Bus, Lease, LeaseEnd, Role, lifecycle
from app.bus.invoke import Answer, NotBegun, is_transactional, undone
from app.engine.celery.configure import hard_limit
from app.engine.celery.limits import TimeLimit
from app.engine.inprocess.unsettled import UnsettledAnswers
from app.engine.inprocess.worker import RETRY_SECONDS
from app.errors import DatabaseUnavailable
from app.states import DeliveryState

MOST_UNSTORED = 5
"""Answers of one process that can't be stored: with so many it is hardly the answers' fault. With fewer the process
goes on, because what it leaves waits for the end of its lease."""


class Runner:
    """One dispatcher, of one process, that takes what messages carry to it. ``carry`` for one thread at a time.

    An answer that can't be stored is kept, and tried again by the thread that keeps the lease. With MOST_UNSTORED of
    them nothing else is taken.
    """

    def __init__(self, bus: Bus) -> None:
        self.bus = bus
        self.end_process: Callable[[], object] = partial(os._exit, 1)
        self._limit = TimeLimit()
        self.dispatcher = bus.dispatcher(Role.WORKER)
        invoker = self.dispatcher.invoker
        self.dispatcher.invoker = replace(invoker, context=partial(self._limited, invoker.context))
        self._answers = UnsettledAnswers(self.dispatcher)
        self._settling = threading.Lock()
        self._present: tuple[Lease, float] | None = None
        """What it is at, and since when, by the monotonic clock."""
        self._signed_on = False
        self._refused = False
        self._database_lost = False
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="dispatcher-heartbeat", daemon=True)
        lifecycle.deliveries_settled.connect(self._wake_relay, sender=bus)

    def start(self) -> None:
        with self._reporting_faults():
            self._sign_on()
        self._thread.start()

    def stop(self) -> None:
        """Store what can be stored, and sign off."""
        self._ended.set()
        with self._reporting_faults():
            self._settle()
            if self._signed_on:
                self.dispatcher.sign_off()
        if self._signed_on:
            unfinished = len(self._answers)
            name = self.dispatcher.name
            lifecycle.report(lifecycle.dispatcher_stopped, self.dispatcher.sender, name=name, unfinished=unfinished)

    # A message

    def carry(self, delivery_id: int, lease_token: int) -> str:
        """Returns in a word what became of it. Raises nothing: where it fails, the lease brings the delivery back."""
        self._limit.install()
        try:
            return self._carry(delivery_id, lease_token)
        except Exception as error:
            self._report_fault(error)
            return "failed"
        finally:
            self._limit.end_if_terminated()

    def _carry(self, delivery_id: int, lease_token: int) -> str:
        if not self._signed_on or len(self._answers) >= MOST_UNSTORED:
            return "left"
        lease = self.dispatcher.take(delivery_id, lease_token)
        if lease is None:
            return "lost"
        self._present = lease, time.monotonic()
        try:
            return self._deliver(lease)
        finally:
            self._present = None

    def _deliver(self, lease: Lease) -> str:
        answer: Answer | None
        if is_transactional(lease):
            try:
                self.dispatcher.deliver_transactional([lease])
            except DatabaseUnavailable as error:  # its work is undone together with its record
                answer = undone(error) if self._can_write(error) else NotBegun()
            except BaseException as error:
                self._answers.report_unstored(lease, error, 1)
                answer = undone(error)
            else:
                return "settled"
        else:
            answer = self.dispatcher.invoke(lease)
            if answer is None:
                return "lost"
        self._answers.add((lease, answer))
        self._settle()
        return "unsettled" if len(self._answers) else "settled"

    def _can_write(self, error: DatabaseUnavailable) -> bool:
        """Whether the database can be written to all the same: then what failed waits, because it would fail at once
        again."""
        self._note_database_lost(error)
        try:
            self.dispatcher.heartbeat(self._at_work())
        except DatabaseUnavailable:
            return False
        self._note_database_back()
        return True

    def _settle(self) -> None:
        """All that waits, and is due."""
        with self._settling:
            while not self._answers.seconds_until_due():
                self._answers.settle_and_claim({})

    @contextlib.contextmanager
    def _limited(self, context: Callable[[], AbstractContextManager[Any]]) -> Iterator[None]:
        with context(), self._limit.in_force():
            yield

    def _wake_relay(self, _: Bus, ends: list[LeaseEnd]) -> None:
        """Something is due now, or later, and the relay has not heard of it."""
        if any(end.state is DeliveryState.READY or end.lease.probe or end.lease.gated for end in ends):
            lifecycle.report(lifecycle.deliveries_due, self.bus)

    # The thread beside it

    def _run(self) -> None:
        while not self._ended.wait(self._pause()):
            with self._reporting_faults():
                self._look_after_process()
                if not self._signed_on:
                    self._sign_on()
                else:
                    self.dispatcher.heartbeat(self._at_work())
                    self._note_database_back()
                    self._settle()

    def _pause(self) -> float:
        waits = not self._signed_on or self._database_lost or len(self._answers)
        return RETRY_SECONDS if waits else self.dispatcher.heartbeat_seconds

    def _at_work(self) -> list[Lease]:
        present = self._present
        return ([present[0]] if present else []) + [lease for lease, _ in self._answers.all()]

    def _look_after_process(self) -> None:
        """Celery's worker kills it at the hard limit; but that may be dead itself."""
        if (present := self._present) is None:
            return
        lease, began = present
        seconds = time.monotonic() - began
        if seconds > hard_limit(self.bus, lease.receiver) + self.dispatcher.heartbeat_seconds:
            reason = f"{lease.receiver} has not returned for order {lease.order_id} after {seconds:.0f} s"
            lifecycle.report(lifecycle.process_given_up, self.dispatcher.sender, reason=reason)
            self.end_process()

    def _sign_on(self) -> None:
        refusal, differs = self.dispatcher.sign_on()
        sender, name = self.dispatcher.sender, self.dispatcher.name
        if refusal is None:
            self._signed_on = True
            lifecycle.report(lifecycle.dispatcher_started, sender, name=name, differs=differs)
        elif not self._refused:
            self._refused = True
            lifecycle.report(lifecycle.dispatcher_refused, sender, name=name, reason=refusal)
        self._note_database_back()

    # Outages and faults

    @contextlib.contextmanager
    def _reporting_faults(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self._report_fault(error)

    def _report_fault(self, error: Exception) -> None:
        if isinstance(error, DatabaseUnavailable):
            self._note_database_lost(error)
        else:
            lifecycle.report(lifecycle.dispatcher_failed, self.dispatcher.sender, error=error)

    def _note_database_lost(self, error: DatabaseUnavailable) -> None:
        known, self._database_lost = self._database_lost, True
        if not known:
            lifecycle.report(lifecycle.database_lost, self.dispatcher.sender, error=error)

    def _note_database_back(self) -> None:
        was_lost, self._database_lost = self._database_lost, False
        if was_lost:
            lifecycle.report(lifecycle.database_back, self.dispatcher.sender)
