"""Orders, and a mail server that misbehaves: what becomes of the mail, of the order, and of everybody else.

The whole way, from the order to a real SMTP server. What one conversation means is in ``test_mail_smtp.py``.
"""

import collections
import contextlib
import dataclasses
import os
import threading
import time
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from flask_mail import email_dispatched
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from sqlalchemy import insert, select

from app.bus import Filter
from app.bus.tables import CircuitBreaker, StoredEvent
from app.clock import Clock, uuid7
from app.db import Transaction
from app.errors import DatabaseUnavailable, OrderNotFound
from app.events import OrderCreated, order_created
from app.orders import place_order
from app.retry import Policy
from config import Settings
from tests.support.shop import FixedWait, Shop
from tests.support.smtp import CLOSE, CUT, HANG, Drip, Pause, SmtpServer
from tests.support.waiting import until

MAIL = "send_email_notification"

SHORT_SECONDS = 0.4
"""The MAIL_TIMEOUT of tests in which the server hangs, or is slow."""

on_sqlite = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


StartServer = Callable[..., SmtpServer]
OpenShop = Callable[..., Shop]


@pytest.fixture
def start_server() -> Iterator[StartServer]:
    with contextlib.ExitStack() as started:
        yield lambda **how: started.enter_context(SmtpServer(**how))


@pytest.fixture
def server(start_server: StartServer) -> SmtpServer:
    return start_server()


@pytest.fixture
def open_shop(
    database_url: str, tmp_path: Path, start_server: StartServer, engine_settings: dict[str, str]
) -> Iterator[OpenShop]:
    """Opens applications on one database, each as in a process of its own. The first one's clock is everybody's."""
    opened: list[Shop] = []
    servers: list[SmtpServer] = []

    def open_one(server: SmtpServer, *, clock: Clock | None = None, policy: Policy | None = None, **given: Any) -> Shop:
        chosen = {
            "instance_path": tmp_path / "instance",
            "database_url": database_url,
            "mail_timeout": 10,
            "user_email_domain": "users.example",
            "poll_seconds": 30,
            "shutdown_seconds": 5,
            "log_level": "ERROR",
            **engine_settings,
        }
        shop = Shop(Settings.of(**(chosen | server.settings | given)))
        opened.append(shop)
        servers.append(server)
        chosen_clock: Any = clock or opened[0].clock
        shop.clock = shop.database.clock = chosen_clock
        shop.bus.policy = policy or shop.policy
        shop.dispatcher = shop.bus.dispatcher()
        return shop

    yield open_one
    for server in servers:
        server.stop()  # whatever still hangs there ends
    for shop in opened:
        shop.close()
        shop.mailer.close()


@pytest.fixture
def sending_shop(server: SmtpServer, open_shop: OpenShop) -> Shop:
    return open_shop(server)


def send_thirty_behind_two_poisoned(shop: Shop) -> None:
    """As many poisoned ones as there are threads, and first in the queue."""
    for name in ("poison1", "poison2"):
        shop.post(order_id=name, email=f"{name}@example.com")
    place_orders(shop, 30)
    shop.engine.start()
    until(lambda: notifications(shop).count("sent") == 30)


def place_orders(shop: Shop, count: int, first: int = 0) -> None:
    """Many orders in one transaction, as the route stores each. They belong to ten users."""

    def work(transaction: Transaction) -> None:
        for number in range(first, first + count):
            event_id = uuid7()
            facts: Any = {
                "order_id": f"{number}",
                "user_id": f"{number % 10}",
                "total_price": Decimal(1),
                "email": None,
            }
            place_order(transaction, **facts, event_id=event_id)
            order_created.send("test", event=OrderCreated(**facts), event_id=event_id)

    shop.database.transact(work)


def multiply_orders(shop: Shop, order_id: str, count: int) -> None:
    """Copy an order, with its event and the mail it is owed, so many times: thousands in a moment."""
    order, (delivery,) = shop.order(order_id), shop.deliveries(MAIL)
    with shop.database.read() as session:
        event = session.scalars(select(StoredEvent).where(StoredEvent.event_id == order.event_id)).one()
    ids = [{"order_id": f"{order_id}-{number}", "event_id": uuid7()} for number in range(count)]

    def work(transaction: Transaction) -> None:
        for original, key in ((order, None), (event, "position"), (delivery, "delivery_id")):
            columns = original.__table__.columns.keys()
            facts = {name: getattr(original, name) for name in columns if name != key}
            rows = [facts | {name: value for name, value in new.items() if name in columns} for new in ids]
            for row in rows:
                if "data" in row:
                    row["data"] = row["data"].replace(f'"{order_id}"', f'"{row["order_id"]}"')
            transaction.session.execute(insert(type(original)), rows)

    shop.database.transact(work)


def send_due_mails(shop: Shop) -> int:
    """What one process does at a time: as many mails as it has threads for them. Returns how many it tried."""
    leases = shop.dispatcher.claim({MAIL: shop.settings.mail_threads})
    for batch in shop.dispatcher.batches(leases):
        shop.dispatcher.deliver(batch)
    return len(leases)


def mail(shop: Shop, order_id: str = "1001") -> dict[str, Any]:
    """The order's mail, as the order's page shows it: the delivery with its attempts."""
    owed = [delivery for event in shop.timeline(order_id) for delivery in event["deliveries"]]
    found: dict[str, Any]
    (found,) = [delivery for delivery in owed if delivery["receiver"] == MAIL]
    return found


def outcomes(shop: Shop, order_id: str = "1001") -> list[str]:
    return [attempt["outcome"] for attempt in mail(shop, order_id)["attempts"]]


def breaker_failures(shop: Shop) -> int:
    """How often in a row the server was found down, as all processes know it; 0 while the circuit breaker is closed."""
    with shop.database.read() as session:
        found = session.get(CircuitBreaker, MAIL)
        return found.failures if found else 0


def notifications(shop: Shop) -> list[str]:
    with shop.database.read() as session:
        return sorted(session.connection().exec_driver_sql("SELECT notification FROM orders").scalars())


def addressees(server: SmtpServer) -> list[str]:
    return [recipient for received in server.received for recipient in received.recipients]


# ---------------------------------------------------------------- every fault, from the order to the attempt on record


@dataclasses.dataclass(frozen=True)
class Fault:
    """What the server does, how the attempt that meets it ends, in which words, and whether a copy arrived."""

    what: str
    begin: Callable[[SmtpServer], None]
    outcome: str
    words: str
    arrived: int = 0
    end: Callable[[SmtpServer], None] = SmtpServer.heal


def at(phase: str, *actions: Any, **how: Any) -> Callable[[SmtpServer], None]:
    return lambda server: server.on(phase, *actions, **how)


PASSING = [
    Fault("it is down", SmtpServer.stop, "unreachable", "refused the connection", end=SmtpServer.start),
    Fault("it hangs at connect", at("CONNECT", HANG), "timeout", "(connecting)"),
    Fault("it hangs at EHLO", at("EHLO", HANG), "timeout", "(connecting)"),
    Fault("it hangs at RCPT", at("RCPT", HANG), "timeout", "(RCPT)"),
    Fault("it hangs at DATA", at("DATA", HANG), "timeout", "(DATA)"),
    Fault("it hangs after the dot", at("END", HANG), "unknown", "(the message)"),
    Fault("it hangs once it has it", at("ACCEPTED", HANG), "unknown", "copy may have arrived", 1),
    Fault("421 at connect", at("CONNECT", "421 4.3.2 too busy"), "throttled", "421 4.3.2 too busy"),
    Fault("421 at MAIL", at("MAIL", "421 4.7.0 slow down"), "throttled", "MAIL with 421 4.7.0 slow down"),
    Fault("450 greylisting", SmtpServer.greylist, "deferred", "RCPT with 450 4.7.1 Greylisted", end=lambda _: None),
    Fault("451 after the dot", at("END", "451 4.3.0 later"), "deferred", "the message with 451 4.3.0 later"),
    Fault("452 no room", at("MAIL", "452 4.3.1 no room"), "throttled", "MAIL with 452 4.3.1 no room"),
    Fault("452 mailbox full", at("RCPT", "452 4.2.2 full"), "deferred", "RCPT with 452 4.2.2 full"),
    Fault("454 no login now", at("EHLO", "454 4.7.0 not now"), "throttled", "454 4.7.0 not now"),
    Fault("554 at connect", at("CONNECT", "554 5.3.2 not here"), "unreachable", "554 5.3.2 not here"),
    Fault("535 login wanted", at("MAIL", "530 5.7.0 log in"), "unreachable", "530 5.7.0 log in"),
    Fault("cut at connect", at("CONNECT", CUT), "unreachable", "(connecting)"),
    Fault("cut at DATA", at("DATA", CUT), "unreachable", "(DATA)"),
    Fault("cut before it has it", at("END", CUT), "unknown", "copy may have arrived"),
    Fault("cut once it has it", at("ACCEPTED", CUT), "unknown", "copy may have arrived", 1),
    Fault("closed once it has it", at("ACCEPTED", CLOSE), "unknown", "copy may have arrived", 1),
    Fault("garbage at connect", at("CONNECT", "SSH-2.0-OpenSSH_9.2"), "unreachable", "2.0-OpenSSH_9.2"),
    Fault("garbage at MAIL", at("MAIL", "\x00\x1b[31m hello"), "unreachable", "no answer that SMTP knows"),
    Fault("garbage once it has it", at("ACCEPTED", "hello"), "unknown", "copy may have arrived", 1),
]


@on_sqlite
@pytest.mark.parametrize("fault", [pytest.param(fault, id=fault.what) for fault in PASSING])
def test_a_fault_that_passes_is_on_record_and_then_the_mail_arrives(
    server: SmtpServer, open_shop: OpenShop, fault: Fault
) -> None:
    """The order is confirmed meanwhile. A second copy is sent only after an attempt that reads ``unknown``."""
    shop = open_shop(server, mail_timeout=SHORT_SECONDS if "hangs" in fault.what else 20)
    fault.begin(server)
    assert shop.post().status_code == 201
    began = time.monotonic()
    shop.dispatch_all()
    assert time.monotonic() - began < 10 * SHORT_SECONDS + 3

    assert (shop.order().status, shop.order().notification) == ("confirmed", "pending")
    assert len(server.received) == fault.arrived
    (attempt,) = mail(shop)["attempts"]
    assert attempt["outcome"] == fault.outcome
    assert fault.words in attempt["detail"]
    assert f"{server.host}:{server.port}" in attempt["detail"]
    assert (mail(shop)["state"], mail(shop)["reason"]) == ("ready", attempt["detail"])

    fault.end(server)
    backend = shop.app.extensions["mailer"].backend
    backend.settings = backend.settings.model_copy(update={"mail_timeout": 20.0})  # a machine may be busy
    shop.clock.advance(60)
    shop.dispatch_all()

    assert (shop.order().notification, mail(shop)["state"]) == ("sent", "done")
    assert outcomes(shop) == [fault.outcome, "ok"]
    assert len(server.received) == fault.arrived + 1
    assert {received.message_id for received in server.received} == {shop.events()[-1][1]["message_id"]}


FINAL = [
    Fault("550 no such user", at("RCPT", "550 5.1.1 no such user"), "refused", "RCPT with 550 5.1.1 no such user"),
    Fault("550 no relay", at("MAIL", "550 5.7.1 not from here"), "refused", "MAIL with 550 5.7.1 not from here"),
    Fault("552 too large", at("DATA", "552 5.3.4 too large"), "refused", "DATA with 552 5.3.4 too large"),
    Fault("554 spam", at("END", "554 5.7.1 spam"), "refused", "the message with 554 5.7.1 spam"),
]


@on_sqlite
@pytest.mark.parametrize("fault", [pytest.param(fault, id=fault.what) for fault in FINAL])
def test_a_refusal_is_final_until_a_person_retries_it(server: SmtpServer, open_shop: OpenShop, fault: Fault) -> None:
    shop = open_shop(server)
    fault.begin(server)
    shop.post()
    shop.dispatch_all()

    assert (shop.order().status, shop.order().notification) == ("confirmed", "failed")
    assert (mail(shop)["state"], outcomes(shop)) == ("dead", ["refused"])
    assert fault.words in mail(shop)["attempts"][0]["detail"]
    kind, data = shop.events()[-1]
    assert (kind, data["reason"]) == ("NotificationFailed", mail(shop)["reason"])

    fault.end(server)
    shop.clock.advance(86400)
    assert shop.dispatch_all() == []
    assert server.received == []

    assert shop.bus.retry(Filter(outcome="refused"), by="ops") == 1
    shop.dispatch_all()
    assert (shop.order().notification, outcomes(shop)) == ("sent", ["refused", "ok"])
    assert len(server.received) == 1


@on_sqlite
def test_one_bad_recipient_among_good_ones_fails_alone(server: SmtpServer, open_shop: OpenShop) -> None:
    server.on("RCPT", "550 5.1.1 no such user", when="bad@")
    shop = open_shop(server)
    for number, name in enumerate(["a", "bad", "b", "c"]):
        shop.post(order_id=number, user_id=name, email=f"{name}@example.com")
    shop.dispatch_all()

    assert [shop.order(f"{number}").notification for number in range(4)] == ["sent", "failed", "sent", "sent"]
    assert [outcomes(shop, f"{number}") for number in range(4)] == [["ok"], ["refused"], ["ok"], ["ok"]]
    assert sorted(addressees(server)) == ["a@example.com", "b@example.com", "c@example.com"]
    assert server.connections == 1
    assert breaker_failures(shop) == 0


@on_sqlite
@pytest.mark.parametrize(
    ("idle", "farewell"),
    [(0, None), (0, "421 4.4.2 idle too long"), (10, None), (10, "451 4.4.2 Timeout - closing connection")],
)
def test_a_connection_closed_while_idle_costs_no_attempt(
    server: SmtpServer, open_shop: OpenShop, idle: int, farewell: str | None
) -> None:
    shop = open_shop(server)
    shop.mailer.backend.monotonic = shop.clock.monotonic
    for number in range(3):
        shop.post(order_id=number)
        shop.dispatch_all()
        server.close_connections(farewell)
        shop.clock.advance(idle)

    assert [outcomes(shop, f"{number}") for number in range(3)] == [["ok"]] * 3
    assert [received.connection for received in server.received] == [1, 2, 3]


@on_sqlite
def test_a_server_that_is_slow_at_every_step_is_served(server: SmtpServer, open_shop: OpenShop) -> None:
    """Each answer comes in time; together they take longer than MAIL_TIMEOUT."""
    for phase in ("CONNECT", "EHLO", "MAIL", "RCPT", "DATA", "END"):
        server.on(phase, Pause(0.06))
    shop = open_shop(server, mail_timeout=0.3)
    shop.post()
    shop.dispatch_all()
    assert (shop.order().notification, outcomes(shop)) == ("sent", ["ok"])


@on_sqlite
@pytest.mark.parametrize("tls", ["starttls", "ssl"])
def test_a_certificate_that_does_not_verify_is_a_setting_to_be_corrected(
    start_server: StartServer, open_shop: OpenShop, tls: Any
) -> None:
    """No mail is given up for it, and none is handed over. After a restart with the right setting all go."""
    server = start_server(tls=tls)
    shop = open_shop(server, mail_ca_file=None)
    for number in range(5):
        shop.post(order_id=number)
    for _ in range(5):
        shop.dispatch_all()
        shop.clock.advance(5)
    assert {outcome for number in range(5) for outcome in outcomes(shop, f"{number}")} == {"unreachable"}
    assert "certificate verify failed" in mail(shop, "0")["reason"]
    assert "MAIL_CA_FILE" in mail(shop, "0")["reason"]
    assert (notifications(shop), server.received) == (["pending"] * 5, [])

    restarted = open_shop(server)
    for _ in range(3):
        restarted.clock.advance(60)
        restarted.dispatch_all()
    assert notifications(restarted) == ["sent"] * 5
    assert len(server.received) == 5


ONE_LINE, MORE_LINES = "250 " + "ok" * 30, "250-wait\r\n" * 6 + "250 ok"


@on_sqlite
@pytest.mark.parametrize(
    ("tls", "phase", "reply", "outcome"),
    [
        (None, "CONNECT", MORE_LINES, "timeout"),
        (None, "EHLO", ONE_LINE, "timeout"),
        ("starttls", "MAIL", MORE_LINES, "timeout"),
        ("ssl", "ACCEPTED", ONE_LINE, "unknown"),
    ],
)
def test_a_server_that_drips_its_answer_holds_nobody_for_long(
    start_server: StartServer, open_shop: OpenShop, tls: Any, phase: str, reply: str, outcome: str
) -> None:
    """Every byte comes in time, and the answer does not."""
    server = start_server(tls=tls)
    server.on(phase, Drip(reply, seconds=SHORT_SECONDS / 4))
    shop = open_shop(server, mail_timeout=SHORT_SECONDS)
    shop.post()
    began = time.monotonic()
    shop.dispatch_all()
    assert time.monotonic() - began < 3 * SHORT_SECONDS + 1
    assert outcomes(shop) == [outcome]
    assert f"within {SHORT_SECONDS} s" in mail(shop)["reason"]


@on_sqlite
def test_a_server_that_never_finishes_its_handshake_holds_nobody_for_long(
    server: SmtpServer, open_shop: OpenShop
) -> None:
    server.on("CONNECT", HANG)
    shop = open_shop(server, mail_use_ssl=True, mail_timeout=SHORT_SECONDS)
    shop.post()
    began = time.monotonic()
    shop.dispatch_all()
    assert time.monotonic() - began < 3 * SHORT_SECONDS + 1
    assert outcomes(shop) == ["timeout"]


ATEXT = "abcXYZ019.!#$%&'*+/=?^_`{|}~-\"\\ @ü用"
DOMAINS = [
    "users.example",
    "Users.EXAMPLE",
    "bücher.example",
    "straße.de",
    "例え.test",
    "x." * 90 + "example",
    "a_b.example",
]


@on_sqlite
@given(local=st.text(ATEXT, min_size=1, max_size=66), domain=st.sampled_from(DOMAINS))
@example("a" * 64, "example.com")
@example("a" * 65, "example.com")
@example("a" * 64, "long-name-of-a-domain." * 8 + "example.shop")
@example("Postmaster", "Example.COM")
@settings(
    max_examples=int(os.environ.get("ADDRESS_EXAMPLES", "60")),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_what_the_door_takes_can_be_mailed(server: SmtpServer, sending_shop: Shop, local: str, domain: str) -> None:
    """Any address that is answered 201 gets its mail; any other is named in a 422, and no order is stored."""
    shop = sending_shop
    order_id, email = uuid7(), f"{local}@{domain}"
    answer = shop.post(order_id=order_id, email=email)
    if answer.status_code == 422:
        assert [error["field"] for error in answer.get_json()["errors"]] == ["email"]
        with pytest.raises(OrderNotFound):
            shop.order(order_id)
        return
    assert answer.status_code == 201
    shop.dispatch_all()
    assert (shop.order(order_id).notification, outcomes(shop, order_id)) == ("sent", ["ok"])
    assert addressees(server)[-1].isascii()


# ---------------------------------------------------------------- it delays nobody else


@pytest.mark.parametrize("phase", ["CONNECT", "DATA", "END"])
def test_while_every_mail_hangs_orders_are_taken_confirmed_and_counted(
    server: SmtpServer, open_shop: OpenShop, phase: str
) -> None:
    """All threads for mail are held; nothing but the mail waits. The hold ends only after all else is seen done."""
    shop = open_shop(server, clock=Clock(), mail_threads=2)
    hold = server.hold(phase)
    shop.engine.start()
    assert shop.post(order_id="first").status_code == 201
    assert shop.post(order_id="second").status_code == 201
    hold.wait_for(2)

    for number in range(10):
        began = time.monotonic()
        assert shop.post(order_id=number).status_code == 201
        until(lambda number=number: shop.order(f"{number}").status == "confirmed")  # type: ignore[misc]
        assert time.monotonic() - began < 2

    assert (shop.user().orders_count, str(shop.user().total_spent)) == (12, "239.88")
    assert (notifications(shop), server.received, server.connections) == (["pending"] * 12, [], 2)

    hold.release()
    until(lambda: notifications(shop) == ["sent"] * 12)
    assert len({received.message_id for received in server.wait_for(12)}) == 12
    assert len(server.received) == 12


@on_sqlite
def test_while_the_server_is_down_orders_are_taken_confirmed_and_counted(
    server: SmtpServer, open_shop: OpenShop
) -> None:
    server.stop()
    shop = open_shop(server, clock=Clock(), policy=FixedWait(seconds=1, attempts=100))
    shop.engine.start()
    for number in range(10):
        assert shop.post(order_id=number).status_code == 201
    until(lambda: all(shop.order(f"{number}").status == "confirmed" for number in range(10)))
    assert shop.user().orders_count == 10
    assert notifications(shop) == ["pending"] * 10

    server.start()
    until(lambda: notifications(shop) == ["sent"] * 10)
    assert len(server.received) == 10


@on_sqlite
@pytest.mark.inprocess("how a stop waits for receivers' threads")
def test_a_stop_while_mails_hang_waits_for_these_and_gives_the_others_back(
    server: SmtpServer, open_shop: OpenShop
) -> None:
    """It ends when they do, and not only when ``shutdown_seconds`` are over."""
    server.on("RCPT", HANG)
    shop = open_shop(server, clock=Clock(), mail_threads=2, mail_timeout=1, shutdown_seconds=20)
    place_orders(shop, 20)
    shop.engine.start()
    until(lambda: server.verbs().count("RCPT") == 2)
    began = time.monotonic()
    assert shop.engine.stop()
    assert time.monotonic() - began < 10
    assert {delivery.state for delivery in shop.deliveries(MAIL)} == {"ready"}
    assert sorted(delivery.attempts for delivery in shop.deliveries(MAIL)) == [0] * 18 + [1] * 2


@on_sqlite
def test_a_recipient_that_always_hangs_the_server_keeps_no_other_mail(server: SmtpServer, open_shop: OpenShop) -> None:
    """Two of them, as many as there are threads, and first in the queue."""
    server.on("RCPT", HANG, when="poison")
    shop = open_shop(server, clock=Clock(), policy=FixedWait(seconds=1, attempts=1000), mail_timeout=SHORT_SECONDS)
    send_thirty_behind_two_poisoned(shop)
    place_orders(shop, 10, first=30)
    shop.engine.wake()
    until(lambda: notifications(shop).count("sent") == 40)

    assert [shop.order(name).notification for name in ("poison1", "poison2")] == ["pending", "pending"]
    assert {outcome for name in ("poison1", "poison2") for outcome in outcomes(shop, name)} == {"timeout"}
    assert {tuple(outcomes(shop, f"{number}")) for number in range(40)} == {("ok",)}
    assert len(server.received) == 40


@pytest.mark.inprocess("what threads have claimed ahead")
def test_mails_beyond_the_threads_of_a_process_are_left_to_the_others(server: SmtpServer, open_shop: OpenShop) -> None:
    """One process hangs. What it has not begun it does not keep; and were it killed, only two mails were in doubt."""
    server.on("RCPT", HANG, when="poison")
    hanging = open_shop(server, clock=Clock(), mail_threads=2)
    for name in ("poison1", "poison2"):
        hanging.post(order_id=name, email=f"{name}@example.com")
    place_orders(hanging, 20)
    hanging.engine.start()
    until(lambda: server.verbs().count("RCPT") == 2)
    open_shop(server, clock=Clock(), mail_threads=2).engine.start()
    until(lambda: len(server.received) == 20, seconds=5)
    until(lambda: notifications(hanging) == ["pending"] * 2 + ["sent"] * 20)


@on_sqlite
def test_a_recipient_that_always_hangs_the_server_spends_its_budget_no_faster_than_the_policy_says(
    server: SmtpServer, open_shop: OpenShop
) -> None:
    """Other mail comes through all the time: that the server answers is no news to this one."""
    server.on("RCPT", HANG, when="poison@")
    shop = open_shop(server, policy=FixedWait(seconds=600, attempts=5), mail_timeout=SHORT_SECONDS)
    shop.post(order_id="poison", user_id="7", email="poison@example.com")
    for number in range(10):
        shop.post(order_id=number)
        shop.dispatch_all()
        shop.clock.advance(10)
    assert notifications(shop).count("sent") == 10
    assert outcomes(shop, "poison") == ["timeout"]


# ---------------------------------------------------------------- thousands wait for it


@on_sqlite
@pytest.mark.parametrize(("reply", "minutes"), [(CUT, 60), ("450 4.3.0 starting", 10)])
def test_an_outage_with_thousands_waiting_costs_few_connections_and_no_budget(
    server: SmtpServer, open_shop: OpenShop, reply: Any, minutes: int
) -> None:
    """Three processes watch, and now and then one is restarted: what they know of the outage is in the database."""
    server.on("CONNECT", reply)
    shops = [open_shop(server, policy=FixedWait(seconds=86400)) for _ in range(3)]
    clock: Any = shops[0].clock
    shops[0].post(order_id="n")
    multiply_orders(shops[0], "n", 2000)
    began, restarts = clock.monotonic(), 0
    while clock.monotonic() < began + 60 * minutes:
        for shop in shops:
            send_due_mails(shop)
        assert server.connections < 6 + 8 + 60 * minutes / 27, "two for each process, then a probe every 27 to 30 s"
        clock.advance(max(0, (shops[0].dispatcher.next_due()[MAIL] - clock.now()).total_seconds()))
        if clock.monotonic() > began + 10 * minutes * (restarts + 1):
            shops[restarts % 3] = open_shop(server, policy=FixedWait(seconds=86400))
            restarts += 1

    assert restarts == 6
    waiting = shops[0].deliveries(MAIL)
    assert {delivery.state for delivery in waiting} == {"ready"}
    assert max(delivery.attempts for delivery in waiting) == 1
    assert sum(delivery.attempts for delivery in waiting) == server.connections

    server.heal()
    clock.advance(31)
    assert [send_due_mails(shop) for shop in shops] == [1, 2, 2], "one looks, and then all are let in"
    assert all(delivery.due_at <= clock.now() for delivery in shops[0].deliveries(MAIL) if delivery.state == "ready")
    for _ in range(5):
        assert [send_due_mails(shop) for shop in shops] == [2, 2, 2]
    assert len({received.message_id for received in server.received}) == len(server.received) == 35


@pytest.mark.parametrize(
    ("database_url", "misdeed"),
    [("sqlite", HANG), pytest.param("postgresql", CUT, marks=pytest.mark.postgres)],
    indirect=["database_url"],
)
def test_workers_of_three_processes_probe_one_at_a_time_and_drain_when_it_is_back(
    server: SmtpServer, open_shop: OpenShop, misdeed: Any
) -> None:
    """In real time and threads; one process is restarted in the middle of the outage."""
    at_once: list[int] = []
    server.on("CONNECT", lambda _: at_once.append(server.open_connections), misdeed)
    shops = [
        open_shop(server, clock=Clock(), mail_timeout=SHORT_SECONDS, policy=FixedWait(1, attempts=10)) for _ in range(3)
    ]
    place_orders(shops[0], 60)
    for shop in shops:
        shop.engine.start()
    until(lambda: breaker_failures(shops[0]) >= 2)
    shops[0].engine.stop()
    restarted = open_shop(server, clock=Clock(), mail_timeout=SHORT_SECONDS, policy=FixedWait(1, attempts=10))
    restarted.engine.start()
    until(lambda: breaker_failures(restarted) >= 3)

    first_ones, probes = 3 * 2, 2
    assert len(at_once) <= first_ones + probes, at_once
    assert (max(at_once) <= first_ones, at_once[-1]) == (True, 1), at_once
    until(lambda: sum(row.attempts for row in restarted.deliveries(MAIL)) == server.connections == len(at_once))

    server.heal()
    until(lambda: notifications(restarted) == ["sent"] * 60)
    assert len(server.received) == len({received.message_id for received in server.received}) == 60
    spent = [delivery.attempts for delivery in restarted.deliveries(MAIL)]
    assert max(spent) <= 3
    assert sum(spent) == 60 + len(at_once)
    assert breaker_failures(restarted) == 0


# ---------------------------------------------------------------- nobody knows whether it arrived


class Died(BaseException):
    """Stands for the process' death. The application may catch it, but a dead process commits nothing."""


def send_and_die(shop: Shop) -> None:
    """The server has accepted the mail, and the process ends before that is on record."""

    def dead(*_: object) -> None:
        raise Died

    def die(*_: object, **__: object) -> None:
        shop.database.commit = dead  # type: ignore[method-assign]
        raise Died

    with email_dispatched.connected_to(die), pytest.raises(Died):
        shop.dispatch()
    del shop.database.commit  # it stands for the next process from here on


@pytest.mark.inprocess("Celery's worker, which sends there, stops with the test")
@on_sqlite
def test_a_dispatcher_that_stops_takes_leave_of_the_mail_server(server: SmtpServer, sending_shop: Shop) -> None:
    sending_shop.engine.start()
    sending_shop.post()
    server.wait_for(1)
    until(lambda: notifications(sending_shop) == ["sent"])
    sending_shop.engine.stop()
    server.wait_until_left()
    assert server.verbs(1)[-1] == "QUIT"


def test_when_the_record_of_an_accepted_mail_is_lost_a_copy_with_the_same_id_follows(
    server: SmtpServer, open_shop: OpenShop
) -> None:
    shop = open_shop(server)
    shop.post()
    send_and_die(shop)
    assert (len(server.received), mail(shop)["attempts"]) == (1, [])

    restarted = open_shop(server)
    assert restarted.dispatch_all() == [] or len(server.received) == 1
    restarted.clock.advance(restarted.settings.lease_seconds)
    restarted.dispatch_all()

    assert (outcomes(restarted), restarted.order().notification) == (["unknown", "ok"], "sent")
    first, second = server.received
    assert first.message_id == second.message_id
    assert (restarted.user().orders_count, restarted.order().status) == (1, "confirmed")


def test_when_the_record_of_an_accepted_mail_is_lost_hold_leaves_it_to_a_person(
    server: SmtpServer, open_shop: OpenShop
) -> None:
    shop = open_shop(server, mail_on_unknown="hold")
    shop.post()
    send_and_die(shop)
    shop.clock.advance(shop.settings.lease_seconds)
    shop.dispatch_all()
    shop.clock.advance(86400)
    shop.dispatch_all()

    assert len(server.received) == 1
    assert (mail(shop)["state"], outcomes(shop), shop.order().notification) == ("dead", ["unknown"], "failed")
    assert mail(shop)["reason"] == "its last attempt's outcome is unknown; retry it, or discard it"

    assert shop.bus.retry(Filter(outcome="unknown"), by="ops") == 1
    shop.dispatch_all()
    assert (outcomes(shop), shop.order().notification) == (["unknown", "ok"], "sent")
    assert len({received.message_id for received in server.received}) == 1


@on_sqlite
def test_when_the_database_is_away_after_the_server_accepted_the_record_is_made_when_it_is_back(
    server: SmtpServer, open_shop: OpenShop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No copy is sent: the process lives, and still knows."""
    shop = open_shop(server, clock=Clock())
    transact, away = shop.database.transact, threading.Event()

    def take_away(*_: object, **__: object) -> None:
        away.set()

    def refuse(work: Any, **how: Any) -> Any:
        if away.is_set():
            raise DatabaseUnavailable
        return transact(work, **how)

    with email_dispatched.connected_to(take_away):
        monkeypatch.setattr(shop.database, "transact", refuse)
        shop.post()
        shop.engine.start()
        server.wait_for(1)
        assert away.wait(5)
    away.clear()
    until(lambda: shop.order().notification == "sent")
    assert (outcomes(shop), len(server.received)) == (["ok"], 1)


@pytest.mark.parametrize(
    "fault", [at("ACCEPTED", CUT, times=1), at("ACCEPTED", HANG, times=1), at("END", CUT, times=1)]
)
def test_a_mail_whose_acceptance_was_not_heard_is_held_where_that_is_wanted(
    server: SmtpServer, open_shop: OpenShop, fault: Callable[[SmtpServer], None]
) -> None:
    fault(server)
    shop = open_shop(server, mail_on_unknown="hold", mail_timeout=SHORT_SECONDS)
    shop.post()
    shop.dispatch_all()
    shop.clock.advance(86400)
    shop.dispatch_all()

    arrived = len(server.received)
    assert (mail(shop)["state"], outcomes(shop), shop.order().notification) == ("dead", ["unknown"], "failed")
    assert "a copy may have arrived" in mail(shop)["reason"]

    assert shop.bus.retry(Filter(outcome="unknown"), by="ops") == 1
    shop.dispatch_all()
    assert (outcomes(shop), shop.order().notification) == (["unknown", "ok"], "sent")
    assert len(server.received) == arrived + 1
    assert len({received.message_id for received in server.received}) == 1


@pytest.mark.parametrize(
    ("fault", "copies"),
    [
        pytest.param(at("ACCEPTED", HANG), 3, id="hangs"),
        pytest.param(at("ACCEPTED", CUT), 3, id="cuts"),
        pytest.param(at("END", HANG), 0, id="hangs before it has it"),
        pytest.param(at("ACCEPTED", Pause(4 * SHORT_SECONDS)), 3, id="answers when the client has gone"),
    ],
)
def test_a_mail_whose_acceptance_is_never_heard_gets_three_copies_and_is_dead(
    server: SmtpServer, open_shop: OpenShop, fault: Callable[[SmtpServer], None], copies: int
) -> None:
    """An operator's retry begins a new budget."""
    fault(server)
    shop = open_shop(server, mail_timeout=SHORT_SECONDS, policy=FixedWait(seconds=600, attempts=20))
    shop.post()
    for _ in range(10):
        shop.dispatch_all()
        shop.clock.advance(600)

    assert (mail(shop)["state"], shop.order().notification) == ("dead", "failed")
    assert outcomes(shop).count("unknown") == 3, (
        "on a busy machine others may be timeouts, before the message was there"
    )
    assert mail(shop)["reason"].startswith("its fate is unknown: up to 3 copies may have arrived; retry it, or discard")
    assert f"{server.host}:{server.port}" in mail(shop)["reason"]
    assert len(server.received) == copies
    assert len({received.message_id for received in server.received}) <= 1

    assert shop.bus.retry(Filter(outcome="unknown"), by="ops") == 1
    shop.dispatch_all()
    assert (mail(shop)["state"], outcomes(shop)) == ("ready", ["unknown"] * 4)
    server.heal()
    shop.clock.advance(600)
    shop.dispatch_all()
    assert (shop.order().notification, outcomes(shop)) == ("sent", ["unknown"] * 4 + ["ok"])


@on_sqlite
def test_how_many_copies_is_a_setting_and_what_surely_failed_is_none(server: SmtpServer, open_shop: OpenShop) -> None:
    """Attempts that ended before the message was handed over are counted by RETRY_MAX_ATTEMPTS alone."""
    server.on("RCPT", HANG, times=4)
    server.on("ACCEPTED", CUT)
    shop = open_shop(server, mail_timeout=SHORT_SECONDS, mail_max_copies=2, policy=FixedWait(seconds=600, attempts=20))
    shop.post()
    for _ in range(10):
        shop.dispatch_all()
        shop.clock.advance(600)
    assert outcomes(shop) == ["timeout"] * 4 + ["unknown"] * 2
    assert (mail(shop)["state"], len(server.received)) == ("dead", 2)


@on_sqlite
def test_recipients_that_hang_after_the_message_get_three_copies_each_and_keep_no_other_mail(
    server: SmtpServer, open_shop: OpenShop
) -> None:
    """Two of them, as many as there are threads, and first in the queue."""
    server.on("ACCEPTED", HANG, when="poison")
    shop = open_shop(
        server, clock=Clock(), policy=FixedWait(seconds=0.5, attempts=1000), mail_timeout=2 * SHORT_SECONDS
    )
    send_thirty_behind_two_poisoned(shop)
    until(lambda: [shop.order(name).notification for name in ("poison1", "poison2")] == ["failed", "failed"])
    place_orders(shop, 10, first=30)
    shop.engine.wake()
    until(lambda: notifications(shop).count("sent") == 40)

    unknown = [outcomes(shop, name).count("unknown") for name in ("poison1", "poison2")]
    assert unknown == [3, 3], "on a busy machine others may be timeouts, before the message was there"
    assert {tuple(outcomes(shop, f"{number}")) for number in range(40)} == {("ok",)}
    copies = collections.Counter(addressees(server))
    assert (copies["poison1@example.com"], copies["poison2@example.com"], copies.total()) == (3, 3, 46)


@on_sqlite
@pytest.mark.parametrize("policy", ["resend", "hold"])
def test_what_surely_did_not_arrive_is_sent_whatever_the_policy(
    server: SmtpServer, open_shop: OpenShop, policy: str
) -> None:
    server.on("DATA", CUT, times=1)
    shop = open_shop(server, mail_on_unknown=policy)
    shop.post()
    shop.dispatch_all()
    shop.clock.advance(60)
    shop.dispatch_all()
    assert (outcomes(shop), len(server.received)) == (["unreachable", "ok"], 1)


@on_sqlite
def test_a_server_that_takes_mails_and_never_says_so_gets_few_copies(server: SmtpServer, open_shop: OpenShop) -> None:
    """A missing answer opens the circuit breaker as a missing connection does."""
    server.on("ACCEPTED", CUT)
    shop = open_shop(server, policy=FixedWait(seconds=30, attempts=100))
    place_orders(shop, 50)
    clock: Any = shop.clock
    for _ in range(60):
        send_due_mails(shop)
        clock.advance(5)
    assert len(server.received) < 2 + 8 + 300 / 27
