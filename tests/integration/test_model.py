"""The bus against a model of it: Hypothesis makes up what happens, and after every step the tables must agree.

The model is the bus as one would write it for a single thread and memory that is never lost: a page of Python without
SQL. MODEL_EXAMPLES makes the search longer; HYPOTHESIS_PROFILE names a profile of one's own.
"""

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from itertools import cycle
from typing import Any
from unittest.mock import ANY

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import Connection, text

from app.answers import Discard, Done, RetryAfter
from app.bus import Dispatcher, Filter, LeaseEnd, acts, lifecycle, operate, queries, settle
from app.bus.leases import NO_RESULT, Lease
from app.db import Base, Transaction
from app.errors import DatabaseUnavailable, Deferred, InDoubt, Refused, TimedOut, Unreachable
from app.events import (
    Event,
    NotificationFailed,
    NotificationSent,
    OrderCreated,
    notification_failed,
    notification_sent,
    order_created,
)
from app.retry.policy import PROBE_BASE, PROBE_MAXIMUM
from tests.support.shop import START, FixedWait, Shop, not_begun
from tests.support.simulation import quiet

LEASE = timedelta(seconds=30)
WAIT = timedelta(seconds=60)
BUDGET = 3
DAMAGE = "{"
UNKNOWN_LIMIT = 2
"""Of the receiver "outside"."""
DOWN = {"throttled", "unreachable", "timeout", "unknown"}
SILENT = {"timeout", "unknown"}
ANSWERED = {"ok", "refused", "deferred"}

RECEIVERS = {
    "OrderCreated": ("inside", "outside", "careful"),
    "NotificationSent": ("heard",),
    "NotificationFailed": ("heard",),
}
INSIDE = {"inside", "heard"}
"""Receivers that take a session."""


class Killed(BaseException):
    """The process ends in the middle of a receiver. Should this be caught, a dead process still does nothing more."""


class Starts(str):
    """Text of which only the beginning is known."""

    __slots__ = ()
    __hash__ = str.__hash__

    def __eq__(self, other: object) -> bool:
        return isinstance(other, str) and other.startswith(str(self))


# What a receiver may do, and what is to become of its delivery

SENT = NotificationSent(order_id="x", user_id="u", recipient="a@b.example", message_id="<m>")


@dataclass(frozen=True)
class Answer:
    """What a receiver does, and what must follow: the delivery's ``state``, the attempt's ``outcome``."""

    act: Callable[[Any], Any]
    state: str
    outcome: str | None = None
    reason: str | None = None
    wait: float = WAIT.total_seconds()
    publishes: int = 0
    published_inside: int = 0
    """Published by a receiver with a session; the others have no transaction for it."""


def _raise(error: BaseException) -> Callable[[Any], Any]:
    def act(_: Any) -> None:
        raise error

    return act


def _send_and(then: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Publish while the receiver runs; one without a session has no transaction to do so in, and only goes on."""

    def act(session: Any) -> Any:
        if session is not None:
            notification_sent.send("model", event=SENT)
        return then(session)

    return act


ANSWERS = {
    "ok": Answer(lambda _: None, "done", "ok"),
    "ok, publishing": Answer(lambda _: Done(SENT), "done", "ok", publishes=1),
    "ok, having published": Answer(_send_and(lambda _: None), "done", "ok", published_inside=1),
    "bug": Answer(_raise(RuntimeError("no luck")), "ready", "bug", "RuntimeError: no luck"),
    "bug, having published": Answer(_send_and(_raise(KeyError("half"))), "ready", "bug", "KeyError: 'half'"),
    "bug, publishing nonsense": Answer(lambda _: Done("x"), "ready", "bug", Starts("KeyError: 'str'")),  # type: ignore[arg-type]
    "refused": Answer(_raise(Refused("550 never")), "dead", "refused", "550 never"),
    "deferred": Answer(_raise(Deferred("450 later")), "ready", "deferred", "450 later"),
    "unreachable": Answer(_raise(Unreachable("no route")), "ready", "unreachable", "no route"),
    "timeout": Answer(_raise(TimedOut("no reply")), "ready", "timeout", "no reply"),
    "in doubt": Answer(_raise(InDoubt("no reply")), "ready", "unknown", "no reply"),
    "discard": Answer(lambda _: Discard("not on Sundays"), "discarded", None, "not on Sundays"),
    "discard, publishing nonsense": Answer(lambda _: Discard("no", "x"), "ready", "bug", Starts("KeyError: 'str'")),  # type: ignore[arg-type]
    "not yet": Answer(lambda _: RetryAfter(100, "counting"), "ready", None, "counting", wait=100),
    "killed": Answer(_raise(Killed()), "leased"),
}
OK, KILLED = ANSWERS["ok"], ANSWERS["killed"]
HELD = Answer(lambda _: None, "dead", None, Starts("its last attempt's outcome is unknown"))
FATE_UNKNOWN = Answer(lambda _: None, "dead", None, Starts("its fate is unknown: up to "))
UNDECODABLE = Answer(lambda _: None, "dead", "bug", Starts("undecodable event: "))
"""Settled without a call of the receiver."""
EXPIRED = Answer(lambda _: None, "ready", "unknown", NO_RESULT)
GIVEN_UP = Answer(lambda _: None, "dead", "unknown", settle.GIVEN_UP)
"""Settled in place of a process that left no result, though it had tried the delivery alone."""


# The model


@dataclass
class Owed:
    """A delivery."""

    event: "Happened"
    receiver: str
    due_at: datetime
    created_at: datetime
    state: str = "ready"
    attempts: int = 0
    token: int = 0
    outcome: str | None = None
    reason: str | None = None
    settled_at: datetime | None = None
    leased_at: datetime | None = None
    leased_by: str | None = None
    tries: list[tuple[int, str]] = field(default_factory=list)
    ended: list[datetime] = field(default_factory=list)
    """When each of the tries did."""
    expired: list[bool] = field(default_factory=list)
    """Whether each of the tries was of a process that left no result."""
    delivery_id: int = 0

    @property
    def unfinished(self) -> bool:
        return self.state in ("ready", "leased")

    @property
    def unknown(self) -> int:
        """Of the tries in the present budget, and of the one before them that was not charged."""
        if not self.attempts and self.outcome != "unknown":
            return 0
        before = -self.attempts - 1
        charged = before if len(self.tries) >= -before and self.expired[before] else before + 1
        return [outcome for _, outcome in self.tries[charged or len(self.tries) :]].count("unknown")

    def end_try(self, token: int, outcome: str, now: datetime, *, expired: bool = False) -> None:
        self.tries.append((token, outcome))
        self.ended.append(now)
        self.expired.append(expired)

    def row(self) -> dict[str, Any]:
        """As the table has it."""
        return {
            "receiver": self.receiver,
            "state": self.state,
            "due_at": self.due_at,
            "attempts": self.attempts,
            "lease_token": self.token,
            "outcome": self.outcome,
            "reason": self.reason,
            "settled_at": self.settled_at,
            "leased_at": self.leased_at,
            "leased_by": self.leased_by,
            "created_at": self.created_at,
        }


@dataclass
class Happened:
    """An event. Its id is learned from the table, where it has its place behind all that happened before."""

    kind: str
    order_id: str
    user_id: str
    occurred_at: datetime
    cause: "str | Happened | None" = None
    event_id: str = ""
    owed: list[Owed] = field(default_factory=list)

    @property
    def cause_id(self) -> str | None:
        """Of an event that was published at once, the id is learned together with that of its cause."""
        return self.cause.event_id if isinstance(self.cause, Happened) else self.cause


@dataclass
class Breaker:
    """Something is down. ``probe_at`` is exact, or the earliest and the latest that it may be."""

    opened_at: datetime
    failures: int
    probe_at: datetime
    at_latest: datetime


@dataclass
class Acted:
    """What a person did: the deliveries that it touched, each with its token then, and what it was before."""

    action: str
    touched: dict[int, tuple[int, dict[str, Any]]]
    taken_back: set[int] = field(default_factory=set)
    aborted: bool = False


class Model:
    """What the bus is: deliveries as a list, leases as tokens, and no way to lose anything."""

    def __init__(self) -> None:
        self.events: list[Happened] = []
        self.breakers: dict[str, Breaker] = {}
        self.paused: set[str] = set()
        self.acts: list[Acted] = []
        self.reported = 0
        """How many events were ever stored."""

    @property
    def deliveries(self) -> list[Owed]:
        return [owed for event in self.events for owed in event.owed]

    def __getitem__(self, delivery_id: int) -> Owed:
        (found,) = (owed for owed in self.deliveries if owed.delivery_id == delivery_id)
        return found

    def publish(
        self, kind: str, order_id: str, user_id: str, now: datetime, cause: "str | Happened | None" = None
    ) -> Happened:
        event = Happened(kind, order_id, user_id, now, cause)
        event.owed = [Owed(event, receiver, now, now) for receiver in RECEIVERS[kind]]
        self.events.append(event)
        self.reported += 1
        return event

    def expire(self, lease: Lease, now: datetime) -> None:
        """The bus found that ``lease`` had run out. An attempt is charged only where it was in doubt before."""
        owed = self[lease.delivery_id]
        assert (owed.state, owed.token, owed.due_at <= now) == ("leased", lease.token, True)
        if owed.outcome == "unknown":
            self.settle(lease, GIVEN_UP if owed.attempts + 1 >= BUDGET else EXPIRED, now)
        else:
            owed.end_try(owed.token, "unknown", now, expired=True)
            owed.state, owed.due_at, owed.outcome, owed.reason = "ready", now, "unknown", NO_RESULT

    def claim(self, capacity: dict[str, int], taken: list[Lease], now: datetime, who: str) -> None:
        """``taken`` is what the bus took: of several that are due at one time it may choose. What is in doubt is taken
        alone."""
        alone = any(self[lease.delivery_id].outcome == "unknown" for lease in taken)
        assert not alone or len(taken) == 1
        for receiver, limit in capacity.items():
            self._claim(receiver, limit, [lease for lease in taken if lease.receiver == receiver], now, alone)
        for lease in taken:
            owed = self[lease.delivery_id]
            owed.state, owed.token, owed.due_at = "leased", owed.token + 1, now + LEASE
            owed.leased_at, owed.leased_by = now, who
            seen = (lease.token, lease.spent, lease.expired, lease.probe, lease.event_id, lease.leased_by)
            assert seen == (owed.token, owed.attempts, False, lease.receiver in self.breakers, owed.event.event_id, who)
            assert lease.in_doubt == (owed.outcome == "unknown")
            assert lease.unknown == owed.unknown

    def _claim(self, receiver: str, limit: int, taken: list[Lease], now: datetime, alone: bool) -> None:
        if receiver in self.paused:
            assert not taken
            return
        breaker = self.breakers.get(receiver)
        if breaker is not None:
            limit = min(limit, 1) if breaker.probe_at <= now else 0
        due = [owed for owed in self.deliveries if owed.receiver == receiver and owed.unfinished and owed.due_at <= now]
        sure = [owed for owed in due if owed.state == "ready" and owed.outcome != "unknown"]
        chosen = [self[lease.delivery_id] for lease in taken]
        if not alone:
            assert all(owed in sure for owed in chosen)
            assert min(limit, len(due)) - (len(due) - len(sure)) <= len(chosen) <= limit or not chosen
            fresh = [owed.due_at for owed in sure if owed.outcome not in DOWN]
            left = [owed.due_at for owed in sure if owed not in chosen]
            if chosen and breaker is not None and fresh:
                assert chosen[0].outcome not in DOWN
                assert chosen[0].due_at == max(fresh)
            else:
                assert not chosen or not left or max(owed.due_at for owed in chosen) <= min(left)
        else:
            assert all(owed in due and owed.state == "ready" for owed in chosen)
        if breaker is not None and breaker.probe_at <= now:
            breaker.probe_at, breaker.at_latest = (now + LEASE, now + LEASE) if chosen else (breaker.probe_at, now)

    def nothing_is_due(self, capacity: dict[str, int], now: datetime) -> bool:
        """To those that have capacity, and no breaker that keeps them back."""
        free = [name for name, limit in capacity.items() if limit and self._lets_through(name, now)]
        return not any(owed.receiver in free and owed.unfinished and owed.due_at <= now for owed in self.deliveries)

    def _lets_through(self, receiver: str, now: datetime) -> bool:
        is_open = receiver in self.breakers and self.breakers[receiver].at_latest > now
        return not is_open and receiver not in self.paused

    def holds(self, lease: Lease) -> bool:
        held = [(owed.state, owed.token) for owed in self.deliveries if owed.delivery_id == lease.delivery_id]
        return held == [("leased", lease.token)]

    def extend(self, lease: Lease, now: datetime) -> bool:
        """Returns whether the lease still was."""
        if held := self.holds(lease):
            self[lease.delivery_id].due_at = now + LEASE
            if lease.probe and lease.receiver in self.breakers:
                breaker = self.breakers[lease.receiver]
                breaker.probe_at = breaker.at_latest = now + LEASE
        return held

    def release(self, lease: Lease, now: datetime) -> None:
        if self.holds(lease):
            self._end(lease, "ready", None, None, now, now)
            self._note_outcome(lease, None, now)

    @staticmethod
    def verdict(lease: Lease) -> Answer | None:
        """What is settled without a call of the receiver; None when it is to be called."""
        if lease.in_doubt and lease.receiver == "careful":
            return HELD
        if lease.receiver == "outside" and lease.unknown >= UNKNOWN_LIMIT:
            return FATE_UNKNOWN
        return UNDECODABLE if is_damaged(lease) else None

    def settle_all(
        self, answers: list[tuple[Lease, Answer]], now: datetime, at_once: Answer
    ) -> list[tuple[int, str, str | None]]:
        """In one transaction: what the breakers learn of it, they learn when all is recorded.

        ``at_once`` is what receivers with a session do, then and there, of what the answers publish.
        """
        before = len(self.events)
        ends = [(lease, self.settle(lease, answer, now)) for lease, answer in answers]
        for lease, end in ends:
            if end is not None:
                self._note_outcome(lease, end[2], now)
        settled = [end for _, end in ends if end is not None]
        (lease, *_), published = [lease for lease, _ in answers] or [None], self.events[before:]
        if lease is None or lease.receiver in INSIDE or lease.in_doubt or at_once.outcome != "ok":
            return settled
        for owed in [owed for event in published for owed in event.owed]:
            if owed.receiver in INSIDE and owed.receiver not in (*self.breakers, *self.paused):
                owed.state, owed.attempts, owed.token, owed.outcome, owed.settled_at = "done", 1, 1, "ok", now
                owed.leased_at, owed.leased_by = now, lease.leased_by
                owed.end_try(1, "ok", now)
                settled.append((ANY, "done", "ok"))
                for _ in range(at_once.publishes + at_once.published_inside):
                    self.publish("NotificationSent", "x", "u", now, owed.event)
        return settled

    def settle(self, lease: Lease, answer: Answer, now: datetime) -> tuple[int, str, str | None] | None:
        """Returns the delivery, its new state and the attempt's outcome; None when the lease was lost."""
        if not self.holds(lease):
            return None
        event = self[lease.delivery_id].event
        state = answer.state
        if state == "ready" and answer.outcome is not None and lease.spent + 1 >= BUDGET:
            state = "dead"
        if answer.outcome == "unknown" and lease.receiver == "careful" and not lease.expired:
            state = "dead"
        due_at = now + timedelta(seconds=answer.wait) if state == "ready" else None
        reason = answer.reason
        if answer.outcome == "unknown" and self._is_fate_unknown(lease):
            state, due_at, reason = "dead", None, FATE_UNKNOWN.reason
        if state == "dead" and lease.receiver == "careful" and type(reason) is str:
            reason = Starts(f"{reason}; and when_dead failed: TypeError: it returned 'nonsense'")
        self._end(lease, state, answer.outcome, reason, due_at, now)
        for _ in range(answer.publishes + answer.published_inside * (lease.receiver in INSIDE)):
            self.publish("NotificationSent", "x", "u", now, event.event_id)
        if state == "dead" and lease.receiver == "outside" and not is_damaged(lease):
            self.publish("NotificationFailed", event.order_id, event.user_id, now, event.event_id)
        return lease.delivery_id, state, answer.outcome

    def _end(
        self, lease: Lease, state: str, outcome: str | None, reason: str | None, due_at: datetime | None, now: datetime
    ) -> None:
        owed = self[lease.delivery_id]
        owed.state, owed.reason, owed.due_at = state, reason, due_at or now
        owed.settled_at = None if state == "ready" else now
        if outcome is not None:
            owed.attempts, owed.outcome = lease.spent + 1, outcome
            owed.end_try(lease.token, outcome, now, expired=lease.expired and reason == NO_RESULT)

    def _note_outcome(self, lease: Lease, outcome: str | None, now: datetime) -> None:
        if lease.expired:
            return
        breaker = self.breakers.get(lease.receiver)
        own_trouble = outcome in SILENT and self._answered_since(lease.leased_at, now, lease.receiver)
        if outcome in DOWN and not own_trouble:
            breaker = self.breakers.setdefault(lease.receiver, Breaker(now, 1, now, now))
            if lease.probe:
                breaker.failures += 1
                longest = min(PROBE_MAXIMUM, PROBE_BASE * 2.0 ** (breaker.failures - 2))
                breaker.probe_at = now + timedelta(seconds=longest * 0.9)
                breaker.at_latest = now + timedelta(seconds=longest)
        elif lease.probe and outcome in (None, "bug"):
            if breaker is not None:  # else it was closed meanwhile, and a late word of the probe changes nothing
                breaker.probe_at = breaker.at_latest = now
        elif lease.probe:
            was = self.breakers.pop(lease.receiver, None)
            if was is None or was.failures == 1:
                return
            for owed in self.deliveries:
                waits = owed.receiver == lease.receiver and owed.state == "ready" and owed.outcome in DOWN - {"unknown"}
                if waits and any(ended >= was.opened_at for ended in owed.ended):
                    owed.due_at = min(owed.due_at, now)

    @staticmethod
    def _is_fate_unknown(lease: Lease) -> bool:
        return lease.receiver == "outside" and not lease.expired and lease.unknown + 1 >= UNKNOWN_LIMIT

    def _answered_since(self, began: datetime, now: datetime, receiver: str) -> bool:
        return any(
            outcome in ANSWERED and began < ended <= now
            for owed in self.deliveries
            if owed.receiver == receiver
            for (_, outcome), ended in zip(owed.tries, owed.ended, strict=True)
        )

    def chosen(self, which: Filter, states: tuple[str, ...]) -> list[Owed]:
        return [owed for owed in self.deliveries if owed.state in states and self._matches(owed, which)]

    @staticmethod
    def _matches(owed: Owed, which: Filter) -> bool:
        known = {
            "delivery_id": owed.delivery_id,
            "state": owed.state,
            "receiver": owed.receiver,
            "outcome": owed.outcome,
            "event_type": owed.event.kind,
            "order_id": owed.event.order_id,
            "user_id": owed.event.user_id,
        }
        return (
            all(getattr(which, name) in (None, value) for name, value in known.items())
            and (which.reason is None or which.reason in (owed.reason or ""))
            and (which.older_than is None or owed.created_at < which.older_than)
        )

    def retry(self, which: Filter, now: datetime) -> int:
        """What waits is due now, and nothing else of it changes; what was given up begins anew."""
        chosen = self.chosen(which, ("ready", "dead") if which.state is None else ("ready", "dead", "discarded"))
        self._record("retry", chosen)
        for owed in chosen:
            if owed.state == "ready":
                owed.due_at = min(owed.due_at, now)
                continue
            owed.state, owed.due_at, owed.attempts, owed.settled_at = "ready", now, 0, None
            owed.outcome = None
        return len(chosen)

    def discard(self, which: Filter, reason: str, now: datetime) -> int:
        chosen = self.chosen(which, ("ready", "dead"))
        self._record("discard", chosen)
        for owed in chosen:
            owed.state, owed.settled_at, owed.reason = "discarded", now, reason
        return len(chosen)

    def hold(self, act: str, receiver: str) -> bool:
        changed = (act == "pause") != (receiver in self.paused)
        if changed:
            self.paused ^= {receiver}
            self.acts.append(Acted(act, {}))
        return changed

    def _record(self, action: str, chosen: list[Owed]) -> None:
        kept = ("state", "due_at", "attempts", "outcome", "reason", "settled_at")
        before = {owed.delivery_id: (owed.token, {name: getattr(owed, name) for name in kept}) for owed in chosen}
        self.acts.append(Acted(action, before))

    def abort(self, number: int) -> int:
        """What was not tried since, and was touched by no later act, is again what it was."""
        act = self.acts[number]
        later = {n for each in self.acts[number + 1 :] for n in each.touched.keys() - each.taken_back}
        there = {owed.delivery_id: owed for owed in self.deliveries}
        count = 0
        for delivery_id, (token, before) in act.touched.items():
            owed = there.get(delivery_id)
            if owed is None or owed.state != "ready" or delivery_id in later | act.taken_back:
                continue
            if any(tried > token for tried, _ in owed.tries):
                continue
            for name, value in before.items():
                setattr(owed, name, value)
            act.taken_back.add(delivery_id)
            count += 1
        act.aborted |= count > 0
        return count

    def prune(self, keep: timedelta, now: datetime) -> int:
        """Oldest first, up to the first event that is too young."""
        cutoff = now - keep
        old = []
        for event in self.events:
            if event.occurred_at >= cutoff:
                break
            ended = [owed.settled_at for owed in event.owed if owed.state in ("done", "discarded")]
            if len(ended) == len(event.owed) and all(at is not None and at < cutoff for at in ended):
                old.append(event)
        self.events = [event for event in self.events if event not in old]
        return len(old)


# The bus beside it


def _calls_with_repeats(called: list[Lease], plan: dict[Lease, Answer], entered: list[Lease]) -> list[Lease]:
    """Of receivers with a session: where one fails, those before it are called again, which share its savepoint.
    ``entered`` are all in the order of the batch, also what is settled without a call."""
    made: list[Lease] = []
    together: list[Lease] = []
    for lease in entered:
        if lease in called:
            made.append(lease)
            if plan[lease] is KILLED:
                break
            if plan[lease].state in ("done", "discarded"):
                together.append(lease)
                continue
        made += together
        together = []
    return made


class Bench:
    """The real bus with receivers that do what the test says, and what they have done."""

    def __init__(self, shop: Shop) -> None:
        self.shop = shop
        self.plan: dict[Lease, tuple[Answer, Callable[[], None]]] = {}
        self.at_once = OK
        """What a receiver does that is called in the transaction which publishes its event."""
        self.calls: Counter[int] = Counter()
        self.reported: list[str] = []
        self.expired: list[Lease] = []
        """Leases that were found to have run out, since this was last cleared."""
        self.dead = False
        """Whether the process that runs now was killed: it calls nobody and commits nothing any more."""
        self._commit, shop.database.commit = shop.database.commit, self._commit_alive  # type: ignore[method-assign]
        shop.only(self.inside, name="inside")
        shop.receive(self.outside, name="outside", unknown_limit=UNKNOWN_LIMIT, when_dead=announce)
        shop.receive(self.careful, name="careful", hold_unknown=True, when_dead=announce_nonsense)
        for signal in (notification_sent, notification_failed):
            shop.only(self.heard, signal, name="heard")

    def inside(self, sender: str, event: Event, delivery: Lease, transaction: Transaction) -> Any:
        return self._act(delivery, transaction)

    def heard(self, sender: str, event: Event, delivery: Lease, transaction: Transaction) -> Any:
        return self._act(delivery, transaction)

    def outside(self, sender: str, event: Event, delivery: Lease) -> Any:
        return self._act(delivery, None)

    def careful(self, sender: str, event: Event, delivery: Lease) -> Any:
        return self._act(delivery, None)

    def _commit_alive(self, connection: Connection) -> None:
        if self.dead:
            raise Killed
        self._commit(connection)

    def _act(self, lease: Lease, transaction: Transaction | None) -> Any:
        if self.dead:
            raise Killed
        answer, meanwhile = self.plan.get(lease) or (self.at_once, lambda: None)
        if lease in self.plan:
            self.calls[lease.delivery_id] += 1
        if transaction is not None and answer.state != "discarded":
            transaction.session.execute(
                text("INSERT INTO users (user_id, orders_count, total_spent) VALUES (:effect, 1, 0)"),
                {"effect": f"effect of {lease.delivery_id}, called {self.calls[lease.delivery_id]} times"},
            )
        meanwhile()
        self.dead = answer is KILLED
        return answer.act(transaction)

    def on_events_recorded(self, _: object, events: list[Any]) -> None:
        self.reported.extend(event.event_id for event in events)

    def on_deliveries_settled(self, _: object, ends: list[LeaseEnd]) -> None:
        self.expired += [end.lease for end in ends if end.lease.expired]

    def clean(self) -> None:
        self.shop.clock.time, self.shop.clock.seconds = START, 1000.0
        self.plan.clear()
        self.at_once = OK
        self.calls.clear()
        self.reported.clear()
        self.shop.database.transact(
            lambda transaction: [
                transaction.session.execute(table.delete()) for table in reversed(Base.metadata.sorted_tables)
            ]
        )


def is_damaged(lease: Lease) -> bool:
    return lease.data in (DAMAGE, DAMAGE.encode())


def refuse(_: Callable[[Transaction], Any]) -> None:
    raise DatabaseUnavailable


def announce(event: OrderCreated, reason: str) -> NotificationFailed:
    return NotificationFailed(order_id=event.order_id, user_id=event.user_id, reason=reason)


def announce_nonsense(event: OrderCreated, reason: str) -> Any:
    """A fault of ours, which must neither hide the reason nor keep the delivery from its end."""
    return "nonsense"


@dataclass
class Worker:
    """A dispatcher, and the leases that it has not tried yet, with the end of each on its own clock."""

    dispatcher: Dispatcher
    held: dict[Lease, float] = field(default_factory=dict)
    tried: list[Lease] = field(default_factory=list)


TABLES = {
    name: Base.metadata.tables[name].select()
    for name in ("deliveries", "attempts", "circuit_breakers", "operator_acts", "users")
}
ALL = ("inside", "outside", "careful", "heard")

some = st.integers(0, 5)
answers = st.lists(st.sampled_from(list(ANSWERS)), min_size=1, max_size=4)
meanwhile = st.sampled_from(["nothing", "nothing", "slow", "extended", "overtaken", "discarding", "database away"])
filters = st.one_of(
    st.just(Filter()),
    st.builds(
        Filter,
        state=st.sampled_from([None, "ready", "dead", "discarded", "leased"]),
        receiver=st.sampled_from([None, *ALL]),
        event_type=st.sampled_from([None, "OrderCreated", "NotificationSent"]),
        outcome=st.sampled_from([None, "bug", "refused", "unknown", "unreachable"]),
        reason=st.sampled_from([None, "never", "n", "%"]),
        order_id=st.sampled_from([None, "o1", "o2", "x"]),
        user_id=st.sampled_from([None, "u", "v"]),
        older_than=st.sampled_from([None, START, START + timedelta(hours=1)]),
    ),
)


class BusMachine(RuleBasedStateMachine):
    def __init__(self, bench: Bench) -> None:
        super().__init__()
        bench.clean()
        self.bench, self.shop, self.clock = bench, bench.shop, bench.shop.clock
        self.database = bench.shop.database
        self.model = Model()
        self.orders = 0
        self.workers = [self._new_worker() for _ in range(3)]

    def _new_worker(self) -> Worker:
        return Worker(self.shop.bus.dispatcher())

    # Publishing

    @initialize(orders=st.integers(1, 4))
    def begin(self, orders: int) -> None:
        for _ in range(orders):
            self.publish("u", "good")

    @rule(user_id=st.sampled_from("uv"), how=st.sampled_from(["good", "good", "damaged", "rolled back"]))
    def publish(self, user_id: str, how: str) -> None:
        event = OrderCreated(order_id=f"o{self.orders + 1}", user_id=user_id, total_price=Decimal(1))

        def work(_: Transaction) -> None:
            order_created.send("model", event=event)
            if how == "rolled back":
                raise LookupError

        if how == "rolled back":
            with pytest.raises(LookupError):
                self.database.transact(work)
            return
        self.database.transact(work)
        self.orders += 1
        self.model.publish("OrderCreated", event.order_id, user_id, self.clock.now())
        if how == "damaged":
            self.shop.execute("UPDATE events SET data = :data WHERE order_id = :id", data=DAMAGE, id=event.order_id)

    # Dispatching

    @rule(
        number=some,
        receivers=st.sets(st.sampled_from(ALL), min_size=1),
        limit=st.sampled_from([20, 1, 2]),
    )
    def claim(self, number: int, receivers: set[str], limit: int) -> None:
        self._claim(self.workers[number % 3], dict.fromkeys(sorted(receivers), limit))

    def _claim(self, worker: Worker, capacity: dict[str, int]) -> None:
        deadline = self.clock.monotonic() + LEASE.total_seconds()
        self.bench.expired.clear()
        leases = worker.dispatcher.claim(capacity)
        for lease in self.bench.expired:
            self.model.expire(lease, self.clock.now())
        if self.bench.expired:  # of some that went dead there is news, which may have been claimed at once
            self._meet(*self._events_and_deliveries())
        if not leases and not self.bench.expired and not worker.dispatcher.rest_seconds([], alone=True):
            assert self.model.nothing_is_due(capacity, self.clock.now())
        self.model.claim(capacity, leases, self.clock.now(), worker.dispatcher.name)
        worker.held.update(dict.fromkeys(leases, deadline))

    @precondition(lambda self: any(worker.held for worker in self.workers))
    @rule(number=some, which=some, answers=answers, meanwhile=meanwhile)
    def attempt(self, number: int, which: int, answers: list[str], meanwhile: str) -> None:
        """One batch, by somebody who holds one; its leases may have run out, or may do so while it runs."""
        worker = self._some_holder(number)
        batches = worker.dispatcher.batches(worker.held)
        self._attempt(worker, batches[which % len(batches)], answers, meanwhile)

    @rule(number=some, answers=answers, meanwhile=meanwhile)
    def round(self, number: int, answers: list[str], meanwhile: str) -> None:
        """Claim all that is due, and try it at once."""
        worker = self.workers[number % 3]
        self._claim(worker, dict.fromkeys(ALL, 20))
        for batch in worker.dispatcher.batches(worker.held):
            if worker in self.workers and all(lease in worker.held for lease in batch):
                self._attempt(worker, batch, answers, meanwhile)

    @rule(number=some, answers=answers, jump=st.booleans(), alive=st.booleans())
    def overtake(self, number: int, answers: list[str], jump: bool, alive: bool) -> None:
        """Somebody's leases run out, or the clock says so; another takes over; the first goes on where it was."""
        worker, other = self.workers[number % 3], self.workers[(number + 1) % 3]
        self._claim(worker, dict.fromkeys(ALL, 20))
        move = self.clock.jump if jump else self.clock.advance
        move(LEASE.total_seconds())
        self._claim(other, dict.fromkeys(ALL, 20))
        if alive:
            self._extend(worker)
        for batch in worker.dispatcher.batches(worker.held):
            if worker in self.workers:
                self._attempt(worker, batch, answers, "nothing")

    def _attempt(self, worker: Worker, batch: list[Lease], answers: list[str], meanwhile: str) -> None:
        plan = {lease: ANSWERS[name] for lease, name in zip(batch, cycle(answers), strict=False)}
        held = [lease for lease in batch if self.clock.monotonic() < worker.held[lease]]
        inside = bool(held) and held[0].receiver in INSIDE
        called = [lease for lease in held if self.model.verdict(lease) is None]
        if inside:  # in the transaction it is seen at once that another has taken over
            called = [lease for lease in called if self.model.holds(lease)]
        entered = [lease for lease in held if self.model.holds(lease)]
        killers = [lease for lease in called if plan[lease] is KILLED]
        if killers:
            called = called[: called.index(killers[0]) + 1]
        self.bench.plan = {
            lease: (answer, lambda: self._meanwhile(meanwhile, worker, inside)) for lease, answer in plan.items()
        }
        away = meanwhile == "database away" and bool(held)
        if away and inside:
            called, killers = [], []
            self._database_goes_away()
        before, now = self.bench.calls.copy(), self.clock.now()
        self.bench.at_once = at_once = ANSWERS[answers[-1]]
        try:
            settled = worker.dispatcher.deliver(batch)
        except (Killed, DatabaseUnavailable):
            assert killers or away or self.bench.dead
            killers = killers or [lease for lease in held if self.bench.dead]
        else:
            assert not killers
            moment = now if inside else self.clock.now()
            expected = [(lease, self.model.verdict(lease) or plan[lease]) for lease in held]
            seen = [(done.lease.delivery_id, done.state, done.outcome) for done in settled]
            assert seen == self.model.settle_all(expected, moment, at_once)
        if killers:
            self.bench.dead = False
            self.workers[self.workers.index(worker)] = self._new_worker()
        self._database_returns()
        expected_calls = _calls_with_repeats(called, plan, entered) if inside else called
        assert self.bench.calls - before == Counter(lease.delivery_id for lease in expected_calls)
        for lease in batch:
            worker.held.pop(lease, None)
        worker.tried = batch

    def _some_holder(self, number: int) -> Worker:
        holders = [worker for worker in self.workers if worker.held]
        return holders[number % len(holders)]

    def _meanwhile(self, what: str, worker: Worker, inside: bool) -> None:
        """While a receiver runs. In a transaction nobody else can write, so there only time passes."""
        if what in ("slow", "overtaken"):
            self.clock.advance(LEASE.total_seconds())
        if inside:
            return
        if what == "database away":
            self._database_goes_away()
        elif what == "overtaken":
            other = self.workers[(self.workers.index(worker) + 1) % 3]
            self._claim(other, {"outside": 20, "careful": 20})
        elif what == "extended":
            self.clock.advance(LEASE.total_seconds() - 1)
            self._extend(worker)
        elif what == "discarding":
            self._act("discard", Filter())

    def _database_goes_away(self) -> None:
        self.database.transact = refuse

    def _database_returns(self) -> None:
        self.database.__dict__.pop("transact", None)

    @rule(number=some, what=st.sampled_from(["extend", "release", "release one", "release late", "crash"]))
    def between_attempts(self, number: int, what: str) -> None:
        """A late release is one of what has been settled, or taken over, in the meantime."""
        worker = self.workers[number % 3]
        if what == "extend":
            self._extend(worker)
        elif what == "crash":
            self.workers[number % 3] = self._new_worker()
        elif what == "release late":
            self._release(worker, worker.tried)
        else:
            self._release(worker, list(worker.held)[: 1 if what == "release one" else None])

    def _extend(self, worker: Worker) -> None:
        """One that was lost meanwhile must not begin any more, whatever its holder's own clock says."""
        worker.dispatcher.heartbeat()
        deadline = self.clock.monotonic() + LEASE.total_seconds()
        for lease in worker.held:
            worker.held[lease] = deadline if self.model.extend(lease, self.clock.now()) else float("-inf")

    def _release(self, worker: Worker, leases: list[Lease]) -> None:
        worker.dispatcher.settle(not_begun(leases))
        for lease in leases:
            self.model.release(lease, self.clock.now())
            worker.held.pop(lease, None)

    # Time

    @rule(seconds=st.sampled_from([30, 1, 10, 29.5, 60, 100, 3600]), set_only=st.sampled_from([False, False, 1, -1]))
    def time_passes(self, seconds: float, set_only: int) -> None:
        """Or somebody sets the wall clock, and no time passes."""
        if set_only:
            self.clock.jump(seconds * set_only)
        else:
            self.clock.advance(seconds)

    # People

    @rule(act=st.sampled_from(["retry", "retry", "discard"]), which=filters)
    def person(self, act: str, which: Filter) -> None:
        """How many it will be is said beforehand; and doing it twice is doing it once: nothing is left but what waits,
        which is due already."""
        for _ in range(2):
            with self.database.read() as session:
                announced = operate.count(session, act, which)
            assert self._act(act, which) == announced
        assert announced == 0 or (act == "retry" and which.state in (None, "ready"))

    @precondition(lambda self: self.model.acts)
    @rule(number=some)
    def abort(self, number: int) -> None:
        """One of the latest acts; doing it twice is doing it once."""
        act = len(self.model.acts) - 1 - number % len(self.model.acts)
        with self.database.read() as session:
            act_id = sorted(row.act_id for row in session.execute(TABLES["operator_acts"]))[act]
            announced = acts.count_untried(session, act_id)
        for expected in (announced, 0):
            assert self.shop.bus.abort(act_id, by="model") == self.model.abort(act) == expected

    def _act(self, act: str, which: Filter) -> int:
        self._meet(*self._events_and_deliveries())  # in a round some may have been published, and have no number yet
        if act == "retry":
            done = self.shop.bus.retry(which, by="model"), self.model.retry(which, self.clock.now())
        else:
            reason = "not wanted"
            done = self.shop.bus.discard(which, reason, by="model"), self.model.discard(which, reason, self.clock.now())
        assert done[0] == done[1]
        return done[0]

    @rule(act=st.sampled_from(["pause", "resume", "resume"]), receiver=st.sampled_from(ALL))
    def hold(self, act: str, receiver: str) -> None:
        """Somebody pauses a receiver, or lets it go on."""
        if act == "pause":
            changed = self.shop.bus.pause(receiver, "a rehearsal", by="model")
        else:
            changed = self.shop.bus.resume(receiver, by="model")
        assert changed == self.model.hold(act, receiver)

    @rule(days=st.sampled_from([0, 91]))
    def prune(self, days: float) -> None:
        self.clock.advance(timedelta(days=days).total_seconds())
        keep = timedelta(days=self.shop.settings.retention_days)
        assert self.shop.bus.prune() == self.model.prune(keep, self.clock.now())

    # What must be so

    @invariant()
    def the_tables_hold_what_the_model_says(self) -> None:
        self._meet(*self._events_and_deliveries())
        with self.database.read() as session:
            tables = {name: session.execute(table).mappings().all() for name, table in TABLES.items()}
        rows = {row["delivery_id"]: row for row in tables["deliveries"]}
        for owed in self.model.deliveries:
            wanted = owed.row()
            assert {name: rows[owed.delivery_id][name] for name in wanted} == wanted
        tries = sorted(
            (row["attempt_id"], row["delivery_id"], row["lease_token"], row["outcome"]) for row in tables["attempts"]
        )
        for owed in self.model.deliveries:
            assert [row[2:] for row in tries if row[1] == owed.delivery_id] == owed.tries
        assert len(tries) == sum(len(owed.tries) for owed in self.model.deliveries)
        self._compare_breakers(tables["circuit_breakers"])
        acted = sorted(
            (row["act_id"], row["action"], row["deliveries"], row["aborted_at"] is not None)
            for row in tables["operator_acts"]
        )
        assert [row[1:] for row in acted] == [(act.action, len(act.touched), act.aborted) for act in self.model.acts]
        self._compare_effects([row["user_id"] for row in tables["users"]])

    def _events_and_deliveries(self) -> tuple[Any, Any]:
        with self.database.read() as session:
            found, _ = queries.feed(session, None, 1000)
            return found, session.execute(TABLES["deliveries"]).mappings().all()

    def _meet(self, found: Any, deliveries: Any) -> None:
        """Every event in its place, and its deliveries; those that are new get to be known by their ids."""
        ids = {(row["event_id"], row["receiver"]): row["delivery_id"] for row in deliveries}
        seen = [(row.type, row.order_id, row.user_id, row.occurred_at, row.cause_id) for row in found]
        model = self.model.events
        for event, row in zip(model, found, strict=True):
            assert event.event_id in ("", row.event_id)
            event.event_id = row.event_id
        assert seen == [(e.kind, e.order_id, e.user_id, e.occurred_at, e.cause_id) for e in model]
        for event, row in zip(model, found, strict=True):
            for owed in event.owed:
                owed.delivery_id = ids.pop((row.event_id, owed.receiver))
        assert ids == {}
        assert len(set(self.bench.reported)) == len(self.bench.reported) == self.model.reported
        assert {event.event_id for event in model} <= set(self.bench.reported)

    def _compare_breakers(self, rows: Any) -> None:
        assert {row["receiver"]: row["failures"] for row in rows} == {
            receiver: breaker.failures for receiver, breaker in self.model.breakers.items()
        }
        for row in rows:
            breaker = self.model.breakers[row["receiver"]]
            assert breaker.probe_at <= row["probe_at"] <= breaker.at_latest
            breaker.probe_at = breaker.at_latest = row["probe_at"]

    def _compare_effects(self, effects: list[str]) -> None:
        """Of a receiver with a session: once when it is done, and else nothing. Of another: at least once when done."""
        there = Counter(int(effect.split()[2].rstrip(",")) for effect in effects)
        for owed in self.model.deliveries:
            if owed.receiver in INSIDE:
                assert there[owed.delivery_id] == (owed.state == "done")
            else:
                assert self.bench.calls[owed.delivery_id] >= (owed.state == "done")

    def teardown(self) -> None:
        """Whatever happened: all that is unfinished is done in the end."""
        self.clock.advance(7200 * 50)
        for receiver in self.model.paused:
            self.shop.bus.resume(receiver, by="model")
        worker = self._new_worker()
        for _ in range(60):
            due = worker.dispatcher.next_due()
            if not due:
                break
            self.clock.advance(max(0.0, (min(due.values()) - self.clock.now()).total_seconds()))
            for batch in worker.dispatcher.batches(worker.dispatcher.claim(dict.fromkeys(due, 20))):
                self.bench.plan = dict.fromkeys(batch, (OK, lambda: None))
                worker.dispatcher.deliver(batch)
        assert worker.dispatcher.next_due() == {}


def profile() -> settings:
    """The one that HYPOTHESIS_PROFILE names; else as many examples as CI has time for, or MODEL_EXAMPLES of them."""
    if name := os.environ.get("HYPOTHESIS_PROFILE"):
        return settings.get_profile(name)
    return settings(
        max_examples=int(os.environ.get("MODEL_EXAMPLES", "20")),
        stateful_step_count=40,
        deadline=None,  # a step is some transactions, and on a busy machine these take their time
        derandomize=False,  # new examples every time; one that fails is printed with what replays it
        print_blob=True,
        database=None,  # the blob replays a failure, so no folder of examples need be kept
    )


@pytest.mark.timeout(600)
def test_the_bus_does_what_its_model_says(shop: Shop) -> None:
    shop.policy = shop.bus.policy = FixedWait(WAIT.total_seconds(), BUDGET)
    bench = Bench(shop)
    with (
        quiet(),
        lifecycle.events_recorded.connected_to(bench.on_events_recorded),
        lifecycle.deliveries_settled.connected_to(bench.on_deliveries_settled),
    ):
        run_state_machine_as_test(lambda: BusMachine(bench), settings=profile())
