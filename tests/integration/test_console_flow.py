"""The flow page: the wiring as it is, numbers that agree with the database, and what can be done there."""

import itertools
import os
import signal
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest

from app.answers import Done
from app.bus import Bus, Filter
from app.console import demo, figures
from app.console.figures import Figures, FiguresCache, percentile
from app.console.turns import APART_SECONDS, HEADER, LONGEST_PAUSE_SECONDS, PAUSE_SECONDS
from app.console.wiring import wiring
from app.errors import Refused, Unreachable
from app.events import NotificationFailed, NotificationSent, OrderCreated, notification_sent
from config import Settings
from tests.support.console import Page, Visitor
from tests.support.shop import Shop


@pytest.fixture(autouse=True)
def fresh_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock of a test stands still: figures would stay fresh for ever."""
    monkeypatch.setattr("app.console.figures.FRESH_SECONDS", -1.0)
    monkeypatch.setattr("app.console.figures.COST_FACTOR", 0)


def flow(shop: Shop, **query: str) -> Page:
    return Visitor(shop).get("/", **query)


def test_the_first_page_shows_the_wiring(shop: Shop) -> None:
    page = flow(shop)
    for name in ("POST /api/create_order", "update_user_order_record", "send_email_notification", "NotificationSent"):
        assert name in page.text
    assert "No order yet" in page.text
    assert 'data-pipe="outbox:send_email_notification"' in page.html
    assert 'data-pipe="send_email_notification:update_order_notification"' in page.html


def test_a_receiver_that_is_added_appears_with_what_it_publishes(shop: Shop) -> None:
    def tell_sales(sender: str, event: OrderCreated) -> Done:
        return Done(NotificationFailed(order_id=event.order_id, user_id=event.user_id, reason="a test"))

    shop.receive(tell_sales)
    found = next(each for each in wiring().receivers if each.name == "tell_sales")
    assert (found.takes, found.publishes, found.transactional) == (("OrderCreated",), ("NotificationFailed",), False)
    html = flow(shop).html
    assert 'data-pipe="outbox:tell_sales"' in html
    assert 'data-pipe="tell_sales:update_order_notification"' in html


def test_what_a_helper_publishes_is_seen_once_it_was_published(shop: Shop) -> None:
    def made(event: OrderCreated) -> NotificationSent:
        return NotificationSent(order_id=event.order_id, user_id=event.user_id, recipient="a@b.example", message_id="x")

    def helped(sender: str, event: OrderCreated) -> Done:
        return Done(made(event))

    shop.receive(helped)
    pipe = 'data-pipe="helped:update_order_notification"'
    assert pipe not in flow(shop).html
    shop.place_order()
    shop.dispatch_all()
    assert pipe in flow(shop).html


def test_a_receiver_behind_a_receiver_stands_behind_it(shop: Shop) -> None:
    def count_sent(sender: str, event: NotificationSent) -> None: ...

    shop.receive(count_sent, notification_sent)
    assert wiring().depth["count_sent"] == 2
    assert 'data-pipe="send_email_notification:count_sent"' in flow(shop).html


def test_the_numbers_agree_with_the_database(shop: Shop) -> None:
    for n in range(5):
        shop.place_order(f"old{n}")
    shop.dispatch_all()
    shop.clock.advance(61)
    for n in range(7):
        shop.place_order(f"{n}", user_id=f"u{n}")
        shop.clock.advance(1)
    page = flow(shop)
    unfinished = "SELECT count(*) FROM deliveries WHERE state IN ('ready', 'leased')"
    assert page.numbers["waiting"] == f"{shop.execute_scalar(unfinished)}" == "14"
    assert page.numbers["events:OrderCreated"] == "7"
    assert page.numbers["done:send_email_notification"] == "0"

    shop.dispatch_all()
    page = flow(shop)
    sent = shop.execute_scalar("SELECT count(*) FROM attempts JOIN deliveries USING (delivery_id) "
                               "WHERE receiver = 'send_email_notification' AND attempts.outcome = 'ok'")  # fmt: skip
    assert int(page.numbers["done:send_email_notification"]) == sent - 5 == 7
    assert page.numbers["waiting"] == "0"
    assert (
        page.numbers["latency:send_email_notification"] == "1.0 / 7.0 s"
    )  # of twelve: five at once, seven of 1 to 7 s


@pytest.mark.parametrize(
    "values, percent, expected",
    [
        ([1.0], 50, 1.0),
        ([1.0], 99, 1.0),
        ([1.0, 2.0], 50, 1.0),
        ([1.0, 2.0, 3.0], 50, 2.0),
        ([float(n) for n in range(1, 101)], 99, 99.0),
        ([float(n) for n in range(1, 102)], 99, 100.0),
    ],
)
def test_a_percentile_is_the_least_value_that_enough_do_not_exceed(
    values: list[float], percent: int, expected: float
) -> None:
    assert percentile(values, percent) == expected


def test_an_outage_is_seen_at_a_glance(shop: Shop) -> None:
    def unreachable(sender: str, event: OrderCreated) -> None:
        raise Unreachable("mail.example:25 refused\x1b[31m the connection; see to it")

    shop.only(unreachable)
    shop.place_order()
    shop.dispatch()
    page = flow(shop)
    assert "its circuit breaker is open" in page.text
    assert "mail.example:25 refused␛[31m the connection" in page.text
    assert "next probe in" in page.text
    shop.bus.pause("unreachable", "mending it", "ann")
    assert "paused by ann" in flow(shop).text


def test_what_was_given_up_says_why(shop: Shop) -> None:
    def refuse(sender: str, event: OrderCreated) -> None:
        raise Refused("550 no <b>such</b> user")

    shop.only(refuse)
    shop.place_order()
    shop.dispatch()
    page = flow(shop)
    assert "refuse given up : 550 no <b>such</b> user" in page.text
    assert "<b>such" not in page.html
    assert page.numbers["dead"] == "1"


def test_explaining_is_a_state_of_the_address(shop: Shop) -> None:
    assert "app/bus/outbox.py" not in flow(shop).text
    page = flow(shop, explain="1")
    for file in ("app/api/orders.py", "app/bus/outbox.py", "app/receivers/order_record.py"):
        assert file.split("/")[-1] in page.text
        assert Path(file).exists()


# Live


def test_a_poll_is_answered_304_until_something_changes(shop: Shop) -> None:
    visitor = Visitor(shop)
    tag = visitor.get("/flow/live").response.headers["ETag"]
    again = visitor.get("/flow/live", {"If-None-Match": tag})
    assert (again.status, again.html) == (304, "")
    shop.clock.advance(5)
    assert visitor.get("/flow/live", {"If-None-Match": tag}).status == 304
    shop.place_order()
    changed = visitor.get("/flow/live", {"If-None-Match": tag})
    assert (changed.status, changed.response.headers["ETag"] != tag) == (200, True)
    assert "1001" in changed.text


def test_each_language_has_a_tag_of_its_own(shop: Shop) -> None:
    visitor = Visitor(shop)
    tag = visitor.get("/flow/live").response.headers["ETag"]
    visitor.language = "zh-CN"
    page = visitor.get("/flow/live", {"If-None-Match": tag})
    assert (page.status, "发件箱" in page.text) == (200, True)


def test_figures_are_computed_once_for_all_who_look(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.console.figures.FRESH_SECONDS", 0.4)
    cache = FiguresCache(shop.bus)
    first = cache.latest()
    shop.place_order()
    shop.clock.advance(0.3)
    assert cache.latest() is first
    shop.clock.advance(0.2)
    assert cache.latest() is not first


def test_a_live_answer_tells_when_to_ask_again(shop: Shop) -> None:
    """Soon to a few pages, later to many: so many polls a second, however many pages are open."""
    visitor = Visitor(shop)

    def pauses(count: int) -> list[float]:
        answers = [visitor.get("/flow/live", {"X-Live": "1"}).response for _ in range(count)]
        return [float(answer.headers[HEADER]) for answer in answers]

    assert pauses(1) == [PAUSE_SECONDS]
    many = pauses(40)
    apart = [later - earlier for earlier, later in itertools.pairwise(many)]
    assert apart == pytest.approx([APART_SECONDS] * 39)
    assert pauses(40)[-1] == LONGEST_PAUSE_SECONDS
    shop.clock.advance(LONGEST_PAUSE_SECONDS)
    assert pauses(1) == [PAUSE_SECONDS], "the others have gone"


def test_figures_hold_for_longer_where_pages_ask_seldom(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.console.figures.FRESH_SECONDS", 0.4)
    cache = FiguresCache(shop.bus)
    first = cache.latest(1.0)
    shop.place_order()
    shop.clock.advance(1.3)
    assert cache.latest() is first
    shop.clock.advance(0.2)
    assert cache.latest() is not first


def test_figures_are_computed_only_when_something_has_changed(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    computed: list[Figures] = []

    shop.place_order("1")
    shop.place_order("2")
    cache = FiguresCache(shop.bus)
    compute = figures.compute

    def counted(bus: Bus, before: Figures | None = None) -> Figures:
        computed.append(compute(bus, before))
        return computed[-1]

    monkeypatch.setattr(figures, "compute", counted)
    changes: list[Callable[[], object]] = [
        lambda: shop.place_order("3"),
        lambda: shop.dispatcher.claim({"send_email_notification": 1}),
        lambda: shop.bus.pause("send_email_notification", "a test", "ann"),
        lambda: shop.bus.discard(Filter(receiver="update_user_order_record"), "a test", "ann"),
        lambda: shop.clock.advance(figures.LONGEST_SECONDS + 1),
    ]
    for number, change in enumerate(changes, start=1):
        cache.latest()
        cache.latest()
        assert len(computed) == number
        change()
    cache.latest()
    assert len(computed) == len(changes) + 1


def test_figures_that_hold_are_as_they_are_now(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock alone changes how many there were in the last minute, and nothing is read for it."""
    monkeypatch.setattr(figures, "LONGEST_SECONDS", 10**6)
    cache = FiguresCache(shop.bus)
    shop.place_order()
    first = cache.latest()
    assert first.events_a_minute["OrderCreated"] == 1
    shop.clock.advance(30)
    assert cache.latest() is first
    shop.clock.advance(31)
    later = cache.latest()
    assert (later.events_a_minute["OrderCreated"], later.version != first.version) == (0, True)
    shop.clock.advance(1000)
    still = cache.latest()
    assert cache.latest() is still


def test_figures_after_others_are_those_of_a_first_look(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what is new is read, and the list is as long as it would be."""
    monkeypatch.setattr(figures, "MOST_LOOKED_AT", 20)
    monkeypatch.setattr(figures, "OVERLAP", 3)
    before = figures.compute(shop.bus)
    for n in range(12):
        shop.place_order(f"{n}")
        if n % 3 == 0:
            shop.dispatch_all()
        before = figures.compute(shop.bus, before)
        first = figures.compute(shop.bus)
        assert (before.events, before.attempts, before.version) == (first.events, first.attempts, first.version)
    assert len(before.events) == 20 == len(before.attempts)


# What is done here


def test_an_order_is_placed_and_travels(shop: Shop) -> None:
    visitor = Visitor(shop)
    done = visitor.submit("/", "/flow/place", order_id="7", user_id="42", total_price="19.99", count="1")
    page = visitor.follow(done)
    assert "1 order is stored. Watch it travel." in page.text
    assert "record waits" in page.text
    shop.dispatch_all()
    page = flow(shop)
    assert [row[:3] for row in page.rows if row] == [["7", "42", "19.99"]]
    assert page.column(3) == ["✓ stored ✓ record ✓ mail"]
    assert shop.order("7").notification == "sent"


def test_twenty_orders_are_placed_at_once(shop: Shop) -> None:
    visitor = Visitor(shop)
    visitor.submit("/", "/flow/place", order_id="t", count="20", explain="1")
    assert shop.count("orders") == 20
    again = visitor.follow(visitor.submit("/", "/flow/place", order_id="t", count="20"))
    assert "stored before" in again.text
    assert shop.count("orders") == 20


@pytest.mark.parametrize(
    "field, value", [("order_id", "a b"), ("user_id", ""), ("total_price", "1.999"), ("email", "nobody")]
)
def test_what_is_wrong_is_said_beside_its_field(shop: Shop, field: str, value: str) -> None:
    page = Visitor(shop).submit("/", "/flow/place", **{field: value})
    assert page.status == 422
    assert f'id="wrong-{field}"' in page.html
    assert page.forms["/flow/place"][field] == value
    assert shop.count("orders") == 0


def test_an_order_that_exists_with_other_content_is_refused(shop: Shop) -> None:
    shop.place_order("7")
    page = Visitor(shop).submit("/", "/flow/place", order_id="7", total_price="1")
    assert (page.status, "exists, with other content" in page.text) == (409, True)


@pytest.fixture
def file_shop(tmp_path: Path, sqlite_url: str) -> Shop:
    settings = Settings.of(instance_path=tmp_path / "instance", mail_backend="file", log_level="ERROR")
    return Shop(settings)


def test_mail_is_broken_for_a_while_and_nothing_is_lost(file_shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    shop = file_shop
    monkeypatch.setattr(demo, "OUTAGE_SECONDS", 10**9)  # the shop's clock is another than the mail backend's
    Visitor(shop).submit("/", "/flow/break-mail")
    shop.place_order()
    shop.dispatch()
    assert shop.outcomes("send_email_notification") == ["unreachable"]
    assert "somebody broke it" in flow(shop).text
    (shop.settings.instance_path / "mail-outage").write_text(datetime(2020, 1, 1).astimezone().isoformat())
    shop.clock.advance(100)
    shop.dispatch_all()
    assert shop.order().notification == "sent"
    assert not (shop.settings.instance_path / "mail-outage").exists()
    shop.close()


@pytest.mark.parametrize("path", ["/flow/break-mail", "/flow/kill-dispatcher"])
@pytest.mark.parametrize("given", [{"mail_backend": "memory"}, {"mail_backend": "file", "mail_server": "m.example"},
                                   {"mail_backend": "file", "console_password": "secret"}], ids=str)  # fmt: skip
def test_nothing_is_broken_on_purpose_elsewhere(
    tmp_path: Path, sqlite_url: str, path: str, given: dict[str, str]
) -> None:
    shop = Shop(Settings.of(instance_path=tmp_path / "instance", log_level="ERROR", **given))
    visitor = Visitor(shop)
    if "console_password" in given:
        visitor.sign_in("secret")
    page = visitor.get("/")
    assert "Break it" not in page.text
    assert visitor.post(path, token=page.forms["/flow/place"]["token"]).status == 403
    assert shop.count("orders") == 0
    shop.close()


def test_only_a_dispatcher_that_is_started_again_is_killed(file_shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    killed: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "kill", lambda pid, number: killed.append((pid, number)))
    visitor = Visitor(file_shop)
    token = visitor.get("/").forms["/flow/place"]["token"]
    page = visitor.follow(visitor.post("/flow/kill-dispatcher", token=token))
    assert "There was no dispatcher to kill" in page.text
    assert killed == []
    demo.kill(os.getpid())
    assert killed == [(os.getpid(), signal.SIGKILL)]
    file_shop.close()
