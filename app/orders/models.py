"""Models of the two tables that people open: orders and users. Both read well in a plain ``select *``."""

from datetime import datetime
from decimal import Decimal
from enum import StrEnum

from sqlalchemy import Enum, Index, String, text
from sqlalchemy.orm import Mapped, mapped_column

from app.db import Base, Money, UtcTime
from app.states import NotificationStatus, OrderStatus

# As literal text: SQLite uses a partial index only for a query whose condition it can see to be the index's own.
_with_email = text("email IS NOT NULL")
_unsent = text("notification IN ('failed', 'skipped')")
UNSENT = text("orders.notification IN ('failed', 'skipped')")


def _words(states: type[StrEnum], name: str) -> Enum:
    """A column of state words: text with a CHECK constraint, on every database."""
    return Enum(
        states,
        name=name,
        values_callable=lambda states: [state.value for state in states],
        native_enum=False,
        create_constraint=True,
        length=16,
    )


class Order(Base):
    __tablename__ = "orders"

    order_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    user_id: Mapped[str] = mapped_column(String(64))
    total_price: Mapped[Decimal] = mapped_column(Money)
    email: Mapped[str | None] = mapped_column(String(254))
    status: Mapped[OrderStatus] = mapped_column(_words(OrderStatus, "status"), default=OrderStatus.CREATED)
    notification: Mapped[NotificationStatus] = mapped_column(
        _words(NotificationStatus, "notification"), default=NotificationStatus.PENDING
    )
    created_at: Mapped[datetime] = mapped_column(UtcTime)
    event_id: Mapped[str] = mapped_column(String(36))
    """Of the OrderCreated event. A UUIDv7, which grows with time: orders are sorted and paged by it."""
    email_set_at: Mapped[datetime | None] = mapped_column(UtcTime)
    """When a person last put ``email`` right; none where it is what came with the order."""
    placed_email: Mapped[str | None] = mapped_column(String(254))
    """Once ``email`` has been put right: what came with the order. A repeated POST is compared with it."""

    __table_args__ = (
        Index("orders_event_id", "event_id", unique=True),
        Index("orders_user_id_event_id", "user_id", "event_id"),
        Index("orders_email_event_id", "email", "event_id", sqlite_where=_with_email, postgresql_where=_with_email),
        # An order is in it only once its notification went wrong: no POST writes to it.
        Index("orders_unsent", "notification", "event_id", sqlite_where=_unsent, postgresql_where=_unsent),
    )


class User(Base):
    __tablename__ = "users"

    user_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    email: Mapped[str | None] = mapped_column(String(254))
    orders_count: Mapped[int] = mapped_column(default=0)
    total_spent: Mapped[Decimal] = mapped_column(Money, default=Decimal(0))
    last_order_id: Mapped[str | None] = mapped_column(String(64))
    last_order_at: Mapped[datetime | None] = mapped_column(UtcTime)

    __table_args__ = (
        Index("users_email_user_id", "email", "user_id", sqlite_where=_with_email, postgresql_where=_with_email),
    )
