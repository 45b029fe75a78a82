"""Operator routes: find, retry and discard deliveries, with a password or from this machine."""

from base64 import b64encode
from typing import Any

import pytest
from sqlalchemy import text
from werkzeug.test import TestResponse

from app.errors import Refused
from app.events import OrderCreated
from config import Settings
from tests.support.api import Api, messages, parse
from tests.support.shop import Shop

DELIVERIES = "/operator/deliveries"


@pytest.fixture
def database_url(sqlite_url: str) -> str:
    return sqlite_url


@pytest.fixture
def api(shop: Shop) -> Api:
    """Three orders whose only receiver refuses them all."""

    def refuse(sender: str, event: OrderCreated) -> None:
        raise Refused("550 5.1.1 no such user")

    shop.only(refuse)
    for n in range(3):
        shop.place_order(f"{n}", user_id=f"u{n}")
    shop.dispatch()
    return Api(shop)


@pytest.fixture
def guarded(tmp_path: Any, sqlite_url: str) -> Any:
    """A service with a password."""
    settings = Settings.of(
        instance_path=tmp_path / "instance", mail_backend="memory", console_password="pässword", log_level="ERROR"
    )
    shop = Shop(settings)
    yield Api(shop)
    shop.close()


def post(api: Api, path: str, body: Any, **how: Any) -> TestResponse:
    return api.client.post(DELIVERIES + path, json=body, **how)


def basic(name: str, password: str) -> dict[str, str]:
    return {"Authorization": "Basic " + b64encode(f"{name}:{password}".encode()).decode()}


def test_dead_deliveries_are_found_with_what_they_are_about(api: Api) -> None:
    page = parse(api.get(DELIVERIES, state="dead", limit=2))
    assert [row["order_id"] for row in page["deliveries"]] == ["0", "1"]
    first = page["deliveries"][0]
    assert (first["receiver"], first["outcome"], first["reason"], first["event_type"], first["user_id"]) == (
        "refuse",
        "refused",
        "550 5.1.1 no such user",
        "OrderCreated",
        "u0",
    )
    rest = parse(api.get(DELIVERIES, state="dead", limit=2, cursor=page["next_cursor"]))
    assert [row["order_id"] for row in rest["deliveries"]] == ["2"]
    assert rest["next_cursor"] is None


@pytest.mark.parametrize(
    ("query", "count"),
    [
        ({"user_id": "u1"}, 1),
        ({"order_id": 2}, 1),
        ({"outcome": "refused"}, 3),
        ({"outcome": "timeout"}, 0),
        ({"reason": "5.1.1"}, 3),
        ({"reason_group": "550 5.1.1 no such user"}, 3),
        ({"reason_group": "5.1.1"}, 0),
        ({"tried": "true"}, 3),
        ({"tried": "false"}, 0),
        ({"event_type": "NotificationSent"}, 0),
        ({"receiver": "refuse", "state": "done"}, 0),
        ({"older_than": "2026-11-23T08:00:00Z"}, 0),
        ({"older_than": "2026-11-23T10:00:01+02:00"}, 3),
        ({"delivery_id": 3}, 1),
    ],
)
def test_a_filter_means_the_same_for_finding_counting_and_acting(api: Api, query: Any, count: int) -> None:
    assert len(parse(api.get(DELIVERIES, **query))["deliveries"]) == count
    query = {k: int(v) if k == "delivery_id" else v == "true" if k == "tried" else v for k, v in query.items()}
    assert parse(post(api, "/retry", {"filter": query, "dry_run": True})) == {"deliveries": count, "act_id": None}
    assert parse(post(api, "/retry", {"filter": query})) == {"deliveries": count, "act_id": 1}
    assert parse(post(api, "/retry", {"filter": {"state": "dead"} | query})) == {"deliveries": 0, "act_id": 2}


def test_a_dry_run_changes_nothing(api: Api) -> None:
    body = {"filter": {}, "reason": "test", "dry_run": True}
    assert parse(post(api, "/discard", body)) == {"deliveries": 3, "act_id": None}
    assert {delivery.state for delivery in api.shop.deliveries()} == {"dead"}
    assert api.shop.count("operator_acts") == 0


def test_one_is_retried_and_another_discarded(api: Api) -> None:
    assert parse(post(api, "/1/retry", {})) == {"deliveries": 1, "act_id": 1}
    assert parse(post(api, "/2/discard", {"reason": "a duplicate"})) == {"deliveries": 1, "act_id": 2}
    assert parse(post(api, "/2/discard", {"reason": "a duplicate"})) == {"deliveries": 0, "act_id": 3}
    assert [delivery.state for delivery in api.shop.deliveries()] == ["ready", "discarded", "dead"]
    assert api.shop.deliveries()[1].reason == "a duplicate"


def test_one_that_was_discarded_is_retried_when_it_is_named(api: Api) -> None:
    post(api, "/discard", {"filter": {}, "reason": "a test"})
    assert parse(post(api, "/retry", {"filter": {}})) == {"deliveries": 0, "act_id": 2}
    assert parse(post(api, "/1/retry", {})) == {"deliveries": 1, "act_id": 3}
    assert parse(post(api, "/retry", {"filter": {"state": "discarded"}})) == {"deliveries": 2, "act_id": 4}


def test_reasons_are_grouped_with_an_example(api: Api) -> None:
    api.shop.execute("UPDATE deliveries SET reason = 'no such user 7' WHERE delivery_id = 1")
    api.shop.execute("UPDATE deliveries SET reason = 'no such user 8' WHERE delivery_id = 2")
    found = parse(api.get(f"{DELIVERIES}/reasons", state="dead"))
    assert found["complete"]
    assert [(g["deliveries"], g["reason"], g["example_order_id"]) for g in found["reasons"]] == [
        (2, "no such user <n>", "1"),
        (1, "550 5.1.1 no such user", "2"),
    ]
    assert not parse(api.get(f"{DELIVERIES}/reasons", limit=1))["complete"]


def test_what_waits_has_its_next_try(api: Api) -> None:
    post(api, "/retry", {"filter": {}, "over_seconds": 30})
    rows = parse(api.get(DELIVERIES))["deliveries"]
    assert [row["next_try"] for row in rows] == [f"2026-11-23T08:00:{seconds}.000000Z" for seconds in ("00", 10, 20)]


def test_an_act_is_looked_at_and_aborted(api: Api) -> None:
    post(api, "/retry", {"filter": {}, "over_seconds": 30})
    api.shop.dispatch()
    (act,) = parse(api.get("/operator/acts"))["acts"]
    assert (act["action"], act["acted_by"], act["filter"]) == ("retry", "operator:unnamed", {})
    assert (act["counted"], act["deliveries"], act["over_seconds"], act["state"]) == (3, 3, 30, "ended")
    assert (act["progress"]["failed"], act["progress"]["left"]) == ({"refused": 1}, 2)

    answer = api.client.post("/operator/acts/1/abort", json={})
    assert parse(answer) == {"act_id": 1, "taken_back": 2}
    act = parse(api.get("/operator/acts/1"))
    assert (act["state"], act["aborted_by"], act["progress"]["taken_back"]) == ("aborted", "operator:unnamed", 2)
    assert {delivery.state for delivery in api.shop.deliveries()} == {"dead"}


def test_acts_are_paged_newest_first(api: Api) -> None:
    for _ in range(3):
        post(api, "/retry", {"filter": {}})
    page = parse(api.get("/operator/acts", limit=2))
    assert [act["act_id"] for act in page["acts"]] == [3, 2]
    rest = parse(api.get("/operator/acts", limit=2, cursor=page["next_cursor"]))
    assert ([act["act_id"] for act in rest["acts"]], rest["next_cursor"]) == ([1], None)


@pytest.mark.parametrize("number", [7, 2**63])
def test_an_unknown_act_is_404(api: Api, number: int) -> None:
    assert api.get(f"/operator/acts/{number}").status_code == 404
    assert api.client.post(f"/operator/acts/{number}/abort", json={}).status_code == 404


def test_a_spread_that_is_longer_than_any_wait_is_refused(api: Api) -> None:
    assert post(api, "/retry", {"filter": {}, "over_seconds": 3600}).status_code == 200
    told = messages(post(api, "/retry", {"filter": {}, "over_seconds": 3601}))["over_seconds"]
    assert "spread it over 3600 s at most, which is RETRY_MAX_SECONDS" in told
    assert set(messages(post(api, "/retry", {"filter": {}, "over_seconds": 0}))) == {"over_seconds"}


def test_a_notification_is_sent_again(shop: Shop) -> None:
    api = Api(shop)
    shop.place_order()
    shop.dispatch_all()
    answer = parse(api.client.post("/operator/orders/1001/resend", json={"reason": "asked by phone"}))
    assert answer["act_id"] == 1
    shop.dispatch_all()
    assert len(shop.mailer.outbox) == 2
    (asked,) = [event for event in parse(api.get("/api/orders/1001"))["timeline"] if event["source"].startswith("op")]
    assert (asked["event_id"], asked["type"]) == (answer["event_id"], "NotificationRequested")
    assert asked["data"]["requested_by"] == "operator:unnamed"
    assert parse(api.get("/operator/acts/1"))["reason"] == "asked by phone"


@pytest.mark.parametrize("order_id", ["7", "a b", "x" * 65])
def test_no_notification_is_sent_of_an_order_that_does_not_exist(shop: Shop, order_id: str) -> None:
    assert Api(shop).client.post(f"/operator/orders/{order_id}/resend", json={}).status_code == 404
    assert shop.count("operator_acts") == 0


@pytest.mark.parametrize("act", ["retry", "discard"])
def test_an_unknown_delivery_is_404(api: Api, act: str) -> None:
    body = {"reason": "x"} if act == "discard" else {}
    assert post(api, f"/999/{act}", body).status_code == 404


def test_wrong_fields_are_named(api: Api) -> None:
    assert set(messages(post(api, "/discard", {"filter": {"colour": 1}}))) == {"filter", "reason"}
    assert set(messages(post(api, "/retry", {}))) == {"filter"}
    assert set(messages(api.get(DELIVERIES, state="lost", older_than="2026-11-23T08:00:00", outcome="bad"))) == {
        "state",
        "older_than",
        "outcome",
    }


@pytest.mark.parametrize("path", ["/retry", "/discard", "/1/retry", "/1/discard"])
def test_a_form_of_a_foreign_page_is_refused(api: Api, path: str) -> None:
    """Cross-site request forgery: a browser sends a form without asking, and JSON only where CORS allows it."""
    assert api.client.post(DELIVERIES + path, data={"filter": "{}"}).status_code == 415
    answer = api.client.options(DELIVERIES + path, headers={"Origin": "https://elsewhere.example"})
    assert not [name for name, _ in answer.headers if name.lower().startswith("access-control")]
    assert {delivery.state for delivery in api.shop.deliveries()} == {"dead"}


@pytest.mark.parametrize(
    ("address", "headers"),
    [
        ("203.0.113.9", {}),
        ("203.0.113.9", {"X-Forwarded-For": "127.0.0.1"}),
        ("127.0.0.1", {"X-Forwarded-For": "203.0.113.9"}),
        ("127.0.0.1", {"X-Forwarded-For": "127.0.0.1"}),
        ("127.0.0.1", {"Forwarded": "for=203.0.113.9"}),
        ("::ffff:203.0.113.9", {}),
        ("garbage", {}),
    ],
)
def test_without_a_password_other_machines_are_refused(api: Api, address: str, headers: dict[str, str]) -> None:
    answer = api.client.get(DELIVERIES, headers=headers, environ_overrides={"REMOTE_ADDR": address})
    assert answer.status_code == 403


def test_without_a_password_a_name_that_is_made_to_point_to_this_machine_is_refused(shop: Shop) -> None:
    """Also where the service's own names are not known: DNS rebinding."""
    api = Api(Shop(shop.settings.model_copy(update={"trusted_hosts": None})))
    answer = api.client.get(DELIVERIES, headers={"Host": "rebound.example:8000"})
    assert answer.status_code == 403


@pytest.mark.parametrize(
    ("address", "host"), [("127.0.0.1", "127.0.0.1:8000"), ("::1", "[::1]:8000"), ("127.0.0.9", "localhost")]
)
def test_without_a_password_this_machine_is_answered(api: Api, address: str, host: str) -> None:
    answer = api.client.get(DELIVERIES, headers={"Host": host}, environ_overrides={"REMOTE_ADDR": address})
    assert answer.status_code == 200


@pytest.mark.parametrize(
    "headers",
    [{}, basic("ann", "wrong"), basic("ann", ""), {"Authorization": "Bearer pässword".encode().decode("latin-1")}],
)
def test_with_a_password_set_a_request_without_it_is_401(guarded: Api, headers: dict[str, str]) -> None:
    answer = guarded.client.get(DELIVERIES, headers=headers)
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"].startswith("Basic ")


def test_with_the_password_an_act_keeps_the_name_that_was_sent(guarded: Api) -> None:
    elsewhere = {"REMOTE_ADDR": "203.0.113.9"}
    answer = post(guarded, "/retry", {"filter": {}}, headers=basic("ann", "pässword"), environ_overrides=elsewhere)
    assert parse(answer) == {"deliveries": 0, "act_id": 1}
    with guarded.shop.database.read() as session:
        assert session.execute(text("SELECT acted_by FROM operator_acts")).scalar_one() == "operator:ann"
