"""The table gates becomes circuit_breakers: a gate that was closed is a breaker that is open."""

import sqlalchemy as sa
from alembic import op

from app.db import UtcTime

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    _move("gates", "closed_at", "circuit_breakers", "opened_at")


def downgrade() -> None:
    _move("circuit_breakers", "opened_at", "gates", "closed_at")


def _move(old: str, old_time: str, new: str, new_time: str) -> None:
    """Made anew rather than renamed, so that the primary key's name follows on both databases."""
    op.create_table(
        new,
        sa.Column("receiver", sa.String(100), primary_key=True),
        sa.Column(new_time, UtcTime(), nullable=False),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("probe_at", UtcTime(), nullable=False),
    )
    columns = f"receiver, {new_time}, failures, probe_at"
    op.execute(f"INSERT INTO {new} ({columns}) SELECT {columns.replace(new_time, old_time)} FROM {old}")  # noqa: S608
    op.drop_table(old)
