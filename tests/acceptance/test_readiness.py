"""Faults, played on the running service: /readyz, 'flask bus status' and one log line tell the cause of each, within
READY_LAG_SECONDS, and that it is over."""

import os
import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPException
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, text

from app.bus.watch import ANSWER_SECONDS
from tests.acceptance.conftest import Serve
from tests.support.postgres import Door
from tests.support.service import DISPATCHER, Answer, Service, wait_until
from tests.support.smtp import SmtpServer

pytestmark = pytest.mark.timeout(180)

LAG = 3

SLACK = 12
"""Seconds beyond LAG: a fault is told once it has lasted so long, by a look now and then, on a busy machine."""

FAULTY = ("gunicorn", "tests.support.faulty:app")
SETTINGS: dict[str, Any] = {"ready_lag_seconds": LAG, "retry_base_seconds": 0.2, "retry_max_seconds": 1}
ORDER = {"user_id": "42", "total_price": 19.99}


# Receivers


def test_a_receiver_that_never_returns(serve: Serve, folder: Path) -> None:
    service = faulty(serve, folder).start()
    service.post(order_id="hang-1", **ORDER)

    reason = is_told(service, "receiver_hangs", app="tests.support.faulty")
    assert "'misbehave' has been at one delivery for" in reason
    assert "hang-1" not in service.get("/readyz").body["reasons"][0], "anybody may ask"
    assert "order hang-1" in status(service, app="tests.support.faulty")

    cure(folder)
    is_over(service, "receiver_hangs")


def test_a_receiver_that_is_missing(serve: Serve, folder: Path) -> None:
    before = faulty(serve, folder, dispatch_in_web=False).start(ready="/healthz")
    before.post(order_id="1", **ORDER)
    before.stop()
    service = serve(**SETTINGS).start(ready="/healthz")

    reason = is_told(service, "receiver_missing")
    assert "deliveries to 'misbehave', which is not connected; connect it, or discard them" in reason

    discard = ("flask", "bus", "discard", "--receiver", "misbehave", "--because", "it is gone", "--yes")
    assert service.run(*discard).returncode == 0
    is_over(service, "receiver_missing")


def test_a_receiver_that_raises_is_a_warning(serve: Serve, folder: Path) -> None:
    """One poison order must not make a whole service unready."""
    service = faulty(serve, folder).start()
    service.post(order_id="raise-1", **ORDER)

    warning = wait_until(lambda: asked(service, 200).body["warnings"], "the warning", LAG + SLACK)[0]
    assert "deliveries to 'misbehave' fail, with outcome bug" in warning
    assert f"warning: {warning}" in status(service, app="tests.support.faulty")
    assert "KeyError: 'price list'" in begun(service, "deliveries_fail")

    cure(folder)
    wait_until(lambda: not asked(service, 200).body["warnings"], "its end", SLACK)
    service.wait_for_log("trouble ended")


@pytest.mark.inprocess("the process that its receiver ends is not started again")
def test_a_receiver_that_kills_its_process(serve: Serve, folder: Path) -> None:
    """The process that serves is another."""
    dispatcher = serve("flask", "--app", "tests.support.faulty", *DISPATCHER[1:], **faults(folder), lease_seconds=0.5)
    web = faulty(serve, folder, dispatch_in_web=False).start(ready="/healthz")
    dispatcher.start()
    web.post(order_id="kill-1", **ORDER)
    dispatcher.wait_for_end()

    is_told(web, "no_dispatcher", app="tests.support.faulty")
    dispatcher.start()
    wait_until(lambda: dispatcher.ended, "its next death")
    found = wait_until(lambda: web.get("/readyz").body["warnings"], "the warning", SLACK)
    assert "deliveries to 'misbehave' fail, with outcome unknown" in found[0]

    cure(folder)
    dispatcher.start()
    wait_until(lambda: not asked(web, 200).body["warnings"], "its end")


# Mail


def test_a_mail_server_that_is_down(serve: Serve, sink: SmtpServer) -> None:
    service = serve(**sink.settings | SETTINGS, user_email_domain="users.example").start()
    sink.stop()
    assert service.post(order_id="1", **ORDER).status == 201

    reason = is_told(service, "backend_down")
    assert "send_email_notification: paused by its circuit breaker since" in reason
    assert "127.0.0.1" not in service.get("/readyz").body["reasons"][0], "anybody may ask"
    assert "127.0.0.1" in begun(service, "backend_down")
    assert service.post(order_id="2", **ORDER).status == 201, "orders are taken all the same"
    service.wait_for_log("mail server lost")

    sink.start()
    is_over(service, "backend_down")
    service.wait_for_log("mail server back")
    assert service.log.count("mail server lost") == service.log.count("mail server back") == 1


# Dispatchers


@pytest.mark.inprocess("a relay and its worker are missed one after the other")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_dispatcher_that_is_dead_or_stuck(serve: Serve, database: dict[str, str], number: int) -> None:
    web = serve(dispatch_in_web=False, **SETTINGS, **database).start(ready="/healthz")
    dispatcher = serve(*DISPATCHER, **SETTINGS, **database).start()
    web.wait_for_answer("/readyz")
    os.kill(dispatcher.pid, number)

    assert "no dispatcher is alive" in is_told(web, "no_dispatcher")
    web.post(order_id="1", **ORDER)
    wait_until(lambda: "deliveries_overdue" in web.get("/readyz").body["causes"], "the late delivery", LAG + SLACK)

    if number == signal.SIGSTOP:
        os.kill(dispatcher.pid, signal.SIGCONT)
    else:
        dispatcher.wait_for_end()
        dispatcher.start()
    is_over(web, "no_dispatcher")


# The database


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """A file system of 8 MB in memory."""
    with tempfile.TemporaryDirectory(prefix="disk-") as folder:
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", folder], capture_output=True)
        if mounted.returncode:
            pytest.skip("mounting is not permitted here")
        yield Path(folder)
        subprocess.run(["umount", "--lazy", folder], check=True)


def test_a_full_disk(serve: Serve, small_disk: Path) -> None:
    """Nobody orders anything: it is told before the first order is refused."""
    settings = SETTINGS | {"instance_path": small_disk / "instance"}
    web = serve(dispatch_in_web=False, **settings).start(ready="/healthz")
    dispatcher = serve(*DISPATCHER, **settings).start()
    web.wait_for_answer("/readyz")
    filler = small_disk / "filler"
    fill(filler)

    reason = is_told(web, "database_unwritable")
    assert "is full: make room on it" in reason
    dispatcher.wait_for_log("database lost")

    filler.unlink()
    is_over(web, "database_unwritable")
    dispatcher.wait_for_log("database back")
    once_by_each_process(dispatcher, "database lost", "database back")
    assert "trouble began" not in dispatcher.log, "one line for one fault"
    assert web.log.count("trouble began") == 1, "the dispatcher is alive, though it can't say so"


@pytest.mark.postgres
def test_a_postgresql_that_is_stopped(serve: Serve, postgres_url: str) -> None:
    with Door(postgres_url) as door:
        door.open()
        service = serve(database_url=door.url, database_timeout=1, **SETTINGS).start()
        door.shut()

        reason = wait_until(lambda: first_reason(service, "database_unreachable"), "the reason", LAG + SLACK)
        assert reason.startswith("the database can't be read")
        assert "127.0.0.1" not in reason, "anybody may ask"
        told = service.run("flask", "bus", "status")
        assert (told.returncode, told.stdout, len(told.stderr.splitlines())) == (1, "", 1)
        assert "see that it runs" in told.stderr
        assert "port" in told.stderr
        service.wait_for_log("database lost")

        door.open()
        service.wait_for_answer("/readyz")
        service.wait_for_log("database back")
        once_by_each_process(service, "database lost", "database back")
        assert "trouble began" not in service.log, "one line for one fault"


@pytest.mark.postgres
def test_a_postgresql_that_only_reads(serve: Serve, own_server: str) -> None:
    web = serve(dispatch_in_web=False, database_url=own_server, **SETTINGS)
    assert web.run("flask", "db", "upgrade").returncode == 0
    web.start(ready="/healthz")
    serve(*DISPATCHER, database_url=own_server, **SETTINGS).start()
    web.wait_for_answer("/readyz")
    administer(own_server, "ALTER SYSTEM SET default_transaction_read_only = on", "SELECT pg_reload_conf()")

    reason = is_told(web, "database_unwritable")
    assert "cannot execute INSERT in a read-only transaction" in reason
    assert "DATABASE_URL names the primary" in reason

    read_write = "SET SESSION CHARACTERISTICS AS TRANSACTION READ WRITE"
    administer(own_server, read_write, "ALTER SYSTEM RESET default_transaction_read_only")
    administer(own_server, "SELECT pg_reload_conf()")
    is_over(web, "database_unwritable")


@pytest.mark.postgres
def test_a_postgresql_that_does_not_answer(serve: Serve, own_server: str) -> None:
    """However long it is silent, /readyz and the status answer."""
    web = serve(dispatch_in_web=False, database_url=own_server, database_timeout=60, **SETTINGS)
    assert web.run("flask", "db", "upgrade").returncode == 0
    web.start(ready="/healthz")
    serve(*DISPATCHER, database_url=own_server, **SETTINGS).start()
    web.wait_for_answer("/readyz")

    with frozen(own_server):
        for _ in range(3):
            began = time.monotonic()
            answer = web.get("/readyz")
            assert time.monotonic() - began < ANSWER_SECONDS + 2
            assert answer.body["causes"] == ["database_unreachable"]
            assert "the database has not answered for" in answer.body["reasons"][0]
        told = web.run("flask", "bus", "status", database_timeout=1)
        assert told.returncode == 1
        assert len(told.stderr.splitlines()) == 1
        assert "see that it runs" in told.stderr
        assert begun(web, "database_unreachable")

    is_over(web, "database_unreachable")


@pytest.mark.parametrize("revision", ["0001", "9999"], ids=["behind", "newer"])
def test_a_schema_that_is_not_the_codes(serve: Serve, revision: str) -> None:
    service = serve(**SETTINGS).start()
    administer(service.database_url, f"UPDATE alembic_version SET version_num = '{revision}'")

    assert revision in wait_until(lambda: first_reason(service, "schema_differs"), "the reason", LAG + SLACK)
    assert begun(service, "schema_differs")


# Words used above


def once_by_each_process(service: Service, began: str, ended: str) -> None:
    """Each of those that dispatch: on Celery there are several."""
    if not service.on_celery:
        assert service.log.count(began) == service.log.count(ended) == 1
        return
    wait_until(lambda: service.log.count(began) == service.log.count(ended), f"{ended!r} of each")
    assert service.log.count(began) <= service.log.count("dispatcher started")


def faults(folder: Path) -> dict[str, Any]:
    return SETTINGS | {"cure": folder / "cure"}


def faulty(serve: Serve, folder: Path, **settings: Any) -> Service:
    return serve(*FAULTY, **faults(folder) | settings)


def cure(folder: Path) -> None:
    (folder / "cure").touch()


def asked(service: Service, code: int) -> Answer:
    return service.wait_for_answer("/readyz", code)


def first_reason(service: Service, cause: str) -> str | None:
    with suppress(OSError, HTTPException):
        body = service.get("/readyz").body
        return dict(zip(body.get("causes", []), body.get("reasons", []), strict=True)).get(cause)
    return None


def is_told(service: Service, cause: str, app: str = "wsgi") -> str:
    """The reason: /readyz gives it, the status has the same words, and the log has them in one line."""
    reason = wait_until(lambda: first_reason(service, cause), f"{cause} in /readyz", LAG + SLACK)
    assert f"not ready: {unmeasured(reason)}" in unmeasured(status(service, app))
    assert unmeasured(reason) in unmeasured(begun(service, cause))
    return reason


def is_over(service: Service, cause: str) -> None:
    """Nobody restarted the service; the log says it in one line."""
    service.wait_for_answer("/readyz")
    assert len(lines(service, "trouble began", cause)) == 1, "once, not for each poll"
    wait_until(lambda: len(lines(service, "trouble ended", cause)) == 1, "the line that it is over", SLACK)


def begun(service: Service, cause: str) -> str:
    """The line of the log. Somebody asks for /readyz all the while."""

    def line() -> list[str]:
        first_reason(service, cause)
        return lines(service, "trouble began", cause)

    return wait_until(line, f"{cause} in the log", LAG + SLACK)[0]


def lines(service: Service, message: str, cause: str) -> list[str]:
    return [line for line in service.log.splitlines() if message in line and re.search(rf"cause={cause}\b", line)]


def status(service: Service, app: str = "wsgi") -> str:
    done = service.run("flask", "--app", app, "bus", "status")
    assert done.returncode == 0, done.stderr
    return done.stdout


def unmeasured(words: str) -> str:
    """Without what grows from one look to the next, and without the quotes that a log line changes."""
    return re.sub(r"\d+ s\b", "n s", words).replace("'", "").replace('"', "").replace("\\", "")


def fill(file: Path) -> None:
    with suppress(OSError), file.open("wb", buffering=0) as filler:
        while True:
            filler.write(bytes(4096))


def administer(url: str, *statements: str) -> None:
    engine = create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        for statement in statements:
            connection.execute(text(statement))
    engine.dispose()


@contextmanager
def frozen(url: str) -> Iterator[None]:
    """The server's processes stand still, as on a machine that was stopped."""
    engine = create_engine(url)
    with engine.connect() as connection:
        folder = Path(connection.execute(text("SHOW data_directory")).scalar_one())
    engine.dispose()
    first = int((folder / "postmaster.pid").read_text().split()[0])
    children = Path(f"/proc/{first}/task/{first}/children").read_text().split()
    pids = [first, *map(int, children)]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in reversed(pids):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
