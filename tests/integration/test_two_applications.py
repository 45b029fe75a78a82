"""Two applications in one process: what belongs to one is none of the other's business."""

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from flask import current_app

from app.clock import Clock
from app.errors import InDoubt
from app.events import OrderCreated
from config import Settings
from tests.support.shop import Shop
from tests.support.waiting import until

MAIL = "send_email_notification"

OpenShop = Callable[..., Shop]


@pytest.fixture
def open_shop(tmp_path: Path) -> Iterator[OpenShop]:
    """Opens applications that share nothing but the process."""
    opened: list[Shop] = []

    def open_one(name: str, clock: Clock | None = None, **more: object) -> Shop:
        chosen = {"instance_path": tmp_path / name, "mail_backend": "memory", "log_level": "ERROR"} | more
        opened.append(Shop(Settings.of(**chosen), clock))
        return opened[-1]

    yield open_one
    for shop in opened:
        shop.close()


def test_what_is_sent_is_stored_where_its_transaction_is(open_shop: OpenShop) -> None:
    """The application that was made last has no say in it."""
    first, second = open_shop("first"), open_shop("second")
    first.place_order("1")
    second.place_order("2")
    assert [data["order_id"] for _, data in first.events()] == ["1"]
    assert [data["order_id"] for _, data in second.events()] == ["2"]


def test_each_delivers_its_own(open_shop: OpenShop) -> None:
    first, second = open_shop("first"), open_shop("second")
    first.place_order("1")
    second.dispatch_all()
    assert first.order("1").status == "created"
    first.dispatch_all()
    assert (first.order("1").notification, len(first.mailer.outbox), len(second.mailer.outbox)) == ("sent", 1, 0)


@pytest.mark.parametrize(("way", "other", "state"), [("hold", "resend", "dead"), ("resend", "hold", "ready")])
def test_each_decides_about_unknown_outcomes_by_its_own_setting(
    open_shop: OpenShop, way: str, other: str, state: str
) -> None:
    """MAIL_ON_UNKNOWN of the application that was made last is not the first one's."""
    shop = open_shop("first", mail_on_unknown=way)
    open_shop("second", mail_on_unknown=other)
    shop.mailer.backend = Doubtful()
    shop.place_order()
    shop.dispatch()
    assert shop.delivery(MAIL).state == state


class Doubtful:
    """A mail backend of which nobody knows what it did."""

    def deliver(self, *_: object) -> None:
        raise InDoubt

    def close(self) -> None: ...


def test_each_has_as_many_threads_as_its_own_setting_says(open_shop: OpenShop) -> None:
    """Twelve mails, three at a time in the one, while the other's only thread waits for nobody."""
    wide, narrow = open_shop("wide", Clock(), mail_threads=3), open_shop("narrow", Clock(), mail_threads=1)
    three, one = Together(3), Together(1)
    wide.mailer.backend, narrow.mailer.backend = three, one
    for n in range(12):
        wide.place_order(f"{n}")
        narrow.place_order(f"{n}")
    wide.engine.start()
    narrow.engine.start()
    until(lambda: three.delivered == one.delivered == 12)
    assert (len(three.threads), len(one.threads)) == (3, 1)


class Together:
    """A mail backend that delivers so many mails at once, and no fewer."""

    def __init__(self, at_once: int) -> None:
        self.threads: set[int] = set()
        self.delivered = 0
        self._barrier = threading.Barrier(at_once)
        self._lock = threading.Lock()

    def deliver(self, *_: object) -> None:
        self._barrier.wait(20)
        with self._lock:
            self.threads.add(threading.get_ident())
            self.delivered += 1

    def close(self) -> None: ...


def test_a_receiver_is_called_in_its_own_application(open_shop: OpenShop) -> None:
    seen: list[object] = []

    def look(sender: str, event: OrderCreated) -> None:
        seen.append(current_app.extensions["bus"])

    first, second = open_shop("first"), open_shop("second")
    first.receive(look)
    for shop in (first, second):
        shop.place_order()
        shop.dispatch_all()
    assert seen == [first.bus, second.bus]


def test_each_logs_from_its_own_level_on(open_shop: OpenShop, caplog: pytest.LogCaptureFixture) -> None:
    talkative, quiet = open_shop("talkative", log_level="INFO"), open_shop("quiet", log_level="ERROR")
    for shop, order_id in ((talkative, "told"), (quiet, "untold")):
        shop.place_order(order_id)
        shop.dispatch_all()
    records = [vars(record)["facts"] for record in caplog.records if record.name == "app.bus"]
    told = {line["order_id"] for facts in records for line in (facts if isinstance(facts, list) else [facts])}
    assert told == {"told"}
    assert logging.getLogger("app.bus").level == logging.NOTSET


def test_one_that_is_gone_leaves_the_other_its_wake_up(open_shop: OpenShop) -> None:
    kept = open_shop("kept", Clock())
    with closing(open_shop("gone", Clock())) as gone:
        gone.engine.start()
        gone.engine.stop()
    kept.engine.start()
    kept.place_order()
    until(lambda: kept.order().notification == "sent")
