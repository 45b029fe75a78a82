"""The process dies at a system call, or the disk fails, or it is full: nothing is lost, and nothing half stored.

strace kills the worker at the very call that is named, or fails it. Where strace may not do that, these tests are
skipped. SYSCALL_KILLS=all tries every single call; otherwise some of the many alike are left out.
"""

import os
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, text

from app.db import iso, sqlite_module
from tests.acceptance.conftest import Serve
from tests.support.ledger import Ledger, Order, read
from tests.support.service import Answer, Client, Service, wait_until
from tests.support.smtp import SmtpServer
from tests.support.strace import Call, Strace, why_not

pytestmark = [pytest.mark.inprocess("the system calls of one process"), pytest.mark.slow, pytest.mark.timeout(180)]

Report = Callable[[str], None]

EVERY_CALL = os.environ.get("SYSCALL_KILLS") == "all"
SYNCS = "fsync,fdatasync"
"""Which of the two SQLite uses was decided when it was built."""

WHOLE, ABSENT = (1, 1, 2), (0, 0, 0)
"""An order, its event, and the event's deliveries."""


@pytest.fixture
def strace() -> type[Strace]:
    if reason := why_not():
        pytest.skip(reason)
    return Strace


# Kills


def test_an_order_is_on_the_disk_before_it_is_answered(serve: Serve, strace: type[Strace]) -> None:
    """What is written last is synced, and then only the answer leaves: a loss of power after it loses nothing."""
    service = serve(web_concurrency=1).start()

    calls = calls_of_a_post(service, strace, Ledger())

    written = max(n for n, call in enumerate(calls) if call.name == "pwrite64")
    answered = min(n for n, call in enumerate(calls) if "HTTP/1.1 201" in call.rest)
    assert calls[written].file == f"{database_file(service)}-wal"
    synced = [call.file for call in calls[written:answered] if call.name in SYNCS.split(",")]
    assert calls[written].file in synced


def test_a_kill_at_every_system_call_of_a_post_leaves_the_order_whole_or_absent(
    serve: Serve, sink: SmtpServer, strace: type[Strace], report: Report
) -> None:
    """Whole where it was answered; and posted again, it is there once, counted once, and has its mail."""
    service = serve(web_concurrency=1, lease_seconds=2, **mail_to(sink)).start()
    ledger, left = Ledger(), Counter[str]()
    counts = Counter(call.name for call in calls_of_a_post(service, strace, ledger))

    for name in counts:
        for n in range(1, counts[name] + 1):
            left[kill_in_a_post(service, strace, ledger, f"{name}:signal=KILL:when={n}")] += 1

    figures = settle_and_check(service, ledger, sink)
    report(f"calls of a POST {dict(counts)}; kills {left.total()}, of the orders {dict(left)}; {figures}")
    assert left["whole"], "no kill came after the commit"
    assert left["absent"], "no kill came before the commit"


def test_a_kill_at_any_system_call_of_a_delivery_is_made_good(
    serve: Serve, sink: SmtpServer, strace: type[Strace], report: Report
) -> None:
    """One instance takes the orders, the other delivers and is killed."""
    web = serve(web_concurrency=1, dispatch_in_web=False).start(ready="/healthz")
    delivering = serve(web_concurrency=1, lease_seconds=1, poll_seconds=1, **mail_to(sink)).start()
    ledger, kills = Ledger(), 0
    with closing(Client(web.port)) as client:
        for name, count in (("sendto", 8), (SYNCS, 3), ("pwrite64", 20)):
            for n in chosen(count, of=3):
                victim = worker_of(delivering)
                with strace(victim, f"inject={name}:signal=KILL:when={n}") as killer:
                    wait_until(lambda: ledger.place(client) and killer.saw_death, f"death at {name} {n}", pause=0.1)
                see_death(delivering, victim)
                kills += 1

    report(f"kills {kills}; {settle_and_check(delivering, ledger, sink)}")


def test_a_kill_in_the_middle_of_a_checkpoint_loses_nothing(
    serve: Serve, sink: SmtpServer, strace: type[Strace], report: Report
) -> None:
    """Where SQLite copies a long WAL into the database file: it does so once there are a thousand pages in it."""
    service = serve(web_concurrency=1, lease_seconds=2, **mail_to(sink)).start()
    ledger = Ledger()
    file = database_file(service)
    faults = [f"pwrite64:signal=KILL:when={n}" for n in ((1, 2, 10, 100, 500, 1000) if EVERY_CALL else (2, 500))]
    faults += [f"{SYNCS}:signal=KILL:when=1"]

    for fault in faults:
        victim = idle_worker(service)
        with strace(victim, f"inject={fault}", files=(file,)) as killer, closing(Client(service.port)) as client:
            lengthen_wal(service)
            wait_until(lambda: ledger.place(client) is None or killer.saw_death, "a checkpoint")
            wait_until(lambda: killer.saw_death, f"death by {fault}")
        see_death(service, victim)
        worker_of(service)

    with closing(Client(service.port)) as client:
        ledger.place_unknown_again(client)
    report(f"kills {len(faults)}; {settle_and_check(service, ledger, sink)}")


# A disk that fails


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param("pwrite64,ftruncate:error=ENOSPC", id="a full disk"),
        pytest.param("pwrite64,ftruncate:error=EIO", id="writes fail"),
        pytest.param(f"{SYNCS}:error=EIO", id="syncs fail"),
    ],
)
def test_while_the_disk_fails_orders_are_refused_and_afterwards_all_goes_on(
    serve: Serve, sink: SmtpServer, strace: type[Strace], report: Report, fault: str
) -> None:
    """No restart is needed; and a mail that was on its way isn't sent twice, though nobody could extend its lease."""
    service = serve(web_concurrency=1, lease_seconds=1, poll_seconds=0.2, **mail_to(sink)).start()
    ledger, worker = Ledger(), idle_worker(service)
    on_its_way, refused = ledger.new_order(), ledger.new_order()
    hold = sink.hold("END")
    with closing(Client(service.port)) as client:
        ledger.place(client, on_its_way)
        hold.wait_for()
        idle_worker(service, but_for="send_email_notification")
        stored = rows(service)
        with strace(worker, f"inject={fault}", files=database_files(service)) as saboteur:
            assert_refused(ledger.place(client, refused))
            wait_until(lambda: lapsed(service), "the end of the lease")
            assert_refused(ledger.place(client, refused))
            assert rows(service) == stored
            for path in ("/api/orders", f"/api/orders/{on_its_way.order_id}", "/healthz"):
                assert client.get(path).status == 200
        assert service.log.count("database lost") == 1, "one line, not one for each try"

        assert status(ledger.place(client, refused)) == 201
    service.wait_for_log("database back")
    wait_until(lambda: not lapsed(service), "somebody who extends the lease, or takes it over")
    hold.release()

    figures = settle_and_check(service, ledger, sink, copies=0)
    assert service.workers() == [worker], "it was restarted"
    assert service.log.count("database lost") == service.log.count("database back") == 1
    report(f"faults {saboteur.faults}; {figures}")


def test_whose_disk_is_back_first_takes_nothing_over_from_one_who_still_works(
    serve: Serve, sink: SmtpServer, strace: type[Strace]
) -> None:
    """Two dispatchers could not extend their leases for a while. Each extends its own before it looks at others'."""
    both = [serve(web_concurrency=1, lease_seconds=1, poll_seconds=0.2, **mail_to(sink)).launch() for _ in range(2)]
    instances = {worker_of(instance): instance for instance in both}
    service, ledger, hold = both[0], Ledger(), sink.hold("END")
    service.wait_for_answer("/healthz")
    with closing(Client(service.port)) as client:
        ledger.place(client)
    hold.wait_for()
    sending = "SELECT leased_by FROM deliveries WHERE receiver = 'send_email_notification'"
    (holder,) = read(service.database_url, sending)
    second, first = sorted(instances, key=lambda pid: f":{pid}:" in holder["leased_by"], reverse=True)

    def fault(pid: int) -> Strace:
        return strace(pid, f"inject={SYNCS}:error=EIO", files=database_files(service))

    with fault(second):
        with fault(first):
            wait_until(lambda: lapsed(service), "the end of the lease")
        instances[first].wait_for_log("database back")
    instances[second].wait_for_log("database back")
    hold.release()

    settle_and_check(service, ledger, sink, copies=0)


def test_a_single_call_that_fails_is_one_refused_order(
    serve: Serve, sink: SmtpServer, strace: type[Strace], report: Report
) -> None:
    """Whichever it is. The next POST of the same order, a moment later, is answered 201."""
    service = serve(web_concurrency=1, **mail_to(sink)).start()
    ledger, answers, faults = Ledger(), Counter[int](), 0
    counts = Counter(call.name for call in calls_of_a_post(service, strace, ledger) if "orders.db" in call.file)
    worker = idle_worker(service)

    with closing(Client(service.port)) as client:
        for name in counts:
            for n in chosen(counts[name], of=5):
                order, error = ledger.new_order(), ("EIO", "ENOSPC")[n % 2]
                with strace(worker, f"inject={name}:error={error}:when={n}", files=database_files(service)) as saboteur:
                    answer = ledger.place(client, order)
                    answers[status(answer)] += 1
                    assert parts(service, order) == (WHOLE if status(answer) == 201 else ABSENT)
                faults += saboteur.faults
                assert status(ledger.place(client, order)) == (200 if status(answer) == 201 else 201)

    assert set(answers) <= {201, 503}
    assert answers[503]
    report(f"faults {faults}, answered {dict(answers)}; {settle_and_check(service, ledger, sink, copies=0)}")


def test_an_order_refused_over_a_failed_sync_is_whole_or_absent_after_a_restart(
    serve: Serve, sink: SmtpServer, strace: type[Strace], report: Report
) -> None:
    """SQLite finds its commit in the WAL then: it is back, with all that follows. Posting it again works either way."""
    service = serve(web_concurrency=1, **mail_to(sink)).start()
    ledger, left = Ledger(), Counter[str]()

    for _ in range(3):
        victim, order = idle_worker(service), ledger.new_order()
        with strace(victim, f"inject={SYNCS}:error=EIO"), closing(Client(service.port)) as client:
            assert_refused(ledger.place(client, order))
            assert parts(service, order) == ABSENT
            service.kill(victim)
        idle_worker(service)
        left[check_and_post_again(service, ledger, order)] += 1

    report(f"refused orders after a restart: {dict(left)}; {settle_and_check(service, ledger, sink, copies=0)}")


# A disk that is really full


class Disk:
    """A file system of three megabytes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._ballast = path / "ballast"

    def fill(self) -> None:
        """To the last byte."""
        with self._ballast.open("ab", buffering=0) as file:
            for size in (4096, 1):
                try:
                    while file.write(b"x" * size):
                        pass
                except OSError:
                    continue

    def make_room(self) -> None:
        self._ballast.unlink()


@pytest.fixture
def disk(folder: Path) -> Iterator[Disk]:
    path = folder / "disk"
    path.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "disk", path], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no small disk can be made here, which takes root: {done.stderr.strip()}")
    yield Disk(path)
    subprocess.run(["umount", "--lazy", path], check=True)  # who was killed may not have let go of it quite yet


def test_a_full_disk_refuses_orders_until_it_has_room(
    disk: Disk, serve: Serve, sink: SmtpServer, report: Report
) -> None:
    service = serve(
        instance_path=disk.path, web_concurrency=1, lease_seconds=1, poll_seconds=0.2, **mail_to(sink)
    ).start()
    ledger = Ledger()
    worker = idle_worker(service)
    with closing(Client(service.port)) as client:
        hold = sink.hold("END")
        ledger.place(client)
        hold.wait_for()
        disk.fill()
        refused = ledger.new_order()
        wait_until(lambda: status(ledger.place(client, refused)) == 503, "a refusal")
        hold.release()
        sink.wait_for(1)
        service.wait_for_log("database lost")
        assert_refused(ledger.place(client, refused))
        assert parts(service, refused) == ABSENT
        assert client.get("/api/orders").status == 200

        disk.make_room()

        assert status(ledger.place(client, refused)) == 201
    figures = settle_and_check(service, ledger, sink, copies=0)
    assert service.workers() == [worker], "it was restarted"
    assert service.log.count("database lost") == 1
    told = "database or disk is full; the disk that holds orders.db is full: make room on it"
    assert f"answering 503: {told}" in service.log
    assert f"database lost            reason='{told}'" in service.log
    report(f"{figures}")


def test_a_mail_waits_while_the_disk_of_the_maildir_is_full(disk: Disk, serve: Serve, folder: Path) -> None:
    service = serve(
        instance_path=disk.path,
        database_url=f"sqlite:///{folder}/elsewhere/orders.db",
        web_concurrency=1,
        retry_base_seconds=0.05,
        retry_max_seconds=0.2,
        retry_max_attempts=1000,
    ).start()
    disk.fill()
    assert service.post(order_id="1001", user_id="42", total_price="19.99").status == 201

    def outcomes() -> list[str]:
        return [
            row["outcome"] for row in read(service.database_url, "SELECT outcome FROM attempts WHERE outcome <> 'ok'")
        ]

    wait_until(lambda: len(outcomes()) > 1, "attempts")
    assert set(outcomes()) == {"deferred"}
    assert maildir(disk.path) == ([], [])

    disk.make_room()

    wait_until(lambda: service.get("/api/orders/1001").body["notification"] == "sent", "the mail")
    assert [len(files) for files in maildir(disk.path)] == [0, 1]


# Words used above


def mail_to(sink: SmtpServer) -> dict[str, Any]:
    """What is killed again and again waits shortly: by default a mail in doubt waits for minutes."""
    return {
        "mail_server": sink.host,
        "mail_port": sink.port,
        "retry_policy": "exponential",
        "retry_base_seconds": 0.01,
    }


def maildir(instance: Path) -> tuple[list[Path], list[Path]]:
    """Drafts and mails."""
    drafts, mails = (list((instance / "mail" / name).glob("*")) for name in ("tmp", "new"))
    return drafts, mails


def status(answer: Answer | None) -> int:
    assert answer is not None, "the connection died"
    return answer.status


def assert_refused(answer: Answer | None) -> None:
    assert answer is not None
    assert (answer.status, answer.headers["Content-Type"]) == (503, "application/problem+json")
    assert int(answer.headers["Retry-After"]) > 0


def chosen(count: int, of: int) -> list[int]:
    """The numbers of all ``count`` calls; or only of some, from the first to the last."""
    if EVERY_CALL or count <= of:
        return list(range(1, count + 1))
    return [1 + round(n * (count - 1) / (of - 1)) for n in range(of)]


def database_file(service: Service) -> Path:
    return Path(service.database_url.removeprefix("sqlite:///"))


def database_files(service: Service) -> tuple[Path, Path]:
    """What SQLite keeps data in. Its third file, the index of the WAL, is only memory shared by name."""
    file = database_file(service)
    return file, file.with_name(f"{file.name}-wal")


def worker_of(service: Service) -> int:
    """The pid of its one worker, as soon as that has started and its dispatcher has signed on."""

    def started() -> int | None:
        workers = service.workers()
        # Only then the database is looked at: with nobody else there, the look itself would recover and checkpoint it.
        return workers[0] if len(workers) == 1 and f":{workers[0]}:" in service.log else None

    worker = wait_until(started, "a worker")
    signed_on = f"SELECT name FROM dispatchers WHERE name LIKE '%:{worker}:%'"
    wait_until(lambda: read(service.database_url, signed_on), "its dispatcher")
    return worker


def idle_worker(service: Service, but_for: str = "") -> int:
    """The same, as soon as it has nothing to deliver any more but to the receiver ``but_for``."""
    worker = worker_of(service)
    unfinished = f"SELECT * FROM deliveries WHERE state IN ('ready', 'leased') AND receiver <> '{but_for}'"
    wait_until(lambda: not read(service.database_url, unfinished), "the end of its work")
    return worker


def see_death(service: Service, worker: int) -> None:
    """gunicorn has seen that the worker was killed by a signal, and which."""
    service.wait_for_log(f"Worker (pid:{worker}) was sent SIGKILL!")


def calls_of_a_post(service: Service, strace: type[Strace], ledger: Ledger) -> list[Call]:
    """What the thread that answers an order calls, from the first to the last of its writes, syncs and sends."""
    worker = idle_worker(service)
    with strace(worker, f"trace=pwrite64,{SYNCS},sendto") as observer, closing(Client(service.port)) as client:
        assert status(ledger.place(client)) == 201
        idle_worker(service)
    thread = next(call.thread for call in observer.calls if "HTTP/1.1 201" in call.rest)
    return [call for call in observer.calls if call.thread == thread]


def kill_in_a_post(service: Service, strace: type[Strace], ledger: Ledger, fault: str) -> str:
    """Kill a worker over an order, and post that again to the next one. Returns what was left of it at first."""

    def strike() -> Order | None:
        """None when it was hit while it did something else: it has a heartbeat now and then."""
        victim = idle_worker(service)
        with strace(victim, f"inject={fault}") as killer, closing(Client(service.port)) as client:
            for _ in range(3):  # one will do, unless it has fewer such calls than the one that was looked at
                order = ledger.new_order()
                died = ledger.place(client, order) is None
                if died:
                    break
            wait_until(lambda: killer.saw_death, f"death by {fault}")
        see_death(service, victim)
        return order if died else None

    order = wait_until(strike, f"{fault} in the middle of a POST")
    worker_of(service)
    return check_and_post_again(service, ledger, order)


def check_and_post_again(service: Service, ledger: Ledger, order: Order) -> str:
    found = parts(service, order)
    assert found in ((WHOLE,) if order.order_id in ledger.acknowledged else (WHOLE, ABSENT)), f"{order} is half stored"
    with closing(Client(service.port)) as client:
        assert status(ledger.place(client, order)) == (200 if found == WHOLE else 201)
    assert parts(service, order) == WHOLE
    return "whole" if found == WHOLE else "absent"


def parts(service: Service, order: Order) -> tuple[int, int, int]:
    """How many orders, events and deliveries there are of it; the mail's own event not counted."""
    of_event = f"events WHERE type = 'OrderCreated' AND order_id = '{order.order_id}'"
    (found,) = read(
        service.database_url,
        f"""SELECT (SELECT count(*) FROM orders WHERE order_id = '{order.order_id}') AS orders,
            (SELECT count(*) FROM {of_event}) AS events,
            (SELECT count(*) FROM deliveries WHERE event_id IN (SELECT event_id FROM {of_event})) AS deliveries""",
    )
    return found["orders"], found["events"], found["deliveries"]


def rows(service: Service) -> list[dict[str, Any]]:
    """All that orders leave, without the states that deliveries are in."""
    tables = ("orders", "users", "events", "attempts")
    return [row for table in tables for row in read(service.database_url, f"SELECT * FROM {table}")]


def lapsed(service: Service) -> bool:
    """Whether nobody has extended the lease of what is on its way."""
    leases = "SELECT due_at FROM deliveries WHERE state = 'leased'"
    return any(row["due_at"] < iso(datetime.now(UTC)) for row in read(service.database_url, leases))


def lengthen_wal(service: Service) -> None:
    """Write more than a thousand pages, and leave their checkpoint to whoever commits next."""
    engine = create_engine(service.database_url, module=sqlite_module())
    with engine.connect() as connection:
        connection.execute(text("PRAGMA wal_autocheckpoint=0"))
        connection.execute(text("CREATE TABLE IF NOT EXISTS ballast (bytes)"))
        connection.execute(text("DELETE FROM ballast"))
        connection.execute(text("INSERT INTO ballast VALUES (randomblob(4500000))"))
        connection.commit()
    engine.dispose()


def settle_and_check(service: Service, ledger: Ledger, sink: SmtpServer, copies: int | None = None) -> str:
    ledger.wait_until_settled(service.database_url)
    return f"{ledger.check(service.database_url, sink.received, copies=copies)}"
