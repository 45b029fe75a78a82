"""Secrets are compared by digests of one length, in constant time; and none is a key to the other door."""

import functools
import hmac
from base64 import b64encode
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from hypothesis import given, settings
from hypothesis import strategies as st

from app import api
from config import Settings

SETTINGS = Settings.of(api_token="the token", console_password="the password")


@functools.cache
def client() -> FlaskClient:
    """Of the routes alone: who is let in finds that there is nothing."""
    app = Flask("routes only")
    app.extensions["settings"] = SETTINGS
    api.init_app(app)
    return app.test_client()


def basic(text: str) -> str:
    return f"Basic {b64encode(text.encode()).decode()}"


def asked(path: str, authorization: str) -> int:
    return client().get(path, headers={"Authorization": authorization}).status_code


DOORS = [("/api/nothing", "Bearer the token"), ("/operator/nothing", basic("ann:the password"))]


@pytest.mark.parametrize("path, key", DOORS)
def test_each_door_opens_to_its_own_key(path: str, key: str) -> None:
    assert asked(path, key) == 404
    assert [asked(path, other) for _, other in DOORS if other != key] == [401]


@pytest.mark.parametrize("path, key", DOORS)
@pytest.mark.parametrize(
    "wrong",
    ["", "Bearer ", "Bearer t", "Bearer the tokeN", "Bearer " + "x" * 5000, "Basic", "Basic !", "Basic \xff",
     "Basic /w==", basic(":"), "Digest x"],
)  # fmt: skip
def test_comparing_takes_as_long_whatever_is_given(
    monkeypatch: pytest.MonkeyPatch, path: str, key: str, wrong: str
) -> None:
    compared: list[tuple[int, int]] = []

    def compare(one: Any, other: Any) -> bool:
        compared.append((len(one), len(other)))
        return one == other

    monkeypatch.setattr(hmac, "compare_digest", compare)
    assert asked(path, wrong) == 401
    assert compared == [(32, 32)]


@settings(deadline=None)
@given(authorization=st.text(st.characters(max_codepoint=255, exclude_characters="\r\n"), max_size=60))
def test_no_other_header_opens_a_door(authorization: str) -> None:
    for path, key in DOORS:
        if authorization != key:
            assert asked(path, authorization) == 401


@pytest.mark.parametrize(
    "path",
    ["/api/", "/api//x", "/api/../x", "/api/%2e%2e/x", "/api/;", "/api/\x00", "/operator/", "/operator//deliveries"],
)
def test_every_address_behind_a_door_is_behind_it(path: str) -> None:
    assert asked(path, "") == 401


@pytest.mark.parametrize("path", ["/", "/nothing", "/API/orders", "/api", "/x/api/orders", "/healthz", "/openapi.json"])
def test_every_answer_has_the_headers_that_keep_a_browser_from_harm(path: str) -> None:
    headers = client().get(path).headers
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Referrer-Policy"] == "no-referrer"
    assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
