"""The API as a client sees it. Every answer is held against /openapi.json."""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from jsonschema import Draft202012Validator, FormatChecker
from werkzeug.exceptions import HTTPException
from werkzeug.test import TestResponse

from app.api import openapi
from tests.support.shop import Shop

CREATE = "/api/create_order"
ID_RULE = "a string of 1 to 64 letters, digits, '.', '_', ':' or '-', but not '.' or '..', or a non-negative integer"
ORDER = {"order_id": "1001", "user_id": "42", "total_price": 19.99}


class Api:
    """A client of the shop's API, and the verbs that tests are written in."""

    def __init__(self, shop: Shop) -> None:
        self.shop = shop
        self.client = ConformingClient(shop.app, use_cookies=False)

    def get(self, path: str, **query: Any) -> TestResponse:
        return self.client.get(path, query_string=query or None)

    def post(self, body: Any, **how: Any) -> TestResponse:
        """POST a value as JSON; bytes and text as they are."""
        data = body if isinstance(body, bytes | str) else json.dumps(body)
        return self.client.post(CREATE, data=data, **{"content_type": "application/json"} | how)

    def place(self, **fields: Any) -> TestResponse:
        """POST the usual order with other fields."""
        return self.post(ORDER | fields)

    def refused(self, body: Any) -> dict[str, str]:
        """POST what must be a 422 that leaves nothing. Returns the messages by field."""
        response = self.post(body)
        assert response.status_code == 422, response.text
        assert self.stored() == (0, 0, 0)
        return messages(response)

    def stored(self) -> tuple[int, int, int]:
        """How many orders, events and users there are."""
        return self.shop.count("orders"), self.shop.count("events"), self.shop.count("users")


@contextmanager
def listening(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """All that the application logs, from DEBUG on."""
    with caplog.at_level(logging.DEBUG, "app"):
        yield caplog


def messages(response: TestResponse) -> dict[str, str]:
    return {error["field"]: error["message"] for error in parse(response)["errors"]}


def parse(response: TestResponse) -> Any:
    """The answer's JSON, strictly: no NaN, no Infinity."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(response.data.decode("utf-8"), parse_constant=refuse)


class ConformingClient(FlaskClient):
    """A test client that fails the test when an answer is not as the document says."""

    def open(self, *args: Any, **kwargs: Any) -> TestResponse:
        response = super().open(*args, **kwargs)
        check_answer(self.application, response)
        return response


def check_answer(app: Flask, response: TestResponse) -> None:
    request = response.request
    document = document_of(app)
    promised = unrouted()
    if (path := template(app, request.path, request.method)) is not None:
        if request.method == "OPTIONS":
            return
        operation = document["paths"][path]["get" if request.method == "HEAD" else request.method.lower()]
        assert str(response.status_code) in operation["responses"], f"{response.status} of {path} is not described"
        promised = operation["responses"][str(response.status_code)]
    for name, header in promised["headers"].items():
        assert not header.get("required") or name in response.headers, f"{path} {response.status} lacks {name}"
        if name in response.headers:
            Draft202012Validator(header["schema"]).validate(response.headers[name])
    assert response.mimetype in promised["content"], response.mimetype
    if request.method != "HEAD" and response.mimetype != "text/plain":
        schema = promised["content"][response.mimetype]["schema"] | {"components": document["components"]}
        Draft202012Validator(schema, format_checker=FormatChecker()).validate(parse(response))


def unrouted() -> dict[str, Any]:
    """What an address or a method that does not exist is answered with."""
    problem = {"schema": {"$ref": "#/components/schemas/ProblemDetails"}}
    return {"headers": {}, "content": {"application/problem+json": problem}}


def template(app: Flask, path: str, method: str) -> str | None:
    try:
        rule, _ = app.url_map.bind("localhost").match(path, method, return_rule=True)
    except HTTPException:
        return None
    return rule.rule.replace("<int:", "<").replace("<", "{").replace(">", "}")


_document: dict[str, Any] = {}


def document_of(app: Flask) -> dict[str, Any]:
    """The document, its objects closed: a field that it does not name is an error too. Every app has the same."""
    if not _document:
        _document.update(json.loads(json.dumps(openapi.document(app.url_map))))
        for schema in _document["components"]["schemas"].values():
            if "properties" in schema:
                schema["additionalProperties"] = False
    return _document
