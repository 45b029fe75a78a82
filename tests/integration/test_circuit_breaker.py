"""The circuit breaker: while a receiver's backend is down, one probe at a time looks whether it is back."""

import threading
from datetime import timedelta
from typing import Any

import pytest

from app.bus import Dispatcher
from app.bus.claim import Claim
from app.db import Transaction
from app.errors import Deferred, InDoubt, Refused, Throttled, TimedOut, Unreachable
from app.events import OrderCreated
from app.retry import probe_wait
from tests.support.backend import Backend
from tests.support.shop import Shop
from tests.support.waiting import somebody_waits, until


@pytest.fixture
def server(shop: Shop) -> Backend:
    made = Backend(shop)
    made.fail(Unreachable("no route"))
    shop.only(made, concurrency=4)
    shop.policy.seconds, shop.policy.attempts = 600, 5
    return made


def claim(dispatcher: Dispatcher, limit: int = 4) -> list[Any]:
    return dispatcher.claim({"server": limit})


def deliver(dispatcher: Dispatcher, leases: list[Any]) -> None:
    for batch in dispatcher.batches(leases):
        dispatcher.deliver(batch)


def answer_another(shop: Shop, server: Backend, order_id: str, seconds: float) -> None:
    """A delivery that is begun later, and ends sooner, than one that is under way."""
    shop.clock.advance(seconds)
    server.fail(None)
    shop.place_order(order_id)
    deliver(shop.dispatcher, claim(shop.dispatcher, 1))
    shop.clock.advance(seconds)


def test_an_outage_is_met_with_few_attempts_and_all_drain_when_it_ends(shop: Shop, server: Backend) -> None:
    """Hundreds wait for an hour, three dispatchers watch, and the server is asked about once in half a minute."""
    shop.place_orders(300)
    dispatchers = [shop.bus.dispatcher() for _ in range(3)]
    for _ in range(720):
        for dispatcher in dispatchers:
            deliver(dispatcher, claim(dispatcher))
        shop.clock.advance(5)
    assert len(server.asked) < 12 + 3600 / 27

    server.fail(None)
    shop.clock.advance(31)
    deliver(dispatchers[0], claim(dispatchers[0]))
    assert len(server.served) == 1
    while leases := claim(dispatchers[0], 200):
        deliver(dispatchers[0], leases)
    assert sorted(server.served, key=int) == [f"{n}" for n in range(300)]
    assert {delivery.state for delivery in shop.deliveries()} == {"done"}
    assert max(delivery.attempts for delivery in shop.deliveries()) <= 2


@pytest.mark.parametrize("error", [Unreachable(), TimedOut(), Throttled()])
def test_after_a_failure_one_other_delivery_probes_at_once_and_then_later_and_later(
    shop: Shop, server: Backend, error: Exception
) -> None:
    server.fail(error)
    shop.place_orders(10)
    deliver(shop.dispatcher, claim(shop.dispatcher, 1))
    deliver(shop.dispatcher, claim(shop.dispatcher))
    assert server.asked == ["0", "9"]
    assert claim(shop.dispatcher) == []
    shop.clock.advance(0.51)
    deliver(shop.dispatcher, claim(shop.dispatcher))
    assert server.asked == ["0", "9", "8"]
    shop.clock.advance(0.8)
    assert claim(shop.dispatcher) == []


@pytest.mark.parametrize("error", [Deferred(), Refused(), RuntimeError()])
def test_what_one_message_does_wrong_opens_no_breaker(shop: Shop, server: Backend, error: Exception) -> None:
    server.fail(error)
    shop.place_orders(10)
    deliver(shop.dispatcher, claim(shop.dispatcher, 1))
    assert len(claim(shop.dispatcher)) == 4


def test_only_one_dispatcher_gets_the_probe(shop: Shop, server: Backend) -> None:
    shop.place_orders(10)
    deliver(shop.dispatcher, claim(shop.dispatcher, 1))
    other = shop.bus.dispatcher()
    assert [len(claim(shop.dispatcher)), len(claim(other)), len(claim(shop.dispatcher))] == [1, 0, 0]


@pytest.mark.postgres
@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_two_that_claim_at_once_share_one_probe(shop: Shop, server: Backend) -> None:
    """The second waits for the first, and reads the breaker again. On SQLite nobody else can be claiming."""
    shop.place_orders(10)
    deliver(shop.dispatcher, claim(shop.dispatcher, 1))
    others: list[Any] = []
    second = threading.Thread(target=lambda: others.extend(claim(shop.bus.dispatcher())))

    def first(transaction: Transaction) -> int:
        mine = Claim(transaction, shop.dispatcher.retries, timedelta(seconds=30), "first", alone=False)
        mine.take("server", 4)
        second.start()
        until(lambda: somebody_waits(shop.database))
        return len(mine.leases)

    assert shop.database.transact(first) == 1
    second.join(20)
    assert others == []


def test_a_probe_whose_process_died_is_followed_by_another(shop: Shop, server: Backend) -> None:
    shop.place_orders(10)
    deliver(shop.dispatcher, claim(shop.dispatcher, 1))
    assert len(claim(shop.dispatcher)) == 1
    shop.clock.advance(30)
    server.fail(None)
    other = shop.bus.dispatcher()
    deliver(other, claim(other))
    assert len(server.served) == 1
    assert len(claim(shop.bus.dispatcher())) == 4


def test_a_message_that_hangs_by_itself_delays_nobody(shop: Shop, server: Backend) -> None:
    server.fail(TimedOut())
    shop.place_orders(5)
    deliver(shop.dispatcher, claim(shop.dispatcher, 1))
    server.fail(None)
    deliver(shop.dispatcher, claim(shop.dispatcher))
    deliver(shop.dispatcher, claim(shop.dispatcher))
    assert sorted(server.served) == ["1", "2", "3", "4"]
    shop.clock.advance(600)
    deliver(shop.dispatcher, claim(shop.dispatcher))
    assert server.served[-1] == "0", "it waited as long as the policy says"


@pytest.mark.parametrize("error", [TimedOut(), InDoubt()])
def test_what_hangs_while_others_come_through_opens_no_breaker(shop: Shop, server: Backend, error: Exception) -> None:
    """It hangs for its own sake, and waits as its policy says, however many others come through meanwhile."""
    shop.policy.attempts = 100
    shop.place_order("hangs")
    for n in range(20):
        hanging = claim(shop.dispatcher, 1)
        assert [lease.order_id for lease in hanging] == ["hangs"]
        shop.clock.advance(5)
        server.fail(None)
        shop.place_order(f"{n}")
        deliver(shop.dispatcher, claim(shop.dispatcher, 1))
        shop.clock.advance(5)
        server.fail(error)
        deliver(shop.dispatcher, hanging)
        assert shop.count("circuit_breakers") == 0
        assert claim(shop.dispatcher) == []
        shop.clock.advance(599.9)
        assert claim(shop.dispatcher) == []
        shop.clock.advance(0.1)
    assert server.served == [f"{n}" for n in range(20)]


@pytest.mark.parametrize("error", [TimedOut(), InDoubt()])
def test_a_success_before_a_silent_attempt_began_says_nothing_of_it(
    shop: Shop, server: Backend, error: Exception
) -> None:
    """What is settled and what is claimed next share a transaction, and so a time."""
    shop.place_orders(3)
    server.fail(None)
    deliver(shop.dispatcher, claim(shop.dispatcher, 1))
    hanging = claim(shop.dispatcher, 1)
    shop.clock.advance(10)
    server.fail(error)
    deliver(shop.dispatcher, hanging)
    assert shop.count("circuit_breakers") == 1


def test_a_success_from_before_the_clock_was_set_back_says_nothing(shop: Shop, server: Backend) -> None:
    shop.place_orders(3)
    server.fail(None)
    shop.clock.advance(3600)
    deliver(shop.dispatcher, claim(shop.dispatcher, 1))
    shop.clock.jump(-1800)
    hanging = claim(shop.dispatcher, 1)
    shop.clock.advance(10)
    server.fail(TimedOut())
    deliver(shop.dispatcher, hanging)
    assert shop.count("circuit_breakers") == 1


def test_a_success_of_another_receiver_says_nothing(shop: Shop, server: Backend) -> None:
    shop.receive(lambda sender, event: None, name="neighbour")
    shop.place_order("0")
    hanging = claim(shop.dispatcher, 1)
    shop.clock.advance(5)
    deliver(shop.dispatcher, shop.dispatcher.claim({"neighbour": 1}))
    shop.clock.advance(5)
    server.fail(TimedOut())
    deliver(shop.dispatcher, hanging)
    assert shop.count("circuit_breakers") == 1


@pytest.mark.parametrize("error", [Unreachable(), Throttled()])
def test_a_backend_that_turns_some_away_opens_the_breaker_whatever_else_comes_through(
    shop: Shop, server: Backend, error: Exception
) -> None:
    """These speak of us and of the backend, never of one message."""
    shop.place_order("0")
    turned_away = claim(shop.dispatcher, 1)
    answer_another(shop, server, "1", 1)
    server.fail(error)
    deliver(shop.dispatcher, turned_away)
    assert shop.count("circuit_breakers") == 1


def test_a_probe_that_hangs_while_an_earlier_attempt_comes_through_closes_the_breaker(
    shop: Shop, server: Backend
) -> None:
    shop.place_orders(6)
    early, under_way = claim(shop.dispatcher, 1), claim(shop.dispatcher, 1)
    deliver(shop.dispatcher, early)
    probe = claim(shop.dispatcher)
    shop.clock.advance(5)
    server.fail(None)
    deliver(shop.dispatcher, under_way)
    shop.clock.advance(5)
    server.fail(TimedOut())
    deliver(shop.dispatcher, probe)
    assert len(claim(shop.dispatcher)) == 3


def test_the_probe_is_the_newest_that_has_not_failed(shop: Shop, server: Backend) -> None:
    """A row of messages that hang at the head of the queue keeps nobody behind it from being tried."""
    server.fail(TimedOut())
    shop.policy.seconds = 1
    shop.place_orders(4)
    deliver(shop.dispatcher, claim(shop.dispatcher, 2))
    shop.clock.advance(2)
    shop.place_order("new")
    (probe,) = claim(shop.dispatcher)
    assert probe.order_id == "new"
    deliver(shop.dispatcher, [probe])
    for order_id in ("3", "2"):
        shop.clock.advance(5)
        (probe,) = claim(shop.dispatcher)
        assert probe.order_id == order_id
        deliver(shop.dispatcher, [probe])
    shop.clock.advance(5)
    assert [lease.order_id for lease in claim(shop.dispatcher)] == ["0"], "all have failed: the most overdue"


def test_the_end_of_an_outage_hurries_only_what_surely_failed_in_it(shop: Shop, server: Backend) -> None:
    """What had hung before for its own sake keeps its wait; so does what may have come through."""
    shop.place_order("before")
    hanging = claim(shop.dispatcher, 1)
    answer_another(shop, server, "0", 5)
    server.fail(TimedOut())
    deliver(shop.dispatcher, hanging)
    shop.clock.advance(5)

    for order_id, error in (("opens", Unreachable()), ("timeout", TimedOut()), ("unknown", InDoubt())):
        server.fail(error)
        shop.place_order(order_id)
        deliver(shop.dispatcher, claim(shop.dispatcher, 1))
        shop.clock.advance(2)
    assert shop.count("circuit_breakers") == 1

    server.fail(None)
    shop.clock.advance(30)
    shop.place_order("probe")
    deliver(shop.dispatcher, claim(shop.dispatcher))
    assert shop.count("circuit_breakers") == 0
    due = claim(shop.dispatcher)
    assert [lease.order_id for lease in due] == ["opens", "timeout"]
    deliver(shop.dispatcher, due)
    shop.clock.advance(600)
    in_turns = claim(shop.dispatcher)
    shop.clock.advance(1)  # what is in doubt is claimed alone
    in_turns += claim(shop.dispatcher)
    assert {lease.order_id for lease in in_turns} == {"before", "unknown"}


def test_a_probe_that_finds_nothing_due_leaves_the_next_to_another(shop: Shop, server: Backend) -> None:
    shop.place_order("0")
    deliver(shop.dispatcher, claim(shop.dispatcher))
    assert claim(shop.dispatcher) == []
    shop.place_order("1")
    assert len(claim(shop.dispatcher)) == 1


def test_a_refused_probe_shows_that_the_server_is_back(shop: Shop, server: Backend) -> None:
    shop.place_orders(10)
    deliver(shop.dispatcher, claim(shop.dispatcher, 1))
    server.fail(Refused())
    deliver(shop.dispatcher, claim(shop.dispatcher))
    assert len(claim(shop.dispatcher)) == 4


def test_the_worker_sleeps_until_the_next_probe(shop: Shop, server: Backend) -> None:
    shop.place_orders(10)
    deliver(shop.dispatcher, claim(shop.dispatcher, 1))
    deliver(shop.dispatcher, claim(shop.dispatcher))
    wait = (shop.dispatcher.next_due()["server"] - shop.clock.now()).total_seconds()
    assert 0.4 < wait <= 0.5


def test_a_breaker_is_one_receivers_own(shop: Shop, server: Backend) -> None:
    shop.receive(lambda sender, event: None, name="neighbour")
    shop.place_order("0")
    shop.dispatch()
    shop.place_order("1")
    shop.dispatch()
    assert {delivery.state for delivery in shop.deliveries("neighbour")} == {"done"}


@pytest.mark.parametrize(("failures", "longest"), [(1, 0), (2, 0.5), (3, 1), (8, 30), (10_000, 30)])
def test_probes_come_later_and_later(failures: int, longest: float) -> None:
    assert longest * 0.9 <= probe_wait(failures) <= longest


@pytest.mark.parametrize(("answers", "is_open"), [([Unreachable(), None], False), ([None, Unreachable()], True)])
def test_in_a_batch_the_breaker_is_as_the_last_try_that_says_something_found_it(
    shop: Shop, answers: list[Exception | None], is_open: bool
) -> None:
    """One was under way when the breaker opened, the other is the probe; who comes first is who has the lower id."""
    left = [Unreachable(), *answers]

    def server(sender: str, event: OrderCreated, transaction: Transaction) -> None:
        if error := left.pop(0):
            raise error

    shop.only(server)
    users = ("1", "2", "3") if is_open is False else ("1", "3", "2")
    for user_id in users:
        shop.place_order(f"of {user_id}".replace(" ", "-"), user_id)
    first, second = shop.bus.dispatcher(), shop.bus.dispatcher()
    early, under_way = first.claim({"server": 1}), second.claim({"server": 1})
    first.deliver(early)
    probe = second.claim({"server": 4})
    assert [lease.probe for lease in probe] == [True]
    deliver(second, under_way + probe)
    assert left == []
    assert shop.count("circuit_breakers") == is_open


def test_a_probe_that_runs_for_longer_than_a_lease_stays_the_only_one(shop: Shop, server: Backend) -> None:
    """Its dispatcher extends its lease, and the breaker's wait with it."""
    shop.policy.seconds = 1
    shop.place_order("0")
    shop.place_order("1")
    shop.dispatch()
    shop.clock.advance(1)
    probing, other = shop.bus.dispatcher(), shop.bus.dispatcher()
    (probe,) = claim(probing)
    for _ in range(9):
        shop.clock.advance(10)
        probing.heartbeat()
        assert claim(other) == []
    shop.clock.advance(30)  # it is gone
    assert len(claim(other)) == 1
    assert probe.probe
