"""The console's events: the feed, one event, the catalogue, and the download."""

import json
from datetime import timedelta
from typing import Any

import pytest

from app.bus import queries
from app.clock import iso
from app.console import events
from app.events import OrderCreated
from app.signal import SIGNALS
from tests.support.console import Visitor, untranslated
from tests.support.shop import START, Shop


def seen_on_all_pages(shop: Shop, **query: Any) -> list[str]:
    """The orders of the events, as the pages follow each other."""
    visitor = Visitor(shop)
    page = visitor.get("/events", **query)
    assert page.status == 200, page.text
    found = page.column(1)
    while following := [link for link in page.links if "cursor=" in link and "language" not in link]:
        page = visitor.get(following[0])
        found += page.column(1)
    return found


@pytest.fixture
def full_shop(shop: Shop) -> Shop:
    """Ten orders, a minute apart, each with two events: OrderCreated, and NotificationSent at once."""
    for n in range(10):
        shop.place_order(f"{n}")
        shop.dispatch_all()
        shop.clock.advance(60)
    return shop


@pytest.mark.parametrize("limit", [1, 7, 50])
def test_the_feed_agrees_with_the_database(full_shop: Shop, limit: int) -> None:
    """Every event once, the newest first, as SQL of the test's own has them."""
    expected = full_shop.execute_all("SELECT order_id FROM events ORDER BY position DESC")
    assert seen_on_all_pages(full_shop, limit=limit) == [row[0] for row in expected]
    assert len(expected) == 20


def minute(n: float) -> str:
    return iso(START + timedelta(minutes=n))


@pytest.mark.parametrize(
    "query, expected",
    [
        ({"type": "NotificationSent"}, list("9876543210")),
        ({"type": "OrderEmailChanged"}, []),
        ({"order_id": "4"}, ["4", "4"]),
        ({"order_id": "4", "type": "OrderCreated"}, ["4"]),
        ({"since": minute(7)}, list("998877")),
        ({"until": minute(2)}, list("1100")),
        ({"since": minute(3), "until": minute(4), "type": "OrderCreated"}, ["3"]),
        ({"since": minute(3.5), "until": minute(3.9)}, []),
        ({"since": minute(-100), "until": minute(100), "type": "OrderCreated"}, list("9876543210")),
        ({"since": minute(100)}, []),
        ({"until": minute(-100)}, []),
        ({"order_id": "4", "since": minute(5)}, []),
    ],
    ids=str,
)
@pytest.mark.parametrize("most", [3, 20_000])
def test_events_are_found(
    full_shop: Shop, monkeypatch: pytest.MonkeyPatch, query: dict[str, str], expected: list[str], most: int
) -> None:
    """Within bounds, where the next page looks further, as without."""
    monkeypatch.setattr(events, "MOST_LOOKED_AT", most)
    assert seen_on_all_pages(full_shop, **query) == expected
    assert seen_on_all_pages(full_shop, limit=1, **query) == expected
    found = json.loads(Visitor(full_shop).get("/events.json", **query).html)
    assert [event["subject"] for event in found] == expected


def test_gaps_in_the_feed_hide_nothing(full_shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "MOST_LOOKED_AT", 3)
    full_shop.execute("DELETE FROM attempts")
    full_shop.execute("DELETE FROM deliveries")
    full_shop.execute("DELETE FROM events WHERE order_id NOT IN ('2', '8')")
    assert seen_on_all_pages(full_shop, type="OrderCreated") == ["8", "2"]
    assert seen_on_all_pages(full_shop, since=minute(3)) == ["8", "8"]
    assert seen_on_all_pages(full_shop, until=minute(3)) == ["2", "2"]


def test_a_bounded_look_says_so(full_shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "MOST_LOOKED_AT", 3)
    page = Visitor(full_shop).get("/events", type="OrderEmailChanged")
    assert "Only the next 3 were looked at" in page.text


@pytest.mark.parametrize(
    "query", [{"since": "yesterday"}, {"until": "2026-11-23"}, {"cursor": "x"}, {"order_id": "a b"}, {"type": "x" * 65}]
)
def test_a_wrong_filter_is_said(shop: Shop, query: dict[str, str]) -> None:
    page = Visitor(shop).get("/events", **query)
    assert page.status == 422
    assert next(iter(query)) in page.text


def test_a_page_leads_to_the_download_with_its_filters(full_shop: Shop) -> None:
    page = Visitor(full_shop).get("/events", type="OrderCreated", since=minute(3), limit=2)
    link = next(link for link in page.links if link.startswith("/events.json"))
    assert len(json.loads(Visitor(full_shop).get(link).html)) == 7


def test_a_download_has_every_event_as_the_api_has_it(full_shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "ROWS_AT_ONCE", 3)
    found = json.loads(Visitor(full_shop).get("/events.json").html)
    assert found[::-1] == full_shop.client.get("/api/events?limit=200").json["events"]


def test_one_event_is_shown_with_what_followed(shop: Shop) -> None:
    event_id = shop.place_order(email="ann@b.example")
    shop.dispatch_all()
    visitor = Visitor(shop)
    page = visitor.get(f"/events/{event_id}")
    assert page.heading == "OrderCreated"
    assert sorted(page.column(0)) == ["send_email_notification", "update_user_order_record"]
    assert '"specversion": "1.0"' in page.text
    assert '"total_price": "19.99"' in page.text
    assert "nothing: it came from outside" in page.text
    (sent,) = shop.execute_all("SELECT event_id FROM events WHERE type = 'NotificationSent'")
    assert f"/events/{sent[0]}" in page.links
    following = visitor.get(f"/events/{sent[0]}")
    assert f"/events/{event_id}" in following.links
    for path in ("/events/x", "/events/a b", f"/events/{event_id[:-1]}"):
        assert visitor.get(path).status == 404


def test_a_damaged_event_is_shown_as_it_is(shop: Shop) -> None:
    event_id = shop.place_order()
    shop.execute("UPDATE events SET data = '{\"a\": \x1b[31m<b>'")
    page = Visitor(shop).get(f"/events/{event_id}")
    assert "\\u001b[31m<b>" in page.text or "␛[31m<b>" in page.text
    assert "data_base64" in page.text
    assert json.loads(Visitor(shop).get("/events.json").html)[0]["datacontenttype"] == "application/octet-stream"


def test_the_catalogue_has_every_type_with_its_receivers(shop: Shop) -> None:
    def tell_sales(sender: str, event: OrderCreated) -> None: ...

    shop.receive(tell_sales)
    shop.place_order()
    page = Visitor(shop).get("/events/types")
    for name, signal in SIGNALS.items():
        assert name in page.text
        assert f"/events?type={name}" in page.links
        for receiver in signal.subscriptions:
            assert receiver in page.column(0)
    assert "tell_sales" in page.column(0)
    assert "app/receivers/notification.py" in page.column(3)
    assert "exactly once" in page.column(1)
    assert "An order was taken." in page.text
    assert '"order_id": "1001"' in page.text  # the newest of them


def test_what_the_types_mean_is_translated() -> None:
    """MEANINGS says what the classes say."""
    assert set(events.MEANINGS) == {events.meaning(signal.event_type) for signal in SIGNALS.values()}


@pytest.mark.parametrize(
    "path",
    [
        "/events",
        "/events?type=x",
        "/events/types",
        "/users",
        "/users?q=x",
        "/users/42",
        "/events/{event}",
        "/orders/1001/mail/{sent}",
    ],
)
def test_a_chinese_page_is_chinese(shop: Shop, path: str) -> None:
    event = shop.place_order()
    shop.dispatch_all()
    (sent,) = shop.execute_all("SELECT event_id FROM events WHERE type = 'NotificationSent'")
    visitor = Visitor(shop)
    visitor.language = "zh-CN"
    page = visitor.get(path.format(event=event, sent=sent[0]))
    assert page.status == 200
    assert untranslated(page.text) == []


def test_events_of_one_order_do_not_need_a_look_at_others(full_shop: Shop) -> None:
    with full_shop.database.read() as session:
        found = queries.feed_backwards(session, order_id="0", most=1)
    assert [event.order_id for event in found.events] == ["0", "0"]
