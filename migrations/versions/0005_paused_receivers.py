"""A person can pause a receiver, and put an order's address right."""

import sqlalchemy as sa
from alembic import op

from app.db import UtcTime

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "paused_receivers",
        sa.Column("receiver", sa.String(100), primary_key=True),
        sa.Column("paused_at", UtcTime(), nullable=False),
        sa.Column("paused_by", sa.String(100), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
    )
    op.add_column("orders", sa.Column("placed_email", sa.String(254)))
    op.add_column("orders", sa.Column("email_set_at", UtcTime()))


def downgrade() -> None:
    op.drop_column("orders", "email_set_at")
    op.drop_column("orders", "placed_email")
    op.drop_table("paused_receivers")
