"""A primary goes away, or only reads, and its standby takes over, under real servers and real processes.

Commits wait for the standby (``synchronous_standby_names``), so that it has all that was acknowledged.
"""

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, Self

import pytest

from app.db import Database, schema
from tests.acceptance.conftest import Serve
from tests.support import postgres
from tests.support.ledger import Customers, Ledger
from tests.support.postgres import Door, Server
from tests.support.service import GUNICORN, Service, wait_until
from tests.support.smtp import SmtpServer

pytestmark = [pytest.mark.postgres, pytest.mark.timeout(180)]

SECONDS_TO_GO_ON = 12.0
"""From the promotion until orders are taken again. One second on a machine that has nothing else to do."""

SETTINGS: dict[str, Any] = {
    "database_timeout": 2,
    "lease_seconds": 3,
    "poll_seconds": 60,
    "log_level": "WARNING",
}

LEASES_THAT_HOLD = f"""SELECT count(*) FROM deliveries WHERE state = 'leased'
    AND due_at > now() - interval '{SETTINGS["lease_seconds"]} seconds'"""
"""Or ran out a moment ago."""

Report = Callable[[str], None]


class Pair:
    """A primary and its standby, and a name that leads to the primary."""

    def __init__(self, primary: Server, standby: Server, door: Door) -> None:
        self.primary, self.standby, self.door = primary, standby, door

    @property
    def hosts(self) -> str:
        """A URL that names both."""
        hosts = "&".join(f"host={each.host}:{each.port}" for each in (self.primary, self.standby))
        return f"postgresql+psycopg://postgres@/postgres?{hosts}&target_session_attrs=read-write"

    def promote(self) -> None:
        self.standby.promote()
        self.door.lead_to(self.standby.url)


@pytest.fixture
def pair() -> Iterator[Pair]:
    if postgres.binaries() is None:
        pytest.skip("no PostgreSQL here: install its server")
    with postgres.new_server() as primary, postgres.server_folder() as folder, Server(folder) as standby:
        primary.start(synchronous_commit="on")
        with closing(Database(primary.url)) as database:
            schema.upgrade(database)
        standby.follow(primary, "standby")
        standby.start(synchronous_commit="on")
        primary.execute("ALTER SYSTEM SET synchronous_standby_names = standby")
        primary.execute("SELECT pg_reload_conf()")
        sync = "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'"
        wait_until(lambda: primary.execute(sync) == [(1,)], "the standby")
        with Door(primary.url) as door:
            door.open()
            yield Pair(primary, standby, door)


class Follower:
    """Reads the feed of events, page by page from where it was, in a thread of its own."""

    def __init__(self, service: Service) -> None:
        self._service, self._ids, self._after = service, [], ""  # type: tuple[Service, list[str], str]
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join(30)

    def read(self, count: int) -> list[str]:
        """What it has read, once these are so many."""
        wait_until(lambda: self._page() or len(self._ids) >= count, f"{count} events")
        return self._ids

    def _follow(self) -> None:
        while not self._stopping.is_set():
            self._page()

    def _page(self) -> None:
        answer = self._service.get(f"/api/events?limit=20&after={self._after}")
        if answer.status == 200:
            self._ids += [event["id"] for event in answer.body["events"]]
            self._after = answer.body["next"] or self._after


def crashes(pair: Pair) -> None:
    pair.primary.stop("immediate")


def only_reads(pair: Pair) -> None:
    """As one that is demoted; it runs on, with all its connections."""
    pair.primary.execute("ALTER SYSTEM SET default_transaction_read_only = on")
    pair.primary.execute("SELECT pg_reload_conf()")


@pytest.mark.parametrize("happens", [crashes, only_reads], ids=["the primary crashes", "the primary only reads"])
def test_after_a_failover_orders_go_on_by_themselves_and_nothing_is_lost(
    serve: Serve, pair: Pair, sink: SmtpServer, report: Report, folder: Path, happens: Callable[[Pair], None]
) -> None:
    """Three machines: one knows the primary by its name, one both servers; one that only serves knows PgBouncer. Mails
    are under way when the primary goes, and for longer than their leases nothing can be stored: each is sent once."""
    ledger, hold = Ledger(os.getpid()), sink.hold("END")
    with ExitStack() as stack:
        urls = {"the same name": pair.door.url, "both names": pair.hosts}
        if postgres.pooler() is not None:
            pooler = stack.enter_context(postgres.pgbouncer(pair.door.url, "transaction"))
            urls["PgBouncer"] = pooler.url
        services = {}
        for n, (way, url) in enumerate(urls.items()):
            given = SETTINGS | sink.settings | {"database_url": url, "instance_path": folder / f"{n}"}
            services[way] = serve(*GUNICORN, **given, dispatch_in_web=way != "PgBouncer").launch()
        for each in services.values():
            each.wait_for_answer("/readyz")
        follower = stack.enter_context(Follower(services["the same name"]))
        customers = {
            way: stack.enter_context(Customers(ledger, each.port, clients=2)) for way, each in services.items()
        }
        ledger.wait_for(30)
        hold.wait_for(2)
        happens(pair)
        sink.heal()
        hold.release()
        for way, each in customers.items():
            wait_until(lambda seen=each.seen: any(one.status == 503 for one in seen), f"503 with {way}")  # type: ignore[misc]
            assert services[way].get("/healthz").status == 200
        wait_until(lambda: pair.standby.execute(LEASES_THAT_HOLD) == [(0,)], "the end of all leases, and as long again")
        promoted_after = len(ledger.acknowledged)
        promoted = time.monotonic()
        pair.promote()
        if "PgBouncer" in urls and happens is only_reads:  # or else it goes on using its connections there
            pooler.reconnect()
        ledger.wait_for(promoted_after + 40)

    ledger.wait_until_settled(pair.standby.url)
    figures = ledger.check(pair.standby.url, sink.received, copies=0)
    for way, each in customers.items():
        outage = each.outage()
        report(f"{way}: {outage}; {outage.end - promoted:.1f} s after the promotion they go on; {figures}")
        assert outage.end - promoted < SECONDS_TO_GO_ON
        assert outage.slowest < SETTINGS["database_timeout"] + 6
    assert (figures.lost, figures.copies, figures.unknown_attempts) == (0, 0, 0)
    events = {event_id for (event_id,) in pair.standby.execute("SELECT event_id FROM events")}
    assert sorted(follower.read(len(events))) == sorted(events), "a reader of the feed sees each event once"
    assert pair.standby.execute("SELECT pg_is_in_recovery()") == [(False,)]
