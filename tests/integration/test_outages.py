"""The log tells of outages of a receiver's backend: lost, still lost once a minute, and back."""

import logging
from collections.abc import Iterator
from typing import Any

import pytest

from app.answers import Discard
from app.errors import Refused, TimedOut, Unreachable
from app.events import OrderCreated
from config import Settings
from tests.support.shop import Shop


class Backend:
    """A receiver that raises its ``error`` until that is None."""

    __name__ = "send_sms"

    def __init__(self) -> None:
        self.error: Exception | None = Unreachable("sms.example:443 refused the connection; see to it.")

    def __call__(self, sender: str, event: OrderCreated) -> None:
        if self.error:
            raise self.error


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"log_level": "INFO"})


@pytest.fixture
def backend(shop: Shop) -> Backend:
    made = Backend()
    shop.only(made)
    return made


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> Iterator[list[tuple[str, str, dict[str, Any]]]]:
    """Level, message and facts of the lines about outages, as they come."""
    lines: list[tuple[str, str, dict[str, Any]]] = []

    class Kept(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.getMessage().endswith((" lost", " back")):
                lines.append((record.levelname, record.getMessage(), vars(record)["facts"]))

    handler = Kept()
    logging.getLogger("app.bus").addHandler(handler)
    yield lines
    logging.getLogger("app.bus").removeHandler(handler)


def look(shop: Shop, dispatcher: str | None = None) -> None:
    """As a process that dispatches does every few seconds."""
    shop.dispatcher.heartbeat()
    shop.bus.watch.report_outages(shop.bus.watch.look(), dispatcher or shop.dispatcher.name)


def lose(shop: Shop, orders: int = 3) -> None:
    """The first failure opens the breaker, and the probe that follows at once confirms it."""
    for n in range(orders):
        shop.place_order(f"lost-{n}")
    (receiver,) = {
        each.receiver for each in shop.deliveries() if each.receiver in ("send_sms", "send_email_notification")
    }
    shop.dispatcher.deliver(shop.dispatcher.claim({receiver: 1}))
    shop.dispatcher.deliver(shop.dispatcher.claim({receiver: 9}))


def test_lost_still_lost_and_back(shop: Shop, backend: Backend, told: list[Any]) -> None:
    shop.place_order("0")
    look(shop)
    assert told == []

    lose(shop)
    since = str(shop.clock.now())
    look(shop)
    facts = {"receiver": "send_sms", "reason": f"{backend.error}", "since": since, "waiting": 4}
    assert told == [("ERROR", "backend lost", facts)]

    for _ in range(12):
        shop.clock.advance(5)
        look(shop)
    assert told[1:] == [("WARNING", "backend still lost", facts)], "a line a minute"

    backend.error = None
    shop.dispatch()
    look(shop)
    assert told[2:] == [("INFO", "backend back", {"receiver": "send_sms", "seconds": 60, "waiting": 3})]
    look(shop)
    assert len(told) == 3


def test_one_message_that_hangs_is_no_outage(shop: Shop, backend: Backend, told: list[Any]) -> None:
    """The probe that follows at once comes through."""
    backend.error = TimedOut("no answer")
    for n in range(3):
        shop.place_order(str(n))
    (lease, *_) = shop.dispatcher.claim({"send_sms": 1})
    shop.dispatcher.deliver([lease])
    look(shop)
    backend.error = None
    shop.dispatch()
    look(shop)
    assert told == []


def test_one_process_tells_it_for_all(shop: Shop, backend: Backend, told: list[Any]) -> None:
    """The dispatcher that is alive and comes first by its name."""
    lose(shop)
    other = shop.bus.dispatcher()
    other.heartbeat()
    shop.dispatcher.heartbeat()
    first, second = sorted([shop.dispatcher.name, other.name])
    look(shop, second)
    assert told == []
    shop.bus.watch.after_fork()  # as another process, which has seen nothing yet
    look(shop, first)
    assert [message for _, message, _ in told] == ["backend lost"]


def test_a_probe_that_fails_is_no_warning(shop: Shop, backend: Backend, caplog: pytest.LogCaptureFixture) -> None:
    """The attempt that opened the breaker is one."""
    lose(shop)
    for _ in range(5):
        shop.clock.advance(40)
        shop.dispatch()
    assert caplog.messages.count("delivery failed") == 1


def test_a_probe_that_is_refused_is_told(shop: Shop, backend: Backend, caplog: pytest.LogCaptureFixture) -> None:
    lose(shop)
    backend.error = Refused("550 no such user")
    shop.clock.advance(40)
    shop.dispatch()
    assert "delivery dead" in caplog.messages


def test_the_mail_server_has_its_own_words(shop: Shop, told: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def down(_: object) -> None:
        raise Unreachable("mail.example:25 refused the connection.")

    monkeypatch.setattr(shop.mailer.backend, "deliver", down)
    lose(shop)
    look(shop)
    monkeypatch.undo()
    shop.clock.advance(40)
    shop.dispatch()
    look(shop)
    assert [message for _, message, _ in told] == ["mail server lost", "mail server back"]


def test_what_a_receiver_has_no_use_for_is_information(shop: Shop, caplog: pytest.LogCaptureFixture) -> None:
    def tell_sales(sender: str, event: OrderCreated) -> Discard:
        return Discard("not a big order")

    shop.only(tell_sales)
    shop.place_order()
    shop.dispatch()
    (record,) = [record for record in caplog.records if record.getMessage() == "delivery discarded"]
    assert record.levelname == "INFO"
