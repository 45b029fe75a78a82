"""Models of the two tables that people open: orders and users. Both read well in a plain ``select *``."""

from datetime import datetime
from decimal import Decimal
from enum import StrEnum

from sqlalchemy import Enum, Index, String
from sqlalchemy.orm import Mapped, mapped_column

from app.db import Base, Money, UtcTime
from app.states import NotificationStatus, OrderStatus


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

    __table_args__ = (
        Index("orders_event_id", "event_id", unique=True),
        Index("orders_user_id_event_id", "user_id", "event_id"),
    )


class User(Base):
    __tablename__ = "users"

    user_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    email: Mapped[str | None] = mapped_column(String(254))
    orders_count: Mapped[int] = mapped_column(default=0)
    total_spent: Mapped[Decimal] = mapped_column(Money, default=Decimal(0))
    last_order_id: Mapped[str | None] = mapped_column(String(64))
    last_order_at: Mapped[datetime | None] = mapped_column(UtcTime)
