"""What an application may rely on, whichever engine runs its receivers: each test runs on both.

Celery's workers are stood in for by threads: tests/support/carriers.py. Real ones are in tests/acceptance.
"""

import re
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import pytest

pytest.importorskip("celery", reason="no Celery here: pip install -r requirements-celery.txt")

from sqlalchemy import text

from app.answers import Discard, RetryAfter
from app.bus import lifecycle
from app.clock import Clock
from app.db import Transaction
from app.errors import Refused, Unreachable
from app.events import OrderCreated
from config import Settings
from tests.support.brokers import Redis
from tests.support.shop import FixedWait, Shop
from tests.support.waiting import until

pytestmark = pytest.mark.inprocess("each takes its engine itself, in either run")


@pytest.fixture(params=["inprocess", "celery"])
def settings_of_each(request: pytest.FixtureRequest, settings: Settings) -> Settings:
    chosen = {"bus_engine": request.param, "lease_seconds": 2}
    if request.param == "celery":
        redis: Redis = request.getfixturevalue("redis")
        chosen["celery_broker_url"] = redis.url
    return settings.model_copy(update=chosen)


@pytest.fixture
def shop(settings_of_each: Settings) -> Iterator[Shop]:
    """Polls too rarely for that to save any test."""
    made = Shop(settings_of_each, clock=Clock(), policy=FixedWait(0.2))
    yield made
    assert made.engine.stop()
    made.close()


def test_what_follows_from_an_order_happens_once_and_at_once(shop: Shop) -> None:
    shop.engine.start()
    assert shop.post().status_code == 201
    until(lambda: shop.order().notification == "sent", 15)
    until(lambda: set(shop.states().values()) == {"done"})

    assert shop.order().status == "confirmed"
    assert shop.user().orders_count == 1
    assert shop.count("attempts") == 3


def test_what_waits_when_it_starts_is_delivered(shop: Shop) -> None:
    for n in range(25):
        shop.place_order(f"{n}")
    shop.engine.start()
    until(lambda: {each.state for each in shop.deliveries("update_user_order_record")} == {"done"}, 15)
    assert shop.user().orders_count == 25


def test_a_failure_is_tried_again_when_the_policy_says(shop: Shop) -> None:
    tries: list[int] = []

    def fails_twice(sender: str, event: OrderCreated) -> None:
        tries.append(1)
        if len(tries) < 3:
            raise ValueError("not yet")

    shop.only(fails_twice)
    shop.engine.start()
    shop.place_order()
    until(lambda: shop.states() == {"fails_twice": "done"}, 15)
    assert shop.outcomes("fails_twice") == ["bug", "bug", "ok"]


def test_answers_are_kept_as_they_are(shop: Shop) -> None:
    def discards(sender: str, event: OrderCreated) -> Discard:
        return Discard("not needed")

    def is_refused(sender: str, event: OrderCreated) -> None:
        raise Refused("no such mailbox")

    def is_later(sender: str, event: OrderCreated) -> RetryAfter:
        return RetryAfter(60, "later")

    shop.only(discards)
    shop.receive(is_refused)
    shop.receive(is_later)
    shop.engine.start()
    shop.place_order()
    expected = {"discards": "discarded", "is_refused": "dead", "is_later": "ready"}
    until(lambda: shop.states() == expected and shop.delivery("is_later").reason == "later", 15)
    assert shop.outcomes("is_refused") == ["refused"]
    assert shop.outcomes("is_later") == []


def test_of_a_transactional_receiver_that_fails_nothing_stays(shop: Shop) -> None:
    tries: list[int] = []

    def renames(sender: str, event: OrderCreated, transaction: Transaction) -> None:
        tries.append(1)
        transaction.session.connection().exec_driver_sql("UPDATE orders SET email = 'once' WHERE email IS NULL")
        if len(tries) == 1:
            raise ValueError("in the middle")

    shop.only(renames)
    shop.engine.start()
    shop.place_order()
    until(lambda: shop.states() == {"renames": "done"}, 15)
    assert shop.outcomes("renames") == ["bug", "ok"]
    assert shop.execute_scalar("SELECT count(*) FROM orders WHERE email = 'once'") == 1


def test_while_the_backend_is_down_one_delivery_probes_for_all(shop: Shop) -> None:
    is_down = threading.Event()
    is_down.set()
    tries: list[str] = []

    def calls(sender: str, event: OrderCreated) -> None:
        tries.append(event.order_id)
        if is_down.is_set():
            raise Unreachable("nobody listens")

    shop.only(calls)
    shop.engine.start()
    shop.place_order("0")
    until(lambda: len(tries) >= 2, 15)  # the failure opens the circuit breaker; then it probes
    for n in range(1, 30):
        shop.place_order(f"{n}")
    until(lambda: len(tries) >= 3, 15)
    failures = len(tries)
    assert failures < 15, "what waits spends no attempts"
    is_down.clear()
    until(lambda: {each.state for each in shop.deliveries()} == {"done"}, 30)
    assert len(tries) <= failures + 32


def test_a_paused_receiver_gets_nothing_until_it_is_resumed(shop: Shop) -> None:
    given: list[str] = []

    def listens(sender: str, event: OrderCreated) -> None:
        given.append(event.order_id)

    shop.only(listens)
    shop.engine.start()
    shop.bus.pause("listens", "for the test", "a person")
    shop.place_order("1")
    seen = threading.Event()
    with lifecycle.deliveries_settled.connected_to(lambda _, ends: seen.set(), sender=shop.bus):
        assert not seen.wait(0.3)
    assert given == []
    shop.bus.resume("listens", "a person")
    until(lambda: given == ["1"], 15)


def test_one_receiver_that_hangs_delays_no_other(shop: Shop) -> None:
    go_on = threading.Event()

    def hangs(sender: str, event: OrderCreated) -> None:
        assert go_on.wait(60)

    shop.receive(hangs)
    shop.engine.start()
    with ending(go_on):
        shop.place_order()
        until(lambda: shop.order().notification == "sent", 15)
    until(lambda: set(shop.states().values()) == {"done"}, 15)


def test_a_lease_lasts_as_long_as_its_receiver_runs(shop: Shop) -> None:
    """It is extended, and nobody else takes the delivery."""
    tries: list[int] = []
    go_on = threading.Event()

    def takes_long(sender: str, event: OrderCreated) -> None:
        tries.append(1)
        assert go_on.wait(60)

    shop.only(takes_long)
    shop.engine.start()
    shop.place_order()
    with ending(go_on):
        until(lambda: tries, 15)
        first = shop.delivery("takes_long").due_at
        until(lambda: shop.delivery("takes_long").due_at > first + 2 * (first - shop.clock.now()), 15)
    until(lambda: shop.states() == {"takes_long": "done"}, 15)
    assert len(tries) == 1


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_an_answer_that_cannot_be_stored_holds_up_no_other(shop: Shop) -> None:
    """It is kept meanwhile, and stored once that can be."""
    calls: list[str] = []

    def notes(sender: str, event: OrderCreated) -> None:
        calls.append(event.order_id)

    shop.only(notes)
    shop.place_order("refused")
    refused = shop.delivery("notes").delivery_id
    shop.execute(
        f"CREATE TRIGGER refuse BEFORE INSERT ON attempts WHEN NEW.delivery_id = {refused} "
        "BEGIN SELECT RAISE(ABORT, 'as the test wants'); END"
    )
    shop.engine.start()
    until(lambda: calls == ["refused"], 15)
    for n in range(3):
        shop.place_order(f"{n}")
    until(lambda: [each.state for each in shop.deliveries()] == ["leased"] + ["done"] * 3, 15)
    shop.execute("DROP TRIGGER refuse")
    until(lambda: shop.deliveries()[0].state == "done", 15)
    assert len(calls) == 4


@pytest.mark.postgres
@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_a_transaction_that_the_database_fails_each_time_waits_and_says_why(settings_of_each: Settings) -> None:
    """Though all others succeed. It is no failed attempt, and it is not tried without end."""

    def renames(sender: str, event: OrderCreated, transaction: Transaction) -> None:
        transaction.session.execute(text("DO $$ BEGIN RAISE 'as the test wants' USING ERRCODE = '53100'; END $$"))

    with closing(Shop(settings_of_each.model_copy(update={"database_timeout": 1.5}), clock=Clock())) as shop:
        shop.only(renames)
        shop.engine.start()
        shop.place_order()
        until(lambda: "as the test wants" in (shop.delivery("renames").reason or ""))
        assert shop.delivery("renames").state == "ready"
        assert shop.outcomes("renames") == []


def test_it_stops_and_starts_again(shop: Shop) -> None:
    shop.engine.start()
    shop.engine.stop()
    shop.place_order()
    assert set(shop.states().values()) == {"ready"}
    shop.engine.start()
    until(lambda: shop.order().notification == "sent", 15)


def test_dispatchers_are_seen_while_they_are_there(shop: Shop) -> None:
    assert shop.bus.status().readiness.reasons
    shop.engine.start()
    until(lambda: not shop.bus.status().readiness.reasons, 15)
    shop.engine.stop()
    assert [str(trouble.cause) for trouble in shop.bus.status().readiness.reasons] == ["no_dispatcher"]


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
