"""Commands that see to receivers and addresses."""

import json
import shlex
from typing import Any

import pytest
from sqlalchemy import text

from app.errors import Refused
from tests.support.shop import Shop

MAIL = "send_email_notification"


@pytest.fixture
def database_url(sqlite_url: str) -> str:
    return sqlite_url


@pytest.fixture
def run(run: Any) -> Any:
    """As a person types it."""
    return lambda words, **how: run(*shlex.split(words), **how)


@pytest.fixture(autouse=True)
def ann(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("getpass.getuser", lambda: "ann")


def scalar(shop: Shop, query: str) -> Any:
    with shop.database.read() as session:
        return session.execute(text(query)).scalar_one()


def test_a_receiver_is_paused_and_resumed(shop: Shop, run: Any) -> None:
    assert run(f"bus pause {MAIL} --because 'the provider asked'") == (
        f"{MAIL} is paused; to go on: flask bus resume {MAIL}\n"
    )
    assert run(f"bus pause {MAIL} --because again") == (
        f"{MAIL} is paused already, since 2026-11-23T08:00:00.000000Z, by cli:ann: the provider asked\n"
    )
    shop.dispatcher.heartbeat()
    assert "(by cli:ann: the provider asked)" in run("bus status")
    assert run(f"bus resume {MAIL} --because 'all is well'") == f"{MAIL} goes on\n"
    assert run(f"bus resume {MAIL}") == f"{MAIL} is not paused\n"
    assert scalar(shop, "SELECT reason FROM operator_acts WHERE action = 'resume'") == "all is well"


def test_a_pause_wants_a_reason_and_a_receiver_that_is_there(run: Any) -> None:
    assert "Missing option '--because'" in run(f"bus pause {MAIL}", code=2)
    assert "say why" in run(f"bus pause {MAIL} --because ' '", code=2)
    told = run("bus pause send_mail --because x", code=1)
    assert told.startswith(f"Error: there is no receiver 'send_mail'; there are: {MAIL}, ")


def test_the_receivers_are_listed(shop: Shop, run: Any) -> None:
    run(f"bus pause {MAIL} --because 'the provider asked'")
    lines = run("bus receivers").splitlines()
    assert lines[0].split() == ["receiver", "state", "event_types", "paused_at", "paused_by", "reason"]
    assert [line.split()[:2] for line in lines[1:]] == [
        [MAIL, "paused"],
        ["update_order_notification", "delivering"],
        ["update_user_order_record", "delivering"],
    ]
    (first, second, _) = json.loads(run("bus receivers --json"))["receivers"]
    assert first == {
        "receiver": MAIL,
        "state": "paused",
        "event_types": ["OrderCreated", "NotificationRequested"],
        "transactional": False,
        "connected": True,
        "paused_at": "2026-11-23T08:00:00.000000Z",
        "paused_by": "cli:ann",
        "reason": "the provider asked",
        "breaker_opened_at": None,
    }
    assert second["event_types"] == ["NotificationSent", "NotificationFailed", "NotificationSkipped"]


def test_a_replay_says_what_there_is_and_asks(shop: Shop, run: Any, late: list[str]) -> None:
    command = "bus replay late --type OrderCreated --since 2026-11-23T08:01:00"
    told = run(command, typed="n\n", code=1)
    assert told.splitlines()[:2] == [
        "2 OrderCreated are kept of that time, the oldest of 2026-11-23T08:01:00.000000Z",
        "give 2 events to late? [y/N]: n",
    ]
    assert run(command, typed="y\n").splitlines()[3].startswith("replayed 2 (act ")
    shop.dispatch_all()
    assert late == ["1", "2"]


def test_a_replay_tells_what_it_leaves_alone(shop: Shop, run: Any, late: list[str]) -> None:
    run("bus replay late --type OrderCreated --order 1 --yes")
    shop.dispatch_all()
    run("bus replay late --type OrderCreated --order 2 --yes")
    told = run("bus replay late --type OrderCreated", typed="n\n", code=1).splitlines()
    assert told[:5] == [
        "events are kept since 2026-11-23T08:00:00.000000Z: older ones, if there were any, are forgotten",
        "3 OrderCreated are kept of that time, the oldest of 2026-11-23T08:00:00.000000Z",
        "1 of them late has had: they are left alone without --force",
        "1 of them wait for late or are being tried: they are left alone",
        "give 1 events to late? [y/N]: n",
    ]
    told = run("bus replay late --type OrderCreated --force --over 10m --yes --no-wait")
    assert told.splitlines()[-1].startswith("replayed 2 (act ")
    assert scalar(shop, "SELECT over_seconds FROM operator_acts ORDER BY act_id DESC LIMIT 1") == 600
    told = run("bus replay late --type OrderCreated --until 2026-11-23T07:00:00 --yes")
    assert told.splitlines()[-1] == "no OrderCreated is kept of that time"


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (f"{MAIL} --type OrderMade", 1, "no signal carries events of type 'OrderMade'"),
        ("late --type OrderCreated", 1, "write order_created.connect(late) in app/receivers/__init__.py"),
        ("update_user_order_record --type OrderCreated --force", 1, "leave --force out"),
        (f"{MAIL} --type OrderCreated --over soon", 2, "'soon' is no time; write 90s, 10m or 1h"),
        (MAIL, 2, "Missing option '--type'"),
    ],
)
def test_a_replay_that_can_not_be_is_refused_with_the_cure(run: Any, words: str, code: int, told: str) -> None:
    assert told in run(f"bus replay {words}", code=code)


def test_a_replay_over_too_long_is_refused(run: Any, late: list[str]) -> None:
    assert "RETRY_MAX_SECONDS" in run("bus replay late --type OrderCreated --over 2h --yes", code=1)


def test_an_orders_address_is_put_right(shop: Shop, run: Any) -> None:
    shop.place_order("1", email="ann@exmaple.com")
    assert run("orders set-email 1 ann@EXAMPLE.com") == "order 1: ann@example.com\n"
    shop.dispatch_all()
    assert [message.recipients for message in shop.mailer.outbox] == [["ann@example.com"]]
    shown = run("orders show 1")
    assert "OrderEmailChanged" in shown
    assert "placed_email   ann@exmaple.com" in shown
    assert "there is no order 5" in run("orders set-email 5 ann@example.com", code=1)
    assert "ADDRESS:" in run("orders set-email 1 nonsense", code=1)


def test_what_was_given_up_is_sent_by_the_command_that_is_told(shop: Shop, run: Any) -> None:
    shop.place_order("1", email="ann@exmaple.com")
    shop.mailer.backend.deliver, deliver = refuse, shop.mailer.backend.deliver
    shop.dispatch_all()
    shop.mailer.backend.deliver = deliver
    told = run("orders set-email 1 ann@example.com").splitlines()[-1]
    assert told.startswith("to send what was given up (1): flask bus retry --state dead --receiver ")
    assert "1" in run(f"{told.partition('flask ')[2]} --yes --no-wait")
    shop.dispatch_all()
    assert shop.order("1").notification == "sent"


def refuse(*_: object) -> None:
    raise Refused("550 5.1.1 no such mailbox")


@pytest.fixture
def skipped(shop: Shop) -> Shop:
    """Orders of two users whose ids make no address."""
    for n in range(3):
        shop.place_order(f"{n}", user_id=f"a:{n % 2}")
    shop.dispatch_all()
    return shop


def test_every_hint_counts_what_its_command_sends(skipped: Shop, run: Any) -> None:
    assert run("orders send-skipped --yes") == "nothing was skipped that has an address now\n"
    assert run("users set-email a:0 ann@example.com") == (
        "user a:0: ann@example.com\nto send what was skipped and has an address now (2): flask orders send-skipped\n"
    )
    told = run("orders set-email 1 bob@example.com").splitlines()[-1]
    assert told == "to send what was skipped and has an address now (3): flask orders send-skipped"
    assert "send 3 notifications?" in run("orders send-skipped", typed="n\n", code=1)
    assert run("orders send-skipped --user a:0 --over 60 --yes --no-wait").startswith("retried 2 (act ")
    assert "retried 1 (act " in run("orders send-skipped", typed="y\n")
    skipped.clock.advance(60)
    skipped.dispatch_all()
    assert sorted(recipient for message in skipped.mailer.outbox for recipient in message.recipients) == [
        *("ann@example.com", "ann@example.com", "bob@example.com")
    ]
    assert run("users set-email a:0 carl@example.com") == "user a:0: carl@example.com\n"
    assert scalar(skipped, "SELECT count(*) FROM operator_acts WHERE action = 'set-email'") == 3


def test_orders_are_listed_with_why_their_notification_failed(shop: Shop, run: Any) -> None:
    shop.place_order("fine", email="ann@example.com")
    shop.dispatch_all()
    shop.mailer.backend.deliver = refuse
    shop.place_order("bad", email="bob@example.com")
    shop.dispatch_all()
    header, line = run("orders list --notification failed").splitlines()
    assert header.split()[-1] == "reason"
    assert line.startswith("bad ")
    assert line.endswith("  550 5.1.1 no such mailbox")
    listed = json.loads(run("orders list --json"))
    assert [(order["order_id"], order["reason"], order["total_price"]) for order in listed["orders"]] == [
        ("bad", "550 5.1.1 no such mailbox", "19.99"),
        ("fine", None, "19.99"),
    ]
    assert listed["next_cursor"] is None
    assert "reason" not in run("orders list --notification sent")


def test_an_order_and_a_user_are_shown_as_json(shop: Shop, run: Any) -> None:
    shop.place_order()
    shop.dispatch_all()
    order = json.loads(run("orders show 1001 --json"))
    assert (order["order_id"], order["notification"]) == ("1001", "sent")
    (created, _) = order["timeline"]
    assert created["deliveries"][0]["attempts"][0]["outcome"] == "ok"
    user = json.loads(run("users show 42 --json"))
    assert (user["total_spent"], user["last_order_at"]) == ("19.99", "2026-11-23T08:00:00.000000Z")
