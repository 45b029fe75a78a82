"""Backup and restore of a service that is at work, on both databases, with the commands that a person types."""

import os
import subprocess
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

from tests.acceptance.conftest import Serve
from tests.support import postgres
from tests.support.ledger import Ledger, Load, read
from tests.support.service import LIMIT, Client, Service
from tests.support.smtp import SmtpServer

Report = Callable[[str], None]


def db(service: Service, *words: object, code: int = 0) -> str:
    done = service.run("flask", "db", *map(str, words))
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_a_backup_under_load_has_all_that_was_acknowledged_before_and_can_be_served(
    serve: Serve, folder: Path, sink: SmtpServer, report: Report
) -> None:
    service = serve(web_concurrency=2, mail_server=sink.host, mail_port=sink.port).start()
    ledger, backups = Ledger(), folder / "backups"
    backups.mkdir()
    with Load(ledger, service.port, clients=2):
        ledger.wait_for(100)
        before = dict(ledger.acknowledged)
        for number in range(2):
            db(service, "backup", backups / f"{number}.db")
        during = len(ledger.acknowledged)
        ledger.wait_for(during + 50)
    assert not ledger.answers[503]
    for number in range(2):
        found = {row["order_id"] for row in read(f"sqlite:///{backups}/{number}.db", "SELECT order_id FROM orders")}
        assert before.keys() <= found <= ledger.acknowledged.keys()
    ledger.wait_until_settled(service.database_url)

    assert "open; stop the service" in db(service, "restore", backups / "0.db", "--yes", code=1)
    service.stop()
    db(service, "restore", backups / "0.db", "--yes")
    service.start()

    for order_id in before:
        assert service.get(f"/api/orders/{order_id}").status == 200
    assert service.post(**ledger.new_order().body).status == 201
    report(f"{len(before)} orders before the first backup, {during} at the end of the second")


@pytest.mark.postgres
def test_the_commands_that_are_told_for_postgresql_bring_the_service_to_another_server(
    serve: Serve, folder: Path, sink: SmtpServer, postgres_url: str, own_server: str
) -> None:
    mail = {"mail_server": sink.host, "mail_port": sink.port}
    service = serve(database_url=postgres_url, **mail).start()
    many_transactions(postgres_url)
    ledger = Ledger()
    with Load(ledger, service.port):
        ledger.wait_for(50)
    ledger.wait_until_settled(postgres_url)
    events = feed(service)
    dump = folder / "orders.dump"

    execute(command_for(service, "backup", dump))
    service.stop()
    restored = serve(database_url=own_server, **mail)
    execute(command_for(restored, "restore", dump))
    restored.start()

    for order_id in ledger.acknowledged:
        assert restored.get(f"/api/orders/{order_id}").status == 200
    with closing(Client(restored.port)) as client:
        ledger.place(client)
    ledger.wait_until_settled(own_server)
    found = feed(restored)
    assert sorted(found[: len(events)]) == sorted(events)
    assert len(found) == len(events) + 2
    ledger.check(own_server, sink.received, copies=0)


def many_transactions(url: str) -> None:
    """More than a new server has made at its start."""
    engine = create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(
            text("DO $$ BEGIN FOR i IN 1..3000 LOOP PERFORM pg_current_xact_id(); COMMIT; END LOOP; END $$")
        )
    engine.dispose()


def command_for(service: Service, *words: object) -> str:
    """The command line that is told in the place of one for SQLite."""
    return db(service, *words, code=1).strip().rpartition("database: " if "restore" in words else "its own: ")[2]


def execute(command: str) -> None:
    folder = postgres.binaries()
    environment = os.environ | {"PATH": f"{folder}:{os.environ['PATH']}"}
    done = subprocess.run(["sh", "-c", command], env=environment, capture_output=True, text=True, timeout=LIMIT)
    assert done.returncode == 0, f"{command}\n{done.stderr}"


def feed(service: Service) -> list[str]:
    """The ids of all events."""
    found: list[str] = []
    page = service.get("/api/events").body
    while page["events"]:
        found += [event["id"] for event in page["events"]]
        page = service.get(f"/api/events?after={page['next']}").body
    return found
