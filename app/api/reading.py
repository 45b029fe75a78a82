"""What the API is sent, read and checked before anything else happens."""

from http import HTTPStatus
from typing import Any, TypeVar

from flask import current_app, request
from pydantic import BaseModel, ValidationError
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge

from app.api.problems import LARGEST_BODY, Problem
from app.text import shortened

MOST_ERRORS = 100
"""A body can hold thousands of unknown fields; so many are named."""

Checked = TypeVar("Checked", bound=BaseModel)


def read_body(model: type[Checked]) -> Checked:
    """The JSON body. Raises Problem with 415, RequestEntityTooLarge, Problem with 400 or 422, in this order."""
    if not _is_json():
        raise Problem(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            "Send JSON in UTF-8, not compressed, with the header 'Content-Type: application/json'.",
            headers={"Accept": "application/json"},
        )
    try:
        given = current_app.json.loads(_body())
    except ValueError as error:
        raise Problem(HTTPStatus.BAD_REQUEST, f"The body is not JSON: {error}.") from None
    return checked(model, given)


def _is_json() -> bool:
    if request.environ.get("HTTP_CONTENT_ENCODING", "identity") != "identity":
        return False
    if request.environ.get("CONTENT_TYPE") == "application/json":  # as nearly all say it: nothing to be parsed
        return True
    charset = request.mimetype_params.get("charset", "utf-8").lower()
    return request.mimetype == "application/json" and charset in ("utf-8", "utf8")


def _body() -> bytes:
    # Werkzeug cuts a chunked body off at its limit without a word; one byte more shows that it was too large.
    request.max_content_length = LARGEST_BODY + 1
    try:
        body = request.get_data(cache=False)
    except HTTPException:
        raise
    except Exception as error:  # broken chunks: every server has exceptions of its own for them
        raise Problem(HTTPStatus.BAD_REQUEST, "The body broke off, or its chunks are not chunks.") from error
    if len(body) > LARGEST_BODY:
        raise RequestEntityTooLarge
    return body


def read_query(model: type[Checked]) -> Checked:
    """The query parameters. Raises Problem with 400 or 422."""
    try:
        given = request.args.to_dict(flat=False)
    except UnicodeDecodeError:
        raise Problem(HTTPStatus.BAD_REQUEST, "The query holds raw bytes that are not UTF-8.") from None
    return checked(model, {name: values[0] if len(values) == 1 else values for name, values in given.items()})


def checked(model: type[Checked], given: Any) -> Checked:
    """``given`` as the model keeps it. Raises Problem with 422 that names every wrong field and what it may be."""
    if isinstance(given, dict):  # a lone surrogate in a name would be all that pydantic complains of
        given = {shortened(name): value for name, value in given.items()}
    try:
        return model.model_validate(given)
    except ValidationError as error:
        wrong = error.errors(include_url=False, include_context=False, include_input=False)
    named = [("".join(map(str, problem["loc"][:1])), _message(model, problem)) for problem in wrong[:MOST_ERRORS]]
    raise wrong_fields(named, len(wrong))


def wrong_fields(named: list[tuple[str, str]], count: int = 1) -> Problem:
    """The answer that names wrong fields, each with a message; the name "" is the body as a whole."""
    return Problem(
        HTTPStatus.UNPROCESSABLE_ENTITY,
        "1 field is wrong." if count == 1 else f"{count} fields are wrong.",
        errors=[{"field": field, "message": message} for field, message in named],
    )


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
