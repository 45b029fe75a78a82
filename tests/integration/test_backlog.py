"""Tens of thousands wait: whatever is done with them is done a batch at a time, and memory holds one batch."""

import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from app.bus import Filter, operate
from app.events import OrderCreated
from tests.support.shop import Shop

MANY = 30_000

LARGEST = 6_000_000
"""Bytes at any moment. A batch takes a few hundred thousand; all at once would be tens of millions."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


def fill(shop: Shop) -> None:
    """As if so many orders had been placed at one moment while nobody dispatched."""
    columns = "event_id, type, version, source, order_id, user_id, data, occurred_at, correlation_id, transaction_id"
    shop.execute(
        f"INSERT INTO events ({columns}) WITH RECURSIVE numbers(n) AS "
        f"(SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < {MANY}) SELECT 'e' || n, 'OrderCreated', 1, 'test', "
        f"CAST(n AS TEXT), '42', replace(:data, '?', CAST(n AS TEXT)), :now, 'e' || n, 0 FROM numbers",
        now=shop.clock.now(),
        data='{"order_id":"?","user_id":"42","total_price":"1","email":null}',
    )
    shop.execute(
        "INSERT INTO deliveries (event_id, receiver, state, due_at, attempts, lease_token, created_at) "
        "SELECT event_id, 'counting', 'ready', occurred_at, 0, 0, occurred_at FROM events"
    )


@pytest.fixture
def database_url(sqlite_url: str) -> str:
    return sqlite_url


@contextmanager
def within_bounds() -> Iterator[None]:
    tracemalloc.reset_peak()
    before, _ = tracemalloc.get_traced_memory()
    yield
    _, peak = tracemalloc.get_traced_memory()
    assert peak - before < LARGEST


@pytest.fixture
def traced() -> Iterator[None]:
    tracemalloc.start()
    yield
    tracemalloc.stop()


def test_a_large_backlog_takes_no_more_memory_than_a_batch(shop: Shop, traced: None) -> None:
    tried: list[str] = []

    def counting(sender: str, event: OrderCreated) -> None:
        tried.append(event.order_id)

    shop.only(counting)
    fill(shop)
    assert shop.execute_scalar("SELECT count(*) FROM deliveries") == MANY

    with within_bounds():
        assert shop.dispatcher.next_due() == {"counting": shop.clock.now()}
        for _ in range(20):
            shop.dispatch()
    assert len(set(tried)) == len(tried) == 20 * 20

    with within_bounds(), shop.database.read() as session:
        assert operate.count(session, "discard", Filter()) == MANY - len(tried)
        assert len(operate.find(session, Filter(), limit=50)[0]) == 50

    with within_bounds():
        assert {each.receiver: each.waiting for each in shop.bus.status().receivers}["counting"] == MANY - len(tried)

    with within_bounds():
        assert shop.bus.discard(Filter(), "a rehearsal", by="test") == MANY - len(tried)

    shop.clock.advance(91 * 86400)
    with within_bounds():
        assert shop.bus.prune() == MANY
    assert shop.count("events") == shop.count("deliveries") == shop.count("attempts") == 0
