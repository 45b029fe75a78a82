"""Every trouble by its cause, as the bus's tables tell it; and that looking for it is cheap."""

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import create_engine, event, text

from app.bus import lifecycle
from app.bus.troubles import Cause, Trouble
from app.db import sqlite_module
from app.errors import DatabaseUnavailable, Unreachable
from app.events import OrderCreated
from tests.support.shop import Shop
from tests.support.statements import queries_noted

LAG = 60
"""READY_LAG_SECONDS by default."""


class Ill:
    """A receiver that raises its ``error`` until that is None."""

    __name__ = "ill"

    def __init__(self, error: Exception | None) -> None:
        self.error = error

    def __call__(self, sender: str, event: OrderCreated) -> None:
        if self.error:
            raise self.error


def look(shop: Shop) -> tuple[Trouble, ...]:
    """While a dispatcher is alive."""
    shop.dispatcher.heartbeat()
    return shop.bus.watch.look().troubles


def causes(shop: Shop) -> list[Cause]:
    return [trouble.cause for trouble in look(shop)]


def pass_lag(shop: Shop, seconds: float = 1) -> None:
    """Until so many seconds after READY_LAG_SECONDS; the dispatcher extends its leases all the while."""
    for _ in range(LAG // 10):
        shop.clock.advance(10)
        shop.dispatcher.heartbeat()
    shop.clock.advance(seconds)


def test_a_receiver_that_hangs(shop: Shop) -> None:
    """Its lease is extended, so nothing is overdue."""
    shop.only(Ill(None))
    shop.place_order()
    (lease,) = shop.dispatcher.claim({"ill": 1})
    pass_lag(shop, 0)
    assert causes(shop) == []

    shop.clock.advance(1)
    (trouble,) = look(shop)
    assert trouble.cause == Cause.RECEIVER_HANGS
    assert trouble.text.startswith("the receiver 'ill' has been at one delivery for 61 s; restart its process")
    assert trouble.detail == f"delivery {lease.delivery_id}, order 1001, in {shop.dispatcher.name}"

    shop.dispatcher.deliver([lease])
    assert causes(shop) == []


def test_a_receiver_that_is_missing(shop: Shop) -> None:
    """However often its deliveries are looked at and put off."""
    shop.place_order()
    shop.dispatch_all()
    shop.execute("UPDATE deliveries SET receiver = 'gone', state = 'ready' WHERE receiver = 'send_email_notification'")
    pass_lag(shop, 0)
    assert causes(shop) == []

    shop.clock.advance(1)
    shop.dispatcher.settle([(lease, shop.dispatcher.invoker.invoke(lease)) for lease in without_receiver(shop)])
    (trouble,) = look(shop)
    assert trouble.cause == Cause.RECEIVER_MISSING
    assert "deliveries to 'gone', which is not connected; connect it, or discard them" in trouble.text


def without_receiver(shop: Shop) -> Any:
    leases = shop.dispatcher.claim_without_receiver()
    assert leases
    return leases


def test_a_backend_that_is_down(shop: Shop) -> None:
    """One delivery is enough: it waits for its next try, and is not overdue."""
    ill = Ill(Unreachable("no route to mail.example"))
    shop.policy.seconds = 3600
    shop.only(ill)
    shop.place_order()
    shop.dispatch()
    pass_lag(shop, 0)
    assert causes(shop) == []

    shop.clock.advance(1)
    (trouble,) = look(shop)
    assert trouble.cause == Cause.BACKEND_DOWN
    assert trouble.text.startswith("ill: paused by its circuit breaker since 08:00:00, because what it needs is down")
    assert trouble.detail == "no route to mail.example"

    shop.clock.advance(3600)
    ill.error = None
    shop.dispatch()
    assert causes(shop) == []


def test_an_outage_is_not_told_twice(shop: Shop) -> None:
    """Deliveries that failed in it are older than READY_LAG_SECONDS before it has lasted so long itself."""
    shop.policy.seconds = 3600
    shop.only(Ill(Unreachable("no route to mail.example")))
    shop.place_order("1")
    shop.place_order("2")
    shop.clock.advance(30)
    shop.dispatcher.deliver(shop.dispatcher.claim({"ill": 1}))
    shop.dispatcher.deliver(shop.dispatcher.claim({"ill": 1}))
    for _ in range(4):
        shop.clock.advance(10)
        shop.dispatcher.heartbeat()
    assert causes(shop) == []
    for _ in range(3):
        shop.clock.advance(10)
        shop.dispatcher.heartbeat()
    assert causes(shop) == [Cause.BACKEND_DOWN]


def test_a_breaker_that_nothing_waits_behind_is_no_trouble(shop: Shop) -> None:
    shop.policy.attempts = 1
    shop.only(Ill(Unreachable("no route")))
    shop.place_order()
    shop.dispatch()
    assert shop.states() == {"ill": "dead"}
    pass_lag(shop)
    assert causes(shop) == []


@pytest.mark.parametrize("error", [KeyError("price list"), RuntimeError("")])
def test_deliveries_that_fail_are_a_warning(shop: Shop, error: Exception) -> None:
    ill = Ill(error)
    shop.only(ill)
    shop.place_order()
    shop.dispatch()
    pass_lag(shop)
    shop.dispatch()

    shop.dispatcher.heartbeat()
    found = shop.bus.watch.look()
    assert found.reasons == []
    (warning,) = found.warnings
    assert warning.cause == Cause.DELIVERIES_FAIL
    assert "deliveries to 'ill' fail, with outcome bug, and are tried again" in warning.text
    assert type(error).__name__ in warning.detail

    ill.error = None
    pass_lag(shop)
    shop.dispatch()
    assert causes(shop) == []


def test_a_delivery_that_kills_its_process_is_a_warning(shop: Shop) -> None:
    shop.only(Ill(None))
    shop.place_order()
    shop.dispatcher.claim({"ill": 1})
    shop.clock.advance(LAG + 1)  # nobody extends the lease
    (lease,) = shop.dispatcher.claim({"ill": 1})
    (trouble,) = look(shop)
    assert trouble.cause == Cause.DELIVERIES_FAIL
    assert trouble.detail == f"delivery {lease.delivery_id}: no result: its process died, or was held up past the lease"


def test_what_is_overdue_is_named_with_what_is_known_of_the_reason(shop: Shop) -> None:
    shop.only(Ill(None))
    shop.place_order()
    shop.clock.advance(LAG + 1)
    watch = shop.bus.watch
    none_alive, overdue = watch.look().troubles
    assert (none_alive.cause, overdue.cause) == (Cause.NO_DISPATCHER, Cause.DELIVERIES_OVERDUE)
    assert "to 'ill', has waited 61 s" in overdue.text
    assert overdue.text.endswith("no dispatcher is alive")

    (overdue,) = look(shop)
    assert "the dispatchers are busy or stuck" in overdue.text


def test_receivers_with_a_session_wait_for_one_that_hangs(shop: Shop) -> None:
    """They share its thread."""

    def hanging(sender: str, session: Any) -> None:
        """Has nothing to do."""

    def waiting(sender: str, session: Any) -> None:
        """Has nothing to do."""

    shop.only(hanging)
    shop.receive(waiting)
    shop.place_order()
    shop.dispatcher.claim({"hanging": 1})
    pass_lag(shop)
    found = {trouble.cause: trouble.text for trouble in look(shop)}
    assert "'hanging' has been at one delivery" in found[Cause.RECEIVER_HANGS]
    assert "to 'waiting', has waited" in found[Cause.DELIVERIES_OVERDUE]
    assert found[Cause.DELIVERIES_OVERDUE].endswith("which shares its thread, hangs")


def test_a_clock_that_was_set_back(shop: Shop) -> None:
    """A dispatcher that died before is not alive for an hour because of its heartbeat."""
    shop.only(Ill(None))
    shop.place_order()
    shop.dispatcher.heartbeat()
    shop.clock.jump(-3600)
    clock, dead = sorted(shop.bus.watch.look().troubles, key=lambda trouble: trouble.cause)
    assert (clock.cause, dead.cause) == (Cause.CLOCK_DIFFERS, Cause.NO_DISPATCHER)
    assert "up to 3600 s ahead of this machine's clock" in clock.text

    assert causes(shop) == [Cause.CLOCK_DIFFERS]
    shop.clock.jump(3600)
    assert causes(shop) == []


# Lines


@pytest.fixture
def changes(shop: Shop) -> Iterator[list[str]]:
    heard: list[str] = []

    def began(_: object, trouble: Trouble) -> None:
        heard.append(f"+{trouble.cause}")

    def ended(_: object, trouble: Trouble) -> None:
        heard.append(f"-{trouble.cause}")

    with lifecycle.trouble_began.connected_to(began), lifecycle.trouble_ended.connected_to(ended):
        yield heard


def test_each_change_is_reported_once_however_often_somebody_asks(shop: Shop, changes: list[str]) -> None:
    shop.only(Ill(None))
    shop.place_order()
    (lease,) = shop.dispatcher.claim({"ill": 1})
    pass_lag(shop)
    for _ in range(5):
        shop.bus.watch.look_and_report()
    assert changes == ["+receiver_hangs"]

    shop.dispatcher.deliver([lease])
    for _ in range(5):
        shop.bus.watch.look_and_report()
    assert changes == ["+receiver_hangs", "-receiver_hangs"]


def test_right_after_the_start_it_is_no_news_that_no_dispatcher_is_alive(shop: Shop, changes: list[str]) -> None:
    """All processes start together; /readyz tells it all the same."""
    shop.bus.watch.after_fork()  # a busy machine may have taken long to come here
    assert [trouble.cause for trouble in shop.bus.watch.look_and_report().troubles] == [Cause.NO_DISPATCHER]
    assert changes == []


def test_while_the_database_is_away_nothing_else_is_over(
    shop: Shop, changes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shop.only(Ill(None))
    shop.place_order()
    shop.dispatcher.claim({"ill": 1})
    pass_lag(shop)
    shop.bus.watch.look_and_report()

    def away() -> None:
        raise DatabaseUnavailable

    monkeypatch.setattr(shop.database, "check_schema", away)
    shop.bus.watch.look_and_report()
    monkeypatch.undo()
    shop.bus.watch.look_and_report()
    assert changes == ["+receiver_hangs", "+database_unreachable", "-database_unreachable"]


# The database


def test_a_fault_of_the_check_itself_is_a_reason_with_its_traceback(
    shop: Shop, changes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> None:
        raise TypeError("cannot use a string pattern on a bytes-like object")

    monkeypatch.setattr(shop.database, "check_schema", broken)
    (trouble,) = shop.bus.watch.look_and_report().troubles
    assert trouble.cause == Cause.CHECK_FAILED
    assert isinstance(trouble.error, TypeError)
    assert changes == ["+check_failed"]


def test_whether_it_can_be_written_is_tried_only_where_nobody_here_wrote(shop: Shop) -> None:
    """And the try leaves nothing behind."""
    commits: list[str] = []
    event.listen(shop.database.engine, "commit", lambda _: commits.append("commit"))
    shop.dispatcher.heartbeat()
    commits.clear()
    shop.clock.advance(14.9)
    shop.bus.watch.look()
    assert commits == []

    shop.clock.advance(0.1)
    before = shop.count("dispatchers")
    commits.clear()
    shop.bus.watch.look()
    shop.bus.watch.look()
    assert commits == ["commit"]
    assert shop.count("dispatchers") == before


class TestOnSQLite:
    @pytest.fixture
    def database_url(self, sqlite_url: str) -> str:
        return sqlite_url

    def test_a_file_that_is_read_only(self, shop: Shop) -> None:
        """SQLite's own error, by which it also answers to a file system that is read-only."""
        shop.dispatcher.heartbeat()
        shop.database.close()
        event.listen(shop.database.engine, "connect", lambda driver, _: driver.execute("PRAGMA query_only=1"))
        shop.clock.advance(20)
        (trouble,) = shop.bus.watch.look().troubles
        assert trouble.cause == Cause.DATABASE_UNWRITABLE
        assert "not written: attempt to write a readonly database; the disk that holds " in trouble.text

    def test_a_process_that_keeps_the_write_lock(self, shop: Shop, sqlite_url: str) -> None:
        shop.dispatcher.heartbeat()
        shop.clock.advance(20)
        other = create_engine(sqlite_url, module=sqlite_module(), isolation_level=None)
        with other.connect() as connection:
            connection.exec_driver_sql("BEGIN IMMEDIATE")
            (trouble,) = shop.bus.watch.look().troubles
            connection.exec_driver_sql("ROLLBACK")
        other.dispose()
        assert trouble.cause == Cause.DATABASE_UNWRITABLE
        assert "can be read, but not written: database is locked; " in trouble.text

    def test_looking_scans_no_table(self, shop: Shop) -> None:
        """But those that have a row for each dispatcher, and for each receiver that is down."""
        for number in range(3):
            shop.place_order(str(number))
        shop.execute("UPDATE deliveries SET receiver = 'gone' WHERE receiver = 'send_email_notification'")
        shop.clock.advance(LAG + 1)
        with queries_noted(shop) as asked:
            shop.bus.watch.look()
        reads = [(words, values) for words, values in asked.items() if "deliveries" in words]
        assert len(reads) >= 5
        with shop.database.read() as session:
            driver = session.connection().connection.dbapi_connection
            plans = [row[3] for words, values in reads for row in driver.execute(f"EXPLAIN QUERY PLAN {words}", values)]
        assert [step for step in plans if step.startswith("SCAN")] == []
        steps = [step for step in plans if step.startswith("SEARCH deliveries")]
        assert len(steps) == len(reads)
        assert all("INDEX deliveries_due (" in step for step in steps), plans


@pytest.mark.postgres
class TestOnPostgreSQL:
    @pytest.fixture
    def database_url(self, postgres_url: str) -> str:
        return postgres_url

    def test_its_words_about_a_statement_may_be_read_by_anybody(self, shop: Shop, postgres_url: str) -> None:
        shop.dispatcher.heartbeat()
        other = create_engine(postgres_url)
        with other.begin() as connection:
            connection.execute(text("LOCK TABLE deliveries IN ACCESS EXCLUSIVE MODE"))
            (trouble,) = shop.bus.watch.look().troubles
        other.dispose()
        assert trouble.cause == Cause.DATABASE_UNREACHABLE
        assert "can't be read: canceling statement due to lock timeout; see that it runs" in trouble.text
        assert trouble.detail == ""

    def test_a_missing_privilege_is_told_as_what_it_is(self, shop: Shop, postgres_url: str) -> None:
        """A trouble that no list of errors foresaw."""
        shop.dispatcher.heartbeat()
        shop.clock.advance(20)
        event.listen(
            shop.database.engine,
            "begin",
            lambda connection: connection.exec_driver_sql("SET LOCAL ROLE pg_read_all_data"),
        )
        (trouble,) = shop.bus.watch.look().troubles
        assert trouble.cause == Cause.DATABASE_UNWRITABLE
        assert "permission denied for table dispatchers" in trouble.text
