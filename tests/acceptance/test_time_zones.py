"""The server, the process that serves, the one that dispatches and the shell are each in another time zone."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any

import pytest
from sqlalchemy import create_engine, text

from app.db import Database, schema
from tests.acceptance.conftest import Serve
from tests.support import postgres
from tests.support.service import DISPATCHER, GUNICORN, Service, wait_until
from tests.support.smtp import SmtpServer

pytestmark = pytest.mark.postgres

SERVER, WEB, DISPATCH, SHELL = "Asia/Kathmandu", "America/St_Johns", "Pacific/Kiritimati", "Australia/Lord_Howe"
"""+05:45, -03:30, +14:00 and +10:30 or +11:00."""


@pytest.fixture
def database_url(postgres_server: str) -> Iterator[str]:
    with postgres.another_database(postgres_server, timezone=SERVER) as url:
        database = Database(url)
        schema.upgrade(database)
        database.close()
        yield url


def times_in(found: Any) -> list[datetime]:
    """Every time in a JSON document. Each is in UTC."""
    match found:
        case dict():
            return [time for value in found.values() for time in times_in(value)]
        case list():
            return [time for value in found for time in times_in(value)]
        case str() if found[:2] == "20" and found[10:11] == "T":
            assert found.endswith("Z")
            return [datetime.fromisoformat(found)]
        case _:
            return []


def test_every_time_is_right(serve: Serve, database_url: str, sink: SmtpServer) -> None:
    def at(zone: str, *command: str, **settings: Any) -> Service:
        made = serve(*command, database_url=database_url, **sink.settings, **settings)
        made.within = ["env", f"TZ={zone}"]
        return made

    web = at(WEB, *GUNICORN, dispatch_in_web=False).start(ready="/healthz")
    at(DISPATCH, *DISPATCHER, retry_policy="exponential", retry_base_seconds=0.2, retry_max_seconds=0.4).start()
    sink.on("MAIL", "451 4.3.0 later", times=1)
    began = datetime.now(UTC)
    assert web.post(order_id="1", user_id="2", total_price="3", email="a@ledger.example").status == 201
    wait_until(lambda: web.get("/api/orders/1").body["notification"] == "sent", "the mail, at its second try")
    ended = datetime.now(UTC)

    def are_between(times: list[datetime]) -> bool:
        return all(began - timedelta(seconds=1) <= time <= ended for time in times)

    story = web.get("/api/orders/1").body
    assert len(times_in(story)) > 10
    assert are_between(times_in(story))
    assert are_between(times_in(web.get("/api/users/2").body))
    assert are_between(times_in(web.get("/api/events").body))
    (mail,) = sink.received
    assert are_between([parsedate_to_datetime(str(mail.email["Date"]))])
    engine = create_engine(database_url)
    with engine.connect() as connection:
        assert connection.execute(text("SHOW timezone")).scalar_one() == SERVER
        rows = connection.execute(text("SELECT due_at, leased_at, created_at, settled_at FROM deliveries")).all()
    engine.dispose()
    assert are_between([time for row in rows for time in row])
    shell = at(SHELL)
    said = shell.run("flask", "doctor").stdout
    assert "those of this machine, of the dispatchers and of the database agree" in said
    hour = f"{datetime.now(UTC):%Y-%m-%d %H:}"
    assert hour in shell.run("flask", "bus", "status").stdout or datetime.now(UTC).minute == 0
