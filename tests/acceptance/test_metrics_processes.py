"""GET /metrics of real processes: one sum, whichever of them answers, and whichever of them has died."""

import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.service import DISPATCHER, GRANIAN, GUNICORN, PRELOADED, Service, wait_until

pytestmark = pytest.mark.timeout(180)
CREATED = ("orders_http_requests_total", (("method", "POST"), ("route", "/api/create_order"), ("status", "201")))
MAILED = ("orders_event_to_mail_seconds_count", (("event", "OrderCreated"),))
ALIVE = ("orders_dispatchers", ())
ASKED = 12
"""Times; each over a connection of its own, so that several processes answer."""


def scrape(service: Service) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{service.port}/metrics", timeout=20) as answer:
        families = text_string_to_metric_families(answer.read().decode())
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


def place(service: Service, first: int, count: int) -> None:
    for number in range(first, first + count):
        assert service.post(order_id=f"{number}", user_id="42", total_price=1).status == 201


def assert_told(service: Service, created: int) -> None:
    """By every process, the dispatcher's mails included."""
    wait_until(lambda: scrape(service).get(MAILED) == created, f"{created} mails")
    assert {scrape(service)[CREATED] for _ in range(ASKED)} == {created}


@pytest.fixture
def made(tmp_path: Path) -> object:
    services: list[Service] = []

    def make(*command: str, **settings: object) -> Service:
        services.append(Service(tmp_path, *command, **({"mail_backend": "memory"} | settings)))
        return services[-1]

    yield make
    for service in services:
        service.close()


Made = Callable[..., Service]


@pytest.mark.parametrize("command", [GUNICORN, PRELOADED, GRANIAN], ids=["gunicorn", "preloaded", "granian"])
def test_every_process_tells_the_sum_of_all(made: Made, command: tuple[str, ...]) -> None:
    service = made(*command, web_concurrency=3).start()
    place(service, 1, 20)
    assert_told(service, 20)
    wait_until(lambda: scrape(service)[ALIVE] == 1, "the dispatcher")


def test_processes_that_are_killed_leave_their_counts_and_nothing_else(made: Made, tmp_path: Path) -> None:
    service = made(web_concurrency=2).start()
    place(service, 1, 20)
    assert_told(service, 20)
    for first, nth in ((21, 0), (31, -1)):  # the dispatcher, and one that serves
        service.kill(sorted(service.workers())[nth])
        service.wait_for_answer("/readyz")
        place(service, first, 10)
        assert_told(service, first + 9)
    assert len(list((tmp_path / "instance" / "metrics").glob("*.counts"))) <= len(service.workers()) + 1

    service.stop()
    service.start()
    place(service, 41, 1)
    assert_told(service, 1)


def test_a_dispatcher_of_its_own_is_among_them(made: Made) -> None:
    web = made(dispatch_in_web=False, ready_lag_seconds=1000).start(ready="/healthz")
    dispatcher = made(*DISPATCHER).start()
    place(web, 1, 5)
    assert_told(web, 5)
    dispatcher.kill()
    dispatcher.start()
    place(web, 6, 5)
    assert_told(web, 10)
