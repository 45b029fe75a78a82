"""The bus of one application: it ties the parts together."""

import os
import threading
import weakref
from datetime import timedelta
from functools import partial
from typing import Any

from flask import Flask

from app.bus import lifecycle as signals
from app.bus import operate, prune
from app.bus.dispatcher import Dispatcher
from app.bus.leases import Settled
from app.bus.operate import Filter
from app.bus.options import ReceiverOptions
from app.bus.outbox import record_into
from app.db import Database
from app.engine.inprocess.wakeup import Caller, Wakeup
from app.engine.inprocess.worker import Worker
from app.retry import Policy
from config import Settings

__all__ = ["Bus", "Dispatcher", "Filter", "Settled", "Worker"]


class Bus:
    """Ties the parts together for one application: records what signals send, and runs a dispatcher here on demand."""

    def __init__(self, app: Flask, database: Database, *, policy: Policy, settings: Settings) -> None:
        self.database = database
        self.policy = policy
        self.settings = settings
        self.worker: Worker | None = None
        self._app_context = app.app_context
        self._caller = Caller(database)
        self._lock = threading.Lock()
        database.committed.connect(self._on_commit, database)
        database.before_work = record_into
        self._options: dict[str, ReceiverOptions] = {}
        _buses.add(self)

    def configure(self, receiver: str, *, concurrency: int = 1, hold_unknown: bool = False) -> None:
        """Choose this application's options for the receiver of that name: see ReceiverOptions."""
        self._options[receiver] = ReceiverOptions(concurrency, hold_unknown)

    def options(self, receiver: str) -> ReceiverOptions:
        return self._options.get(receiver, ReceiverOptions())

    def dispatcher(self) -> Dispatcher:
        """A new dispatcher with this application's settings."""
        return Dispatcher(
            self.database,
            self.policy,
            context=self._app_context,
            sender=self,
            options=self.options,
            lease_seconds=self.settings.lease_seconds,
            missing_receiver_seconds=self.settings.missing_receiver_seconds,
        )

    def start(self) -> Worker:
        """Dispatch in this process, in threads, until ``stop()``. Does nothing when it does so already."""
        with self._lock:
            if self.worker is None:
                self.worker = Worker(
                    self.dispatcher(),
                    Wakeup(self.database),
                    poll_seconds=self.settings.poll_seconds,
                    wake_others=partial(self._caller.call, everywhere=True),
                    prune=lambda: self.prune(batches=1),
                )
                self.worker.start()
            return self.worker

    def stop(self) -> bool:
        """Stop dispatching here, waiting ``shutdown_seconds`` for running receivers. Returns whether all ended."""
        with self._lock:
            worker, self.worker = self.worker, None
        return worker is None or worker.stop(self.settings.shutdown_seconds)

    def retry(self, which: Filter, by: str) -> int:
        """Make dead and discarded deliveries due again, with a new budget. Returns how many."""
        return self._act("retry", which, by, None)

    def discard(self, which: Filter, reason: str, by: str) -> int:
        """Give waiting and dead deliveries up for good. Returns how many."""
        return self._act("discard", which, by, reason)

    def prune(self, batches: int | None = None) -> int:
        """Forget finished events that are older than ``retention_days``. Returns how many."""
        return prune.prune(self.database, timedelta(days=self.settings.retention_days), batches)

    def _act(self, action: str, which: Filter, by: str, reason: str | None) -> int:
        count = operate.act(self.database, action, which, by=by, reason=reason)
        signals.report(signals.operator_acted, self, action=action, which=which, count=count, by=by)
        self._wake()
        return count

    def _on_commit(self, _: Database, facts: list[dict[str, Any]]) -> None:
        recorded = [event for each in facts for event in each.get("recorded", ())]
        if recorded:
            signals.report(signals.events_recorded, self, events=recorded)
        if any(event.receivers for event in recorded):
            self._wake()

    def _wake(self) -> None:
        """Whoever dispatches here; where nobody does, those who dispatch elsewhere."""
        worker = self.worker
        if worker is not None:
            worker.wakeup.wake()
        else:
            self._caller.call()

    def _after_fork(self) -> None:
        """Threads stay behind in the parent, and its connections are its own: begin anew."""
        self.database.forget_connections()
        self._lock = threading.Lock()
        if self.worker is not None:
            self.worker = None
            self.start()


_buses: "weakref.WeakSet[Bus]" = weakref.WeakSet()


def _after_fork() -> None:
    for bus in list(_buses):
        bus._after_fork()


os.register_at_fork(after_in_child=_after_fork)
