"""The bus of one application."""

from collections import defaultdict
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from flask import Flask

from app.bus import heartbeats, lifecycle, operate, prune
from app.bus.dispatcher import Dispatcher
from app.bus.invoke import Invoker
from app.bus.operate import Filter
from app.bus.outbox import record_into
from app.bus.watch import Watch
from app.db import Database
from app.retry import Policy
from app.signal import ReceiverOptions
from config import Settings


class Bus:
    """Records what durable signals send, and makes dispatchers, which deliver it. An engine runs these."""

    def __init__(
        self,
        app: Flask,
        database: Database,
        *,
        policy: Policy,
        settings: Settings,
        options: Mapping[str, ReceiverOptions],
    ) -> None:
        """``options`` are those of receivers, by name, for which the defaults will not do."""
        self.database = database
        self.policy = policy
        self.settings = settings
        self._app_context = app.app_context
        self.options = defaultdict(ReceiverOptions, options)
        self.watch = Watch(database, settings, sender=self)
        database.before_work = record_into
        database.committed.connect(self._on_commit, database)

    def dispatcher(self) -> Dispatcher:
        """A new dispatcher with this application's settings."""
        missing_after = timedelta(seconds=self.settings.missing_receiver_seconds)
        invoker = Invoker(
            self._app_context, self.options, self.database.clock, missing_after=missing_after, sender=self
        )
        lease_seconds = self.settings.lease_seconds
        heartbeat_seconds = heartbeats.pause_seconds(lease_seconds, self.settings.ready_lag_seconds)
        return Dispatcher(
            self.database,
            self.policy,
            invoker,
            lease_seconds=lease_seconds,
            heartbeat_seconds=heartbeat_seconds,
            sender=self,
        )

    def retry(self, which: Filter, by: str) -> int:
        """Make dead and discarded deliveries due again, with a new budget. Returns how many."""
        return self._act("retry", which, by, None)

    def discard(self, which: Filter, reason: str, by: str) -> int:
        """Give waiting and dead deliveries up for good. Returns how many."""
        return self._act("discard", which, by, reason)

    def prune(self, batches: int | None = None) -> int:
        """Delete finished events that are older than ``retention_days``. Returns how many."""
        return prune.prune(self.database, timedelta(days=self.settings.retention_days), batches)

    def _act(self, action: str, which: Filter, by: str, reason: str | None) -> int:
        count = operate.act(self.database, action, which, by=by, reason=reason)
        lifecycle.report(lifecycle.operator_acted, self, action=action, which=which, count=count, by=by)
        lifecycle.report(lifecycle.deliveries_due, self)
        return count

    def _on_commit(self, _: Database, facts: list[dict[str, Any]]) -> None:
        recorded = [event for each in facts for event in each.get("recorded", ())]
        if recorded:
            lifecycle.report(lifecycle.events_recorded, self, events=recorded)
        if any(event.receivers for event in recorded):
            lifecycle.report(lifecycle.deliveries_due, self)
