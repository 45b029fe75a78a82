"""Routes that read: orders with their timelines, users, and the feed of all events."""

import base64
from datetime import timedelta
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from werkzeug.test import TestResponse

from app.errors import Refused
from tests.support.api import ID_RULE, Api, messages, parse
from tests.support.shop import START


def ids(response: TestResponse) -> list[str]:
    assert response.status_code == 200, response.text
    return [order["order_id"] for order in parse(response)["orders"]]


# One order, one user


def test_an_order_is_shown_as_it_is_stored(api: Api) -> None:
    event_id = parse(api.place(email="ann@example.com"))["event_id"]

    order = parse(api.get("/api/orders/1001"))

    del order["timeline"]
    assert order == {
        "order_id": "1001",
        "user_id": "42",
        "total_price": "19.99",
        "email": "ann@example.com",
        "status": "created",
        "notification": "pending",
        "created_at": "2026-11-23T08:00:00.000000Z",
        "event_id": event_id,
    }


def test_a_timeline_tells_what_happened_and_why(api: Api) -> None:
    api.place()
    api.shop.dispatch_all()

    created, sent = parse(api.get("/api/orders/1001"))["timeline"]

    assert (created["type"], created["cause_id"]) == ("OrderCreated", None)
    assert created["data"] == {"order_id": "1001", "user_id": "42", "total_price": "19.99", "email": None}
    assert {delivery["receiver"]: delivery["state"] for delivery in created["deliveries"]} == {
        "update_user_order_record": "done",
        "send_email_notification": "done",
    }
    assert [attempt["outcome"] for delivery in created["deliveries"] for attempt in delivery["attempts"]] == ["ok"] * 2
    assert (sent["type"], sent["cause_id"], sent["correlation_id"]) == (
        "NotificationSent",
        created["event_id"],
        created["event_id"],
    )


def test_a_timeline_tells_why_a_delivery_was_given_up(api: Api) -> None:
    def refuse(_: Any) -> None:
        raise Refused("no such mailbox")

    api.shop.only(refuse, name="refuse")
    api.place()
    api.shop.dispatch_all()

    ((delivery,),) = [event["deliveries"] for event in parse(api.get("/api/orders/1001"))["timeline"]]
    assert (delivery["state"], delivery["due_at"], delivery["settled_at"]) == (
        "dead",
        None,
        "2026-11-23T08:00:00.000000Z",
    )
    ((outcome, detail),) = [(attempt["outcome"], attempt["detail"]) for attempt in delivery["attempts"]]
    assert outcome == "refused"
    assert "no such mailbox" in detail


@pytest.mark.parametrize("data", ["{", "NaN", '{"a": 1e999}', '"\\ud800"', "[" * 5000, "9" * 5000])
def test_damaged_data_is_shown_rather_than_hidden(api: Api, data: str) -> None:
    api.place()
    api.shop.execute("UPDATE events SET data = :data", data=data)
    assert api.get("/api/orders/1001").status_code == 200
    assert api.get("/api/events").status_code == 200


def test_a_users_record_counts_confirmed_orders(api: Api) -> None:
    api.place(order_id="1", total_price="0.10", email="ann@example.com")
    api.place(order_id="2", total_price="0.20")
    assert parse(api.get("/api/users/42")) == {
        "user_id": "42",
        "email": "ann@example.com",
        "orders_count": 0,
        "total_spent": "0.00",
        "last_order_id": None,
        "last_order_at": None,
    }

    api.shop.dispatch_all()

    record = parse(api.get("/api/users/42"))
    assert (record["orders_count"], record["total_spent"], record["last_order_id"]) == (2, "0.30", "2")
    assert record["last_order_at"] == "2026-11-23T08:00:00.000000Z"


@pytest.mark.parametrize("kind", ["orders", "users"])
@pytest.mark.parametrize(
    "missing", ["1002", "a%00b", "%ff", "%ED%A0%80", "a%20b", "%0d%0aX:y", "a" * 65, "a" * 3000, "订单"]
)
def test_what_does_not_exist_is_404(api: Api, kind: str, missing: str) -> None:
    api.place()
    response = api.get(f"/api/{kind}/{missing}")
    assert response.status_code == 404
    assert parse(response)["title"] == "Not Found"


# Lists of orders


def test_orders_are_listed_newest_first(api: Api) -> None:
    for order_id in ("3", "1", "2"):
        api.place(order_id=order_id)
    response = api.get("/api/orders")
    assert ids(response) == ["2", "1", "3"]
    assert parse(response)["next_cursor"] is None
    assert "Link" not in response.headers


def test_an_empty_list_is_a_list(api: Api) -> None:
    assert parse(api.get("/api/orders")) == {"orders": [], "next_cursor": None}


def test_orders_are_filtered_by_user_status_and_notification(api: Api) -> None:
    api.place(order_id="1", user_id=7)
    api.place(order_id="2", user_id=8)
    api.shop.dispatch_all()
    api.place(order_id="3", user_id=7)

    assert ids(api.get("/api/orders", user_id="7")) == ["3", "1"]
    assert ids(api.get("/api/orders", status="confirmed")) == ["2", "1"]
    assert ids(api.get("/api/orders", notification="pending")) == ["3"]
    assert ids(api.get("/api/orders", user_id="7", status="confirmed", notification="sent")) == ["1"]
    assert ids(api.get("/api/orders", user_id="9")) == []


def test_pages_hold_every_order_once_even_while_others_arrive(api: Api) -> None:
    for number in range(5):
        api.place(order_id=str(number))

    first = api.get("/api/orders", limit=2)
    api.place(order_id="late")
    second = api.get("/api/orders", limit=2, cursor=parse(first)["next_cursor"])
    third = api.get("/api/orders", limit=2, cursor=parse(second)["next_cursor"])

    assert [ids(page) for page in (first, second, third)] == [["4", "3"], ["2", "1"], ["0"]]
    assert parse(third)["next_cursor"] is None


def test_a_page_that_is_just_full_is_the_last(api: Api) -> None:
    for number in range(2):
        api.place(order_id=str(number))
    assert parse(api.get("/api/orders", limit=2))["next_cursor"] is None
    assert parse(api.get("/api/orders", limit=1))["next_cursor"] is not None


def test_the_link_header_leads_on_with_the_same_filters(api: Api) -> None:
    for number in range(3):
        api.place(order_id=str(number), user_id="a:b")
        api.place(order_id=f"other-{number}")

    found, url = [], "/api/orders?user_id=a:b&limit=1"
    while url:
        response = api.client.get(url)
        found += ids(response)
        link = response.headers.get("Link", "")
        url = link.removeprefix("<").removesuffix('>; rel="next"')
    assert found == ["2", "1", "0"]


def test_the_link_header_holds_what_was_asked_and_the_cursor(api: Api) -> None:
    api.place(order_id="1")
    api.place(order_id="2")
    response = api.get("/api/orders", limit=1, status="created")
    target = urlsplit(response.headers["Link"].removeprefix("<").removesuffix('>; rel="next"'))
    assert target.path == "/api/orders"
    assert parse_qs(target.query) == {
        "limit": ["1"],
        "status": ["created"],
        "cursor": [parse(response)["next_cursor"]],
    }


@pytest.mark.parametrize("path", ["/api/orders", "/api/events", "/operator/deliveries"])
@pytest.mark.parametrize("limit, accepted", [("1", True), ("200", True), ("0", False), ("201", False)])
def test_a_page_holds_1_to_200(api: Api, path: str, limit: str, accepted: bool) -> None:
    response = api.get(path, limit=limit)
    assert response.status_code == (200 if accepted else 422)
    assert accepted or messages(response) == {"limit": "must be a number from 1 to 200: how many at most"}


def test_wrong_and_unknown_parameters_are_all_named(api: Api) -> None:
    response = api.get("/api/orders", user_id="a b", status="lost", notification="", limit="ten", cursor="x", page=2)
    assert response.status_code == 422
    assert messages(response) == {
        "user_id": f"must be {ID_RULE}",
        "status": "must be created or confirmed",
        "notification": "must be pending, skipped, failed or sent",
        "limit": "must be a number from 1 to 200: how many at most",
        "cursor": "must be the next_cursor of the page before",
        "page": "is unknown; known are user_id, status, notification, limit, cursor",
    }


@pytest.mark.parametrize(
    "query",
    ["limit=-1", "limit=1.0", "limit=%2B1", "limit=١", "limit=", "limit=1&limit=2", "status=created&status=created",
     "user_id=.", "user_id=..", "user_id=%00", "user_id=%ED%A0%80", "user_id=%ff", "cursor=%27", "cursor=0-0", "%00=1",
     "_external=1"],
)  # fmt: skip
def test_a_parameter_that_means_nothing_is_refused(api: Api, query: str) -> None:
    assert api.client.get(f"/api/orders?{query}").status_code == 422


def test_a_query_of_raw_bytes_is_refused(api: Api) -> None:
    response = api.client.get("/api/orders", environ_overrides={"QUERY_STRING": "user_id=\xff"})
    assert response.status_code == 400


# The feed


def test_an_event_is_a_cloud_event(api: Api) -> None:
    event_id = parse(api.place())["event_id"]

    (event,) = parse(api.get("/api/events"))["events"]

    assert event == {
        "specversion": "1.0",
        "id": event_id,
        "source": "/api/create_order",
        "type": "OrderCreated",
        "subject": "1001",
        "time": "2026-11-23T08:00:00.000000Z",
        "datacontenttype": "application/json",
        "data": {"order_id": "1001", "user_id": "42", "total_price": "19.99", "email": None},
        "dataversion": 1,
        "correlationid": event_id,
    }


def test_an_event_names_its_cause_and_what_began_it_all(api: Api) -> None:
    event_id = parse(api.place())["event_id"]
    api.shop.dispatch_all()

    created, sent = parse(api.get("/api/events"))["events"]

    assert "causationid" not in created
    assert (sent["type"], sent["causationid"], sent["correlationid"]) == ("NotificationSent", event_id, event_id)


def test_the_feed_is_read_in_pages_and_gone_on_with_later(api: Api) -> None:
    for number in range(3):
        api.place(order_id=str(number))

    first = read(api, limit=2)
    second = read(api, after=first["next"])
    nothing_yet = read(api, after=second["next"])
    api.place(order_id="late")
    later = read(api, after=nothing_yet["next"])

    pages = [[event["subject"] for event in page["events"]] for page in (first, second, nothing_yet, later)]
    assert pages == [["0", "1"], ["2"], [], ["late"]]


def test_an_empty_feed_has_a_place_to_go_on_from(api: Api) -> None:
    beginning = read(api)
    assert beginning["events"] == []
    api.place()
    assert [event["subject"] for event in read(api, after=beginning["next"])["events"]] == ["1001"]


def test_an_empty_cursor_is_the_beginning(api: Api) -> None:
    """So a follower that has none yet needs no other address."""
    beginning = read(api, after="")
    assert beginning == read(api)
    for number in range(3):
        api.place(order_id=str(number))
    assert read(api, after="", limit=2) == read(api, limit=2)


def read(api: Api, **query: Any) -> Any:
    response = api.get("/api/events", **query)
    assert response.status_code == 200, response.text
    return parse(response)


@pytest.mark.parametrize("after", ["x", "1", "-1", "0-", "1-x", "0-٣", "0-9999999999999999999", "' OR 1=1"])
def test_a_cursor_from_elsewhere_is_refused(api: Api, after: str) -> None:
    response = api.get("/api/events", after=after)
    assert response.status_code == 422
    assert messages(response) == {"after": "is not a cursor of this feed; leave it out to begin at the first event"}


def test_data_that_is_no_json_any_more_is_handed_on_as_it_is(api: Api) -> None:
    api.place()
    api.shop.execute("UPDATE events SET data = :data", data='{"order_id": "100')

    (event,) = parse(api.get("/api/events"))["events"]

    assert "data" not in event
    assert event["datacontenttype"] == "application/octet-stream"
    assert base64.b64decode(event["data_base64"]) == b'{"order_id": "100'


def test_bytes_that_are_no_utf_8_any_more_do_not_stop_the_feed(api: Api) -> None:
    if not api.shop.database.is_sqlite:
        pytest.skip("PostgreSQL stores no text that is not UTF-8")
    api.place()
    api.place(order_id="1002")
    api.shop.execute("UPDATE events SET data = CAST(X'7BFF' AS TEXT) WHERE order_id = '1001'")

    damaged, whole = parse(api.get("/api/events"))["events"]

    assert base64.b64decode(damaged["data_base64"]) == b"{\xff"
    assert whole["data"]["order_id"] == "1002"
    assert parse(api.get("/api/orders/1001"))["timeline"][0]["data"] == "{\ufffd"


def test_times_are_utc_whatever_the_clock_was_set_to(api: Api) -> None:
    api.shop.clock.time = START.astimezone(tz=None) + timedelta(microseconds=1)
    api.place()
    assert parse(api.get("/api/orders/1001"))["created_at"] == "2026-11-23T08:00:00.000001Z"
