"""Dispatchers record what they deliver by."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("dispatchers", sa.Column("settings", sa.Text()))


def downgrade() -> None:
    op.drop_column("dispatchers", "settings")
