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
    reply_code: int | None = Field(description="of the other side's reply, such as SMTP's 450")
    enhanced_code: str | None = Field(description="of that reply (RFC 3463), such as 4.7.1")
    why: str | None = Field(
        description="why it was made then and not before, in one sentence; null where nothing held it back"
    )


class DeliveryFields(ResponseModel):
    """One event owed to one receiver."""

    delivery_id: int
    receiver: str
    state: DeliveryState
    due_at: Moment | None
    settled_at: Moment | None
    attempts_spent: int
    reason: str | None
    due_because: str | None = Field(description="why the retry policy chose due_at, in one sentence")


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
    traceparent: str | None = Field(description="the trace that it belongs to, as W3C Trace Context has it")
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
    id: str
    source: str
    type: str
    subject: str = Field(description="the order_id")
    time: Moment
    datacontenttype: Literal["application/json", "application/octet-stream"]
    data: Any = None
    data_base64: str = ""
    dataversion: int = Field(description="of the type: another version has other fields")
    correlationid: str = Field(description="the id of the event that began it all")
    causationid: str = Field("", description="the id of the event that this one followed from")
    traceparent: str = Field("", description="the trace that it belongs to: CloudEvents' Distributed Tracing extension")


class EventPage(ResponseModel):
    events: list[CloudEvent] = Field(description="in the order in which they became facts")
    next: str = Field(description="as 'after' it goes on from here, now or later")


class DeliverySummary(DeliveryFields):
    """A delivery, and the event and the order that it is about."""

    outcome: Outcome | None = Field(description="of the latest attempt")
    next_try: Moment | None = Field(
        description="of one that waits: when it is due, and no open circuit breaker keeps it back"
    )
    event_id: str
    event_type: str
    order_id: str
    user_id: str


class DeliveryPage(ResponseModel):
    deliveries: list[DeliverySummary] = Field(description="oldest first")
    next_cursor: int | None = Field(description="the cursor of the next page; null where this is the last")


class ReasonView(ResponseModel):
    """Deliveries that are where they are for one reason, with the newest and the oldest as examples."""

    deliveries: int
    receiver: str
    state: DeliveryState
    outcome: Outcome | None = Field(description="of the latest attempt")
    reason: str | None = Field(description="with placeholders for numbers, addresses, ids and quoted words")
    example_delivery_id: int = Field(description="the newest")
    example_order_id: str
    first_delivery_id: int = Field(description="the oldest of those that were looked at")
    first_order_id: str


class ReasonList(ResponseModel):
    reasons: list[ReasonView] = Field(description="the largest group first")
    complete: bool = Field(
        description="false: more deliveries match than are looked at, or more groups than are asked for"
    )


class ActResult(ResponseModel):
    deliveries: int = Field(description="how many were touched; in a dry run, how many would be")
    act_id: int | None = Field(description="the act, by which it can be looked at; null in a dry run")


class ProgressView(ResponseModel):
    """The progress of an act: what became of the deliveries that it touched."""

    done: int
    failed: dict[str, int] = Field(
        description="tried since, without success: how many, by the latest outcome; given_up is without an attempt"
    )
    discarded: int
    left: int = Field(description="not tried since, or under way")
    taken_back: int = Field(description="by an abort")
    forgotten: int = Field(description="deleted since, as finished and old")
    receivers: list[str]
    left_to: list[str] = Field(description="the receivers of those that are left")


class ActView(ResponseModel):
    """An operator's act."""

    act_id: int
    acted_at: Moment
    acted_by: str
    action: str
    filter: Any = Field(description="the conditions, as an object")
    reason: str | None
    counted: int | None = Field(description="selected when the act began")
    deliveries: int = Field(description="touched until now")
    over_seconds: int | None
    ended_at: Moment | None = Field(description="when all that was counted had been touched")
    aborted_at: Moment | None
    aborted_by: str | None
    state: Literal["running", "left", "ended", "aborted"] = Field(description="left: its process died in the middle")
    progress: ProgressView | None = Field(description="in a list, null for an act on very many deliveries")


class ActPage(ResponseModel):
    acts: list[ActView] = Field(description="newest first")
    next_cursor: int | None = Field(description="the cursor of the next page; null where this is the last")


class AbortResult(ResponseModel):
    act_id: int
    taken_back: int = Field(description="deliveries that are again what they were before the act")


class ResendResult(ResponseModel):
    act_id: int
    event_id: str = Field(description="of the NotificationRequested event, from which the mail follows")


class ReceiverView(ResponseModel):
    """A receiver, and whether it is delivered to."""

    receiver: str
    state: Literal["delivering", "paused", "breaker_open"]
    event_types: list[str]
    transactional: bool = Field(description="whether its effects are in the transaction that ends its delivery")
    connected: bool = Field(description="whether this process knows it")
    paused_at: Moment | None
    paused_by: str | None
    reason: str | None = Field(description="why it is paused")
    breaker_opened_at: Moment | None


class ReceiverPage(ResponseModel):
    receivers: list[ReceiverView] = Field(description="by name")


class PauseResult(ResponseModel):
    changed: bool = Field(description="false where it was so before, and nothing was recorded")


class ReplayResult(ResponseModel):
    deliveries: int = Field(description="how many events were given to the receiver; in a dry run, how many would be")
    events: int = Field(description="of the type and the time that are kept")
    oldest_at: Moment | None = Field(description="when the oldest of these events occurred")
    finished: int = Field(description="of these, how many the receiver had had, or were given up")
    under_way: int = Field(description="of these, how many wait or are being tried: they are left alone")
    act_id: int | None = Field(description="the act, by which it can be looked at; null in a dry run")
    kept_since: Moment | None = Field(description="when the oldest event that is kept occurred; older ones are pruned")


class EmailResult(ResponseModel):
    email: str = Field(description="where mails go from now on")
    changed: bool = Field(description="false where it was so before, and nothing was recorded")
    skipped: int = Field(
        description="how many notifications, of all orders, were skipped for want of an address and have one now: "
        "/operator/orders/send-skipped sends them"
    )


class TroubleView(ResponseModel):
    cause: str = Field(description="its name, which monitoring may rely on")
    text: str = Field(description="what is wrong, and the cure")
    detail: str | None = Field(description="what not everybody should read: hosts, ids and users")
    receiver: str | None


class DispatcherView(ResponseModel):
    name: str
    started_at: Moment
    seen_at: Moment = Field(description="its latest heartbeat")
    settings: dict[str, Any] = Field(description="what it delivers by, its version, and where it differs from others")


class BreakerView(ResponseModel):
    """An open circuit breaker."""

    opened_at: Moment
    failures: int
    next_probe_at: Moment
    reason: str | None


class PauseView(ResponseModel):
    """A person's pause."""

    paused_at: Moment
    paused_by: str
    reason: str


class HeldBackView(ResponseModel):
    """Deliveries of an ordered receiver that wait behind others of their key."""

    deliveries: int
    delivery_id: int = Field(description="the one of them that was made first")
    ordering_key: str = Field(description="its order id or user id")
    waits_behind: int = Field(description="the delivery that it waits behind")


class ReceiverStatusView(ResponseModel):
    receiver: str
    is_connected: bool = Field(description="whether this process knows it")
    waiting: int = Field(description="deliveries that are due, or wait for their next try")
    in_flight: int
    retrying: int = Field(description="of those that wait, how many failed at least once")
    next_try_at: Moment | None = Field(description="of the first of these")
    oldest_waits_since: Moment | None
    dead: int
    skipped: int = Field(description="discarded by the receiver's own answer, among skipped_among deliveries")
    skipped_among: int = Field(description="how many deliveries of all receivers, the latest, were looked at")
    skipped_because: str | None = Field(description="of the last of these")
    ended: int = Field(description="done or dead within ended_within_seconds")
    ended_within_seconds: float
    drained_in_seconds: float | None = Field(description="of what waits, at this rate; null where nothing ends")
    breaker: BreakerView | None
    pause: PauseView | None
    is_exact: bool = Field(description="false where a number stands for more than it says")
    held_back: HeldBackView | None = Field(description="what waits behind others of its key, of an ordered receiver")


class StatusView(ResponseModel):
    at: Moment
    ready: bool
    reasons: list[TroubleView] = Field(description="why the service is not ready")
    warnings: list[TroubleView]
    dispatchers: list[DispatcherView] = Field(description="those that are alive")
    last_dispatcher: DispatcherView | None = Field(description="where none is alive, the last one that was")
    receivers: list[ReceiverStatusView] = Field(description="by name")
    refused_here: str | None = Field(description="why a dispatcher with this process' settings would not start")


class FindingView(ResponseModel):
    level: Literal["fine", "note", "wrong"] = Field(description="note is worth a thought; wrong fails, or will")
    check: str
    text: str = Field(description="what was found, and the cure")


class FindingsView(ResponseModel):
    findings: list[FindingView] = Field(description="in the order in which a person would mend things")
    exit_code: int = Field(description="of the command: 0 nothing is wrong, 1 something is, 2 it could not look")


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
