"""An operator's act can be looked at while it goes on, and aborted: it knows the deliveries that it touched.

What is dead or discarded can be listed without a look at what is done.
"""

import sqlalchemy as sa
from alembic import op

from app.db import UtcTime

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

UNDONE = sa.text("state IN ('dead', 'discarded')")

big_id = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    op.add_column("operator_acts", sa.Column("counted", sa.Integer()))
    op.add_column("operator_acts", sa.Column("over_seconds", sa.Integer()))
    op.add_column("operator_acts", sa.Column("progressed_at", UtcTime()))
    op.add_column("operator_acts", sa.Column("ended_at", UtcTime()))
    op.add_column("operator_acts", sa.Column("aborted_at", UtcTime()))
    op.add_column("operator_acts", sa.Column("aborted_by", sa.String(100)))
    op.execute("UPDATE operator_acts SET counted = deliveries, ended_at = acted_at")
    op.create_table(
        "operator_act_deliveries",
        sa.Column("act_id", big_id, sa.ForeignKey("operator_acts.act_id"), primary_key=True),
        sa.Column("delivery_id", big_id, sa.ForeignKey("deliveries.delivery_id"), primary_key=True),
        sa.Column("state_before", sa.String(16), nullable=False),
        sa.Column("reason_before", sa.Text()),
        sa.Column("outcome_before", sa.String(16)),
        sa.Column("attempts_before", sa.Integer(), nullable=False),
        sa.Column("due_before", UtcTime()),
        sa.Column("settled_before", UtcTime()),
        sa.Column("lease_token", sa.Integer(), nullable=False),
        sa.Column("taken_back_at", UtcTime()),
    )
    op.create_index("operator_act_deliveries_delivery_id", "operator_act_deliveries", ["delivery_id"])
    columns = ["state", "delivery_id"]
    op.create_index("deliveries_undone", "deliveries", columns, sqlite_where=UNDONE, postgresql_where=UNDONE)


def downgrade() -> None:
    op.drop_index("deliveries_undone", "deliveries")
    op.drop_table("operator_act_deliveries")
    for name in ("counted", "over_seconds", "progressed_at", "ended_at", "aborted_at", "aborted_by"):
        op.drop_column("operator_acts", name)
