"""What may come in, field by field, and how it is kept.

A field's description is its rule: it stands in the OpenAPI document, and it is what the client is told when the
field is wrong. A validator raises ValueError, with a reason where it knows more than the rule says.
"""

import re
from datetime import UTC, datetime
from decimal import Decimal
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from app.addresses import checked_email
from app.orders import ID_PATTERN, is_identifier
from app.states import Outcome

HIGHEST_PRICE = Decimal("9999999999.99")
LONGEST_EMAIL = 254
LARGEST_PAGE = 200
LARGEST_NUMBER = 2**63 - 1
"""What a column of numbers holds."""

ID_RULE = "a string of 1 to 64 letters, digits, '.', '_', ':' or '-', or a non-negative integer"
PRICE_PATTERN = r"0*[0-9]{1,10}(\.[0-9]{1,2})?"
PRICE_RULE = f'a number, or a decimal string as "19.99", from 0 to {HIGHEST_PRICE} with at most two decimals'
UUID_PATTERN = "[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"


def _identifier(value: Any) -> str:
    """An id as text: 7 and "7" are the same."""
    if type(value) is int and value >= 0:
        value = str(value)
    if not isinstance(value, str) or not is_identifier(value):
        raise ValueError
    return value


def _price(value: Any) -> Decimal:
    """The amount with two decimals. Nothing is rounded: more decimals than two are refused, even zeros."""
    if type(value) is int or (isinstance(value, str) and re.fullmatch(PRICE_PATTERN, value)):
        value = Decimal(value)
    if not isinstance(value, Decimal) or not value.is_finite() or not 0 <= value <= HIGHEST_PRICE:
        raise ValueError
    if int(value.as_tuple().exponent) < -2:
        raise ValueError
    return abs(value.quantize(Decimal("0.01")))  # abs: -0.0 is 0


def _email(value: Any) -> str | None:
    """The address with its domain in lower case. Whether anybody reads mail there is not asked."""
    if value is None:
        return None
    if not isinstance(value, str) or len(value) > LONGEST_EMAIL:
        raise ValueError
    return checked_email(value)


def _digits(highest: int) -> BeforeValidator:
    """In a query a number comes as text, of no more digits than the highest has."""
    digits = re.compile(f"[0-9]{{1,{len(str(highest))}}}")
    return BeforeValidator(lambda given: int(given) if isinstance(given, str) and digits.fullmatch(given) else given)


def _text(value: str) -> str:
    if re.search("[\0\ud800-\udfff]", value):
        raise ValueError("NUL and lone surrogates can't be kept")
    return value


def _moment(value: Any) -> datetime:
    if not isinstance(value, str):
        raise ValueError
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        raise ValueError from None
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
                {"type": "number", "minimum": 0, "maximum": float(HIGHEST_PRICE), "multipleOf": 0.01},
                {"type": "string", "pattern": f"^{PRICE_PATTERN}$"},
            ]
        }
    ),
]
Email = Annotated[
    str | None,
    BeforeValidator(_email),
    WithJsonSchema({"type": ["string", "null"], "format": "email", "maxLength": LONGEST_EMAIL}),
]
Number = Annotated[int, Field(strict=True, ge=0, le=LARGEST_NUMBER), _digits(LARGEST_NUMBER)]
Text = Annotated[str, AfterValidator(_text)]
Moment = Annotated[datetime, BeforeValidator(_moment), WithJsonSchema({"type": "string", "format": "date-time"})]
PageSize = Annotated[int, Field(strict=True, ge=1, le=LARGEST_PAGE), _digits(LARGEST_PAGE)]


Status = Literal["created", "confirmed"]
Notification = Literal["pending", "skipped", "failed", "sent"]
State = Literal["ready", "leased", "done", "dead", "discarded"]


class Asked(BaseModel):
    """What comes in. A name that is not declared is refused."""

    model_config = ConfigDict(extra="forbid")


class NewOrder(Asked):
    """An order to place. Its order_id is the idempotency key: sent again, it is answered but not stored again."""

    order_id: Identifier = Field(description=ID_RULE)
    user_id: Identifier = Field(description=ID_RULE)
    total_price: Price = Field(description=PRICE_RULE)
    email: Email = Field(None, description=f"an e-mail address of at most {LONGEST_EMAIL} characters: ann@example.com")

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"order_id": "1001", "user_id": "42", "total_price": 19.99},
                {"order_id": 1002, "user_id": 42, "total_price": "0.30", "email": "ann@example.com"},
            ]
        }
    )


class OrderQuery(Asked):
    """Which orders to list."""

    user_id: Identifier | None = Field(None, description=ID_RULE)
    status: Status | None = Field(None, description="created or confirmed")
    notification: Notification | None = Field(None, description="pending, skipped, failed or sent")
    limit: PageSize = Field(50, description=f"a number from 1 to {LARGEST_PAGE}: how many at most")
    cursor: str | None = Field(None, pattern=f"^{UUID_PATTERN}$", description="the next_cursor of the page before")


class Which(Asked):
    """Which deliveries are meant: those that meet every condition. None at all means every delivery."""

    delivery_id: Number | None = Field(None, description="a delivery's number")
    state: State | None = Field(None, description="ready, leased, done, dead or discarded")
    receiver: Text | None = Field(None, max_length=100, description="a receiver's name of at most 100 characters")
    event_type: Text | None = Field(None, max_length=64, description="a type of event, such as OrderCreated")
    order_id: Identifier | None = Field(None, description=ID_RULE)
    user_id: Identifier | None = Field(None, description=ID_RULE)
    outcome: Outcome | None = Field(None, description=f"the latest attempt's: {', '.join(Outcome)}")
    reason: Text | None = Field(
        None, max_length=200, description="text of at most 200 characters that the reason holds"
    )
    older_than: Moment | None = Field(None, description="a time with its offset, as 2026-11-23T08:00:00Z")


class DeliveryQuery(Which):
    """Which deliveries to list."""

    limit: PageSize = Field(50, description=f"a number from 1 to {LARGEST_PAGE}: how many at most")
    cursor: Number = Field(0, description="the next_cursor of the page before")


class Retry(Asked):
    """Which dead and discarded deliveries to make due again."""

    filter: Which = Field(description="an object of conditions; see Which")
    dry_run: bool = Field(False, strict=True, description="true or false: only count")


class Discarding(Retry):
    """Which waiting and dead deliveries to give up for good, and why."""

    reason: Text = Field(min_length=1, max_length=1000, description="1 to 1000 characters, kept with each delivery")


class Reason(Asked):
    """Why a delivery is given up for good."""

    reason: Text = Field(min_length=1, max_length=1000, description="1 to 1000 characters, kept with the delivery")


class Nothing(Asked):
    """An empty object."""


class FeedQuery(Asked):
    """From where to read the feed of events."""

    after: str | None = Field(
        None,
        description="the next of the page before; left out, it begins at the first event",
        json_schema_extra={"pattern": "^[0-9]{1,18}-[0-9]{1,18}$"},
    )
    limit: PageSize = Field(50, description=f"a number from 1 to {LARGEST_PAGE}: how many at most")
