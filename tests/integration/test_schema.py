"""Migrations: they agree with the models, lose nothing, and any number of processes may race."""

import multiprocessing
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine, inspect, select, text

from app.bus.tables import Attempt, CircuitBreaker, Delivery
from app.clock import iso
from app.db import SCHEMA_REVISION, Database, schema
from app.errors import SchemaAhead, SchemaBehind
from tests.support.postgres import another_database
from tests.support.shop import START
from tests.support.waiting import somebody_waits, until

RACERS = 4


def test_models_and_migrations_agree(database_url: str) -> None:
    database = Database(database_url)
    schema.check(database)
    database.close()


def test_the_revision_that_the_code_knows_is_the_newest() -> None:
    assert ScriptDirectory(str(schema.MIGRATIONS)).get_heads() == [SCHEMA_REVISION]


def test_a_new_sqlite_file_is_brought_up_to_date(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path}/new/orders.db")
    assert database.schema_revision() is None
    schema.prepare(database)
    assert database.schema_revision() == SCHEMA_REVISION
    schema.prepare(database)
    database.close()


def _prepare(url: str, start: object) -> None:
    start.wait()  # type: ignore[attr-defined]  # of multiprocessing.Barrier, whose type is private
    database = Database(url)
    schema.upgrade(database)
    database.check_schema()
    database.close()


def _race(url: str) -> list[int | None]:
    spawn = multiprocessing.get_context("spawn")
    start = spawn.Barrier(RACERS)
    racers = [spawn.Process(target=_prepare, args=(url, start)) for _ in range(RACERS)]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join(60)
    return [racer.exitcode for racer in racers]


def test_processes_that_race_to_upgrade_a_new_sqlite_file_all_succeed(tmp_path: Path) -> None:
    assert _race(f"sqlite:///{tmp_path}/orders.db") == [0] * RACERS


@pytest.mark.postgres
def test_processes_that_race_to_upgrade_postgresql_all_succeed(postgres_server: str) -> None:
    engine = create_engine(postgres_server, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text("DROP DATABASE IF EXISTS racing"))
        connection.execute(text("CREATE DATABASE racing"))
    url = engine.url.set(database="racing").render_as_string(hide_password=False)
    assert _race(url) == [0] * RACERS
    with engine.connect() as connection:
        connection.execute(text("DROP DATABASE racing"))
    engine.dispose()


@pytest.mark.postgres
def test_postgresql_that_is_behind_says_what_to_run(postgres_server: str) -> None:
    engine = create_engine(postgres_server, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text("DROP DATABASE IF EXISTS behind"))
        connection.execute(text("CREATE DATABASE behind"))
    database = Database(engine.url.set(database="behind").render_as_string(hide_password=False))
    with pytest.raises(SchemaBehind, match="did you forget to run 'flask db upgrade'"):
        schema.prepare(database)
    database.close()
    with engine.connect() as connection:
        connection.execute(text("DROP DATABASE behind"))
    engine.dispose()


@pytest.mark.postgres
def test_an_upgrade_that_meets_a_service_in_a_deadlock_is_run_again(postgres_server: str) -> None:
    """The service's transaction goes on. It has one table, and wants the other, which the upgrade has."""
    from alembic import command

    with (
        another_database(postgres_server, deadlock_timeout="2s") as url,
        closing(Database(url, timeout=60)) as database,
    ):
        schema.upgrade(database)
        with schema.migrating(database) as config:
            command.downgrade(config, "0007")
        service = create_engine(url)
        with service.begin() as transaction, ThreadPoolExecutor(1) as threads:
            transaction.execute(text("SET LOCAL deadlock_timeout = '60s'"))  # so that it is not the victim itself
            transaction.execute(text("LOCK TABLE deliveries IN ROW EXCLUSIVE MODE"))
            upgraded = threads.submit(schema.upgrade, database)
            until(lambda: somebody_waits(database))
            transaction.execute(text("LOCK TABLE orders IN ROW EXCLUSIVE MODE"))
            transaction.commit()
            upgraded.result(60)
        service.dispose()
        database.check_schema()


def set_revision(database: Database, revision: str) -> None:
    database.transact(
        lambda transaction: transaction.session.execute(text(f"UPDATE alembic_version SET version_num = '{revision}'"))
    )


@pytest.mark.parametrize("step", [Database.check_schema, schema.prepare, schema.upgrade, schema.check])
def test_a_database_of_newer_code_is_left_alone_and_told(database_url: str, step: Callable[[Database], None]) -> None:
    """A start, and what changes the schema, name both revisions and the cure."""
    database = Database(database_url)
    set_revision(database, "9999")
    try:
        with pytest.raises(SchemaAhead, match=f"is at 9999, .* whose schema is {SCHEMA_REVISION}; start the newer"):
            step(database)
        assert database.schema_revision() == "9999"
    finally:
        set_revision(database, SCHEMA_REVISION)
        database.close()


def test_rebuilding_a_parent_table_keeps_the_rows_that_point_to_it(sqlite_url: str, tmp_path: Path) -> None:
    """SQLite alters by drop and rename; with foreign keys on, and a cascade, the children would go with the parent."""
    database = Database(sqlite_url)
    with database.dialect.exclusive(10) as connection:
        connection.execute(text("CREATE TABLE parent (id INTEGER PRIMARY KEY, name TEXT)"))
        connection.execute(
            text("CREATE TABLE child (id INTEGER PRIMARY KEY, p INTEGER REFERENCES parent ON DELETE CASCADE)")
        )
        connection.execute(text("INSERT INTO parent VALUES (1, 'a')"))
        connection.execute(text("INSERT INTO child VALUES (1, 1)"))
    versions = tmp_path / "migrations"
    shutil.copytree(schema.MIGRATIONS, versions)
    (versions / "versions" / "9999_rebuild.py").write_text(
        "from alembic import op\nimport sqlalchemy as sa\n"
        f"revision = '9999'\ndown_revision = '{SCHEMA_REVISION}'\nbranch_labels = depends_on = None\n"
        "def upgrade():\n    with op.batch_alter_table('parent', recreate='always') as t:\n"
        "        t.alter_column('name', type_=sa.String(5))\n"
        "def downgrade(): pass\n"
    )
    original, schema.MIGRATIONS = schema.MIGRATIONS, versions
    try:
        schema.upgrade(database)
    finally:
        schema.MIGRATIONS = original
    with database.read() as session:
        assert session.execute(text("SELECT count(*) FROM child")).scalar_one() == 1
        assert session.execute(text("SELECT count(*) FROM parent")).scalar_one() == 1
    database.close()


def test_a_downgrade_and_an_upgrade_end_where_they_began(database_url: str) -> None:
    from alembic import command

    database = Database(database_url)
    before = set(inspect(database.engine).get_table_names())
    with schema.migrating(database) as config:
        command.downgrade(config, "base")
    assert set(inspect(database.engine).get_table_names()) == {"alembic_version"} | ({"sqlite_sequence"} & before)
    schema.upgrade(database)
    schema.check(database)
    assert set(inspect(database.engine).get_table_names()) == before
    database.close()


def test_open_breakers_are_carried_over_from_the_gates_of_before(database_url: str) -> None:
    """A row that was written by older code is there after the upgrade, and after a downgrade too."""
    from alembic import command

    database = Database(database_url)
    row = {"receiver": "send_email_notification", "failures": 3, "moment": START, "probe": START + timedelta(minutes=1)}
    times = {name: iso(row[name]) if database.dialect.file else row[name] for name in ("moment", "probe")}
    with schema.migrating(database) as config:
        command.downgrade(config, "0001")
    insert = (
        "INSERT INTO gates (receiver, closed_at, failures, probe_at) VALUES (:receiver, :moment, :failures, :probe)"
    )
    database.transact(lambda transaction: transaction.session.execute(text(insert), row | times))

    schema.upgrade(database)
    with database.read() as session:
        (breaker,) = session.scalars(select(CircuitBreaker))
    assert (breaker.receiver, breaker.failures) == ("send_email_notification", 3)
    assert (breaker.opened_at, breaker.probe_at) == (row["moment"], row["probe"])

    with schema.migrating(database) as config:
        command.downgrade(config, "0001")
    with database.read() as session:
        assert session.execute(text("SELECT receiver, failures FROM gates")).all() == [("send_email_notification", 3)]
    schema.upgrade(database)
    database.close()


def test_events_from_before_traces_are_kept(database_url: str) -> None:
    """And while the old code still runs on the new schema, its events have none."""
    from alembic import command

    database = Database(database_url)
    with schema.migrating(database) as config:
        command.downgrade(config, "0006")
    moment = iso(START) if database.dialect.file else START
    insert = (
        "INSERT INTO events (event_id, type, version, source, order_id, user_id, data, occurred_at, correlation_id, "
        "transaction_id) VALUES (:id, 'OrderCreated', 1, 'test', '1', '2', '{}', :moment, :id, 0)"
    )

    def store(event_id: str) -> None:
        database.transact(lambda t: t.session.execute(text(insert), {"id": event_id, "moment": moment}))

    store("before")
    schema.upgrade(database)
    store("meanwhile")
    with database.read() as session:
        found = session.execute(text("SELECT event_id, traceparent FROM events ORDER BY position")).all()
    assert found == [("before", None), ("meanwhile", None)]
    database.close()


def test_what_was_stored_before_retries_learned_is_kept(database_url: str) -> None:
    """An open breaker, a delivery that waits, and its attempt: through 0006 and back."""
    from alembic import command

    database = Database(database_url)
    with schema.migrating(database) as config:
        command.downgrade(config, "0005")
    at = iso(START) if database.dialect.file else START
    inserts = [
        "INSERT INTO events (event_id, type, version, source, order_id, user_id, data, occurred_at, correlation_id,"
        " transaction_id) VALUES ('e', 'OrderCreated', 1, '/', '1', '2', '{}', :at, 'e', 0)",
        "INSERT INTO deliveries (event_id, receiver, state, due_at, attempts, lease_token, outcome, reason, created_at)"
        " VALUES ('e', 'mail', 'ready', :at, 1, 1, 'unreachable', 'refused', :at)",
        "INSERT INTO attempts (delivery_id, lease_token, outcome, detail, started_at, ended_at)"
        " SELECT delivery_id, 1, 'unreachable', 'refused', :at, :at FROM deliveries",
        "INSERT INTO circuit_breakers (receiver, opened_at, failures, probe_at) VALUES ('mail', :at, 3, :at)",
    ]
    database.transact(lambda t: [t.session.execute(text(each), {"at": at}) for each in inserts])

    def kept() -> list[Any]:
        with database.read() as session:
            return [
                session.execute(text("SELECT receiver, state, attempts, outcome, reason FROM deliveries")).one(),
                session.execute(text("SELECT outcome, detail, lease_token FROM attempts")).one(),
                session.execute(text("SELECT receiver, failures FROM circuit_breakers")).one(),
            ]

    before = kept()
    schema.upgrade(database)
    assert kept() == before
    with database.read() as session:
        assert session.scalars(select(CircuitBreaker)).one().opened_at == START
        attempt, delivery = session.scalars(select(Attempt)).one(), session.scalars(select(Delivery)).one()
        assert (attempt.reply_code, attempt.enhanced_code, attempt.why) == (None, None, None)
        assert (delivery.obstacle, delivery.due_because) == (None, None)
    closed = "INSERT INTO circuit_breakers (receiver, failures, gate) VALUES ('closed', 0, '{}')"
    database.transact(lambda t: t.session.execute(text(closed)))
    with schema.migrating(database) as config:
        command.downgrade(config, "0005")
    assert kept() == before, "a gate that is closed is no breaker there"
    schema.upgrade(database)
    database.close()


@pytest.mark.postgres
def test_deliveries_are_vacuumed_by_their_number(bare_postgres_url: str) -> None:
    """Through 0010 and back; SQLite has no such settings, and its test is that a downgrade ends where it began."""
    from alembic import command

    database = Database(bare_postgres_url)

    def options() -> list[str]:
        with database.read() as session:
            found = session.execute(text("SELECT reloptions FROM pg_class WHERE relname = 'deliveries'")).scalar_one()
        return sorted(found or [])

    schema.upgrade(database)
    expected = ["autovacuum_vacuum_scale_factor=0.002", "autovacuum_vacuum_threshold=10000", "vacuum_index_cleanup=on"]
    assert options() == expected
    with schema.migrating(database) as config:
        command.downgrade(config, "0009")
    assert options() == []
    schema.upgrade(database)
    assert options() == expected
    database.close()
