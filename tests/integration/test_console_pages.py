"""The console's pages: what each shows, in both languages, and what it says when something is wrong."""

import subprocess
import sys
from pathlib import Path

import pytest
from babel.messages.catalog import Catalog
from babel.messages.extract import extract_from_dir
from babel.messages.mofile import read_mo
from babel.messages.pofile import read_po

from app.console.extension import ROUTES, later
from app.console.pages import seen
from app.errors import DatabaseUnavailable, Refused
from app.events import OrderCreated
from config import CHECKOUT
from tests.support.console import Visitor, untranslated
from tests.support.shop import Shop

CONSOLE = CHECKOUT / "app" / "console"
OPERATORS = (
    *("/deliveries", "/deliveries?state=dead", "/deliveries/act?action=retry", "/deliveries/act?action=discard"),
    *("/acts", "/acts/1", "/mailbox", "/system", "/system/doctor"),
)
CATALOGUE = CONSOLE / "translations" / "zh" / "LC_MESSAGES" / "messages"


@pytest.mark.parametrize("function", [function for _, _, function in ROUTES])
def test_every_route_has_its_view(function: str) -> None:
    module = pytest.importorskip(f"app.console.{function.partition('.')[0]}")
    assert callable(getattr(module, function.partition(".")[2]))
    assert later(function).__name__ == function.partition(".")[2]


# Orders


def test_orders_are_listed_newest_first_and_paged(shop: Shop) -> None:
    shop.place_orders(5)
    visitor = Visitor(shop)
    page = visitor.get("/orders", limit=2)
    assert page.column(0) == ["4", "3"]
    following = next(link for link in page.links if "cursor=" in link)
    second = visitor.get(following)
    assert second.column(0) == ["2", "1"]
    last = visitor.get(next(link for link in second.links if "cursor=" in link))
    assert last.column(0) == ["0"]
    assert not [link for link in last.links if "cursor=" in link]


@pytest.mark.parametrize(
    "query, expected",
    [
        ({"q": "1"}, ["1"]),
        ({"q": "bob"}, ["3", "2"]),
        ({"q": "2"}, ["2", "1"]),  # an order's id, and the id of the user who placed 1
        ({"q": "bob@B.EXAMPLE"}, ["3"]),
        ({"q": "bob", "notification": "sent"}, []),
        ({"status": "created"}, ["3", "2", "1"]),
        ({"status": "", "q": ""}, ["3", "2", "1"]),
        ({"q": "%"}, []),
    ],
    ids=str,
)
def test_orders_are_found(shop: Shop, query: dict[str, str], expected: list[str]) -> None:
    shop.place_order("1", user_id="2")
    shop.place_order("2", user_id="bob")
    shop.place_order("3", user_id="bob", email="bob@b.example")
    page = Visitor(shop).get("/orders", **query)
    assert page.status == 200
    assert page.column(0) == expected
    assert expected or "No such order" in page.text


@pytest.mark.parametrize(
    "query", [{"status": "no"}, {"limit": "0"}, {"cursor": "x"}, {"color": "red"}, {"q": "x" * 300}]
)
def test_a_wrong_filter_says_what_is_wrong(shop: Shop, query: dict[str, str]) -> None:
    page = Visitor(shop).get("/orders", **query)
    assert page.status == 422
    assert page.heading == "Something is not as it must be"
    assert next(iter(query)) in page.text


def test_an_orders_story_is_told(shop: Shop) -> None:
    def refuse(sender: str, event: OrderCreated) -> None:
        raise Refused("550 no <i>such</i> user\r\nat all")

    shop.only(refuse)
    shop.place_order()
    shop.dispatch()
    page = Visitor(shop).get("/orders/1001")
    assert "550 no <i>such</i> user␍␊at all" in page.text
    assert "<i>" not in page.html
    assert "refused" in page.text
    assert "OrderCreated" in page.text
    assert page.html.count("<rect") == 2  # how long it waited, and the attempt


def test_a_notification_is_sent_again(shop: Shop) -> None:
    shop.place_order()
    shop.dispatch_all()
    visitor = Visitor(shop)
    page = visitor.follow(visitor.submit("/orders/1001", "/orders/1001/resend", reason="asked by phone"))
    assert "a new mail follows" in page.text
    shop.dispatch_all()
    assert len(shop.mailer.outbox) == 2
    assert shop.execute_scalar("SELECT acted_by || ' ' || reason FROM operator_acts") == "console:local asked by phone"


@pytest.mark.parametrize("path", ["/orders/7", "/orders/a%20b", "/nothing", "/orders/" + "x" * 65])
def test_what_is_not_there_is_said_with_a_way_on(shop: Shop, path: str) -> None:
    page = Visitor(shop).get(path)
    assert (page.status, page.heading) == (404, "Nothing here")
    assert "/orders" in page.links


@pytest.mark.parametrize("path", ["/api/nothing", "/operator/nothing", "/healthz/x", "/api/orders/7"])
def test_programs_get_problems_and_no_pages(shop: Shop, path: str) -> None:
    response = shop.client.get(path)
    assert response.status_code == 404
    if not path.startswith("/healthz/"):
        assert response.mimetype == "application/problem+json"


def test_an_outage_of_the_database_is_said_as_a_page(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise DatabaseUnavailable

    visitor = Visitor(shop)
    visitor.get("/")
    monkeypatch.setattr(shop.database, "read", fail)
    page = visitor.get("/orders")
    assert (page.status, page.heading) == (503, "The database can't be reached")


# Languages


@pytest.mark.parametrize(
    "accepted, expected",
    [
        ("zh-CN,zh;q=0.9,en;q=0.8", "zh-CN"),
        ("zh-TW", "zh-CN"),
        ("en-GB", "en-GB"),
        ("de-DE,en;q=0.5", "en"),
        ("de", "en"),
        ("xx-\xff, en-XX", "en"),
        ("", "en"),
    ],
)
def test_the_browser_chooses_the_language(shop: Shop, accepted: str, expected: str) -> None:
    page = Visitor(shop).get("/", {"Accept-Language": accepted})
    assert f'<html lang="{expected}">' in page.html


def test_the_reader_chooses_the_language(shop: Shop) -> None:
    visitor = Visitor(shop)
    page = visitor.get("/orders", q="1")
    switch = next(link for link in page.links if link.startswith("/language/"))
    back = visitor.get(switch)
    assert back.response.headers["Location"] == "/orders?q=1"
    assert visitor.get("/orders").heading == "订单"
    visitor.get("/language/en")
    assert visitor.get("/orders").heading == "Orders"
    assert visitor.get("/language/xx", next="//evil.example").response.headers["Location"] == "/"


@pytest.mark.parametrize(
    "path", ["/", "/?explain=1", "/orders", "/orders?q=zz", "/orders/1001", "/nothing", *OPERATORS]
)
def test_a_chinese_page_is_chinese(shop: Shop, path: str) -> None:
    shop.place_order()
    shop.dispatch_all()
    shop.bus.pause("send_email_notification", "why", by="ann")
    visitor = Visitor(shop)
    visitor.language = "zh-CN"
    assert untranslated(visitor.get(path).own_words) == []


def test_amounts_and_times_are_as_the_readers_locale_has_them(shop: Shop) -> None:
    shop.place_order(price="1234567.80")
    visitor = Visitor(shop)
    page = visitor.get("/orders", {"Accept-Language": "en-GB"})
    assert "1,234,567.80" in page.text
    assert "23 Nov 2026, 08:00:00 UTC" in page.text
    assert 'title="2026-11-23T08:00:00.000000Z"' in page.html
    assert "2026年11月23日" in visitor.get("/orders", {"Accept-Language": "zh-CN"}).text


def words() -> Catalog:
    """All that the console says, and what the service says of itself."""
    found = Catalog()
    methods = [("**.py", "python"), ("**/templates/**.html", "jinja2")]
    keywords = {"_": None, "gettext": None, "N_": None, "Translatable": None, "ngettext": (1, 2)}
    for _, _, message, _, _ in extract_from_dir(CONSOLE.parent, methods, keywords=keywords):
        found.add(message)
    return found


def test_every_word_has_its_translation_and_none_is_left_over() -> None:
    """make words finds new ones."""
    with CATALOGUE.with_suffix(".po").open("rb") as file:
        translated = read_po(file, locale="zh")
    said = {_key(message.id) for message in words() if message.id}
    assert {_key(message.id) for message in translated if message.id} == said
    assert [message.id for message in translated if message.id and (not message.string or message.fuzzy)] == []
    assert [message.id for message in translated if list(message.check(translated))] == []


def test_the_compiled_words_are_those_of_the_text() -> None:
    with CATALOGUE.with_suffix(".po").open("rb") as text, CATALOGUE.with_suffix(".mo").open("rb") as compiled:
        catalogues = read_po(text, locale="zh"), read_mo(compiled)
    written, read = ({_key(m.id): _key(m.string) for m in each if m.id} for each in catalogues)
    assert written == read


def _key(words: str | list[str] | tuple[str, ...]) -> tuple[str, ...]:
    return (words,) if isinstance(words, str) else tuple(words)


# Text of others


@pytest.mark.parametrize(
    "text, expected",
    [
        ("plain ä 订单", "plain ä 订单"),
        ("a\r\nb\x1b[31m\x00\x7f", "a␍␊b␛[31m␀␡"),
        ("\u202eright\u200b\u2028", "⟨U+202E⟩right⟨U+200B⟩⟨U+2028⟩"),
    ],
)
def test_control_characters_are_made_visible(text: str, expected: str) -> None:
    assert seen(text) == expected


def test_nothing_is_inline() -> None:
    for template in CONSOLE.rglob("*.html"):
        html = template.read_text()
        assert " style=" not in html
        assert " on" not in [part[:3] for part in html.split("<") if "=" in part[:3]]
        assert "<style" not in html
        assert "https://" not in html


def test_a_start_loads_nothing_of_the_pages(tmp_path: Path) -> None:
    """A dispatcher, and a service whose console nobody opens, load neither Babel nor a page."""
    code = (
        "import sys, app, config; app.create_app(config.Settings.of(instance_path=sys.argv[1]));"
        "heavy = {'babel', 'flask_babel', 'pytz', 'app.console.pages', 'app.console.flow'} & set(sys.modules);"
        "sys.exit(', '.join(heavy) or 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, f"{tmp_path}"], cwd=CHECKOUT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
