"""The Celery engine as an operator runs it: web, relays and Celery's workers are real processes, and so is the broker.

Whatever dies, is emptied or cut, the ledger finds every order that was acknowledged, and every effect once. The tests
share one crew of processes, which each leaves running, and its ledger: it holds all that they ordered.
"""

import random
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from typing import Any

import pytest

pytest.importorskip("celery", reason="no Celery here: pip install -r requirements-celery.txt")

from app.db import Database, schema
from app.engine.celery.configure import PREFIX
from tests.acceptance.conftest import Serve, service_folder, services
from tests.support import postgres
from tests.support.brokers import Rabbit, Redis
from tests.support.ledger import Figures, Ledger, Load, read
from tests.support.postgres import Door
from tests.support.service import CELERY_WORKER, DISPATCHER, GUNICORN, Client, Service, wait_until
from tests.support.smtp import SmtpServer

pytestmark = [
    pytest.mark.inprocess("each takes its engine itself, in either run"),
    pytest.mark.timeout(240),
    pytest.mark.postgres,
]

WORKER = (*CELERY_WORKER, "--concurrency", "2")

QUEUES = (f"{PREFIX}update_user_order_record", f"{PREFIX}send_email_notification")
"""update_order_notification runs in the transaction that publishes its event."""

QUICK: dict[str, Any] = {
    "bus_engine": "celery",
    "dispatch_in_web": False,
    "lease_seconds": 3,
    "poll_seconds": 1,
    "retry_base_seconds": 0.01,
    "retry_max_seconds": 0.1,
    "log_level": "WARNING",
}
"""So that what got lost on its way is ready again within the test's time."""

Report = Callable[[str], None]


@dataclass
class Crew:
    """The processes of one service: what serves, a relay and a worker; and another relay and worker, not started."""

    web: Service
    relay: Service
    worker: Service
    spare_relay: Service
    spare_worker: Service
    rabbit: Rabbit
    door: Door
    """The way to RabbitMQ."""
    sink: SmtpServer
    ledger: Ledger = field(default_factory=lambda: Ledger(random.randrange(2**32)))

    @property
    def database_url(self) -> str:
        return self.web.database_url

    @property
    def services(self) -> list[Service]:
        return [self.web, self.relay, self.worker, self.spare_relay, self.spare_worker]

    def start(self) -> None:
        """Start what doesn't run."""
        for each in (self.worker, self.web, self.relay):
            if each.ended:
                each.launch()
        self.worker.wait_for_log(" ready.")
        self.web.wait_for_answer("/readyz")

    def wait_for(self, count: int) -> None:
        """Wait until so many more orders are acknowledged."""
        self.ledger.wait_for(len(self.ledger.acknowledged) + count)

    def place(self, count: int) -> None:
        """Place so many orders, one after the other."""
        with closing(Client(self.web.port)) as client:
            for _ in range(count):
                self.ledger.place(client)

    def recover_and_check(self) -> Figures:
        self.ledger.wait_until_settled(self.database_url)
        with closing(Client(self.web.port)) as client:
            self.ledger.place_unknown_again(client)
        self.ledger.wait_until_settled(self.database_url)
        return self.ledger.check(self.database_url, self.sink.received)

    def read(self, query: str) -> list[dict[str, Any]]:
        return read(self.database_url, query)


@pytest.fixture(scope="module")
def started(request: pytest.FixtureRequest, rabbit: Rabbit, postgres_server: str) -> Iterator[Crew]:
    with ExitStack() as stack:
        url = stack.enter_context(postgres.another_database(postgres_server))
        with closing(Database(url)) as database:
            schema.upgrade(database)
        sink = stack.enter_context(SmtpServer())
        door = stack.enter_context(Door(rabbit.url))
        door.open()
        serve = stack.enter_context(services(stack.enter_context(service_folder(request))))
        given = QUICK | sink.settings | {"database_url": url, "celery_broker_url": door.url, "log_level": "INFO"}
        given |= {"mail_timeout": 60, "receiver_timeout": 60, "ready_lag_seconds": 10}
        relays = [serve(*DISPATCHER, **given) for _ in range(2)]
        workers = [serve(*WORKER, "-n", f"w{n}@%h", **given) for n in range(2)]
        yield Crew(serve(*GUNICORN, **given), relays[0], workers[0], relays[1], workers[1], rabbit, door, sink)


@pytest.fixture
def crew(started: Crew) -> Iterator[Crew]:
    """All of it runs."""
    begun = {each: len(each.log) for each in started.services}
    started.start()
    yield started
    started.sink.heal()
    for each, before in begun.items():
        print(f"--- {' '.join(each.command)} on port {each.port}\n{each.log[before:]}")  # shown when the test fails


def test_nothing_is_lost_when_the_broker_is_purged(crew: Crew, report: Report) -> None:
    """What was published and not taken yet is gone. Its leases run out, and it is published again."""
    tried = crew.read("SELECT count(*) FROM attempts WHERE outcome <> 'ok'")
    crew.worker.signal(signal.SIGSTOP, *crew.worker.pids())  # so that messages wait
    crew.place(60)
    lost = 0
    while lost < 40:
        lost += crew.rabbit.purge(*QUEUES)
    crew.worker.signal(signal.SIGCONT, *crew.worker.pids())
    crew.place(20)
    lost += crew.rabbit.purge(*QUEUES)
    figures = crew.recover_and_check()
    assert crew.read("SELECT count(*) FROM attempts WHERE outcome <> 'ok'") == tried, "what was lost was not tried"
    report(f"messages purged {lost}, {figures}")


def test_the_broker_may_die_and_its_connections_be_cut(crew: Crew, report: Report) -> None:
    """Orders are taken all the while. Relays and workers find their way back by themselves."""
    crew.place(30)
    crew.door.shut()
    crew.place(20)
    wait_until(lambda: crew.web.get("/readyz").body.get("warnings"), "the word of it")
    crew.door.open()
    crew.place(20)
    crew.recover_and_check()

    crew.place(30)
    crew.rabbit.kill()
    try:
        crew.place(20)
    finally:
        crew.rabbit.start()
    report(f"cuts 1, deaths 1, {crew.recover_and_check()}")
    wait_until(lambda: not crew.web.get("/readyz").body.get("warnings"), "the end of the warning")


def test_a_mail_server_that_hangs_delays_no_order_record(crew: Crew) -> None:
    """Though one worker has all queues, and only two processes."""
    confirmed, sent = count(crew, "status = 'confirmed'"), count(crew, "notification = 'sent'")
    held = crew.sink.hold("MAIL")
    crew.place(20)
    held.wait_for()
    wait_until(lambda: count(crew, "status = 'confirmed'") == confirmed + 20, "all order records")
    assert count(crew, "notification = 'sent'") == sent, "and no mail has come through"
    held.release()
    crew.recover_and_check()


def count(crew: Crew, which: str) -> int:
    return int(crew.read(f"SELECT count(*) AS n FROM orders WHERE {which}")[0]["n"])


def test_a_worker_that_is_stopped_ends_what_it_has_begun(crew: Crew) -> None:
    before = crew.read("SELECT max(attempt_id) AS n FROM attempts")[0]["n"] or 0
    held = crew.sink.hold("END")
    crew.place(1)
    held.wait_for()

    crew.worker.signal(signal.SIGTERM)
    crew.worker.wait_for_log("Warm shutdown")
    held.release()
    assert crew.worker.wait_for_end() == 0

    crew.ledger.wait_until_settled(crew.database_url)
    outcomes = crew.read(f"SELECT outcome FROM attempts WHERE attempt_id > {before}")
    assert [row["outcome"] for row in outcomes] == ["ok"] * 3


def test_what_is_missing_is_named_and_what_nobody_takes_waits_in_the_outbox(crew: Crew) -> None:
    status = crew.web.run("flask", "bus", "status").stdout
    alive = {line.split(":")[1]: line for line in status.splitlines() if line.startswith("dispatcher ")}
    assert ", celery relay, " in alive[f"{crew.relay.pid}"]
    assert {f"{pid}" for pid in crew.worker.pids() if pid != crew.worker.pid} <= alive.keys(), "each of its processes"

    crew.relay.stop()
    crew.worker.stop()
    wait_until(lambda: "no dispatcher is alive" in reasons(crew), "the word of it")  # also of those that were killed
    crew.relay.launch()
    wait_until(lambda: "no Celery worker is alive" in reasons(crew), "the word of it")

    crew.place(1)
    untaken = "SELECT settings FROM dispatchers WHERE settings LIKE '%\"untaken\"%'"
    wait_until(lambda: crew.read(untaken), "the relay to see that nobody takes its messages")
    late = "SELECT delivery_id FROM deliveries WHERE state = 'leased' AND due_at < now()"
    wait_until(lambda: len(crew.read(late)) == 2, "the end of their leases, with nothing published anew")
    crew.worker.launch()
    crew.recover_and_check()
    wait_until(lambda: not crew.read(untaken), "the relay to see that they are taken")


def reasons(crew: Crew) -> str:
    return str(crew.web.get("/readyz").body.get("reasons"))


def test_tasks_bear_their_receivers_names(crew: Crew) -> None:
    """As Flower shows them."""
    told = crew.worker.run("celery", "-A", "celery_app", "inspect", "registered")
    for receiver in ("send_email_notification", "update_order_notification", "update_user_order_record"):
        assert f"* {receiver}" in told.stdout, told


def test_nothing_is_lost_when_relays_workers_and_the_web_are_killed(crew: Crew, report: Report) -> None:
    """Both relays and both workers, one after the other, and the web last; nobody waits between them."""
    for each in (crew.spare_relay, crew.spare_worker):
        each.launch()
    crew.spare_worker.wait_for_log(" ready.")
    with Load(crew.ledger, crew.web.port):
        for victim in (crew.relay, crew.worker, crew.spare_relay, crew.spare_worker, crew.web):
            crew.wait_for(20)
            victim.kill()
            victim.launch()
        crew.web.wait_for_answer("/readyz")
        crew.wait_for(20)
    report(f"kills 5, {crew.recover_and_check()}")
    for each in (crew.spare_relay, crew.spare_worker):
        each.kill()


def test_redis_carries_as_well(serve: Serve, redis: Redis, postgres_url: str, sink: SmtpServer, report: Report) -> None:
    """With a relay in the web's own dispatching process."""
    given = QUICK | sink.settings | {"database_url": postgres_url, "celery_broker_url": redis.url}
    worker = serve(*WORKER, **given).launch()
    web = serve(*GUNICORN, **given | {"dispatch_in_web": True}).launch()
    worker.wait_for_log(" ready.")
    web.wait_for_answer("/readyz")
    ledger = Ledger(random.randrange(2**32))
    with Load(ledger, web.port, limit=120):
        ledger.wait_for(30)
        lost = redis.purge(*QUEUES)
        worker.kill()
        worker.launch()
        ledger.wait_for(60)
    ledger.wait_until_settled(postgres_url)
    report(f"messages purged {lost}, kills 1, {ledger.check(postgres_url, sink.received)}")


def test_a_wrong_start_ends_with_one_line(serve: Serve, sink: SmtpServer, bare_postgres_url: str) -> None:
    given = QUICK | sink.settings | {"celery_broker_url": "amqp://127.0.0.1:1//"}
    wrong = {
        "BUS_ENGINE is not celery": serve(*WORKER, **given | {"bus_engine": "inprocess"}),
        "CELERY_BROKER_URL is not set": serve(*WORKER, **given | {"celery_broker_url": None}),
        "leave --pool out": serve(*WORKER, "--pool", "threads", **given),
        "did you forget to run 'flask db upgrade'?": serve(*WORKER, **given | {"database_url": bare_postgres_url}),
    }
    for worker in wrong.values():
        worker.launch()
    for cure, worker in wrong.items():
        assert worker.wait_for_end() == 1
        (line,) = [line for line in worker.log.splitlines() if line.startswith("error:")]
        assert cure in line
        assert "Traceback" not in worker.log


def test_a_receiver_that_does_not_return_is_interrupted_or_killed(
    serve: Serve, rabbit: Rabbit, postgres_url: str, sink: SmtpServer
) -> None:
    """At the soft limit, and where it ignores that, at the hard one; and another process takes the dead one's place."""
    given = QUICK | sink.settings | {"database_url": postgres_url, "celery_broker_url": rabbit.url}
    given |= {"database_timeout": 1, "retry_policy": "exponential", "retry_max_attempts": 1}
    web = serve("flask", "--app", "tests.support.hanging", "run", **given).launch()
    serve("flask", "--app", "tests.support.hanging", "bus", "run", **given).launch()
    worker = serve("celery", "-A", "tests.support.hanging:worker", *WORKER[3:-1], "4", **given).launch()
    worker.wait_for_log(" ready.")
    before = set(worker.pids())
    web.wait_for_answer("/healthz")
    web.post(order_id="1", user_id="42", total_price="1.00", email="1@ledger.example")

    def reasons() -> dict[str, str]:
        rows = read(postgres_url, "SELECT receiver, reason FROM deliveries WHERE outcome = 'unknown'")
        return {row["receiver"]: row["reason"] for row in rows}

    wait_until(lambda: len(reasons()) == 2, "the end of both attempts")
    assert "not returned within its time limit" in reasons()["hangs"]
    assert "result" in reasons()["ignores_its_limit"], "it left none"
    wait_until(lambda: read(postgres_url, "SELECT notification FROM orders")[0]["notification"] == "sent", "the mail")
    wait_until(lambda: set(worker.pids()) - before, "another process")
