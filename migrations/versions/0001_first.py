"""Orders and users; events, deliveries and attempts; gates, operators' acts and dispatchers."""

import sqlalchemy as sa
from alembic import op

from app.db import Money, UtcTime

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

BigId = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
UNFINISHED = sa.text("state IN ('ready', 'leased')")
GIVEN_UP = sa.text("state = 'dead'")
OUTCOMES = "'ok', 'refused', 'deferred', 'throttled', 'unreachable', 'timeout', 'bug', 'unknown'"


def upgrade() -> None:
    op.create_table(
        "orders",
        sa.Column("order_id", sa.String(64), primary_key=True),
        sa.Column("user_id", sa.String(64), nullable=False),
        sa.Column("total_price", Money(), nullable=False),
        sa.Column("email", sa.String(254)),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("notification", sa.String(16), nullable=False),
        sa.Column("created_at", UtcTime(), nullable=False),
        sa.Column("event_id", sa.String(36), nullable=False),
        sa.CheckConstraint("status IN ('created', 'confirmed')", name="status"),
        sa.CheckConstraint("notification IN ('pending', 'skipped', 'failed', 'sent')", name="notification"),
    )
    op.create_index("orders_event_id", "orders", ["event_id"], unique=True)
    op.create_index("orders_user_id_event_id", "orders", ["user_id", "event_id"])

    op.create_table(
        "users",
        sa.Column("user_id", sa.String(64), primary_key=True),
        sa.Column("email", sa.String(254)),
        sa.Column("orders_count", sa.Integer(), nullable=False),
        sa.Column("total_spent", Money(), nullable=False),
        sa.Column("last_order_id", sa.String(64)),
        sa.Column("last_order_at", UtcTime()),
    )

    op.create_table(
        "events",
        sa.Column("position", BigId, primary_key=True),
        sa.Column("event_id", sa.String(36), nullable=False),
        sa.Column("type", sa.String(64), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("source", sa.String(200), nullable=False),
        sa.Column("order_id", sa.String(64), nullable=False),
        sa.Column("user_id", sa.String(64), nullable=False),
        sa.Column("data", sa.Text(), nullable=False),
        sa.Column("occurred_at", UtcTime(), nullable=False),
        sa.Column("cause_id", sa.String(36)),
        sa.Column("correlation_id", sa.String(36), nullable=False),
        sa.Column("transaction_id", sa.BigInteger(), nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_index("events_event_id", "events", ["event_id"], unique=True)
    op.create_index("events_order_id", "events", ["order_id"])
    if op.get_bind().dialect.name == "postgresql":
        op.create_index("events_transaction_id_position", "events", ["transaction_id", "position"])

    op.create_table(
        "deliveries",
        sa.Column("delivery_id", BigId, primary_key=True),
        sa.Column("event_id", sa.String(36), sa.ForeignKey("events.event_id"), nullable=False),
        sa.Column("receiver", sa.String(100), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("due_at", UtcTime(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("lease_token", sa.Integer(), nullable=False),
        sa.Column("leased_at", UtcTime()),
        sa.Column("leased_by", sa.String(100)),
        sa.Column("outcome", sa.String(16)),
        sa.Column("reason", sa.Text()),
        sa.Column("created_at", UtcTime(), nullable=False),
        sa.Column("settled_at", UtcTime()),
        sa.CheckConstraint("state IN ('ready', 'leased', 'done', 'dead', 'discarded')", name="state"),
        sqlite_autoincrement=True,
    )
    op.create_index("deliveries_event_id_receiver", "deliveries", ["event_id", "receiver"], unique=True)
    for name, columns, where in (
        ("deliveries_due", ["receiver", "due_at", "delivery_id"], UNFINISHED),
        ("deliveries_dead", ["settled_at"], GIVEN_UP),
    ):
        op.create_index(name, "deliveries", columns, sqlite_where=where, postgresql_where=where)

    op.create_table(
        "attempts",
        sa.Column("attempt_id", BigId, primary_key=True),
        sa.Column("delivery_id", BigId, sa.ForeignKey("deliveries.delivery_id"), nullable=False),
        sa.Column("lease_token", sa.Integer(), nullable=False),
        sa.Column("outcome", sa.String(16), nullable=False),
        sa.Column("detail", sa.Text()),
        sa.Column("started_at", UtcTime(), nullable=False),
        sa.Column("ended_at", UtcTime(), nullable=False),
        sa.Column("dispatcher", sa.String(100)),
        sa.CheckConstraint(f"outcome IN ({OUTCOMES})", name="outcome"),
    )
    op.create_index("attempts_delivery_id", "attempts", ["delivery_id"])

    op.create_table(
        "gates",
        sa.Column("receiver", sa.String(100), primary_key=True),
        sa.Column("closed_at", UtcTime(), nullable=False),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("probe_at", UtcTime(), nullable=False),
    )
    op.create_table(
        "operator_acts",
        sa.Column("act_id", BigId, primary_key=True),
        sa.Column("acted_at", UtcTime(), nullable=False),
        sa.Column("acted_by", sa.String(100), nullable=False),
        sa.Column("action", sa.String(16), nullable=False),
        sa.Column("filter", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text()),
        sa.Column("deliveries", sa.Integer(), nullable=False),
    )
    op.create_table(
        "dispatchers",
        sa.Column("name", sa.String(100), primary_key=True),
        sa.Column("started_at", UtcTime(), nullable=False),
        sa.Column("seen_at", UtcTime(), nullable=False),
    )


def downgrade() -> None:
    for table in ("dispatchers", "operator_acts", "gates", "attempts", "deliveries", "events", "users", "orders"):
        op.drop_table(table)
