"""The bus's tables. ``events`` and ``deliveries`` are the outbox."""

import json
from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import BigInteger, CheckConstraint, Double, ForeignKey, Index, Integer, String, Text, text
from sqlalchemy.orm import Mapped, mapped_column

from app.db import Base, UtcTime
from app.states import DeliveryState, Outcome

# As literal text: SQLite uses a partial index only for a query whose condition it can see to be the index's own.
UNFINISHED = text("deliveries.state IN ('ready', 'leased')")
GIVEN_UP = text("deliveries.state = 'dead'")
UNDONE = text("deliveries.state IN ('dead', 'discarded')")


class Role(StrEnum):
    """The role of a dispatcher's process, as its row says under ``engine``."""

    DISPATCHER = "inprocess"
    """It claims deliveries, and runs receivers in threads."""
    RELAY = "celery relay"
    """It claims deliveries and publishes messages, which carry them to workers. It delivers nothing."""
    WORKER = "celery"
    """It runs receivers, for what such messages carry."""


BigId = BigInteger().with_variant(Integer, "sqlite")  # SQLite numbers rows only in a column declared INTEGER


def _partial_index(name: str, *columns: str, where: str) -> Index:
    return Index(name, *columns, sqlite_where=text(where), postgresql_where=text(where))


class StoredEvent(Base):
    """An event. ``position`` with ``transaction_id`` is its place in the feed."""

    __tablename__ = "events"

    position: Mapped[int] = mapped_column(BigId, primary_key=True)
    event_id: Mapped[str] = mapped_column(String(36))
    type: Mapped[str] = mapped_column(String(64))
    version: Mapped[int]
    source: Mapped[str] = mapped_column(String(200))
    order_id: Mapped[str] = mapped_column(String(64))
    user_id: Mapped[str] = mapped_column(String(64))
    data: Mapped[str] = mapped_column(Text)
    occurred_at: Mapped[datetime] = mapped_column(UtcTime)
    cause_id: Mapped[str | None] = mapped_column(String(36))
    correlation_id: Mapped[str] = mapped_column(String(36))
    traceparent: Mapped[str | None] = mapped_column(String(55))
    """The trace that it belongs to (W3C Trace Context); none where the request that began it all named none."""
    transaction_id: Mapped[int] = mapped_column(BigInteger, default=0)
    """On PostgreSQL, whose transactions commit out of order, the id of the one that wrote the row; else 0."""

    __table_args__ = (
        Index("events_event_id", "event_id", unique=True),
        Index("events_order_id", "order_id"),
        Index("events_transaction_id_position", "transaction_id", "position").ddl_if(dialect="postgresql"),
        {"sqlite_autoincrement": True},  # a position is never used again, even when the newest events are pruned
    )


class Delivery(Base):
    """An event owed to a receiver."""

    __tablename__ = "deliveries"

    delivery_id: Mapped[int] = mapped_column(BigId, primary_key=True)
    event_id: Mapped[str] = mapped_column(ForeignKey("events.event_id"))
    receiver: Mapped[str] = mapped_column(String(100))
    state: Mapped[str] = mapped_column(String(16), default=DeliveryState.READY)
    due_at: Mapped[datetime] = mapped_column(UtcTime)
    """When a dispatcher may take it: while ready, the next try; while leased, the end of the lease."""
    attempts: Mapped[int] = mapped_column(default=0)
    """Spent of the budget; a person's retry of what was dead or discarded starts a new one."""
    lease_token: Mapped[int] = mapped_column(default=0)
    """The fencing token. It grows with every lease, so a settle under an older one finds nothing to settle; and when a
    person changes what the delivery is about, so that only an untouched delivery's first lease has token 1."""
    leased_at: Mapped[datetime | None] = mapped_column(UtcTime)
    leased_by: Mapped[str | None] = mapped_column(String(100))
    """The dispatcher that holds it. None while it is leased and dispatched: a message carries it to a worker."""
    outcome: Mapped[str | None] = mapped_column(String(16))
    """Of the latest attempt; none after a person's retry of what was dead or discarded."""
    reason: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(UtcTime)
    settled_at: Mapped[datetime | None] = mapped_column(UtcTime)
    obstacle: Mapped[str | None] = mapped_column(String(32))
    """The kind of its own failures (``retry.causes``), where these are not its backend's; of the present budget."""
    obstacle_since: Mapped[datetime | None] = mapped_column(UtcTime)
    """The start of the first attempt that met it."""
    obstacle_seen_at: Mapped[datetime | None] = mapped_column(UtcTime)
    """The start of the latest that did."""
    due_because: Mapped[str | None] = mapped_column(Text)
    """Why the retry policy chose ``due_at``, in one sentence."""
    ordering_key: Mapped[str | None] = mapped_column(String(64))
    """Of a receiver that is ordered: the order id or user id whose deliveries it is given one at a time."""
    waits_behind: Mapped[int | None] = mapped_column(BigId)
    """The delivery of the same receiver and key that came before it, while it was held back because of that one."""

    __table_args__ = (
        Index("deliveries_event_id_receiver", "event_id", "receiver", unique=True),
        # The partial indexes hold only what is not done: their size does not grow with history.
        _partial_index("deliveries_due", "receiver", "due_at", "delivery_id", where="state IN ('ready', 'leased')"),
        # Of a receiver that is ordered: who is under way, or comes first, of a key. No other delivery is in it.
        _partial_index(
            *("deliveries_ordered", "receiver", "ordering_key", "state", "delivery_id"),
            where="ordering_key IS NOT NULL AND state IN ('ready', 'leased')",
        ),
        _partial_index("deliveries_dead", "settled_at", where="state = 'dead'"),
        _partial_index("deliveries_undone", "state", "delivery_id", where="state IN ('dead', 'discarded')"),
        CheckConstraint(f"state IN {tuple(str(state) for state in DeliveryState)}", name="state"),
        {"sqlite_autoincrement": True},
    )


class Attempt(Base):
    """One try at a delivery, written when its outcome is known."""

    __tablename__ = "attempts"

    attempt_id: Mapped[int] = mapped_column(BigId, primary_key=True)
    delivery_id: Mapped[int] = mapped_column(BigId, ForeignKey("deliveries.delivery_id"))
    lease_token: Mapped[int]
    outcome: Mapped[str] = mapped_column(String(16))
    detail: Mapped[str | None] = mapped_column(Text)
    started_at: Mapped[datetime] = mapped_column(UtcTime)
    ended_at: Mapped[datetime] = mapped_column(UtcTime)
    dispatcher: Mapped[str | None] = mapped_column(String(100))
    reply_code: Mapped[int | None]
    """Of the other side, such as SMTP's 450."""
    enhanced_code: Mapped[str | None] = mapped_column(String(11))
    """Such as 4.7.1 (RFC 3463)."""
    why: Mapped[str | None] = mapped_column(Text)
    """Why it was made then and not before, in one sentence; none of a first attempt that nothing held back."""

    __table_args__ = (
        Index("attempts_delivery_id", "delivery_id"),
        CheckConstraint(f"outcome IN {tuple(str(outcome) for outcome in Outcome)}", name="outcome"),
    )


class CircuitBreaker(Base):
    """A receiver's circuit breaker. One without a row is closed, and lets every delivery through.

    By the plain rule the row is there while the breaker is open. By the learned policy it stays, because its ``gate``
    remembers what the backend stood.
    """

    __tablename__ = "circuit_breakers"

    receiver: Mapped[str] = mapped_column(String(100), primary_key=True)
    opened_at: Mapped[datetime | None] = mapped_column(UtcTime)
    """None while it is not open."""
    failures: Mapped[int]
    """Attempts in a row that found the backend down: those that opened the breaker, and the probes since."""
    probe_at: Mapped[datetime | None] = mapped_column(UtcTime)
    """When the next delivery may start, at the time of writing; while a probe is under way, when it counts as lost.
    None where all may."""
    gate: Mapped[str | None] = mapped_column(Text)
    """``retry.Gate`` as JSON: by the learned policy."""


class RetryTransition(Base):
    """An attempt at an obstacle that was there before: the sample that the retry policy is fitted to."""

    __tablename__ = "retry_transitions"

    transition_id: Mapped[int] = mapped_column(BigId, primary_key=True)
    receiver: Mapped[str] = mapped_column(String(100))
    scope: Mapped[str] = mapped_column(String(8))
    """``backend`` or ``message``."""
    kind: Mapped[str] = mapped_column(String(32))
    age_from: Mapped[float | None] = mapped_column(Double)
    """Seconds from the obstacle's first failure to its latest before this attempt. None of the first failure itself,
    which is no transition: it counts how often a kind of failure comes."""
    age_to: Mapped[float] = mapped_column(Double)
    """Seconds from the obstacle's first failure to this attempt."""
    gone: Mapped[bool]
    """Whether the obstacle was gone."""
    at: Mapped[datetime] = mapped_column(UtcTime)

    __table_args__ = (
        Index("retry_transitions_of_a_kind", "receiver", "scope", "kind", "transition_id"),
        {"sqlite_autoincrement": True},  # a number is never used again: a table knows by it what it has seen
    )


class RetryTable(Base):
    """A version of the retry policy's table, or the claim of the process that is fitting it."""

    __tablename__ = "retry_tables"

    version: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    begun_at: Mapped[datetime] = mapped_column(UtcTime)
    fitted_by: Mapped[str] = mapped_column(String(100))
    fitted_at: Mapped[datetime | None] = mapped_column(UtcTime)
    content: Mapped[str | None] = mapped_column(Text)
    """``retry.Table`` as JSON. None while it is being fitted, and where that failed."""
    refuted: Mapped[str | None] = mapped_column(Text)
    """The keys of what was refuted and forgotten at this fit, as a JSON list."""
    transition_id: Mapped[int] = mapped_column(BigInteger)
    """The newest transition that it knows."""


class OperatorAct(Base):
    """An operator's act: when, by whom, which action, on which filter, on how many deliveries, and how far it is."""

    __tablename__ = "operator_acts"

    act_id: Mapped[int] = mapped_column(BigId, primary_key=True)
    acted_at: Mapped[datetime] = mapped_column(UtcTime)
    acted_by: Mapped[str] = mapped_column(String(100))
    action: Mapped[str] = mapped_column(String(16))
    filter: Mapped[str] = mapped_column(Text)
    reason: Mapped[str | None] = mapped_column(Text)
    deliveries: Mapped[int] = mapped_column(default=0)
    """Touched until now."""
    counted: Mapped[int | None]
    """Selected when the act began."""
    over_seconds: Mapped[int | None]
    """The tries of what it retries are spread over so long."""
    progressed_at: Mapped[datetime | None] = mapped_column(UtcTime)
    """When it last touched some. One that is not ended and does so no more was left in the middle."""
    ended_at: Mapped[datetime | None] = mapped_column(UtcTime)
    """When all that was counted had been touched."""
    aborted_at: Mapped[datetime | None] = mapped_column(UtcTime)
    aborted_by: Mapped[str | None] = mapped_column(String(100))


class ActDelivery(Base):
    """A delivery that an operator's act touched, and what it was before. One that the act made was discarded before."""

    __tablename__ = "operator_act_deliveries"

    act_id: Mapped[int] = mapped_column(BigId, ForeignKey("operator_acts.act_id"), primary_key=True)
    delivery_id: Mapped[int] = mapped_column(BigId, ForeignKey("deliveries.delivery_id"), primary_key=True)
    state_before: Mapped[str] = mapped_column(String(16))
    reason_before: Mapped[str | None] = mapped_column(Text)
    outcome_before: Mapped[str | None] = mapped_column(String(16))
    attempts_before: Mapped[int] = mapped_column(default=0)
    due_before: Mapped[datetime | None] = mapped_column(UtcTime)
    settled_before: Mapped[datetime | None] = mapped_column(UtcTime)
    lease_token: Mapped[int] = mapped_column(default=0)
    """The delivery's when it was touched: attempts under a higher one were made since."""
    taken_back_at: Mapped[datetime | None] = mapped_column(UtcTime)
    """When the act was aborted and this delivery became again what it was."""

    __table_args__ = (Index("operator_act_deliveries_delivery_id", "delivery_id"),)


class PausedReceiver(Base):
    """A receiver that a person paused: nothing is delivered to it until a person resumes it. See ``pause``."""

    __tablename__ = "paused_receivers"

    receiver: Mapped[str] = mapped_column(String(100), primary_key=True)
    paused_at: Mapped[datetime] = mapped_column(UtcTime)
    paused_by: Mapped[str] = mapped_column(String(100))
    reason: Mapped[str] = mapped_column(Text)


TOLD_ALWAYS = {
    *("mail_backend", "mail_server", "mail_port", "mail_use_tls", "mail_use_ssl", "mail_folder"),
    *("lease_seconds", "ready_lag_seconds", "version"),
}
"""Settings of a dispatcher that other processes read."""


class DispatcherHeartbeat(Base):
    """A dispatcher, by its latest heartbeat."""

    __tablename__ = "dispatchers"

    name: Mapped[str] = mapped_column(String(100), primary_key=True)
    started_at: Mapped[datetime] = mapped_column(UtcTime)
    seen_at: Mapped[datetime] = mapped_column(UtcTime)
    settings: Mapped[str | None] = mapped_column(Text)
    """What it delivers by, as a JSON object without secrets: see ``delivers_by``. ``refused``: why it does not start;
    ``stopped_at``: when it ended, where it said so; ``differs``: from the one before it; ``broker``: see below."""

    @property
    def told(self) -> dict[str, Any]:
        """Its settings; none from before dispatchers told, or where nobody can read them."""
        try:
            found = json.loads(self.settings or "{}")
        except ValueError:
            return {}
        return found if isinstance(found, dict) and found.keys() >= TOLD_ALWAYS else {}

    @property
    def role(self) -> str:
        """A Role's text."""
        return str(self.told.get("engine") or Role.DISPATCHER)

    @property
    def is_relay(self) -> bool:
        """Whether it hands deliveries to a broker, and delivers none."""
        return self.role == Role.RELAY

    @property
    def needs_relay(self) -> bool:
        """Whether it delivers only what a relay hands to a broker."""
        return self.role == Role.WORKER

    @property
    def broker(self) -> dict[str, Any]:
        """What a relay finds wrong at its broker: ``lost_since``, an ISO time, and ``reason``, where it can't be
        reached; ``untaken``, the receivers from whose queues no worker takes. Empty where all is well."""
        found = self.told.get("broker")
        return found if isinstance(found, dict) else {}

    @property
    def is_refused(self) -> bool:
        return "refused" in self.told

    @property
    def has_stopped(self) -> bool:
        return "stopped_at" in self.told
