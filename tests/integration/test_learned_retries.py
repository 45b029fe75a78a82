"""The learned policy in the bus: one obstacle for all deliveries of a backend, one for a message of its own."""

import random
import threading
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import select, text

from app.bus import Dispatcher, Filter
from app.bus.claim import Claim
from app.bus.operate import Act
from app.bus.tables import Attempt, CircuitBreaker, Delivery, RetryTransition
from app.db import Transaction
from app.errors import AttemptFailed, Deferred, InDoubt, Refused, Throttled, TimedOut, Unreachable
from app.retry import Gate, LearnedPolicy, Phase
from app.retry.why import WAITS_FOR_BACKEND
from config import Settings
from tests.support.backend import Backend
from tests.support.shop import FixedWait, Shop
from tests.support.waiting import somebody_waits, until

RECEIVER = "server"


@pytest.fixture
def shop(settings: Settings) -> Iterator[Shop]:
    made = Shop(settings, policy=LearnedPolicy(rng=random.Random(1)))
    yield made
    made.close()


@pytest.fixture
def server(shop: Shop) -> Backend:
    made = Backend(shop)
    shop.only(made, concurrency=4)
    return made


def turn(dispatcher: Dispatcher, limit: int = 20) -> int:
    """Claim and deliver once. Returns how many."""
    leases = dispatcher.claim({RECEIVER: limit})
    for batch in dispatcher.batches(leases):
        dispatcher.deliver(batch)
    return len(leases)


def play(shop: Shop, dispatchers: list[Dispatcher], seconds: float) -> None:
    """Dispatch whatever is due, and let time pass until something is, as the worker does."""
    end = shop.clock.monotonic() + seconds
    while shop.clock.monotonic() < end:
        due = [at for dispatcher in dispatchers for at in dispatcher.next_due().values()]
        wait = min([(at - shop.clock.now()).total_seconds() for at in due], default=seconds)
        if wait <= 0 and sum(map(turn, dispatchers)):
            shop.clock.advance(0.02)
        else:
            shop.clock.advance(max(0.02, min(wait, 1.0, end - shop.clock.monotonic())))


def gate(shop: Shop) -> Gate:
    return Gate.from_json(shop.execute_scalar("SELECT gate FROM circuit_breakers"))


def rows(shop: Shop, model: Any) -> list[Any]:
    with shop.database.read() as session:
        return list(session.scalars(select(model).order_by(*model.__table__.primary_key)))


def is_down_until(server: Backend, seconds: float, error: Exception | None = None) -> None:
    server.trouble = lambda _: (error or Unreachable("no route")) if server.now < seconds else None


def goes_down(shop: Shop, server: Backend) -> None:
    """From now on; two of ten deliveries have shown it, and all wait behind the gate."""
    server.fail(Unreachable("no route"))
    shop.place_orders(10)
    turn(shop.dispatcher, 2)
    assert gate(shop).phase is Phase.OPEN


def test_an_outage_of_90_seconds_costs_few_attempts_and_all_drain_when_it_ends(shop: Shop, server: Backend) -> None:
    """100 wait, three dispatchers watch; the ramp lets all through within seconds of the outage's end."""
    is_down_until(server, 90)
    shop.place_orders(100)
    dispatchers = [shop.bus.dispatcher() for _ in range(3)]
    play(shop, dispatchers, 89)
    before = len(server.asked)
    assert before < 60, "one probe at a time: without a gate, 100 are made in the first second"
    play(shop, dispatchers, 30)
    assert sorted(server.served, key=int) == [f"{n}" for n in range(100)]
    assert {delivery.state for delivery in shop.deliveries()} == {"done"}
    assert server.now < 130
    last = max(server.asked_at)
    assert last < 100, f"the last came through {last - 90:.1f} s after the outage's end"
    assert gate(shop).is_wide_open
    (transition,) = [row for row in rows(shop, RetryTransition) if row.gone and row.scope == "backend"]
    assert (transition.receiver, transition.kind) == (RECEIVER, "unreachable")
    assert transition.age_from < 90 <= transition.age_to


def test_an_outage_is_seen_where_one_order_waits(shop: Shop, server: Backend) -> None:
    """Its second refused connection opens the breaker, so that people are told; and it is the probe from then on."""
    is_down_until(server, 60)
    shop.place_order("0")
    play(shop, [shop.dispatcher], 20)
    (breaker,) = rows(shop, CircuitBreaker)
    assert breaker.opened_at is not None
    shop.dispatcher.heartbeat()
    (outage,) = shop.bus.watch.look().outages
    assert (outage.receiver, outage.waiting) == (RECEIVER, 1)
    play(shop, [shop.dispatcher], 120)
    assert server.served == ["0"]
    assert not shop.bus.watch.look().outages


def test_two_dispatchers_share_one_probe(shop: Shop, server: Backend) -> None:
    goes_down(shop, server)
    first, second = shop.bus.dispatcher(), shop.bus.dispatcher()
    shop.clock.advance(60)
    assert [len(d.claim({RECEIVER: 20})) for d in (first, second, first)] == [1, 0, 0]


@pytest.mark.postgres
@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_two_that_claim_at_once_share_one_probe(shop: Shop, server: Backend) -> None:
    """The second waits for the first, and reads the gate again. On SQLite nobody else can be claiming."""
    goes_down(shop, server)
    shop.clock.advance(60)
    others: list[Any] = []
    second = threading.Thread(target=lambda: others.extend(shop.bus.dispatcher().claim({RECEIVER: 20})))

    def first(transaction: Transaction) -> int:
        mine = Claim(transaction, shop.dispatcher.retries, timedelta(seconds=30), "first", alone=False)
        mine.take(RECEIVER, 4)
        second.start()
        until(lambda: somebody_waits(shop.database))
        return len(mine.leases)

    assert shop.database.transact(first) == 1
    second.join(20)
    assert others == []


def test_what_proved_the_outage_waits_at_the_gate(shop: Shop, server: Backend) -> None:
    """The first had a wait of its own; it is due when the backend is back, and spends no attempt before."""
    server.fail(TimedOut())
    shop.place_orders(10)
    turn(shop.dispatcher, 1)
    (own, *_) = shop.deliveries(RECEIVER)
    assert own.due_at > shop.clock.now()
    assert own.obstacle == "timeout"
    turn(shop.dispatcher, 1)
    assert gate(shop).phase is Phase.OPEN
    (own, *_) = shop.deliveries(RECEIVER)
    assert own.due_at == shop.clock.now()
    assert (own.obstacle, own.due_because) == (None, WAITS_FOR_BACKEND)


def test_a_probe_was_never_tried_even_where_all_failures_are_refusals(shop: Shop, server: Backend) -> None:
    server.fail(Deferred("451 local error", code=451))
    shop.place_orders(10)
    turn(shop.dispatcher, 3)
    assert gate(shop).phase is Phase.OPEN
    for _ in range(3):
        shop.clock.advance(600)
        (probe,) = shop.dispatcher.claim({RECEIVER: 20})
        assert probe.spent == 0
        shop.dispatcher.deliver([probe])


def test_the_probe_is_one_that_has_not_failed(shop: Shop, server: Backend) -> None:
    goes_down(shop, server)
    shop.clock.advance(60)
    (probe,) = shop.dispatcher.claim({RECEIVER: 20})
    assert (probe.order_id, probe.probe, probe.spent) == ("9", True, 0)
    assert "8 deliveries wait" in str(probe.why) or "10 deliveries wait" in str(probe.why)


def test_a_probe_whose_process_died_is_followed_by_another(shop: Shop, server: Backend) -> None:
    goes_down(shop, server)
    shop.clock.advance(60)
    assert len(shop.dispatcher.claim({RECEIVER: 20})) == 1
    shop.clock.advance(29)
    assert shop.bus.dispatcher().claim({RECEIVER: 20}) == []
    shop.clock.advance(2)
    assert len(shop.bus.dispatcher().claim({RECEIVER: 20})) == 1


def test_a_probe_that_runs_on_stays_the_only_one(shop: Shop, server: Backend) -> None:
    goes_down(shop, server)
    shop.clock.advance(60)
    assert len(shop.dispatcher.claim({RECEIVER: 20})) == 1
    other = shop.bus.dispatcher()
    for _ in range(9):
        shop.clock.advance(10)
        shop.dispatcher.heartbeat()
        assert other.claim({RECEIVER: 20}) == []
    shop.clock.advance(31)
    assert len(other.claim({RECEIVER: 20})) == 1


def test_a_greylisted_message_waits_for_its_own_sake_and_delays_nobody(shop: Shop, server: Backend) -> None:
    """Its obstacle is its own: the gate stays open, and its attempts come at growing distances."""

    def greylists(order_id: str) -> Exception | None:
        asked = [at for at, who in zip(server.asked_at, server.asked, strict=True) if who == order_id]
        if order_id.startswith("grey") and server.now < asked[0] + 300:
            return Deferred("450 4.7.1 try again later", code=450, enhanced="4.7.1")
        return None

    server.trouble = greylists
    for n in range(5):
        shop.place_order(f"grey-{n}")
        shop.place_order(f"{n}")
    play(shop, [shop.dispatcher], 600)
    assert len(server.served) == 10
    assert max(delivery.attempts for delivery in shop.deliveries()) < 9
    assert gate(shop).is_wide_open
    tried = [row for row in rows(shop, Attempt) if row.reply_code == 450]
    assert tried
    assert {row.enhanced_code for row in tried} == {"4.7.1"}
    found = [row for row in rows(shop, RetryTransition) if row.gone]
    assert [(row.scope, row.kind) for row in found] == [("message", "greylisted")] * 5
    assert all(row.age_from < 300 <= row.age_to for row in found)
    assert len([row for row in rows(shop, RetryTransition) if row.age_from is None]) == 5, "one first failure each"


def test_throttling_becomes_a_rate_that_all_processes_keep(shop: Shop, server: Backend) -> None:
    """The server takes four a second. Two dispatchers share the rate that is learned of its refusals."""
    bucket = {"tokens": 8.0, "at": 0.0}

    def throttles(_: str) -> Exception | None:
        bucket["tokens"] = min(8.0, bucket["tokens"] + 4 * (server.now - bucket["at"]))
        bucket["at"] = server.now
        if bucket["tokens"] < 1:
            return Throttled("450 4.7.0 too fast", code=450, enhanced="4.7.0")
        bucket["tokens"] -= 1
        return None

    server.trouble = throttles
    shop.place_orders(200)
    play(shop, [shop.bus.dispatcher(), shop.bus.dispatcher()], 120)
    assert len(server.served) == 200
    assert len(server.asked) < 1.2 * 200
    learned = gate(shop).rate.per_second
    assert learned is not None
    assert 3 < learned < 6
    assert shop.execute_scalar("SELECT count(*) FROM deliveries WHERE state != 'done'") == 0


@pytest.mark.parametrize("begins", [0, 30])
def test_a_server_that_throttles_all_is_down(shop: Shop, server: Backend, begins: int) -> None:
    """As while it is restarted: from the start on, or in the midst of traffic. No rate remains of it."""
    shutting_down = Throttled("421 4.3.2 shutting down", code=421, enhanced="4.3.2")
    server.trouble = lambda _: shutting_down if begins <= server.now < 120 else None
    for n in range(100):
        shop.place_order(f"{n}")
        play(shop, [shop.dispatcher], 1)
    assert gate(shop).phase is Phase.OPEN
    assert len(server.asked) - len(server.served) < 40, "one probe at a time"
    play(shop, [shop.dispatcher], 40)
    assert len(server.served) == 100
    assert gate(shop).is_wide_open


def test_a_refusal_is_final_and_says_that_the_server_is_back(shop: Shop, server: Backend) -> None:
    goes_down(shop, server)
    server.fail(Refused("550 no such user", code=550))
    shop.clock.advance(60)
    assert turn(shop.dispatcher) == 1
    assert gate(shop).phase is Phase.RAMP
    assert [delivery.state for delivery in shop.deliveries()].count("dead") == 1


def test_what_may_have_arrived_waits_longer_than_what_surely_did_not(shop: Shop, server: Backend) -> None:
    """A copy costs more than an attempt."""
    server.trouble = lambda order: InDoubt() if order == "unknown" else TimedOut()
    shop.place_order("unknown")
    turn(shop.dispatcher, 1)
    shop.place_order("timeout")
    turn(shop.dispatcher, 1)
    waits = [(each.due_at - shop.clock.now()).total_seconds() for each in shop.deliveries(RECEIVER)]
    assert waits[0] > 60 > waits[1]


def test_a_bug_says_nothing_of_the_backend(shop: Shop, server: Backend) -> None:
    """While it is down, the probe that raises is no probe: the next may follow at once."""
    goes_down(shop, server)
    server.fail(KeyError("ours"))
    shop.clock.advance(60)
    turn(shop.dispatcher)
    assert gate(shop).phase is Phase.OPEN
    assert turn(shop.dispatcher) == 1


def test_an_operator_may_have_the_next_probe_made_at_once(shop: Shop, server: Backend) -> None:
    goes_down(shop, server)
    assert turn(shop.dispatcher) == 0
    shop.bus.carry_out(shop.bus.choose(Act("retry", Filter(receiver=RECEIVER), "cli:ann", probe=True)))
    assert turn(shop.dispatcher) == 1


def test_a_retry_by_a_person_begins_a_new_budget_and_a_new_obstacle(shop: Shop, server: Backend) -> None:
    server.fail(Deferred("450 4.7.1", code=450, enhanced="4.7.1"))
    shop.place_order("0")
    turn(shop.dispatcher)
    shop.clock.advance(86_400)
    turn(shop.dispatcher)
    shop.bus.discard(Filter(), "not now", by="cli:ann")
    shop.clock.advance(86_400)
    shop.bus.retry(Filter(state="discarded"), by="cli:ann")
    turn(shop.dispatcher)
    (delivery,) = shop.deliveries(RECEIVER)
    assert delivery.obstacle_since == delivery.obstacle_seen_at == delivery.leased_at
    assert (delivery.due_at - shop.clock.now()).total_seconds() < 120


def test_an_outage_under_the_plain_rule_goes_on_under_the_learned_one_and_back(shop: Shop, server: Backend) -> None:
    server.fail(Unreachable("no route"))
    shop.place_orders(10)
    shop.bus.policy = FixedWait(seconds=600, attempts=9)
    plain = shop.bus.dispatcher()
    turn(plain, 1)
    turn(plain)
    shop.clock.advance(20)
    shop.bus.policy = shop.policy
    learned = shop.bus.dispatcher()
    assert turn(learned) <= 1
    assert rows(shop, CircuitBreaker)[0].opened_at is not None
    shop.clock.advance(600)
    assert turn(learned) == 1
    shop.clock.advance(600)
    server.fail(None)
    assert turn(plain) == 1
    assert len(plain.claim({RECEIVER: 20})) > 1
    assert shop.count("circuit_breakers") == 0


def test_a_clock_that_ran_ahead_leaves_no_probe_in_the_future(shop: Shop, server: Backend) -> None:
    server.fail(Unreachable("no route"))
    shop.place_orders(10)
    shop.clock.jump(86_400)
    turn(shop.dispatcher, 2)
    shop.clock.jump(-86_400)
    shop.dispatcher.pull_back()
    shop.clock.advance(30)
    assert turn(shop.dispatcher) == 1


def test_a_gate_that_cannot_be_read_is_closed(shop: Shop, server: Backend, caplog: pytest.LogCaptureFixture) -> None:
    goes_down(shop, server)
    shop.execute("UPDATE circuit_breakers SET gate = '{', opened_at = NULL")
    server.fail(None)
    while turn(shop.dispatcher):
        pass
    assert len(server.served) == 10
    assert "gate ignored" in caplog.messages


def test_a_delivery_that_succeeds_touches_neither_gate_nor_transitions(shop: Shop, server: Backend) -> None:
    shop.place_orders(10)
    while turn(shop.dispatcher):
        pass
    assert len(server.served) == 10
    assert [shop.count(name) for name in ("circuit_breakers", "retry_transitions", "retry_tables")] == [0, 0, 0]
    with shop.database.read() as session:
        assert session.execute(text("SELECT count(*) FROM deliveries WHERE due_because IS NOT NULL")).scalar_one() == 0


@pytest.mark.parametrize("error", [Deferred("450 later", code=450), Unreachable("no route")])
def test_every_try_that_was_put_off_says_why(shop: Shop, server: Backend, error: AttemptFailed) -> None:
    is_down_until(server, 20, error)
    shop.place_orders(4)
    play(shop, [shop.dispatcher], 300)
    assert len(server.served) == 4
    retried = {row.delivery_id for row in rows(shop, Attempt) if row.outcome != "ok"}
    second = [row for row in rows(shop, Attempt) if row.outcome == "ok" and row.delivery_id in retried]
    assert second
    assert all(row.why for row in second)
    assert {row.state for row in rows(shop, Delivery)} == {"done"}
