"""The greeting of `make run`: hints that hold."""

import json
import re

import pytest

from app.serving import greeting, looks, url
from config import CHECKOUT, Settings

CURL = "curl -i http://127.0.0.1:8000/api/create_order"


@pytest.mark.parametrize(
    "host, expected",
    [
        ("127.0.0.1", "http://127.0.0.1:8000"),
        ("0.0.0.0", "http://127.0.0.1:8000"),  # noqa: S104 - nothing is bound
        ("::", "http://[::1]:8000"),
        ("::1", "http://[::1]:8000"),
        ("shop.example", "http://shop.example:8000"),
    ],
)
def test_the_url_is_where_this_machine_reaches_the_service(host: str, expected: str) -> None:
    assert url(Settings.of(web_host=host)) == expected


@pytest.mark.parametrize(
    "given, expected",
    [
        ({}, ["sqlite3 instance/orders.db 'select * from orders'", "cat instance/mail/new/*"]),
        (
            {"INSTANCE_PATH": "/srv/my shop"},
            ["sqlite3 '/srv/my shop/orders.db' 'select * from orders'", "cat '/srv/my shop'/mail/new/*"],
        ),
        (
            {"DATABASE_URL": "sqlite:////srv/x.db?timeout=5"},
            ["sqlite3 /srv/x.db 'select * from orders'", "cat instance/mail/new/*"],
        ),
        ({"DATABASE_URL": "postgresql+psycopg://me:secret@db/orders"}, ["cat instance/mail/new/*"]),
        ({"MAIL_SERVER": "mail.example"}, ["sqlite3 instance/orders.db 'select * from orders'"]),
        ({"MAIL_BACKEND": "console"}, ["sqlite3 instance/orders.db 'select * from orders'"]),
        (
            {"MAIL_SERVER": "mail.example", "MAIL_BACKEND": "file"},
            ["sqlite3 instance/orders.db 'select * from orders'", "cat instance/mail/new/*"],
        ),
        ({"MAIL_SERVER": " "}, ["sqlite3 instance/orders.db 'select * from orders'", "cat instance/mail/new/*"]),
    ],
    ids=str,
)
def test_what_is_shown_to_look_at_is_there(given: dict[str, str], expected: list[str]) -> None:
    assert looks(Settings.load(given)) == expected


def test_the_curl_sends_the_token_where_one_is_demanded() -> None:
    assert f"{CURL} -H 'Content-Type" in greeting(Settings.of())
    told = greeting(Settings.of(api_token="s3cret"))
    assert f'{CURL} -H "Authorization: Bearer $API_TOKEN" -H \'Content-Type' in told
    assert '/api/orders/1001 -H "Authorization: Bearer $API_TOKEN"' in told
    assert "s3cret" not in told


def test_the_curl_has_an_address_where_mail_goes_out_to_one() -> None:
    """Without one, and without USER_EMAIL_DOMAIN, the mail would be skipped. It is another order than that without."""
    told = greeting(Settings.load({"MAIL_SERVER": "mail.example"}))
    assert "Or place an order here, with your own address in it:" in told
    body = re.search(r"-d '(.*)'$", told, re.MULTILINE)
    assert body is not None
    order = json.loads(body[1])
    assert order["email"] == "you@example.com"
    assert order["order_id"] != "1001"
    assert f"/api/orders/{order['order_id']}" in told
    for given in ({}, {"MAIL_SERVER": "mail.example", "MAIL_BACKEND": "file"}):
        assert "email" not in greeting(Settings.load(given))


@pytest.mark.parametrize("readme", ["README.md", "README.zh.md"])
def test_the_readme_shows_what_is_printed(readme: str) -> None:
    shown = greeting(Settings.of()).strip()
    assert f"$ make run\n{shown}\n" in (CHECKOUT / readme).read_text()
