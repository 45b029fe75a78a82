"""The console: who may look, who may act, and what a foreign page may make a visitor's browser do."""

import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app.console import access
from app.console.extension import ROUTES
from app.console.sessions import KEY_FILE, kept_key
from config import Settings
from tests.support.console import Visitor
from tests.support.shop import Shop

PATHS = (
    *("/", "/flow/live", "/orders", "/orders.csv", "/orders.json", "/orders/1001", "/users", "/users/42"),
    *("/events", "/events.json", "/events/types", "/nothing"),
    *("/deliveries", "/deliveries/act?action=retry", "/acts", "/acts/live", "/mailbox", "/system", "/system/doctor"),
)


@pytest.fixture
def database_url(sqlite_url: str) -> str:
    return sqlite_url


@pytest.fixture
def guarded(tmp_path: Path, sqlite_url: str) -> Iterator[Shop]:
    """A service whose console is open to those who know a password."""
    settings = Settings.of(
        instance_path=tmp_path / "instance",
        mail_backend="memory",
        console_password="pässword",
        console_read_password="only look",
        log_level="ERROR",
    )
    made = Shop(settings)
    yield made
    made.close()


@pytest.mark.parametrize("path", [path for path in PATHS if path != "/nothing"])
@pytest.mark.parametrize(
    "environ, headers",
    [
        ({"REMOTE_ADDR": "192.0.2.7"}, {}),
        ({}, {"X-Forwarded-For": "127.0.0.1"}),
        ({"HTTP_HOST": "127.0.0.1.evil.example"}, {}),
    ],
    ids=["another machine", "through a proxy", "by another name"],
)
def test_without_a_password_only_this_machine_is_answered(
    shop: Shop, path: str, environ: dict[str, str], headers: dict[str, str]
) -> None:
    shop.place_order()
    assert Visitor(shop).get(path).status == 200
    refused = Visitor(shop, **environ).get(path, headers)
    assert refused.status in (403, 421)
    assert "1001" not in refused.text


@pytest.mark.parametrize("path", ["/", "/orders", "/orders/1001"])
def test_with_a_password_a_visitor_is_sent_to_sign_in_and_back(guarded: Shop, path: str) -> None:
    guarded.place_order()
    visitor = Visitor(guarded, REMOTE_ADDR="192.0.2.7")
    page = visitor.get(path, user_id="42")
    assert page.response.headers["Location"] == f"/sign-in?next={path}?user_id%3D42"
    assert "1001" not in page.text.replace("/orders/1001", "").replace("%2F1001", "")
    form = visitor.follow(page).forms["/sign-in"]
    back = visitor.post("/sign-in", **(form | {"name": "ann", "password": "pässword"}))
    assert back.response.headers["Location"] == f"{path}?user_id=42"
    assert visitor.get("/orders").status == 200


@pytest.mark.parametrize("target", ["//evil.example", "https://evil.example", "/\\evil.example", "", "/\n/evil"])
def test_a_sign_in_leads_to_this_service_only(guarded: Shop, target: str) -> None:
    page = Visitor(guarded).submit("/sign-in", "/sign-in", password="pässword", next=target)
    assert page.response.headers["Location"] == "/"


def test_who_may_only_look_sees_no_form_and_is_refused(guarded: Shop) -> None:
    guarded.place_order()
    visitor = Visitor(guarded)
    visitor.sign_in("only look")
    page = visitor.get("/")
    assert set(page.forms) == {"/sign-out"}
    assert "looking only" in page.text
    token = page.forms["/sign-out"]["token"]
    for path in ("/orders/1001", "/users/42", "/events"):
        assert set(visitor.get(path).forms) == {"/sign-out"}
    changes = [path for method, path, _ in ROUTES if method == "POST" and "sign" not in path]
    assert len(changes) > 10
    known = {
        "order_id": "1001",
        "user_id": "42",
        "int:delivery_id": "1",
        "int:act_id": "1",
        "receiver": "send_email_notification",
    }
    for path in changes:
        address = re.sub("<(.*?)>", lambda found: known[found[1]], path)
        form = {"order_id": "2", "user_id": "2", "total_price": "2", "email": "a@b.example", "reason": "x", "upto": "9"}
        assert visitor.post(address, token=token, **form).status == 403
    assert guarded.count("orders") == 1
    assert guarded.count("operator_acts") == 0
    for path in PATHS:
        assert set(visitor.get(path).forms) <= {"/sign-out"}


def test_after_a_sign_out_nothing_is_shown(guarded: Shop) -> None:
    visitor = Visitor(guarded)
    visitor.sign_in("pässword")
    visitor.submit("/", "/sign-out")
    assert visitor.get("/orders").status == 303
    live = visitor.get("/flow/live", {"X-Live": "1"})
    assert (live.status, live.response.mimetype) == (401, "text/plain")


def test_another_password_ends_sessions(guarded: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    visitor = Visitor(guarded)
    visitor.sign_in("pässword")
    changed = guarded.settings.model_copy(update={"console_password": "another"})
    monkeypatch.setitem(guarded.app.extensions, "settings", changed)
    assert visitor.get("/orders").status == 303


def test_a_session_ends_by_itself(guarded: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    visitor = Visitor(guarded)
    visitor.sign_in("pässword")
    later = int(access.time.time()) + access.SESSION_SECONDS
    monkeypatch.setattr(access.time, "time", lambda: later - 5)
    assert visitor.get("/orders").status == 200
    monkeypatch.setattr(access.time, "time", lambda: later + 5)
    assert visitor.get("/orders").status == 303


def test_guesses_are_slowed_for_each_client(guarded: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(access.time, "monotonic", lambda: now)
    visitor = Visitor(guarded, REMOTE_ADDR="192.0.2.7")
    assert [visitor.sign_in(f"guess {n}").status for n in range(access.GUESSES)] == [401] * access.GUESSES
    refused = visitor.sign_in("pässword")
    assert (refused.status, refused.response.headers["Retry-After"]) == (429, f"{access.GUESS_SECONDS}")
    assert Visitor(guarded, REMOTE_ADDR="192.0.2.8").sign_in("pässword").status == 303
    now += access.GUESS_SECONDS
    assert visitor.sign_in("one more").status == 401
    assert visitor.sign_in("pässword").status == 429
    now += access.GUESS_SECONDS
    assert visitor.sign_in("pässword").status == 303


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "", "Origin": "https://evil.example"},
    ],
    ids=str,
)
def test_a_forged_request_is_refused_even_with_the_token(shop: Shop, headers: dict[str, str]) -> None:
    visitor = Visitor(shop)
    form = visitor.get("/").forms["/flow/place"]
    assert visitor.post("/flow/place", headers, **form).status == 403
    assert shop.count("orders") == 0


@pytest.mark.parametrize("token", [None, "", "x" * 32, "ä"])
def test_a_form_without_the_sessions_token_is_refused(shop: Shop, token: str | None) -> None:
    visitor = Visitor(shop)
    form = visitor.get("/").forms["/flow/place"] | {"token": token}
    assert visitor.post("/flow/place", **{k: v for k, v in form.items() if v is not None}).status == 403
    assert shop.count("orders") == 0


def test_the_token_of_another_session_is_refused(shop: Shop) -> None:
    form = Visitor(shop).get("/").forms["/flow/place"]
    other = Visitor(shop)
    other.get("/")
    assert other.post("/flow/place", **form).status == 403


def test_the_cookie_is_for_this_site_and_not_for_scripts(shop: Shop) -> None:
    (cookie,) = Visitor(shop).get("/").response.headers.getlist("Set-Cookie")
    assert re.search("HttpOnly; Path=/; SameSite=Strict$", cookie)
    over_tls = Visitor(shop, **{"wsgi.url_scheme": "https"}).get("/")
    assert "; Secure" in over_tls.response.headers["Set-Cookie"]


def test_the_api_sets_no_cookie_and_reads_none(shop: Shop) -> None:
    assert "Set-Cookie" not in shop.post().headers
    assert "Set-Cookie" not in shop.client.get("/readyz").headers


def test_a_page_has_a_strict_policy(shop: Shop) -> None:
    headers = Visitor(shop).get("/").response.headers
    policy = headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'")
    assert "unsafe" not in policy
    assert headers["X-Content-Type-Options"] == "nosniff"


def test_the_key_is_made_once_for_its_owners_eyes_only(tmp_path: Path) -> None:
    key = kept_key(tmp_path / "new")
    assert kept_key(tmp_path / "new") == key
    assert len(key) >= 64
    assert stat.S_IMODE((tmp_path / "new" / KEY_FILE).stat().st_mode) == 0o600
    assert [file.name for file in (tmp_path / "new").iterdir()] == [KEY_FILE]


def test_a_key_that_is_given_is_used(tmp_path: Path, sqlite_url: str) -> None:
    settings: dict[str, Any] = {"instance_path": tmp_path / "instance", "mail_backend": "memory"}
    shop = Shop(Settings.of(**settings, secret_key="0123456789abcdef"))
    Visitor(shop).get("/")
    shop.close()
    assert not (tmp_path / "instance" / KEY_FILE).exists()
