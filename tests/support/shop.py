"""The application as a test sees it: a clock that is moved by hand, a round of dispatching at a time."""

import dataclasses
import json
import threading
from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from sqlalchemy import select, text

from app import create_app
from app.bus import Dispatcher, Lease, LeaseEnd, queries
from app.bus.invoke import NotBegun
from app.bus.tables import Attempt, Delivery
from app.clock import Clock, uuid7
from app.db import Transaction, iso
from app.events import OrderCreated, order_created
from app.orders import find_order, find_user, place_order
from app.signal import DurableSignal, ReceiverOptions
from config import Settings

START = datetime(2026, 11, 23, 8, 0, tzinfo=UTC)


class StoppedClock(Clock):
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.time = START
        self.seconds = 1000.0

    def now(self) -> datetime:
        return self.time

    def monotonic(self) -> float:
        return self.seconds

    def advance(self, seconds: float) -> None:
        self.jump(seconds)
        self.seconds += seconds

    def jump(self, seconds: float) -> None:
        """The wall clock is set to another time, as by an administrator or NTP."""
        self.time += timedelta(seconds=seconds)


class FixedWait:
    """A retry policy: the same wait each time, up to ``attempts``."""

    def __init__(self, seconds: float = 60, attempts: int = 3) -> None:
        self.seconds, self.attempts = seconds, attempts

    maximum = 3600

    def wait(self, spent: int, outcome: str) -> float | None:
        return None if outcome == "refused" or spent >= self.attempts else self.seconds


def not_begun(leases: list[Lease]) -> list[tuple[Lease, NotBegun]]:
    """Answers that give leases back."""
    return [(lease, NotBegun()) for lease in leases]


def _owner(thread: threading.Thread) -> object:
    """The object whose method the thread runs."""
    return getattr(getattr(thread, "_target", None), "__self__", thread)


class Shop:
    """One application on one fresh database, and the verbs that tests are written in."""

    def __init__(self, settings: Settings, clock: Clock | None = None, policy: Any = None) -> None:
        self.clock: Any = clock or StoppedClock()
        self.policy: Any = policy or FixedWait()
        self.app = create_app(settings, clock=self.clock, policy=self.policy)
        self.settings = settings
        self.database = self.app.extensions["database"]
        self.bus = self.app.extensions["bus"]
        if settings.bus_engine == "celery":
            from tests.support.carriers import CarriedEngine  # here: Celery need not be installed

            self.app.extensions["engine"] = CarriedEngine(self.bus)
        self.engine = self.app.extensions["engine"]
        self.mailer = self.app.extensions["mailer"]
        self.client = self.app.test_client()
        self.dispatcher: Dispatcher = self.bus.dispatcher()
        self._connected = ExitStack()

    def close(self) -> None:
        self._connected.close()
        owners = (self.engine.worker, self.bus.watch, self.bus.learning)
        threads = [each for each in threading.enumerate() if _owner(each) in owners]
        self.engine.stop()
        for thread in threads:
            thread.join(1)  # one that is about to look at the database would open a connection that nobody closes
        self.database.close()

    # What a client does

    def post(self, **order: Any) -> Any:
        body = {"order_id": "1001", "user_id": "42", "total_price": "19.99"} | order
        return self.client.post("/api/create_order", json=body)

    def place_order(self, order_id: str = "1001", user_id: str = "42", price: str = "19.99", **more: Any) -> str:
        """An order as the route places it, without HTTP. Returns the event's id."""
        event_id = uuid7()

        def work(transaction: Transaction) -> None:
            facts = {"order_id": order_id, "user_id": user_id, "total_price": Decimal(price), "email": None} | more
            place_order(transaction, **facts, event_id=event_id)
            order_created.send("test", event=OrderCreated(**facts), event_id=event_id)

        self.database.transact(work)
        return event_id

    def place_orders(self, count: int) -> None:
        """Orders 0, 1 and so on."""
        for n in range(count):
            self.place_order(f"{n}")

    # What the bus does

    def receive(self, receiver: Callable[..., Any], signal: DurableSignal = order_created, **how: Any) -> None:
        """Connect a receiver, with the bus's options for it, for the length of the test."""
        named = [field.name for field in dataclasses.fields(ReceiverOptions)]
        options = {option: how.pop(option) for option in named if option in how}
        signal.connect(receiver, **how)
        self.bus.options[how.get("name") or receiver.__name__] = ReceiverOptions(**options)
        self._connected.callback(signal.disconnect, receiver)

    def only(self, receiver: Callable[..., Any], signal: DurableSignal = order_created, **how: Any) -> None:
        """Connect a receiver, and none but it to its signal, for the length of the test."""
        kept = dict(signal.subscriptions)
        for subscription in kept.values():
            signal.disconnect(subscription.receiver)

        def restore() -> None:
            for name, subscription in kept.items():
                signal.connect(subscription.receiver, name=name, when_dead=subscription.when_dead)

        self._connected.callback(restore)
        self.receive(receiver, signal, **how)

    def dispatch(self, dispatcher: Dispatcher | None = None) -> list[LeaseEnd]:
        """One round."""
        return (dispatcher or self.dispatcher).run_once()

    def dispatch_all(self, rounds: int = 50) -> list[LeaseEnd]:
        """Rounds until nothing is due."""
        done: list[LeaseEnd] = []
        for _ in range(rounds):
            settled = self.dispatch()
            done += settled
            if not settled:
                return done
        raise AssertionError(f"still something due after {rounds} rounds")

    # What can be seen afterwards

    def order(self, order_id: str = "1001") -> Any:
        with self.database.read() as session:
            return find_order(session, order_id)

    def user(self, user_id: str = "42") -> Any:
        with self.database.read() as session:
            return find_user(session, user_id)

    def deliveries(self, receiver: str | None = None) -> list[Delivery]:
        query = select(Delivery).order_by(Delivery.delivery_id)
        with self.database.read() as session:
            return list(session.scalars(query.where(Delivery.receiver == receiver) if receiver else query))

    def delivery(self, receiver: str) -> Delivery:
        (only,) = self.deliveries(receiver)
        return only

    def states(self) -> dict[str, str]:
        return {delivery.receiver: delivery.state for delivery in self.deliveries()}

    def outcomes(self, receiver: str) -> list[str]:
        delivery = self.delivery(receiver)
        with self.database.read() as session:
            query = select(Attempt.outcome).where(Attempt.delivery_id == delivery.delivery_id)
            return list(session.scalars(query.order_by(Attempt.attempt_id)))

    def timeline(self, order_id: str = "1001") -> list[dict[str, Any]]:
        with self.database.read() as session:
            return queries.timeline(session, order_id)

    def events(self) -> list[tuple[str, dict[str, Any]]]:
        with self.database.read() as session:
            found, _ = queries.feed(session, None, 1000)
            return [(row.type, json.loads(row.data)) for row in found]

    def count(self, table: str) -> int:
        with self.database.read() as session:
            return int(session.execute(text(f"SELECT count(*) FROM {table}")).scalar_one())

    def execute_scalar(self, query: str) -> Any:
        with self.database.read() as session:
            return session.execute(text(query)).scalar_one()

    def execute_all(self, query: str) -> list[Any]:
        with self.database.read() as session:
            return [tuple(row) for row in session.execute(text(query))]

    def execute(self, statement: str, **values: Any) -> None:
        """SQL behind the application's back. Times as text in the form of ``iso``."""
        given = {k: iso(v) if isinstance(v, datetime) and self.database.is_sqlite else v for k, v in values.items()}
        self.database.transact(lambda transaction: transaction.session.execute(text(statement), given))
