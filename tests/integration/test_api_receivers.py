"""Operator routes that see to receivers and addresses."""

from typing import Any

import pytest
from sqlalchemy import text
from werkzeug.test import TestResponse

from app.events import OrderCreated
from tests.support.api import Api, messages, parse

MAIL = "send_email_notification"


@pytest.fixture
def database_url(sqlite_url: str) -> str:
    return sqlite_url


def post(api: Api, path: str, body: Any) -> TestResponse:
    return api.client.post(f"/operator/{path}", json=body)


def test_a_receiver_is_paused_listed_and_resumed(api: Api) -> None:
    assert parse(post(api, f"receivers/{MAIL}/pause", {"reason": "the provider asked"})) == {"changed": True}
    assert parse(post(api, f"receivers/{MAIL}/pause", {"reason": "again"})) == {"changed": False}
    first, second, _ = parse(api.get("/operator/receivers"))["receivers"]
    assert (first["receiver"], first["state"], first["paused_by"], first["reason"]) == (
        MAIL,
        "paused",
        "operator:unnamed",
        "the provider asked",
    )
    assert (second["state"], second["paused_at"]) == ("delivering", None)
    assert parse(post(api, f"receivers/{MAIL}/resume", {})) == {"changed": True}
    assert parse(post(api, f"receivers/{MAIL}/resume", {})) == {"changed": False}
    with api.shop.database.read() as session:
        acts = session.execute(text("SELECT acted_by, action FROM operator_acts ORDER BY act_id")).all()
    assert acts == [("operator:unnamed", "pause"), ("operator:unnamed", "resume")]


@pytest.mark.parametrize("name", ["nobody", "%00", "%ED%A0%80", "x" * 300])
def test_a_receiver_that_is_not_there_is_404(api: Api, name: str) -> None:
    for path, body in (("pause", {"reason": "x"}), ("resume", {})):
        answer = post(api, f"receivers/{name}/{path}", body)
        assert answer.status_code == 404
        assert f"there are: {MAIL}, " in parse(answer)["detail"]
    assert post(api, f"receivers/{name}/replay", {"event_type": "OrderCreated"}).status_code == 409


def test_events_are_replayed(api: Api) -> None:
    given: list[str] = []

    def late(sender: str, event: OrderCreated) -> None:
        given.append(event.order_id)

    for n in range(3):
        api.shop.place_order(f"{n}")
        api.shop.clock.advance(60)
    api.shop.receive(late)
    body = {"event_type": "OrderCreated", "since": "2026-11-23T09:01:00+01:00"}
    told = {
        "deliveries": 2,
        "events": 2,
        "oldest_at": "2026-11-23T08:01:00.000000Z",
        "finished": 0,
        "under_way": 0,
        "kept_since": "2026-11-23T08:00:00.000000Z",
    }
    assert parse(post(api, "receivers/late/replay", body | {"dry_run": True})) == told | {"act_id": None}
    assert api.shop.deliveries("late") == []
    assert parse(post(api, "receivers/late/replay", body)) == told | {"act_id": 1}
    api.shop.dispatch_all()
    assert given == ["1", "2"]
    answer = parse(post(api, "receivers/late/replay", body | {"force": True, "over_seconds": 60}))
    assert (answer["deliveries"], answer["finished"]) == (2, 2)


def test_a_replay_that_can_not_be_is_409_with_the_cure(api: Api) -> None:
    forced = {"event_type": "OrderCreated", "force": True}
    answer = post(api, "receivers/update_user_order_record/replay", forced)
    assert answer.status_code == 409
    assert "exactly once" in parse(answer)["detail"]


def test_wrong_fields_are_named(api: Api) -> None:
    assert set(messages(post(api, f"receivers/{MAIL}/pause", {"reason": ""}))) == {"reason"}
    wrong = {"since": "yesterday", "over_seconds": -1, "force": "no", "colour": 1}
    assert set(messages(post(api, f"receivers/{MAIL}/replay", wrong))) == {"event_type", *wrong}
    api.shop.place_order()
    too_long = {"event_type": "OrderCreated", "force": True, "over_seconds": 86_400}
    assert set(messages(post(api, f"receivers/{MAIL}/replay", too_long))) == {"over_seconds"}
    assert set(messages(post(api, "orders/1001/email", {"email": None}))) == {"email"}
    assert set(messages(post(api, "users/42/email", {"email": "nonsense"}))) == {"email"}


def test_addresses_are_put_right_and_what_was_skipped_is_sent(api: Api) -> None:
    for order_id in ("1", "2", "3"):
        api.shop.place_order(order_id, user_id="a:b")
    api.shop.dispatch_all()
    answer = post(api, "orders/1/email", {"email": "ann@EXAMPLE.com"})
    assert parse(answer) == {"email": "ann@example.com", "changed": True, "skipped": 1}
    assert parse(post(api, "orders/1/email", {"email": "ann@example.com"}))["changed"] is False
    answer = post(api, "users/a:b/email", {"email": "bob@example.com"})
    assert parse(answer) == {"email": "bob@example.com", "changed": True, "skipped": 3}
    assert parse(post(api, "orders/send-skipped", {"dry_run": True})) == {"deliveries": 3, "act_id": None}
    assert parse(post(api, "orders/send-skipped", {"order_id": "2"}))["deliveries"] == 1
    assert parse(post(api, "orders/send-skipped", {"over_seconds": 60}))["deliveries"] == 2
    api.shop.clock.advance(60)
    api.shop.dispatch_all()
    assert sorted(recipient for message in api.shop.mailer.outbox for recipient in message.recipients) == [
        *("ann@example.com", "bob@example.com", "bob@example.com")
    ]


def test_an_order_that_is_not_there_is_404(api: Api) -> None:
    for path in ("orders/5/email", "orders/a%20b/email", "users/a%20b/email"):
        assert post(api, path, {"email": "ann@example.com"}).status_code == 404
    assert post(api, "users/5/email", {"email": "ann@example.com"}).status_code == 200
