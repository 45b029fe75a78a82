"""The durable signal: a blinker signal whose sending survives a crash.

``send`` stores the event, and one delivery for each receiver, in the running transaction; the bus calls the receivers
later. Everything else that blinker users know keeps working: ``connect``, ``connected_to``, ``muted``,
``receivers_for``, sender filtering.
"""

import dataclasses
import inspect
import json
from collections.abc import Callable
from contextvars import ContextVar
from decimal import Decimal, InvalidOperation
from typing import Any, ClassVar, Protocol, TypeVar

from blinker import ANY, NamedSignal, Namespace

from app.errors import OutsideTransaction


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Base of all events: the order that it is about, and the order's user."""

    version: ClassVar[int] = 1

    order_id: str
    user_id: str


Receiver = Callable[..., Any]
F = TypeVar("F", bound=Receiver)


@dataclasses.dataclass(frozen=True, slots=True)
class Subscription:
    """A receiver under its stable name: what the deliveries table stores, and what finds the function again."""

    name: str
    receiver: Receiver
    parameters: frozenset[str]
    transactional: bool
    """A receiver that takes ``session`` or ``transaction`` runs inside the transaction that ends its delivery."""
    when_dead: Callable[[Any, str], Event] | None


@dataclasses.dataclass(frozen=True, slots=True)
class ReceiverOptions:
    """An application's choices for one receiver."""

    concurrency: int = 1
    """How many deliveries to it one process tries at once. A transactional receiver has one thread whatever it says."""
    timeout_seconds: float | None = None
    """How long it may take until its thread is written off; None for RECEIVER_TIMEOUT."""
    hold_unknown: bool = False
    """An attempt whose process died may or may not have had its effect: repeat it, or leave it to a person."""
    unknown_limit: int | None = None
    """After so many attempts whose outcome is unknown a delivery is dead; None leaves it to the retry policy."""


class Recorder(Protocol):
    """Stores an event, and a delivery for each subscription, in the transaction that it belongs to."""

    def __call__(self, event: Event, *, source: str, owed: list[Subscription], event_id: str | None) -> None: ...


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
    ) -> F:
        """Subscribe ``receiver`` under a stable name, by default its own.

        It is called as ``receiver(sender, ...)`` with those of ``event``, ``delivery``, ``session`` and
        ``transaction`` that it names as parameters. One that takes ``session`` or ``transaction`` runs inside the
        transaction that ends its delivery: its effects happen exactly once. One that does not is tried at least once.
        ``when_dead(event, reason)`` makes the event to publish when the bus gives a delivery up. How many run at once,
        and what becomes of an unknown outcome, is each application's to say: see ReceiverOptions.

        Raises ValueError when another receiver has the name, and when ``weak`` is true: what a process has garbage
        collected can't be called after a restart.
        """
        if weak:
            raise ValueError("a durable signal holds its receivers strongly; leave weak=True out")
        parameters = _parameters_of(receiver)
        subscription = Subscription(
            name=name or _name_of(receiver),
            receiver=receiver,
            parameters=parameters,
            transactional=not parameters.isdisjoint(("session", "transaction")),
            when_dead=when_dead,
        )
        known = self.subscriptions.get(subscription.name)
        if known is not None and known.receiver != receiver:
            raise ValueError(f"{self.name} has another receiver named {subscription.name!r}; connect with name=...")
        super().connect(receiver, sender, weak=False)
        self.subscriptions[subscription.name] = subscription
        return receiver

    def disconnect(self, receiver: Receiver, sender: Any = ANY) -> None:
        """Unsubscribe. Deliveries already recorded for the receiver stay, and show as without one."""
        super().disconnect(receiver, sender)
        if sender is ANY:
            self.subscriptions = {n: s for n, s in self.subscriptions.items() if s.receiver != receiver}

    def send(  # type: ignore[override]  # blinker calls the receivers now; we promise that they will be called
        self, sender: Any = None, /, *, event: Event, event_id: str | None = None
    ) -> list[tuple[Receiver, None]]:
        """Store ``event`` and a delivery for each receiver, in the running transaction.

        ``sender`` is where the event comes from: its text becomes the event's source. While the signal is muted the
        event is stored and delivered to nobody. Returns, as blinker does, the receivers with what came back: nothing
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
        record(event, source=source, owed=owed, event_id=event_id)
        return [(subscription.receiver, None) for subscription in owed]

    async def send_async(self, *_: Any, **__: Any) -> Any:
        """Recording is one local transaction: there is nothing to await. Raises TypeError; use send()."""
        raise TypeError(f"{self.name} is durable: use send() inside db.transact(work)")


SIGNALS: dict[str, DurableSignal] = {}
"""Every durable signal, by the name of its type of event."""

_namespace = Namespace()


def signal(name: str, event_type: type[Event]) -> DurableSignal:
    """A new durable signal. Raises ValueError when one exists for the name or the type of event."""
    if name in _namespace or event_type.__name__ in SIGNALS:
        raise ValueError(f"there is a signal {name!r}, or one for {event_type.__name__}, already")
    made = _namespace[name] = SIGNALS[event_type.__name__] = DurableSignal(name, event_type)
    return made


def subscriptions() -> dict[str, Subscription]:
    """Every connected receiver, by its name."""
    return {name: found for signal in SIGNALS.values() for name, found in signal.subscriptions.items()}


def _name_of(receiver: Receiver) -> str:
    name = getattr(receiver, "__name__", None)
    if not isinstance(name, str) or not name.isidentifier():
        raise ValueError(f"{receiver!r} has no name to be found by after a restart; connect with name=...")
    return name


def _parameters_of(receiver: Receiver) -> frozenset[str]:
    parameters = inspect.signature(receiver).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return frozenset({"event", "delivery", *(p.name for p in parameters)})
    return frozenset(parameter.name for parameter in parameters)


def _unwrapped(sender: Any) -> Any:
    """The object behind a proxy such as ``current_app``: receivers are connected to the object, not to the proxy."""
    real = getattr(type(sender), "_get_current_object", None)
    return sender._get_current_object() if real else sender


_encoder = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), default=str)


def encode(event: Event) -> str:
    """The event's data as a JSON object; a Decimal as its exact text."""
    return _encoder.encode({name: getattr(event, name) for name in SIGNALS[type(event).__name__].fields})


def decode(type_name: str, version: int, data: bytes | str) -> Event:
    """The event that encode() wrote. Raises ValueError that says what is wrong with it."""
    if type_name not in SIGNALS:
        raise ValueError(f"no signal carries events of type {type_name!r}")
    event_type, fields = SIGNALS[type_name].event_type, SIGNALS[type_name].fields
    if version != event_type.version:
        raise ValueError(f"{type_name} has version {version} here and {event_type.version} in the code")
    try:
        values = json.loads(data)
    except RecursionError:
        raise ValueError("the data is nested too deeply") from None
    if not isinstance(values, dict):
        raise ValueError("the data is not a JSON object")
    if unknown := values.keys() - fields.keys():
        raise ValueError(f"the data has unknown fields: {', '.join(sorted(unknown))}")
    if missing := fields.keys() - values.keys():
        raise ValueError(f"the data lacks: {', '.join(sorted(missing))}")
    return event_type(**{name: _decode_field(name, fields[name], value) for name, value in values.items()})


def _decode_field(name: str, declared: Any, value: Any) -> Any:
    if declared is Decimal and isinstance(value, str):
        try:
            number = Decimal(value)
        except InvalidOperation:
            raise ValueError(f"{name} is not a decimal number") from None
        if not number.is_finite():
            raise ValueError(f"{name} is not a finite number")
        return number
    if (not isinstance(declared, type) and value is None) or (isinstance(value, str) and declared is not Decimal):
        return value
    raise ValueError(f"{name} has the wrong type")
