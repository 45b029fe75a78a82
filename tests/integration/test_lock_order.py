"""All transactions lock rows in one order, so that none waits for another that waits for it: on PostgreSQL, which has
row locks. A deadlock costs a second, after which the server ends one of the two."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal

import pytest
from sqlalchemy import create_engine, text

from app.answers import Done
from app.db import Database, Transaction
from app.events import OrderCreated
from app.orders import place_order, set_email
from config import Settings
from tests.support.shop import Shop
from tests.support.waiting import somebody_waits, until

pytestmark = [
    pytest.mark.postgres,
    pytest.mark.parametrize("database_url", ["postgresql"], indirect=True),
]

ORDERS = 12
ROUNDS = 10


@pytest.fixture
def other_shop(shop: Shop, settings: Settings) -> Iterator[Shop]:
    """A second server on the shop's database."""
    made = Shop(settings)
    yield made
    made.close()


def deadlocks(database_url: str) -> int:
    """How many there have been; counted by each server process at its end, so those that tests before left idle end."""
    engine = create_engine(database_url)
    idle = text(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid() AND state = 'idle'"
    )
    others = text(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    with engine.connect() as connection:
        connection.execute(idle)
        until(lambda: not connection.execute(others).scalar_one() or connection.rollback())
        found = text("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")
        count = int(connection.execute(found).scalar_one())
    engine.dispose()
    return count


@pytest.mark.parametrize("users", [1, 3])
@pytest.mark.parametrize("conflicts", [False, True], ids=["the same", "other content"])
def test_duplicates_over_two_servers_deadlock_nowhere(
    shop: Shop, other_shop: Shop, database_url: str, users: int, conflicts: bool
) -> None:
    """As of a client that asks a second server when the first is slow: in opposite order, to make it hard."""
    shop.database.close()
    other_shop.database.close()
    before = deadlocks(database_url)
    statuses: list[int] = []

    def post(to: Shop, number: str, user: int, address: int) -> None:
        order = {"order_id": number, "user_id": f"{user}", "email": f"{address}@users.example", "total_price": 1}
        statuses.append(to.app.test_client().post("/api/create_order", json=order).status_code)

    with ThreadPoolExecutor(2 * ORDERS) as threads:
        for turn in range(ROUNDS):
            orders = [(f"{turn}-{n}", n % users, n) for n in range(ORDERS)]
            others = [(number, (user + conflicts) % 3, n) for number, user, n in reversed(orders)]
            for first, second in zip(orders, others, strict=True):
                threads.submit(post, shop, *first)
                threads.submit(post, other_shop, *second)
    assert (statuses.count(201), len(statuses)) == (ROUNDS * ORDERS, 2 * ROUNDS * ORDERS)
    assert set(statuses) == {201, 409 if conflicts else 200}
    shop.database.close()
    other_shop.database.close()
    assert deadlocks(database_url) == before


def test_a_users_row_is_locked_after_all_orders_of_the_commit(shop: Shop, database_url: str) -> None:
    """A commit that waits for an order which another server is storing keeps nobody from a user's row."""
    other = Database(database_url)
    other.transact(lambda transaction: set_email(transaction, "first", "b@users.example"))
    held, let_go = threading.Event(), threading.Event()

    def place(transaction: Transaction, order_id: str, user_id: str) -> None:
        facts = {"order_id": order_id, "user_id": user_id, "total_price": Decimal(1), "email": "a@users.example"}
        place_order(transaction, **facts, event_id=f"{order_id} of {transaction.driver}"[:36])

    def hold(transaction: Transaction) -> None:
        place(transaction, "2", "second")
        held.set()
        assert let_go.wait(20)

    def both(transaction: Transaction) -> None:
        place(transaction, "1", "first")
        place(transaction, "2", "second")

    threads = [
        threading.Thread(target=other.transact, args=[hold]),
        threading.Thread(target=shop.database.transact, args=[both]),
    ]
    threads[0].start()
    assert held.wait(20)
    threads[1].start()
    until(lambda: somebody_waits(shop.database))
    with other.engine.begin() as connection:  # which fails when it would have to wait
        connection.execute(text("SELECT 1 FROM users WHERE user_id = 'first' FOR UPDATE NOWAIT"))
    let_go.set()
    for thread in threads:
        thread.join(20)
    assert shop.user("first").email == "a@users.example"
    other.close()


@pytest.mark.parametrize("users", [("42", "42"), ("42", "43")], ids=["one user", "two users"])
def test_transactional_receivers_of_one_user_run_in_one_process_at_a_time(
    shop: Shop, other_shop: Shop, users: tuple[str, str]
) -> None:
    """Each locks the user's row and rows of the user's orders, in an order that only the receivers know."""
    entered: list[str] = []
    let_go = threading.Event()

    def receiver(sender: str, event: OrderCreated, transaction: Transaction) -> None:
        entered.append(event.order_id)
        assert event.order_id == "2" or let_go.wait(20)

    shop.only(receiver)
    shop.place_order("1", users[0])
    first = shop.dispatcher.claim({"receiver": 1})
    shop.place_order("2", users[1])
    second = other_shop.dispatcher.claim({"receiver": 1})
    threads = [
        threading.Thread(target=shop.dispatcher.deliver, args=[first]),
        threading.Thread(target=other_shop.dispatcher.deliver, args=[second]),
    ]
    threads[0].start()
    until(lambda: entered == ["1"])
    threads[1].start()
    if users[0] == users[1]:
        until(lambda: somebody_waits(shop.database))
        assert entered == ["1"]
    else:
        threads[1].join(20)
        assert entered == ["1", "2"]
    let_go.set()
    for thread in threads:
        thread.join(20)
    assert {delivery.state for delivery in shop.deliveries("receiver")} == {"done"}


@pytest.mark.parametrize("step", ["heartbeat", "settle", "deliver"])
def test_leases_are_locked_in_the_order_of_their_numbers(shop: Shop, database_url: str, step: str) -> None:
    """A heartbeat extends them while their answers are settled."""

    def receiver(sender: str, event: OrderCreated, transaction: Transaction) -> None:
        pass

    shop.only(receiver)
    for order_id, user_id in (("1", "b"), ("2", "a")):
        shop.place_order(order_id, user_id)
    shop.execute("UPDATE deliveries SET due_at = due_at - interval '1 s' WHERE delivery_id = 2")
    leases = shop.dispatcher.claim({"receiver": 2})
    assert [lease.delivery_id for lease in leases] == [2, 1], "it claims the most overdue first"
    steps = {
        "heartbeat": shop.dispatcher.heartbeat,
        "settle": lambda: shop.dispatcher.settle([(lease, Done()) for lease in leases]),
        "deliver": lambda: shop.dispatcher.deliver(shop.dispatcher.batches(leases)[0]),
    }
    other = Database(database_url)
    thread = threading.Thread(target=steps[step])

    def lock_both(transaction: Transaction) -> None:
        lock = "SELECT 1 FROM deliveries WHERE delivery_id = {} FOR UPDATE NOWAIT"
        transaction.session.execute(text(lock.format(1)))
        thread.start()
        until(lambda: somebody_waits(shop.database))
        transaction.session.execute(text(lock.format(2)))

    other.transact(lock_both)
    thread.join(20)
    assert not thread.is_alive()
    other.close()
