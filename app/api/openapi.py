"""GET /openapi.json: the OpenAPI 3.1 document, made of the routes, of the views' Operations and of the schemas."""

import inspect
import re
from collections.abc import Collection
from typing import Any, cast

from flask import current_app, request
from flask.typing import ResponseReturnValue
from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, models_json_schema
from werkzeug.http import HTTP_STATUS_CODES
from werkzeug.routing import Map, Rule

from app.api.blueprint import blueprint
from app.api.operation import (
    ALWAYS,
    AT_METRICS,
    HEADERS,
    OPERATIONS,
    UNDER_API,
    UNDER_OPERATOR,
    WITH_BODY,
    WITH_QUERY,
    Operation,
    ResponseDoc,
)
from app.api.response_models import OpenAPIDocument, ProblemDetails
from app.api.samples import BODIES, PATH_VALUES, with_samples
from app.current import settings
from app.orders import ID_PATTERN
from app.request_models import RequestModel
from app.version import VERSION

Json = dict[str, Any]

ENDPOINT_PREFIX = f"{blueprint.name}."
SCHEMA_REFERENCE = "#/components/schemas/{model}"
PATH_PARAMETERS: dict[str, Json] = {
    "order_id": {"type": "string", "pattern": f"^{ID_PATTERN}$", "description": "the order's id"},
    "user_id": {"type": "string", "pattern": f"^{ID_PATTERN}$", "description": "the user's id"},
    "receiver": {"type": "string", "minLength": 1, "description": "the receiver's name"},
    "act_id": {"type": "integer", "minimum": 0, "description": "the act's number"},
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
    "status": "For operators: what is wrong, and what waits for whom.",
    "deliveries": "For operators: find what waits or was given up and why, retry it, or discard it; send a mail again.",
    "acts": "For operators: who did what, and what became of it; abort an act.",
    "receivers": "For operators: pause and resume a receiver, and give it recorded events again.",
    "addresses": "For operators: put an order's or a user's address right, and send what was skipped for want of one.",
    "metrics": "What Prometheus reads.",
    "health": "Whether the service is alive, and whether it is ready.",
    "openapi": "This document.",
}
"""By the module of the view, in the order in which they are shown."""

SECURITY_SCHEMES = {
    "token": {"type": "http", "scheme": "bearer", "description": "the setting API_TOKEN"},
    "metrics_token": {"type": "http", "scheme": "bearer", "description": "the setting METRICS_TOKEN"},
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
        extensions["openapi"] = document(current_app.url_map, demanded=_demanded())
    made, server = cast(Json, extensions["openapi"]), _server_url()
    return made | {"servers": [{"url": server}], "paths": with_samples(made["paths"], server)}


def _demanded() -> set[str]:
    """The security schemes that the settings demand."""
    chosen = settings()
    secrets = {"token": chosen.api_token, "password": chosen.console_password, "metrics_token": chosen.metrics_token}
    return {scheme for scheme, secret in secrets.items() if secret is not None}


def _server_url() -> str:
    """With the prefix that a proxy put before it. Paths are appended to it, so it ends without a slash."""
    return (request.root_url if request.host else request.script_root).rstrip("/") or "/"


def document(url_map: Map, *, demanded: Collection[str] = ()) -> Json:
    """The document of the blueprint's routes, apart from what depends on the address at which it is asked for.

    ``demanded`` are the security schemes without which the service refuses; others may be left out.
    """
    return {
        "openapi": "3.1.0",
        "info": INFO,
        "tags": [{"name": name, "description": description} for name, description in TAGS.items()],
        "paths": _paths(url_map, demanded),
        "components": {"schemas": _schemas(), "securitySchemes": SECURITY_SCHEMES},
    }


def _paths(url_map: Map, demanded: Collection[str]) -> Json:
    paths: dict[str, Json] = {}
    for rule in sorted(url_map.iter_rules(), key=lambda rule: rule.rule):
        if rule.endpoint.startswith(ENDPOINT_PREFIX):
            path = re.sub("<(?:int:)?([^>]+)>", r"{\1}", rule.rule)
            for method in sorted((rule.methods or set()) - {"HEAD", "OPTIONS"}):
                paths.setdefault(path, {})[method.lower()] = _operation(rule, demanded)
    return paths


def _operation(rule: Rule, demanded: Collection[str]) -> Json:
    name = rule.endpoint.removeprefix(ENDPOINT_PREFIX)
    operation, view = OPERATIONS[name]
    responses = _responses(rule, operation)
    return {
        "operationId": name,
        "tags": [view.__module__.rpartition(".")[2]],
        "summary": operation.summary,
        "description": inspect.getdoc(view) or "",
        "parameters": _path_parameters(rule) + _query_parameters(operation.query),
        **_security(rule, demanded),
        **_request_body(operation.body),
        "responses": {str(status): _response(status, responses[status]) for status in sorted(responses)},
    }


def _responses(rule: Rule, operation: Operation) -> dict[int, ResponseDoc]:
    """The view's own responses, and those that all routes of its kind share."""
    return {
        **operation.responses,
        **ALWAYS,
        **(UNDER_API if rule.rule.startswith("/api/") else {}),
        **(UNDER_OPERATOR if rule.rule.startswith("/operator/") else {}),
        **(AT_METRICS if rule.rule == "/metrics" else {}),
        **(WITH_QUERY if operation.query else {}),
        **(WITH_BODY if operation.body else {}),
    }


def _security(rule: Rule, demanded: Collection[str]) -> Json:
    for place, scheme in (("/api/", "token"), ("/operator/", "password"), ("/metrics", "metrics_token")):
        if rule.rule.startswith(place):
            return {"security": [{scheme: []}] if scheme in demanded else [{scheme: []}, {}]}
    return {}


def _path_parameters(rule: Rule) -> list[Json]:
    return [_parameter("path", name, PATH_PARAMETERS[name]) | {"example": PATH_VALUES[name]} for name in rule.arguments]


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
    content = _content("application/json", model)
    content["application/json"]["example"] = BODIES[model.__name__]
    return {"requestBody": {"required": True, "content": content}}


def _response(status: int, response: ResponseDoc) -> Json:
    return {
        "description": response.description,
        "headers": {name: HEADERS[name] for name in response.headers},
        "content": _response_content(status, response),
    }


def _response_content(status: int, response: ResponseDoc) -> Json:
    if response.model is None:
        return {"text/plain": {"schema": {"type": "string"}}}
    if response.model is not ProblemDetails:
        return _content("application/json", response.model)
    content = _content("application/problem+json", ProblemDetails)
    content["application/problem+json"]["example"] = {
        "type": "about:blank",
        "title": HTTP_STATUS_CODES[status],
        "status": status,
        "detail": response.detail,
        **response.members,
    }
    return content


def _content(mimetype: str, model: type[BaseModel]) -> Json:
    return {mimetype: {"schema": {"$ref": SCHEMA_REFERENCE.format(model=model.__name__)}}}


def _schemas() -> Json:
    models: set[type[BaseModel]] = {ProblemDetails}
    for operation, _ in OPERATIONS.values():
        models.update(response.model for response in operation.responses.values() if response.model)
        models.update(model for model in (operation.body,) if model)
    _, found = models_json_schema(
        [(model, "validation") for model in sorted(models, key=lambda model: model.__name__)],
        by_alias=False,
        ref_template=SCHEMA_REFERENCE,
        schema_generator=BodySchemas,
    )
    return cast(Json, found["$defs"])
