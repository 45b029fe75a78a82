"""On PostgreSQL, deliveries are vacuumed by their number, and not when a fifth of all history has changed."""

from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

SETTINGS = {
    "autovacuum_vacuum_threshold": "10000",
    "autovacuum_vacuum_scale_factor": "0.002",
    "vacuum_index_cleanup": "on",  # else a vacuum may leave the indexes as they are, and what claims read is one
}


def upgrade() -> None:
    if op.get_context().dialect.name == "postgresql":
        op.execute(f"ALTER TABLE deliveries SET ({', '.join(f'{name} = {value}' for name, value in SETTINGS.items())})")


def downgrade() -> None:
    if op.get_context().dialect.name == "postgresql":
        op.execute(f"ALTER TABLE deliveries RESET ({', '.join(SETTINGS)})")
