"""A primary goes away, or only reads, and its standby takes over, under real servers and real processes.

Commits wait for the standby (``synchronous_standby_names``), so that it has all that was acknowledged.
"""

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
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
    "web_concurrency": 2,
    "database_timeout": 2,
    "lease_seconds": 5,
    "poll_seconds": 60,
    "log_level": "WARNING",
}

WAITS_FOR_THE_STANDBY = {"synchronous_commit": "on", "synchronous_standby_names": "standby"}

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
        primary.start()
        with closing(Database(primary.url)) as database:
            schema.upgrade(database)
        standby.follow(primary, "standby")
        standby.start(synchronous_commit="on")
        primary.stop("fast")
        primary.start(**WAITS_FOR_THE_STANDBY)
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


@pytest.mark.parametrize("way", ["the same name", "both names"])
@pytest.mark.parametrize("happens", [crashes, only_reads], ids=["the primary crashes", "the primary only reads"])
def test_after_a_failover_orders_go_on_by_themselves_and_nothing_is_lost(
    serve: Serve, pair: Pair, sink: SmtpServer, report: Report, happens: Callable[[Pair], None], way: str
) -> None:
    url = pair.hosts if way == "both names" else pair.door.url
    service = serve(*GUNICORN, **SETTINGS, **sink.settings, database_url=url).start()
    ledger = Ledger(os.getpid())

    with Customers(ledger, service.port) as customers, Follower(service) as follower:
        ledger.wait_for(40)
        happens(pair)
        wait_until(lambda: ledger.answers[503] > 2, "orders that are answered 503")
        assert service.get("/healthz").status == 200
        promoted_after = len(ledger.acknowledged)
        promoted = time.monotonic()
        pair.promote()
        ledger.wait_for(promoted_after + 40)

    ledger.wait_until_settled(pair.standby.url)
    figures = ledger.check(pair.standby.url, sink.received, copies=0)
    outage = customers.outage()
    report(f"{outage}; {outage.end - promoted:.1f} s after the promotion they go on; {figures}")
    assert outage.end - promoted < SECONDS_TO_GO_ON
    assert outage.slowest < SETTINGS["database_timeout"] + 6
    assert (figures.lost, figures.copies, figures.unknown_attempts) == (0, 0, 0)
    events = {event_id for (event_id,) in pair.standby.execute("SELECT event_id FROM events")}
    assert sorted(follower.read(len(events))) == sorted(events), "a reader of the feed sees each event once"
    assert pair.standby.execute("SELECT pg_is_in_recovery()") == [(False,)]


def mails(sink: SmtpServer) -> int:
    return len(sink.received)


def test_no_mail_is_sent_again_and_again_while_its_end_can_not_be_stored(
    serve: Serve, pair: Pair, sink: SmtpServer, report: Report
) -> None:
    """Mails are under way when the primary goes, for longer than their leases: each is sent once."""
    hold = sink.hold("END")
    service = serve(*GUNICORN, **SETTINGS | {"lease_seconds": 1}, **sink.settings, database_url=pair.door.url).start()
    for n in range(6):
        assert service.post(order_id=f"{n}", user_id="1", total_price=1, email=f"{n}@ledger.example").status == 201
    hold.wait_for(2)
    crashes(pair)
    hold.release()
    service.wait_for_log("database lost")
    wait_until(lambda: mails(sink) >= 2, "the mails that were under way")
    time_without_a_database(service, seconds=3 * 1.0)
    sent = mails(sink)
    pair.promote()
    wait_until(lambda: finished(service, 6), "the end of all orders")
    again = mails(sink) - len({mail.message_id for mail in sink.received})
    report(f"{sent} mails were accepted while nothing could be stored, three leases long; sent again: {again}")
    assert again == 0
    assert mails(sink) == 6


def time_without_a_database(service: Service, seconds: float) -> None:
    """Ask all that time: it says that it is not ready."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        assert service.get("/readyz").status == 503


def finished(service: Service, count: int) -> bool:
    found = [service.get(f"/api/orders/{n}") for n in range(count)]
    return all(each.status == 200 and each.body["notification"] == "sent" for each in found)
