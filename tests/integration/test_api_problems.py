"""Errors as problem+json, security headers, HEAD and OPTIONS, and the bearer token."""

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from app.api import orders
from app.orders import intake
from config import Settings
from tests.support.api import CREATE, ORDER, Api, ConformingClient, listening, parse
from tests.support.shop import Shop

READABLE = ["/api/orders", "/api/orders/1001", "/api/users/42", "/api/events"]
OPEN = ["/healthz", "/openapi.json"]


@pytest.fixture
def database_url(sqlite_url: str) -> str:
    return sqlite_url


# Problems


@pytest.mark.parametrize(
    "path",
    ["/api", "/api/", "/api/nothing", "/api/orders/", "/api//orders", "/api/orders/a/b", "/api/orders/a%2Fb",
     "/api/%ff", "/api/create_order/", "/api/../etc/passwd"],
)  # fmt: skip
def test_an_address_that_does_not_exist_is_a_problem_and_no_page(api: Api, path: str) -> None:
    response = api.get(path)
    assert response.status_code == 404
    assert response.content_type == "application/problem+json"
    assert parse(response)["type"] == "about:blank"


@pytest.mark.parametrize(
    "path, method, allowed",
    [
        (CREATE, "GET", {"POST", "OPTIONS"}),
        (CREATE, "PUT", {"POST", "OPTIONS"}),
        (CREATE, "NONSENSE", {"POST", "OPTIONS"}),
        ("/api/orders", "POST", {"GET", "HEAD", "OPTIONS"}),
        ("/api/orders/1001", "DELETE", {"GET", "HEAD", "OPTIONS"}),
        ("/healthz", "POST", {"GET", "HEAD", "OPTIONS"}),
        ("/openapi.json", "PATCH", {"GET", "HEAD", "OPTIONS"}),
    ],
)
def test_a_method_that_does_not_fit_is_405_with_those_that_do(
    api: Api, path: str, method: str, allowed: set[str]
) -> None:
    response = api.client.open(path, method=method)
    assert response.status_code == 405
    assert set(response.headers["Allow"].split(", ")) == allowed
    assert parse(response)["title"] == "Method Not Allowed"


def test_a_bug_is_500_without_a_traceback_which_is_logged(
    api: Api, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("a secret")

    monkeypatch.setattr(intake, "place_order", fail)

    with listening(caplog) as log:
        response = api.place()

    assert response.status_code == 500
    assert parse(response)["title"] == "Internal Server Error"
    assert "secret" not in response.text
    assert "Traceback" not in response.text
    (record,) = [record for record in log.records if record.levelno == logging.ERROR]
    assert record.exc_info
    assert "a secret" in str(record.exc_info[1])
    assert api.stored() == (0, 0, 0)


@pytest.mark.parametrize("host", ["a b", "a\x00", "[::", "\xff", ""], ids=ascii)
def test_a_damaged_host_header_is_no_500(api: Api, host: str) -> None:
    assert api.client.get("/api/orders", headers={"Host": host}).status_code in (200, 400, 421)


# Headers, HEAD and OPTIONS


@pytest.mark.parametrize("path", [*READABLE, *OPEN, "/readyz", "/api/nothing", CREATE])
def test_every_answer_carries_the_headers_that_fit_an_api(api: Api, path: str) -> None:
    headers = api.get(path).headers
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Content-Security-Policy"] == "default-src 'none'; frame-ancestors 'none'"
    assert headers["Referrer-Policy"] == "no-referrer"
    assert headers["Cache-Control"] == "no-store"
    assert not [name for name in headers.keys() if name.startswith("Access-Control-")]  # noqa: SIM118 - Headers yields pairs


def test_a_bug_carries_them_too(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(orders, "list_orders", None)
    response = api.get("/api/orders")
    assert (response.status_code, response.headers["Cache-Control"]) == (500, "no-store")


@pytest.mark.parametrize("path", [*READABLE, *OPEN])
def test_head_is_get_without_the_body(api: Api, path: str) -> None:
    api.place()
    api.shop.dispatch_all()
    get, head = api.get(path), api.client.head(path)
    assert head.data == b""
    assert (head.status_code, head.headers["Content-Type"]) == (get.status_code, get.headers["Content-Type"])
    assert head.headers["Content-Length"] == get.headers["Content-Length"]


@pytest.mark.parametrize("path", [*READABLE, *OPEN, CREATE])
def test_options_names_the_methods_and_nothing_else(api: Api, path: str) -> None:
    response = api.client.options(path, headers={"Origin": "https://elsewhere.example"})
    assert response.status_code == 200
    assert ("POST" if path == CREATE else "GET") in response.headers["Allow"]
    assert response.data == b""
    assert "Content-Type" not in response.headers
    assert "Access-Control-Allow-Origin" not in response.headers


# The token


@pytest.fixture
def guarded(settings: Settings) -> Iterator[Api]:
    shop = Shop(settings.model_copy(update={"api_token": "tökèn="}))
    yield Api(shop)
    shop.close()


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}".encode().decode("latin-1")}


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": ""},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer "},
        bearer("wrong"),
        bearer("tökèn"),
        bearer("tökèn=="),
        bearer("TÖKÈN="),
        bearer("tökèn=, tökèn="),
        {"Authorization": bearer("tökèn=")["Authorization"].removeprefix("Bearer ")},
        {"Authorization": bearer("tökèn=")["Authorization"].replace("Bearer", "Basic")},
    ],
)
@pytest.mark.parametrize("path", [*READABLE, CREATE, "/api/nothing", "/api/orders/../orders"])
def test_without_the_token_nothing_under_api_answers(guarded: Api, path: str, headers: dict[str, str]) -> None:
    response = guarded.client.get(path, headers=headers)
    assert response.status_code == 401
    assert response.headers["WWW-Authenticate"].startswith("Bearer")


@pytest.mark.parametrize("method", ["POST", "OPTIONS", "HEAD", "DELETE"])
@pytest.mark.parametrize("path", [*READABLE, CREATE, "/api/nothing"])
def test_without_the_token_no_method_is_answered(guarded: Api, path: str, method: str) -> None:
    assert guarded.client.open(path, method=method).status_code == 401


def test_a_doubled_slash_does_not_avoid_the_token(guarded: Api) -> None:
    response = guarded.client.get("/", environ_overrides={"PATH_INFO": "//api/orders"})
    assert response.status_code == 401


@pytest.mark.parametrize("scheme", ["Bearer ", "bearer ", "BEARER  "])
def test_with_the_token_every_route_answers(guarded: Api, scheme: str) -> None:
    headers = {"Authorization": bearer("tökèn=")["Authorization"].replace("Bearer ", scheme)}
    assert guarded.client.post(CREATE, json=ORDER, headers=headers).status_code == 201
    assert guarded.client.get("/api/orders/1001", headers=headers).status_code == 200
    assert guarded.client.get("/api/nothing", headers=headers).status_code == 404


def test_a_request_without_the_token_is_refused_before_its_body_is_read(guarded: Api) -> None:
    body = io.BytesIO(json.dumps(ORDER).encode())
    chunked = {"wsgi.input_terminated": True}
    response = guarded.client.post(
        CREATE, input_stream=body, content_type="application/json", environ_overrides=chunked
    )
    assert response.status_code == 401
    assert body.tell() == 0
    assert guarded.stored() == (0, 0, 0)


def test_the_token_is_neither_logged_nor_answered(guarded: Api, caplog: pytest.LogCaptureFixture) -> None:
    with listening(caplog) as log:
        responses = [guarded.client.get(path, headers=bearer("guess")) for path in (*READABLE, *OPEN)]
    for seen in (log.text, *(response.text for response in responses)):
        assert "guess" not in seen
        assert "tökèn" not in seen


@pytest.mark.parametrize("path", OPEN)
def test_health_and_the_document_need_no_token(guarded: Api, path: str) -> None:
    assert guarded.get(path).status_code == 200


def test_the_document_says_whether_the_token_is_needed(api: Api, guarded: Api) -> None:
    open_to_all, closed = (parse(each.get("/openapi.json"))["paths"] for each in (api, guarded))
    assert open_to_all["/api/orders"]["get"]["security"] == [{"token": []}, {}]
    assert closed["/api/orders"]["get"]["security"] == [{"token": []}]
    assert "security" not in closed["/healthz"]["get"]


def test_without_a_token_set_the_header_is_ignored(api: Api) -> None:
    client = ConformingClient(api.shop.app)
    response = client.post(CREATE, data=json.dumps(ORDER), content_type="application/json", headers=bearer("any"))
    assert response.status_code == 201
