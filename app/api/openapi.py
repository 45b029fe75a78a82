"""GET /openapi.json: the OpenAPI 3.1 document, made of the routes, of what describes them, and of the schemas."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar, cast

from flask import current_app
from flask.typing import ResponseReturnValue
from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, models_json_schema
from werkzeug.routing import Map, Rule

from app.api.blueprint import routes, settings
from app.api.incoming import Asked
from app.api.outgoing import Document, ProblemDetails
from app.api.problems import LARGEST_BODY
from app.orders import ID_PATTERN

View = TypeVar("View", bound=Callable[..., ResponseReturnValue])
Json = dict[str, Any]

HEADERS: dict[str, Json] = {
    "Location": {"description": "where the order can be read", "required": True, "schema": {"type": "string"}},
    "Idempotent-Replayed": {"description": "always true", "required": True, "schema": {"const": "true"}},
    "Link": {"description": 'the next page, as rel="next"; the last page has none', "schema": {"type": "string"}},
    "Retry-After": {
        "description": "seconds after which another try makes sense",
        "required": True,
        "schema": {"type": "string", "pattern": "^[0-9]+$"},
    },
    "WWW-Authenticate": {"description": "how to authenticate", "required": True, "schema": {"type": "string"}},
}


@dataclass(frozen=True)
class Answer:
    """One answer that a route may give; one without a model is a problem."""

    description: str
    model: type[BaseModel] = ProblemDetails
    headers: tuple[str, ...] = ()


class Untitled(GenerateJsonSchema):
    """Schemas without the titles that pydantic makes of the fields' names."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


class Parameters(Untitled):
    """Schemas of query parameters, which are left out rather than null."""

    def nullable_schema(self, schema: Any) -> Json:
        return self.generate_inner(schema["schema"])

    def default_schema(self, schema: Any) -> Json:
        return {name: value for name, value in super().default_schema(schema).items() if value is not None}


@dataclass(frozen=True)
class Operation:
    """What the document says of the view that it decorates. What all routes of a kind may answer need not be said."""

    summary: str
    answers: Mapping[int, Answer]
    body: type[Asked] | None = None
    query: type[Asked] | None = None
    description: str = ""

    def __call__(self, view: View) -> View:
        OPERATIONS[view.__name__] = replace(self, description=view.__doc__ or "")
        return view


OPERATIONS: dict[str, Operation] = {}
"""By the name of the view."""

SCHEMAS = "#/components/schemas/{model}"
ORDER_ID: Json = {"type": "string", "pattern": f"^{ID_PATTERN}$"}
DELIVERY_ID: Json = {"type": "integer", "minimum": 0}

ANY = {500: Answer("something is wrong on the service's side")}
UNDER_API = {
    401: Answer("the service has an API_TOKEN, and the request lacks it", headers=("WWW-Authenticate",)),
    503: Answer("the database can't take it now; nothing was stored", headers=("Retry-After",)),
}
UNDER_OPERATOR = {
    401: Answer("the service has a CONSOLE_PASSWORD, and the request lacks it", headers=("WWW-Authenticate",)),
    403: Answer("the service has no CONSOLE_PASSWORD, and the request comes from elsewhere"),
    503: UNDER_API[503],
}
WITH_BODY = {
    400: Answer("the body is not JSON in UTF-8, or names a field twice"),
    413: Answer(f"the body is larger than {LARGEST_BODY} bytes"),
    415: Answer("the body is not application/json"),
    422: Answer("fields are wrong; 'errors' names every one"),
}
WITH_QUERY = {
    400: Answer("the query is not UTF-8"),
    422: Answer("parameters are wrong; 'errors' names every one"),
}


@routes.get("/openapi.json")
@Operation("What this API takes and answers", answers={200: Answer("this document", Document)})
def openapi() -> ResponseReturnValue:
    """Made at the first request and kept."""
    known = current_app.extensions
    if "openapi" not in known:
        known["openapi"] = document(current_app.url_map, protected=settings().api_token is not None)
    return cast(Json, known["openapi"])


def document(url_map: Map, *, protected: bool) -> Json:
    """All routes of this blueprint. Where ``protected``, those under /api/ ask for the token; else they ignore it."""
    paths: dict[str, Json] = {}
    for rule in sorted(url_map.iter_rules(), key=lambda rule: rule.rule):
        if rule.endpoint.startswith(f"{routes.name}."):
            path = re.sub("<(?:int:)?([^>]+)>", r"{\1}", rule.rule)
            for method in sorted((rule.methods or set()) - {"HEAD", "OPTIONS"}):
                paths.setdefault(path, {})[method.lower()] = _operation(rule, protected)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Orders",
            "version": "1",
            "description": "Takes orders, and lets everything that follows from an order happen by durable events.",
        },
        "paths": paths,
        "components": {
            "schemas": _schemas(),
            "securitySchemes": {
                "token": {"type": "http", "scheme": "bearer", "description": "the setting API_TOKEN"},
                "password": {"type": "http", "scheme": "basic", "description": "the setting CONSOLE_PASSWORD"},
            },
        },
    }


def _operation(rule: Rule, protected: bool) -> Json:
    name = rule.endpoint.removeprefix(f"{routes.name}.")
    operation = OPERATIONS[name]
    answers = dict(operation.answers) | ANY
    found: Json = {"operationId": name, "summary": operation.summary, "description": operation.description}
    found["parameters"] = [
        _parameter("path", field, DELIVERY_ID if field == "delivery_id" else ORDER_ID) for field in rule.arguments
    ]
    if rule.rule.startswith("/api/"):
        answers |= UNDER_API
        found["security"] = [{"token": []}] if protected else [{"token": []}, {}]
    if rule.rule.startswith("/operator/"):
        answers |= UNDER_OPERATOR
        found["security"] = [{"password": []}, {}]
    if operation.query:
        answers |= WITH_QUERY
        schema = operation.query.model_json_schema(ref_template=SCHEMAS, schema_generator=Parameters)
        found["parameters"] += [_parameter("query", field, schema) for field, schema in schema["properties"].items()]
    if operation.body:
        answers |= WITH_BODY
        found["requestBody"] = {"required": True, "content": _content("application/json", operation.body)}
    found["responses"] = {str(status): _response(answers[status]) for status in sorted(answers)}
    return found


def _parameter(place: str, name: str, schema: Json) -> Json:
    return {"name": name, "in": place, "required": place == "path", "schema": schema}


def _response(answer: Answer) -> Json:
    mimetype = "application/problem+json" if answer.model is ProblemDetails else "application/json"
    return {
        "description": answer.description,
        "headers": {name: HEADERS[name] for name in answer.headers},
        "content": _content(mimetype, answer.model),
    }


def _content(mimetype: str, model: type[BaseModel]) -> Json:
    return {mimetype: {"schema": {"$ref": SCHEMAS.format(model=model.__name__)}}}


def _schemas() -> Json:
    models: set[type[BaseModel]] = {ProblemDetails}
    for operation in OPERATIONS.values():
        models.update(answer.model for answer in operation.answers.values())
        if operation.body:
            models.add(operation.body)
    _, found = models_json_schema(
        [(model, "validation") for model in sorted(models, key=lambda model: model.__name__)],
        by_alias=False,
        ref_template=SCHEMAS,
        schema_generator=Untitled,
    )
    return cast(Json, found["$defs"])
