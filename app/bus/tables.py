"""The bus's tables. ``events`` and ``deliveries`` are the outbox."""

from datetime import datetime

from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, Index, Integer, String, Text, text
from sqlalchemy.orm import Mapped, mapped_column

from app.db import Base, UtcTime
from app.states import DeliveryState, Outcome

# As literal text: SQLite uses a partial index only for a query whose condition it can see to be the index's own.
_unfinished = text("state IN ('ready', 'leased')")
_dead = text("state = 'dead'")
UNFINISHED = text("deliveries.state IN ('ready', 'leased')")
GIVEN_UP = text("deliveries.state = 'dead'")

BigId = BigInteger().with_variant(Integer, "sqlite")  # SQLite numbers rows only in a column declared INTEGER


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
    """Spent of the budget; a retry by a person starts a new budget."""
    lease_token: Mapped[int] = mapped_column(default=0)
    """The fencing token. It grows with every lease, so a settle under an older one finds nothing to settle."""
    leased_at: Mapped[datetime | None] = mapped_column(UtcTime)
    leased_by: Mapped[str | None] = mapped_column(String(100))
    outcome: Mapped[str | None] = mapped_column(String(16))
    """Of the latest attempt; none after a retry by a person."""
    reason: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(UtcTime)
    settled_at: Mapped[datetime | None] = mapped_column(UtcTime)

    __table_args__ = (
        Index("deliveries_event_id_receiver", "event_id", "receiver", unique=True),
        # The two partial indexes hold only what is not finished: their size does not grow with history.
        Index(
            "deliveries_due",
            "receiver",
            "due_at",
            "delivery_id",
            sqlite_where=_unfinished,
            postgresql_where=_unfinished,
        ),
        Index("deliveries_dead", "settled_at", sqlite_where=_dead, postgresql_where=_dead),
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

    __table_args__ = (
        Index("attempts_delivery_id", "delivery_id"),
        CheckConstraint(f"outcome IN {tuple(str(outcome) for outcome in Outcome)}", name="outcome"),
    )


class CircuitBreaker(Base):
    """An open breaker. While a receiver has this row, one delivery at a time probes whether its backend is back.

    A receiver without a row has a closed breaker, which lets every delivery through.
    """

    __tablename__ = "circuit_breakers"

    receiver: Mapped[str] = mapped_column(String(100), primary_key=True)
    opened_at: Mapped[datetime] = mapped_column(UtcTime)
    failures: Mapped[int]
    """Attempts in a row that found the backend down: the one that opened the breaker, and the probes since."""
    probe_at: Mapped[datetime] = mapped_column(UtcTime)
    """When the next probe may be taken; while one is under way, when it counts as lost."""


class OperatorAct(Base):
    """An operator's act on deliveries: when, by whom, which action, on which filter, on how many."""

    __tablename__ = "operator_acts"

    act_id: Mapped[int] = mapped_column(BigId, primary_key=True)
    acted_at: Mapped[datetime] = mapped_column(UtcTime)
    acted_by: Mapped[str] = mapped_column(String(100))
    action: Mapped[str] = mapped_column(String(16))
    filter: Mapped[str] = mapped_column(Text)
    reason: Mapped[str | None] = mapped_column(Text)
    deliveries: Mapped[int] = mapped_column(default=0)


class DispatcherHeartbeat(Base):
    """A dispatcher, by its latest heartbeat."""

    __tablename__ = "dispatchers"

    name: Mapped[str] = mapped_column(String(100), primary_key=True)
    started_at: Mapped[datetime] = mapped_column(UtcTime)
    seen_at: Mapped[datetime] = mapped_column(UtcTime)
