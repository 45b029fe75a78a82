"""A night of an operator's: 500 orders and a mail server that is down, then one that refuses some and greylists others.

Eight commands put it right; docs/operations.md has them with what they printed.
"""

import collections
import re
import shlex
from collections.abc import Callable
from datetime import UTC, datetime

import pytest

from tests.acceptance.conftest import Serve
from tests.support.ledger import read
from tests.support.service import CHECKOUT, Client, Service, wait_until
from tests.support.smtp import SmtpServer

MAIL = "send_email_notification"
ORDERS = 500
GREYLISTED, GONE, SKIPPED = 40, 20, 10
WRONG = "order-499"

DOCUMENT = CHECKOUT / "docs" / "operations.md"


@pytest.mark.timeout(180)
def test_all_is_put_right_by_eight_commands(
    serve: Serve, database: dict[str, str], sink: SmtpServer, report: Callable[[str], None]
) -> None:
    # By the learned policy 500 that wait are worth a probe every second or two: nobody types a command in that time.
    plain = {"retry_policy": "exponential", "retry_base_seconds": 0.5}
    service = serve(**sink.settings | database | plain, web_concurrency=2).start()
    sink.on("RCPT", first_time_of_each(), when="@grey.example")
    sink.on("RCPT", "550 5.1.1 no such user", when="@gone.example")
    sink.on("RCPT", "550 5.1.2 no such domain", when="@exmaple.com")
    night = Night(service)

    sink.stop()
    place_orders(service)
    wait_until(lambda: "mail server lost" in service.log, "the line about the outage")
    told = night.command("bus", "status")
    assert re.search(rf"{MAIL}: paused by its circuit breaker since .* refused the connection; .*(49\d|500) wait", told)

    wait_until(lambda: seconds_to_probe(service) > 6, "a probe that is so far away that a command is quicker")
    sink.start()  # somebody has mended the mail server
    told = night.command("bus", "retry", "--receiver", MAIL, "--probe", "--yes")
    assert re.search(r"^retried \d+ \(act 1\)\n.* sent, .*\b0 left$", told, re.MULTILINE)
    wait_until(lambda: waiting(service) == 0, "the second try of what was greylisted")
    wait_until(lambda: "mail server back" in service.log, "the line about the outage's end")

    told = night.command("bus", "list", "--state", "dead", "--by", "reason")
    assert re.search(rf"{GONE} +{MAIL} +dead +refused .*550 5.1.1 no such user", told)
    assert re.search(rf"1 +{MAIL} +dead +refused .*550 5.1.2 no such domain.*order {WRONG}", told)

    told = night.command("orders", "set-email", WRONG, "ann@example.com")
    night.follow(told)
    told = night.command("users", "set-email", "skipped", "bob@example.com")
    assert f"({SKIPPED})" in told
    night.follow(told)
    told = night.command("bus", "discard", "--state", "dead", "--because", "these customers are gone", "--yes")
    assert f"discarded {GONE}" in told

    assert len(night.commands) == 8
    wait_until(lambda: waiting(service) == 0, "the end of all retries")
    check_orders(service, sink)
    report(f"orders {ORDERS}, mails {len(sink.received)}, commands {len(night.commands)}")
    print(night.printed)
    check_document(night)


class Night:
    """What she types, and what is printed."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.commands: list[str] = []
        self.printed = ""

    def command(self, *words: str) -> str:
        done = self.service.run("flask", *words)
        self.printed += f"$ flask {shlex.join(words)}\n{done.stdout}{done.stderr}"
        assert done.returncode == 0, self.printed
        self.commands.append(shlex.join(words))
        return done.stdout

    def follow(self, told: str) -> str:
        """Run the command that the last one named."""
        named = re.search(r": flask (.*)", told)
        assert named is not None, told
        return self.command(*named[1].split(), "--yes")


def first_time_of_each() -> Callable[[str], str | None]:
    seen: collections.Counter[str] = collections.Counter()

    def greylisted(recipient: str) -> str | None:
        seen[recipient] += 1
        return "450 4.7.1 greylisted, come back in 300 seconds" if seen[recipient] == 1 else None

    return greylisted


def place_orders(service: Service) -> None:
    client = Client(service.port)
    for number in range(ORDERS):
        domain = "grey" if number < GREYLISTED else "gone" if number < GREYLISTED + GONE else "ok"
        order = {"order_id": f"order-{number}", "user_id": f"u{number}", "email": f"u{number}@{domain}.example"}
        if order["order_id"] == WRONG:
            order["email"] = "ann@exmaple.com"
        elif number >= ORDERS - 1 - SKIPPED:
            order = {"order_id": f"order-{number}", "user_id": "skipped"}
        assert client.post(**order, total_price="19.99").status == 201
    client.close()


def seconds_to_probe(service: Service) -> float:
    rows = read(service.database_url, "SELECT probe_at FROM circuit_breakers")
    return max(
        ((datetime.fromisoformat(f"{row['probe_at']}") - datetime.now(UTC)).total_seconds() for row in rows), default=0
    )


def waiting(service: Service) -> int:
    rows = read(service.database_url, "SELECT count(*) AS many FROM deliveries WHERE state IN ('ready', 'leased')")
    return int(rows[0]["many"])


def check_orders(service: Service, sink: SmtpServer) -> None:
    """Every order's notification is sent, or given up for a reason that a person chose; nobody was mailed twice."""
    orders = read(
        service.database_url,
        "SELECT o.order_id, o.status, o.notification, d.state, d.reason FROM orders o "
        f"JOIN deliveries d ON d.event_id = o.event_id AND d.receiver = '{MAIL}'",
    )
    assert len(orders) == ORDERS
    assert {order["status"] for order in orders} == {"confirmed"}
    unsent = [order for order in orders if order["notification"] != "sent"]
    assert {(order["state"], order["reason"]) for order in unsent} == {("discarded", "these customers are gone")}
    assert len(unsent) == GONE
    mailed = collections.Counter(mail.message_id for mail in sink.received)
    assert len(mailed) == ORDERS - GONE
    assert set(mailed.values()) == {1}


def check_document(night: Night) -> None:
    """The page shows these very commands."""
    shown = DOCUMENT.read_text()
    for command in night.commands:
        assert f"$ flask {command}" in shown, command
