"""flask db: upgrade, show and check the database schema."""

from app.cli import output
from app.cli.group import Group, any_database
from app.db import schema

db_group = Group("db", help="The database schema.")


@db_group.command("upgrade")
def upgrade() -> None:
    """Bring the schema up to date."""
    schema.upgrade(any_database())
    output.line(f"the schema is at {any_database().schema_revision()}")


@db_group.command("current")
def current() -> None:
    """The revision that the database is at."""
    output.line(any_database().schema_revision() or "empty; run 'flask db upgrade'")


@db_group.command("check")
def check() -> None:
    """Fail when models and migrations differ."""
    schema.check(any_database())
    output.line("models and migrations agree")
