"""Request schemas: bodies and query parameters. The OpenAPI document is made of them and of the response schemas."""

from pydantic import BaseModel, ConfigDict, Field

from app.fields import (
    EMAIL_RULE,
    ID_RULE,
    PAGE_SIZE_RULE,
    PRICE_RULE,
    SPREAD_RULE,
    BigInt,
    Email,
    Flag,
    Identifier,
    Moment,
    OptionalEmail,
    PageSize,
    Price,
    Seconds,
    Text,
)
from app.orders import UUID_PATTERN
from app.states import DeliveryState, NotificationStatus, OrderStatus, Outcome
from app.text import KIND_CHARACTERS


class RequestModel(BaseModel):
    """Base of all requests. A field that is not declared is refused."""

    model_config = ConfigDict(extra="forbid")


class NewOrder(RequestModel):
    """An order to place. Its order_id is the idempotency key: sent again, it is answered but not stored again."""

    order_id: Identifier = Field(description=ID_RULE)
    user_id: Identifier = Field(description=ID_RULE)
    total_price: Price = Field(description=PRICE_RULE)
    email: OptionalEmail = Field(None, description=EMAIL_RULE)

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"order_id": "1001", "user_id": "42", "total_price": 19.99},
                {"order_id": 1002, "user_id": 42, "total_price": "0.30", "email": "ann@example.com"},
            ]
        }
    )


class OrderQuery(RequestModel):
    """Which orders to list."""

    user_id: Identifier | None = Field(None, description=ID_RULE)
    status: OrderStatus | None = Field(None, description="created or confirmed")
    notification: NotificationStatus | None = Field(None, description="pending, skipped, failed or sent")
    limit: PageSize = Field(50, description=PAGE_SIZE_RULE)
    cursor: str | None = Field(None, pattern=f"^{UUID_PATTERN}$", description="the next_cursor of the page before")


class FeedQuery(RequestModel):
    """From where to read the feed of events."""

    after: str | None = Field(
        None,
        description="the next of the page before; left out or empty, it begins at the first event",
        json_schema_extra={"pattern": "^([0-9]{1,18}-[0-9]{1,18})?$"},
    )
    limit: PageSize = Field(50, description=PAGE_SIZE_RULE)


class DeliveryFilter(RequestModel):
    """Selects the deliveries that meet every condition. Without conditions it selects every delivery."""

    delivery_id: BigInt | None = Field(None, description="a delivery's number")
    state: DeliveryState | None = Field(None, description="ready, leased, done, dead or discarded")
    tried: Flag | None = Field(
        None, description="true or false: whether an attempt has failed since it was made, or made due anew"
    )
    receiver: Text | None = Field(None, max_length=100, description="a receiver's name of at most 100 characters")
    event_type: Text | None = Field(None, max_length=64, description="a type of event, such as OrderCreated")
    order_id: Identifier | None = Field(None, description=ID_RULE)
    user_id: Identifier | None = Field(None, description=ID_RULE)
    outcome: Outcome | None = Field(None, description=f"the latest attempt's: {', '.join(Outcome)}")
    reason: Text | None = Field(
        None, max_length=200, description="text of at most 200 characters that the reason holds"
    )
    reason_group: Text | None = Field(
        None, max_length=KIND_CHARACTERS, description="a reason as the groups by reason have it"
    )
    older_than: Moment | None = Field(None, description="a time with its offset, as 2026-11-23T08:00:00Z")


class DeliveryQuery(DeliveryFilter):
    """Which deliveries to list."""

    limit: PageSize = Field(50, description=PAGE_SIZE_RULE)
    cursor: BigInt = Field(0, description="the next_cursor of the page before")


class ActRequest(RequestModel):
    """Which deliveries to act on."""

    filter: DeliveryFilter = Field(description="an object of conditions; see DeliveryFilter")
    dry_run: bool = Field(False, strict=True, description="true or false: only count")


class RetryRequest(ActRequest):
    """Which waiting and dead deliveries to try now; discarded ones where the filter names their state."""

    over_seconds: Seconds | None = Field(None, description=SPREAD_RULE)
    probe: bool = Field(
        False, strict=True, description="true or false: also let an open circuit breaker take its next probe now"
    )


class DiscardRequest(ActRequest):
    """Which waiting and dead deliveries to give up for good, and why."""

    reason: Text = Field(min_length=1, max_length=1000, description="1 to 1000 characters, kept with each delivery")


class ReasonQuery(DeliveryFilter):
    """Which deliveries to group by reason."""

    limit: PageSize = Field(50, description=PAGE_SIZE_RULE)


class ActQuery(RequestModel):
    """Which acts to list."""

    limit: PageSize = Field(50, description=PAGE_SIZE_RULE)
    cursor: BigInt | None = Field(None, description="the next_cursor of the page before")


class ResendRequest(RequestModel):
    """Why an order's notification is sent again."""

    reason: Text | None = Field(
        None, min_length=1, max_length=1000, description="1 to 1000 characters, kept with the act"
    )


class DiscardReason(RequestModel):
    """Why a delivery is given up for good."""

    reason: Text = Field(min_length=1, max_length=1000, description="1 to 1000 characters, kept with the delivery")


class PauseRequest(RequestModel):
    """Why nothing is to be delivered to a receiver."""

    reason: Text = Field(min_length=1, max_length=1000, description="1 to 1000 characters, told to whoever looks")


class ReplayRequest(RequestModel):
    """Which recorded events to give to a receiver."""

    event_type: Text = Field(max_length=64, description="a type of event, such as OrderCreated")
    since: Moment | None = Field(None, description="a time with its offset, as 2026-11-23T08:00:00Z: from then on")
    until: Moment | None = Field(None, description="a time with its offset, as 2026-11-23T08:00:00Z: before then")
    order_id: Identifier | None = Field(None, description=ID_RULE)
    force: bool = Field(
        False, strict=True, description="true or false: also what the receiver has had, or what was given up"
    )
    over_seconds: Seconds | None = Field(None, description=SPREAD_RULE)
    dry_run: bool = Field(False, strict=True, description="true or false: only count")


class EmailRequest(RequestModel):
    """Where mails are to go."""

    email: Email = Field(description=EMAIL_RULE)


class SendSkippedRequest(RequestModel):
    """Which of the notifications that were skipped for want of an address to send, where there is one now."""

    order_id: Identifier | None = Field(None, description=ID_RULE)
    user_id: Identifier | None = Field(None, description=ID_RULE)
    over_seconds: Seconds | None = Field(None, description=SPREAD_RULE)
    dry_run: bool = Field(False, strict=True, description="true or false: only count")


class EmptyBody(RequestModel):
    """An empty object."""
