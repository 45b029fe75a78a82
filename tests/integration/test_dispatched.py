"""Dispatched deliveries: what a relay leases and a worker takes over, and what becomes of it on the way."""

import os
import signal
from typing import Any

import pytest

from app.bus import Dispatcher, Lease, Role
from app.bus.troubles import Cause
from app.errors import InDoubt, Unreachable
from app.events import OrderCreated
from app.retry import Costs, LearnedPolicy
from app.signal import subscriptions
from config import Settings
from tests.support.shop import Shop, not_begun

RECEIVER = "tells_somebody"


@pytest.fixture
def told(shop: Shop) -> list[str]:
    return connected(shop)


def connected(shop: Shop) -> list[str]:
    given: list[str] = []

    def tells_somebody(sender: str, event: OrderCreated) -> None:
        given.append(event.order_id)

    shop.only(tells_somebody)
    return given


@pytest.fixture
def relay(shop: Shop) -> Dispatcher:
    return shop.bus.dispatcher(Role.RELAY)


@pytest.fixture
def worker(shop: Shop) -> Dispatcher:
    return shop.bus.dispatcher(Role.WORKER)


def dispatch(relay: Dispatcher, most: int = 20) -> list[Lease]:
    """As a relay does: what it has claimed it keeps nothing of."""
    claimed = relay.claim(dict.fromkeys(subscriptions(), most))
    relay.abandon(claimed)
    return claimed


def deliver(worker: Dispatcher, sent: Lease) -> bool:
    """A message arrives. Returns whether its delivery was the worker's to try."""
    taken = worker.take(sent.delivery_id, sent.token)
    return taken is not None and bool(worker.deliver([taken]))


def test_a_message_holds_enough_to_deliver(shop: Shop, told: list[str], relay: Dispatcher, worker: Dispatcher) -> None:
    shop.place_order("1")
    (sent,) = dispatch(relay)
    waiting = shop.delivery(RECEIVER)
    assert (waiting.state, waiting.leased_by, waiting.lease_token) == ("leased", None, sent.token)

    assert deliver(worker, sent)
    assert told == ["1"]
    assert shop.states() == {RECEIVER: "done"}
    attempt = shop.execute_all("SELECT outcome, dispatcher FROM attempts")
    assert attempt == [("ok", worker.name)]


def test_a_message_that_comes_twice_loses(shop: Shop, told: list[str], relay: Dispatcher, worker: Dispatcher) -> None:
    shop.place_order("1")
    (sent,) = dispatch(relay)
    taken = worker.take(sent.delivery_id, sent.token)
    assert taken is not None
    assert worker.take(sent.delivery_id, sent.token) is None, "while the first is at it"
    assert worker.deliver([taken])
    assert not deliver(worker, sent), "and afterwards"
    assert told == ["1"]


def test_what_got_lost_on_its_way_is_dispatched_again_and_was_not_tried(
    shop: Shop, told: list[str], relay: Dispatcher, worker: Dispatcher
) -> None:
    shop.place_order("1")
    (lost,) = dispatch(relay)
    shop.clock.advance(shop.settings.lease_seconds - 1)
    assert dispatch(relay) == [], "its lease holds"
    shop.clock.advance(1)
    (again,) = dispatch(relay)

    assert not deliver(worker, lost), "a message that comes late loses"
    assert deliver(worker, again)
    assert shop.outcomes(RECEIVER) == ["ok"]
    assert told == ["1"]


def test_a_worker_that_dies_leaves_an_attempt_of_unknown_outcome(
    shop: Shop, told: list[str], relay: Dispatcher, worker: Dispatcher
) -> None:
    shop.place_order("1")
    (sent,) = dispatch(relay)
    assert worker.take(sent.delivery_id, sent.token) is not None
    shop.clock.advance(shop.settings.lease_seconds)
    (again,) = dispatch(relay)
    assert shop.outcomes(RECEIVER) == ["unknown"]
    assert deliver(shop.bus.dispatcher(Role.WORKER), again)
    assert shop.outcomes(RECEIVER) == ["unknown", "ok"]


def test_what_the_broker_did_not_take_is_due_at_once(shop: Shop, told: list[str], relay: Dispatcher) -> None:
    shop.place_order("1")
    sent = dispatch(relay)
    relay.settle(not_begun(sent))
    assert shop.states() == {RECEIVER: "ready"}
    assert len(dispatch(relay)) == 1
    assert shop.outcomes(RECEIVER) == []


def test_what_was_taken_is_not_given_back_by_the_relay(
    shop: Shop, told: list[str], relay: Dispatcher, worker: Dispatcher
) -> None:
    """The broker had the message, and its confirmation got lost."""
    shop.place_order("1")
    (sent,) = dispatch(relay)
    taken = worker.take(sent.delivery_id, sent.token)
    relay.settle(not_begun([sent]))
    assert shop.states() == {RECEIVER: "leased"}
    assert taken is not None
    assert worker.deliver([taken])


def test_a_receiver_that_was_paused_on_the_way_gets_nothing(
    shop: Shop, told: list[str], relay: Dispatcher, worker: Dispatcher
) -> None:
    shop.place_order("1")
    (sent,) = dispatch(relay)
    shop.bus.pause(RECEIVER, "for the test", "a person")
    assert not deliver(worker, sent)
    assert shop.states() == {RECEIVER: "ready"}
    assert (told, shop.outcomes(RECEIVER)) == ([], [])


@pytest.fixture(params=["plain", "learned"])
def failing(request: pytest.FixtureRequest, settings: Settings) -> Any:
    """A shop whose receiver's backend is down, by either retry policy."""
    policy = LearnedPolicy(costs=Costs(0.2, 3000, 10), maximum=3600) if request.param == "learned" else None
    shop = Shop(settings, policy=policy)
    shop.is_down = True  # type: ignore[attr-defined]

    def tells_somebody(sender: str, event: OrderCreated) -> None:
        if shop.is_down:  # type: ignore[attr-defined]
            raise Unreachable("nobody listens")

    shop.only(tells_somebody)
    yield shop
    shop.close()


def test_of_an_open_breaker_one_message_is_the_probe_and_the_others_go_back(failing: Any) -> None:
    """What was on its way when the breaker opened spends no attempt; a probe that succeeds closes it."""
    relay, worker = failing.bus.dispatcher(Role.RELAY), failing.bus.dispatcher(Role.WORKER)
    for n in range(6):
        failing.place_order(f"{n}")
        failing.clock.advance(1)
    sent = dispatch(relay)
    tried = [deliver(worker, each) for each in sent]
    assert tried[0]
    assert not tried[-1], "the breaker has opened"
    assert failing.count("attempts") == sum(tried)

    for _ in range(60):
        failing.clock.advance(60)
        if probe := dispatch(relay):
            break
    assert len(probe) == 1
    failing.is_down = False
    taken = worker.take(probe[0].delivery_id, probe[0].token)
    assert taken is not None
    assert taken.probe
    assert worker.deliver([taken])
    assert failing.execute_scalar("SELECT count(*) FROM circuit_breakers WHERE opened_at IS NOT NULL") == 0


def test_a_probe_that_runs_long_has_no_second_one_beside_it(failing: Any) -> None:
    relay, worker = failing.bus.dispatcher(Role.RELAY), failing.bus.dispatcher(Role.WORKER)
    for n in range(6):
        failing.place_order(f"{n}")
        failing.clock.advance(1)
    for each in dispatch(relay):
        deliver(worker, each)
    for _ in range(60):
        failing.clock.advance(60)
        if probe := dispatch(relay):
            break
    failing.clock.advance(failing.settings.lease_seconds - 1)
    taken = worker.take(probe[0].delivery_id, probe[0].token)
    assert taken is not None
    failing.clock.advance(failing.settings.lease_seconds - 1)
    assert dispatch(relay) == [], "the probe's lease began anew when the worker took it"


def test_the_next_dispatcher_in_threads_takes_over_what_a_relay_left(
    shop: Shop, told: list[str], relay: Dispatcher
) -> None:
    """BUS_ENGINE was celery, and is inprocess now."""
    shop.place_order("1")
    dispatch(relay)
    assert shop.dispatch() == []
    shop.clock.advance(shop.settings.lease_seconds)
    shop.dispatch()
    assert told == ["1"]
    assert shop.outcomes(RECEIVER) == ["ok"]


def test_a_relay_does_not_count_as_one_that_delivers_mail(shop: Shop, relay: Dispatcher) -> None:
    """Nor do its MAIL settings keep workers from starting."""
    relay.sign_on()
    assert [str(each.cause) for each in shop.bus.status().readiness.reasons] == ["no_dispatcher"]
    assert "no Celery worker" in str(shop.bus.status().readiness.reasons[0])
    assert shop.bus.status().before == []


def test_workers_without_a_relay_are_told_of(shop: Shop, relay: Dispatcher, worker: Dispatcher) -> None:
    worker.sign_on()
    assert "no relay is alive" in str(shop.bus.status().readiness.reasons[0])
    relay.sign_on()
    assert shop.bus.status().readiness.reasons == []


# The broker, as relays tell of it


def test_a_broker_that_is_away_is_a_warning_until_deliveries_are_overdue(
    shop: Shop, told: list[str], relay: Dispatcher, worker: Dispatcher
) -> None:
    """One that restarts is back before that: no balancer shall take all that serves out for it."""
    other = shop.bus.dispatcher(Role.RELAY)
    for each in (relay, other, worker):
        each.sign_on()
    relay.broker = {"lost_since": "2026-11-23T08:00:00.000000Z", "reason": "amqp://broker: refused"}
    relay.heartbeat()
    found = shop.bus.status().readiness
    assert found.reasons == []
    (warning,) = found.warnings
    assert warning.cause is Cause.BROKER_UNREACHABLE
    assert warning.text.startswith("1 of 2 relays can't hand deliveries to the broker, since 2026-11-23T08:00:00")
    assert warning.detail == f"{relay.name}: amqp://broker: refused"
    assert "broker:" not in warning.text, "anybody may read it"

    shop.place_order()
    shop.clock.advance(shop.settings.ready_lag_seconds + 1)
    for each in (relay, other, worker):
        each.heartbeat()
    (reason,) = shop.bus.status().readiness.reasons
    assert reason.cause is Cause.DELIVERIES_OVERDUE
    assert reason.text.endswith("the broker can't be reached")

    relay.broker = {"untaken": [RECEIVER]}
    relay.heartbeat()
    (reason,) = shop.bus.status().readiness.troubles
    assert "no Celery worker takes from its queue" in reason.text

    relay.broker = {}
    relay.heartbeat()
    (reason,) = shop.bus.status().readiness.troubles
    assert "the dispatchers are busy or stuck" in reason.text
    assert all(each.told for each in shop.bus.status().readiness.dispatchers), "its settings are kept beside that"


# The time limit


def test_a_time_limit_interrupts_the_receiver_and_nothing_else() -> None:
    pytest.importorskip("celery", reason="no Celery here: pip install -r requirements-celery.txt")
    from app.engine.celery.limits import TimeLimit

    before = signal.getsignal(signal.SIGUSR1)
    ended: list[int] = []
    by_celery = signal.signal(signal.SIGTERM, lambda number, _: ended.append(number))
    limit = TimeLimit()
    try:
        limit.install()
        os.kill(os.getpid(), signal.SIGUSR1)  # while it settles, say
        with pytest.raises(InDoubt, match="time limit"), limit.in_force():
            os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGUSR1)

        limit.end_if_terminated()
        assert ended == []
        with pytest.raises(InDoubt, match="ended the receiver"), limit.in_force():
            os.kill(os.getpid(), signal.SIGTERM)
        assert ended == [], "not before the interruption is stored"
        limit.end_if_terminated()
        assert ended == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGUSR1, before)
        signal.signal(signal.SIGTERM, by_celery)
