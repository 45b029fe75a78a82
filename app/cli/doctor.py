"""flask doctor: check the service's surroundings."""

import click
from flask import current_app
from flask.cli import with_appcontext

from app import doctor
from app.cli import output


@click.command("doctor")
@with_appcontext
def doctor_command() -> None:
    """Check everything that is easily forgotten; each finding with its cure."""
    findings = doctor.examine(current_app._get_current_object())  # type: ignore[attr-defined]  # of LocalProxy
    for finding in findings:
        output.line(str(finding))
    if any(finding.level == "wrong" for finding in findings):
        raise SystemExit(1)
