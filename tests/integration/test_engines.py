"""What an application may rely on, whichever engine runs its receivers: each test runs on both.

Celery's worker is stood in for by a thread that takes messages and gives them to the runner, as a worker's process
does; the real one is in tests/acceptance/test_celery.py.
"""

import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest

pytest.importorskip("celery", reason="no Celery here: pip install -r requirements-celery.txt")

from kombu import Connection, Consumer

from app.answers import Discard, RetryAfter
from app.bus import lifecycle
from app.clock import Clock
from app.db import Transaction
from app.engine.celery.configure import queue_of
from app.engine.celery.runner import Runner
from app.errors import Refused, Unreachable
from app.events import OrderCreated
from app.signal import subscriptions
from config import Settings
from tests.support.brokers import Redis
from tests.support.shop import FixedWait, Shop
from tests.support.waiting import until


class Carriers:
    """Threads that carry messages from the broker to runners, one each, as the processes of a worker do."""

    def __init__(self, shop: Shop, count: int) -> None:
        self.shop = shop
        self.runners = [Runner(shop.bus, shop.settings) for _ in range(count)]
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=[runner], daemon=True) for runner in self.runners]

    def start(self) -> None:
        for runner in self.runners:
            runner.start()
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join(30)
        for runner in self.runners:
            runner.stop()

    def _run(self, runner: Runner) -> None:
        def receive(_: Any, message: Any) -> None:
            message.ack()
            runner.carry(**json.loads(message.body)[1])

        with Connection(self.shop.settings.celery_broker_url) as connection:
            queues = [queue_of(receiver) for receiver in subscriptions()]
            with Consumer(connection.channel(), queues, on_message=lambda m: receive(None, m), prefetch_count=1):
                while not self._stopping.is_set():
                    with suppress(TimeoutError):
                        connection.drain_events(timeout=0.05)


class Engine:
    """An application on one engine, with whatever that needs."""

    def __init__(self, shop: Shop) -> None:
        self.shop = shop
        self.carriers: Carriers | None = None

    def start(self) -> None:
        self.shop.engine.start()
        if self.shop.settings.bus_engine == "celery":
            self.carriers = Carriers(self.shop, 3)
            self.carriers.start()

    def stop(self) -> None:
        assert self.shop.engine.stop()
        if self.carriers is not None:
            self.carriers.stop()
            self.carriers = None


Open = Callable[..., Engine]


@pytest.fixture(params=["inprocess", "celery"])
def engine_settings(request: pytest.FixtureRequest, settings: Settings) -> Settings:
    chosen = {"bus_engine": request.param, "lease_seconds": 2}
    if request.param == "celery":
        redis: Redis = request.getfixturevalue("redis")
        chosen["celery_broker_url"] = redis.url
    return settings.model_copy(update=chosen)


@pytest.fixture
def engine(engine_settings: Settings) -> Iterator[Engine]:
    """Polls too rarely for that to save any test."""
    shop = Shop(engine_settings, clock=Clock(), policy=FixedWait(0.2))
    made = Engine(shop)
    yield made
    made.stop()
    shop.close()


def test_what_follows_from_an_order_happens_once_and_at_once(engine: Engine) -> None:
    engine.start()
    assert engine.shop.post().status_code == 201
    until(lambda: engine.shop.order().notification == "sent", 15)
    until(lambda: set(engine.shop.states().values()) == {"done"})

    assert engine.shop.order().status == "confirmed"
    assert engine.shop.user().orders_count == 1
    assert engine.shop.count("attempts") == 3


def test_what_waits_when_it_starts_is_delivered(engine: Engine) -> None:
    for n in range(25):
        engine.shop.place_order(f"{n}")
    engine.start()
    until(lambda: {each.state for each in engine.shop.deliveries("update_user_order_record")} == {"done"}, 15)
    assert engine.shop.user().orders_count == 25


def test_a_failure_is_tried_again_when_the_policy_says(engine: Engine) -> None:
    tries: list[int] = []

    def fails_twice(sender: str, event: OrderCreated) -> None:
        tries.append(1)
        if len(tries) < 3:
            raise ValueError("not yet")

    engine.shop.only(fails_twice)
    engine.start()
    engine.shop.place_order()
    until(lambda: engine.shop.states() == {"fails_twice": "done"}, 15)
    assert engine.shop.outcomes("fails_twice") == ["bug", "bug", "ok"]


def test_answers_are_kept_as_they_are(engine: Engine) -> None:
    def discards(sender: str, event: OrderCreated) -> Discard:
        return Discard("not needed")

    def is_refused(sender: str, event: OrderCreated) -> None:
        raise Refused("no such mailbox")

    def is_later(sender: str, event: OrderCreated) -> RetryAfter:
        return RetryAfter(60, "later")

    engine.shop.only(discards)
    engine.shop.receive(is_refused)
    engine.shop.receive(is_later)
    engine.start()
    engine.shop.place_order()
    expected = {"discards": "discarded", "is_refused": "dead", "is_later": "ready"}
    until(lambda: engine.shop.states() == expected and engine.shop.delivery("is_later").reason == "later", 15)
    assert engine.shop.outcomes("is_refused") == ["refused"]
    assert engine.shop.outcomes("is_later") == []


def test_of_a_transactional_receiver_that_fails_nothing_stays(engine: Engine) -> None:
    tries: list[int] = []

    def renames(sender: str, event: OrderCreated, transaction: Transaction) -> None:
        tries.append(1)
        transaction.session.connection().exec_driver_sql("UPDATE orders SET email = 'once' WHERE email IS NULL")
        if len(tries) == 1:
            raise ValueError("in the middle")

    engine.shop.only(renames)
    engine.start()
    engine.shop.place_order()
    until(lambda: engine.shop.states() == {"renames": "done"}, 15)
    assert engine.shop.outcomes("renames") == ["bug", "ok"]
    assert engine.shop.execute_scalar("SELECT count(*) FROM orders WHERE email = 'once'") == 1


def test_while_the_backend_is_down_one_delivery_probes_for_all(engine: Engine) -> None:
    is_down = threading.Event()
    is_down.set()
    tries: list[str] = []

    def calls(sender: str, event: OrderCreated) -> None:
        tries.append(event.order_id)
        if is_down.is_set():
            raise Unreachable("nobody listens")

    engine.shop.only(calls)
    engine.start()
    engine.shop.place_order("0")
    until(lambda: len(tries) >= 2, 15)  # the failure opens the circuit breaker; then it probes
    for n in range(1, 30):
        engine.shop.place_order(f"{n}")
    until(lambda: len(tries) >= 3, 15)
    failures = len(tries)
    assert failures < 15, "what waits spends no attempts"
    is_down.clear()
    until(lambda: {each.state for each in engine.shop.deliveries()} == {"done"}, 30)
    assert len(tries) <= failures + 32


def test_a_paused_receiver_gets_nothing_until_it_is_resumed(engine: Engine) -> None:
    given: list[str] = []

    def listens(sender: str, event: OrderCreated) -> None:
        given.append(event.order_id)

    engine.shop.only(listens)
    engine.start()
    engine.shop.bus.pause("listens", "for the test", "a person")
    engine.shop.place_order("1")
    seen = threading.Event()
    with lifecycle.deliveries_settled.connected_to(lambda _, ends: seen.set(), sender=engine.shop.bus):
        assert not seen.wait(0.3)
    assert given == []
    engine.shop.bus.resume("listens", "a person")
    until(lambda: given == ["1"], 15)


def test_one_receiver_that_hangs_delays_no_other(engine: Engine) -> None:
    go_on = threading.Event()

    def hangs(sender: str, event: OrderCreated) -> None:
        assert go_on.wait(60)

    engine.shop.receive(hangs)
    engine.start()
    with ending(go_on):
        engine.shop.place_order()
        until(lambda: engine.shop.order().notification == "sent", 15)
    until(lambda: set(engine.shop.states().values()) == {"done"}, 15)


def test_a_lease_lasts_as_long_as_its_receiver_runs(engine: Engine) -> None:
    """It is extended, and nobody else takes the delivery."""
    tries: list[int] = []
    go_on = threading.Event()

    def takes_long(sender: str, event: OrderCreated) -> None:
        tries.append(1)
        assert go_on.wait(60)

    engine.shop.only(takes_long)
    engine.start()
    engine.shop.place_order()
    with ending(go_on):
        until(lambda: tries, 15)
        first = engine.shop.delivery("takes_long").due_at
        until(lambda: engine.shop.delivery("takes_long").due_at > first + 2 * (first - engine.shop.clock.now()), 15)
    until(lambda: engine.shop.states() == {"takes_long": "done"}, 15)
    assert len(tries) == 1


def test_it_stops_and_starts_again(engine: Engine) -> None:
    engine.start()
    engine.stop()
    engine.shop.place_order()
    assert set(engine.shop.states().values()) == {"ready"}
    engine.start()
    until(lambda: engine.shop.order().notification == "sent", 15)


def test_dispatchers_are_seen_while_they_are_there(engine: Engine) -> None:
    assert engine.shop.bus.status().readiness.reasons
    engine.start()
    until(lambda: not engine.shop.bus.status().readiness.reasons, 15)
    engine.stop()
    assert [str(trouble.cause) for trouble in engine.shop.bus.status().readiness.reasons] == ["no_dispatcher"]


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_broker_that_goes_away_is_told_and_what_comes_meanwhile_waits(settings: Settings, redis: Redis) -> None:
    given = {"bus_engine": "celery", "celery_broker_url": redis.url, "ready_lag_seconds": 3.0}
    shop = Shop(settings.model_copy(update=given), clock=Clock())
    try:
        shop.engine.start()
        redis.close()
        shop.place_order()

        def causes() -> list[str]:
            return [str(each.cause) for each in shop.bus.watch.look_and_report().troubles]

        until(lambda: {"broker_unreachable", "deliveries_overdue"} <= set(causes()))
        told = str(shop.app.test_cli_runner().invoke(args=["bus", "status"]).output)
        assert "warning: 1 of 1 relays can't hand deliveries to the broker, since " in told
        assert f"@127.0.0.1:{redis.port}/0: " in told
        assert set(shop.states().values()) == {"ready"}
        warnings = shop.client.get("/readyz").json["warnings"]
        assert any("can't hand deliveries to the broker" in each for each in warnings)
        assert not any("127.0.0.1" in each for each in warnings)
    finally:
        shop.close()


@contextmanager
def ending(event: threading.Event) -> Iterator[None]:
    """Let what waits for the event go on afterwards, whatever happened."""
    try:
        yield
    finally:
        event.set()


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_the_doctor_looks_at_the_broker(settings: Settings, redis: Redis) -> None:
    given = {"bus_engine": "celery", "celery_broker_url": redis.url}
    assert "messages wait: 0 to update_user_order_record" in doctor(settings, **given)
    assert "broker" not in doctor(settings)

    redis.close()
    assert re.search(r"wrong +broker: redis://.*refused; start it, or set CELERY_BROKER_URL", doctor(settings, **given))
    secret = {"celery_broker_url": f"amqp://somebody:secret@127.0.0.1:{redis.port}//"}
    found = doctor(settings, **given | secret)
    assert "wrong  broker: amqp://somebody:" in found
    assert "secret" not in found


def doctor(settings: Settings, **chosen: Any) -> str:
    shop = Shop(settings.model_copy(update=chosen))
    try:
        return str(shop.app.test_cli_runner().invoke(args=["doctor"]).output)
    finally:
        shop.close()
