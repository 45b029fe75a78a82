"""A mail server that is down for a while, under the learned policy, in real processes: few attempts, all delivered,
and each says why it was made then."""

import json
import re
from contextlib import closing
from typing import Any

import pytest

from tests.acceptance.conftest import Serve
from tests.support.service import Client, Service, wait_until
from tests.support.smtp import SmtpServer

ORDERS = 60
PROBED = re.compile(
    r"Tried again after [\d.]+ (?:s|min), because no other time is worth more: the backend has failed with unreachable "
    r"for [\d.]+ (?:s|min) and \d+ deliveries wait, and after this wait it comes through with a probability of \d+%"
)
BACK = re.compile(r"The backend is back after [\d.]+ (?:s|min): each success lets two more start\.")
WAITS = "The backend is down: it waits, and spends no attempt, until a probe finds it back."


def mails(service: Service) -> list[dict[str, Any]]:
    """The deliveries to the mail's receiver, with their attempts."""
    with closing(Client(service.port)) as client:
        timelines = [client.get(f"/api/orders/o{n}").body["timeline"] for n in range(ORDERS)]
    return [
        delivery
        for timeline in timelines
        for event in timeline
        for delivery in event["deliveries"]
        if delivery["receiver"] == "send_email_notification"
    ]


def attempts(deliveries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [attempt for delivery in deliveries for attempt in delivery["attempts"]]


def told(service: Service, *command: str) -> str:
    done = service.run("flask", "bus", "policy", *command)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.timeout(300)
def test_a_server_that_is_down_is_probed_by_few_and_all_arrive_when_it_is_back(
    serve: Serve, database: dict[str, str], sink: SmtpServer
) -> None:
    service = serve(**database, **sink.settings, user_email_domain="example.com", retry_policy="learned").start()
    sink.stop()
    with closing(Client(service.port)) as client:
        for n in range(ORDERS):
            assert client.post(order_id=f"o{n}", user_id=f"u{n}", total_price="1").status == 201

    def probes() -> list[dict[str, Any]]:
        found = [each for each in attempts(mails(service)) if PROBED.match(each["why"] or "")]
        return found if len(found) >= 3 else []

    wait_until(probes, "three probes in vain", limit=60, pause=0.5)
    waiting = next(each for each in mails(service) if each["due_because"] == WAITS)
    explained = told(service, "explain", f"{waiting['delivery_id']}")
    assert f"next try: {WAITS}" in explained
    assert "its backend is down; the next probe is due at" in explained

    sink.start()
    wait_until(lambda: {each["state"] for each in mails(service)} == {"done"}, "all mails", limit=60, pause=0.5)
    delivered = mails(service)
    arrived = [mail.recipients for mail in sink.received]
    assert sorted(arrived) == sorted([f"u{n}@example.com"] for n in range(ORDERS)), "each once"
    failed = [each for each in attempts(delivered) if each["outcome"] != "ok"]
    assert len(failed) < ORDERS / 2, "without a shared breaker each delivery fails at least once"
    assert {each["outcome"] for each in failed} == {"unreachable"}

    found_back = next(
        delivery
        for delivery in delivered
        if any(each["outcome"] == "ok" and PROBED.match(each["why"] or "") for each in delivery["attempts"])
    )
    assert PROBED.search(told(service, "explain", f"{found_back['delivery_id']}"))
    followed = next(
        delivery for delivery in delivered if any(BACK.match(each["why"] or "") for each in delivery["attempts"])
    )
    assert BACK.search(told(service, "explain", f"{followed['delivery_id']}"))

    told(service, "fit")
    learned = json.loads(told(service, "show", "--json"))["obstacles"]
    (outage,) = [each for each in learned if (each["scope"], each["kind"]) == ("backend", "unreachable")]
    assert outage["ends"] == 1
    assert outage["attempts"] >= 3
