"""flask doctor: examine the service and its surroundings."""

import sys

import click
from flask import current_app
from flask.cli import with_appcontext

from app import doctor
from app.cli import output


@click.command("doctor")
@output.json_option
@with_appcontext
def doctor_command() -> None:
    """Examine the service: its database, disk, mail server, dispatchers and outbox; and where this shell differs.

    Exit code 0: nothing is wrong; 1: something is; 2: it could not look.
    """
    found = doctor.examine(current_app._get_current_object())  # type: ignore[attr-defined]  # of LocalProxy
    output.document(found.as_json())
    output.line(*map(str, found.findings))
    sys.exit(found.exit_code)
