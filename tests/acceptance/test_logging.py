"""The log of a service that runs: with LOG_FORMAT=json, each of its lines is one JSON object."""

import json
import re
from typing import Any

import pytest

from app.version import VERSION
from tests.acceptance.conftest import Serve
from tests.support.service import DISPATCHER, FLASK, GRANIAN, GUNICORN, PRELOADED, Service

pytestmark = [pytest.mark.inprocess("how each command logs"), pytest.mark.timeout(180)]

STARTS = [
    pytest.param(GUNICORN, id="gunicorn"),
    pytest.param(PRELOADED, id="gunicorn --preload"),
    pytest.param(DISPATCHER, id="flask bus run"),
]


def lines(service: Service) -> list[dict[str, Any]]:
    return [json.loads(line) for line in service.log.splitlines()]


def test_gunicorns_access_log_is_json_too(serve: Serve) -> None:
    service = serve("gunicorn", "--access-logfile", "-", "wsgi:app", log_format="json").start()
    service.post(order_id="1001", user_id="42", total_price=19.99)
    service.stop()

    told = [line["message"] for line in lines(service) if line["logger"] == "gunicorn.access"]

    assert any('"POST /api/create_order HTTP/1.1" 201' in message for message in told)
    assert {"gunicorn.error", "app.bus"} <= {line["logger"] for line in lines(service)}


@pytest.mark.parametrize("command", STARTS)
def test_the_first_line_tells_the_version_and_no_process_repeats_it(serve: Serve, command: tuple[str, ...]) -> None:
    service = serve(*command, log_format="json").launch()
    service.wait_for_log("dispatcher started")
    service.stop(60)  # gunicorn's master waits 30 s for a worker that was forked in that moment, and heard no signal

    told = lines(service)

    assert (told[0]["message"], told[0]["version"]) == ("starting", VERSION)
    assert [line["message"] for line in told].count("starting") == 1


@pytest.mark.parametrize("command", [FLASK, GRANIAN], ids=["flask run", "granian"])
def test_other_servers_tell_the_version_too(serve: Serve, command: tuple[str, ...]) -> None:
    service = serve(*command).start()
    service.stop()
    assert re.search(rf"\[info    \] starting +version={re.escape(VERSION)}$", service.log, re.MULTILINE)


@pytest.mark.parametrize("command", STARTS)
@pytest.mark.parametrize("wrong", ["setting", "folder"])
def test_what_stops_a_start_is_a_json_object(serve: Serve, command: tuple[str, ...], wrong: str) -> None:
    service = serve(*command, log_format="json")
    file = service.folder / "file"
    file.touch()
    service.launch(**({"mail_port": "smtp"} if wrong == "setting" else {"instance_path": file / "instance"}))

    assert service.wait_for_end() > 0

    (line,) = [line for line in lines(service) if line["level"] == "critical"]
    assert ("MAIL_PORT" if wrong == "setting" else str(file)) in line["message"]


def test_granians_own_lines_are_json_by_the_file_of_deploy(serve: Serve) -> None:
    service = serve(*GRANIAN, "--access-log", "--log-config", "deploy/granian-log.json", log_format="json").start()
    service.post(order_id="1001", user_id="42", total_price=19.99)
    service.stop()
    assert {"_granian", "granian.access", "app.bus"} <= {line["logger"] for line in lines(service)}


def test_all_of_flask_run_but_its_greeting_is_json(serve: Serve) -> None:
    """Which stands on stdout."""
    service = serve(*FLASK, log_format="json").start()
    service.stop()
    told = [json.loads(line) for line in service.log.splitlines() if not line.startswith(" * ")]
    assert {"werkzeug", "app.bus"} <= {line["logger"] for line in told}


@pytest.mark.postgres
def test_a_dispatcher_that_finds_no_schema_says_so_in_json(serve: Serve, bare_postgres_url: str) -> None:
    service = serve(*DISPATCHER, database_url=bare_postgres_url, log_format="json").launch()
    assert service.wait_for_end() == 1
    *_, line = lines(service)
    assert (line["level"], line["logger"]) == ("critical", "app.process")
    assert "flask db upgrade" in line["message"]
