"""flask bus move: from SQLite to PostgreSQL; afterwards the service goes on as if nothing had happened."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, text

from app.bus import Filter, operate
from app.db import Base, sqlite_module
from config import Settings
from tests.support.service import CHECKOUT, wait_until
from tests.support.shop import Shop

pytestmark = pytest.mark.postgres

UNICODE = "客户 Zoë 👩‍👩‍👧 \t\\N \\. e\u0301"
"""What COPY would take for its own signs is among it."""


@pytest.fixture
def database_url(sqlite_url: str) -> str:
    return sqlite_url


@pytest.fixture
def target(bare_postgres_url: str) -> str:
    return bare_postgres_url


@pytest.fixture
def move(shop: Shop, sqlite_url: str, target: str) -> Callable[..., str]:
    """Run 'flask bus move' from the shop's file; an exit code other than ``code`` is a failure."""

    def run(*words: str, source: str = sqlite_url, to: str = target, code: int = 0) -> str:
        shop.database.close()
        command = ["bus", "move", "--from", source, "--to", to, *words]
        result = shop.app.test_cli_runner().invoke(args=command)
        assert result.exit_code == code, (result.output, result.exception)
        return result.output

    return run


@pytest.fixture
def moved(shop: Shop, settings: Settings, target: str) -> Iterator[Callable[[], Shop]]:
    """The same service on the target, its clock where the shop's is."""
    made: list[Shop] = []

    def start() -> Shop:
        made.append(Shop(settings.model_copy(update={"database_url": target}), clock=shop.clock))
        return made[-1]

    yield start
    for each in made:
        each.close()


def contents(url: str) -> dict[str, list[Any]]:
    """All rows of all tables, as the models read them."""
    engine = create_engine(url)
    with engine.connect() as connection:
        rows = {
            table.name: sorted((tuple(row) for row in connection.execute(table.select())), key=repr)
            for table in Base.metadata.sorted_tables
        }
    engine.dispose()
    return rows


def is_empty(url: str) -> bool:
    return not any(contents(url).values())


def fill(shop: Shop) -> None:
    """Something in every table, in every state of a delivery, with extremes of every kind."""
    shop.post(order_id="done", email="ann@example.com")
    shop.dispatch_all()
    shop.post(order_id="largest", user_id="rich", total_price="9999999999.99")
    shop.post(order_id="free", user_id="rich", total_price="0")
    shop.dispatch_all()
    shop.place_order("waits", "slow")
    with shop.database.read() as session:
        chosen = operate.choose(session, operate.Act("retry", Filter(order_id="waits"), f"Zoë {UNICODE}"))
    operate.carry_out(shop.database, chosen)
    moment = datetime(2026, 11, 23, 8, 0, 0, 1, tzinfo=UTC)
    for table, columns, values in (
        ("circuit_breakers", "receiver, opened_at, failures, probe_at, gate", ":text, :at, 3, :at, :text"),
        ("paused_receivers", "receiver, paused_at, paused_by, reason", "'nobody', :at, 'me', :text"),
        ("dispatchers", "name, started_at, seen_at, settings", "'old', :at, :at, '{}'"),
        (
            "retry_transitions",
            "receiver, scope, kind, age_from, age_to, gone, at",
            "'send', 'backend', 'kind', 0.1, 1e-17, true, :at",
        ),
        (
            "retry_tables",
            "version, begun_at, fitted_by, fitted_at, content, refuted, transition_id",
            "7, :at, :text, null, :text, '[]', 99",
        ),
    ):
        given = {name: value for name, value in {"text": UNICODE, "at": moment}.items() if f":{name}" in values}
        shop.execute(f"INSERT INTO {table} ({columns}) VALUES ({values})", **given)
    shop.execute(
        "UPDATE deliveries SET state = 'dead', reason = :text, settled_at = created_at "
        "WHERE delivery_id = (SELECT max(delivery_id) FROM deliveries)",
        text=UNICODE,
    )


def test_all_tables_come_over_exactly(shop: Shop, move: Any, sqlite_url: str, target: str) -> None:
    fill(shop)
    before = contents(sqlite_url)
    assert [name for name, rows in before.items() if not rows] == [], "the test has something in every table"
    told = move()
    assert contents(target) == before == contents(sqlite_url)
    assert "orders      4, worth 10,000,000,039.97" in told
    assert "users       2, with 3 orders worth 10,000,000,019.98" in told
    assert "1 dead" in told
    assert "now start the service" in told


def test_what_was_counted_is_printed_for_programs(shop: Shop, move: Any) -> None:
    shop.place_order("1")
    found = json.loads(move("--json"))
    assert (found["rows"]["orders"], found["rows"]["deliveries"], found["rows"]["users"]) == (1, 2, 0)
    assert found["sums"]["orders"]["total_price"] == [1, 1999]
    assert found["sums"]["deliveries"]["state"] == {"ready": 2}


def test_deliveries_that_waited_are_done_once_on_the_target(shop: Shop, move: Any, moved: Any) -> None:
    for number in range(5):
        shop.place_order(f"{number}", email="ann@example.com")
    leased = shop.dispatcher.claim({"send_email_notification": 2})  # and its process is killed
    assert len(leased) == 2
    move()
    here = moved()
    here.clock.advance(here.settings.lease_seconds + 1)
    here.dispatch_all()
    here.clock.advance(3600)
    here.dispatch_all()
    assert {each.state for each in here.deliveries()} == {"done"}
    assert (here.user().orders_count, here.user().total_spent) == (5, Decimal("99.95"))
    assert len(here.mailer.outbox) == 5
    ok = here.execute_scalar("SELECT count(*) FROM attempts WHERE outcome = 'ok'")
    assert ok == here.count("deliveries")


def test_an_old_orders_post_is_recognised_and_another_one_is_refused(shop: Shop, move: Any, moved: Any) -> None:
    first = shop.post(total_price="0.10", email="ann@example.com")
    move()
    here = moved()
    again = here.post(total_price="0.1", email="ann@example.com")
    assert (again.status_code, again.json) == (200, first.json)
    assert again.headers["Idempotent-Replayed"] == "true"
    assert here.post(total_price="0.11").status_code == 409
    assert here.count("orders") == 1


def test_a_reader_of_the_feed_goes_on_where_it_was(shop: Shop, move: Any, moved: Any) -> None:
    for number in range(3):
        shop.place_order(f"{number}")
    page = shop.client.get("/api/events?limit=2").json
    move()
    here = moved()
    rest = here.client.get(f"/api/events?after={page['next']}").json
    assert [event["subject"] for event in rest["events"]] == ["2"]
    here.place_order("3")
    more = here.client.get(f"/api/events?after={rest['next']}").json
    assert [event["subject"] for event in more["events"]] == ["3"]


def test_no_number_is_given_twice_even_where_the_newest_were_pruned(shop: Shop, move: Any, moved: Any) -> None:
    for number in range(3):
        shop.place_order(f"{number}")
    shop.execute("DELETE FROM deliveries WHERE event_id = (SELECT event_id FROM orders WHERE order_id = '2')")
    shop.execute("DELETE FROM events WHERE order_id = '2'")
    move()
    here = moved()
    here.place_order("3")
    assert here.execute_all("SELECT position FROM events ORDER BY position") == [(1,), (2,), (4,)]
    assert [each.delivery_id for each in here.deliveries()] == [1, 2, 3, 4, 7, 8]


def test_foreign_keys_hold_afterwards(shop: Shop, move: Any, target: str) -> None:
    shop.place_order()
    move()
    engine = create_engine(target)
    with engine.connect() as connection:
        found = connection.execute(text("SELECT count(*) FROM pg_constraint WHERE contype = 'f'")).scalar_one()
    engine.dispose()
    assert found == sum(len(table.foreign_keys) for table in Base.metadata.sorted_tables)


# Refused


def test_a_service_that_runs_is_not_moved(shop: Shop, move: Any, target: str, file: Path) -> None:
    shop.place_order()
    with another_process_on(file):
        told = move(code=1)
    assert "stop the service" in told
    move()


class another_process_on:  # noqa: N801 - it reads as what it is
    """A process of another program that has the file open."""

    def __init__(self, file: Path) -> None:
        script = (
            "import sys, app.db\n"
            "connection = app.db.sqlite_module().connect(sys.argv[1])\n"
            "connection.execute('SELECT count(*) FROM orders').fetchall()\n"
            "print('open', flush=True)\nsys.stdin.read()\n"
        )
        self.process = subprocess.Popen(
            [sys.executable, "-c", script, str(file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=CHECKOUT
        )

    def __enter__(self) -> None:
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"open\n"

    def __exit__(self, *_: object) -> None:
        self.process.communicate()


def test_a_target_with_rows_is_left_alone(shop: Shop, move: Any, moved: Any) -> None:
    shop.place_order("1")
    move()
    told = move(code=1)
    assert "the target is not empty" in told
    assert moved().count("orders") == 1


@pytest.mark.parametrize(
    ("source", "to", "words"),
    [
        ("sqlite:////nowhere/orders.db", None, "there is no file"),
        ("postgresql+psycopg://localhost/x", None, "from SQLite to PostgreSQL only"),
        (None, "sqlite:////tmp/x.db", "from SQLite to PostgreSQL only"),
        (None, "nonsense", "--to is no database's URL"),
        (None, "postgresql+psycopg://postgres@127.0.0.1:1/x", "the target can't be used"),
    ],
)
def test_what_can_not_be_moved_is_told_in_a_line(
    move: Any, sqlite_url: str, target: str, source: str | None, to: str | None, words: str
) -> None:
    told = move(source=source or sqlite_url, to=to or target, code=1)
    assert words in told
    assert len(told.splitlines()) == 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("UPDATE alembic_version SET version_num = '0001'", "has schema 0001"),
        ("CREATE TABLE sales (id integer)", "differs from the code's in sales"),
        ("ALTER TABLE orders ADD COLUMN colour text", "differs from the code's in orders"),
        ("DROP TABLE alembic_version", "is no database of this service"),
    ],
)
def test_a_schema_that_differs_is_refused(
    shop: Shop, move: Any, file: Path, target: str, change: str, words: str
) -> None:
    shop.database.close()
    with closing(sqlite_module().connect(file)) as connection:
        connection.execute(change)
        connection.commit()
    assert words in move(code=1)


# Failures


def test_what_postgresql_can_not_hold_leaves_the_target_empty_and_the_move_can_be_run_again(
    shop: Shop, move: Any, target: str
) -> None:
    shop.place_order("good")
    shop.place_order("bad")
    shop.execute("UPDATE deliveries SET reason = 'a' || char(0) || 'b' WHERE delivery_id = 3")
    told = move(code=1)
    assert "row 3 of deliveries was not taken" in told
    assert is_empty(target)
    shop.execute("UPDATE deliveries SET reason = null")
    move()


def test_a_copy_that_differs_is_not_kept(shop: Shop, move: Any, target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Something on the target changes a price by a cent."""
    from app.db import move as module

    shop.place_order()
    original = module._copy_table

    def with_a_thief(reader: Any, writer: Any, table: Any, report: Any) -> None:
        original(reader, writer, table, report)
        if table.name == "orders":
            writer.driver.execute("UPDATE orders SET total_price = total_price - 0.01")

    monkeypatch.setattr(module, "_copy_table", with_a_thief)
    told = move(code=1)
    assert "orders.total_price differs after the copy: [1, 1999] in the file, [1, 1998] in the target" in told
    assert is_empty(target)


def test_a_move_that_is_killed_leaves_the_target_empty(
    shop: Shop, move: Any, sqlite_url: str, target: str, file: Path
) -> None:
    move_words = ["-m", "flask", "bus", "move", "--from", sqlite_url, "--to", target]
    for number in range(20):
        shop.place_order(f"{number}")
    shop.database.close()
    engine = create_engine(target)
    stopper = create_engine(target)
    move(code=0)  # which makes the schema; now it is emptied, and a lock holds the copying up in its middle
    names = ", ".join(table.name for table in Base.metadata.sorted_tables)
    with engine.begin() as connection:
        connection.execute(text(f"TRUNCATE {names}"))
        connection.execute(
            text(
                "CREATE FUNCTION stall() RETURNS trigger LANGUAGE plpgsql AS "
                "$$ BEGIN PERFORM pg_advisory_xact_lock(1); RETURN NEW; END $$"
            )
        )
        connection.execute(
            text("CREATE TRIGGER stall BEFORE INSERT ON deliveries FOR EACH ROW EXECUTE FUNCTION stall()")
        )
    with stopper.connect() as holder:
        holder.execute(text("SELECT pg_advisory_lock(1)"))
        process = subprocess.Popen([sys.executable, *move_words], cwd=CHECKOUT, stderr=subprocess.PIPE)
        waiting = text("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted")

        def stalls() -> bool:
            with engine.connect() as connection:
                return bool(connection.execute(waiting).scalar_one())

        wait_until(lambda: stalls() or process.poll() is not None, "the copy of the deliveries")
        assert process.poll() is None, process.stderr and process.stderr.read()
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        holder.execute(text("SELECT pg_advisory_unlock(1)"))
    wait_until(lambda: not_in_use(engine), "the server to notice")
    assert is_empty(target)
    with engine.begin() as connection:
        connection.execute(text("DROP TRIGGER stall ON deliveries"))
    move()
    assert contents(target) == contents(sqlite_url)
    for each in (engine, stopper):
        each.dispose()


def not_in_use(engine: Any) -> bool:
    """Whether no transaction holds the tables."""
    held = "SELECT count(*) FROM pg_locks WHERE mode = 'AccessExclusiveLock' AND locktype = 'relation'"
    with engine.connect() as connection:
        return connection.execute(text(held)).scalar_one() == 0
