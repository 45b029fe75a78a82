"""Request validation: JSON bodies and query strings, checked by a request schema before a view does anything."""

from http import HTTPStatus
from typing import Any, TypeVar

from flask import Request, current_app, request
from pydantic import BaseModel, ValidationError
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge

from app.http import MAX_BODY_BYTES, Problem, current_request
from app.refusals import NOT_TYPED_JSON, NOT_UTF8
from app.text import shortened

MAX_ERRORS = 100
"""How many wrong fields are named. A body can hold thousands of unknown ones."""

Model = TypeVar("Model", bound=BaseModel)


def read_body(model: type[Model]) -> Model:
    """The JSON body. Raises Problem with 415, RequestEntityTooLarge, Problem with 400 or 422, in this order."""
    asked = current_request()
    if not _is_json(asked):
        raise Problem(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            NOT_TYPED_JSON,
            headers={"Accept": "application/json"},
        )
    try:
        given = current_app.json.loads(_raw_body(asked))
    except ValueError as error:
        raise Problem(HTTPStatus.BAD_REQUEST, f"The body is not JSON: {error}.") from None
    return validate(model, given)


def read_query(model: type[Model]) -> Model:
    """The query parameters. Raises Problem with 400 or 422."""
    try:
        given = request.args.to_dict(flat=False)
    except UnicodeDecodeError:
        raise Problem(HTTPStatus.BAD_REQUEST, NOT_UTF8) from None
    return validate(model, {name: values[0] if len(values) == 1 else values for name, values in given.items()})


def validate(model: type[Model], given: Any) -> Model:
    """An instance of the model. Raises Problem with 422, which names every wrong field and what it may be."""
    if isinstance(given, dict) and not given.keys() <= model.model_fields.keys():
        # For a lone surrogate in a name, pydantic would report nothing else.
        given = {shortened(name): value for name, value in given.items()}
    try:
        return model.model_validate(given)
    except ValidationError as error:
        wrong = error.errors(include_url=False, include_context=False, include_input=False)
    named = [(_field(problem), _message(model, problem)) for problem in wrong[:MAX_ERRORS]]
    raise field_problem(named, len(wrong))


def field_problem(named: list[tuple[str, str]], count: int = 1) -> Problem:
    """The 422 that names wrong fields, each with a message. The field "" is the body as a whole."""
    return Problem(
        HTTPStatus.UNPROCESSABLE_ENTITY,
        "1 field is wrong." if count == 1 else f"{count} fields are wrong.",
        errors=[{"field": field, "message": message} for field, message in named],
    )


def _is_json(asked: Request) -> bool:
    if asked.environ.get("HTTP_CONTENT_ENCODING", "identity") != "identity":
        return False
    if asked.environ.get("CONTENT_TYPE") == "application/json":  # nearly all clients: saves parsing the header
        return True
    charset = asked.mimetype_params.get("charset", "utf-8").lower()
    return asked.mimetype == "application/json" and charset in ("utf-8", "utf8")


def _raw_body(asked: Request) -> bytes:
    declared = asked.content_length or 0
    try:
        if 0 < declared <= MAX_BODY_BYTES:
            # Werkzeug's get_data() costs 3.5 % more of a POST's instructions.
            body: bytes = asked.environ["wsgi.input"].read(declared)
        else:
            # Werkzeug cuts a chunked body off at its limit without an error; one byte more shows that it was too large.
            asked.max_content_length = MAX_BODY_BYTES + 1
            body = asked.get_data(cache=False)
    except HTTPException:
        raise
    except Exception as error:  # broken chunks: every WSGI server has its own exceptions for them
        raise Problem(HTTPStatus.BAD_REQUEST, "The body broke off, or its chunks are not chunks.") from error
    if len(body) < declared:  # gunicorn hands on what came before the client went away
        raise Problem(HTTPStatus.BAD_REQUEST, "The body broke off: it is shorter than its Content-Length.")
    if len(body) > MAX_BODY_BYTES:
        raise RequestEntityTooLarge
    return body


def _field(problem: Any) -> str:
    return str(problem["loc"][0]) if problem["loc"] else ""


def _message(model: type[BaseModel], problem: Any) -> str:
    if not problem["loc"]:
        return "must be a JSON object"
    if problem["type"] == "extra_forbidden":
        return f"is unknown; known are {', '.join(model.model_fields)}"
    rule = model.model_fields[problem["loc"][0]].description
    if problem["type"] == "missing":
        return f"is required: {rule}"
    reason = problem["msg"].partition("Value error, ")[2]
    return f"must be {rule}" + (f" ({reason})" if reason else "")
