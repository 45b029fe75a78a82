"""What ``flask doctor`` says of a PostgreSQL server's connections, standbys and dead rows, on real servers."""

from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import make_url

from app.clock import Clock
from app.db import Database, postgresql_health, schema
from app.db.postgresql import application_name
from app.errors import DatabaseUnavailable
from config import Settings
from tests.support import postgres
from tests.support.postgres import Server
from tests.support.shop import Shop
from tests.support.waiting import until

pytestmark = pytest.mark.postgres


@pytest.fixture
def server() -> Iterator[Server]:
    """One with forty connections, three of which are kept for superusers, and nobody who vacuums."""
    if postgres.binaries() is None:
        pytest.skip("no PostgreSQL here: install its server")
    with postgres.new_server() as made:
        made.start(max_connections=40, autovacuum="off")
        with closing(Database(made.url)) as database:
            schema.upgrade(database)
        yield made


@pytest.fixture
def shop(server: Server, tmp_path: Path) -> Iterator[Shop]:
    given = Settings.of(database_url=server.url, mail_backend="memory", instance_path=tmp_path, log_level="ERROR")
    with closing(Shop(given, Clock())) as made:
        yield made


def doctor(shop: Shop, check: str) -> str:
    """What it says under that word."""
    said = shop.app.test_cli_runner().invoke(args=["doctor"]).output
    return "\n".join(line for line in said.splitlines() if f" {check}: " in line)


def connect(stack: ExitStack, server: Server, name: str, count: int = 1) -> list[psycopg.Connection]:
    """Connections under that application_name, until the stack ends."""
    url = make_url(server.url).set(drivername="postgresql").render_as_string()
    return [stack.enter_context(psycopg.connect(url, application_name=name)) for _ in range(count)]


def test_connections_that_processes_may_open_are_held_against_what_the_server_allows(
    shop: Shop, server: Server
) -> None:
    with ExitStack() as stack:
        said = doctor(shop, "connections")
        assert "0 of others are open, 37 are allowed; 0 processes may open 21 each (" in said
        assert said.startswith("fine ")
        connect(stack, server, "orders 77 web-1")
        said = doctor(shop, "connections")
        assert "; 1 processes may open 21 each (" in said
        assert said.startswith("fine ")

        connect(stack, server, "orders 78 web-2", count=2)
        connect(stack, server, "psql", count=3)
        said = doctor(shop, "connections")
        assert said.startswith("note ")
        assert "of ours and 3 of others are open, 37 are allowed; 2 processes" in said
        assert ": 46 in all; lower DATABASE_POOL_SIZE to 14, raise the server's max_connections by 12, or put" in said

        connect(stack, server, "orders 79 web-3", count=28)
        assert "wrong  connections: " in doctor(shop, "connections")


def test_what_is_advised_fits(shop: Shop, server: Server) -> None:
    with ExitStack() as stack:
        for n in range(3):
            connect(stack, server, f"orders {n} web")
        with shop.database.read() as session:
            found = postgresql_health.connections(session, "orders me", "orders", pool_size=20)
            assert found.wanted > found.room
            assert found.cure is not None
            advised = int(found.cure.split(" to ")[1].split(",")[0])
            assert postgresql_health.connections(session, "orders me", "orders", pool_size=advised).cure is None
            assert postgresql_health.connections(session, "orders me", "orders", pool_size=advised + 1).cure is not None


def test_a_limit_of_the_role_or_of_the_database_counts_too(shop: Shop, server: Server) -> None:
    server.execute("ALTER DATABASE postgres CONNECTION LIMIT 30")
    assert " 30 are allowed" in doctor(shop, "connections")
    server.execute("ALTER ROLE postgres CONNECTION LIMIT 25")
    assert " 25 are allowed" in doctor(shop, "connections")


def test_no_more_connections_are_opened_than_the_setting_says(server: Server) -> None:
    """However many threads ask; the others wait for one."""
    with closing(Database(server.url, pool_size=4, timeout=1)) as database, ExitStack() as stack:
        for _ in range(4):
            stack.enter_context(database.read()).connection()
        with pytest.raises(DatabaseUnavailable), database.read() as session:
            session.connection()
        mine = f"SELECT count(*) FROM pg_stat_activity WHERE application_name = '{application_name()}'"
        assert server.execute(mine) == [(4,)]


def test_dead_rows_that_no_vacuum_removes_are_noticed_with_what_keeps_them(
    shop: Shop, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop.place_order()
    monkeypatch.setattr(postgresql_health, "DEAD_ROWS", 500)
    assert "dead rows" not in doctor(shop, "database")
    server.execute("ALTER TABLE deliveries SET (autovacuum_enabled = off)")
    with ExitStack() as stack:
        (reader,) = connect(stack, server, "a report")
        reader.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        reader.execute("SELECT count(*) FROM deliveries")
        server.execute(
            "DO $$ BEGIN FOR n IN 1..400 LOOP UPDATE deliveries SET due_at = due_at + interval '1 s'; END LOOP; END $$"
        )
        until(lambda: "the table deliveries has " in doctor(shop, "database"))
        said = doctor(shop, "database")
        assert "dead rows beside " in said
        assert "never vacuumed, so claims get slower; see that autovacuum is on" in said
        monkeypatch.setattr(postgresql_health, "OLD_TRANSACTION_SECONDS", 0)
        assert f"process {reader.info.backend_pid} (a report) has had a transaction open" in doctor(shop, "database")
    server.execute("VACUUM deliveries")
    until(lambda: "dead rows" not in doctor(shop, "database"))


def test_an_index_that_is_mostly_empty_is_noticed(shop: Shop, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgresql_health, "LARGE_INDEX_BYTES", 100_000)
    assert "REINDEX" not in doctor(shop, "database")
    server.execute(
        "INSERT INTO events (event_id, type, version, source, order_id, user_id, data, occurred_at, correlation_id, "
        "transaction_id) SELECT 'e' || n, 'OrderCreated', 1, '/', n, '1', '{}', now(), 'c', 0 "
        "FROM generate_series(1, 5000) AS n"
    )
    server.execute(
        "INSERT INTO deliveries (event_id, receiver, state, due_at, attempts, lease_token, created_at) "
        "SELECT 'e' || n, 'update_user_order_record', 'ready', now() + interval '1 day', 0, 0, now() "
        "FROM generate_series(1, 5000) AS n"
    )
    server.execute("UPDATE deliveries SET state = 'done'")
    server.execute("VACUUM deliveries")
    assert "REINDEX INDEX CONCURRENTLY deliveries_due" in doctor(shop, "database")
    server.execute("REINDEX INDEX CONCURRENTLY deliveries_due")
    server.execute("VACUUM deliveries")
    assert "REINDEX" not in doctor(shop, "database")


def test_a_standby_that_no_commit_waits_for_is_noticed(shop: Shop, server: Server) -> None:
    assert "standby" not in doctor(shop, "database")
    with postgres.standby(server.url):
        assert "a standby follows this server, and no commit waits for it" in doctor(shop, "database")
        server.execute("ALTER SYSTEM SET synchronous_standby_names = 'walreceiver'")
        server.execute("SELECT pg_reload_conf()")
        until(lambda: "standby" not in doctor(shop, "database"))
        server.execute("ALTER SYSTEM RESET synchronous_standby_names")
        server.execute("SELECT pg_reload_conf()")
