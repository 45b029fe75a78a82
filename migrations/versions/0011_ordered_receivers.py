"""A receiver can be ordered: the deliveries of one order, or of one user, are given to it one at a time."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

BigId = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.add_column("deliveries", sa.Column("ordering_key", sa.String(64)))
    op.add_column("deliveries", sa.Column("waits_behind", BigId))
    ordered = sa.text("ordering_key IS NOT NULL AND state IN ('ready', 'leased')")
    op.create_index(
        "deliveries_ordered",
        "deliveries",
        ["receiver", "ordering_key", "state", "delivery_id"],
        sqlite_where=ordered,
        postgresql_where=ordered,
    )


def downgrade() -> None:
    op.drop_index("deliveries_ordered", table_name="deliveries")
    op.drop_column("deliveries", "waits_behind")
    op.drop_column("deliveries", "ordering_key")
