"""Several machines: two that serve, two that dispatch, one with the database, and the network between them fails.

The machines are network namespaces, so that packets vanish as they do behind a firewall: nobody hears of it.
"""

import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from app.db import Database, schema
from tests.support import network, postgres
from tests.support.ledger import Customers, Ledger, read
from tests.support.network import Host, Network
from tests.support.postgres import Server
from tests.support.service import DISPATCHER, GUNICORN, Client, Service, wait_until
from tests.support.smtp import Pause, SmtpServer

pytestmark = [pytest.mark.postgres, pytest.mark.timeout(240)]

DATABASE_TIMEOUT = 4
SHUTDOWN_SECONDS = 1
SLACK_SECONDS = 4.0
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

    def service(self, *command: str, **settings: Any) -> tuple[Host, Service]:
        """On a host of its own, not started yet."""
        host = self.lan.host()
        folder = self.folder / host.address
        folder.mkdir()
        given = SETTINGS | self.sink.settings | {"database_url": self.server.url, "web_concurrency": 1} | settings
        made = Service(folder, *command, web_host=host.address, **given | {"trusted_hosts": host.address})
        made.within, made.host = host.with_folder(folder / "tmp"), host.address
        self.services.append(made)
        return host, made

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


def test_hosts_that_are_cut_off_lose_nothing_and_repeat_nothing(site: Site, report: Report) -> None:
    """Each kind of host in turn, while orders come in; and afterwards all goes on without a restart."""
    webs = [site.service(*GUNICORN, dispatch_in_web=False) for _ in range(2)]
    dispatchers = [site.service(*DISPATCHER) for _ in range(2)]
    for _, service in (*webs, *dispatchers):
        service.launch()
    for _, service in webs:
        service.wait_for_answer("/readyz")
    site.sink.on("END", Pause(0.02))
    delays = [host.delay(20) for host, _ in webs]
    ledger = Ledger(os.getpid())
    addresses = [(web.host, web.port) for _, web in webs]

    with Customers(ledger, *addresses, timeout=DATABASE_TIMEOUT + SLACK_SECONDS) as customers:
        for host in (webs[0][0], dispatchers[0][0], site.database):
            ledger.wait_for(len(ledger.acknowledged) + 30)
            host.cut_off()
            if host is site.database:
                wait_until(lambda: ledger.answers[503] > 2, "orders that are answered 503")
            elif host is dispatchers[0][0]:
                wait_until(lambda: not holds_leases(site, dispatchers[0][1]), "the other to take over what it held")
            else:
                ledger.wait_for(len(ledger.acknowledged) + 10)
            host.join()
        ledger.wait_for(len(ledger.acknowledged) + 30)

    ledger.wait_until_settled(site.server.url)
    figures = ledger.check(site.server.url, site.sink.received)
    report(f"{customers.outage()}; {'with' if all(delays) else 'without'} delays of 20 ms; {figures}")
    assert (figures.lost, figures.unknown) == (0, 0)
    assert figures.copies <= figures.unknown_attempts
    for _, service in dispatchers:
        assert service.stop() < SHUTDOWN_SECONDS + 12


def holds_leases(site: Site, dispatcher: Service) -> bool:
    leased = f"SELECT count(*) AS n FROM deliveries WHERE state = 'leased' AND leased_by LIKE '%:{dispatcher.pid}:%'"
    return bool(read(site.server.url, leased)[0]["n"])


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


def test_a_network_that_drops_everything_is_noticed_in_time_and_holds_up_no_stop(site: Site, report: Report) -> None:
    _, web = site.service(*GUNICORN, dispatch_in_web=False)
    _, dispatcher = site.service(*DISPATCHER)
    _, other = site.service(*DISPATCHER)
    for service in (web, dispatcher, other):
        service.launch()
    web.wait_for_answer("/readyz")
    assert timed_post(web, "before")[0] == 201
    wait_until(lambda: mail_of(site, "before"), "the mail")

    site.database.cut_off()
    answers = [*post_at_once(web, "1", "2", "3"), *post_at_once(web, "1", "2", "3")]
    assert {status for status, _ in answers} == {503}
    slowest = max(seconds for _, seconds in answers)
    assert slowest < DATABASE_TIMEOUT + SLACK_SECONDS
    stopped = dispatcher.stop()
    assert stopped < SHUTDOWN_SECONDS + 12

    site.database.join()
    joined = time.monotonic()
    wait_until(lambda: timed_post(web, "1")[0] in (200, 201), "orders")
    orders = time.monotonic() - joined
    wait_until(lambda: mail_of(site, "1"), "the mail")
    mails = time.monotonic() - joined
    report(
        f"a network that drops everything: 503 after {slowest:.1f} s at most, a stop took {stopped:.1f} s; once it is "
        f"back, orders go on after {orders:.1f} s, mails after {mails:.1f} s; lost 0"
    )


def test_connections_that_a_firewall_forgot_are_noticed_in_time(site: Site, report: Report) -> None:
    """All that are open are dead, without a word; new ones pass. No order is refused, and wake-ups come back."""
    timeout = 8
    _, web = site.service(*GUNICORN, dispatch_in_web=False, database_timeout=timeout)
    _, dispatcher = site.service(*DISPATCHER, database_timeout=timeout)
    for service in (web, dispatcher):
        service.launch()
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
