"""Orders are found by their address."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    given = sa.text("email IS NOT NULL")
    op.create_index(
        "orders_email_event_id", "orders", ["email", "event_id"], sqlite_where=given, postgresql_where=given
    )


def downgrade() -> None:
    op.drop_index("orders_email_event_id", table_name="orders")
