"""flask db: upgrade, show and check the database schema; back the database up, and restore it."""

import shlex
import sys
from pathlib import Path

import click
from sqlalchemy import URL

from app.cli import output
from app.cli.group import Group, any_database
from app.db import SCHEMA_REVISION, schema, sqlite_backup
from app.db.sqlite_backup import Contents

db_group = Group("db", help="The database: its schema, backup and restore.")

FORGET_TRANSACTIONS = "UPDATE events SET transaction_id = 0"

ANY_FILE = click.Path(path_type=Path)


@db_group.command("upgrade")
def upgrade() -> None:
    """Bring the schema up to date."""
    schema.upgrade(any_database())
    output.line(f"the schema is at {any_database().schema_revision()}")


@db_group.command("current")
def current() -> None:
    """The revision that the database is at."""
    found = any_database().schema_revision()
    if found is None:
        output.line("empty; run 'flask db upgrade'")
    elif found < SCHEMA_REVISION:
        output.line(f"{found}; this code needs {SCHEMA_REVISION}: run 'flask db upgrade'")
    elif found > SCHEMA_REVISION:
        output.line(f"{found}, which is newer than this code, whose schema is {SCHEMA_REVISION}: start the newer code")
    else:
        output.line(found)


@db_group.command("check")
def check() -> None:
    """Fail when models and migrations differ."""
    schema.check(any_database())
    output.line("models and migrations agree")


@db_group.command("backup")
@click.argument("to", type=ANY_FILE)
def backup(to: Path) -> None:
    """Copy the SQLite database to the new file TO, while the service runs, and check the copy.

    Exits with 1, and leaves no file, when that can't be done.
    """
    file = any_database().dialect.file
    if file is None:
        command = f"pg_dump --format=custom --file={shlex.quote(str(to))} {_postgresql_url()}"
        raise click.ClickException(f"PostgreSQL has its own: {command}")
    contents = sqlite_backup.back_up(file, to, _show_progress)
    output.line(f"{to}: {_size(to)}, checked; {_shown(contents)}")


@db_group.command("restore")
@click.argument("source", metavar="FROM", type=ANY_FILE)
@click.option("--yes", is_flag=True, help="Do not ask.")
def restore(source: Path, yes: bool) -> None:
    """Put the backup FROM in the place of the SQLite database, once it is checked. Keeps the file that is there.

    Refuses while any process has the database open. An older schema is brought up to date.
    """
    file = any_database().dialect.file
    if file is None:
        url = _postgresql_url()
        command = f"pg_restore --no-owner --exit-on-error --dbname={url} {shlex.quote(str(source))}"
        # Another server's transactions are numbered anew: without this, the feed would hold back what is restored.
        command += f" && psql {url} --command={shlex.quote(FORGET_TRANSACTIONS)}"
        raise click.ClickException(f"PostgreSQL has its own, into an empty database: {command}")
    with sqlite_backup.restoring(any_database(), source, _show_progress) as found:
        output.line(f"{source}: checked; {_shown(found.contents)}")
        if not yes:
            click.confirm(f"put it in the place of {file}?", abort=True)
        kept = found.replace()
    output.line(f"restored {file}" + (f"; what was there is {kept}" if kept else ""))
    if found.contents.unfinished:
        output.line(
            f"the {found.contents.unfinished} unfinished deliveries will be done when the service starts, also mails "
            "that went out after the backup was made; to keep those that are due from going out again: "
            "flask bus discard --receiver send_email_notification --because 'sent before the restore'"
        )


def _shown(contents: Contents) -> str:
    newest = f", the newest of {contents.newest}" if contents.newest else ""
    return f"{contents.orders} orders{newest}; {contents.unfinished} unfinished deliveries; schema {contents.revision}"


def _size(file: Path) -> str:
    return f"{file.stat().st_size / 1_000_000:,.1f} MB"


def _show_progress(done: int, total: int) -> None:
    """On one line of a terminal; scheduled jobs have none, and mail what is printed."""
    if sys.stderr.isatty():
        click.echo(f"\rcopied {100 * done // total} %", nl=done == total, err=True)


def _postgresql_url() -> str:
    """This database's, without its password: libpq takes that from ~/.pgpass or PGPASSWORD."""
    url = any_database().url
    bare = URL.create("postgresql", url.username, None, url.host, url.port, url.database, url.query)
    return shlex.quote(str(bare))
