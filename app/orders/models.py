"""The two records that people open: orders and users. Both read well in a plain ``select *``."""

from datetime import datetime
from decimal import Decimal

from sqlalchemy import CheckConstraint, Index, String
from sqlalchemy.orm import Mapped, mapped_column

from app.db import Base, Money, UtcTime

STATUSES = ("created", "confirmed")
NOTIFICATIONS = ("pending", "skipped", "failed", "sent")
"""In the order in which an order's notification may move: ``sent`` is never taken back by an older fact."""


class Order(Base):
    __tablename__ = "orders"

    order_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    user_id: Mapped[str] = mapped_column(String(64))
    total_price: Mapped[Decimal] = mapped_column(Money)
    email: Mapped[str | None] = mapped_column(String(254))
    status: Mapped[str] = mapped_column(String(16), default="created")
    notification: Mapped[str] = mapped_column(String(16), default="pending")
    created_at: Mapped[datetime] = mapped_column(UtcTime)
    event_id: Mapped[str] = mapped_column(String(36))
    """Of the OrderCreated event; a UUIDv7, so that orders sort and page by it in the order they came."""

    __table_args__ = (
        Index("orders_event_id", "event_id", unique=True),
        Index("orders_user_id_event_id", "user_id", "event_id"),
        CheckConstraint(f"status IN {STATUSES}", name="status"),
        CheckConstraint(f"notification IN {NOTIFICATIONS}", name="notification"),
    )


class User(Base):
    __tablename__ = "users"

    user_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    email: Mapped[str | None] = mapped_column(String(254))
    orders_count: Mapped[int] = mapped_column(default=0)
    total_spent: Mapped[Decimal] = mapped_column(Money, default=Decimal(0))
    last_order_id: Mapped[str | None] = mapped_column(String(64))
    last_order_at: Mapped[datetime | None] = mapped_column(UtcTime)
