"""Orders whose notification failed or was skipped are found among a million, and users by their address."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    unsent = sa.text("notification IN ('failed', 'skipped')")
    op.create_index(
        "orders_unsent", "orders", ["notification", "event_id"], sqlite_where=unsent, postgresql_where=unsent
    )
    given = sa.text("email IS NOT NULL")
    op.create_index("users_email_user_id", "users", ["email", "user_id"], sqlite_where=given, postgresql_where=given)


def downgrade() -> None:
    op.drop_index("users_email_user_id", table_name="users")
    op.drop_index("orders_unsent", table_name="orders")
