"""Field types of requests: how each value is checked and normalised.

A field's description is its rule: it stands in the OpenAPI document, and a client reads it when the field is wrong.
A validator raises ValueError, with a reason where it knows more than the rule says.
"""

import re
from datetime import UTC, datetime
from decimal import Decimal
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema

from app.addresses import checked_email
from app.orders import ID_PATTERN, is_identifier

CENT = Decimal("0.01")
MAX_PRICE = Decimal("9999999999.99")
MAX_EMAIL_CHARACTERS = 254
MAX_PAGE_SIZE = 200
MAX_BIGINT = 2**63 - 1
"""The largest number that a BIGINT column holds."""

MAX_SPREAD_SECONDS = 604800
"""The longest that the setting RETRY_MAX_SECONDS may be."""

EMAIL_RULE = f"an e-mail address of at most {MAX_EMAIL_CHARACTERS} characters: ann@example.com"
ID_RULE = "a string of 1 to 64 letters, digits, '.', '_', ':' or '-', but not '.' or '..', or a non-negative integer"
PRICE_PATTERN = r"0*[0-9]{1,10}(\.[0-9]{1,2})?"
PRICE_RULE = f'a number, or a decimal string as "19.99", from 0 to {MAX_PRICE} with at most two decimals'
PAGE_SIZE_RULE = f"a number from 1 to {MAX_PAGE_SIZE}: how many at most"
SPREAD_RULE = "a number of seconds, RETRY_MAX_SECONDS at most: the tries are spread evenly over so long"
FLAGS = {"true": True, "false": False}
"""A query's words."""


def _identifier(value: Any) -> str:
    """An id as text: 7 and "7" are the same id."""
    if type(value) is int and value >= 0:
        value = str(value)
    if not isinstance(value, str) or not is_identifier(value):
        raise ValueError
    return value


def _price(value: Any) -> Decimal:
    """The amount with two decimals. Nothing is rounded: more decimals are refused, even zeros."""
    amount = _decimal(value)
    if not amount.is_finite() or not 0 <= amount <= MAX_PRICE:
        raise ValueError
    if int(amount.as_tuple().exponent) < -2:
        raise ValueError
    return abs(amount.quantize(CENT))  # abs: -0.0 is 0


def _decimal(value: Any) -> Decimal:
    """Decimal, int and decimal strings; not bool, which is an int to Python."""
    if type(value) is int or (isinstance(value, str) and re.fullmatch(PRICE_PATTERN, value)):
        return Decimal(value)
    if not isinstance(value, Decimal):
        raise ValueError
    return value


def _email(value: Any) -> str:
    """The address with its domain in lower case. Its syntax is checked, not whether it exists."""
    if not isinstance(value, str) or len(value) > MAX_EMAIL_CHARACTERS:
        raise ValueError
    return checked_email(value)


def _number_in_query(highest: int) -> BeforeValidator:
    """Numbers of a query come as text. One of more digits than ``highest`` has is not converted, and so refused."""
    digits = re.compile(f"[0-9]{{1,{len(str(highest))}}}")
    return BeforeValidator(lambda given: int(given) if isinstance(given, str) and digits.fullmatch(given) else given)


def _storable_text(value: str) -> str:
    if re.search("[\0\ud800-\udfff]", value):
        raise ValueError("NUL and lone surrogates can't be kept")
    return value


def _moment(value: Any) -> datetime:
    try:
        moment = datetime.fromisoformat(value)
    except (TypeError, ValueError):
        raise ValueError from None  # the rule says more than Python's words
    if moment.tzinfo is None:
        raise ValueError("the offset is missing")
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        raise ValueError("in UTC it is outside the years 1 to 9999") from None


Identifier = Annotated[
    str,
    BeforeValidator(_identifier),
    WithJsonSchema({"anyOf": [{"type": "string", "pattern": f"^{ID_PATTERN}$"}, {"type": "integer", "minimum": 0}]}),
]
Price = Annotated[
    Decimal,
    BeforeValidator(_price),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "number", "minimum": 0, "maximum": float(MAX_PRICE), "multipleOf": 0.01},
                {"type": "string", "pattern": f"^{PRICE_PATTERN}$"},
            ]
        }
    ),
]
_EMAIL_SCHEMA = {"type": "string", "format": "email", "maxLength": MAX_EMAIL_CHARACTERS}
Email = Annotated[str, BeforeValidator(_email), WithJsonSchema(_EMAIL_SCHEMA)]
OptionalEmail = Annotated[Email | None, WithJsonSchema(_EMAIL_SCHEMA | {"type": ["string", "null"]})]
BigInt = Annotated[int, Field(strict=True, ge=0, le=MAX_BIGINT), _number_in_query(MAX_BIGINT)]
PageSize = Annotated[int, Field(strict=True, ge=1, le=MAX_PAGE_SIZE), _number_in_query(MAX_PAGE_SIZE)]
Flag = Annotated[
    bool,
    Field(strict=True),
    BeforeValidator(lambda given: FLAGS.get(given, given) if isinstance(given, str) else given),
]
Seconds = Annotated[int, Field(strict=True, ge=1, le=MAX_SPREAD_SECONDS)]
Text = Annotated[str, AfterValidator(_storable_text)]
Moment = Annotated[datetime, BeforeValidator(_moment), WithJsonSchema({"type": "string", "format": "date-time"})]
