"""The bus of one application."""

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from datetime import timedelta
from typing import Any

from flask import Flask

from app.bus import acts, delivers_by, heartbeats, lifecycle, operate, pause, prune, replay
from app.bus.dispatcher import Dispatcher
from app.bus.invoke import Invoker
from app.bus.learned_retries import LearnedRetries
from app.bus.learning import Learning
from app.bus.operate import Act, CarriedOut, Chosen, Filter
from app.bus.outbox import record_into
from app.bus.replay import Found, Replay
from app.bus.retries import PlainRetries, Retries
from app.bus.status import MOST_READ, Status, of_receivers
from app.bus.tables import Role
from app.bus.watch import Watch
from app.db import Database
from app.errors import SpreadTooLong
from app.retry import LearnedPolicy, Policy
from app.signal import ReceiverOptions, subscriptions
from config import Settings


class Bus:
    """Records what durable signals send, and makes dispatchers, which deliver it. An engine runs these."""

    def __init__(
        self,
        app: Flask,
        database: Database,
        *,
        policy: Policy | LearnedPolicy,
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
        self.learning = Learning(database, policy, sender=self) if isinstance(policy, LearnedPolicy) else None
        database.before_work = record_into
        database.on_commit = self._on_commit

    def dispatcher(self, role: Role = Role.DISPATCHER) -> Dispatcher:
        """A new dispatcher with this application's settings."""
        missing_after = timedelta(seconds=self.settings.missing_receiver_seconds)
        invoker = Invoker(
            self._app_context, self.options, self.database.clock, missing_after=missing_after, sender=self
        )
        return Dispatcher(
            self.database, self.retries(), invoker, self.settings, mails=self.mails, sender=self, role=role
        )

    def retries(self) -> Retries:
        """By RETRY_POLICY."""
        if isinstance(self.policy, LearnedPolicy):
            return LearnedRetries(self.policy, self.database.clock)
        return PlainRetries(self.policy)

    def status(self, most: int = MOST_READ) -> Status:
        """The service as its database tells it, whichever process asks; ``most`` rows are read for each number. Raises
        DatabaseUnavailable.

        Where the bus's tables can't be read there are no receivers in it, and its ``readiness`` says why.
        """
        readiness, settings, now = self.watch.look(), self.settings, self.database.clock.now()
        if not readiness.is_read:
            return Status(now, readiness, [], [], None)
        silence = heartbeats.silence(settings.ready_lag_seconds)
        with self.database.read() as session:
            receivers = of_receivers(
                session, now, timedelta(seconds=settings.lease_seconds), subscriptions(), most=most
            )
            before = delivers_by.those_before(session, now, silence)
            refused = delivers_by.refusal(session, now, silence, settings, self.mails)
        return Status(now, readiness, receivers, before, refused)

    @property
    def mails(self) -> list[str]:
        """The receivers that send mail."""
        return [name for name, options in self.options.items() if options.sends_mail]

    def choose(self, act: Act) -> Chosen:
        """Count what the act is to touch. Raises SpreadTooLong."""
        self._check_spread(act.over_seconds)
        with self.database.read() as session:
            return operate.choose(session, act)

    def _check_spread(self, over_seconds: int | None) -> None:
        """A due time further ahead than any wait would be taken for one from before a clock was set back."""
        if over_seconds and over_seconds > self.policy.maximum:
            raise SpreadTooLong(
                f"{over_seconds} s is longer than any delivery may wait; "
                f"spread it over {self.policy.maximum:.0f} s at most, which is RETRY_MAX_SECONDS"
            )

    def start(self, chosen: Chosen) -> Chosen:
        """Record the act, for whoever carries it out later. What is returned has its ``act_id``."""
        return dataclasses.replace(chosen, act_id=operate.start(self.database, chosen))

    def carry_out(self, chosen: Chosen, on_progress: Callable[[int], object] = lambda _: None) -> CarriedOut:
        """Touch what was chosen, and record it: see operate.carry_out()."""
        done = operate.carry_out(self.database, chosen, on_progress)
        self.report_act(chosen.act.action, chosen.act.which, done.deliveries, chosen.act.by)
        return done

    def retry(self, which: Filter, by: str) -> int:
        """Make waiting and dead deliveries due now; discarded ones where the filter names their state. Returns how
        many."""
        return self.carry_out(self.choose(Act("retry", which, by))).deliveries

    def discard(self, which: Filter, reason: str, by: str) -> int:
        """Give waiting and dead deliveries up for good. Returns how many."""
        return self.carry_out(self.choose(Act("discard", which, by, reason))).deliveries

    def abort(self, act_id: int, by: str) -> int:
        """Take back what the act has not yet got tried: see acts.abort()."""
        count = acts.abort(self.database, act_id, by)
        self.report_act(f"abort of act {act_id}", Filter(), count, by)
        return count

    def report_act(self, action: str, which: object, count: int, by: str) -> None:
        """Report that a person did something, and wake the dispatchers: due times have changed."""
        lifecycle.report(lifecycle.operator_acted, self, action=action, which=which, count=count, by=by)
        lifecycle.report(lifecycle.deliveries_due, self)

    def find_recorded(self, which: Replay) -> Found:
        """Find the events that a replay would touch. Raises ReplayRefused."""
        replay.check(which)
        return replay.find(self.database, which)

    def replay(
        self,
        which: Replay,
        found: Found,
        by: str,
        over_seconds: int | None = None,
        on_progress: Callable[[int], object] = lambda _: None,
    ) -> CarriedOut:
        """Give what was found to the receiver; the tries are spread over so long.

        ``on_progress`` is called after each batch with the number of deliveries that it touched. Raises ReplayRefused
        and SpreadTooLong.
        """
        replay.check(which)
        self._check_spread(over_seconds)

        def after_batch(count: int) -> None:
            lifecycle.report(lifecycle.deliveries_due, self)
            on_progress(count)

        done = replay.carry_out(self.database, which, found, by, over_seconds, after_batch)
        self.report_act("replay", which, done.deliveries, by)
        return done

    def pause(self, receiver: str, reason: str, by: str) -> bool:
        """Let nothing be delivered to the receiver until it is resumed. Returns whether it was not paused before.

        Once this returns no process claims a delivery to it. Raises UnknownReceiver.
        """
        changed = self.database.transact(lambda transaction: pause.pause(transaction, receiver, by, reason))
        return self._held_or_let_go("pause", receiver, by, changed=changed)

    def resume(self, receiver: str, by: str, reason: str | None = None) -> bool:
        """Deliver to the receiver again, from now on. Returns whether it was paused. Raises UnknownReceiver."""
        changed = self.database.transact(lambda transaction: pause.resume(transaction, receiver, by, reason))
        return self._held_or_let_go("resume", receiver, by, changed=changed)

    def _held_or_let_go(self, action: str, receiver: str, by: str, *, changed: bool) -> bool:
        """Dispatchers on all machines hear of it: they give back what they have not begun, or claim."""
        if changed:
            self.report_act(action, Filter(receiver=receiver), 0, by)
        lifecycle.report(lifecycle.deliveries_due, self, everywhere=True)
        return changed

    def probe(self, receiver: str, by: str) -> bool:
        """Let the receiver's open circuit breaker take its next probe now. Returns whether it is open."""
        probed = self.database.transact(lambda transaction: operate.probe(transaction, receiver, by))
        if probed:
            self.report_act("probe", Filter(receiver=receiver), 0, by)
        return probed

    def hold_ups(self, receivers: Collection[str]) -> list[str]:
        """Why what is left to these receivers is not being tried: see acts.hold_ups()."""
        silence = heartbeats.silence(self.settings.ready_lag_seconds)
        with self.database.read() as session:
            return acts.hold_ups(session, receivers, self.database.clock.now(), silence)

    def prune(self, batches: int | None = None) -> int:
        """Delete finished events that are older than ``retention_days``. Returns how many."""
        return prune.prune(self.database, timedelta(days=self.settings.retention_days), batches)

    def _on_commit(self, facts: list[dict[str, Any]]) -> None:
        recorded = [event for each in facts for event in each.get("recorded", ())]
        if recorded:
            lifecycle.report(lifecycle.events_recorded, self, events=recorded)
        if any(each.get("due") for each in facts):
            lifecycle.report(lifecycle.deliveries_due, self)
