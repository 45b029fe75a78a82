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
        ({"event_type": "NotificationSent"}, 0),
        ({"receiver": "refuse", "state": "done"}, 0),
        ({"older_than": "2026-11-23T08:00:00Z"}, 0),
        ({"older_than": "2026-11-23T10:00:01+02:00"}, 3),
        ({"delivery_id": 3}, 1),
    ],
)
def test_a_filter_means_the_same_for_finding_counting_and_acting(api: Api, query: Any, count: int) -> None:
    assert len(parse(api.get(DELIVERIES, **query))["deliveries"]) == count
    query = {k: int(v) if k == "delivery_id" else v for k, v in query.items()}
    assert parse(post(api, "/retry", {"filter": query, "dry_run": True})) == {"deliveries": count}
    assert parse(post(api, "/retry", {"filter": query})) == {"deliveries": count}
    assert parse(post(api, "/retry", {"filter": query})) == {"deliveries": 0}


def test_a_dry_run_changes_nothing(api: Api) -> None:
    body = {"filter": {}, "reason": "test", "dry_run": True}
    assert parse(post(api, "/discard", body)) == {"deliveries": 3}
    assert {delivery.state for delivery in api.shop.deliveries()} == {"dead"}
    assert api.shop.count("operator_acts") == 0


def test_one_is_retried_and_another_discarded(api: Api) -> None:
    assert parse(post(api, "/1/retry", {})) == {"deliveries": 1}
    assert parse(post(api, "/1/retry", {})) == {"deliveries": 0}
    assert parse(post(api, "/2/discard", {"reason": "a duplicate"})) == {"deliveries": 1}
    assert [delivery.state for delivery in api.shop.deliveries()] == ["ready", "discarded", "dead"]
    assert api.shop.deliveries()[1].reason == "a duplicate"


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
    assert parse(answer) == {"deliveries": 0}
    with guarded.shop.database.read() as session:
        assert session.execute(text("SELECT acted_by FROM operator_acts")).scalar_one() == "operator:ann"
