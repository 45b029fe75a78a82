"""The console's orders: sorted, looked for within bounds, downloaded; and what is done on an order's page."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest

from app.console import downloads, orders
from app.console.downloads import guarded
from app.console.mails import read_mail
from app.errors import DatabaseUnavailable, Refused
from config import Settings
from tests.support.console import Page, Visitor, untranslated
from tests.support.shop import Shop


def refuse(_: object) -> None:
    raise Refused("550 no such user")


def placed(shop: Shop, path: str, **query: Any) -> list[str]:
    """The orders of all pages, as the pages follow each other."""
    visitor = Visitor(shop)
    page = visitor.get(path, **query)
    found = page.column(0)
    while following := [link for link in page.links if "cursor=" in link and "language" not in link]:
        page = visitor.get(following[0])
        assert page.status == 200
        found += page.column(0)
    return found


# Sorting


@pytest.mark.parametrize(
    "sort, expected",
    [
        ("newest", ["a", "c", "b", "d"]),
        ("oldest", ["d", "b", "c", "a"]),
        ("order", ["a", "b", "c", "d"]),
        ("user", ["b", "d", "a", "c"]),
    ],
)
@pytest.mark.parametrize("limit", [1, 3, 50])
def test_orders_are_sorted_and_paged_in_that_order(shop: Shop, sort: str, expected: list[str], limit: int) -> None:
    for order_id, user_id in (("d", "1"), ("b", "0"), ("c", "3"), ("a", "2")):
        shop.place_order(order_id, user_id=user_id)
    assert placed(shop, "/orders", sort=sort, limit=limit) == expected


def test_a_heading_sorts_and_keeps_the_filters(shop: Shop) -> None:
    shop.place_order()
    links = Visitor(shop).get("/orders", status="created").links
    for sort in ("order", "user", "oldest"):
        assert f"/orders?sort={sort}&status=created" in links
    assert not [link for link in Visitor(shop).get("/orders", q="42").links if "sort=user" in link]


@pytest.mark.parametrize(
    "sort, cursor", [("newest", "a"), ("order", "a/b"), ("user", "a"), ("user", "a/b"), ("order", "%")]
)
def test_a_cursor_of_another_list_is_refused(shop: Shop, sort: str, cursor: str) -> None:
    page = Visitor(shop).get("/orders", sort=sort, cursor=cursor)
    assert (page.status, "cursor is not a cursor of this list" in page.text) == (422, True)


# Bounds


def test_what_no_index_has_is_looked_for_within_bounds(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page says so, and the next one looks further: none is missed."""
    monkeypatch.setattr(orders, "MOST_LOOKED_AT", 4)
    shop.place_orders(10)
    shop.execute("UPDATE orders SET notification = 'sent' WHERE order_id NOT IN ('1', '7')")
    page = Visitor(shop).get("/orders", notification="pending")
    assert page.column(0) == ["7"]
    assert "Only the next 4 were looked at" in page.text
    second = Visitor(shop).get(next(link for link in page.links if "cursor=" in link and "language" not in link))
    assert (second.column(0), "None of these" in second.text) == ([], True)
    for sort, expected in (("newest", ["7", "1"]), ("oldest", ["1", "7"]), ("order", ["1", "7"]), ("user", ["1", "7"])):
        assert placed(shop, "/orders", notification="pending", sort=sort) == expected
        assert placed(shop, "/orders", notification="pending", sort=sort, limit=1) == expected


def test_failed_and_skipped_ones_are_found_by_their_index(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many others there are since."""
    monkeypatch.setattr(orders, "MOST_LOOKED_AT", 2)
    for n in range(9):
        shop.place_order(f"{n}", user_id="1" if n < 2 else "2")
    shop.execute("UPDATE orders SET notification = 'failed' WHERE order_id IN ('0', '3')")
    shop.execute("UPDATE orders SET notification = 'skipped' WHERE order_id = '1'")
    page = Visitor(shop).get("/orders", notification="failed")
    assert (page.column(0), "Only the next" in page.text) == (["3", "0"], False)
    assert placed(shop, "/orders", notification="skipped") == ["1"]
    assert placed(shop, "/orders", notification="failed", q="1") == ["0"]
    assert placed(shop, "/orders", notification="failed", status="confirmed") == []


# Downloads


def body(page: Page) -> str:
    assert page.status == 200, page.text
    return page.response.get_data(as_text=True)


@pytest.mark.parametrize(
    "query", [{}, {"q": "u1"}, {"notification": "failed"}, {"status": "created", "sort": "order"}], ids=str
)
def test_a_download_has_what_the_database_has(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, query: dict[str, str]
) -> None:
    """As SQL of the test's own counts and sums it; page by page, however many pages that are."""
    monkeypatch.setattr(orders, "ROWS_AT_ONCE", 3)
    monkeypatch.setattr(orders, "MOST_LOOKED_AT", 5)
    for n in range(20):
        shop.place_order(f"{n}", user_id=f"u{n % 3}", price=f"{n}.01", email="a@b.example" if n % 2 else None)
    shop.execute("UPDATE orders SET notification = 'failed' WHERE order_id IN ('2', '5', '11', '17')")
    shop.execute("UPDATE orders SET status = 'confirmed' WHERE order_id < '15'")
    where = {"q": "user_id = 'u1'", "notification": "notification = 'failed'", "status": "status = 'created'"}
    condition = next((words for name, words in where.items() if name in query), "TRUE")
    ids = shop.execute_all(f"SELECT order_id, total_price FROM orders WHERE {condition} ORDER BY event_id DESC")
    expected = [(row[0], f"{row[1]}") for row in (sorted(ids) if "sort" in query else ids)]
    rows = list(csv.DictReader(io.StringIO(body(Visitor(shop).get("/orders.csv", **query)))))
    assert [(row["order_id"], row["total_price"]) for row in rows] == expected
    found = json.loads(body(Visitor(shop).get("/orders.json", **query)))
    assert [(row["order_id"], row["total_price"]) for row in found] == expected
    assert {tuple(row) for row in found} == {orders.COLUMNS}


def test_an_empty_download_is_one(shop: Shop) -> None:
    assert body(Visitor(shop).get("/orders.csv")).strip() == ",".join(orders.COLUMNS)
    assert json.loads(body(Visitor(shop).get("/orders.json"))) == []
    page = Visitor(shop).get("/orders.csv")
    assert page.response.headers["Content-Disposition"] == 'attachment; filename="orders.csv"'


@pytest.mark.parametrize(
    "value, expected",
    [
        ("=1+1", "'=1+1"),
        ("+1", "'+1"),
        ("-1", "'-1"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("\t=1", "'\t=1"),
        ("\r=1", "'\r=1"),
        ("a=1", "a=1"),
        ("19.99", "19.99"),
        (None, ""),
    ],
)
def test_a_cell_is_no_formula(value: str | None, expected: str) -> None:
    assert guarded(value) == expected


def test_a_formula_that_somebody_ordered_is_guarded_in_the_file(shop: Shop) -> None:
    shop.place_order("-2", user_id="-cmd", email="=cmd@b.example")
    rows = list(csv.DictReader(io.StringIO(body(Visitor(shop).get("/orders.csv")))))
    assert [rows[0][name] for name in ("order_id", "user_id", "email")] == ["'-2", "'-cmd", "'=cmd@b.example"]
    assert json.loads(body(Visitor(shop).get("/orders.json")))[0]["email"] == "=cmd@b.example"


def test_a_download_holds_no_transaction_open_between_its_pages(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow reader keeps neither a connection nor a snapshot: what came meanwhile is in the later pages."""
    monkeypatch.setattr(orders, "ROWS_AT_ONCE", 2)
    shop.place_orders(5)
    pool: Any = shop.database.engine.pool
    before = pool.checkedout()
    answer = Visitor(shop).client.get("/orders.csv?sort=oldest", environ_overrides={"REMOTE_ADDR": "127.0.0.1"})
    parts = answer.iter_encoded()
    next(parts)
    assert pool.checkedout() == before
    shop.place_order("late")
    assert b"late" in b"".join(parts)
    answer.close()


def test_downloads_leave_threads_for_others(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    shop.place_order()
    client = Visitor(shop).client
    most = shop.settings.web_threads // downloads.THREADS_EACH
    environ = {"REMOTE_ADDR": "127.0.0.1"}
    running = [client.get("/orders.csv", environ_overrides=environ) for _ in range(most)]
    refused = Visitor(shop).get("/orders.json")
    assert (refused.status, "Other downloads are under way" in refused.text) == (429, True)
    for answer in running:
        answer.close()  # read or not
    assert Visitor(shop).get("/orders.json").status == 200

    def fail() -> None:
        raise DatabaseUnavailable

    with monkeypatch.context() as patched:
        patched.setattr(shop.database, "read", fail)
        for _ in range(most + 1):
            assert Visitor(shop).get("/orders.csv").status == 503
    assert Visitor(shop).get("/orders.csv").status == 200


def test_a_download_with_a_wrong_filter_is_refused(shop: Shop) -> None:
    assert Visitor(shop).get("/orders.csv", status="no").status == 422


# Addresses


def test_an_orders_address_is_put_right_and_its_mail_tried_again(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """By clicks: why had it no mail; the address; again."""
    monkeypatch.setattr(shop.mailer, "send", refuse)
    shop.place_order(email="wrong@b.example")
    shop.dispatch_all()
    visitor = Visitor(shop)
    assert "550 no such user" in visitor.get("/orders/1001").text
    page = visitor.follow(visitor.submit("/orders/1001", "/orders/1001/email", email="right@B.example"))
    assert "The address is kept" in page.text
    assert shop.order().email == "right@b.example"
    again = visitor.follow(visitor.submit("/orders/1001", "/orders/1001/email", email="right@b.example"))
    assert "This was the address before." in again.text
    assert shop.execute_all("SELECT acted_by, action FROM operator_acts") == [("console:local", "set-email")]

    delivery = shop.delivery("send_email_notification").delivery_id
    action = f"/orders/1001/deliveries/{delivery}/retry"
    page = visitor.follow(visitor.submit("/orders/1001", action, reason="she called"))
    assert "The delivery is due now." in page.text
    assert shop.delivery("send_email_notification").state == "ready"
    assert shop.execute_scalar("SELECT reason FROM operator_acts WHERE action = 'retry'") == "she called"


@pytest.mark.parametrize(
    "language, words", [("en", "must be an e-mail address"), ("zh-CN", "电子邮件地址：ann@example.com")]
)
def test_a_wrong_address_is_said_beside_its_field_in_the_readers_language(
    shop: Shop, language: str, words: str
) -> None:
    shop.place_order(email="old@b.example")
    visitor = Visitor(shop)
    visitor.language = language
    page = visitor.submit("/orders/1001", "/orders/1001/email", email="nobody")
    assert (page.status, page.forms["/orders/1001/email"]["email"]) == (422, "nobody")
    assert words in page.text
    assert 'aria-describedby="wrong-email"' in page.html
    missing = visitor.submit("/orders/1001", "/orders/1001/email", email=" ")
    assert ("is needed" if language == "en" else "必填") in missing.text
    assert shop.order().email == "old@b.example"
    if language != "en":
        assert untranslated(page.text) == []


# One delivery


def deliver_path(shop: Shop, action: str, order_id: str = "1001") -> str:
    return f"/orders/{order_id}/deliveries/{shop.delivery('send_email_notification').delivery_id}/{action}"


def test_a_delivery_is_discarded_with_a_reason_and_not_without(shop: Shop) -> None:
    shop.place_order()
    visitor = Visitor(shop)
    token = visitor.get("/orders/1001").forms["/orders/1001/email"]["token"]
    path = deliver_path(shop, "discard")
    page = visitor.post(path, token=token, reason="  ")
    assert (page.status, "is needed" in page.text) == (422, True)
    assert shop.delivery("send_email_notification").state == "ready"
    page = visitor.follow(visitor.post(path, token=token, reason="a test order"))
    assert "The delivery is given up for good." in page.text
    assert "a test order" in page.text
    assert shop.delivery("send_email_notification").state == "discarded"
    again = visitor.follow(visitor.post(path, token=token, reason="again"))
    assert "Nothing was changed" in again.text
    page = visitor.follow(visitor.submit("/orders/1001", deliver_path(shop, "retry")))
    assert shop.delivery("send_email_notification").state == "ready"


def test_a_delivery_that_is_done_or_another_orders_is_left_alone(shop: Shop) -> None:
    shop.place_order()
    shop.dispatch_all()
    shop.place_order("other")
    visitor = Visitor(shop)
    token = visitor.get("/orders/1001").forms["/orders/1001/email"]["token"]
    done = shop.deliveries("send_email_notification")[0].delivery_id
    for action in ("retry", "discard"):
        page = visitor.follow(visitor.post(f"/orders/1001/deliveries/{done}/{action}", token=token, reason="x"))
        assert "Nothing was changed" in page.text
        for path in (f"/orders/other/deliveries/{done}/{action}", f"/orders/1001/deliveries/{2**63}/{action}"):
            assert visitor.post(path, token=token, reason="x").status == 404
    assert shop.count("operator_acts") == 0


def test_who_did_that_stands_beside_a_delivery(shop: Shop) -> None:
    """On the order's page and in the list, with a link to the act; an address tells who has set it."""
    shop.place_order()
    visitor = Visitor(shop)
    token = visitor.get("/orders/1001").forms["/orders/1001/email"]["token"]
    visitor.follow(visitor.post(deliver_path(shop, "discard"), token=token, reason="a test order"))
    visitor.follow(visitor.submit("/orders/1001", "/orders/1001/email", email="ann@b.example"))
    for path in ("/orders/1001", "/deliveries?state=discarded&view=list"):
        page = visitor.get(path)
        assert "discard by console:local, act 1 : a test order" in page.text
        assert "/acts/1" in page.links
    assert "from set-email · by console:local" in visitor.get("/orders/1001").text


# The mail


def sent_event(shop: Shop) -> str:
    return str(shop.execute_scalar("SELECT event_id FROM events WHERE type = 'NotificationSent'"))


@pytest.mark.parametrize("backend", ["memory", "file"])
def test_the_mail_is_shown_as_it_was_sent(settings: Settings, tmp_path: Path, backend: str) -> None:
    shop = Shop(settings.model_copy(update={"mail_backend": backend, "mail_locale": "en"}))
    shop.place_order("before")
    shop.place_order(email="ann@b.example")
    shop.dispatch_all()
    visitor = Visitor(shop)
    link = next(link for link in visitor.get("/orders/1001").links if "/mail/" in link)
    page = visitor.get(link)
    assert "ann@b.example" in page.text
    assert "Hello, your order was created" in page.text  # the text
    assert "Content-Type: multipart/alternative" in page.text  # the raw mail
    assert "1001" in page.text
    assert f'<iframe class="mail" sandbox title="The mail as HTML" src="{link}/html">' in page.html
    policy = page.response.headers["Content-Security-Policy"]
    assert "frame-src 'self'" in policy
    assert "unsafe" not in policy
    framed = visitor.get(f"{link}/html")
    assert framed.html.startswith("<!doctype html>")
    assert "1001" in framed.text
    own = framed.response.headers["Content-Security-Policy"]
    assert {"sandbox", "default-src 'none'", "frame-ancestors 'self'"} <= set(own.split("; "))
    assert "script" not in own
    shop.close()


def test_a_mail_is_found_among_those_of_other_times(settings: Settings) -> None:
    """In the folder, also once a mail program has moved it; and not, once it is gone."""
    shop = Shop(settings.model_copy(update={"mail_backend": "file"}))
    shop.place_order()
    shop.dispatch_all()
    folder = shop.settings.instance_path / "mail"
    (file,) = (folder / "new").iterdir()
    for name in ("1.old.host", "not a mail", "99999999999.new.host"):
        (folder / "new" / name).write_text("Message-ID: <other@b.example>\n\n" + file.read_text())
    path = f"/orders/1001/mail/{sent_event(shop)}"
    moved = file.rename(folder / "cur" / f"{file.name}:2,S")
    assert Visitor(shop).get(f"{path}/html").status == 200
    moved.unlink()
    page = Visitor(shop).get(path)
    assert "It is not in" in page.text
    assert "any more" in page.text
    assert Visitor(shop).get(f"{path}/html").status == 404
    shop.close()


def test_where_no_mail_is_kept_the_page_says_what_is_known(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    shop.place_order(email="ann@b.example")
    shop.dispatch_all()
    path = f"/orders/1001/mail/{sent_event(shop)}"
    shop.mailer.outbox.clear()
    assert "The memory backend keeps the latest mails of its own process" in Visitor(shop).get(path).text
    smtp = shop.settings.model_copy(update={"mail_backend": "smtp", "mail_server": "mail.example", "mail_port": 587})
    monkeypatch.setitem(shop.app.extensions, "settings", smtp)
    page = Visitor(shop).get(path)
    assert "It was handed to mail.example:587, which accepted it." in page.text
    assert "ann@b.example" in page.text
    assert shop.execute_scalar("SELECT event_id FROM orders") in page.text  # in the Message-ID


@pytest.mark.parametrize(
    "path", ["/orders/1001/mail/{created}", "/orders/1001/mail/x", "/orders/2/mail/{sent}", "/orders/a b/mail/{sent}"]
)
@pytest.mark.parametrize("end", ["", "/html"])
def test_what_is_no_mail_of_the_order_is_not_found(shop: Shop, path: str, end: str) -> None:
    created = shop.place_order()
    shop.dispatch_all()
    assert Visitor(shop).get(path.format(created=created, sent=sent_event(shop)) + end).status == 404


def test_a_damaged_mail_is_shown_as_far_as_it_can_be_read() -> None:
    mail = read_mail(b"Subject: =?utf-8?b?\xff\xfe?=\nContent-Type: text/plain; charset=nonsense\n\n\xff\x1b[31m")
    assert mail.html is None
    assert mail.raw.endswith("\ufffd\x1b[31m")
