"""GET /openapi.json: the OpenAPI 3.1 document, made of the routes, of the views' Operations and of the schemas."""

import re
from typing import Any, cast

from flask import current_app, request
from flask.typing import ResponseReturnValue
from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, models_json_schema
from werkzeug.routing import Map, Rule

from app.api.blueprint import blueprint, settings
from app.api.operation import (
    ALWAYS,
    HEADERS,
    OPERATIONS,
    UNDER_API,
    UNDER_OPERATOR,
    WITH_BODY,
    WITH_QUERY,
    Operation,
    ResponseDoc,
)
from app.api.request_models import RequestModel
from app.api.response_models import OpenAPIDocument, ProblemDetails
from app.orders import ID_PATTERN
from app.version import VERSION

Json = dict[str, Any]

ENDPOINT_PREFIX = f"{blueprint.name}."
SCHEMA_REFERENCE = "#/components/schemas/{model}"
PATH_PARAMETERS: dict[str, Json] = {
    "order_id": {"type": "string", "pattern": f"^{ID_PATTERN}$", "description": "the order's id"},
    "user_id": {"type": "string", "pattern": f"^{ID_PATTERN}$", "description": "the user's id"},
    "delivery_id": {"type": "integer", "minimum": 0, "description": "the delivery's number"},
}
INFO = {
    "title": "Orders",
    "version": VERSION,
    "description": "Takes orders, and lets everything that follows from an order happen by durable events.",
}
TAGS = {
    "orders": "Place orders, and read them with everything that followed from them.",
    "users": "Read users' records, into which confirmed orders are counted.",
    "events": "Follow all events, in the format CloudEvents 1.0.",
    "deliveries": "For operators: find what waits or was given up, retry it, or discard it.",
    "health": "Whether the service is alive, and whether it is ready.",
    "openapi": "This document.",
}
"""By the module of the view, in the order in which they are shown."""

SECURITY_SCHEMES = {
    "token": {"type": "http", "scheme": "bearer", "description": "the setting API_TOKEN"},
    "password": {"type": "http", "scheme": "basic", "description": "the setting CONSOLE_PASSWORD"},
}


class BodySchemas(GenerateJsonSchema):
    """Schemas without the titles that pydantic makes of the fields' names."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


class QuerySchemas(BodySchemas):
    """Schemas of query parameters: one that is not given is left out, never null."""

    def nullable_schema(self, schema: Any) -> Json:
        return self.generate_inner(schema["schema"])

    def default_schema(self, schema: Any) -> Json:
        return {name: value for name, value in super().default_schema(schema).items() if value is not None}


@blueprint.get("/openapi.json")
@Operation("What this API takes and answers", responses={200: ResponseDoc("this document", OpenAPIDocument)})
def openapi() -> ResponseReturnValue:
    """Made at the first request and kept, apart from the address at which it was asked for."""
    extensions = current_app.extensions
    if "openapi" not in extensions:
        extensions["openapi"] = document(current_app.url_map, protected=settings().api_token is not None)
    return cast(Json, extensions["openapi"]) | {"servers": [{"url": _server_url()}]}


def _server_url() -> str:
    """With the prefix that a proxy put before it. Paths are appended to it, so it ends without a slash."""
    return (request.root_url if request.host else request.script_root).rstrip("/") or "/"


def document(url_map: Map, *, protected: bool) -> Json:
    """The document of the blueprint's routes. ``protected``: those under /api/ demand the token."""
    return {
        "openapi": "3.1.0",
        "info": INFO,
        "tags": [{"name": name, "description": description} for name, description in TAGS.items()],
        "paths": _paths(url_map, protected),
        "components": {"schemas": _schemas(), "securitySchemes": SECURITY_SCHEMES},
    }


def _paths(url_map: Map, protected: bool) -> Json:
    paths: dict[str, Json] = {}
    for rule in sorted(url_map.iter_rules(), key=lambda rule: rule.rule):
        if rule.endpoint.startswith(ENDPOINT_PREFIX):
            path = re.sub("<(?:int:)?([^>]+)>", r"{\1}", rule.rule)
            for method in sorted((rule.methods or set()) - {"HEAD", "OPTIONS"}):
                paths.setdefault(path, {})[method.lower()] = _operation(rule, protected)
    return paths


def _operation(rule: Rule, protected: bool) -> Json:
    name = rule.endpoint.removeprefix(ENDPOINT_PREFIX)
    operation = OPERATIONS[name]
    responses = _responses(rule, operation)
    return {
        "operationId": name,
        "tags": [operation.tag],
        "summary": operation.summary,
        "description": operation.description,
        "parameters": _path_parameters(rule) + _query_parameters(operation.query),
        **_security(rule, protected),
        **_request_body(operation.body),
        "responses": {str(status): _response(responses[status]) for status in sorted(responses)},
    }


def _responses(rule: Rule, operation: Operation) -> dict[int, ResponseDoc]:
    """The view's own responses, and those that all routes of its kind share."""
    return {
        **operation.responses,
        **ALWAYS,
        **(UNDER_API if rule.rule.startswith("/api/") else {}),
        **(UNDER_OPERATOR if rule.rule.startswith("/operator/") else {}),
        **(WITH_QUERY if operation.query else {}),
        **(WITH_BODY if operation.body else {}),
    }


def _security(rule: Rule, protected: bool) -> Json:
    if rule.rule.startswith("/api/"):
        return {"security": [{"token": []}] if protected else [{"token": []}, {}]}
    if rule.rule.startswith("/operator/"):
        return {"security": [{"password": []}, {}]}
    return {}


def _path_parameters(rule: Rule) -> list[Json]:
    return [_parameter("path", name, PATH_PARAMETERS[name]) for name in rule.arguments]


def _query_parameters(model: type[RequestModel] | None) -> list[Json]:
    if model is None:
        return []
    schema = model.model_json_schema(ref_template=SCHEMA_REFERENCE, schema_generator=QuerySchemas)
    return [_parameter("query", name, parameter) for name, parameter in schema["properties"].items()]


def _parameter(place: str, name: str, schema: Json) -> Json:
    """The description is the parameter's, where tools show it, rather than its schema's."""
    rest = {key: value for key, value in schema.items() if key != "description"}
    return {
        "name": name,
        "in": place,
        "required": place == "path",
        "description": schema["description"],
        "schema": rest,
    }


def _request_body(model: type[RequestModel] | None) -> Json:
    if model is None:
        return {}
    return {"requestBody": {"required": True, "content": _content("application/json", model)}}


def _response(response: ResponseDoc) -> Json:
    mimetype = "application/problem+json" if response.model is ProblemDetails else "application/json"
    return {
        "description": response.description,
        "headers": {name: HEADERS[name] for name in response.headers},
        "content": _content(mimetype, response.model),
    }


def _content(mimetype: str, model: type[BaseModel]) -> Json:
    return {mimetype: {"schema": {"$ref": SCHEMA_REFERENCE.format(model=model.__name__)}}}


def _schemas() -> Json:
    models: set[type[BaseModel]] = {ProblemDetails}
    for operation in OPERATIONS.values():
        models.update(response.model for response in operation.responses.values())
        models.update(model for model in (operation.body,) if model)
    _, found = models_json_schema(
        [(model, "validation") for model in sorted(models, key=lambda model: model.__name__)],
        by_alias=False,
        ref_template=SCHEMA_REFERENCE,
        schema_generator=BodySchemas,
    )
    return cast(Json, found["$defs"])
