"""What is relied on of a PostgreSQL server: set, read back, and refused with one line where it can't be had.

Servers that stop writing, standbys and poolers are real ones.
"""

import select
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, text

from app.clock import Clock
from app.db import Database, postgresql, schema
from app.db.postgresql import milliseconds
from app.errors import DatabaseUnusable
from app.events import OrderCreated
from config import Settings
from tests.support import postgres
from tests.support.api import listening
from tests.support.shop import Shop
from tests.support.waiting import until

pytestmark = pytest.mark.postgres


@contextmanager
def a_shop(url: str, **more: Any) -> Iterator[Shop]:
    """A shop in real time, on a database that is brought up to date."""
    with closing(Database(url)) as database:
        schema.upgrade(database)
    given: dict[str, Any] = {"database_timeout": 1, "poll_seconds": 60, "lease_seconds": 5, "log_level": "ERROR"}
    with closing(Shop(Settings.of(database_url=url, mail_backend="memory", **given | more), Clock())) as shop:
        yield shop


def shown(transaction_or_session: Any, *names: str) -> list[str]:
    session = getattr(transaction_or_session, "session", transaction_or_session)
    return [session.execute(text(f"SHOW {name}")).scalar_one() for name in names]


# Settings


def test_what_is_relied_on_holds_whatever_the_administrator_has_set(
    postgres_server: str, tmp_path: Path, engine_settings: dict[str, str]
) -> None:
    odd = {
        "datestyle": "SQL, DMY",
        "timezone": "Asia/Kathmandu",
        "client_encoding": "LATIN1",
        "synchronous_commit": "off",
        "default_transaction_isolation": "serializable",
        "lock_timeout": "0",
    }
    patient = {"instance_path": tmp_path, "database_timeout": 15}
    with postgres.another_database(postgres_server, **odd) as url, a_shop(url, **patient, **engine_settings) as shop:
        formats = ("datestyle", "timezone", "client_encoding", "lock_timeout", "idle_in_transaction_session_timeout")
        with shop.database.read() as session:
            assert shown(session, *formats) == ["ISO, MDY", "UTC", "UTF8", "2s", "1min"]
            assert shown(session, "transaction_isolation") == ["repeatable read"]
        found = shop.database.transact(lambda t: shown(t, "synchronous_commit", "transaction_isolation", *formats))
        assert found == ["local", "read committed", "ISO, MDY", "UTC", "UTF8", "2s", "1min"]
        shop.engine.start()
        assert shop.post(email="李@example.com").status_code == 422, "text of every kind reaches the checks"
        assert shop.post().status_code == 201
        until(lambda: shop.order().notification == "sent")


@pytest.mark.parametrize("stricter", ["on", "remote_apply"])
def test_a_commit_that_waits_for_more_is_left_as_it_is(postgres_server: str, stricter: str) -> None:
    with (
        postgres.another_database(postgres_server, synchronous_commit=stricter) as url,
        closing(Database(url)) as database,
    ):
        assert database.transact(lambda t: shown(t, "synchronous_commit")) == [stricter]


@pytest.mark.parametrize(
    ("seconds", "words"), [(60, "1min"), (90, "90s"), (2.0, "2s"), (0.5, "500ms"), (1.25, "1250ms"), (120, "2min")]
)
def test_times_are_written_as_the_server_shows_them(postgres_url: str, seconds: float, words: str) -> None:
    assert milliseconds(seconds) == words
    with closing(Database(postgres_url)) as database, database.read() as session:
        found = session.execute(text("SELECT set_config('lock_timeout', :words, true)"), {"words": words})
        assert found.scalar_one() == words


def test_a_setting_that_the_server_takes_otherwise_stops_the_start(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PostgreSQL itself takes what it is told; what speaks its protocol may not."""
    monkeypatch.setattr(postgresql, "FORMATS", {"DateStyle": "iso, mdy"})
    with closing(Database(postgres_url, timeout=1)) as database:
        with pytest.raises(DatabaseUnusable, match=r"refuses DateStyle='iso, mdy' \(it stays 'ISO, MDY'\)"):
            schema.prepare(database)
        monkeypatch.setattr(postgresql, "FORMATS", {"no_such_setting": "1"})
        with pytest.raises(DatabaseUnusable, match='unrecognized configuration parameter "no_such_setting"'):
            schema.prepare(database)


@pytest.mark.parametrize("encoding", ["SQL_ASCII", "LATIN1"])
def test_another_encoding_stops_the_start_with_one_line_and_the_cure(postgres_server: str, encoding: str) -> None:
    with postgres.another_database(postgres_server, encoding) as url, closing(Database(url, timeout=1)) as database:
        with pytest.raises(DatabaseUnusable) as raised:
            schema.prepare(database)
        said = str(raised.value)
        assert encoding in said
        assert "createdb --encoding=UTF8" in said
        assert "\n" not in said
        with pytest.raises(DatabaseUnusable):
            schema.upgrade(database)


# A server that only reads


class Hanging:
    """A receiver that notes its calls, and hangs until it is let go."""

    __name__ = "hanging"

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.let_go = threading.Event()

    def __call__(self, sender: str, event: OrderCreated) -> None:
        self.calls.append(event.order_id)
        self.let_go.wait(30)


def make_read_only(url: str, *, on: bool) -> None:
    engine = create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(f"ALTER SYSTEM SET default_transaction_read_only = {'on' if on else 'off'}"))
        connection.execute(text("SELECT pg_reload_conf()"))
    engine.dispose()


@pytest.mark.inprocess("one process tells an outage once")
def test_a_server_that_only_reads_for_a_while_loses_nothing(
    own_server: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, engine_settings: dict[str, str]
) -> None:
    """Orders are answered 503 meanwhile, with a line each; what receivers did is stored when it writes again."""
    hanging = Hanging()
    with a_shop(own_server, instance_path=tmp_path, log_level="WARNING", **engine_settings) as shop:
        shop.only(hanging, concurrency=4)
        shop.engine.start()
        for n in range(4):
            assert shop.post(order_id=f"{n}").status_code == 201
        until(lambda: len(hanging.calls) == 4)

        make_read_only(own_server, on=True)
        with listening(caplog) as heard:
            until(lambda: shop.post(order_id="meanwhile").status_code == 503)
            assert "Retry-After" in shop.post(order_id="meanwhile").headers
            hanging.let_go.set()
            until(lambda: "database lost" in heard.text)
            assert "cannot execute" in heard.text
            assert "read-only transaction" in heard.text
            doctor = shop.app.test_cli_runner().invoke(args=["doctor"]).output
            assert "the server only reads: orders are answered 503" in doctor
        assert "Traceback" not in heard.text
        assert heard.text.count("database lost") == 1
        assert "result not stored" not in heard.text, "it is the database's trouble, and no answer's"

        make_read_only(own_server, on=False)
        until(lambda: shop.post(order_id="meanwhile").status_code in (200, 201))
        until(lambda: {delivery.state for delivery in shop.deliveries()} == {"done"}, 15)
        assert sorted(hanging.calls) == ["0", "1", "2", "3", "meanwhile"], "each once"
        assert shop.execute_scalar("SELECT count(*) FROM attempts WHERE outcome <> 'ok'") == 0


def test_a_standby_is_unavailable_until_it_is_promoted(
    own_server: str, tmp_path: Path, engine_settings: dict[str, str]
) -> None:
    """Then it serves, with no connection left that leads to what it was."""
    with a_shop(own_server, instance_path=tmp_path), postgres.standby(own_server) as url:
        given = Settings.of(
            database_url=url, mail_backend="memory", database_timeout=1, instance_path=tmp_path, **engine_settings
        )
        with closing(Shop(given.model_copy(update={"log_level": "ERROR"}), Clock())) as shop:
            shop.database.check_schema()
            shop.engine.start()
            assert shop.post().status_code == 503
            assert shop.client.get("/api/orders").status_code == 200, "it can be read"
            promote = create_engine(url, isolation_level="AUTOCOMMIT")
            with promote.connect() as connection:
                assert connection.execute(text("SELECT pg_promote()")).scalar_one()
            promote.dispose()
            until(lambda: shop.post().status_code in (200, 201))
            until(lambda: shop.order().notification == "sent")


# Poolers


@pytest.mark.parametrize("pool_mode", ["transaction", "session"])
def test_through_pgbouncer_every_order_is_dealt_with_once(
    own_server: str, tmp_path: Path, pool_mode: str, engine_settings: dict[str, str]
) -> None:
    """In transaction mode each transaction may be on another of the server's connections, of which there are few."""
    if postgres.pooler() is None:
        pytest.skip("no PgBouncer here")
    statuses: list[int] = []
    with (
        postgres.pgbouncer(own_server, pool_mode) as pooler,
        a_shop(pooler.url, instance_path=tmp_path, database_timeout=20, **engine_settings) as shop,
    ):

        def customer(number: int) -> None:
            client = shop.app.test_client()
            for n in range(25):
                order = {"order_id": f"{number}-{n}", "user_id": f"{number}", "total_price": "0.10"}
                statuses.append(client.post("/api/create_order", json=order).status_code)

        shop.engine.start()
        until(lambda: shop.count("dispatchers") >= 1)  # so connections are there that the first orders use
        threads = [threading.Thread(target=customer, args=[number]) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert statuses == [201] * 200
        until(lambda: shop.execute_scalar("SELECT count(*) FROM deliveries WHERE state <> 'done'") == 0, 60)
        assert shop.execute_scalar("SELECT count(*) FROM attempts WHERE outcome <> 'ok'") == 0
        copies = [message.msgId for message in shop.mailer.outbox]
        assert len(copies) == len(set(copies)) == 200
        assert [shop.user(f"{number}").orders_count for number in range(8)] == [25] * 8
        found = shop.database.transact(
            lambda t: shown(t, "lock_timeout", "idle_in_transaction_session_timeout", "synchronous_commit")
        )
        assert found == ["2s", "1min", "local"]
        assert shop.count("pg_prepared_statements") == 0, "the next session may lack them, or have others by that name"
        doctor = shop.app.test_cli_runner().invoke(args=["doctor"]).output
        assert "a pooler stands before the server" in doctor
        assert "lock_timeout=2s" in doctor


@pytest.mark.parametrize("pool_mode", ["transaction", "session"])
def test_a_listener_behind_pgbouncer_finds_out_whether_it_hears(
    own_server: str, caplog: pytest.LogCaptureFixture, pool_mode: str
) -> None:
    """In transaction mode PgBouncer keeps what LISTEN asks for: nobody listens then, and one line says so."""
    if postgres.pooler() is None:
        pytest.skip("no PgBouncer here")
    with (
        postgres.pgbouncer(own_server, pool_mode) as pooler,
        closing(Database(pooler.url)) as database,
        closing(Database(own_server)) as notifier,
    ):
        listeners = [database.dialect.listen("deliveries") for _ in range(3)]
        notifier.dialect.notify("deliveries")
        if pool_mode == "transaction":
            assert listeners == [None] * 3
            assert caplog.text.count("can't wake this dispatcher, only the poll") == 1
            return
        assert caplog.text == ""
        for listener in listeners:
            assert listener is not None
            assert select.select([listener], [], [], 20)[0]
            listener.close()


def test_a_server_ends_what_its_client_has_given_up(postgres_url: str) -> None:
    """A little later than the client; and a migration has no such limit."""
    with closing(Database(postgres_url, timeout=3)) as database:
        settings = database.transact(lambda t: shown(t, "statement_timeout", "tcp_keepalives_idle", "tcp_user_timeout"))
        assert settings == ["5s", "30", "1500"]
        with database.dialect.exclusive(3) as connection:
            assert connection.execute(text("SHOW statement_timeout")).scalar_one() == "0"
