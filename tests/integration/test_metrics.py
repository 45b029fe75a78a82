"""GET /metrics: the numbers agree with the database, and who may read them."""

import itertools
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import text

from app.errors import DatabaseUnavailable, Deferred, Refused, Unreachable
from app.observe.queues import KEPT_SECONDS
from config import Settings
from tests.support.api import Api
from tests.support.shop import Shop


@pytest.fixture(autouse=True)
def stopwatch(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that the next readings of the database seem to take; none, on however busy a machine."""
    took: list[float] = []
    shown = itertools.cycle([lambda: 0.0, lambda: took.pop() if took else 0.0])
    monkeypatch.setattr("app.observe.queues.time", SimpleNamespace(perf_counter=lambda: next(shown)()))
    return took


class Scraped:
    """The metrics as Prometheus reads them."""

    def __init__(self, exposition: str) -> None:
        self.families = {family.name: family for family in text_string_to_metric_families(exposition)}
        self.samples = {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in self.families.values()
            for sample in family.samples
        }

    def of(self, name: str, **labels: str) -> float | None:
        return self.samples.get((name, tuple(sorted(labels.items()))))

    def all(self, name: str) -> dict[tuple[str, ...], float]:
        """By the labels' values, in the order of the labels' names."""
        return {
            tuple(value for _, value in labels): number
            for (each, labels), number in self.samples.items()
            if each == name
        }


def scrape(shop: Shop) -> Scraped:
    """What Prometheus gets once nothing is kept any more."""
    shop.clock.advance(KEPT_SECONDS * 100)
    answer = shop.client.get("/metrics")
    assert answer.status_code == 200
    assert answer.content_type == "text/plain; version=0.0.4; charset=utf-8"
    assert answer.headers["Cache-Control"] == "no-store"
    return Scraped(answer.text)


def grouped(shop: Shop, query: str) -> dict[tuple[Any, ...], int]:
    with shop.database.read() as session:
        return {tuple(row[:-1]): row[-1] for row in session.execute(text(query))}


def test_requests_are_counted_by_route_and_status(api: Api) -> None:
    api.place(order_id="1")
    api.place(order_id="2")
    api.place(order_id="2")
    api.post("no JSON")
    api.get("/api/orders/1")
    api.get("/api/orders/3")
    api.get("/api/nowhere/1")
    api.get("/api/nowhere/2")
    api.client.open("/api/orders", method="BREW-1")
    api.client.open("/api/orders", method="BREW-2")
    found = scrape(api.shop)
    assert found.all("orders_http_requests_total") == {
        ("POST", "/api/create_order", "201"): 2,
        ("POST", "/api/create_order", "200"): 1,
        ("POST", "/api/create_order", "400"): 1,
        ("GET", "/api/orders/<order_id>", "200"): 1,
        ("GET", "/api/orders/<order_id>", "404"): 1,
        ("GET", "", "404"): 2,
        ("other", "", "405"): 2,
    }
    assert scrape(api.shop).of("orders_http_requests_total", method="GET", route="/metrics", status="200") == 1


def test_events_deliveries_and_attempts_are_as_many_as_the_database_has(shop: Shop) -> None:
    """Two are sent, one is refused, and one is deferred twice before it is sent."""
    fate: dict[str, list[Exception]] = {"3": [Refused("550 no")], "4": [Deferred("450 later"), Deferred("450 later")]}
    deliver = shop.mailer.backend.deliver

    def fail(mail: Any) -> None:
        order_id = mail.order_id
        if fate.get(order_id):
            raise fate[order_id].pop()
        deliver(mail)

    shop.mailer.backend.deliver = fail
    for order_id in ("1", "2", "3", "4"):
        shop.place_order(order_id)
    for _ in range(3):
        shop.dispatch_all()
        shop.clock.advance(60)
    found = scrape(shop)
    events = grouped(shop, "SELECT type, count(*) FROM events GROUP BY type")
    assert found.all("orders_events_total") == events
    ended = "SELECT receiver, state, count(*) FROM deliveries GROUP BY receiver, state"
    settled = found.all("orders_deliveries_total")  # labels by name: outcome, receiver, state
    assert {
        key: sum(number for (_, *labels), number in settled.items() if tuple(labels) == key)
        for key in grouped(shop, ended)
    } == grouped(shop, ended)
    tried = "SELECT a.outcome, d.receiver, count(*) FROM attempts a JOIN deliveries d USING (delivery_id) GROUP BY 1, 2"
    assert {
        key: sum(number for (*labels, _), number in settled.items() if tuple(labels) == key)
        for key in grouped(shop, tried)
    } == grouped(shop, tried)
    attempts = "SELECT receiver, count(*) FROM attempts JOIN deliveries USING (delivery_id) GROUP BY receiver"
    assert found.all("orders_attempt_seconds_count") == grouped(shop, attempts)


def test_the_time_from_post_to_mail_is_told_as_a_histogram(shop: Shop) -> None:
    shop.place_order("1")
    shop.clock.advance(0.2)
    shop.dispatch_all()
    shop.place_order("2")
    shop.clock.advance(40)
    shop.dispatch_all()
    found = scrape(shop)
    name = "orders_event_to_mail_seconds"
    assert found.of(f"{name}_count", event="OrderCreated") == 2
    assert found.of(f"{name}_sum", event="OrderCreated") == pytest.approx(40.2)
    buckets = {
        le: found.of(f"{name}_bucket", event="OrderCreated", le=le) for le in ("0.1", "0.25", "30", "60", "+Inf")
    }
    assert buckets == {"0.1": 0, "0.25": 1, "30": 1, "60": 2, "+Inf": 2}


def test_what_waits_retries_is_dead_and_held_back_is_told_by_receiver(shop: Shop) -> None:
    def deliver(sender: str, event: Any) -> None:
        raise {"1": Refused("550"), "2": Deferred("450")}.get(event.order_id) or Unreachable("down")

    shop.only(deliver)
    for order_id in ("1", "2"):
        shop.place_order(order_id)
    shop.dispatch()
    for order_id in ("3", "4"):
        shop.place_order(order_id)
    shop.dispatch()
    shop.place_order("5")
    shop.clock.advance(90)
    found = Scraped(shop.client.get("/metrics").text)
    assert found.of("orders_deliveries_waiting", receiver="deliver") == 4
    assert found.of("orders_deliveries_retrying", receiver="deliver") == 3
    assert found.of("orders_deliveries_in_flight", receiver="deliver") == 0
    assert found.of("orders_deliveries_dead", receiver="deliver") == 1
    assert found.of("orders_oldest_due_age_seconds", receiver="deliver") == 90
    assert found.of("orders_breaker_open", receiver="deliver") == 1
    assert found.of("orders_breaker_open", receiver="update_order_notification") == 0

    claimed = shop.dispatcher.claim({"deliver": 1})
    shop.bus.pause("deliver", "maintenance", "ann")
    shop.clock.advance(KEPT_SECONDS)
    found = Scraped(shop.client.get("/metrics").text)
    assert found.of("orders_deliveries_in_flight", receiver="deliver") == len(claimed) == 1
    assert found.of("orders_deliveries_waiting", receiver="deliver") == 3
    assert found.of("orders_receiver_paused", receiver="deliver") == 1


def test_living_dispatchers_are_told_with_their_heartbeats(shop: Shop) -> None:
    shop.dispatcher.heartbeat()
    found = Scraped(shop.client.get("/metrics").text)
    assert found.of("orders_dispatchers") == 1
    seen = found.of("orders_dispatcher_heartbeat_timestamp_seconds", dispatcher=shop.dispatcher.name)
    assert seen == shop.clock.now().timestamp()
    assert scrape(shop).of("orders_dispatchers") == 0  # none left over from those that are gone


def test_what_the_database_tells_is_kept_for_some_seconds(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    queues, reads = shop.app.extensions["metrics"].queues, []
    read = queues._read
    monkeypatch.setattr(queues, "_read", lambda: reads.append(1) or read())
    for _ in range(3):
        shop.client.get("/metrics")
    assert len(reads) == 1
    shop.clock.advance(KEPT_SECONDS)
    shop.client.get("/metrics")
    assert len(reads) == 2


def test_a_reading_that_took_long_is_kept_for_ten_times_as_long(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, stopwatch: list[float]
) -> None:
    queues, reads = shop.app.extensions["metrics"].queues, []
    read = queues._read
    monkeypatch.setattr(queues, "_read", lambda: reads.append(1) or read())
    stopwatch.append(2.0)
    for seconds, expected in ((0, 1), (19.9, 1), (0.1, 2)):
        shop.clock.advance(seconds)
        shop.client.get("/metrics")
        assert len(reads) == expected


def test_without_the_database_the_counts_are_told_all_the_same(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    shop.place_order()

    def away() -> Any:
        raise DatabaseUnavailable

    monkeypatch.setattr(shop.database, "read", away)
    found = scrape(shop)
    assert found.of("orders_database_up") == 0
    assert found.of("orders_events_total", type="OrderCreated") == 1
    assert "orders_deliveries_waiting" not in found.families
    monkeypatch.undo()
    assert scrape(shop).of("orders_database_up") == 1


def test_counting_never_fails_a_request(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its folder is a file, say."""
    shop.settings.instance_path.mkdir(exist_ok=True)
    (shop.settings.instance_path / "metrics").touch()
    assert shop.post().status_code == 201
    assert scrape(shop).of("orders_events_total", type="OrderCreated") == 1


# Who may read


def test_this_machine_reads_without_a_token(shop: Shop) -> None:
    assert shop.client.get("/metrics").status_code == 200


@pytest.mark.parametrize(
    "how",
    [
        {"environ_base": {"REMOTE_ADDR": "192.0.2.7"}},
        {"headers": {"X-Forwarded-For": "127.0.0.1"}},
        {"headers": {"Host": "evil.example"}},
    ],
    ids=["from elsewhere", "through a proxy", "a foreign page"],
)
def test_others_are_refused_where_there_is_no_token(shop: Shop, how: dict[str, Any]) -> None:
    answer = shop.client.get("/metrics", **how)
    assert answer.status_code in (403, 421)
    assert answer.content_type == "application/problem+json"
    assert "orders_" not in answer.text.replace("orders.example", "")


@pytest.fixture
def guarded(settings: Settings) -> Any:
    shop = Shop(settings.model_copy(update={"metrics_token": "s3cret", "api_token": "another"}))
    yield shop
    shop.close()


@pytest.mark.parametrize("token, status", [("s3cret", 200), ("another", 401), ("", 401), (None, 401)])
def test_where_there_is_a_token_everybody_needs_it(guarded: Shop, token: str | None, status: int) -> None:
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    for address in ("127.0.0.1", "192.0.2.7"):
        answer = guarded.client.get("/metrics", headers=headers, environ_base={"REMOTE_ADDR": address})
        assert answer.status_code == status
        assert ("WWW-Authenticate" in answer.headers) == (status == 401)
