"""What retries are learned from: reply codes, obstacles, and the tables that are fitted to them."""

import sqlalchemy as sa
from alembic import op

from app.db import UtcTime

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("attempts", sa.Column("reply_code", sa.Integer()))
    op.add_column("attempts", sa.Column("enhanced_code", sa.String(11)))
    op.add_column("attempts", sa.Column("why", sa.Text()))
    op.add_column("deliveries", sa.Column("obstacle", sa.String(32)))
    op.add_column("deliveries", sa.Column("obstacle_since", UtcTime()))
    op.add_column("deliveries", sa.Column("obstacle_seen_at", UtcTime()))
    op.add_column("deliveries", sa.Column("due_because", sa.Text()))
    _rebuild_breakers(required=False)
    big_id = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    op.create_table(
        "retry_transitions",
        sa.Column("transition_id", big_id, primary_key=True),
        sa.Column("receiver", sa.String(100), nullable=False),
        sa.Column("scope", sa.String(8), nullable=False),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("age_from", sa.Double()),
        sa.Column("age_to", sa.Double(), nullable=False),
        sa.Column("gone", sa.Boolean(), nullable=False),
        sa.Column("at", UtcTime(), nullable=False),
        sqlite_autoincrement=True,
    )
    columns = ["receiver", "scope", "kind", "transition_id"]
    op.create_index("retry_transitions_of_a_kind", "retry_transitions", columns)
    op.create_table(
        "retry_tables",
        sa.Column("version", sa.Integer(), primary_key=True, autoincrement=False),
        sa.Column("begun_at", UtcTime(), nullable=False),
        sa.Column("fitted_by", sa.String(100), nullable=False),
        sa.Column("fitted_at", UtcTime()),
        sa.Column("content", sa.Text()),
        sa.Column("refuted", sa.Text()),
        sa.Column("transition_id", sa.BigInteger(), nullable=False),
    )


def downgrade() -> None:
    op.drop_table("retry_tables")
    op.drop_table("retry_transitions")
    op.execute("DELETE FROM circuit_breakers WHERE opened_at IS NULL OR probe_at IS NULL")
    _rebuild_breakers(required=True)
    for column in ("due_because", "obstacle_seen_at", "obstacle_since", "obstacle"):
        op.drop_column("deliveries", column)
    for column in ("why", "enhanced_code", "reply_code"):
        op.drop_column("attempts", column)


def _rebuild_breakers(*, required: bool) -> None:
    """A breaker's row stays once it is closed, and keeps its gate. Copied, since SQLite can't alter a column."""
    op.rename_table("circuit_breakers", "old_circuit_breakers")
    if op.get_bind().dialect.name == "postgresql":
        op.execute("ALTER INDEX circuit_breakers_pkey RENAME TO old_circuit_breakers_pkey")
    op.create_table(
        "circuit_breakers",
        sa.Column("receiver", sa.String(100), primary_key=True),
        sa.Column("opened_at", UtcTime(), nullable=not required),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("probe_at", UtcTime(), nullable=not required),
        *([] if required else [sa.Column("gate", sa.Text())]),
    )
    columns = "receiver, opened_at, failures, probe_at"
    op.execute(f"INSERT INTO circuit_breakers ({columns}) SELECT {columns} FROM old_circuit_breakers")  # noqa: S608
    op.drop_table("old_circuit_breakers")
