"""One trace covers POST to mail: ``traceparent`` goes from the request to events, receivers, the mail and the log."""

import json
import logging
from collections.abc import Iterator
from email import message_from_bytes
from email.message import Message
from typing import Any

import pytest

from app.bus import Lease
from app.events import NotificationSent, notification_sent
from app.observe.lines import JsonFormatter
from tests.support.api import Api
from tests.support.logging import handling
from tests.support.shop import Shop

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
TRACEPARENT = f"00-{TRACE}-00f067aa0ba902b7-01"
TRACED = {"traceparent": TRACEPARENT}
ORDER = {"order_id": "1001", "user_id": "42", "total_price": "19.99"}


class Lines(logging.Handler):
    """The log as its JSON lines."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[dict[str, Any]] = []
        self.setFormatter(JsonFormatter())

    def emit(self, record: logging.LogRecord) -> None:
        self.lines += map(json.loads, self.format(record).splitlines())

    def about(self, message: str) -> list[dict[str, Any]]:
        return [line for line in self.lines if line["message"].startswith(message)]


@pytest.fixture
def log(shop: Shop) -> Iterator[Lines]:
    shop.app.extensions["bus_log"].level = logging.INFO
    handler = Lines()
    logger = logging.getLogger("app")
    level, logger.level = logger.level, logging.INFO
    with handling(handler):
        yield handler
    logger.level = level


def mailed(shop: Shop) -> Message:
    (mail,) = shop.mailer.outbox
    with shop.app.app_context():
        return message_from_bytes(mail.as_bytes())


def test_every_event_that_follows_from_a_traced_request_belongs_to_its_trace(shop: Shop) -> None:
    shop.client.post("/api/create_order", json=ORDER, headers=TRACED)
    shop.dispatch_all()
    events = shop.client.get("/api/orders/1001").json["timeline"]
    assert [(event["type"], event["traceparent"]) for event in events] == [
        ("OrderCreated", TRACEPARENT),
        ("NotificationSent", TRACEPARENT),
    ]


def test_the_feed_tells_the_trace_as_cloudevents_do(api: Api) -> None:
    api.place(order_id="1")
    api.client.post("/api/create_order", json=ORDER | {"order_id": "2"}, headers=TRACED)
    untraced, traced = api.get("/api/events").json["events"]
    assert "traceparent" not in untraced
    assert traced["traceparent"] == TRACEPARENT


def test_receivers_and_the_mail_have_the_trace(shop: Shop) -> None:
    seen: list[str | None] = []

    def look(sender: str, event: NotificationSent, delivery: Lease) -> None:
        seen.append(delivery.traceparent)

    shop.receive(look, notification_sent)
    shop.client.post("/api/create_order", json=ORDER, headers=TRACED)
    shop.dispatch_all()
    assert mailed(shop)["Traceparent"] == TRACEPARENT
    assert seen == [TRACEPARENT]


@pytest.mark.parametrize("header", [None, "00-zz-1-01", f"{TRACEPARENT}\t-", "ünïcode"])
def test_without_a_good_header_there_is_no_trace_and_the_order_is_taken(shop: Shop, header: str | None) -> None:
    headers = {} if header is None else {"traceparent": header}
    assert shop.client.post("/api/create_order", json=ORDER, headers=headers).status_code == 201
    shop.dispatch_all()
    assert "Traceparent" not in mailed(shop)
    assert {event["traceparent"] for event in shop.timeline()} == {None}


def test_a_mail_that_is_asked_for_again_belongs_to_the_trace_of_who_asked(shop: Shop) -> None:
    shop.client.post("/api/create_order", json=ORDER, headers=TRACED)
    shop.dispatch_all()
    other = f"00-{'a' * 32}-00f067aa0ba902b7-01"
    shop.client.post("/operator/orders/1001/resend", json={"reason": "lost"}, headers={"traceparent": other})
    shop.dispatch_all()
    _, second = shop.mailer.outbox
    assert second.extra_headers["Traceparent"] == other


def test_every_line_of_an_order_s_way_has_its_ids(shop: Shop, log: Lines) -> None:
    headers = TRACED | {"X-Request-ID": "req-7"}
    event_id = shop.client.post("/api/create_order", json=ORDER, headers=headers).json["event_id"]
    shop.dispatch_all()
    (recorded, *_) = log.about("event recorded")
    expected = {"order_id": "1001", "event_id": event_id, "trace_id": TRACE, "request_id": "req-7"}
    assert expected.items() <= recorded.items()
    done = {line["receiver"]: line for line in log.about("delivery done")}
    for delivery in shop.deliveries():
        line = done[delivery.receiver]
        assert (line["order_id"], line["trace_id"]) == ("1001", TRACE)
        assert (line["event_id"], line["delivery_id"]) == (delivery.event_id, delivery.delivery_id)


def test_what_a_receiver_logs_itself_has_the_ids_of_its_delivery(shop: Shop, log: Lines) -> None:
    def tell_sales(sender: str, event: Any) -> None:
        logging.getLogger("app.sales").warning("a big order")

    shop.only(tell_sales)
    event_id = shop.place_order()
    shop.dispatch_all()
    (line,) = log.about("a big order")
    delivery_id = shop.delivery("tell_sales").delivery_id
    ids = {"receiver": "tell_sales", "order_id": "1001", "event_id": event_id, "delivery_id": delivery_id}
    assert ids.items() <= line.items()


def test_an_error_s_line_and_its_answer_have_one_request_id(
    shop: Shop, log: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.api.users.find_user", lambda *_: 1 / 0)
    answer = shop.client.get("/api/users/42")
    (line,) = log.about("Exception on /api/users/42")
    assert answer.status_code == 500
    assert len(line["request_id"]) == 32
    assert answer.headers["X-Request-ID"] == line["request_id"]

    shop.client.get("/api/users/42", headers={"X-Request-ID": "from-the-proxy"})
    assert log.about("Exception on")[1]["request_id"] == "from-the-proxy"

    shop.client.get("/api/users/42", headers={"X-Request-ID": "not an id\x1b[31m"})
    assert len(log.about("Exception on")[2]["request_id"]) == 32


def test_a_request_of_which_nothing_is_logged_is_given_no_id(shop: Shop) -> None:
    assert "X-Request-ID" not in shop.client.get("/healthz").headers
