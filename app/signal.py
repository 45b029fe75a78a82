"""The durable signal: a blinker signal whose sending survives a crash.

``send`` stores the event, and one delivery for each receiver, in the running transaction; the bus calls the receivers
later. Everything else that blinker users know keeps working: ``connect``, ``connected_to``, ``muted``,
``receivers_for``, sender filtering.
"""

import dataclasses
import difflib
import functools
import json
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from decimal import Decimal, InvalidOperation
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, TypeVar, get_args

from blinker import ANY, NamedSignal

from app.callables import check_called, check_when_dead, parameters_of, shown
from app.errors import OutsideTransaction


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Base of all events: the order that it is about, and the order's user."""

    version: ClassVar[int] = 1

    order_id: str
    user_id: str


Receiver = Callable[..., Any]

OrderingKey = Literal["order_id", "user_id"]
"""The key of an ordered receiver: a field that every event has."""

F = TypeVar("F", bound=Receiver)

LONGEST_NAME = 100
"""Characters of a receiver's name: the column of the deliveries table holds no more."""


@dataclasses.dataclass(frozen=True, slots=True)
class Subscription:
    """A receiver under its stable name: what the deliveries table stores, and what finds the function again."""

    name: str
    receiver: Receiver
    parameters: frozenset[str]
    transactional: bool
    """A receiver that takes ``session`` or ``transaction`` runs inside the transaction that ends its delivery."""
    when_dead: Callable[[Any, str], Event] | None
    ordered_by: OrderingKey | None = None
    """The field of its events whose equals are delivered one at a time, in the order of the events."""


@dataclasses.dataclass(frozen=True, slots=True)
class ReceiverOptions:
    """An application's choices for one receiver."""

    concurrency: int = 1
    """How many deliveries to it one process tries at once. A transactional receiver has one thread."""
    timeout_seconds: float | None = None
    """How long it may take until its thread is written off; None for RECEIVER_TIMEOUT."""
    hold_unknown: bool = False
    """An attempt whose process died may or may not have had its effect: repeat it, or leave it to a person."""
    unknown_limit: int | None = None
    """After so many attempts whose outcome is unknown a delivery is dead; None leaves it to the retry policy."""
    sends_mail: bool = False
    """Whether it delivers by the mail backend: an outage is the mail server's then, and a dispatcher that would send by
    another one refuses to start."""

    def __post_init__(self) -> None:
        """Raises ValueError for a number with which no delivery could succeed."""
        for name in ("concurrency", "unknown_limit"):
            number = getattr(self, name)
            if number is not None and number < 1:
                raise ValueError(f"{name}={number!r} would let no delivery through; give 1 or more")
        if self.timeout_seconds is not None and not self.timeout_seconds > 0:
            raise ValueError(f"timeout_seconds={self.timeout_seconds!r} is no time; give more than 0, or leave it out")


class Origin(NamedTuple):
    """The request that an event comes from, as other systems know it."""

    traceparent: str | None = None
    """W3C Trace Context, valid: kept on the event, and on all that follow from it."""
    request_id: str | None = None


NO_ORIGIN = Origin()


class Recorder(Protocol):
    """Stores an event, and a delivery for each subscription, in the transaction that it belongs to."""

    def __call__(
        self, event: Event, *, source: str, owed: list[Subscription], event_id: str | None, origin: Origin
    ) -> None: ...


recorder: ContextVar[Recorder | None] = ContextVar("recorder", default=None)
"""The running transaction's recorder. So what is sent goes to the database of the application whose transaction it is,
however many applications one process has."""


class DurableSignal(NamedSignal):
    """A blinker signal that carries one type of event, and survives a crash."""

    def __init__(self, name: str, event_type: type[Event]) -> None:
        super().__init__(name, doc=event_type.__doc__)
        self.event_type = event_type
        self.fields: dict[str, Any] = {field.name: field.type for field in dataclasses.fields(event_type)}
        """The fields of the event type: names and declared types."""
        self.subscriptions: dict[str, Subscription] = {}

    def connect(
        self,
        receiver: F,
        sender: Any = ANY,
        weak: bool = False,
        *,
        name: str | None = None,
        when_dead: Callable[[Any, str], Event] | None = None,
        ordered_by: OrderingKey | None = None,
    ) -> F:
        """Subscribe ``receiver`` under a stable name, by default its own.

        It is called as ``receiver(sender, ...)`` with those of ``event``, ``delivery``, ``session`` and
        ``transaction`` that it names as parameters. One that takes ``session`` or ``transaction`` runs inside the
        transaction that ends its delivery: its effects happen exactly once. One that does not is tried at least once.
        ``when_dead(event, reason)`` makes the event to publish when the bus gives a delivery up. How many run at once,
        and what becomes of an unknown outcome, is each application's to say: see ReceiverOptions.

        ``ordered_by="order_id"``, or ``"user_id"``: of one order's, or one user's, deliveries to this receiver one is
        under way at a time, and the next follows once it is done, dead or discarded. Without it, a delivery that fails
        holds up no other.

        Raises ValueError when another receiver has the name, for another ``ordered_by``, and when ``weak`` is true:
        what a process has garbage collected can't be called after a restart. Raises TypeError for what no delivery
        could ever succeed with. Each says what to write instead.
        """
        if weak:
            raise ValueError("a durable signal holds its receivers strongly; leave weak=True out")
        check_called(receiver, "return Done(event, ...) instead of yielding events")
        parameters = parameters_of(receiver)
        if when_dead is not None:
            check_when_dead(when_dead)
        subscription = Subscription(
            name=_name_of(receiver) if name is None else name,
            receiver=receiver,
            parameters=parameters,
            transactional=not parameters.isdisjoint(("session", "transaction")),
            when_dead=when_dead,
            ordered_by=ordered_by,
        )
        self._check_name(subscription)
        super().connect(receiver, sender, weak=False)
        self.subscriptions[subscription.name] = subscription
        return receiver

    def _check_name(self, new: Subscription) -> None:
        """Threads, options and the circuit breaker are a name's, whichever signal it is connected to."""
        if not isinstance(new.name, str) or not 0 < len(new.name) <= LONGEST_NAME or not new.name.isprintable():
            raise ValueError(f"name={new.name!r}: give 1 to {LONGEST_NAME} printable characters, such as 'tell_sales'")
        if new.ordered_by not in (None, *get_args(OrderingKey)):
            raise ValueError(f"ordered_by={new.ordered_by!r}: give 'order_id' or 'user_id', or leave it out")
        for signal in (self, *SIGNALS.values()):
            known = signal.subscriptions.get(new.name)
            if known is not None and known.receiver != new.receiver:
                raise ValueError(
                    f"{signal.name} has another receiver named {new.name!r}, {shown(known.receiver)}; rename one of "
                    "the two, or connect the new one with name='a_name_of_its_own'"
                )
            if known is not None and signal is not self and known.ordered_by != new.ordered_by:
                raise ValueError(
                    f"{new.name} is connected to {signal.name} with ordered_by={known.ordered_by!r}; give the same here"
                )

    def disconnect(self, receiver: Receiver, sender: Any = ANY) -> None:
        """Unsubscribe. Deliveries already recorded for the receiver stay, and show as without one."""
        super().disconnect(receiver, sender)
        if sender is ANY:
            self.subscriptions = {n: s for n, s in self.subscriptions.items() if s.receiver != receiver}

    def send(  # type: ignore[override]  # blinker calls the receivers now; we promise that they will be called
        self, sender: Any = None, /, *, event: Event, event_id: str | None = None, origin: Origin = NO_ORIGIN
    ) -> list[tuple[Receiver, None]]:
        """Store ``event`` and a delivery for each receiver, in the running transaction.

        ``sender`` is where the event comes from: its text becomes the event's source. What a receiver sends belongs to
        the trace of the event that it was given; ``origin`` is for other senders. While the signal is muted the event
        is stored and delivered to nobody. Returns, as blinker does, the receivers with what came back: nothing
        yet. Raises TypeError for an event of another type, OutsideTransaction outside db.transact(work).
        """
        if type(event) is not self.event_type:
            raise TypeError(f"{self.name} carries {self.event_type.__name__}, not {type(event).__name__}")
        record = recorder.get()
        if record is None:
            raise OutsideTransaction
        sender = _unwrapped(sender)
        source = str(getattr(sender, "name", sender) or "unknown")
        receivers = [] if self.is_muted else list(self.receivers_for(sender))
        owed = [subscription for subscription in self.subscriptions.values() if subscription.receiver in receivers]
        record(event, source=source, owed=owed, event_id=event_id, origin=origin)
        return [(subscription.receiver, None) for subscription in owed]

    async def send_async(self, *_: Any, **__: Any) -> Any:
        """Recording is one local transaction: there is nothing to await. Raises TypeError; use send()."""
        raise TypeError(f"{self.name} is durable: use send() inside db.transact(work)")


SIGNALS: dict[str, DurableSignal] = {}
"""Every durable signal, by the name of its type of event."""


def signal(name: str, event_type: type[Event]) -> DurableSignal:
    """A new durable signal. Raises ValueError when one exists for the name or the type of event."""
    if event_type.__name__ in SIGNALS or any(known.name == name for known in SIGNALS.values()):
        raise ValueError(f"there is a signal {name!r}, or one for {event_type.__name__}, already")
    made = SIGNALS[event_type.__name__] = DurableSignal(name, event_type)
    return made


def check_options(options: Mapping[str, ReceiverOptions]) -> None:
    """Raises ValueError for options of a receiver that is not connected, or that can't have them."""
    known = subscriptions()
    for name, chosen in options.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            cure = f"did you mean {near[0]!r}?" if near else f"connected are {', '.join(known)}"
            raise ValueError(f"there are options for {name!r}, and no receiver is connected by that name; {cure}")
        if known[name].transactional and chosen.concurrency > 1:
            raise ValueError(f"{name} takes a session or transaction, and so has one thread; leave concurrency out")


def subscriptions() -> dict[str, Subscription]:
    """Every connected receiver, by its name."""
    return {name: found for signal in SIGNALS.values() for name, found in signal.subscriptions.items()}


def ordering_of(name: str) -> OrderingKey | None:
    """The ordering key of the receiver of that name; None also where no receiver has the name."""
    for each in SIGNALS.values():
        if (found := each.subscriptions.get(name)) is not None:
            return found.ordered_by
    return None


def _name_of(receiver: Receiver) -> str:
    name = getattr(receiver, "__name__", None)
    if not isinstance(name, str) or not name.isidentifier():
        raise ValueError(
            f"{shown(receiver)} has no name to be found by after a restart; write it as a function with 'def', or "
            "connect it with name='a_name_that_stays'"
        )
    return name


def _unwrapped(sender: Any) -> Any:
    """The object behind a proxy such as ``current_app``: receivers are connected to the object, not to the proxy."""
    real = getattr(type(sender), "_get_current_object", None)
    return sender._get_current_object() if real else sender


_encoder = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), default=str)
_decoder = json.JSONDecoder()


def encode(event: Event) -> str:
    """The event's data as a JSON object; a Decimal as its exact text."""
    return _encoder.encode({name: getattr(event, name) for name in SIGNALS[type(event).__name__].fields})


def decode(type_name: str, version: int, data: bytes | str) -> Event:
    """The event that encode() wrote. Raises ValueError that says what is wrong with it."""
    if type_name not in SIGNALS:
        raise ValueError(f"no signal carries events of type {type_name!r}")
    event_type = SIGNALS[type_name].event_type
    if version != event_type.version:
        raise ValueError(f"{type_name} has version {version} here and {event_type.version} in the code")
    return _decoded(SIGNALS[type_name], data)


@functools.lru_cache(maxsize=64)  # an event's receivers mostly run one soon after another
def _decoded(carrier: DurableSignal, data: bytes | str) -> Event:
    fields = carrier.fields
    try:
        values = _decoder.decode(data.decode() if isinstance(data, bytes) else data)
    except RecursionError:
        raise ValueError("the data is nested too deeply") from None
    if not isinstance(values, dict):
        raise ValueError("the data is not a JSON object")
    if values.keys() != fields.keys():
        unknown, missing = sorted(values.keys() - fields.keys()), sorted(fields.keys() - values.keys())
        what = f"has unknown fields: {', '.join(unknown)}" if unknown else f"lacks: {', '.join(missing)}"
        raise ValueError(f"the data {what}")
    for name, value in values.items():
        if fields[name] is Decimal or type(value) is not str:
            values[name] = _decode_field(name, fields[name], value)
    return carrier.event_type(**values)


def _decode_field(name: str, declared: Any, value: Any) -> Any:
    """Of a Decimal's text, or of what is no text: that may be none, where the field may."""
    if declared is Decimal and isinstance(value, str):
        try:
            number = Decimal(value)
        except InvalidOperation:
            raise ValueError(f"{name} is not a decimal number") from None
        if not number.is_finite():
            raise ValueError(f"{name} is not a finite number")
        return number
    if not isinstance(declared, type) and value is None:
        return value
    raise ValueError(f"{name} has the wrong type")
