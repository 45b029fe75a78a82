"""The console in a real browser: nothing against its policy, no error, nothing that keeps people out, on every page."""

import contextlib
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.console import CHROMIUM, Tab
from tests.support.service import Service, wait_until
from tests.support.smtp import SmtpServer

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed")
pytestmark = [
    pytest.mark.skipif(not CHROMIUM.exists(), reason=f"no Chromium here: {CHROMIUM} is not there"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # playwright's own loop
    pytest.mark.timeout(120),
]

PAGES = (
    *("/", "/?explain=1", "/orders", "/orders?q=nobody", "/orders?sort=user", "/orders/1001", "/nothing"),
    *("/users", "/users/42", "/events", "/events?type=none", "/events/types", "/events/{event}"),
    "/orders/1001/mail/{sent}",
    *("/deliveries", "/deliveries?state=discarded", "/deliveries?state=discarded&view=list", "/acts", "/acts/1"),
    *("/deliveries/act?action=retry&state=discarded", "/mailbox", "/retries", "/system", "/system/doctor"),
)
"""Every page. One that is added belongs here."""

GIVE_UP = """
UPDATE deliveries SET state = 'discarded', outcome = 'refused', reason = '550 5.1.1 <7@users.example>: no such user'
WHERE receiver = 'send_email_notification' AND event_id = (SELECT event_id FROM orders WHERE order_id = '1002')
"""

ORDER = {"order_id": "1001", "user_id": "42", "total_price": "19.99", "email": "ann@example.com"}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """In the checkout's default set-up, with an order that was delivered, and one whose mail a person gave up."""
    made = Service(tmp_path_factory.mktemp("console"), mail_backend="file")
    made.start()
    made.post(**ORDER)
    made.post(order_id="1002", user_id="7", total_price="5")
    for order_id in ("1001", "1002"):
        wait_until(lambda: made.get(f"/api/orders/{order_id}").body["notification"] == "sent", "the mail")  # noqa: B023
    assert made.run("flask", "bus", "resend", "--order", "1001", "--yes", "--because", "asked by phone").returncode == 0
    with contextlib.closing(sqlite3.connect(made.folder / "instance" / "orders.db")) as database:
        database.execute(GIVE_UP)
        database.commit()
    yield made
    made.close()


def with_ids(path: str, service: Service) -> str:
    """With the ids of the order's event, and of its mail's."""
    created, sent = (event["event_id"] for event in service.get("/api/orders/1001").body["timeline"][:2])
    return path.format(event=created, sent=sent)


@pytest.mark.parametrize("path", PAGES)
@pytest.mark.parametrize("width, scheme, locale", [(1280, "light", "en-GB"), (390, "dark", "zh-CN")])
def test_a_page_has_no_fault(open_tab: Any, service: Service, path: str, width: int, scheme: str, locale: str) -> None:
    """No violation of its policy, no error, nothing that axe-core reports, and it is no wider than the screen."""
    tab = open_tab(viewport={"width": width, "height": 844}, color_scheme=scheme, locale=locale)
    page = tab.open(with_ids(path, service))
    found = axe.Axe().run(page).response["violations"]
    assert [(each["id"], each["nodes"][0]["html"], each["nodes"][0]["failureSummary"]) for each in found] == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    expected = ["Failed to load resource: the server responded with a status of 404 (NOT FOUND)"]
    assert tab.complaints == (expected if path == "/nothing" else [])


@pytest.mark.parametrize(
    "path, words",
    [
        ("/", "Newest orders"),
        ("/orders?q=1001", "ann@example.com"),
        ("/orders/1001", "See the mail"),
        ("/orders/1001/mail/{sent}", "Message-ID"),
        ("/users/42", "The record and the orders agree."),
        ("/events?order_id=1001", "NotificationSent"),
    ],
)
def test_a_page_needs_no_script(open_tab: Any, service: Service, path: str, words: str) -> None:
    page = open_tab(java_script_enabled=False).open(with_ids(path, service))
    assert words in page.inner_text("main")
    assert not page.get_by_role("button", name="live").is_visible()


def test_an_order_is_placed_and_seen_to_travel(open_tab: Any) -> None:
    """It moves through the picture, its steps are reached, and nobody reloads the page."""
    tab = open_tab()
    page = tab.open("/")

    def is_seen_to_move(name: str) -> bool:
        """It is not where it arrived before the page was there."""
        page.get_by_label("Order", exact=True).fill(name)
        page.get_by_role("button", name="Place it").click()
        with contextlib.suppress(playwright.TimeoutError):
            return page.wait_for_selector("circle.mover", state="attached", timeout=3000) is not None
        return False

    name = next(name for name in (f"travels{n}" for n in range(10)) if is_seen_to_move(name))
    row = page.locator(f"tr[data-order={name}]")
    row.get_by_text("mail").and_(page.locator(".state.ok")).wait_for()
    assert [text.strip() for text in row.locator(".state").all_inner_texts()] == ["✓ stored", "✓ record", "✓ mail"]
    assert tab.complaints == []


def test_twenty_orders_survive_the_dispatchers_end(open_tab: Any, service: Service) -> None:
    """Its process is killed in the middle of them; another comes, and every mail is written."""
    tab = open_tab()
    page = tab.open("/")
    page.get_by_role("button", name="kill the dispatcher").click()
    page.get_by_text("The dispatcher was killed").wait_for()

    def killed() -> list[str]:
        orders = service.get("/api/orders?user_id=42&limit=200").body["orders"]
        return [order["notification"] for order in orders if order["order_id"].startswith("k")]

    wait_until(lambda: killed() == ["sent"] * 20, "twenty mails", limit=60)
    page.get_by_text("All is delivered. Nothing waits.").wait_for()
    assert "SIGKILL" in service.log
    assert tab.complaints == []


def test_an_outage_is_seen_and_ends(open_tab: Any, service: Service) -> None:
    tab = open_tab()
    page = tab.open("/")
    page.get_by_role("button", name="Mail server down").click()
    page.get_by_role("button", name="Place it").click()
    page.locator("svg.wide").get_by_text("its circuit breaker is open").wait_for()
    assert "send_email_notification is held up" in page.locator(".verdict").inner_text()
    (Path(str(service.settings["instance_path"])) / "mail-outage").unlink()
    page.get_by_text("All is delivered. Nothing waits.").wait_for(timeout=60_000)
    assert tab.complaints == []


def test_an_orders_mail_is_seen(open_tab: Any) -> None:
    """Place an order and see its mail, by clicks: its text, its HTML in a frame of no rights, and its bytes."""
    tab = open_tab()
    page = tab.open("/")
    page.get_by_label("Order", exact=True).fill("mailed")
    page.get_by_label("Email, if any").fill("ann@b.example")
    page.get_by_role("button", name="Place it").click()
    page.locator("tr[data-order=mailed]").get_by_text("mail").and_(page.locator(".state.ok")).wait_for()
    page.get_by_role("link", name="mailed").first.click()
    page.get_by_role("link", name="See the mail").click()
    page.locator("pre.wrapped").get_by_text("mailed").wait_for()
    page.frame_locator("iframe.mail").get_by_text("mailed").first.wait_for()
    page.get_by_text("Raw", exact=True).click()
    page.get_by_text("Auto-Submitted: auto-generated").wait_for()
    assert tab.complaints == []


def test_an_address_is_corrected_and_the_mail_sent_again(open_tab: Any, service: Service) -> None:
    service.post(order_id="corrected", user_id="7", total_price="1", email="wrong@b.example")
    tab = open_tab()
    page = tab.open("/orders/corrected")
    page.get_by_label("Where this order's mails go").fill("no address")
    page.evaluate("document.querySelectorAll('form').forEach((form) => { form.noValidate = true })")
    page.get_by_role("button", name="Set it").click()
    page.get_by_text("must be an e-mail address").wait_for()
    page.get_by_label("Where this order's mails go").fill("right@b.example")
    page.get_by_role("button", name="Set it").click()
    page.get_by_text("The address is kept").wait_for()
    page.get_by_role("button", name="Send it again").click()
    wait_until(lambda: _recipients(service, "corrected")[1:] == ["right@b.example"], "the second mail")
    page.reload()
    page.get_by_text("to right@b.example").wait_for()
    assert tab.complaints == [
        "Failed to load resource: the server responded with a status of 422 (UNPROCESSABLE ENTITY)"
    ]


def _recipients(service: Service, order_id: str) -> list[str]:
    timeline = service.get(f"/api/orders/{order_id}").body["timeline"]
    return [event["data"]["recipient"] for event in timeline if event["type"] == "NotificationSent"]


def test_a_list_is_downloaded(open_tab: Any) -> None:
    page = open_tab().open("/orders?sort=oldest")
    with page.expect_download() as download:
        page.get_by_role("link", name="CSV").click()
    assert download.value.suggested_filename == "orders.csv"
    assert Path(download.value.path()).read_text().splitlines()[1].startswith("1001,42,19.99")


def test_live_is_paused_and_goes_on(open_tab: Any, service: Service) -> None:
    page = open_tab().open("/")
    switch = page.get_by_role("button", name="live")
    page.keyboard.press("p")
    page.get_by_role("button", name="paused").wait_for()
    service.post(order_id="unseen", user_id="7", total_price="1")
    page.wait_for_timeout(2500)
    assert page.locator("tr[data-order=unseen]").count() == 0
    page.get_by_role("button", name="paused").click()
    page.locator("tr[data-order=unseen]").wait_for()
    assert switch.get_attribute("aria-pressed") == "true"


def test_a_page_asks_when_it_is_told_to_and_says_how_seldom(open_tab: Any) -> None:
    """As where a hundred pages look: the answers ask for a longer pause."""
    page = open_tab().open("/")
    asked: list[float] = []

    def answer(route: Any) -> None:
        asked.append(time.monotonic())
        found = route.fetch()
        route.fulfill(response=found, headers=found.headers | {"next-poll-seconds": "2.60"})

    page.route("**/flow/live*", answer)
    page.get_by_text("live, every 3 s: many are looking").wait_for()
    with page.expect_request("**/flow/live*"):
        pass
    page.get_by_text("live, every 3 s: many are looking").wait_for()
    page.unroute_all(behavior="ignoreErrors")  # of a poll that is under way when the page is closed
    assert asked[-1] - asked[-2] > 2.5


def test_nothing_moves_under_a_pointer(open_tab: Any, service: Service) -> None:
    page = open_tab().open("/")
    page.locator("[data-part=orders] tbody tr").first.hover()
    service.post(order_id="held", user_id="7", total_price="1")
    page.locator("[data-number='events:OrderCreated']").first.wait_for()
    page.wait_for_timeout(2500)
    assert page.locator("tr[data-order=held]").count() == 0
    page.mouse.move(5, 5)
    service.post(order_id="letgo", user_id="7", total_price="1")
    page.locator("tr[data-order=held]").wait_for()


def test_keys_lead_everywhere(open_tab: Any) -> None:
    page = open_tab().open("/")
    page.keyboard.press("?")
    page.get_by_role("dialog").wait_for()
    page.keyboard.press("Escape")
    page.keyboard.press("/")
    page.wait_for_url("**/orders#search")
    page.wait_for_selector("[data-search]:focus")
    page.keyboard.type("1001")
    page.keyboard.press("Enter")
    page.wait_for_url("**/orders?q=1001**")
    page.keyboard.press("Tab")
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("g")
    page.keyboard.press("1")
    page.wait_for_url("**/")


def test_a_session_that_ended_is_said(chromium: Any, tmp_path: Path) -> None:
    made = Service(tmp_path, mail_backend="memory", console_password="secret")
    made.start()
    tab = Tab(chromium, made)
    page = tab.open("/")
    page.get_by_label("Password").fill("secret")
    page.get_by_role("button", name="Sign in").click()
    page.get_by_role("button", name="live").wait_for()
    tab.context.clear_cookies()
    page.get_by_role("button", name="session ended").wait_for()
    assert axe.Axe().run(tab.open("/sign-in")).response["violations"] == []
    tab.context.close()
    made.close()


def test_two_tabs_show_the_same_and_end_together(chromium: Any, tmp_path: Path) -> None:
    """What one does the other shows, and its older forms go on to work; signed out in one is signed out in both."""
    made = Service(tmp_path, mail_backend="memory", console_password="secret")
    made.start()
    try:
        tab = Tab(chromium, made)
        first = tab.open("/")
        first.get_by_label("Password").fill("secret")
        first.get_by_role("button", name="Sign in").click()
        second = tab.context.new_page()
        second.goto(tab.address)
        for page, other, name in ((first, second, "one"), (second, first, "two")):
            page.get_by_label("Order", exact=True).fill(name)
            page.get_by_role("button", name="Place it").click()
            other.locator(f"tr[data-order={name}]").wait_for()
        second.get_by_role("button", name="Sign out").click()
        first.get_by_role("button", name="session ended").wait_for()
        first.get_by_role("button", name="Place it").click()
        first.get_by_role("heading", name="Not allowed").or_(first.get_by_role("heading", name="Sign in")).wait_for()
        assert made.get("/api/orders").body["orders"][0]["order_id"] == "two"
        tab.context.close()
    finally:
        made.close()


# A newcomer's tasks, by clicks alone


def test_a_mail_is_read_as_it_was_sent(open_tab: Any, service: Service) -> None:
    """Its HTML is shown in a frame in which nothing runs."""
    service.post(order_id="kept", user_id="7", total_price="1")
    wait_until(lambda: service.get("/api/orders/kept").body["notification"] == "sent", "its mail")
    tab = open_tab()
    page = tab.open("/")
    page.get_by_role("link", name="Mailbox").click()
    page.locator("tr", has_text="kept").get_by_role("link").first.click()
    framed = page.frame_locator("iframe.mail")
    framed.get_by_text("kept").first.wait_for()
    assert page.locator("pre.foreign").first.inner_text().strip()
    assert tab.complaints == []


def test_after_an_outage_all_of_one_reason_are_retried_and_the_last_is_seen_to_arrive(
    tmp_path: Path, chromium: Any
) -> None:
    """The mail server refuses three orders for good, until it is mended. Then: who did that, and why?"""
    with SmtpServer() as server:
        server.on("RCPT", lambda recipient: f"550 5.1.1 {recipient}: no such user")
        made = Service(tmp_path, **server.settings)
        made.start()
        try:
            for n in range(3):
                made.post(order_id=f"r{n}", user_id=f"{n}", total_price="1", email=f"user{n}@example.com")
            wait_until(
                lambda: all(made.get(f"/api/orders/r{n}").body["notification"] == "failed" for n in range(3)),
                "three refusals",
            )
            tab = Tab(chromium, made)
            page = tab.open("/")
            page.get_by_role("link", name="Deliveries").first.click()
            row = page.locator("[data-table=groups] tbody tr", has_text="no such user")
            assert row.locator("td").first.inner_text() == "3"
            row.get_by_role("link", name="Retry these 3").click()
            page.get_by_label("Why, if you like").fill("the server is mended")
            server.heal()
            page.get_by_role("button", name="Retry 3").click()
            page.get_by_text("3 done").wait_for()  # the page is live: nobody reloads it
            page.get_by_role("link", name="Acts").click()
            acted = page.locator("tbody tr").first.inner_text()
            assert "the server is mended" in acted
            assert "console:local" in acted
            arrived = [mail.recipients for mail in server.wait_for(3)]
            assert sorted(arrived) == [[f"user{n}@example.com"] for n in range(3)]
            assert tab.complaints == []
            tab.context.close()
        finally:
            made.close()


def test_a_receiver_is_paused_and_goes_on_by_clicks(open_tab: Any, service: Service) -> None:
    tab = open_tab()
    page = tab.open("/system")
    page.get_by_label("Why update_order_notification is paused").fill("a look")
    page.locator("tr", has_text="update_order_notification").get_by_role("button", name="Pause").click()
    page.get_by_text("update_order_notification is paused").wait_for()
    page.locator("tr", has_text="update_order_notification").get_by_role("button", name="Resume").click()
    page.get_by_text("update_order_notification goes on").wait_for()
    assert tab.complaints == []


def test_an_act_is_done_without_a_script(open_tab: Any, service: Service) -> None:
    page = open_tab(java_script_enabled=False).open("/deliveries?state=discarded")
    page.get_by_role("link", name="Retry all that match").click()
    page.get_by_role("button", name="Retry 1").click()
    page.get_by_text("1 delivery is due now.").wait_for()
    assert "/acts/" in page.url


def test_why_had_somebody_no_mail_and_it_is_put_right(chromium: Any, tmp_path: Path) -> None:
    """Found by the order's notification; the server's words say why. Another address, sent again; and who did that?"""
    with SmtpServer() as server:
        server.on("RCPT", "550 5.1.1 no such user", when="wrong@")
        made = Service(tmp_path, **server.settings)
        made.start()
        try:
            made.post(order_id="y1", user_id="7", total_price="5", email="wrong@example.com")
            wait_until(lambda: made.get("/api/orders/y1").body["notification"] == "failed", "the refusal")
            tab = Tab(chromium, made)
            page = tab.open("/")
            page.get_by_role("link", name="Orders", exact=True).last.click()
            page.get_by_label("Notification").select_option("failed")
            page.get_by_role("button", name="Search").click()
            assert "550 5.1.1 no such user" in page.locator("tbody tr", has_text="y1").inner_text()
            page.get_by_role("link", name="y1", exact=True).click()
            page.locator("td.words", has_text="550 5.1.1 no such user").first.wait_for()
            page.get_by_label("Where this order's mails go").fill("right@example.com")
            page.get_by_role("button", name="Set it").click()
            page.get_by_text("The address is kept").wait_for()
            page.get_by_label("Why, if you like").last.fill("a slip of the pen")
            page.get_by_role("button", name="Send it again").click()
            assert server.wait_for(1)[0].recipients == ["right@example.com"]
            page.get_by_role("link", name="Acts").click()
            row = page.locator("tbody tr", has_text="send again")
            row.get_by_text("1 done").wait_for()
            assert "console:local" in row.inner_text()
            assert "a slip of the pen" in row.inner_text()
            assert tab.complaints == []
            tab.context.close()
        finally:
            made.close()
