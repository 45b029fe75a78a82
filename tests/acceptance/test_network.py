"""Several machines: some that serve, some that dispatch, one with the database, and the network between them fails.

The machines are network namespaces, so that packets vanish as they do behind a firewall: nobody hears of it. One that
serves is far away: what it sends and gets is under way for a while.
"""

import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from app.db import Database, schema
from tests.support import network, postgres
from tests.support.brokers import Rabbit
from tests.support.ledger import Customers, Ledger, read
from tests.support.network import Host, Network
from tests.support.postgres import Server
from tests.support.service import CELERY_WORKER, DISPATCHER, GUNICORN, Client, Service, wait_until
from tests.support.smtp import Pause, SmtpServer

pytestmark = [pytest.mark.postgres, pytest.mark.timeout(240)]

DATABASE_TIMEOUT = 2
SHUTDOWN_SECONDS = 1
SLACK_SECONDS = 4.0
FAR_SECONDS = 0.005
LISTENER_CHECK_SECONDS = 15

SETTINGS: dict[str, Any] = {
    "database_timeout": DATABASE_TIMEOUT,
    "shutdown_seconds": SHUTDOWN_SECONDS,
    "lease_seconds": 3,
    "poll_seconds": 60,
    "log_level": "WARNING",
    "retry_policy": "exponential",
    "retry_base_seconds": 0.1,
    "retry_max_seconds": 1,
}

Report = Callable[[str], None]


class Site:
    """The hosts, and the services on them."""

    def __init__(self, lan: Network, database: Host, server: Server, sink: SmtpServer, folder: Path) -> None:
        self.lan, self.database, self.server, self.sink, self.folder = lan, database, server, sink, folder
        self.services: list[Service] = []

    def service(self, *command: str, delay_seconds: float = 0, **settings: Any) -> tuple[Host, Service]:
        """On a host of its own, launched."""
        host = self.lan.host(delay_seconds)
        folder = self.folder / host.address
        folder.mkdir()
        given = SETTINGS | self.sink.settings | {"database_url": self.server.url, "web_concurrency": 1} | settings
        made = Service(folder, *command, web_host=host.address, **given | {"trusted_hosts": host.address})
        made.within, made.host = host.with_folder(folder / "tmp"), host.address
        self.services.append(made)
        return host, made.launch()

    def holds_leases(self, service: Service) -> bool:
        held = " OR ".join(f"leased_by LIKE '%:{pid}:%'" for pid in service.pids())
        found = read(self.server.url, f"SELECT count(*) AS n FROM deliveries WHERE state = 'leased' AND ({held})")
        return bool(found[0]["n"])

    def close(self) -> None:
        for service in self.services:
            service.close()
            print(f"--- {' '.join(service.command)} at {service.host}\n{service.log}")  # shown when the test fails


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    if postgres.binaries() is None:
        pytest.skip("no PostgreSQL here: install its server")
    if not network.is_possible():
        pytest.skip("needs root, and leave to make network namespaces with 'ip' of iproute2")
    with Network() as lan, postgres.server_folder() as data:
        database = lan.host()
        server = Server(data, host=database.address)
        server.within = database.within
        sink = SmtpServer()
        sink.host = sink.address = lan.address
        with sink, server:
            server.initialise()
            with (data / "data" / "pg_hba.conf").open("a") as rules:
                rules.write("host all all 198.18.0.0/15 trust\n")
            server.start()
            with closing(Database(server.url)) as made:
                schema.upgrade(made)
            with closing(Site(lan, database, server, sink, tmp_path)) as found:
                yield found


@contextmanager
def cut_off(*hosts: Host) -> Iterator[None]:
    """For the ``with`` block."""
    with ExitStack() as stack:
        for host in hosts:
            stack.callback(host.join)
            host.cut_off()
        yield


def more(ledger: Ledger, count: int) -> None:
    ledger.wait_for(len(ledger.acknowledged) + count)


def customers_of(site: Site, ledger: Ledger, *webs: Service) -> Customers:
    """Customers of the services, once these are ready. Each mail takes a while, so that leases are held."""
    for each in webs:
        each.wait_for_answer("/readyz")
    site.sink.on("END", Pause(0.1))
    addresses = [(each.host, each.port) for each in webs]
    return Customers(ledger, *addresses, timeout=DATABASE_TIMEOUT + SLACK_SECONDS)


def test_threads_that_dispatch_outlive_hosts_that_are_cut_off(site: Site, report: Report) -> None:
    """Each kind of host in turn, while orders come in. All goes on without a restart, and no stop hangs."""
    far, web = site.service(*GUNICORN, delay_seconds=FAR_SECONDS, dispatch_in_web=False)
    _, other_web = site.service(*GUNICORN, dispatch_in_web=False)
    host, dispatcher = site.service(*DISPATCHER)
    _, other = site.service(*DISPATCHER)
    ledger = Ledger(os.getpid())

    with customers_of(site, ledger, web, other_web) as customers:
        more(ledger, 30)
        wait_until(lambda: site.holds_leases(dispatcher), "something that it is at")
        with cut_off(host):
            site.sink.heal()
            wait_until(lambda: not site.holds_leases(dispatcher), "the other to take over what it held")
        with cut_off(far):
            more(ledger, 10)
        with cut_off(site.database):
            wait_until(lambda: ledger.answers[503] > 2, "orders that are answered 503")
            stopped = seconds_to_stop(other)
        joined = time.monotonic()
        more(ledger, 1)
        went_on = time.monotonic() - joined
        more(ledger, 30)

    ledger.wait_until_settled(site.server.url)
    figures, outage = ledger.check(site.server.url, site.sink.received), customers.outage()
    report(f"{outage}; a stop took {stopped:.1f} s; orders go on {went_on:.1f} s after the network is back; {figures}")
    assert (figures.lost, figures.unknown) == (0, 0)
    assert figures.copies <= figures.unknown_attempts
    assert outage.slowest < DATABASE_TIMEOUT + 2 * SLACK_SECONDS
    assert stopped < SHUTDOWN_SECONDS + 12


def seconds_to_stop(service: Service) -> float:
    """What it can't store now is left to others."""
    began = time.monotonic()
    service.signal(signal.SIGTERM)
    service.wait_for_end()
    return time.monotonic() - began


@pytest.fixture
def broker(site: Site) -> Iterator[tuple[Host, Rabbit]]:
    """RabbitMQ on a host of its own; it may still be starting."""
    pytest.importorskip("celery", reason="no Celery here: pip install -r requirements-celery.txt")
    if not Rabbit.is_installed():
        pytest.skip("no RabbitMQ here: install rabbitmq-server")
    host = site.lan.host()
    with closing(Rabbit(host.address, host.within)) as rabbit:
        rabbit.launch()
        yield host, rabbit


def test_celerys_workers_outlive_hosts_that_are_cut_off(
    site: Site, broker: tuple[Host, Rabbit], report: Report
) -> None:
    """Two hosts that serve and relay, two that work, one with the database and one with the broker."""
    broker_host, rabbit = broker
    celery = {"bus_engine": "celery", "celery_broker_url": rabbit.url}
    far, web = site.service(*GUNICORN, delay_seconds=FAR_SECONDS, **celery)
    _, other_web = site.service(*GUNICORN, **celery)
    (host, worker), (_, other) = (site.service(*CELERY_WORKER, "-c", "2", "-n", f"w{n}@%h", **celery) for n in range(2))
    rabbit.wait()
    for each in (worker, other):
        each.wait_for_log(" ready.")
    ledger = Ledger(os.getpid())

    with customers_of(site, ledger, web, other_web) as customers:
        more(ledger, 30)
        wait_until(lambda: site.holds_leases(worker), "something that it is at")
        with cut_off(host):
            site.sink.heal()
            with cut_off(broker_host):
                with cut_off(far):
                    more(ledger, 10)
                wait_until(lambda: other_web.get("/readyz").body.get("warnings"), "the word of a broker that is away")
            wait_until(lambda: not site.holds_leases(worker), "the other to take over what it held")
        with cut_off(site.database):
            wait_until(lambda: ledger.answers[503] > 2, "orders that are answered 503")
        more(ledger, 30)

    ledger.wait_until_settled(site.server.url)
    figures = ledger.check(site.server.url, site.sink.received)
    report(f"{customers.outage()}; {figures}")
    assert (figures.lost, figures.unknown) == (0, 0)
    assert figures.copies <= figures.unknown_attempts


def timed_post(service: Service, order_id: str) -> tuple[int, float]:
    began = time.monotonic()
    with closing(Client(service.port, host=service.host)) as client:
        status = client.post(order_id=order_id, user_id="1", total_price=1, email=f"{order_id}@ledger.example").status
    return status, time.monotonic() - began


def post_at_once(service: Service, *order_ids: str) -> list[tuple[int, float]]:
    with ThreadPoolExecutor(len(order_ids)) as threads:
        return list(threads.map(lambda order_id: timed_post(service, order_id), order_ids))


def mail_of(site: Site, order_id: str) -> bool:
    return any(f"{order_id}@ledger.example" in mail.recipients for mail in site.sink.received)


def test_connections_that_a_firewall_forgot_are_noticed_in_time(site: Site, report: Report) -> None:
    """All that are open are dead, without a word; new ones pass. No order is refused, and wake-ups come back."""
    timeout = 8
    _, web = site.service(*GUNICORN, dispatch_in_web=False, database_timeout=timeout)
    site.service(*DISPATCHER, database_timeout=timeout)
    web.wait_for_answer("/readyz")
    post_at_once(web, *(f"before-{n}" for n in range(6)))
    wait_until(lambda: all(mail_of(site, f"before-{n}") for n in range(6)), "the mails")

    forgotten = site.database.forget(site.server.port)
    began = time.monotonic()
    answers = post_at_once(web, *(f"{n}" for n in range(6)))
    slowest = max(seconds for _, seconds in answers)
    assert {status for status, _ in answers} == {201}
    assert slowest < timeout
    wait_until(lambda: all(mail_of(site, f"{n}") for n in range(6)), "the mails")
    mails = time.monotonic() - began
    assert mails < LISTENER_CHECK_SECONDS + 2 * timeout
    again = post_at_once(web, *(f"again-{n}" for n in range(6)))
    assert {status for status, _ in again} == {201}
    wait_until(lambda: all(mail_of(site, f"again-{n}") for n in range(6)), "the mails", 10)
    report(
        f"{forgotten} connections forgotten by a firewall: orders 201 after {slowest:.1f} s at most, their mails after "
        f"{mails:.1f} s; 503 0 times; lost 0, sent again {len(site.sink.received) - 18}"
    )
    assert len(site.sink.received) == 18
