"""The SQLite file under real processes: replaced and brought back, on a disk that is full or read-only, backed up and
restored while orders come in."""

import contextlib
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app.db import SCHEMA_REVISION
from tests.acceptance.conftest import Serve
from tests.support.ledger import read
from tests.support.service import Service, wait_until
from tests.support.smtp import SmtpServer

pytestmark = pytest.mark.inprocess("a file under one command")

NOTICED_SECONDS = 5


def mail_to(sink: SmtpServer) -> dict[str, Any]:
    return {"mail_server": sink.host, "mail_port": sink.port}


def order(number: int) -> dict[str, str]:
    return {"order_id": f"{number}", "user_id": "42", "total_price": "19.99", "email": f"{number}@ledger.example"}


def wait_until_sent(service: Service, number: int) -> None:
    wait_until(lambda: service.get(f"/api/orders/{number}").body["notification"] == "sent", "the mail")


@pytest.mark.parametrize("what", ["file", "folder"])
def test_a_file_that_is_replaced_and_brought_back(serve: Serve, folder: Path, sink: SmtpServer, what: str) -> None:
    """Noticed by all processes within seconds, also by one that is idle; then it goes on, and is woken as before."""
    service = serve(
        instance_path=folder / "data" / "instance", web_concurrency=2, lease_seconds=2, **mail_to(sink)
    ).start()
    assert service.post(**order(1)).status == 201
    wait_until_sent(service, 1)
    file = folder / "data" / "instance" / "orders.db"
    moved = file if what == "file" else file.parent
    away = moved.with_name("away")

    moved.rename(away)
    if what == "file":
        shutil.copy(away, file)

    service.wait_for_log("database lost", NOTICED_SECONDS)
    for number in range(2, 10):
        assert service.post(**order(number)).status == 503
    assert service.get("/api/orders/1").status == 503
    assert service.get("/readyz").status == 503
    told = [line for line in service.log_since_start.splitlines() if "503" in line and "orders.db" in line]
    assert 1 <= len(told) <= 2, "a line for each process that serves"
    assert service.log.count("database lost") == 1
    assert "under the running service" in told[0]
    assert "'flask db restore'" in told[0]

    away.rename(moved)

    service.wait_for_log("database back")
    assert service.post(**order(20)).status == 201
    wait_until_sent(service, 20)
    assert {row["order_id"] for row in read(service.database_url, "SELECT order_id FROM orders")} == {"1", "20"}
    service.stop()
    assert sorted(mail.recipients for mail in sink.received) == [["1@ledger.example"], ["20@ledger.example"]]


@pytest.fixture
def disk(folder: Path) -> Iterator[Path]:
    """An ext4 file system of eight megabytes."""
    image, path = folder / "image", folder / "disk"
    path.mkdir()
    with image.open("wb") as file:
        file.truncate(8_000_000)
    mount_it = ["mount", "-o", "loop", image, path]
    for command in (["mkfs.ext4", "-q", image], mount_it):
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"no small disk can be made here, which takes root and a loop device: {done.stderr.strip()}")
    yield path
    subprocess.run(["umount", "--lazy", path], check=True)


def remount(disk: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", disk], check=True, capture_output=True)


def test_a_disk_that_became_read_only_refuses_orders_and_says_so(
    serve: Serve, disk: Path, folder: Path, sink: SmtpServer
) -> None:
    """The kernel does that when a disk fails. What is on it can still be read."""
    service = serve(instance_path=disk / "instance", lease_seconds=2, **mail_to(sink)).start()
    assert service.post(**order(1)).status == 201
    wait_until_sent(service, 1)

    remount(disk, "abort")

    service.wait_for_log("database lost", NOTICED_SECONDS)
    assert service.post(**order(2)).status == 503
    assert "the disk that holds orders.db fails, or became read-only: the kernel's log (dmesg) tells" in service.log
    assert service.get("/api/orders/1").status == 200


def test_a_start_on_a_disk_that_is_mounted_read_only_is_refused_with_the_cure(serve: Serve, disk: Path) -> None:
    service = serve(instance_path=disk / "instance").start()
    service.stop()
    remount(disk, "ro")
    done = service.run("gunicorn", "wsgi:app")
    assert done.returncode == 1
    told = done.stderr.splitlines()[-1]
    assert "the disk that holds orders.db is mounted read-only: mount it for writing" in told


@pytest.mark.parametrize("there", ["nothing", "another file"])
def test_a_process_that_takes_a_dead_ones_place_begins_with_no_other_file(
    serve: Serve, folder: Path, there: str
) -> None:
    """What it acknowledged there would be lost as soon as the right file is back."""
    service = serve(instance_path=folder / "data" / "instance").start()
    assert service.post(**order(1)).status == 201
    wait_until_sent(service, 1)  # a mail would make the folder anew that it is written into
    instance, away = (folder / "data" / name for name in ("instance", "away"))
    instance.rename(away)
    if there == "another file":
        instance.mkdir()
        shutil.copy(away / "orders.db", instance)
    (worker,) = service.workers()
    service.kill(worker)

    service.wait_for_answer("/healthz")
    assert service.post(**order(2)).status == 503
    assert instance.exists() == (there == "another file"), "it made one"

    if there == "another file":
        shutil.rmtree(instance)
    away.rename(instance)
    wait_until(lambda: service.post(**order(2)).status in (200, 201), "an order")
    assert service.get("/api/orders/1").status == 200
    service.stop()


def test_a_start_on_a_newer_schema_is_refused_and_who_runs_goes_on(serve: Serve) -> None:
    service = serve().start()
    connection = sqlite3.connect(service.database_url.removeprefix("sqlite:///"))
    with contextlib.closing(connection), connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")

    assert service.post(**order(1)).status == 201
    (reason,) = service.get("/readyz").body["reasons"]
    told = f"the database schema is at 9999, which is newer than this code, whose schema is {SCHEMA_REVISION}; start"
    assert reason.startswith(told)
    (worker,) = service.workers()
    service.kill(worker)
    wait_until(lambda: service.workers() not in ([], [worker]), "another worker")
    service.wait_for_answer("/healthz")
    assert service.post(**order(2)).status == 201
    service.stop()

    for command in (("gunicorn", "wsgi:app"), ("flask", "bus", "run"), ("flask", "run"), ("flask", "orders", "list")):
        done = service.run(*command)
        assert done.returncode == 1
        assert told in (done.stdout + done.stderr).splitlines()[-1]
    shown = service.run("flask", "db", "current").stdout
    assert shown.startswith("9999, which is newer than this code, whose schema is")


def test_a_command_whose_shell_has_other_settings_than_the_service_finds_no_empty_database(serve: Serve) -> None:
    """It would say that nothing waits, and that nothing is wrong."""
    service = serve()
    for words, code in ((["bus", "status"], 1), (["bus", "list"], 1), (["doctor"], 2)):
        done = service.run("flask", *words)
        assert done.returncode == code
        assert "; where the service runs already, set INSTANCE_PATH or DATABASE_URL in this shell as it has them" in (
            done.stdout + done.stderr
        )
    service.start()
    assert service.run("flask", "bus", "status").returncode == 0
