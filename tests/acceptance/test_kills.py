"""Real processes are killed, paused and stopped under load; a ledger outside of them says what must be there.

KILL_ROUNDS=50 kills more often, KILL_SEED=... repeats the choices of a run (the moments stay the machine's).
"""

import contextlib
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from sqlalchemy.exc import SQLAlchemyError

from tests.acceptance.conftest import Serve
from tests.support.ledger import Figures, Ledger, Load, read
from tests.support.service import DISPATCHER, GUNICORN, Client, Service, wait_until
from tests.support.smtp import HANG, Hold, SmtpServer

ROUNDS = int(os.environ.get("KILL_ROUNDS") or 2)
SEED = int(os.environ.get("KILL_SEED") or random.randrange(2**32))

pytestmark = pytest.mark.timeout(120 + 30 * ROUNDS)

QUICK: dict[str, Any] = {
    "web_concurrency": 2,
    "lease_seconds": 1,
    "poll_seconds": 1,
    "retry_base_seconds": 0.01,
    "retry_max_seconds": 0.1,
    "log_level": "WARNING",
}
"""So that what a killed process held is taken over within the test's time."""

BRIEF = (*GUNICORN, "--graceful-timeout", "2")
"""Workers whose master was killed end within seconds, also while clients keep them busy."""

ARMED = ("flask", "--app", "tests.support.failpoints", "run")
"""One process, so that its exit status is the proof of its death."""

Report = Callable[[str], None]


POSTGRESQL = pytest.param("postgresql", marks=pytest.mark.postgres)


@pytest.fixture(params=["sqlite", POSTGRESQL] if ROUNDS > 3 else ["sqlite"])
def database_in_time(request: pytest.FixtureRequest) -> dict[str, str]:
    """As ``database``, but SQLite alone in a short run."""
    return {} if request.param == "sqlite" else {"database_url": request.getfixturevalue("postgres_url")}


@pytest.fixture
def rng() -> random.Random:
    return random.Random(SEED)


# Killed


def test_nothing_is_lost_when_everything_is_killed(
    serve: Serve, database: dict[str, str], sink: SmtpServer, rng: random.Random, report: Report
) -> None:
    ledger = Ledger(SEED)
    service = serve(*GUNICORN, **QUICK | sink.settings | database)

    with Load(ledger, service.port):
        for _ in range(ROUNDS):
            service.start()
            ledger.wait_for(len(ledger.acknowledged) + rng.randint(1, 40))
            a_moment(rng)
            service.kill()

    figures = recover_and_check(service.start(), ledger, sink)
    report(f"kills {ROUNDS}, {figures}, seed {SEED}")


def test_nothing_is_lost_when_single_processes_are_killed(
    serve: Serve, database_in_time: dict[str, str], sink: SmtpServer, rng: random.Random, report: Report
) -> None:
    """The one that dispatches, or one that serves, which the master replaces; or the master: its workers end then."""
    ledger = Ledger(SEED)
    service = serve(*BRIEF, **QUICK | sink.settings | database_in_time).start()
    kinds = ["dispatcher", "server", "master"]
    victims = [*kinds, *rng.choices(kinds, k=max(0, ROUNDS - len(kinds)))]

    with Load(ledger, service.port):
        for victim in victims:
            ledger.wait_for(len(ledger.acknowledged) + rng.randint(1, 40))
            a_moment(rng)
            workers = all_workers(service)
            dispatching = dispatching_process(service)
            if victim == "master":
                service.kill(service.pid)
                service.wait_for_end()
                service.start()
            elif victim == "dispatcher":
                service.kill(dispatching)
            else:
                service.kill(rng.choice([worker for worker in workers if worker != dispatching]))

    figures = recover_and_check(service, ledger, sink)
    report(f"kills {len(victims)}, {figures}, seed {SEED}")


def test_another_instance_takes_over(
    serve: Serve, database_in_time: dict[str, str], sink: SmtpServer, report: Report
) -> None:
    """Nobody starts the killed one again."""
    ledger = Ledger(SEED)
    victim, survivor = (serve(*GUNICORN, **QUICK | sink.settings | database_in_time).start() for _ in range(2))

    with Load(ledger, victim.port, survivor.port):
        ledger.wait_for(40)
        victim.kill()
        ledger.wait_for(len(ledger.acknowledged) + 20)

    report(f"kills 1, {recover_and_check(survivor, ledger, sink)}")


def test_orders_outlive_the_master_that_preloaded(serve: Serve, sink: SmtpServer, report: Report) -> None:
    """Its workers, which still answer for a second, hold locks of their own on the database file.

    With a connection from before the fork SQLite would take the master's locks for theirs; and when these are gone,
    whoever opens and closes the file next would delete the log that the workers go on writing to.
    """
    ledger = Ledger(SEED)
    service = serve(*BRIEF, "--preload", **QUICK | sink.settings).start()
    clients = [Client(service.port) for _ in range(8)]
    for client in clients:
        ledger.place(client)
    ledger.wait_until_settled(service.database_url)

    service.kill(service.pid)
    for client in clients:
        open_and_close(service.folder / "instance" / "orders.db")
        ledger.place(client)
        client.close()
    service.wait_for_end()

    assert len(ledger.acknowledged) > len(clients), "no worker answered after its master's death"
    report(f"kills 1, {recover_and_check(service.start(), ledger, sink)}")


in_a_worker = pytest.mark.inprocess("the process of a worker that is killed, which its worker replaces")


@pytest.mark.parametrize(
    "point",
    [
        "before-commit",
        "after-commit",
        "after-claim",
        pytest.param("after-send", marks=in_a_worker),
        pytest.param("inside-settle", marks=in_a_worker),
    ],
)
def test_nothing_is_lost_when_it_is_killed_at_a_named_point(
    serve: Serve, database: dict[str, str], sink: SmtpServer, point: str, report: Report
) -> None:
    ledger = Ledger(SEED)
    service = serve(*ARMED, **QUICK | sink.settings | database)
    passes = range(1, 1 + max(1, ROUNDS // 3))

    for nth in passes:
        with Load(ledger, service.port, clients=1):
            service.launch(failpoint=f"{point}:{nth}")
            assert service.wait_for_end() == -signal.SIGKILL, service.log
    died_under = set(ledger.unknown)
    stored = {row["order_id"] for row in read(service.database_url, "SELECT order_id FROM orders")}
    figures = recover_and_check(service.start(), ledger, sink)

    report(f"kills {len(passes)}, {figures}")
    match point:
        case "before-commit":
            assert died_under
            assert not died_under & stored
        case "after-commit":
            assert len(died_under & stored) == len(passes)
        case "after-claim" if service.on_celery:
            assert figures.unknown_attempts == 0, "nobody was at what a relay had claimed"
        case "after-claim" | "inside-settle":
            assert figures.unknown_attempts >= len(passes)
        case "after-send":
            assert figures.copies >= len(passes)


# Killed during a schema upgrade


def test_the_next_start_completes_an_upgrade_that_was_killed(serve: Serve) -> None:
    service = serve(*ARMED)

    for table in (1, 4):
        service.launch(failpoint=f"during-upgrade:{table}")
        assert service.wait_for_end() == -signal.SIGKILL, service.log

    service.start()
    assert service.post(order_id="1", user_id="1", total_price="1").status == 201
    assert service.run("flask", "db", "check").returncode == 0


@pytest.mark.postgres
def test_an_upgrade_of_postgresql_that_was_killed_left_nothing(serve: Serve, bare_postgres_url: str) -> None:
    service = serve(database_url=bare_postgres_url)

    for table in (1, 4):
        killed = service.run(*ARMED[:-1], "db", "upgrade", failpoint=f"during-upgrade:{table}")
        assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not read(bare_postgres_url, "SELECT * FROM pg_tables WHERE schemaname = 'public'")

    assert service.run("flask", "db", "upgrade").returncode == 0
    service.start()
    assert service.post(order_id="1", user_id="1", total_price="1").status == 201


def test_instances_that_are_killed_while_they_race_for_the_upgrade(
    serve: Serve, folder: Path, sink: SmtpServer, rng: random.Random, report: Report
) -> None:
    in_time = 0
    for number in range(ROUNDS):
        ledger = Ledger(SEED + number)
        instance = folder / f"instance-{number}"
        settings = QUICK | sink.settings | {"instance_path": instance, "web_concurrency": 1}
        services = [serve(**settings).launch() for _ in range(2)]
        wait_until((instance / "orders.db").exists, "the database file")
        a_moment(rng)
        for service in services:
            service.kill()
        in_time += not is_up_to_date(services[0])

        service = services[0].start()
        with Load(ledger, service.port, clients=2, limit=10):
            ledger.wait_for(2)
        recover_and_check(service, ledger, sink)
        service.kill()
        sink.received.clear()
    report(f"kills {2 * ROUNDS}, of these before the end of the upgrade {2 * in_time}, seed {SEED}")


# Stopped


def test_sigterm_under_load_loses_nothing_and_sends_nothing_twice(
    serve: Serve, database_in_time: dict[str, str], sink: SmtpServer, rng: random.Random, report: Report
) -> None:
    ledger = Ledger(SEED)
    service = serve(*GUNICORN, **QUICK | sink.settings | database_in_time | {"lease_seconds": 30})
    seconds = []

    with Load(ledger, service.port):
        for _ in range(ROUNDS):
            service.start()
            ledger.wait_for(len(ledger.acknowledged) + rng.randint(10, 40))
            seconds.append(service.stop())

    figures = recover_and_check(service.start(), ledger, sink)
    report(f"stops {ROUNDS} in at most {max(seconds):.1f} s, {figures}, seed {SEED}")
    assert max(seconds) < 15
    assert (figures.copies, figures.unknown_attempts) == (0, 0)


@pytest.mark.parametrize("command", [GUNICORN, DISPATCHER], ids=" ".join)
def test_a_stop_waits_for_the_mail_that_is_under_way(serve: Serve, command: tuple[str, ...], sink: SmtpServer) -> None:
    hold = sink.hold("END")
    ledger = Ledger()
    apart = command == DISPATCHER
    web = serve(dispatch_in_web=not apart, **sink.settings | {"web_concurrency": 1}).start(ready="/healthz")
    service = serve(*command, **sink.settings).start() if apart else web
    with closing(Client(web.port)) as client:
        ledger.place(client)
    hold.wait_for()

    service.signal(signal.SIGTERM)
    assert not holds(lambda: not service.pids(), limit=1), f"it did not wait:\n{service.log}"
    hold.release()

    assert service.wait_for_end() == 0
    service.start()
    figures = recover_and_check(web, ledger, sink)
    assert (figures.copies, figures.unknown_attempts) == (0, 0)


@pytest.mark.inprocess("how soon a stop gives receivers up: Celery's own")
def test_a_stop_does_not_wait_for_ever(serve: Serve, sink: SmtpServer) -> None:
    """What the mail server holds up for longer than SHUTDOWN_SECONDS is sent again after the next start."""
    sink.on("END", HANG)
    ledger = Ledger()
    service = serve(*GUNICORN, **QUICK | sink.settings | {"shutdown_seconds": 1}).start()
    with closing(Client(service.port)) as client:
        ledger.place(client)
    wait_until(lambda: "DATA" in sink.verbs(), "the mail")

    assert service.stop() < 15

    sink.heal()
    figures = recover_and_check(service.start(), ledger, sink)
    assert (len(sink.received), figures.unknown_attempts) == (1, 1)


# Paused


def test_a_dispatcher_paused_past_its_lease_can_not_settle_what_another_took_over(
    serve: Serve, database: dict[str, str], sink: SmtpServer
) -> None:
    ledger = Ledger()
    settings = QUICK | sink.settings | database | {"log_level": "INFO"}
    web = serve(**settings | {"dispatch_in_web": False}).start(ready="/healthz")
    paused, other = serve(*DISPATCHER, **settings).start(), serve(*DISPATCHER, **settings)
    with closing(Client(web.port)) as client:
        first = sink.hold("ACCEPTED")
        ledger.place(client)
        first.wait_for()
        wait_until(lambda: client.get("/api/orders/order-1").body["status"] == "confirmed", "the other receiver")

        paused.signal(signal.SIGSTOP)
        sink.heal()
        second = sink.hold("ACCEPTED")
        other.start()
        while not reached(second):  # it was stopped inside a heartbeat's transaction, whose locks hold up the other
            paused.signal(signal.SIGCONT)
            a_moment(random.Random(SEED))
            paused.signal(signal.SIGSTOP)

        first.release()
        paused.signal(signal.SIGCONT)
        paused.wait_for_log("lease lost")
        second.release()
        figures = recover_and_check(web, ledger, sink)
        assert (figures.copies, figures.unknown_attempts) == (1, 1)

        sink.heal()
        other.stop()
        ledger.place(client)
        recover_and_check(web, ledger, sink)


def test_workers_paused_under_load_do_no_harm(
    serve: Serve, database_in_time: dict[str, str], sink: SmtpServer, rng: random.Random, report: Report
) -> None:
    ledger = Ledger(SEED)
    service = serve(*GUNICORN, **QUICK | sink.settings | database_in_time).start()
    past_a_lease = 0

    with Load(ledger, service.port):
        for _ in range(ROUNDS):
            ledger.wait_for(len(ledger.acknowledged) + rng.randint(10, 30))
            worker, before = rng.choice(all_workers(service)), unknown_attempts(service)
            service.signal(signal.SIGSTOP, worker)
            past_a_lease += holds(lambda before=before: unknown_attempts(service) > before, limit=3)  # type: ignore[misc]
            service.signal(signal.SIGCONT, worker)

    figures = recover_and_check(service, ledger, sink)
    report(f"pauses {ROUNDS}, of these past the lease of a delivery {past_a_lease}, {figures}, seed {SEED}")


# Words used above


def a_moment(rng: random.Random) -> None:
    """Up to a fifth of a second, so that a kill hits any instruction."""
    Event().wait(rng.uniform(0, 0.2))


def all_workers(service: Service) -> list[int]:
    """Two that serve and one that dispatches."""
    return wait_until(lambda: workers if len(workers := service.workers()) == 3 else [], "three workers")


def dispatching_process(service: Service) -> int:
    """By the names of dispatchers: host, process, something random. Those that were killed are there still."""

    def found() -> int | None:
        names = read(service.database_url, "SELECT name FROM dispatchers")
        alive = {int(row["name"].split(":")[1]) for row in names} & set(service.workers())
        return min(alive, default=None)

    return wait_until(found, "a dispatcher")


def holds(condition: Callable[[], object], limit: float = 0) -> bool:
    """Whether it comes true within ``limit`` seconds."""
    with contextlib.suppress(AssertionError, SQLAlchemyError):
        wait_until(condition, "it", limit)
        return True
    return False


def reached(hold: Hold) -> bool:
    try:
        hold.wait_for()
    except AssertionError:
        return False
    return True


def is_up_to_date(service: Service) -> bool:
    return holds(lambda: read(service.database_url, "SELECT * FROM alembic_version"))


def open_and_close(file: Path) -> None:
    """As a person does with the sqlite3 program."""
    program = f"import sqlite3; c = sqlite3.connect({str(file)!r}); c.execute('select count(*) from orders'); c.close()"
    subprocess.run([sys.executable, "-c", program], check=True)


def unknown_attempts(service: Service) -> int:
    return len(read(service.database_url, "SELECT * FROM attempts WHERE outcome = 'unknown'"))


def recover_and_check(service: Service, ledger: Ledger, sink: SmtpServer) -> Figures:
    """Once as it comes back by itself, and once more after the clients that got no answer have asked again."""
    ledger.wait_until_settled(service.database_url)
    figures = ledger.check(service.database_url, sink.received)
    with closing(Client(service.port)) as client:
        ledger.place_unknown_again(client)
    ledger.wait_until_settled(service.database_url)
    ledger.check(service.database_url, sink.received)
    return figures
