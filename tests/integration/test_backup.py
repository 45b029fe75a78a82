"""flask db backup and restore, on a SQLite file."""

import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from click.testing import Result

from app.db import SCHEMA_REVISION, Database, schema, sqlite_backup, sqlite_module
from app.errors import BackupFailed
from tests.support.service import CHECKOUT, LIMIT
from tests.support.shop import Shop


@pytest.fixture
def database_url(sqlite_url: str) -> str:
    return sqlite_url


@pytest.fixture
def to(tmp_path: Path) -> Path:
    return tmp_path / "backups" / "orders.db"


@pytest.fixture
def run(shop: Shop, to: Path) -> Callable[..., Result]:
    """Run 'flask db ...'; an exit code other than ``code`` is a failure."""
    to.parent.mkdir()

    def run(*words: object, code: int = 0, typed: str | None = None) -> Result:
        result = shop.app.test_cli_runner().invoke(args=["db", *map(str, words)], input=typed)
        assert result.exit_code == code, (result.output, result.exception)
        return result

    return run


def rows(file: Path, query: str) -> list[Any]:
    with closing(sqlite_module().connect(file)) as connection:
        return list(connection.execute(query))


def orders_in(file: Path) -> list[str]:
    return [order_id for (order_id,) in rows(file, "SELECT order_id FROM orders ORDER BY order_id")]


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def kept(file: Path) -> Path:
    (found,) = file.parent.glob("orders.db.before-restore-*Z")
    return found


def test_a_backup_is_one_file_with_all_orders_for_its_owners_eyes(shop: Shop, run: Any, to: Path) -> None:
    for number in range(3):
        shop.place_order(f"{number}")
    told = run("backup", to).output
    assert names(to.parent) == {"orders.db"}
    assert to.stat().st_mode & 0o777 == 0o600
    assert f"{to}: " in told
    assert "checked; 3 orders, the newest of " in told
    assert f"6 unfinished deliveries; schema {SCHEMA_REVISION}" in told
    assert orders_in(to) == ["0", "1", "2"]
    assert names(to.parent) == {"orders.db"}, "it needs no WAL beside it"
    shop.place_order("3")


@pytest.mark.parametrize("target", ["there", "link", "folder", "file", "nowhere/x"])
def test_a_backup_overwrites_nothing(run: Any, to: Path, file: Path, target: str) -> None:
    (to.parent / "there").write_text("precious")
    (to.parent / "link").symlink_to("nothing")
    (to.parent / "folder").mkdir()
    before = names(to.parent)
    told = run("backup", file if target == "file" else to.parent / target, code=1).output
    assert "make it, or name another" in told if "nowhere" in target else "is there already" in told
    assert (names(to.parent), (to.parent / "there").read_text()) == (before, "precious")


def damage(file: Path) -> None:
    """Overwrite a page that nobody reads who counts orders and deliveries."""
    ((page,),) = rows(file, "SELECT rootpage FROM sqlite_master WHERE name = 'events'")
    with file.open("r+b") as opened:
        opened.seek((page - 1) * 4096)
        opened.write(b"\xff" * 4096)


def test_a_damaged_database_makes_no_backup(shop: Shop, run: Any, file: Path, to: Path) -> None:
    for number in range(50):
        shop.place_order(f"{number}")
    shop.database.close()
    damage(file)
    assert "the database is damaged (" in run("backup", to, code=1).output
    assert names(to.parent) == set()


def test_a_restored_backup_takes_the_databases_place_and_what_was_there_is_kept(
    shop: Shop, run: Any, file: Path, to: Path
) -> None:
    shop.place_order("before")
    run("backup", to)
    shop.place_order("after")

    told = run("restore", to, typed="y\n").output

    assert f"put it in the place of {file}? [y/N]: y" in told
    assert f"restored {file}; what was there is {kept(file)}" in told
    assert orders_in(kept(file)) == ["after", "before"]
    assert shop.order("before").order_id == "before"
    assert shop.count("orders") == 1
    assert file.stat().st_mode & 0o777 == 0o600
    shop.place_order("after")
    assert not list(file.parent.glob("*.part*"))


def test_what_was_copied_is_printed_for_programs(shop: Shop, run: Any, file: Path, to: Path) -> None:
    shop.place_order()
    contents = {"revision": SCHEMA_REVISION, "orders": 1, "newest": "2026-11-23T08:00:00.000000Z", "unfinished": 2}
    told = json.loads(run("backup", to, "--json").stdout)
    assert told == {"file": str(to), "bytes": to.stat().st_size, "contents": contents}
    told = json.loads(run("restore", to, "--yes", "--json").stdout)
    assert told == {"file": str(file), "kept": str(kept(file)), "contents": contents}


def test_nothing_is_replaced_without_a_yes(shop: Shop, run: Any, file: Path, to: Path) -> None:
    run("backup", to)
    shop.place_order()
    for typed in ("n\n", ""):
        run("restore", to, typed=typed, code=1)
    assert orders_in(file) == ["1001"]
    assert not list(file.parent.glob("orders.db.*Z")) + list(file.parent.glob("*.part*"))


def test_the_mails_that_a_restore_would_send_again_can_be_kept_back(shop: Shop, run: Any, to: Path) -> None:
    shop.place_order()
    run("backup", to)
    shop.dispatch_all()
    told = run("restore", to, "--yes").output
    assert "the 2 unfinished deliveries will be done when the service starts" in told
    keep_back = shlex.split(told.rpartition("flask ")[2])

    result = shop.app.test_cli_runner().invoke(args=[*keep_back, "--yes"])
    assert "discarded 1" in result.output

    shop.dispatch_all()
    assert shop.order().status == "confirmed"
    assert len(shop.mailer.outbox) == 1


@pytest.mark.parametrize("state", ["missing", "damaged", "no database", "newer"])
def test_a_database_that_can_not_be_used_is_restored(shop: Shop, run: Any, file: Path, to: Path, state: str) -> None:
    shop.place_order()
    run("backup", to)
    shop.database.close()
    match state:
        case "missing":
            file.unlink()
            Path(f"{file}-wal").write_text("a WAL without its database")
        case "damaged":
            damage(file)
        case "no database":
            file.write_text("no database at all" * 1000)
        case "newer":
            with closing(sqlite_module().connect(file)) as connection, connection:
                connection.execute("UPDATE alembic_version SET version_num = '9999'")
    run("restore", to, "--yes")
    assert orders_in(file) == ["1001"]
    assert shop.order().order_id == "1001"
    if state == "missing":
        assert [each.read_text() for each in file.parent.glob("*Z-wal")] == ["a WAL without its database"]
    if state == "no database":
        assert kept(file).read_text() == "no database at all" * 1000


def test_an_older_backup_is_brought_up_to_date(shop: Shop, run: Any, file: Path, to: Path) -> None:
    shop.place_order()
    run("backup", to)
    older = Database(f"sqlite:///{to}")
    with schema.migrating(older) as config:
        command.downgrade(config, "0001")
    older.close()
    run("restore", to, "--yes")
    shop.database.check_schema()
    assert shop.order().order_id == "1001"
    assert not list(file.parent.glob("*.part*"))


def test_what_a_killed_process_left_in_its_wal_is_kept_and_spoils_nothing(
    shop: Shop, run: Any, file: Path, to: Path, tmp_path: Path
) -> None:
    run("backup", to)
    shop.place_order()
    left = tmp_path / "left"
    left.mkdir()
    for suffix in ("", "-wal"):
        shutil.copy(f"{file}{suffix}", left)
    shop.database.close()
    for each in left.iterdir():
        shutil.copy(each, file.parent)

    run("restore", to, "--yes")

    assert orders_in(file) == []
    assert orders_in(kept(file)) == ["1001"]


WRONG = {
    "nothing": "there is no file",
    "itself": "is the database itself",
    "text": "file is not a database",
    "another": "it is no database of this service",
    "empty": "it is no database of this service",
    "newer": "which is newer than this code, whose schema is",
    "damaged": "the database is damaged (",
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_no_good_backup_is_refused(shop: Shop, run: Any, file: Path, to: Path, what: str) -> None:
    for number in range(50):
        shop.place_order(f"{number}")
    before = orders_in(file)
    source = to.with_name(what)
    match what:
        case "itself":
            source = file
        case "text":
            source.write_text("a text " * 1000)
        case "empty":
            source.touch()
        case "another":
            with closing(sqlite_module().connect(source)) as connection:
                connection.execute("CREATE TABLE orders (id)")
        case "newer" | "damaged":
            run("backup", source)
    if what == "newer":
        with closing(sqlite_module().connect(source)) as connection, connection:
            connection.execute("UPDATE alembic_version SET version_num = '9999'")
    if what == "damaged":
        damage(source)
    assert WRONG[what] in run("restore", source, "--yes", code=1).output
    assert orders_in(file) == before
    assert not list(file.parent.glob("orders.db.*Z")) + list(file.parent.glob("*.part*"))


IDLE = """
import sys
from app.db import Database
database = Database(sys.argv[1])
database.hold_file()
print("open", flush=True)
sys.stdin.read()
"""


def test_a_restore_is_refused_while_any_process_has_the_database_open(
    shop: Shop, run: Any, file: Path, to: Path
) -> None:
    """An idle one too, for as long as it lives: the kernel frees the lock of one that was killed."""
    shop.place_order()
    run("backup", to)
    shop.database.close()
    words = [sys.executable, "-c", IDLE, f"sqlite:///{file}"]
    with subprocess.Popen(words, cwd=CHECKOUT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"open\n"
        told = run("restore", to, "--yes", code=1).output
        assert f"a process has {file} open; stop the service" in told
        assert not list(file.parent.glob("orders.db.*Z")) + list(file.parent.glob("*.part*"))
        other.kill()
        other.wait(LIMIT)
    run("restore", to, "--yes")


def test_a_process_that_opens_the_database_during_the_copy_is_noticed_too(
    shop: Shop, file: Path, to: Path, run: Any
) -> None:
    run("backup", to)
    shop.database.close()
    words = [sys.executable, "-c", IDLE, f"sqlite:///{file}"]
    with (
        sqlite_backup.restoring(shop.database, to, lambda *_: None) as found,
        subprocess.Popen(words, cwd=CHECKOUT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other,
    ):
        assert other.stdout is not None
        assert other.stdout.readline() == b"open\n"
        with pytest.raises(BackupFailed, match="a process has"):
            found.replace()
        other.kill()


class TestOnPostgreSQL:
    @pytest.fixture
    def database_url(self, postgres_url: str) -> str:
        return postgres_url

    @pytest.mark.postgres
    def test_the_commands_for_it_are_told(self, run: Any, to: Path) -> None:
        """That they work: tests/acceptance/test_backup.py."""
        assert f"pg_dump --format=custom --file={to} postgresql://" in run("backup", to, code=1).output
        assert "pg_restore --no-owner --exit-on-error --dbname=postgresql://" in run("restore", to, code=1).output
