"""PostgreSQL is gone, and the network before it lives: a pooler, or a balancer, answers nothing, for ever.

A door stands between, which stops passing on what is said: connections stay open, and new ones are accepted.
"""

import contextlib
import gc
import select
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
from sqlalchemy import Connection, create_engine, make_url, text

from app.bus import lifecycle
from app.clock import Clock
from app.db import Database, schema
from app.engine.inprocess.wakeup import Wakeup
from app.errors import DatabaseUnavailable
from app.events import OrderCreated
from config import Settings
from tests.support import postgres
from tests.support.postgres import Direction, Door
from tests.support.shop import Shop
from tests.support.waiting import until

pytestmark = [
    pytest.mark.postgres,
    # A thread that waits for a server which never answers keeps its connection, until both are collected.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

TIMEOUT = 2.0
"""DATABASE_TIMEOUT of these tests, in seconds."""

SLACK = 1.0
"""What may come on top of it."""

Use = Callable[[Database], object]


@pytest.fixture(autouse=True)
def collect_what_was_left() -> Iterator[None]:
    """Here, where it is expected, and not in some later test."""
    yield
    gc.collect()


@pytest.fixture
def database_url(postgres_url: str) -> str:
    return postgres_url


@pytest.fixture
def database(door: Door) -> Iterator[Database]:
    made = Database(door.url, timeout=TIMEOUT)
    yield made
    made.close()


@pytest.fixture
def settings(door: Door, settings: Settings) -> Settings:
    return settings.model_copy(update={"database_url": door.url, "database_timeout": TIMEOUT})


@pytest.fixture
def shop(settings: Settings) -> Iterator[Shop]:
    made = Shop(settings, Clock())
    yield made
    made.close()


def writes_for_a_request(database: Database) -> None:
    database.transact(lambda transaction: transaction.driver.execute("SELECT 1"), lock_order="1")


def writes(database: Database) -> None:
    database.transact(lambda transaction: transaction.session.execute(text("SELECT 1")))


def reads(database: Database) -> None:
    with database.read() as session:
        session.execute(text("SELECT 1"))


def looks(database: Database) -> None:
    database.query(lambda reader: reader.driver.execute("SELECT 1"))


def notifies(database: Database) -> None:
    database.dialect.notify("deliveries")


def listens(database: Database) -> None:
    listener = database.dialect.listen("deliveries")
    assert listener is not None
    listener.close()


USES: list[Use] = [writes_for_a_request, writes, reads, looks, notifies, listens]


def seconds_to_be_told(function: Callable[[], object]) -> float:
    began = time.monotonic()
    with pytest.raises(DatabaseUnavailable):
        function()
    return time.monotonic() - began


@pytest.mark.parametrize("direction", Direction, ids=lambda direction: str(direction.value))
@pytest.mark.parametrize("is_new", [False, True], ids=["on an open connection", "on a new one"])
def test_an_answer_that_does_not_come_is_given_up(door: Door, direction: Direction, is_new: bool) -> None:
    databases = [Database(door.url, timeout=TIMEOUT) for _ in USES]
    if not is_new:
        for use, database in zip(USES, databases, strict=True):
            use(database)
    door.stall(direction)
    with ThreadPoolExecutor(len(USES)) as threads:
        told = list(threads.map(seconds_to_be_told, map(partial, USES, databases)))
    assert max(told) < TIMEOUT + SLACK
    door.resume()
    for use, database in zip(USES, databases, strict=True):
        use(database)
        database.close()


def test_all_answers_of_a_request_have_one_deadline(database: Database) -> None:
    """A server that answers each time a little before the end would else be waited for many times over."""
    slow = text(f"SELECT pg_sleep({TIMEOUT * 0.6})")
    for use in (
        lambda: database.transact(lambda transaction: [transaction.session.execute(slow) for _ in range(4)], "1"),
        lambda: read_twice(database, slow),
    ):
        assert seconds_to_be_told(use) < TIMEOUT + SLACK


def read_twice(database: Database, query: Any) -> None:
    with database.read() as session:
        session.execute(query)
        session.execute(query)


def test_a_dispatchers_transaction_may_take_longer_in_all(database: Database) -> None:
    """Twenty receivers share it; only a single answer must not take so long."""
    slow = text(f"SELECT pg_sleep({TIMEOUT * 0.6})")
    database.transact(lambda transaction: [transaction.session.execute(slow) for _ in range(2)])


def test_a_migration_may_take_as_long_as_it_takes(bare_postgres_url: str) -> None:
    database = Database(bare_postgres_url, timeout=0.5)
    with database.dialect.exclusive(5) as connection:
        connection.execute(text("SELECT pg_sleep(1)"))
    schema.upgrade(database)
    database.close()


def test_orders_that_share_a_commit_are_all_told_in_time(door: Door, database: Database) -> None:
    """The works of a commit that failed run again each by itself, but not when their time is over."""
    writes_for_a_request(database)
    door.stall()

    def place(number: int) -> None:
        database.transact(lambda transaction: transaction.driver.execute("SELECT 1"), lock_order=f"{number}")

    with ThreadPoolExecutor(12) as threads:
        told = list(threads.map(seconds_to_be_told, [partial(place, number) for number in range(12)]))
    assert max(told) < TIMEOUT + SLACK


def test_every_reading_route_answers_503_in_time(door: Door, shop: Shop) -> None:
    paths = ["/api/orders", "/api/orders/1001", "/api/users/42", "/api/events", "/readyz"]
    shop.place_order()
    shop.client.get("/readyz")
    door.stall()

    def get(path: str) -> tuple[int, float]:
        began = time.monotonic()
        status = shop.app.test_client().get(path).status_code
        return status, time.monotonic() - began

    with ThreadPoolExecutor(len(paths)) as threads:
        answers = list(threads.map(get, paths))
    assert {status for status, _ in answers} == {503}
    assert max(seconds for _, seconds in answers) < TIMEOUT + SLACK


def loses_the_answer_to_its_commit(door: Door, shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next commit is done, and not heard of."""
    commit = shop.database.commit

    def unheard(connection: Connection) -> None:
        monkeypatch.setattr(shop.database, "commit", commit)
        door.stall(Direction.BACK)
        commit(connection)

    monkeypatch.setattr(shop.database, "commit", unheard)


def test_an_order_whose_commit_was_not_heard_of_is_stored_once(
    door: Door, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    loses_the_answer_to_its_commit(door, shop, monkeypatch)
    assert shop.post().status_code == 503
    door.resume()
    again = shop.post()
    assert (again.status_code, again.headers["Idempotent-Replayed"]) == (200, "true")
    assert (shop.count("orders"), shop.count("events"), shop.count("deliveries")) == (1, 1, 2)


def test_a_result_whose_commit_was_not_heard_of_is_stored_once(
    door: Door, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lease is ended: settled again, it is found lost, and what the answer publishes is not published twice."""
    shop.place_order()
    lease, *_ = shop.dispatcher.claim({"send_email_notification": 1})
    answer = shop.dispatcher.invoke(lease)
    assert answer is not None
    loses_the_answer_to_its_commit(door, shop, monkeypatch)
    with pytest.raises(DatabaseUnavailable):
        shop.dispatcher.settle([(lease, answer)])
    door.resume()
    assert shop.dispatcher.settle([(lease, answer)]) == []
    shop.dispatch_all()
    assert [name for name, _ in shop.events()] == ["OrderCreated", "NotificationSent"]
    assert shop.outcomes("send_email_notification") == ["ok"]
    assert len(shop.mailer.outbox) == 1
    assert shop.order().notification == "sent"


def test_an_effect_whose_commit_was_not_heard_of_happens_once(
    door: Door, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop.place_order()
    leases = shop.dispatcher.claim({"update_user_order_record": 1})
    loses_the_answer_to_its_commit(door, shop, monkeypatch)
    with pytest.raises(DatabaseUnavailable):
        shop.dispatcher.deliver_transactional(leases)
    door.resume()
    assert shop.dispatcher.deliver_transactional(leases) == []
    assert shop.user().orders_count == 1
    assert shop.outcomes("update_user_order_record") == ["ok"]


@pytest.mark.inprocess("one process tells an outage once")
def test_a_dispatcher_comes_back_from_a_server_that_was_silent(door: Door, shop: Shop, settings: Settings) -> None:
    """Connections on which nothing is heard are thrown away; results wait, and are stored when it answers again."""
    said: list[str] = []
    entered, let_go = threading.Event(), threading.Event()

    def receiver(sender: str, event: OrderCreated) -> None:
        entered.set()
        let_go.wait(30)

    def lost(_: object, **__: object) -> None:
        said.append("lost")

    def back(_: object, **__: object) -> None:
        said.append("back")

    shop.receive(receiver)
    with lifecycle.database_lost.connected_to(lost), lifecycle.database_back.connected_to(back):
        shop.engine.start()
        shop.place_order()
        assert entered.wait(20)
        until(lambda: shop.order().notification == "sent")
        door.stall()
        let_go.set()
        until(lambda: said == ["lost"])
        door.resume()
        until(lambda: said == ["lost", "back"])
        until(lambda: shop.delivery("receiver").state == "done")
    assert shop.outcomes("receiver") == ["ok"]
    assert shop.engine.stop()


@pytest.mark.inprocess("how a stop waits for receivers' threads")
@pytest.mark.parametrize("is_at_work", [False, True], ids=["idle", "with a receiver that runs"])
def test_a_stop_ends_though_the_database_never_answers(
    door: Door, settings: Settings, is_at_work: bool, wait_for_threads: Callable[[], None]
) -> None:
    patient = settings.model_copy(update={"database_timeout": 20.0, "shutdown_seconds": 1.0})
    entered, let_go = threading.Event(), threading.Event()

    def receiver(sender: str, event: OrderCreated) -> None:
        entered.set()
        let_go.wait(30)

    with contextlib.closing(Shop(patient, Clock())) as shop:
        shop.only(receiver)
        shop.engine.start()
        until(lambda: shop.count("dispatchers") == 1)
        if is_at_work:
            shop.place_order()
            assert entered.wait(20)
        door.stall()
        began = time.monotonic()
        assert shop.engine.stop() is not is_at_work
        assert time.monotonic() - began < patient.shutdown_seconds + 3
        let_go.set()
        door.resume()
        wait_for_threads()


def test_a_listener_that_will_never_hear_again_is_replaced(
    door: Door, database: Database, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is ever said on its connection, which looks like an idle one: so the server is asked now and then."""
    monkeypatch.setattr("app.engine.inprocess.wakeup.LISTENER_CHECK_SECONDS", 0.5)
    wakeup, notifier = Wakeup(database), Database(postgres_url)

    def hears() -> bool:
        notifier.dialect.notify("deliveries")
        return wakeup.wait(0.1)

    with contextlib.closing(notifier), contextlib.closing(wakeup):
        wakeup.open()
        assert wakeup.wait(0), "it listens from now on: what was told before is to be looked for"
        until(hears)
        door.stall_those_inside()
        until(lambda: not hears())
        until(hears)
        assert [hears() for _ in range(20)] == [True] * 20


@pytest.fixture(scope="module")
def read_only_server() -> Iterator[str]:
    """As a standby is, to whoever wants to write."""
    if postgres.binaries() is None:
        pytest.skip("no PostgreSQL here: install its server")
    with postgres.private_server() as url:
        engine = create_engine(url, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.execute(text("ALTER SYSTEM SET default_transaction_read_only = on"))
            connection.execute(text("SELECT pg_reload_conf()"))
        engine.dispose()
        yield url


@pytest.fixture(params=["refuses", "answers nothing", "only reads"])
def first_host(request: pytest.FixtureRequest, postgres_url: str) -> Iterator[str]:
    """host:port of a server that is of no use."""
    if request.param == "only reads":
        yield host_of(request.getfixturevalue("read_only_server"))
        return
    with Door(postgres_url) as door:
        if request.param == "answers nothing":
            door.open()
            door.stall()
        yield host_of(door.url)


def host_of(url: str) -> str:
    parsed = make_url(url)
    return f"{parsed.host}:{parsed.port}"


def test_the_host_that_takes_writes_is_found_by_all_and_also_by_the_listener(
    first_host: str, postgres_url: str
) -> None:
    parsed = make_url(postgres_url)
    hosts = f"host={first_host}&host={host_of(postgres_url)}&target_session_attrs=read-write"
    database = Database(f"postgresql+psycopg://{parsed.username}@/{parsed.database}?{hosts}", timeout=2 * TIMEOUT)
    notifier = Database(postgres_url)
    began = time.monotonic()
    for use in USES:
        use(database)
    listener = database.dialect.listen("deliveries")
    assert listener is not None
    notifier.dialect.notify("deliveries")
    assert select.select([listener], [], [], 20)[0]
    assert time.monotonic() - began < 3 * (2 * TIMEOUT + SLACK), "three connections were made"
    listener.close()
    for each in (database, notifier):
        each.close()
