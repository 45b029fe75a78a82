"""The system page: receivers that are paused and probed, charts that agree with the database, settings, findings."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from app.bus import queries
from app.bus.queries import EndedAttempt
from app.console import charts, system
from app.console.figures import Latency
from app.db import iso
from app.errors import Unreachable
from app.events import OrderCreated
from config import Settings
from tests.integration.test_console_deliveries import table
from tests.support.console import Visitor
from tests.support.shop import START, Shop

NAME = "send_email_notification"


def test_a_receiver_is_paused_and_resumed(shop: Shop) -> None:
    visitor = Visitor(shop)
    page = visitor.follow(visitor.submit("/system", f"/system/{NAME}/pause", reason="the server moves"))
    assert f"{NAME} is paused" in page.text
    assert "the server moves" in page.text
    shop.place_order()
    shop.dispatch_all()
    assert not shop.mailer.outbox
    assert "paused" in visitor.get("/deliveries").text
    visitor.follow(visitor.submit("/system", f"/system/{NAME}/resume"))
    shop.dispatch_all()
    assert len(shop.mailer.outbox) == 1
    assert [row[3:6] for row in visitor.get("/acts").rows if row] == [
        ["resume", f"Receiver {NAME}", ""],
        ["pause", f"Receiver {NAME}", "the server moves"],
    ]


def test_a_pause_needs_a_reason(shop: Shop) -> None:
    visitor = Visitor(shop)
    assert visitor.submit("/system", f"/system/{NAME}/pause", reason=" ").status == 422
    assert shop.count("paused_receivers") == 0


def test_an_unknown_receiver_is_said(shop: Shop) -> None:
    visitor = Visitor(shop)
    token = visitor.get("/system").forms[f"/system/{NAME}/pause"]["token"]
    assert visitor.post("/system/nobody/pause", token=token, reason="x").status == 404
    assert visitor.post("/system/nobody/resume", token=token).status == 404


def test_a_probe_is_asked_for_and_recorded(shop: Shop) -> None:
    works: list[int] = []

    def deliver(sender: str, event: OrderCreated) -> None:
        if not works:
            raise Unreachable("no route")

    shop.only(deliver)
    shop.dispatcher.sign_on()
    shop.place_order()
    for _ in range(4):
        shop.dispatch()
        shop.clock.advance(1)
    shop.execute("UPDATE circuit_breakers SET probe_at = :at", at=shop.clock.now() + timedelta(hours=1))
    shop.execute("UPDATE deliveries SET due_at = :at", at=shop.clock.now())
    works.append(1)
    assert shop.dispatch() == []
    visitor = Visitor(shop)
    page = visitor.get("/system")
    assert "Ready to take orders, but: deliver: its circuit breaker is open since" in page.text
    assert "no route" in page.text
    assert "deliver is held up" in visitor.get("/").text, "the front page says the same"
    told = visitor.follow(visitor.submit("/system", "/system/deliver/probe"))
    assert "is tried now" in told.text
    shop.dispatch_all()
    assert shop.states() == {"deliver": "done"}
    assert "Ready." in visitor.get("/system").text
    assert (
        "is closed" in visitor.follow(visitor.post("/system/deliver/probe", **page.forms["/system/deliver/probe"])).text
    )
    assert shop.execute_scalar("SELECT action || ' ' || acted_by FROM operator_acts") == "probe console:local"


def test_the_charts_numbers_agree_with_the_database(shop: Shop) -> None:
    failing = [1]

    def deliver(sender: str, event: OrderCreated) -> None:
        if failing[0]:
            raise ValueError("a bug")

    shop.only(deliver, name="deliver", sends_mail=True)
    for n in range(40):
        shop.clock.advance(97)
        shop.place_order(f"{n}")
        shop.clock.advance(n / 10)
        failing[0] = n % 3 == 0
        shop.dispatch()
    page = Visitor(shop).get("/system")
    now = shop.clock.now()
    for number, hours, count in ((1, 1, 30), (2, 24, 24)):
        since = iso(now - timedelta(hours=hours))
        rows = table(page, f"window-{number}")
        assert len(rows) == count
        if shop.database.is_sqlite:
            for position, outcome in ((1, "= 'ok'"), (2, "<> 'ok'")):
                expected = shop.execute_scalar(
                    f"SELECT count(*) FROM attempts WHERE outcome {outcome} AND ended_at >= '{since}'"
                )
                assert sum(int(row[position]) for row in rows) == expected > 0
        assert f"{sum(int(row[1]) for row in rows)} attempts came through" in page.text
    took = {row[4] for row in table(page, "window-1")}
    assert "3.8 s" in took  # of order 38, in a bucket of its own


def test_a_sample_stands_for_all(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system, "MOST_LOOKED_AT", 10)
    shop.only(lambda sender, event: None, name="deliver", sends_mail=True)
    shop.place_orders(35)
    shop.dispatch_all()
    with shop.database.read() as session:
        sample = queries.ended_since(session, START - timedelta(hours=1), 10)
        assert (len(sample.attempts), sample.stride) == (9, 4)
    page = Visitor(shop).get("/system")
    assert "Estimated from a sample" in page.text
    assert "36 attempts came through" in page.text


def test_what_ended_before_is_found_by_halving(shop: Shop) -> None:
    shop.only(lambda sender, event: None, name="deliver", sends_mail=True)
    for n in range(20):
        shop.place_order(f"{n}")
        shop.dispatch()
        shop.clock.advance(10)
    shop.execute("DELETE FROM attempts WHERE attempt_id IN (3, 4, 12)")
    with shop.database.read() as session:
        for seconds in (0, 5, 10, 95, 110, 190, 195, 500):
            since = START + timedelta(seconds=seconds)
            found = queries.ended_since(session, since, 1000).attempts
            expected = [n for n in range(1, 21) if n not in (3, 4, 12) and (n - 1) * 10 >= seconds]
            assert sorted(each.attempt_id for each in found) == expected


def test_nothing_yet_is_no_error(shop: Shop) -> None:
    page = Visitor(shop).get("/system")
    assert page.status == 200
    assert "Nothing was done in this time." in page.text
    assert "No dispatcher is at work" in page.text


def test_settings_are_shown_without_secrets(tmp_path: Path) -> None:
    secrets: dict[str, Any] = {
        "api_token": "s3cret-token",
        "metrics_token": "s3cret-metrics",
        "secret_key": "s3cret-key-0123456789",
        "mail_username": "s3cret-user",
        "mail_password": "s3cret-mail",
    }
    settings = Settings.of(
        instance_path=tmp_path / "i", mail_server="mail.example", mail_port=2525, log_level="ERROR", **secrets
    )
    assert {name for name, field in Settings.model_fields.items() if not field.repr} - system.SECRETS == {
        "database_url"
    }
    shop = Shop(settings)
    page = Visitor(shop).get("/system")
    shop.close()
    assert "s3cret" not in page.html
    rows = {row[0]: row[1:] for row in table(page, "settings")}
    assert rows["API_TOKEN"] == ["set, and not shown", "somebody"]
    assert rows["CONSOLE_PASSWORD"] == ["not set", "default"]
    assert rows["MAIL_PORT"] == ["2525", "somebody"]
    assert rows.keys() == {name.upper() for name in Settings.model_fields}


def test_a_password_in_the_databases_address_is_not_shown() -> None:
    found = system.shown_setting("database_url", "postgresql+psycopg://u:s3cret@host/orders?password=s3cret")
    assert found == "postgresql+psycopg://u:***@host/orders"


def test_the_doctors_findings_are_those_of_the_command(shop: Shop) -> None:
    page = Visitor(shop).get("/system/doctor")
    told = shop.app.test_cli_runner().invoke(args=["doctor"]).output
    assert page.rows[1][0] in ("✕ wrong", "◼ worth a thought")
    for row in page.rows[1:]:
        if row[1] not in ("disk", "clocks"):  # which change
            assert row[2] in told


# The charts themselves


def attempt(seconds_ago: float, *, took: float = 1, outcome: str = "ok", receiver: str = "a") -> EndedAttempt:
    ended = START - timedelta(seconds=seconds_ago)
    return EndedAttempt(1, receiver, outcome, ended, ended - timedelta(seconds=took))


def test_each_attempt_is_in_its_bucket() -> None:
    ago = [0, 1, 59.9, 60, 60.1, 119.9, 120, 120.1, -5]
    found = charts.buckets([attempt(each) for each in ago], START, timedelta(minutes=2), 2, 1, {"a"})
    assert [each.done for each in found] == [3, 4]  # a bucket begins with its first moment; now is in the last
    assert [each.at for each in found] == [START - timedelta(minutes=2), START - timedelta(minutes=1)]


def test_latency_is_of_what_was_done_by_the_receivers_that_count() -> None:
    attempts = [attempt(1, took=n) for n in range(1, 101)]
    attempts += [attempt(1, took=999, outcome="timeout"), attempt(1, took=999, receiver="b")]
    (found,) = charts.buckets(attempts, START, timedelta(minutes=2), 1, 3, {"a"})
    assert (found.done, found.failed, found.latency) == (303, 3, Latency(50, 99))


@pytest.mark.parametrize("highest, top", [(0, 1), (1, 1), (2, 2), (3, 5), (6, 10), (10, 10), (11, 20), (999, 1000)])
def test_bars_stay_within_the_picture(highest: int, top: int) -> None:
    found = charts.throughput([charts.Bucket(START, highest, 0, None), charts.Bucket(START, 0, highest, None)])
    assert found.ticks[-1][1] == top
    for bar in found.bars:
        for y, height in (bar.done, bar.failed):
            assert charts.TOP - 0.1 <= y <= charts.BOTTOM + 0.1
            assert abs(height - (charts.BOTTOM - charts.TOP) * highest / top) < 0.1 or height == 0


@pytest.mark.parametrize("seconds", [0.0, 0.00001, 0.001, 0.5, 1.0, 10.0, 86400.0, 1e9])
def test_lines_stay_within_the_picture(seconds: float) -> None:
    bucket = charts.Bucket(START, 1, 0, Latency(seconds, seconds * 3))
    empty = charts.Bucket(START, 0, 0, None)
    found = charts.latency([bucket, empty, bucket, bucket])
    assert found is not None
    for path in (found.p50, found.p99):
        places = [float(each) for each in path.replace("M", " ").replace("L", " ").replace("h4", "").split()[1::2]]
        assert all(charts.TOP - 0.1 <= y <= charts.BOTTOM + 0.1 for y in places)
        assert path.count("M") == 2
    assert charts.latency([empty]) is None
