"""Real processes before a PostgreSQL that answers nothing, for ever, on connections that stay open."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest

from tests.acceptance.conftest import Serve
from tests.support.postgres import Door
from tests.support.service import DISPATCHER, FLASK, GUNICORN, Answer, Client, Service, wait_until

pytestmark = pytest.mark.postgres

TIMEOUT = 3
SHUTDOWN_SECONDS = 2
ORDER = {"order_id": "1001", "user_id": "42", "total_price": "19.99"}


@pytest.fixture
def settings(door: Door) -> dict[str, object]:
    return {"database_url": door.url, "database_timeout": TIMEOUT, "shutdown_seconds": SHUTDOWN_SECONDS}


def timed(service: Service, ask: Callable[[Client], Answer]) -> tuple[int, float]:
    began = time.monotonic()
    with closing(Client(service.port)) as client:
        return ask(client).status, time.monotonic() - began


def test_requests_are_answered_503_in_time_and_afterwards_all_goes_on(
    serve: Serve, door: Door, settings: dict[str, object]
) -> None:
    service = serve(**settings, web_threads=16).start()
    assert service.post(**ORDER).status == 201
    asks: list[Callable[[Client], Answer]] = [
        *[lambda client, n=n: client.post(**(ORDER | {"order_id": f"{n}"})) for n in range(8)],
        *[lambda client, path=path: client.get(path) for path in ("/readyz", "/api/orders", "/api/users/42")],
    ]
    door.stall()
    with ThreadPoolExecutor(len(asks)) as threads:
        for _ in range(2):  # on connections that are open, and on new ones
            answers = list(threads.map(lambda ask: timed(service, ask), asks))
            assert {status for status, _ in answers} == {503}
            assert max(seconds for _, seconds in answers) < TIMEOUT + 1
    door.resume()
    service.wait_for_answer("/readyz")
    assert service.post(**(ORDER | {"order_id": "1002"})).status == 201
    for order_id in ("1001", "1002"):
        wait_until(lambda: service.get(f"/api/orders/{order_id}").body["notification"] == "sent", f"{order_id}'s mail")  # noqa: B023


@pytest.mark.inprocess("how soon a stop gives receivers up: Celery's own")
@pytest.mark.parametrize("command", [GUNICORN, FLASK, DISPATCHER], ids=" ".join)
@pytest.mark.parametrize("moment", ["while it runs", "from the start"])
def test_it_stops_when_asked(
    serve: Serve, door: Door, settings: dict[str, object], command: tuple[str, ...], moment: str
) -> None:
    service = serve(*command, **settings)
    if moment == "from the start":
        door.stall()
        service.launch()
        service.wait_for_log("database lost")
    else:
        service.start()
        door.stall()
    assert service.stop() < SHUTDOWN_SECONDS + 8
