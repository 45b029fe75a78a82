"""'flask bus status' and 'flask doctor': what the tables say, in numbers and in sentences, by bounded cost."""

import json
import os
import re
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest

from app import doctor
from app.answers import Discard
from app.bus import Act, Filter
from app.bus.status import MOST_READ, ReceiverStatus
from app.db import iso
from app.errors import DatabaseUnavailable, Refused, Unreachable
from app.events import OrderCreated
from tests.support.shop import Shop
from tests.support.statements import queries_noted


class Ill:
    """A receiver that raises its ``error`` until that is None, or answers its ``answer``."""

    __name__ = "ill"

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.answer: Any = None

    def __call__(self, sender: str, event: OrderCreated) -> Any:
        if self.error:
            raise self.error
        return self.answer


@pytest.fixture
def ill(shop: Shop) -> Ill:
    made = Ill()
    shop.only(made)
    return made


def of(shop: Shop, receiver: str = "ill") -> ReceiverStatus:
    (found,) = [each for each in shop.bus.status().receivers if each.receiver == receiver]
    return found


def place(shop: Shop, count: int, prefix: str = "") -> None:
    for n in range(count):
        shop.place_order(f"{prefix}{n}")


def test_what_waits_and_what_is_in_flight(shop: Shop, ill: Ill) -> None:
    place(shop, 5)
    shop.dispatcher.claim({"ill": 2})
    shop.clock.advance(10)
    found = of(shop)
    assert (found.waiting, found.in_flight, found.retrying, found.dead) == (3, 2, 0, 0)
    assert found.oldest_waits_since == shop.clock.now() - timedelta(seconds=10)
    assert found.is_exact


def test_what_failed_at_least_once_and_when_it_is_tried_next(shop: Shop, ill: Ill) -> None:
    ill.error = ValueError("a bug")
    place(shop, 2)
    shop.dispatch()
    place(shop, 1, "later-")
    found = of(shop)
    assert (found.waiting, found.retrying) == (3, 2)
    assert found.next_try_at == shop.clock.now() + timedelta(seconds=60)


def test_what_is_dead_and_what_was_skipped(shop: Shop, ill: Ill) -> None:
    ill.error = Refused("550 no such user")
    place(shop, 2)
    shop.dispatch()
    ill.error, ill.answer = None, Discard("there is no address")
    place(shop, 3, "skipped-")
    shop.dispatch()
    found = of(shop)
    assert (found.waiting, found.dead, found.skipped, found.skipped_because) == (0, 2, 3, "there is no address")


def test_what_a_person_discarded_was_not_skipped(shop: Shop, ill: Ill) -> None:
    ill.answer = Discard("there is no address")
    place(shop, 2, "skipped-")
    shop.dispatch()
    place(shop, 2, "unwanted-")
    shop.bus.discard(Filter(state="ready"), "a test", by="ann")
    assert (of(shop).skipped, of(shop).skipped_because) == (2, "there is no address")

    chosen = shop.bus.choose(Act("retry", Filter(state="discarded"), "ann"))
    act_id = shop.bus.carry_out(chosen).act_id
    assert of(shop).skipped == 0
    shop.bus.abort(act_id, "ann")
    assert of(shop).skipped == 2, "they are again what they were"
    shop.bus.retry(Filter(state="discarded"), by="ann")
    shop.dispatch()
    assert of(shop).skipped == 4, "the receiver has no use for them either"


def test_an_open_breaker_is_told_with_its_reason_and_its_next_probe(
    shop: Shop, ill: Ill, run: Callable[..., str]
) -> None:
    ill.error = Unreachable("mail.example:25 refused the connection; check that it runs.")
    place(shop, 500)
    for _ in range(4):
        shop.clock.advance(5)
        shop.dispatch()
    shop.dispatcher.heartbeat()
    (line,) = [line for line in run("bus", "status").splitlines() if line.startswith("ill")]
    assert line.startswith(
        "ill: paused by its circuit breaker since 08:00:05: mail.example:25 refused the connection; next probe in "
    )
    assert "; 500 wait, the oldest for 20 s; " in line


def test_the_rate_and_the_time_to_drain(shop: Shop, ill: Ill) -> None:
    place(shop, 50)
    shop.dispatch()
    shop.clock.advance(30)
    found = of(shop)
    assert (found.ended, found.ended_within_seconds) == (20, 60)
    assert found.drained_in_seconds == 90, "thirty wait, at twenty a minute"
    shop.clock.advance(31)
    assert (of(shop).ended, of(shop).drained_in_seconds) == (0, None)


def test_a_receiver_that_is_gone_is_named(shop: Shop, ill: Ill, run: Callable[..., str]) -> None:
    place(shop, 1)
    shop.execute("UPDATE deliveries SET receiver = 'gone'")
    assert not of(shop, "gone").is_connected
    assert "gone: nobody takes deliveries to 'gone', which is not connected; connect it" in run("bus", "status")


def test_json_has_stable_names(shop: Shop, ill: Ill, run: Callable[..., str]) -> None:
    place(shop, 1)
    shop.dispatcher.sign_on()
    found = json.loads(run("bus", "status", "--json"))
    assert found.keys() == {
        *("at", "ready", "reasons", "warnings", "dispatchers", "last_dispatcher", "receivers", "refused_here"),
    }
    assert (found["at"], found["ready"]) == (iso(shop.clock.now()), True)
    (dispatcher,) = found["dispatchers"]
    assert (dispatcher["name"], dispatcher["settings"]["mail_backend"]) == (shop.dispatcher.name, "memory")
    (receiver,) = [each for each in found["receivers"] if each["receiver"] == "ill"]
    assert receiver == {
        "receiver": "ill",
        "is_connected": True,
        "waiting": 1,
        "in_flight": 0,
        "retrying": 0,
        "next_try_at": None,
        "oldest_waits_since": iso(shop.clock.now()),
        "dead": 0,
        "skipped": 0,
        "skipped_among": MOST_READ,
        "skipped_because": None,
        "ended": 0,
        "ended_within_seconds": 60.0,
        "drained_in_seconds": None,
        "breaker": None,
        "pause": None,
        "is_exact": True,
        "held_back": None,
    }


@pytest.fixture
def other_shell(shop: Shop) -> Iterator[Shop]:
    """A shell whose settings would send mail."""
    settings = shop.settings.model_copy(update={"mail_backend": "smtp", "mail_server": "127.0.0.1", "mail_port": 1})
    made = Shop(settings, shop.clock)
    yield made
    made.close()


def test_the_advice_of_a_shell_with_other_settings_is_safe(shop: Shop, other_shell: Shop) -> None:
    shop.dispatcher.sign_on()
    shop.place_order()
    shop.dispatcher.sign_off()
    told = other_shell.app.test_cli_runner().invoke(args=["bus", "status"]).output
    assert "it delivered mail by memory" in told
    assert "'flask bus run' would refuse here: this dispatcher would deliver mail by smtp, to 127.0.0.1:1" in told


# The doctor


def findings(shop: Shop, check: str) -> list[str]:
    return [f"{each.level} {each.text}" for each in doctor.examine(shop.app).findings if each.check == check]


def test_the_doctor_compares_this_shell_with_the_dispatchers(shop: Shop, other_shell: Shop) -> None:
    shop.dispatcher.sign_on()
    assert findings(shop, "settings") == ["fine this shell has those that the dispatchers use"]
    assert "delivers mail by memory" in findings(shop, "dispatcher")[0]

    differs, refuses = findings(other_shell, "settings")
    name = shop.dispatcher.name
    values = "MAIL_BACKEND memory there, smtp here; MAIL_SERVER unset there, 127.0.0.1 here"
    assert differs == f"note {name} and this shell differ: {values}"
    assert "'flask bus run' would refuse here" in refuses


def test_the_doctor_asks_the_mail_server_that_the_dispatchers_use(shop: Shop, other_shell: Shop) -> None:
    """From a shell that would use none."""
    other_shell.dispatcher.sign_on()
    (here, _, theirs) = findings(shop, "mail")
    assert here == "fine memory backend answers (memory)"
    assert theirs.startswith("wrong of the service: 127.0.0.1:1 refused the connection; check that it runs")


def test_the_doctor_tells_the_outbox_as_it_is(shop: Shop, ill: Ill) -> None:
    ill.error, ill.answer = Refused("550"), Discard("there is no address for user 42: send one")
    place(shop, 1)
    shop.dispatch()
    ill.error = None
    place(shop, 1, "skipped-")
    shop.dispatch()
    told = "\n".join(findings(shop, "outbox"))
    assert "note ill: nothing waits; 1 dead; 1 skipped among the latest 10,000 deliveries" in told
    assert "note what is dead of ill waits for a person" in told
    assert "'flask bus list --state dead --receiver ill --by reason' tells why" in told
    assert f"note of the latest {MOST_READ:,} deliveries, 1 to ill were skipped, the last because there is no" in told


@pytest.mark.parametrize(
    "seconds, words",
    [(-5, "is at least 5.0 s ahead of this machine's"), (20, "it hangs, or its clock is behind this machine's")],
)
def test_the_doctor_sees_clocks_that_differ(shop: Shop, seconds: float, words: str) -> None:
    shop.dispatcher.sign_on()
    shop.clock.jump(seconds)
    (first, *_) = findings(shop, "clocks")
    assert first.startswith("wrong ")
    assert words in first


def test_the_doctors_exit_code(shop: Shop, ill: Ill, run: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A server's clock is another than the one that stands still here."""
    assert json.loads(run("doctor", "--json", code=0 if shop.database.is_sqlite else 1))["findings"]
    place(shop, 1)
    shop.execute("UPDATE deliveries SET receiver = 'gone'")
    found = json.loads(run("doctor", "--json", code=1))
    assert {"level", "check", "text"} == found["findings"][0].keys()

    def away() -> None:
        raise DatabaseUnavailable("it is away")

    monkeypatch.setattr(shop.database, "check_schema", away)
    run("doctor", code=2)


def test_the_doctor_names_what_this_user_may_not_write(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may write everything, so here the system says no."""
    monkeypatch.setattr(os, "access", lambda path, _: not str(path).endswith("orders.db"))
    told = findings(shop, "permissions")
    if shop.database.is_sqlite:
        assert told[0].startswith(
            f"wrong {shop.database.dialect.file} can't be written; run this as the service's user"
        )
    else:
        assert told == []


@pytest.mark.postgres
class TestOnPostgreSQL:
    @pytest.fixture
    def database_url(self, postgres_url: str) -> str:
        return postgres_url

    def test_the_doctor_sees_a_server_whose_clock_differs(self, shop: Shop) -> None:
        """This machine's stands still."""
        (told,) = findings(shop, "clocks")
        assert re.fullmatch(r"wrong the database server's clock is [\d.]+ s .+ this machine's; run NTP .*", told)


# Cost


class TestOnSQLite:
    @pytest.fixture
    def database_url(self, sqlite_url: str) -> str:
        return sqlite_url

    def test_no_table_is_read_as_a_whole_but_by_a_limit(self, shop: Shop, ill: Ill) -> None:
        ill.error = Unreachable("away")
        place(shop, 3)
        shop.dispatch()
        with queries_noted(shop) as asked:
            shop.bus.status()
        plans = [(words, self.plan(shop, words, values)) for words, values in asked.items()]
        reads = [(words, plan) for words, plan in plans if "deliveries" in words or "attempts" in words]
        assert len(reads) > 10
        for words, plan in reads:
            assert "LIMIT" in words or not [step for step in plan if step.startswith("SCAN")], (words, plan)
            sorts = [step for step in plan if step.endswith("FOR ORDER BY")]
            assert not sorts or "leased_by" in words, (words, plan)  # a few: what is tried at this moment

    @staticmethod
    def plan(shop: Shop, words: str, values: Any) -> list[str]:
        with shop.database.read() as session:
            driver: Any = session.connection().connection.dbapi_connection
            return [row[3] for row in driver.execute(f"EXPLAIN QUERY PLAN {words}", values)]
