"""How many statements and commits an order takes: a count that a busy machine does not move. SQLite itself says what it
was told to do. One that takes fewer lowers the number here; one that takes more says why in docs/performance.md."""

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import event

from app.bus.dispatcher import BATCH
from app.bus.invoke import is_transactional
from app.signal import subscriptions
from tests.support.shop import Shop

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


@pytest.fixture
def told(shop: Shop) -> Iterator[list[str]]:
    """What SQLite was told since the service is warm: the first order makes its user and opens connections."""
    statements: list[str] = []

    @event.listens_for(shop.database.engine, "connect")
    def listen(connection: Any, _: Any) -> None:
        connection.set_trace_callback(statements.append)

    shop.database.renew_connections()
    place(shop, 0)
    shop.dispatch_all()
    statements.clear()
    yield statements
    shop.database.renew_connections()


def place(shop: Shop, number: int) -> None:
    body = {"order_id": f"{number}", "user_id": "42", "total_price": "19.99"}
    assert shop.client.post("/api/create_order", json=body).status_code == 201


def deliver(shop: Shop) -> None:
    """As the engine does it: what is answered is settled in the transaction that claims what is due."""
    dispatcher, answers = shop.dispatcher, []
    while claimed := dispatcher.settle_and_claim(answers, dict.fromkeys(subscriptions(), BATCH))[1]:
        answers = []
        for batch in dispatcher.batches(claimed):
            if is_transactional(batch[0]):
                dispatcher.deliver_transactional(batch)
            else:
                answers += [(lease, dispatcher.invoke(lease)) for lease in batch]


def counted(statements: list[str]) -> dict[str, int]:
    """By verb and first table."""
    named = (re.search(r"^(INSERT INTO|UPDATE) \w+|^(?!SELECT)\w+|FROM \w+", each) for each in statements)
    return dict(Counter(found[0].replace("FROM", "SELECT") for found in named if found))


def test_an_order_is_three_inserts_in_one_transaction(shop: Shop, told: list[str]) -> None:
    place(shop, 1)
    assert counted(told) == {
        "BEGIN": 1,
        "INSERT INTO orders": 1,
        "INSERT INTO events": 1,
        "INSERT INTO deliveries": 1,
        "COMMIT": 1,
    }


def test_what_was_compiled_once_is_not_compiled_again(shop: Shop) -> None:
    """SQLite asks its authorizer while it compiles. A LIMIT's value would make it compile a query at each use."""
    compiled: list[str] = []

    @event.listens_for(shop.database.engine, "connect")
    def listen(connection: Any, _: Any) -> None:
        connection.set_authorizer(lambda action, *which: compiled.append(f"{action} {which}") or 0)

    shop.database.renew_connections()
    for number in (1, 2):
        place(shop, number)
        deliver(shop)
    compiled.clear()
    place(shop, 3)
    deliver(shop)
    shop.database.renew_connections()
    assert [each for each in compiled if "COMMIT" not in each] == []


def test_what_follows_from_twenty_orders_is_three_transactions(shop: Shop, told: list[str]) -> None:
    for number in range(1, BATCH + 1):
        place(shop, number)
    told.clear()
    deliver(shop)
    assert len(told) == 115
    assert counted(told) == {
        "BEGIN": 3,
        # Claim: for each of three receivers, twice
        "SELECT circuit_breakers": 7,
        "SELECT deliveries": 7,
        # One for each claim of twenty, and one for the ends of its leases
        "UPDATE deliveries": 4,
        # Around all of update_user_order_record, what mails answered, and what they published
        "SAVEPOINT": 3,
        # update_user_order_record: an order, and its user; update_order_notification: the order
        "UPDATE users": 20,
        "UPDATE orders": 40,
        "RELEASE": 3,
        # send_email_notification looks for an address
        "SELECT users": 20,
        # NotificationSent, and update_order_notification with it
        "INSERT INTO events": 1,
        "INSERT INTO deliveries": 1,
        "INSERT INTO attempts": 3,
        "COMMIT": 3,
    }
    assert [shop.order(f"{number}").notification for number in range(1, BATCH + 1)] == ["sent"] * BATCH
