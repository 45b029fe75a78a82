"""/openapi.json describes every route, nothing else, and is true: see also tests/support/api.py."""

import json
import re
from collections.abc import Iterator
from enum import StrEnum
from typing import Any

import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from app.states import DeliveryState, NotificationStatus, OrderStatus, Outcome
from app.version import VERSION
from tests.support.api import Api, parse


@pytest.fixture
def database_url(sqlite_url: str) -> str:
    return sqlite_url


@pytest.fixture
def document(api: Api) -> Any:
    return parse(api.get("/openapi.json"))


def test_the_document_is_valid_openapi_3_1(document: Any) -> None:
    assert document["openapi"].startswith("3.1")
    assert document["info"]["version"] == VERSION
    assert list(OpenAPIV31SpecValidator(document).iter_errors()) == []


def test_every_route_is_described_and_nothing_else_is(api: Api, document: Any) -> None:
    routes = {
        (rule.rule.replace("<int:", "<").replace("<", "{").replace(">", "}"), method.lower())
        for rule in api.shop.app.url_map.iter_rules()
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
        if rule.endpoint.startswith("api.")
    }
    assert {(path, method) for path, operations in document["paths"].items() for method in operations} == routes


def test_no_route_under_api_is_another_parts(api: Api) -> None:
    others = [rule.rule for rule in api.shop.app.url_map.iter_rules() if not rule.endpoint.startswith("api.")]
    assert [rule for rule in others if rule.startswith("/api/")] == []


@pytest.mark.parametrize(
    "path, method, statuses",
    [
        ("/api/create_order", "post", "200 201 400 401 409 413 415 421 422 500 503"),
        ("/api/orders", "get", "200 400 401 421 422 500 503"),
        ("/api/orders/{order_id}", "get", "200 401 404 421 500 503"),
        ("/api/users/{user_id}", "get", "200 401 404 421 500 503"),
        ("/api/events", "get", "200 400 401 421 422 500 503"),
        ("/metrics", "get", "200 401 403 421 500"),
        ("/healthz", "get", "200 421 500"),
        ("/readyz", "get", "200 421 500 503"),
        ("/openapi.json", "get", "200 421 500"),
    ],
)
def test_all_that_a_route_may_answer_is_described(document: Any, path: str, method: str, statuses: str) -> None:
    operation = document["paths"][path][method]
    assert list(operation["responses"]) == statuses.split()
    assert operation["summary"]
    assert operation["operationId"]


def test_headers_are_described_where_they_are_sent(document: Any) -> None:
    responses = document["paths"]["/api/create_order"]["post"]["responses"]
    assert {status: list(answer["headers"]) for status, answer in responses.items() if answer["headers"]} == {
        "200": ["Idempotent-Replayed"],
        "201": ["Location"],
        "401": ["WWW-Authenticate"],
        "500": ["X-Request-ID"],
        "503": ["Retry-After"],
    }
    assert list(document["paths"]["/api/orders"]["get"]["responses"]["200"]["headers"]) == ["Link"]


def test_the_examples_are_orders_that_are_taken(api: Api, document: Any) -> None:
    examples = document["components"]["schemas"]["NewOrder"]["examples"]
    assert examples[0] == {"order_id": "1001", "user_id": "42", "total_price": 19.99}
    assert [api.post(example).status_code for example in examples] == [201, 201]


def test_query_parameters_are_described_and_may_be_left_out(document: Any) -> None:
    parameters = {each["name"]: each for each in document["paths"]["/api/orders"]["get"]["parameters"]}
    assert list(parameters) == ["user_id", "status", "notification", "limit", "cursor"]
    assert not any(each["required"] for each in parameters.values())
    assert parameters["limit"]["schema"]["maximum"] == 200
    assert parameters["status"]["schema"] == {"$ref": "#/components/schemas/OrderStatus"}
    assert parameters["status"]["description"] == "created or confirmed"


def test_every_operation_has_one_tag_and_every_tag_is_described(document: Any) -> None:
    tags = {operation["operationId"]: operation["tags"] for operation in operations(document)}
    described = {tag["name"]: tag["description"] for tag in document["tags"]}
    assert list(described) == [
        *("orders", "users", "events", "status", "deliveries", "acts", "receivers", "addresses", "metrics", "health"),
        "openapi",
    ]
    assert {tag for (tag,) in tags.values()} == set(described)
    assert all(described.values())
    assert (tags["create_order"], tags["readyz"], tags["retry_delivery"]) == (["orders"], ["health"], ["deliveries"])


def test_every_description_is_text_that_tools_show_as_it_is_meant(document: Any) -> None:
    """They render CommonMark: a line that is set in would be a block of code, an open backtick would show."""
    shown = list(texts(document))
    for operation in operations(document):
        assert {"summary", "description"} <= operation.keys()
        assert all(parameter["description"] for parameter in operation["parameters"])
        assert not any("description" in parameter["schema"] for parameter in operation["parameters"])
    assert len(shown) > 100
    for text in shown:
        assert text == text.strip() != ""
        assert not re.search(r"\n[ \t]", text)
        assert text.count("`") % 2 == 0
        assert not re.search(r"<[A-Za-z/]", re.sub("`.*?`", "", text)), "it would be HTML, and not show"


def operations(document: Any) -> list[Any]:
    return [operation for path in document["paths"].values() for operation in path.values()]


def texts(part: Any) -> Iterator[str]:
    """Every summary and description, wherever in the document."""
    if isinstance(part, dict):
        for name, value in part.items():
            if name in ("summary", "description") and isinstance(value, str):
                yield value
            yield from texts(value)
    elif isinstance(part, list):
        for each in part:
            yield from texts(each)


@pytest.mark.parametrize("states", [DeliveryState, NotificationStatus, OrderStatus, Outcome])
def test_the_words_of_a_state_are_listed(document: Any, states: type[StrEnum]) -> None:
    schema = document["components"]["schemas"][states.__name__]
    assert (schema["type"], schema["enum"]) == ("string", list(states))


def test_every_schema_is_used(document: Any) -> None:
    text = json.dumps(document)
    schemas = document["components"]["schemas"]
    assert [name for name in schemas if f'"#/components/schemas/{name}"' not in text] == []
