"""The service is started in every way that the README names, and does all of its work."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from contextlib import closing, suppress
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, text

from config import CHECKOUT
from tests.acceptance.conftest import Serve
from tests.support.ledger import Ledger, Load, read
from tests.support.postgres import Door
from tests.support.service import (
    DISPATCHER,
    FLASK,
    GRANIAN,
    GUNICORN,
    LIMIT,
    PRELOADED,
    Client,
    Service,
    environment,
    free_port,
    wait_until,
)
from tests.support.smtp import SmtpServer

pytestmark = pytest.mark.timeout(180)

SERVERS = [
    pytest.param(GUNICORN, id="gunicorn"),
    pytest.param(PRELOADED, id="gunicorn --preload"),
    pytest.param(FLASK, id="flask run"),
    pytest.param(GRANIAN, id="granian"),
]
COMMANDS = [*SERVERS, pytest.param(DISPATCHER, id="flask bus run")]

ORDER = {"order_id": "1001", "user_id": "42", "total_price": 19.99}

FAR_BELOW_THE_POLL = 15.0
"""Seconds; POLL_SECONDS is 60 in all of these tests."""


# The flow


@pytest.mark.parametrize("command", SERVERS)
def test_an_order_is_confirmed_counted_and_notified(
    serve: Serve, command: tuple[str, ...], database: dict[str, str]
) -> None:
    service = serve(*command, **database, web_concurrency=None).start()  # as many workers as by default

    answer = service.post(**ORDER)
    assert (answer.status, answer.headers["Location"]) == (201, "/api/orders/1001")
    assert answer.body["status"] == "success"
    assert answer.body["message"] == "订单创建成功"

    wait_until_finished(service, "1001")
    user = service.get("/api/users/42").body
    assert (user["orders_count"], user["total_spent"], user["last_order_id"]) == (1, "19.99", "1001")
    (mail,) = maildir(service)
    assert mail["To"] == "42@users.example"
    assert "1001" in mail["Subject"]
    assert place_in_pieces(service, ORDER | {"order_id": "1002"}) == 201


def place_in_pieces(service: Service, order: dict[str, Any]) -> int:
    """The status of the answer; another request is answered between the halves of the body."""
    body = json.dumps(order).encode()
    with closing(HTTPConnection("127.0.0.1", service.port, timeout=LIMIT)) as connection:
        connection.putrequest("POST", "/api/create_order")
        connection.putheader("Content-Type", "application/json")
        connection.putheader("Content-Length", str(len(body)))
        connection.endheaders()
        connection.send(body[:20])
        assert service.get("/healthz").status == 200
        connection.send(body[20:])
        return connection.getresponse().status


def test_the_timeline_tells_what_followed_from_the_order(serve: Serve) -> None:
    service = serve().start()
    event_id = service.post(**ORDER).body["event_id"]

    created, sent = wait_until_finished(service, "1001")["timeline"]

    assert (created["event_id"], created["type"], sent["type"]) == (event_id, "OrderCreated", "NotificationSent")
    assert sent["cause_id"] == event_id
    states = {delivery["receiver"]: delivery["state"] for event in (created, sent) for delivery in event["deliveries"]}
    assert states == dict.fromkeys(
        ["update_user_order_record", "send_email_notification", "update_order_notification"], "done"
    )


def test_the_mail_goes_out_over_smtp(serve: Serve, database: dict[str, str], sink: SmtpServer) -> None:
    service = serve(**sink.settings, **database).start()

    event_id = service.post(**ORDER, email="somebody@shop.example").body["event_id"]

    wait_until_finished(service, "1001")
    (received,) = sink.received
    assert received.recipients == ["somebody@shop.example"]
    assert event_id in received.message_id


@pytest.mark.inprocess("how each command starts and stops")
@pytest.mark.skipif(not (shutil.which("curl") and shutil.which("sqlite3")), reason="there is no curl, or no sqlite3")
def test_a_person_at_a_terminal_sees_what_the_readme_shows(serve: Serve) -> None:
    service = serve().start()
    url = f"http://127.0.0.1:{service.port}/api/create_order"

    answer = json.loads(output("curl", "-sS", url, "-H", "Content-Type: application/json", "-d", json.dumps(ORDER)))
    assert (answer["status"], answer["message"], answer["order_id"]) == ("success", "订单创建成功", "1001")

    wait_until_finished(service, "1001")
    row = output("sqlite3", str(service.folder / "instance" / "orders.db"), "select * from orders")
    assert re.fullmatch(r"1001\|42\|19\.99\|\|confirmed\|sent\|\d{4}-\d\d-\d\dT[0-9:.]+Z\|[0-9a-f-]{36}\|\|\n", row)


def test_make_run_serves_where_it_is_told_to_and_stops_when_asked(folder: Path) -> None:
    """With the packages that are there already: to install them is not what is tried here."""
    script = "import dev, sys; dev.prepare = lambda *_: None; dev.PYTHON = sys.executable; sys.exit(dev.main('run'))"
    port = free_port()
    settings = {"instance_path": folder / "here", "web_host": "127.0.0.2", "port": port, "web_concurrency": 1}
    printed = folder / "printed"
    with (
        printed.open("w") as out,
        subprocess.Popen([sys.executable, "-c", script], cwd=CHECKOUT, env=environment(**settings), stdout=out) as run,
    ):
        try:
            wait_until(lambda: "mail/new" in printed.read_text(), "the hints")
        finally:
            run.terminate()
    told = printed.read_text().strip().splitlines()

    assert run.returncode == 0
    where = f"Open http://127.0.0.2:{port}/ in a browser: it shows what happens when an order comes in."
    assert told[:2] == [f"The service is ready (Ctrl-C stops it). {where}", "Or place an order here:"]
    assert told[-2:] == [f"  sqlite3 {folder}/here/orders.db 'select * from orders'", f"  cat {folder}/here/mail/new/*"]
    assert (folder / "here" / "orders.db").exists()


def test_a_busy_connection_leaves_its_thread_to_others(serve: Serve) -> None:
    """Though a thread stays with a connection whose next request comes at once, and there is one thread."""
    service = serve(web_concurrency=1, web_threads=1).start()
    stop, asked = threading.Event(), []

    def ask_again_and_again() -> None:
        with closing(HTTPConnection("127.0.0.1", service.port, timeout=30)) as busy:
            while not stop.is_set():
                busy.request("GET", "/healthz")
                asked.append(busy.getresponse().read())

    client = threading.Thread(target=ask_again_and_again)
    client.start()
    try:
        wait_until(lambda: len(asked) > 20, "the busy client")
        with closing(HTTPConnection("127.0.0.1", service.port, timeout=5)) as other:
            for _ in range(20):
                other.request("GET", "/healthz")
                assert other.getresponse().read()
    finally:
        stop.set()
        client.join()


# Waking up


def test_a_dispatcher_apart_from_the_web_is_woken_at_once(serve: Serve, database: dict[str, str]) -> None:
    web = serve(dispatch_in_web=False, **database).start(ready="/healthz")
    serve(*DISPATCHER, **database).start()

    for number in range(5):
        web.post(**ORDER | {"order_id": f"{number}"})
        wait_until_finished(web, f"{number}", FAR_BELOW_THE_POLL)


def test_what_was_pending_is_delivered_after_a_start_without_any_request(
    serve: Serve, database: dict[str, str]
) -> None:
    web = serve(dispatch_in_web=False, **database).start(ready="/healthz")
    for number in range(3):
        assert web.post(**ORDER | {"order_id": f"{number}"}).status == 201
    web.stop()
    assert [row["status"] for row in read(web.database_url, "SELECT status FROM orders")] == ["created"] * 3

    serve(**database).launch()

    def done() -> bool:
        found = read(web.database_url, "SELECT status, notification FROM orders")
        return [(row["status"], row["notification"]) for row in found] == [("confirmed", "sent")] * 3

    wait_until(done, "the orders of before the start", FAR_BELOW_THE_POLL)


# Several at once


def test_two_instances_share_one_database(serve: Serve, database: dict[str, str], sink: SmtpServer) -> None:
    """Each takes orders, both deliver, and nothing happens twice."""
    services = [serve(web_concurrency=2, **sink.settings, **database).start() for _ in range(2)]
    ledger = Ledger()

    with Load(ledger, *[service.port for service in services], limit=80):
        ledger.wait_for(50)

    url = services[0].database_url
    ledger.wait_until_settled(url)
    assert ledger.check(url, sink.received, copies=0).unknown == 0
    for service in services:
        found = int(service.get("/readyz").body["dispatchers"])
        assert found > 2 if service.on_celery else found == 2


@pytest.mark.postgres
def test_several_machines_worth_of_dispatchers_share_postgresql(
    serve: Serve, postgres_url: str, sink: SmtpServer
) -> None:
    """Two machines that take orders, four that deliver: all take part, and nothing happens twice."""
    settings = {**sink.settings, "database_url": postgres_url}
    webs = [serve(dispatch_in_web=False, web_concurrency=2, **settings).start(ready="/healthz") for _ in range(2)]
    dispatchers = [serve(*DISPATCHER, **settings).start() for _ in range(4)]
    ledger = Ledger()

    with Load(ledger, *[web.port for web in webs], clients=8, limit=200):
        ledger.wait_for(150)

    ledger.wait_until_settled(postgres_url)
    figures = ledger.check(postgres_url, sink.received, copies=0)
    assert (figures.unknown, figures.unknown_attempts) == (0, 0)
    found = len(read(postgres_url, "SELECT DISTINCT dispatcher FROM attempts"))
    assert found >= 4 if dispatchers[0].on_celery else found == 4


@pytest.mark.inprocess("how each command starts and stops")
def test_instances_that_start_together_on_a_new_file_bring_it_up_to_date_once(serve: Serve) -> None:
    services = [serve(web_concurrency=2).launch() for _ in range(4)]

    for number, service in enumerate(services):
        service.wait_for_answer("/readyz")
        assert service.post(**ORDER | {"order_id": f"{number}"}).status == 201
    for number, service in enumerate(services):
        wait_until_finished(service, f"{number}")
        assert "Traceback" not in service.log
    assert services[0].run("flask", "db", "check").returncode == 0


@pytest.mark.inprocess("which process of gunicorn dispatches")
def test_one_worker_dispatches_and_a_preloading_master_holds_no_connection(serve: Serve) -> None:
    service = serve(*PRELOADED).start()
    workers = wait_until(lambda: len(found := service.workers()) == 4 and found, "four workers")
    wait_until(lambda: any(open_databases(pid) for pid in workers), "a connection")

    assert not open_databases(service.pid)
    assert service.get("/readyz").body["dispatchers"] == 1


CORES = os.sched_getaffinity(0)


@pytest.mark.skipif(len(CORES) == 1, reason="there is one core only")
@pytest.mark.parametrize("command", [GUNICORN, (*GRANIAN, "--workers", str(len(CORES)), "--respawn-failed-workers")])
def test_each_serving_process_keeps_to_a_core_and_so_does_the_one_in_its_place(
    serve: Serve, command: tuple[str, ...]
) -> None:
    service = serve(*command, web_concurrency=len(CORES), dispatch_in_web="false").start(ready="/healthz")

    def each_has_its_own() -> bool:
        return sorted(cores_of(service), key=min) == [{core} for core in sorted(CORES)]

    wait_until(each_has_its_own, "each process at its core")
    killed = service.workers()[0]
    service.signal(signal.SIGKILL, killed)
    wait_until(lambda: killed not in service.workers() and each_has_its_own(), "another at the core of the killed one")
    assert service.post(**ORDER).status == 201


@pytest.mark.skipif(len(CORES) == 1, reason="there is one core only")
def test_who_dispatches_keeps_to_a_core_as_well(serve: Serve) -> None:
    service = serve(web_concurrency=len(CORES)).start()
    wait_until(lambda: [len(each) for each in cores_of(service)] == [1] * (len(CORES) + 1), "each at a core")
    dispatcher = serve(*DISPATCHER, web_concurrency=len(CORES)).start()
    assert len(os.sched_getaffinity(dispatcher.pid)) == 1


@pytest.mark.skipif(len(CORES) == 1, reason="there is one core only")
def test_processes_that_do_not_fit_the_cores_are_bound_to_none(serve: Serve) -> None:
    service = serve(web_concurrency=len(CORES) + 1).start()
    wait_until(lambda: len(service.workers()) == len(CORES) + 2, "all workers")
    post_and_wait(service, "1")
    assert cores_of(service) == [CORES] * (len(CORES) + 2)


def cores_of(service: Service) -> list[set[int]]:
    """Of each of its workers."""
    found = []
    for pid in service.workers():
        with suppress(ProcessLookupError):  # it has just ended
            found.append(os.sched_getaffinity(pid))
    return found


@pytest.mark.parametrize("web_concurrency", [1, 2])
def test_another_process_dispatches_when_that_one_is_killed(
    serve: Serve, sink: SmtpServer, web_concurrency: int
) -> None:
    """Whether it served too, or others do that and it did nothing else."""
    service = serve(**sink.settings, user_email_domain="users.example", web_concurrency=web_concurrency).start()
    post_and_wait(service, "1")
    killed = dispatching_process(service)
    service.kill(killed)
    post_and_wait(service, "2")
    assert dispatching_process(service, but=killed) in service.workers()


@pytest.mark.inprocess("which process of gunicorn dispatches")
def test_the_last_processes_dispatch_when_a_signal_has_reduced_them(serve: Serve) -> None:
    """gunicorn ends its oldest worker at each SIGTTOU, be it the one that dispatches. The others notice in seconds."""
    service = serve(web_concurrency=3).start()
    wait_until(lambda: len(service.workers()) == 4, "four workers")
    first = dispatching_process(service)
    while first in service.workers():
        before = service.workers()
        assert len(before) > 1
        service.signal(signal.SIGTTOU)
        wait_until(lambda before=before: len(service.workers()) < len(before), "the end of one")  # type: ignore[misc]

    post_and_wait(service, "1", limit=30)
    assert dispatching_process(service, but=first) in service.workers()


def test_a_reload_under_load_loses_nothing_and_leaves_one_dispatcher(serve: Serve, sink: SmtpServer) -> None:
    service = serve(**sink.settings, web_concurrency=2, log_level="WARNING").start()
    old = wait_until(lambda: len(found := service.workers()) == 3 and found, "three workers")
    ledger = Ledger()

    with Load(ledger, service.port, clients=2):
        ledger.wait_for(20)
        service.signal(signal.SIGHUP)
        wait_until(lambda: not set(old) & set(service.workers()), "the end of the old workers")
        ledger.wait_for(len(ledger.acknowledged) + 20)
    with closing(Client(service.port)) as client:
        ledger.place_unknown_again(client)

    ledger.wait_until_settled(service.database_url)
    figures = ledger.check(service.database_url, sink.received, copies=0)
    assert figures.unknown_attempts == 0
    assert dispatching_process(service) in service.workers()
    assert len(service.workers()) == 3


def post_and_wait(service: Service, order_id: str, limit: float = FAR_BELOW_THE_POLL) -> None:
    """By whichever process answers: a connection may be to one that is about to end."""

    def posted() -> bool:
        with suppress(OSError, HTTPException):
            return service.post(**ORDER | {"order_id": order_id}).status in (200, 201)
        return False

    wait_until(posted, "an answer")
    wait_until_finished(service, order_id, limit)


def dispatching_process(service: Service, but: int = 0) -> int:
    """By the dispatcher's name: host, process, something random. One that was killed could not sign off."""
    alive = """SELECT name FROM dispatchers
        WHERE settings NOT LIKE '%stopped_at%' AND settings NOT LIKE '%"engine": "celery"%'"""
    rows = read(service.database_url, alive)
    names = [row["name"] for row in rows]
    (found,) = {int(name.split(":")[1]) for name in names} - {but}
    return found


# Is it ready?


def test_ready_means_that_a_dispatcher_is_alive(serve: Serve, database: dict[str, str]) -> None:
    web = serve(dispatch_in_web=False, **database).start(ready="/healthz")
    assert "no dispatcher is alive" in web.wait_for_answer("/readyz", 503).body["reasons"][0]

    dispatcher = serve(*DISPATCHER, **database).start()
    web.wait_for_answer("/readyz")

    dispatcher.stop()
    assert "no dispatcher is alive" in web.get("/readyz").body["reasons"][0]

    dispatcher.start()
    web.wait_for_answer("/readyz")
    dispatcher.kill()
    half_a_minute_passes(web.database_url)
    assert "no dispatcher is alive" in web.get("/readyz").body["reasons"][0]


def test_ready_means_that_nothing_waits_for_long(serve: Serve) -> None:
    web = serve(dispatch_in_web=False, ready_lag_seconds=1).start(ready="/healthz")
    web.post(**ORDER)

    wait_until(lambda: any("has waited" in reason for reason in web.get("/readyz").body["reasons"]), "the reason")

    serve(*DISPATCHER).start()
    web.wait_for_answer("/readyz")


@pytest.mark.inprocess("how each command starts and stops")
def test_a_container_that_takes_orders_is_healthy_though_it_is_not_ready(serve: Serve) -> None:
    """A mail server that is away must not get the service replaced."""
    service = serve(dispatch_in_web=False).start(ready="/healthz")
    assert service.get("/readyz").status == 503

    dockerfile = (CHECKOUT / "Dockerfile").read_text().replace("\\\n", "")
    (check,) = re.findall(r"^HEALTHCHECK .* CMD (python .*)$", dockerfile, re.MULTILINE)
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    command = ["/bin/sh", "-c", check]

    assert subprocess.run(command, env={"PORT": str(service.port), "PATH": path}, check=False).returncode == 0
    service.stop()
    assert subprocess.run(command, env={"PORT": str(service.port), "PATH": path}, check=False).returncode == 1


# The log


@pytest.mark.inprocess("how each command logs")
def test_the_log_tells_the_story_in_a_line_each(serve: Serve) -> None:
    service = serve().start()
    event_id = service.post(**ORDER).body["event_id"]
    wait_until_finished(service, "1001")
    service.stop()

    lines = [line for line in service.log.splitlines() if "order_id=1001" in line]

    assert "event recorded" in lines[0]
    assert f"event_id={event_id}" in lines[0]
    assert all(re.search(r"event_id=[0-9a-f-]{36}\b", line) for line in lines)
    words = [re.search(r"(event recorded|delivery done) .*?(?:type|receiver)=(\w+) ", line) for line in lines]
    story = [" of ".join(found.groups()) for found in words if found]
    record = "delivery done of update_user_order_record"
    assert story.count(record) == 1, "beside the mail, so it has no place of its own"
    assert [told for told in story if told != record] == [
        "event recorded of OrderCreated",
        "event recorded of NotificationSent",
        "delivery done of send_email_notification",
        "delivery done of update_order_notification",
    ]


@pytest.mark.inprocess("how each command logs")
def test_the_log_can_be_json(serve: Serve) -> None:
    service = serve(log_format="json").start()
    event_id = service.post(**ORDER).body["event_id"]
    wait_until_finished(service, "1001")
    service.stop()

    lines = [json.loads(line) for line in service.log.splitlines()]

    assert [line["message"] for line in lines if line.get("event_id") == event_id] == [
        "event recorded",
        "delivery done",
        "delivery done",
    ]
    said = [line["message"].partition(" ")[0] for line in lines]
    assert {"Starting", "Worker", "Shutting"} <= set(said), "what gunicorn says in its master and in a worker"


@pytest.mark.inprocess("how each command starts and stops")
def test_connections_are_spread_over_the_processes_that_serve(serve: Serve) -> None:
    """Sixteen, of which one process would otherwise take any number."""
    service = serve(*GUNICORN, web_concurrency=2).start()
    workers = wait_until(lambda: found if len(found := service.workers()) == 3 else [], "three workers")

    def are_spread() -> bool:
        before = {pid: sockets(pid) for pid in workers}
        clients = [Client(service.port) for _ in range(16)]
        for client in clients:
            assert client.get("/healthz").status == 200
        *_, fewer, more = sorted(sockets(pid) - before[pid] for pid in workers)
        for client in clients:
            client.close()
        wait_until(lambda: all(sockets(pid) <= before[pid] for pid in workers), "the connections to be closed")
        return fewer + more == 16 and more - fewer <= 4

    for _ in range(3):
        wait_until(are_spread, "connections to be spread")


def sockets(pid: int) -> int:
    """How many are open in a process."""
    files = Path(f"/proc/{pid}/fd").iterdir()
    return sum(file.readlink().name.startswith("socket:") for file in files if file.is_symlink())


@pytest.mark.inprocess("how each command starts and stops")
def test_granian_serves_beside_a_dispatcher_of_its_own(serve: Serve, database: dict[str, str]) -> None:
    """Two workers, and none of them dispatches."""
    web = serve(*GRANIAN, "--workers", "2", dispatch_in_web=False, **database).start(ready="/healthz")
    dispatcher = serve(*DISPATCHER, **database).start()

    for number in range(5):
        assert web.post(**ORDER | {"order_id": f"{number}"}).status == 201
        wait_until_finished(web, f"{number}", FAR_BELOW_THE_POLL)
    assert dispatching_process(dispatcher) == dispatcher.pid
    assert web.stop() < 10


# What stops the start


@pytest.mark.inprocess("how each command starts and stops")
@pytest.mark.parametrize("command", COMMANDS)
def test_a_wrong_setting_stops_the_start_with_one_line(serve: Serve, command: tuple[str, ...]) -> None:
    service = serve(*command, mail_port="smtp").launch()

    assert service.wait_for_end() > 0
    line = sentence(service)
    assert "MAIL_PORT" in line
    assert "1 to 65535" in line


@pytest.mark.inprocess("how each command starts and stops")
@pytest.mark.parametrize("command", COMMANDS)
def test_a_folder_that_can_not_be_made_stops_the_start_with_a_sentence(
    serve: Serve, command: tuple[str, ...], folder: Path
) -> None:
    file = folder / "file"
    file.touch()
    service = serve(*command, instance_path=file / "instance").launch()

    assert service.wait_for_end() > 0
    assert str(file) in sentence(service)


@pytest.mark.inprocess("how each command starts and stops")
@pytest.mark.parametrize("command", [GUNICORN, DISPATCHER], ids=" ".join)
def test_a_file_that_is_no_database_stops_the_start_with_a_sentence(
    serve: Serve, command: tuple[str, ...], folder: Path
) -> None:
    file = folder / "letter.txt"
    file.write_text("Dear Sir or Madam, " * 1000)
    service = serve(*command, database_url=f"sqlite:///{file}").launch()

    assert service.wait_for_end() > 0
    assert str(file) in sentence(service)
    assert file.read_text().startswith("Dear Sir"), "it was written to"


@pytest.mark.inprocess("how each command starts and stops")
def test_a_database_file_that_can_not_be_opened_stops_the_start_with_a_sentence(serve: Serve, folder: Path) -> None:
    service = serve(database_url=f"sqlite:///{folder}").launch()  # it is a folder

    assert service.wait_for_end() > 0
    assert str(folder) in sentence(service)


@pytest.mark.inprocess("how each command starts and stops")
@pytest.mark.parametrize("options", [[], ["--preload", "-w", "4"]], ids=["", "preload"])
def test_gunicorn_can_be_given_its_configuration_from_elsewhere(serve: Serve, folder: Path, options: list[str]) -> None:
    service = serve("gunicorn", "-c", str(CHECKOUT / "gunicorn.conf.py"), *options, "wsgi:app")
    service.cwd = folder
    service.start()
    service.post(**ORDER)
    wait_until_finished(service, "1001")


@pytest.mark.parametrize("options", [["--preload", "-w", "2"], []], ids=["preload", ""])
def test_gunicorn_that_has_not_read_its_configuration_says_where_to_start_it(folder: Path, options: list[str]) -> None:
    """It looks for the file where it is started. A preloading master would dispatch, and then fork."""
    port = free_port()
    bind = ["--bind", f"127.0.0.1:{port}", "--no-control-socket"]
    ended = subprocess.run(
        [sys.executable, "-m", "gunicorn", *bind, "--chdir", str(CHECKOUT), *options, "wsgi:app"],
        cwd=folder,
        env=environment(instance_path=folder / "instance", port=port),
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    (told,) = [line for line in ended.stderr.splitlines() if not line.startswith("[")]

    assert ended.returncode > 0
    assert told.startswith("error: gunicorn runs without this service's gunicorn.conf.py")
    assert f"start it in {CHECKOUT}," in told
    assert not (folder / "instance").exists(), "it did something first"


@pytest.mark.inprocess("how each command starts and stops")
@pytest.mark.postgres
@pytest.mark.parametrize("command", COMMANDS)
def test_postgresql_asks_for_its_schema(serve: Serve, command: tuple[str, ...], bare_postgres_url: str) -> None:
    service = serve(*command, database_url=bare_postgres_url).launch()

    assert service.wait_for_end() > 0
    assert "'flask db upgrade'" in sentence(service)


@pytest.mark.inprocess("how each command starts and stops")
@pytest.mark.postgres
def test_postgresql_serves_after_its_upgrade(serve: Serve, bare_postgres_url: str) -> None:
    service = serve(database_url=bare_postgres_url)

    for _ in range(2):  # twice does no harm
        assert service.run("flask", "db", "upgrade").returncode == 0

    service.start()
    service.post(**ORDER)
    wait_until_finished(service, "1001")


@pytest.mark.postgres
def test_a_database_that_is_away_at_the_start_is_waited_for(serve: Serve, postgres_url: str) -> None:
    """Requests are answered 503 until it is there; then everything goes on without a restart."""
    with Door(postgres_url) as door:
        service = serve(database_url=door.url, database_timeout=0.5).start(ready="/healthz")
        refused = service.post(**ORDER)
        assert (refused.status, refused.headers["Retry-After"]) == (503, "2")
        assert "database" in service.get("/readyz").body["reasons"][0]

        door.open()

        service.wait_for_answer("/readyz")
        assert service.post(**ORDER).status == 201
        wait_until_finished(service, "1001")
        processes = service.log.count("dispatcher started") if service.on_celery else len(service.workers())
        assert service.log.count("database lost") <= processes, "once for each process, not each try"


@pytest.mark.inprocess("how each command starts and stops")
@pytest.mark.postgres
def test_a_dispatcher_alone_waits_for_a_database_that_is_away_at_the_start(serve: Serve, postgres_url: str) -> None:
    with Door(postgres_url) as door:
        dispatcher = serve(*DISPATCHER, database_url=door.url, database_timeout=0.5).launch()
        dispatcher.wait_for_log("database lost")

        door.open()

        dispatcher.wait_for_log("database back")
        web = serve(dispatch_in_web=False, database_url=postgres_url).start()
        web.post(**ORDER)
        wait_until_finished(web, "1001")
        dispatcher.stop()


@pytest.mark.inprocess("how each command starts and stops")
@pytest.mark.postgres
def test_a_dispatcher_that_waits_for_its_database_stops_when_asked(serve: Serve, postgres_url: str) -> None:
    with Door(postgres_url) as door:
        dispatcher = serve(*DISPATCHER, database_url=door.url, database_timeout=0.5).launch()
        dispatcher.wait_for_log("database lost")
        assert dispatcher.stop() < 10


# Stopping


@pytest.mark.inprocess("how each command starts and stops")
@pytest.mark.parametrize("command", [GUNICORN, FLASK, DISPATCHER], ids=" ".join)
def test_it_stops_when_asked(serve: Serve, command: tuple[str, ...]) -> None:
    service = serve(*command).start()
    assert service.stop() < 10
    assert "dispatcher stopped" in service.log


@pytest.mark.inprocess("how each command starts and stops")
def test_what_only_watches_the_files_for_a_reload_does_not_dispatch(serve: Serve) -> None:
    """It would go on with the code of its start."""
    service = serve(*FLASK, "--debug").start()
    assert service.get("/readyz").body["dispatchers"] == 1
    assert service.log.count("dispatcher started") == 1


# Words used above


def output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def wait_until_finished(service: Service, order_id: str, limit: float = FAR_BELOW_THE_POLL) -> dict[str, Any]:
    """The order, as soon as all that follows from it is done."""
    with closing(Client(service.port)) as client:

        def finished() -> dict[str, Any] | None:
            order: dict[str, Any] = client.get(f"/api/orders/{order_id}").body
            return order if (order["status"], order["notification"]) == ("confirmed", "sent") else None

        return wait_until(finished, f"the end of order {order_id}", limit)


def maildir(service: Service) -> list[EmailMessage]:
    files = (service.folder / "instance" / "mail" / "new").iterdir()
    return [message_from_bytes(file.read_bytes(), policy=default) for file in files]


def sentence(service: Service) -> str:
    """The one line that a start which failed has to say, beside those of every start and the server's own words."""
    own = (
        "[info    ] starting ",
        " orders are kept ",
        " mail stays here ",
        " mail leaves ",
        "Starting gunicorn",
        "[INFO]",
        "[WARNING]",
        "[ERROR]",
    )
    lines = [line for line in service.log.splitlines() if not any(word in line for word in own)]
    assert len(lines) == 1, f"not one line:\n{service.log}"
    assert lines[0].lower().startswith("error: ")
    return lines[0]


def open_databases(pid: int) -> list[str]:
    """The SQLite files that a process has open to read or write; not those that it only pins, with O_PATH."""
    found = []
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):
            flags = Path(f"/proc/{pid}/fdinfo/{link.name}").read_text().split("flags:")[1].split()[0]
            if not int(flags, 8) & os.O_PATH:
                found.append(str(link.readlink()))
    return [name for name in found if "orders.db" in name and not name.endswith(".lock")]


def half_a_minute_passes(database_url: str) -> None:
    """For the dispatchers' signs of life."""
    engine = create_engine(database_url)
    past = (
        "strftime('%Y-%m-%dT%H:%M:%f000Z', seen_at, '-30 seconds')"
        if database_url.startswith("sqlite:")
        else "seen_at - interval '30 seconds'"
    )
    with engine.begin() as connection:
        connection.execute(text(f"UPDATE dispatchers SET seen_at = {past}"))
    engine.dispose()
