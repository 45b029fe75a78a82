"""Run by Alembic, on the connection that app.db.schema hands over. Configures no logging: that is the application's."""

from alembic import context

import app.bus.tables
import app.orders.models  # noqa: F401 - both fill Base.metadata
from app.db import Base

connection = context.config.attributes["connection"]


def belongs_here(item, name, kind, reflected, compared):
    """SQLite's transactions commit in order: it needs no index for a reader of the feed that waits for them."""
    return not (connection.dialect.name == "sqlite" and name == "events_transaction_id_position")


def rendered(kind, item, autogenerate):
    """How a new revision spells the types of app.db; others as Alembic does."""
    if kind != "type" or not type(item).__module__.startswith("app.db."):
        return False
    autogenerate.imports.add(f"from app.db import {type(item).__name__}")
    return f"{type(item).__name__}()"


context.configure(
    connection=connection,
    include_object=belongs_here,
    render_item=rendered,
    target_metadata=Base.metadata,
    render_as_batch=True,
    compare_type=True,
    transactional_ddl=True,
)
with context.begin_transaction():
    context.run_migrations()
