"""flask bus policy: show, fit, explain and simulate, for people and for programs."""

import json
import random
from collections.abc import Iterator
from typing import Any

import pytest

from app.bus.tables import RetryTransition
from app.errors import Deferred, Unreachable
from app.events import OrderCreated
from app.retry import LearnedPolicy
from config import Settings
from tests.support.shop import FixedWait, Shop

MAIL = "send_email_notification"


@pytest.fixture
def shop(settings: Settings) -> Iterator[Shop]:
    made = Shop(settings, policy=LearnedPolicy(rng=random.Random(1)))
    yield made
    made.close()


def learn(shop: Shop) -> None:
    row = {"receiver": MAIL, "scope": "message", "kind": "greylisted", "at": shop.clock.now()}
    there = {"age_from": 0.0, "age_to": 270.0, "gone": False}
    gone = {"age_from": 270.0, "age_to": 300.0, "gone": True}
    rows = [row | each for each in (there, gone) for _ in range(100)]
    shop.database.transact(lambda t: t.session.add_all(RetryTransition(**each) for each in rows))


def fails(shop: Shop, error: Exception | None) -> None:
    def server(sender: str, event: OrderCreated) -> None:
        if error:
            raise error

    shop.only(server)


def test_show_says_what_was_learned_and_what_is_done_about_it(shop: Shop, run: Any) -> None:
    assert "no table yet: by the prior" in run("bus", "policy", "show")
    learn(shop)
    assert run("bus", "policy", "fit") == "table 1, fitted to 200 attempts at obstacles\n"
    told = run("bus", "policy", "show")
    assert f"{MAIL}: greylisted of the message, 200 attempts, 100 ends seen" in told
    assert "an attempt costs 0.2, a copy 10, a loss 3000" in told

    (entry,) = json.loads(run("bus", "policy", "show", "--json"))["obstacles"]
    assert entry["survival"]["60"] < 0.1 < 0.8 < entry["survival"]["600"]
    assert 250 < entry["waits"]["1"]["0"] < 320


def test_fit_is_told_to_programs(shop: Shop, run: Any) -> None:
    learn(shop)
    assert json.loads(run("bus", "policy", "fit", "--json")) == {"version": 1, "attempts": 200}


def test_a_fit_that_can_not_be_made_is_an_error(shop: Shop, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.retry.fitting.PROGRAM", "import no_such_module")
    assert "it was not fitted" in run("bus", "policy", "fit", code=1)


def test_explain_says_why_each_attempt_came_when_it_did(shop: Shop, run: Any) -> None:
    fails(shop, Deferred("450 4.7.1 later", code=450, enhanced="4.7.1"))
    shop.place_order()
    shop.dispatch()
    (delivery,) = shop.deliveries("server")
    shop.clock.advance((delivery.due_at - shop.clock.now()).total_seconds())
    shop.dispatch()
    told = run("bus", "policy", "explain", str(delivery.delivery_id)).splitlines()
    assert "deferred: It was due, and nothing held it back." in told[1]
    assert "Tried again after" in told[2]
    assert "this delivery has failed with greylisted for the first time" in told[2]
    assert "next try: Tried again after" in told[3]

    found = json.loads(run("bus", "policy", "explain", str(delivery.delivery_id), "--json"))
    assert [each["outcome"] for each in found["attempts"]] == ["deferred", "deferred"]
    assert found["due_because"].startswith("Tried again after")

    (event,) = shop.timeline()
    (shown,) = event["deliveries"]
    assert [each["reply_code"] for each in shown["attempts"]] == [450, 450]
    assert [bool(each["why"]) for each in shown["attempts"]] == [False, True]
    assert "next try: Tried again after" in run("orders", "show", "1001")


def test_explain_tells_of_the_backends_next_probe(shop: Shop, run: Any) -> None:
    fails(shop, Unreachable("no route"))
    shop.place_orders(4)
    shop.dispatcher.deliver(shop.dispatcher.claim({"server": 1}))
    shop.dispatcher.deliver(shop.dispatcher.claim({"server": 1}))
    (first, *_) = shop.deliveries("server")
    told = run("bus", "policy", "explain", str(first.delivery_id))
    assert "The backend is down: it waits, and spends no attempt" in told
    assert "its backend is down; the next probe is due at 2026-11-23T08:00:" in told


def test_explain_of_no_delivery_is_an_error(shop: Shop, run: Any) -> None:
    assert "There is no delivery with this number." in run("bus", "policy", "explain", "99", code=1)


def test_simulate_plays_an_outage(shop: Shop, run: Any) -> None:
    """More that wait make the probes closer, and the end is seen earlier."""
    one = json.loads(run("bus", "policy", "simulate", "--lasts", "90", "--json"))
    many = json.loads(run("bus", "policy", "simulate", "--lasts", "90", "--waiting", "2000", "--json"))
    assert len(one["attempts"]) < len(many["attempts"])
    assert 0 <= many["late_seconds"] < one["late_seconds"]
    assert "attempts after the first failure; it comes through" in run("bus", "policy", "simulate")


def test_simulate_says_that_a_message_is_given_up(shop: Shop, run: Any) -> None:
    five_days = str(5 * 86_400)
    told = run("bus", "policy", "simulate", "--scope", "message", "--kind", "mailbox full", "--lasts", five_days)
    assert "given up before it ended" in told or "after its end" in told


def test_without_the_learned_policy_there_is_none_to_show(settings: Settings) -> None:
    plain = Shop(settings, policy=FixedWait())
    result = plain.app.test_cli_runner().invoke(args=["bus", "policy", "show"])
    assert result.exit_code == 1
    assert "RETRY_POLICY is exponential" in result.output
    plain.close()
