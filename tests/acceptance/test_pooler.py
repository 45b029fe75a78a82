"""The whole flow behind PgBouncer in transaction mode, with real processes."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.conftest import Serve
from tests.support import postgres
from tests.support.ledger import Customers, Ledger
from tests.support.postgres import PgBouncer
from tests.support.service import DISPATCHER, GUNICORN, Service, wait_until
from tests.support.smtp import SmtpServer

pytestmark = [
    pytest.mark.postgres,
    pytest.mark.timeout(180),
    pytest.mark.skipif(postgres.pooler() is None, reason="no PgBouncer here"),
]

DATABASE_TIMEOUT = 3

Report = Callable[[str], None]


@pytest.fixture
def pooler(postgres_url: str) -> Iterator[PgBouncer]:
    with postgres.pgbouncer(postgres_url, "transaction") as started:
        yield started


@pytest.fixture
def machine(serve: Serve, sink: SmtpServer, tmp_path: Path) -> Callable[..., Service]:
    """Makes services that share no temporary folder, and so no socket by which they could wake each other."""

    def make(*command: str, **settings: Any) -> Service:
        given = {"database_timeout": DATABASE_TIMEOUT, "log_level": "WARNING"} | sink.settings | settings
        made = serve(*command, **given)
        folder = tmp_path / f"{made.port}"
        folder.mkdir()
        made.within = ["env", f"TMPDIR={folder}"]
        return made

    return make


def test_orders_are_dealt_with_once_also_when_the_pooler_is_restarted(
    machine: Callable[..., Service], pooler: PgBouncer, postgres_url: str, sink: SmtpServer, report: Report
) -> None:
    """Two machines that serve and two that dispatch, all of them through it; it has four connections for all."""
    webs = [machine(*GUNICORN, web_concurrency=2, dispatch_in_web=False, database_url=pooler.url) for _ in range(2)]
    dispatchers = [machine(*DISPATCHER, database_url=pooler.url, poll_seconds=0.5) for _ in range(2)]
    for service in (*webs, *dispatchers):
        service.launch()
    for web in webs:
        web.wait_for_answer("/readyz")
    ledger = Ledger(os.getpid())

    with Customers(ledger, *[web.port for web in webs], clients=8) as customers:
        ledger.wait_for(100)
        pooler.stop()
        wait_until(lambda: ledger.answers[503] > 4, "orders that are answered 503")
        pooler.start()
        ledger.wait_for(len(ledger.acknowledged) + 100)

    ledger.wait_until_settled(postgres_url)
    figures = ledger.check(postgres_url, sink.received, copies=0)
    report(f"{customers.outage()}; {figures}")
    assert (figures.lost, figures.unknown, figures.unknown_attempts) == (0, 0, 0)
    for dispatcher in dispatchers:
        dispatcher.wait_for_log("a pooler in transaction mode stands before PostgreSQL")
    doctor = webs[0].run("flask", "doctor").stdout
    assert "a pooler stands before the server: no statement is prepared" in doctor


def test_a_dispatcher_that_reaches_the_server_itself_is_woken_at_once_by_what_serves_behind_the_pooler(
    machine: Callable[..., Service], pooler: PgBouncer, postgres_url: str, sink: SmtpServer
) -> None:
    """Its poll is a minute away."""
    web = machine(*GUNICORN, dispatch_in_web=False, database_url=pooler.url, poll_seconds=60).launch()
    dispatcher = machine(*DISPATCHER, database_url=postgres_url, poll_seconds=60, log_level="INFO").start()
    web.wait_for_answer("/readyz")
    for n in range(3):
        assert web.post(order_id=f"{n}", user_id="1", total_price=1, email=f"{n}@ledger.example").status == 201
        wait_until(lambda n=n: len(sink.received) == n + 1, f"mail {n}", 20)  # type: ignore[misc]
    assert "only the poll" not in dispatcher.log


def test_what_a_pooler_refuses_is_said_at_the_start(
    machine: Callable[..., Service], pooler: PgBouncer, postgres_url: str
) -> None:
    """PgBouncer takes no start-up options."""
    service = machine(*GUNICORN, database_url=f"{pooler.url}?options=-c%20work_mem%3D8MB").launch()
    service.wait_for_log("unsupported startup parameter")
    assert "PostgreSQL can't be reached; requests are answered 503 until it can: " in service.log
