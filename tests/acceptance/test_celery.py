"""The Celery engine as an operator runs it: web, relays and Celery's workers are real processes, and so is the broker.

Whatever dies, is emptied or cut, the ledger finds every order that was acknowledged, and every effect once.
"""

import random
import signal
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import pytest

pytest.importorskip("celery", reason="no Celery here: pip install -r requirements-celery.txt")

from app.engine.celery.configure import PREFIX
from tests.acceptance.conftest import Serve
from tests.support.brokers import Rabbit, Redis
from tests.support.ledger import Ledger, Load, read
from tests.support.postgres import Door
from tests.support.service import DISPATCHER, GUNICORN, Client, Service, wait_until
from tests.support.smtp import SmtpServer

pytestmark = [pytest.mark.timeout(240), pytest.mark.postgres]

WORKER = ("celery", "-A", "celery_app", "worker", "--concurrency", "2")

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
    """The processes of one service."""

    web: Service
    relays: list[Service]
    workers: list[Service]
    ledger: Ledger
    sink: SmtpServer

    @property
    def database_url(self) -> str:
        return self.web.database_url

    def start(self) -> "Crew":
        for each in self.workers:
            each.launch()
        for each in (self.web, *self.relays):
            each.launch()
        for each in self.workers:
            each.wait_for_log(" ready.")
        self.web.wait_for_answer("/readyz")
        return self

    def recover_and_check(self) -> str:
        self.ledger.wait_until_settled(self.database_url)
        with closing(Client(self.web.port)) as client:
            self.ledger.place_unknown_again(client)
        self.ledger.wait_until_settled(self.database_url)
        return str(self.ledger.check(self.database_url, self.sink.received))


@pytest.fixture
def crew(serve: Serve, postgres_url: str, sink: SmtpServer) -> Callable[..., Crew]:
    """Makes the processes for a broker, not started yet: one that serves, two relays, two workers."""

    def make(broker_url: str, relays: int = 2, workers: int = 2, **settings: Any) -> Crew:
        given = QUICK | sink.settings | {"database_url": postgres_url, "celery_broker_url": broker_url} | settings
        return Crew(
            serve(*GUNICORN, **given),
            [serve(*DISPATCHER, **given) for _ in range(relays)],
            [serve(*WORKER, "-n", f"w{n}@%h", **given) for n in range(workers)],
            Ledger(random.randrange(2**32)),
            sink,
        )

    return make


@pytest.fixture
def broker_door(rabbit: Rabbit) -> Iterator[Door]:
    """A way to RabbitMQ that a test can shut."""
    with Door(rabbit.url) as made:
        made.open()
        yield made


def test_nothing_is_lost_when_relays_workers_and_the_web_are_killed(
    crew: Callable[..., Crew], rabbit: Rabbit, report: Report
) -> None:
    """Both relays and both workers, one after the other, and the web last; nobody waits between them."""
    c = crew(rabbit.url).start()
    with Load(c.ledger, c.web.port):
        for victim in (*c.relays, *c.workers, c.web):
            c.ledger.wait_for(len(c.ledger.acknowledged) + 25)
            victim.kill()
            victim.launch()
        c.web.wait_for_answer("/readyz")
        c.ledger.wait_for(len(c.ledger.acknowledged) + 25)
    report(f"kills 5, {c.recover_and_check()}")


def test_nothing_is_lost_when_the_broker_is_purged(crew: Callable[..., Crew], rabbit: Rabbit, report: Report) -> None:
    """What was published and not taken yet is gone. Its leases run out, and it is published again."""
    c = crew(rabbit.url, relays=1, workers=1).start()
    c.workers[0].signal(signal.SIGSTOP, *c.workers[0].pids())  # so that messages wait
    with Load(c.ledger, c.web.port, limit=150):
        c.ledger.wait_for(100)
        lost = 0
        while lost < 60:
            lost += rabbit.purge(*QUEUES)
        c.workers[0].signal(signal.SIGCONT, *c.workers[0].pids())
        c.ledger.wait_for(120)
        lost += rabbit.purge(*QUEUES)
    figures = c.recover_and_check()
    assert "copies 0, unknown attempts 0" in figures, "what was lost on its way was not tried"
    report(f"messages purged {lost}, {figures}")


def test_the_broker_may_die_and_its_connections_be_cut(
    crew: Callable[..., Crew], rabbit: Rabbit, broker_door: Door, report: Report
) -> None:
    """Orders are taken all the while. Relays and workers find their way back by themselves."""
    c = crew(broker_door.url, relays=1, workers=1, log_level="INFO").start()
    with Load(c.ledger, c.web.port, limit=150):
        c.ledger.wait_for(30)
        broker_door.shut()
        c.ledger.wait_for(60)
        c.relays[0].wait_for_log("broker lost")
        broker_door.open()
        c.relays[0].wait_for_log("broker back")
        rabbit.kill()
        c.ledger.wait_for(100)
        rabbit.start()
        c.ledger.wait_for(120)
    report(f"cuts 1, deaths 1, {c.recover_and_check()}")


def test_redis_carries_as_well(crew: Callable[..., Crew], redis: Redis, report: Report) -> None:
    c = crew(redis.url, relays=1, workers=1).start()
    with Load(c.ledger, c.web.port, limit=150):
        c.ledger.wait_for(50)
        lost = redis.purge(*QUEUES)
        c.workers[0].kill()
        c.workers[0].launch()
        c.ledger.wait_for(100)
    report(f"messages purged {lost}, kills 1, {c.recover_and_check()}")


def test_a_worker_that_is_stopped_ends_what_it_has_begun(
    crew: Callable[..., Crew], rabbit: Rabbit, sink: SmtpServer
) -> None:
    c = crew(rabbit.url, relays=1, workers=1).start()
    held = sink.hold("END")
    with closing(Client(c.web.port)) as client:
        c.ledger.place(client)
    held.wait_for()

    c.workers[0].signal(signal.SIGTERM)
    wait_until(lambda: "Warm shutdown" in c.workers[0].log, "the stop's beginning")
    held.release()

    assert c.workers[0].wait_for_end() == 0
    c.ledger.wait_until_settled(c.database_url)
    outcomes = read(c.database_url, "SELECT outcome FROM attempts")
    assert [row["outcome"] for row in outcomes] == ["ok"] * 3


def test_status_counts_the_workers_processes_and_names_what_is_missing(
    crew: Callable[..., Crew], rabbit: Rabbit
) -> None:
    c = crew(rabbit.url, relays=1, workers=1).start()
    status = c.web.run("flask", "bus", "status").stdout
    assert status.count("dispatcher ") == 3, status
    assert status.count(", celery relay") == 1, status

    c.relays[0].stop()
    c.workers[0].stop()
    wait_until(lambda: "no dispatcher is alive" in c.web.run("flask", "bus", "status").stdout, "the word of it")

    c.relays[0].launch()
    wait_until(lambda: "no Celery worker is alive" in c.web.run("flask", "bus", "status").stdout, "the word of it")


def test_tasks_bear_their_receivers_names(crew: Callable[..., Crew], rabbit: Rabbit) -> None:
    """As Flower shows them."""
    c = crew(rabbit.url, relays=0, workers=1)
    c.workers[0].launch()
    c.workers[0].wait_for_log(" ready.")
    told = c.workers[0].run("celery", "-A", "celery_app", "inspect", "registered")
    for receiver in ("send_email_notification", "update_order_notification", "update_user_order_record"):
        assert f"* {receiver}" in told.stdout, told


@pytest.mark.parametrize(
    "words, settings, cure",
    [
        ((), {"bus_engine": "inprocess"}, "BUS_ENGINE is not celery"),
        ((), {"celery_broker_url": None}, "CELERY_BROKER_URL is not set"),
        (("--pool", "threads"), {}, "leave --pool out"),
    ],
)
def test_a_wrong_start_ends_with_one_line(
    serve: Serve, sink: SmtpServer, words: tuple[str, ...], settings: dict[str, Any], cure: str
) -> None:
    given = QUICK | sink.settings | {"celery_broker_url": "amqp://127.0.0.1:1//"} | settings
    worker = serve(*WORKER, *words, **given).launch()
    assert worker.wait_for_end() == 1
    (line,) = [line for line in worker.log.splitlines() if line.startswith("error:")]
    assert cure in line
    assert "Traceback" not in worker.log


def test_a_mail_server_that_hangs_delays_no_order_record(
    crew: Callable[..., Crew], rabbit: Rabbit, sink: SmtpServer
) -> None:
    """Though one worker has all queues, and only two processes."""
    c = crew(rabbit.url, relays=1, workers=1, mail_timeout=60, receiver_timeout=60).start()
    held = sink.hold("CONNECT")
    with closing(Client(c.web.port)) as client:
        for _ in range(20):
            c.ledger.place(client)
        held.wait_for()
        wait_until(lambda: count(c, "status = 'confirmed'") == 20, "all order records")
        assert count(c, "notification = 'pending'") == 20, "and no mail has come through"
    held.release()
    c.ledger.wait_until_settled(c.database_url)
    c.ledger.check(c.database_url, sink.received)


def count(c: Crew, which: str) -> int:
    return int(read(c.database_url, f"SELECT count(*) AS n FROM orders WHERE {which}")[0]["n"])


def test_a_receiver_that_does_not_return_is_interrupted_or_killed(
    serve: Serve, rabbit: Rabbit, postgres_url: str, sink: SmtpServer
) -> None:
    """At the soft limit, and where it ignores that, at the hard one; and another process takes the dead one's place."""
    given = QUICK | sink.settings | {"database_url": postgres_url, "celery_broker_url": rabbit.url}
    given |= {"database_timeout": 1, "retry_policy": "exponential", "retry_max_attempts": 1}
    web = serve("flask", "--app", "tests.support.hanging", "run", **given).start("/healthz")
    serve("flask", "--app", "tests.support.hanging", "bus", "run", **given).launch()
    worker = serve("celery", "-A", "tests.support.hanging:worker", *WORKER[3:-1], "4", **given).launch()
    worker.wait_for_log(" ready.")
    before = set(worker.pids())
    web.post(order_id="1", user_id="42", total_price="1.00", email="1@ledger.example")

    def reasons() -> dict[str, str]:
        rows = read(postgres_url, "SELECT receiver, reason FROM deliveries WHERE outcome = 'unknown'")
        return {row["receiver"]: row["reason"] for row in rows}

    wait_until(lambda: len(reasons()) == 2, "the end of both attempts")
    assert "not returned within its time limit" in reasons()["hangs"]
    assert "result" in reasons()["ignores_its_limit"], "it left none"
    wait_until(lambda: read(postgres_url, "SELECT notification FROM orders")[0]["notification"] == "sent", "the mail")
    wait_until(lambda: set(worker.pids()) - before, "another process")
