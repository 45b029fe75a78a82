"""The service in a container that can write nowhere but into its instance folder."""

import subprocess
from pathlib import Path

import pytest

from tests.acceptance.conftest import Serve
from tests.support import container
from tests.support.service import DISPATCHER, FLASK, GRANIAN, GUNICORN, Service

pytestmark = [
    pytest.mark.inprocess("what each command writes to"),
    pytest.mark.skipif(not container.is_possible(), reason="needs root, and leave to make namespaces"),
]


@pytest.fixture
def writable(folder: Path) -> Path:
    folder.chmod(0o755)
    return folder / "instance"


def test_nothing_but_the_instance_folder_can_be_written_to(writable: Path) -> None:
    script = f"touch {writable}/x && ! touch /tmp/x && ! touch /dev/shm/x && ! touch x && ! whoami && test -z $HOME"
    subprocess.run([*container.within(writable), "sh", "-c", script], check=True, capture_output=True)


@pytest.mark.parametrize("command", [GUNICORN, FLASK, GRANIAN], ids=" ".join)
def test_an_order_is_taken_and_dealt_with(serve: Serve, writable: Path, command: tuple[str, ...]) -> None:
    service = serve(*command, web_concurrency=2 if command == GUNICORN else 1)
    service.within = container.within(writable)
    service.start()
    assert service.post(order_id="1", user_id="2", total_price=3).status == 201
    service.wait_for_log("receiver=update_order_notification order_id=1")
    assert "can't" not in service.log
    service.stop()


def test_commands_work_there(serve: Serve, writable: Path) -> None:
    service = serve()
    service.within = container.within(writable)
    for command in ("db upgrade", "doctor", "users set-email 2 ann@example.com"):
        done = service.run("flask", *command.split())
        told = [line for line in done.stderr.splitlines() if "operator acted" not in line]
        assert (done.returncode, told) == (0, []), command


@pytest.mark.postgres
def test_on_postgresql_a_dispatcher_of_its_own_is_woken_without_a_socket_of_its_own(
    serve: Serve, writable: Path, postgres_url: str
) -> None:
    """Its sockets would lie in the temporary folder; NOTIFY serves instead, and no poll is waited for."""
    web: Service = serve(database_url=postgres_url, mail_backend="memory", dispatch_in_web=False)
    dispatcher: Service = serve(*DISPATCHER, database_url=postgres_url, mail_backend="memory")
    for service in (web, dispatcher):
        service.within = container.within(writable)
    dispatcher.start()
    web.start()
    assert web.post(order_id="1", user_id="2", total_price=3).status == 201
    dispatcher.wait_for_log("receiver=update_order_notification order_id=1")
    assert "only the poll" not in dispatcher.log
    web.stop()
    dispatcher.stop()


@pytest.mark.parametrize("command", [GUNICORN, FLASK, DISPATCHER], ids=" ".join)
def test_where_nothing_can_be_written_to_the_start_ends_with_one_line(
    serve: Serve, writable: Path, command: tuple[str, ...]
) -> None:
    service = serve(*command)
    writable.mkdir()
    service.within = container.within()
    service.launch()
    assert service.wait_for_end() not in (0, 99)
    (line,) = [line for line in service.log.splitlines() if "[info" not in line]
    assert line.lower().startswith("error: ")
    assert ("Make one writable" if command == GUNICORN else "whose folder must be writable") in line
