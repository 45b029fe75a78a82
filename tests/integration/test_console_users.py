"""The console's users: the record beside what the orders add up to, and the address."""

from decimal import Decimal

import pytest

from app.console import users
from config import Settings
from tests.support.console import Page, Visitor, untranslated
from tests.support.shop import Shop

EQUAL = "The record and the orders agree."
DIFFERS = "The record and the orders differ."


@pytest.fixture
def strict_shop(settings: Settings) -> Shop:
    """Nobody has an address but those who gave one."""
    return Shop(settings.model_copy(update={"user_email_domain": None}))


def test_users_are_listed_by_their_ids_and_paged(shop: Shop) -> None:
    for n in (3, 1, 2):
        shop.place_order(f"{n}", user_id=f"u{n}", email=f"u{n}@b.example")
    shop.dispatch_all()
    visitor = Visitor(shop)
    page = visitor.get("/users", limit=2)
    assert page.column(0) == ["u1", "u2"]
    second = visitor.get(next(link for link in page.links if "cursor=" in link and "language" not in link))
    assert second.column(0) == ["u3"]
    assert "/users" in second.links


@pytest.mark.parametrize(
    "query, expected",
    [({"q": "u1"}, ["u1"]), ({"q": "u"}, []), ({"q": "Same@B.example".lower()}, ["u1", "u2"]), ({"q": "a b"}, [])],
    ids=str,
)
def test_users_are_found(shop: Shop, query: dict[str, str], expected: list[str]) -> None:
    for n in (1, 2):
        shop.place_order(f"{n}", user_id=f"u{n}", email="same@b.example")
    shop.dispatch_all()
    page = Visitor(shop).get("/users", **query)
    assert page.column(0) == expected
    assert expected or "No such user" in page.text


def rows(page: Page) -> list[list[str]]:
    """The record's cells, and the sums'."""
    return [row for row in page.rows if row][:2]


def test_the_record_and_the_sums_agree_with_the_database(shop: Shop) -> None:
    """As SQL of the test's own counts and sums them."""
    for n in range(7):
        shop.place_order(f"{n}", price=f"{n}.1{n}")
        shop.clock.advance(1)
    shop.place_order("of another", user_id="43", price="1000")
    shop.dispatch_all()
    shop.place_order("not yet", price="5")
    page = Visitor(shop).get("/users/42")
    count, latest = shop.execute_all(
        "SELECT count(*), max(created_at) FROM orders WHERE user_id='42' AND status='confirmed'"
    )[0]
    prices = shop.execute_all("SELECT total_price FROM orders WHERE user_id = '42' AND status = 'confirmed'")
    spent = sum((Decimal(price) for (price,) in prices), Decimal(0))
    (last,) = shop.execute_all(f"SELECT order_id FROM orders WHERE created_at = '{latest}'")[0]
    assert (count, f"{spent:.2f}", last) == (7, "21.91", "6")
    assert [row[:3] for row in rows(page)] == [[f"{count}", f"{spent:.2f}", last]] * 2
    assert EQUAL in page.text
    assert "1 order is stored and not confirmed yet" in page.text


@pytest.mark.parametrize(
    "change",
    ["orders_count = orders_count + 1", "total_spent = '1.00'", "last_order_id = 'x'", "orders_count = 0"],
)
def test_a_record_that_differs_is_said_so(shop: Shop, change: str) -> None:
    shop.place_order()
    shop.dispatch_all()
    assert EQUAL in Visitor(shop).get("/users/42").text
    shop.execute(f"UPDATE users SET {change}")
    page = Visitor(shop).get("/users/42")
    assert DIFFERS in page.text
    assert EQUAL not in page.text


def test_large_sums_are_exact(shop: Shop) -> None:
    for n in range(3):
        shop.place_order(f"{n}", price="9999999999.99")
    shop.dispatch_all()
    page = Visitor(shop).get("/users/42")
    assert [row[1] for row in rows(page)] == ["29,999,999,999.97"] * 2
    assert EQUAL in page.text


def test_of_very_many_orders_the_newest_are_added_up_and_all_when_asked_for(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(users, "MOST_SUMMED", 3)
    for n in range(5):
        shop.place_order(f"{n}", price="1")
    shop.dispatch_all()
    page = Visitor(shop).get("/users/42")
    assert "The newest 3 orders were added up" in page.text
    assert [row[1] for row in rows(page)] == ["5.00", "3.00"]
    assert EQUAL in Visitor(shop).get(next(link for link in page.links if "all=" in link)).text


def test_a_user_without_a_record_or_without_orders_has_a_page(shop: Shop) -> None:
    shop.place_order()
    page = Visitor(shop).get("/users/42")
    assert "No order is confirmed yet." in page.text
    assert "none yet" in page.text
    shop.place_order("2", user_id="a", email="a@b.example")
    shop.execute("DELETE FROM deliveries")
    shop.execute("DELETE FROM events")
    shop.execute("DELETE FROM orders WHERE user_id = 'a'")
    assert "None was ever stored." in Visitor(shop).get("/users/a").text
    for path in ("/users/nobody", "/users/a b"):
        assert Visitor(shop).get(path).status == 404


def test_an_address_is_set_and_what_was_skipped_is_sent(strict_shop: Shop) -> None:
    """Counted first; what was skipped after the count is not in it."""
    shop = strict_shop
    shop.place_orders(3)
    shop.place_order("of another", user_id="43")
    shop.dispatch_all()
    visitor = Visitor(shop)
    page = visitor.get("/users/42")
    assert "3 orders have had no mail. Set an address" in page.text
    assert "/users/42/send-skipped" not in page.forms
    page = visitor.follow(visitor.submit("/users/42", "/users/42/email", email="Ann@B.example"))
    assert "The address is kept" in page.text
    assert "Ann@b.example" in page.text
    assert "3 mails were skipped, and there is an address now." in page.text

    form = page.forms["/users/42/send-skipped"]
    shop.execute("UPDATE users SET email = NULL")
    shop.place_order("late")
    shop.dispatch_all()
    shop.execute("UPDATE users SET email = 'ann@b.example' WHERE user_id = '42'")
    page = visitor.follow(visitor.post("/users/42/send-skipped", **form))
    assert "3 mails are due now." in page.text
    shop.dispatch_all()
    assert [shop.order(f"{n}").notification for n in range(3)] == ["sent"] * 3
    assert [shop.order(each).notification for each in ("late", "of another")] == ["skipped"] * 2
    assert shop.execute_all("SELECT acted_by, action FROM operator_acts ORDER BY act_id") == [
        ("console:local", "set-email"),
        ("console:local", "retry"),
    ]
    again = visitor.follow(visitor.post("/users/42/send-skipped", **form))
    assert "0 mails are due now." in again.text
    shop.close()


def test_very_many_skipped_mails_are_sent_by_and_by(strict_shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """The newest first: a page looks at so many, whatever a user has."""
    monkeypatch.setattr(users, "MOST_SKIPPED", 2)
    for n in range(3):
        strict_shop.place_order(f"{n}")
    strict_shop.dispatch_all()
    visitor = Visitor(strict_shop)
    page = visitor.follow(visitor.submit("/users/42", "/users/42/email", email="ann@b.example"))
    assert "2 mails were skipped, and there is an address now. At most 2 are sent at once." in page.text
    for left, told in (("1 mail was skipped", "2 mails are due now."), (None, "1 mail is due now.")):
        page = visitor.follow(visitor.submit("/users/42", "/users/42/send-skipped"))
        assert told in page.text
        strict_shop.dispatch_all()
        page = visitor.get("/users/42")
        assert left in page.text if left else "/users/42/send-skipped" not in page.forms
    assert [strict_shop.order(f"{n}").notification for n in range(3)] == ["sent"] * 3
    strict_shop.close()


@pytest.mark.parametrize(
    "language, words", [("en", "must be an e-mail address"), ("zh-CN", "必须是最多 254 个字符的电子邮件地址")]
)
def test_a_wrong_address_is_said_beside_its_field(shop: Shop, language: str, words: str) -> None:
    shop.place_order()
    visitor = Visitor(shop)
    visitor.language = language
    page = visitor.submit("/users/42", "/users/42/email", email="nobody@")
    assert (page.status, page.forms["/users/42/email"]["email"]) == (422, "nobody@")
    assert words in page.text
    assert language == "en" or untranslated(page.text) == []
    assert visitor.post("/users/nobody/email", token=page.forms["/users/42/email"]["token"], email="x").status == 404
    assert shop.count("operator_acts") == 0
