"""Authentication: secrets are compared in constant time, and neither secret is accepted for the other's routes."""

import functools
import hmac
from base64 import b64encode
from types import SimpleNamespace
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from app import api
from config import Settings

SETTINGS = Settings.of(api_token="the token", console_password="the password")


@functools.cache
def client() -> FlaskClient:
    """A client of an application with routes only: an authenticated request is answered 404."""
    app = Flask("routes only")
    app.extensions |= {"settings": SETTINGS, "metrics": SimpleNamespace(count_request=lambda *_: None)}
    api.init_app(app)
    return app.test_client()


def basic(text: str) -> str:
    return f"Basic {b64encode(text.encode()).decode()}"


def status(path: str, authorization: str) -> int:
    return client().get(path, headers={"Authorization": authorization}).status_code


CREDENTIALS = [("/api/nothing", "Bearer the token"), ("/operator/nothing", basic("ann:the password"))]


@pytest.mark.parametrize("path, key", CREDENTIALS)
def test_each_path_takes_its_own_secret_only(path: str, key: str) -> None:
    assert status(path, key) == 404
    assert [status(path, other) for _, other in CREDENTIALS if other != key] == [401]


@pytest.mark.parametrize("path, key", CREDENTIALS)
@pytest.mark.parametrize(
    "wrong",
    ["", "Bearer ", "Bearer t", "Bearer the tokeN", "Bearer " + "x" * 5000, "Basic", "Basic !", "Basic \xff",
     "Basic /w==", basic(":"), "Digest x"],
)  # fmt: skip
def test_a_comparison_is_of_two_digests_whatever_is_given(
    monkeypatch: pytest.MonkeyPatch, path: str, key: str, wrong: str
) -> None:
    compared: list[tuple[int, int]] = []

    def compare(one: Any, other: Any) -> bool:
        compared.append((len(one), len(other)))
        return one == other

    monkeypatch.setattr(hmac, "compare_digest", compare)
    assert status(path, wrong) == 401
    assert compared == [(32, 32)]


@pytest.mark.parametrize("path, key", CREDENTIALS)
@settings(deadline=None)
@given(authorization=st.text(st.characters(max_codepoint=255, exclude_characters="\r\n"), max_size=60))
def test_no_other_header_is_accepted(path: str, key: str, authorization: str) -> None:
    assume(authorization != key)
    assert status(path, authorization) == 401


@pytest.mark.parametrize(
    "path",
    ["/api/", "/api//x", "/api/../x", "/api/%2e%2e/x", "/api/;", "/api/\x00", "/operator/", "/operator//deliveries"],
)
def test_every_path_under_a_guarded_prefix_is_guarded(path: str) -> None:
    assert status(path, "") == 401


@pytest.mark.parametrize("path", ["/", "/nothing", "/API/orders", "/api", "/x/api/orders", "/healthz", "/openapi.json"])
def test_every_answer_has_the_security_headers(path: str) -> None:
    headers = client().get(path).headers
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Referrer-Policy"] == "no-referrer"
    assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
