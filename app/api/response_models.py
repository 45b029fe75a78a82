"""Response schemas. The OpenAPI document is made of them and of the request schemas."""

from datetime import datetime
from decimal import Decimal
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, WithJsonSchema

from app.db import iso
from app.states import DeliveryState, NotificationStatus, OrderStatus, Outcome

Amount = Annotated[
    Decimal,
    PlainSerializer(lambda amount: f"{amount:.2f}"),
    WithJsonSchema(
        {
            "type": "string",
            "pattern": r"^[0-9]+\.[0-9]{2}$",
            "description": "exact, with two decimals; a string, so that no client rounds it",
            "examples": ["19.99"],
        }
    ),
]
Moment = Annotated[
    datetime,
    PlainSerializer(iso),
    WithJsonSchema({"type": "string", "format": "date-time", "examples": ["2026-11-23T08:15:30.123456Z"]}),
]


class ResponseModel(BaseModel):
    """Base of all responses."""

    model_config = ConfigDict(from_attributes=True)

    @classmethod
    def serialize(cls, record: Any) -> dict[str, Any]:
        """The fields of a record (an object with attributes, or a mapping) as the response's JSON has them."""
        return cls.model_validate(record).model_dump()


class PlacedOrder(ResponseModel):
    status: Literal["success"]
    message: Literal["订单创建成功"]
    order_id: str
    event_id: str = Field(description="of the OrderCreated event, from which everything else follows")


class OrderView(ResponseModel):
    order_id: str
    user_id: str
    total_price: Amount
    email: str | None
    status: OrderStatus
    notification: NotificationStatus
    created_at: Moment
    event_id: str = Field(description="of the OrderCreated event")


class AttemptView(ResponseModel):
    """One try at a delivery."""

    outcome: Outcome
    detail: str | None
    started_at: Moment
    ended_at: Moment
    dispatcher: str | None


class DeliveryFields(ResponseModel):
    """One event owed to one receiver."""

    delivery_id: int
    receiver: str
    state: DeliveryState
    due_at: Moment | None
    settled_at: Moment | None
    attempts_spent: int
    reason: str | None


class DeliveryView(DeliveryFields):
    """One event owed to one receiver, with every attempt."""

    attempts: list[AttemptView]


class EventView(ResponseModel):
    """A fact that happened to the order, and what became of it."""

    event_id: str
    type: str
    version: int
    source: str
    occurred_at: Moment
    cause_id: str | None
    correlation_id: str
    data: Any
    deliveries: list[DeliveryView]


class OrderWithTimeline(OrderView):
    timeline: list[EventView] = Field(description="oldest first")


class OrderPage(ResponseModel):
    orders: list[OrderView] = Field(description="newest first")
    next_cursor: str | None = Field(description="the cursor of the next page; null where this is the last")


class UserView(ResponseModel):
    user_id: str
    email: str | None
    orders_count: int
    total_spent: Amount
    last_order_id: str | None
    last_order_at: Moment | None


class CloudEvent(ResponseModel):
    """An event in the format CloudEvents 1.0. Data that is no JSON any more is sent as data_base64 instead of data."""

    specversion: Literal["1.0"]
    id: str = Field(validation_alias="event_id")
    source: str
    type: str
    subject: str = Field(validation_alias="order_id", description="the order_id")
    time: Moment = Field(validation_alias="occurred_at")
    datacontenttype: Literal["application/json", "application/octet-stream"]
    data: Any = None
    data_base64: str = ""
    dataversion: int = Field(validation_alias="version", description="of the type: another version has other fields")
    correlationid: str = Field(validation_alias="correlation_id", description="the id of the event that began it all")
    causationid: str = Field(
        "", validation_alias="cause_id", description="the id of the event that this one followed from"
    )


class EventPage(ResponseModel):
    events: list[CloudEvent] = Field(description="in the order in which they became facts")
    next: str = Field(description="as 'after' it goes on from here, now or later")


class DeliverySummary(DeliveryFields):
    """A delivery, and the event and the order that it is about."""

    outcome: Outcome | None = Field(description="of the latest attempt")
    event_id: str
    event_type: str
    order_id: str
    user_id: str


class DeliveryPage(ResponseModel):
    deliveries: list[DeliverySummary] = Field(description="oldest first")
    next_cursor: int | None = Field(description="the cursor of the next page; null where this is the last")


class ActResult(ResponseModel):
    deliveries: int = Field(description="how many were changed; in a dry run, how many would be")


class Health(ResponseModel):
    status: Literal["ok"]
    version: str = Field(description="of the service")


class Readiness(ResponseModel):
    status: Literal["ready"]
    dispatchers: int = Field(description="how many are alive")
    overdue_seconds: float = Field(description="for how long the oldest due delivery has waited")
    warnings: list[str] = Field(description="what is wrong though the service is ready: deliveries that fail")


class OpenAPIDocument(ResponseModel):
    openapi: str
    info: dict[str, Any]
    servers: list[dict[str, Any]]
    tags: list[dict[str, str]]
    paths: dict[str, Any]
    components: dict[str, Any]


class FieldError(BaseModel):
    field: str = Field(description='its name; "" is the body as a whole')
    message: str = Field(description="what is allowed")


class ProblemDetails(BaseModel):
    """Problem details (RFC 9457): an error, its cause and its cure."""

    type: str
    title: str
    status: int
    detail: str
    errors: list[FieldError] = Field([], description="the wrong fields")
    reasons: list[str] = Field([], description="why the service is not ready, each with its cure")
    causes: list[str] = Field([], description="the reasons' names, in their order, which monitoring may rely on")
    warnings: list[str] = Field([], description="what else is wrong: deliveries that fail")
