"""Two versions of the code on one PostgreSQL: what each says, and a rolling upgrade in the documented order under load.

The version before is the code from before the newest migration, as Git has it. The version after is this code with one
migration more.
"""

import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from app.db import SCHEMA_REVISION
from tests.acceptance.conftest import Serve
from tests.support.ledger import Customers, Ledger
from tests.support.recipe import copy_of_checkout
from tests.support.service import CHECKOUT, DISPATCHER, GUNICORN, Service, wait_until
from tests.support.smtp import SmtpServer

pytestmark = [
    pytest.mark.inprocess("copies of the code that have no worker"),
    pytest.mark.postgres,
    pytest.mark.timeout(240),
]

PARTS = ("app", "migrations", "config.py", "wsgi.py", "gunicorn.conf.py")
"""Of the checkout: all that a service runs."""

MIGRATIONS = "migrations/versions"

NEXT = f"{int(SCHEMA_REVISION) + 1:04}"

NEXT_MIGRATION = f'''
import sqlalchemy as sa
from alembic import op

revision = "{NEXT}"
down_revision = "{SCHEMA_REVISION}"
branch_labels = depends_on = None


def upgrade():
    op.add_column("orders", sa.Column("channel", sa.String(16), nullable=True))
    op.add_column("deliveries", sa.Column("priority", sa.Integer(), nullable=False, server_default="0"))
    op.add_column("users", sa.Column("remark", sa.Text(), nullable=True))
    op.create_index("orders_channel", "orders", ["channel"])


def downgrade():
    pass
'''

Report = Callable[[str], None]


def git(*arguments: str) -> str:
    """Its output; skips where there is no history to look into."""
    done = subprocess.run(["git", "-C", str(CHECKOUT), *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"needs the project's history in Git: {done.stderr.strip().splitlines()[-1:]}")
    return done.stdout.strip()


@pytest.fixture
def code_before(tmp_path: Path) -> Path:
    """This project's latest code that has fewer migrations: the first of the present ones, and no others."""
    parents = git("log", "--first-parent", "-m", "--format=%P", "--", MIGRATIONS).splitlines()
    before = next((each.split()[0] for each in parents if each and is_before(each.split()[0])), None)
    if before is None:
        pytest.skip("no code from before the newest migration is in Git")
    folder = tmp_path / "before"
    folder.mkdir()
    archive = folder / "code.tar"
    git("archive", f"--output={archive}", before, *PARTS)
    shutil.unpack_archive(archive, folder)
    return folder


def is_before(commit: str) -> bool:
    present = sorted(file.name for file in (CHECKOUT / MIGRATIONS).glob("[0-9]*.py"))
    listed = git("ls-tree", "--name-only", commit, f"{MIGRATIONS}/").split()
    then = sorted(name for name in (Path(each).name for each in listed) if name[0].isdigit())
    return then == present[: len(then)] != present


@pytest.fixture
def code_after(tmp_path: Path) -> Path:
    """This code, and a migration that adds to every table in use, as the rules for migrations allow."""
    folder = copy_of_checkout(tmp_path / "after")
    (folder / "migrations" / "versions" / f"{NEXT}_next.py").write_text(NEXT_MIGRATION)
    return folder


def test_from_the_code_before_the_newest_migration_to_this_one(
    serve: Serve, bare_postgres_url: str, sink: SmtpServer, report: Report, code_before: Path
) -> None:
    report(roll(serve, bare_postgres_url, sink, code_before, CHECKOUT))


def test_from_this_code_to_one_with_a_migration_more(
    serve: Serve, bare_postgres_url: str, sink: SmtpServer, report: Report, code_after: Path
) -> None:
    report(roll(serve, bare_postgres_url, sink, CHECKOUT, code_after))


def roll(serve: Serve, url: str, sink: SmtpServer, old_code: Path, new_code: Path) -> str:
    """Returns a line of figures."""

    def service(code: Path, *command: str) -> Service:
        settings = {"web_concurrency": 2, "dispatch_in_web": False, "database_url": url, **sink.settings}
        made = serve(*command, **settings)
        made.cwd = code
        return made

    old, new = service(old_code, *GUNICORN), service(new_code, *GUNICORN)
    old_dispatcher, new_dispatcher = service(old_code, *DISPATCHER), service(new_code, *DISPATCHER)
    assert old.run("flask", "db", "upgrade").returncode == 0
    for each in (old, old_dispatcher):
        each.launch()
    old.wait_for_answer("/healthz")
    old_dispatcher.wait_for_log("dispatcher started")
    ledger = Ledger(os.getpid())

    def more(count: int = 20) -> None:
        ledger.wait_for(len(ledger.acknowledged) + count)

    with Customers(ledger, old.port, new.port, clients=2) as customers:
        more()
        for each in (new, new_dispatcher):
            each.launch()
        for each in (new, new_dispatcher):
            assert each.wait_for_end() > 0
            assert "did you forget to run 'flask db upgrade'?" in last_line(each)
        more()
        upgraded = new.run("flask", "db", "upgrade")
        assert upgraded.returncode == 0, upgraded.stderr
        more()
        wait_until(lambda: "is newer than this code" in str(old.get("/readyz").body), "the word of it")
        late = service(old_code, *GUNICORN)
        for each in (late, new, new_dispatcher):
            each.launch()
        old.kill(max(old.workers()))  # gunicorn starts another, which goes on as this one did
        more()
        assert late.wait_for_end() > 0
        assert "start the newer version of the code" in last_line(late)
        new_dispatcher.wait_for_log("dispatcher started")
        new.wait_for_answer("/readyz")
        more()
        for each in (old, old_dispatcher):
            each.signal(signal.SIGTERM)
        for each in (old, old_dispatcher):
            assert each.wait_for_end() == 0
        more()

    ledger.wait_until_settled(url)
    figures = ledger.check(url, sink.received, copies=0)
    assert (figures.lost, figures.unknown, figures.unknown_attempts) == (0, 0, 0)
    assert new.get("/readyz").status == 200
    return f"{customers.outage()}; {figures}"


def last_line(service: Service) -> str:
    """What a start that ended by itself said at last."""
    return [line for line in service.log_since_start.splitlines() if "error: " in line.lower()][-1]
