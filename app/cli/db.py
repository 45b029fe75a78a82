"""flask db: upgrade, show, check and revise the database schema; back the database up, and restore it."""

import re
import shlex
import sys
from pathlib import Path

import click
from sqlalchemy import URL

from app import current
from app.cli import output
from app.cli.group import Group
from app.db import SCHEMA_REVISION, schema, sqlite_backup
from app.db.sqlite_backup import Contents

db_group = Group("db", help="The database: its schema, backup and restore.")

FORGET_TRANSACTIONS = "UPDATE events SET transaction_id = 0"

ANY_FILE = click.Path(path_type=Path)


@db_group.command("upgrade")
@output.json_option
def upgrade() -> None:
    """Bring the schema up to date."""
    before = current.database().schema_revision()
    schema.upgrade(current.database())
    after = current.database().schema_revision()
    output.document({"revision": after, "before": before})
    if after == before:
        output.line(f"the schema is at {after}; there was nothing to do")
    else:
        output.line(f"the schema is at {after}; now start the service, or start anew what runs with older code")


@db_group.command("current")
@output.json_option
def show_current() -> None:
    """The revision that the database is at."""
    found = current.database().schema_revision()
    output.document({"revision": found, "needed": SCHEMA_REVISION})
    if found is None:
        output.line("empty; run 'flask db upgrade'")
    elif found < SCHEMA_REVISION:
        output.line(f"{found}; this code needs {SCHEMA_REVISION}: run 'flask db upgrade'")
    elif found > SCHEMA_REVISION:
        output.line(f"{found}, which is newer than this code, whose schema is {SCHEMA_REVISION}: start the newer code")
    else:
        output.line(found)


@db_group.command("check")
@output.json_option
def check() -> None:
    """Fail when models and migrations differ."""
    schema.check(current.database())
    output.document({"agree": True})
    output.line("models and migrations agree")


@db_group.command("revision")
@click.option("-m", "--message", required=True, help="What it changes: becomes its docstring and its file's name.")
@click.option("--empty", is_flag=True, help="Without steps; write them yourself, to change rows for example.")
@output.json_option
def revision(message: str, empty: bool) -> None:
    """Write the next migration: the steps to the schema that the models have now."""
    if not (re.search(r"\w", message) and message.isprintable() and not set(message) & set('"\\')):
        raise click.BadParameter("write one line, without double quotes and backslashes", param_hint="-m")
    file = schema.make_revision(message, empty=empty)
    if file is None:
        raise click.ClickException(
            "models and migrations agree, so nothing was written; change a model first, one that the application "
            "imports, or add --empty to write the steps yourself"
        )
    written = str(file.relative_to(schema.MIGRATIONS.parent))
    output.document({"file": written})
    output.line(f"wrote {written}; read it, then run 'flask db upgrade'")


@db_group.command("backup")
@click.argument("to", type=ANY_FILE)
@output.json_option
def backup(to: Path) -> None:
    """Copy the SQLite database to the new file TO, while the service runs, and check the copy.

    Exits with 1, and leaves no file, when that can't be done.
    """
    file = current.database().dialect.file
    if file is None:
        command = f"pg_dump --format=custom --file={shlex.quote(str(to))} {_postgresql_url()}"
        raise click.ClickException(f"PostgreSQL has its own: {command}")
    contents = sqlite_backup.back_up(file, to, _show_progress)
    size = to.stat().st_size
    output.document({"file": str(to), "bytes": size, "contents": contents})
    output.line(f"{to}: {size / 1_000_000:,.1f} MB, checked; {_shown(contents)}")


@db_group.command("restore")
@click.argument("source", metavar="FROM", type=ANY_FILE)
@output.yes_option
@output.json_option
def restore(source: Path) -> None:
    """Put the backup FROM in the place of the SQLite database, once it is checked. Keeps the file that is there.

    Refuses while any process has the database open. An older schema is brought up to date.
    """
    file = current.database().dialect.file
    if file is None:
        url = _postgresql_url()
        command = f"pg_restore --no-owner --exit-on-error --dbname={url} {shlex.quote(str(source))}"
        # Another server's transactions are numbered anew: without this, the feed would hold back what is restored.
        command += f" && psql {url} --command={shlex.quote(FORGET_TRANSACTIONS)}"
        raise click.ClickException(f"PostgreSQL has its own, into an empty database: {command}")
    with sqlite_backup.restoring(current.database(), source, _show_progress) as found:
        output.line(f"{source}: checked; {_shown(found.contents)}")
        output.confirm(f"put it in the place of {file}?")
        kept = found.replace()
    output.document({"file": str(file), "kept": str(kept) if kept else None, "contents": found.contents})
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


def _show_progress(done: int, total: int) -> None:
    """On one line of a terminal; scheduled jobs have none, and mail what is printed."""
    if sys.stderr.isatty():
        click.echo(f"\rcopied {100 * done // total} %", nl=done == total, err=True)


def _postgresql_url() -> str:
    """This database's, without its password: libpq takes that from ~/.pgpass or PGPASSWORD."""
    url = current.database().url
    bare = URL.create("postgresql", url.username, None, url.host, url.port, url.database, url.query)
    return shlex.quote(str(bare))
