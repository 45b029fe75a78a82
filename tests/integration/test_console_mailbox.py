"""The mailbox: what the file and the memory backend keep; foreign mails harm nobody."""

from email.message import EmailMessage
from pathlib import Path

import pytest

from app.console import mailbox
from config import Settings
from tests.support.console import Visitor
from tests.support.shop import Shop


@pytest.fixture
def database_url(sqlite_url: str) -> str:
    return sqlite_url


@pytest.fixture
def folder(tmp_path: Path, sqlite_url: str) -> Shop:
    """A service that writes mails into a folder."""
    return Shop(Settings.of(instance_path=tmp_path / "instance", mail_backend="file", log_level="ERROR"))


def put(shop: Shop, content: bytes, name: str = "2000000000.M1R1.host", under: str = "new") -> str:
    """A mail of others in the folder."""
    place = shop.settings.instance_path / "mail" / under
    place.mkdir(parents=True, exist_ok=True)
    (place / name).write_bytes(content)
    return name


def names(visitor: Visitor) -> list[str]:
    return [link for link in visitor.get("/mailbox").links if link.startswith("/mailbox/")]


def test_mails_are_listed_newest_first_with_their_orders(folder: Shop) -> None:
    for n in range(3):
        folder.place_order(f"{n}", user_id=f"u{n}")
        folder.dispatch_all()
    page = Visitor(folder).get("/mailbox")
    assert [row[1:3] for row in page.rows if row] == [[f"u{n}@users.example", f"{n}"] for n in (2, 1, 0)]
    files = len(list((folder.settings.instance_path / "mail" / "new").iterdir()))
    sent = folder.execute_scalar("SELECT count(*) FROM events WHERE type = 'NotificationSent'")
    assert len([row for row in page.rows if row]) == files == sent == 3
    assert "/orders/2" in page.links


def test_the_memory_backends_mails_are_shown(shop: Shop) -> None:
    shop.place_order(email="ann@example.com")
    shop.dispatch_all()
    visitor = Visitor(shop)
    (link,) = names(visitor)
    page = visitor.get(link)
    assert "ann@example.com" in page.text
    assert shop.mailer.outbox[0].subject == page.heading


def test_a_mail_is_shown_as_text_as_html_and_raw(folder: Shop) -> None:
    folder.place_order("1001")
    folder.dispatch_all()
    visitor = Visitor(folder)
    (link,) = names(visitor)
    page = visitor.get(link)
    for words in ("As its reader sees it", "As text", "1001", "Message-ID", "Auto-Submitted"):
        assert words in page.text
    assert f'<iframe class="mail" sandbox src="{link}/html"' in page.html
    assert "frame-src 'self'" in page.response.headers["Content-Security-Policy"]
    html = visitor.get(f"{link}/html")
    assert "<table" in html.html


def test_a_mails_html_can_do_nothing(folder: Shop) -> None:
    """It is data of others: it runs no script, loads nothing, and leads nowhere, wherever it is opened."""
    folder.place_order()
    folder.dispatch_all()
    visitor = Visitor(folder)
    (link,) = names(visitor)
    policy = visitor.get(f"{link}/html").response.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'")
    assert policy.endswith("; sandbox")
    assert "script" not in policy
    assert "allow-" not in policy
    assert "frame-ancestors 'self'" in policy


def test_foreign_text_is_shown_as_text(folder: Shop) -> None:
    headers = "Subject: <b>a\x1b[31m</b>\nTo: x\u202ey@example.com\nMessage-ID: <junk>\nDate: no date"
    name = put(folder, f"{headers}\n\n<i>hi</i>\x07\nline\n".encode())
    visitor = Visitor(folder)
    for path in ("/mailbox", f"/mailbox/{name}"):
        page = visitor.get(path)
        assert page.status == 200
        assert "␛" in page.text
        assert "<b>a" not in page.html
        assert "<i>" not in page.html
        assert "\u202e" not in page.html
    assert "hi</i>␇\nline" in visitor.get(f"/mailbox/{name}").html.replace("&lt;", "<").replace("&gt;", ">")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe\x00",
        b"Subject: =?nonsense?q?x?=\nContent-Type: text/plain; charset=klingon\n\n\xff",
        b'To: "\n\n',
        b"Content-Type: multipart/alternative; boundary=x\n\n--x\n",
        b"Date: Thu, 99 Foo 99999 00:00:00 +9999\nFrom: <\nTo: @,,;:\n\nx",
    ],
    ids=repr,
)
def test_a_damaged_mail_is_shown_as_far_as_it_goes(folder: Shop, content: bytes) -> None:
    name = put(folder, content)
    visitor = Visitor(folder)
    assert visitor.get("/mailbox").status == 200
    assert visitor.get(f"/mailbox/{name}").status == 200
    assert visitor.get(f"/mailbox/{name}/html").status in (200, 404)


def test_a_mail_that_a_program_has_read_is_found(folder: Shop) -> None:
    put(folder, b"Subject: read\n\nx", "2000000000.M1R1.host:2,S", under="cur")
    visitor = Visitor(folder)
    (link,) = names(visitor)
    assert visitor.get(link).heading == "read"


def test_a_very_large_mail_is_cut(folder: Shop) -> None:
    mail = EmailMessage()
    mail["Subject"] = "large"
    mail.set_content("x\n" * mailbox.MOST_BYTES)
    page = Visitor(folder).get(f"/mailbox/{put(folder, mail.as_bytes())}")
    assert "its beginning is shown" in page.text
    assert len(page.html) < 4 * mailbox.MOST_BYTES


@pytest.mark.parametrize(
    "name",
    ["..%2Forders.db", "%2e%2e", "..", ".", "x%00", "nothing", "a" * 300, "..%2F..%2Fetc%2Fpasswd", "%2Fetc%2Fpasswd"],
)
def test_nothing_outside_of_the_folder_is_shown(folder: Shop, name: str) -> None:
    put(folder, b"x")
    visitor = Visitor(folder)
    assert visitor.get(f"/mailbox/{name}").status in (301, 308, 404)
    assert visitor.get(f"/mailbox/{name}/html").status in (301, 308, 404)


def test_the_mailbox_is_paged_and_bounded(folder: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mailbox, "PAGE_SIZE", 4)
    monkeypatch.setattr(mailbox, "MOST_MAILS", 6)
    for n in range(9):
        put(folder, f"Subject: {n}\n\n".encode(), f"{100 + n}.M1R1.host")
    visitor = Visitor(folder)
    page = visitor.get("/mailbox")
    assert page.column(0) == ["8", "7", "6", "5"]
    last = visitor.get(next(link for link in page.links if "cursor=" in link))
    assert last.column(0) == ["4", "3"]
    assert "The newest 6 are shown" in last.text


def test_a_large_folder_is_not_read_for_every_page(tmp_path: Path) -> None:
    """Its names stay for a while that grows with what reading them took."""
    now = [0.0]
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "1.x").touch()

    def monotonic() -> float:
        now[0] += 0.25  # reading takes that long
        return now[0]

    found = mailbox.Folder(tmp_path, monotonic)
    assert found.names() == ["1.x"]
    (tmp_path / "new" / "2.x").touch()
    assert found.names() == ["1.x"]
    now[0] += mailbox.COST_FACTOR * 0.25
    assert found.names() == ["2.x", "1.x"]


@pytest.mark.parametrize("backend, words", [("console", "printed"), ("smtp", "mail.example:25")])
def test_where_no_mail_is_kept_that_is_said(tmp_path: Path, sqlite_url: str, backend: str, words: str) -> None:
    server = {"mail_server": "mail.example"} if backend == "smtp" else {}
    shop = Shop(Settings.of(instance_path=tmp_path / "i", mail_backend=backend, log_level="ERROR", **server))
    page = Visitor(shop).get("/mailbox")
    shop.close()
    assert words in page.text
    assert "Nothing is kept" in page.text


def test_an_empty_mailbox_says_how_to_fill_it(folder: Shop) -> None:
    assert "No mail yet" in Visitor(folder).get("/mailbox").text
