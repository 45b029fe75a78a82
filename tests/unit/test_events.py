"""Events, their JSON, and what a durable signal keeps of blinker."""

from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from werkzeug.local import LocalProxy

from app import signal
from app.errors import OutsideTransaction
from app.events import NotificationSent, OrderCreated, order_created
from app.signal import DurableSignal, Event

CREATED = OrderCreated(order_id="1001", user_id="42", total_price=Decimal("19.90"))


class Recorder:
    """Remembers what it was asked to store."""

    def __init__(self) -> None:
        self.stored: list[tuple[Event, str, list[str]]] = []

    def __call__(
        self,
        event: Event,
        *,
        source: str,
        owed: list[signal.Subscription],
        event_id: str | None,
        origin: signal.Origin,
    ) -> None:
        self.stored.append((event, source, [subscription.name for subscription in owed]))

    @property
    def owed(self) -> list[str]:
        return self.stored[-1][2]


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    made = Recorder()
    token = signal.recorder.set(made)
    yield made
    signal.recorder.reset(token)


@pytest.fixture
def placed() -> Iterator[DurableSignal]:
    """A signal that nobody else listens to."""
    made = signal.signal("order_placed", type("OrderPlaced", (OrderCreated,), {}))
    yield made
    del signal.SIGNALS["OrderPlaced"]


@pytest.fixture
def event(placed: DurableSignal) -> Event:
    return placed.event_type(order_id="1", user_id="2", total_price=Decimal(3))  # type: ignore[call-arg]


def first(sender: Any, event: Event) -> None: ...


def second(sender: Any, event: Event, session: Any) -> None: ...


def test_an_event_comes_back_as_it_was() -> None:
    assert signal.decode("OrderCreated", 1, signal.encode(CREATED)) == CREATED


@given(order_id=st.text(), price=st.decimals(allow_nan=False, allow_infinity=False), email=st.none() | st.text())
def test_any_text_and_any_number_come_back_exactly(order_id: str, price: Decimal, email: str | None) -> None:
    event = OrderCreated(order_id=order_id, user_id="1", total_price=price, email=email)
    again = signal.decode("OrderCreated", 1, signal.encode(event))
    assert again == event
    assert str(again.total_price) == str(price)  # type: ignore[attr-defined]


@given(st.binary() | st.text())
def test_garbage_is_a_value_error_and_nothing_else(data: bytes | str) -> None:
    with pytest.raises(ValueError, match=r".*"):
        signal.decode("OrderCreated", 1, data)


@pytest.mark.parametrize(
    ("kind", "version", "data", "words"),
    [
        ("OrderEaten", 1, "{}", "no signal carries"),
        ("OrderCreated", 2, "{}", "version 2 here and 1 in the code"),
        ("OrderCreated", 1, "[]", "not a JSON object"),
        ("OrderCreated", 1, "[" * 100_000, "nested too deeply"),
        ("OrderCreated", 1, '{"order_id":"1","user_id":"2","total_price":"1"}', "lacks: email"),
        ("OrderCreated", 1, '{"order_id":"1","user_id":"2","total_price":"1","email":null,"a":1}', "unknown fields: a"),
        ("OrderCreated", 1, '{"order_id":1,"user_id":"2","total_price":"1","email":null}', "order_id has the wrong"),
        ("OrderCreated", 1, '{"order_id":"1","user_id":"2","total_price":"x","email":null}', "not a decimal"),
        ("OrderCreated", 1, '{"order_id":"1","user_id":"2","total_price":"NaN","email":null}', "not a finite"),
        (
            "OrderCreated",
            1,
            '{"order_id":"1","user_id":"2","total_price":1.5,"email":null}',
            "total_price has the wrong",
        ),
    ],
)
def test_what_cannot_be_decoded_says_why(kind: str, version: int, data: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        signal.decode(kind, version, data)


def test_receivers_are_owed_in_the_order_they_connected(
    placed: DurableSignal, event: Event, recorder: Recorder
) -> None:
    placed.connect(second)
    placed.connect(first)
    assert placed.send("here", event=event) == [(second, None), (first, None)]
    assert recorder.stored == [(event, "here", ["second", "first"])]


def test_a_receiver_that_takes_a_session_is_transactional(placed: DurableSignal) -> None:
    placed.connect(first)
    placed.connect(second)
    assert [s.transactional for s in placed.subscriptions.values()] == [False, True]


def test_a_closure_is_held(placed: DurableSignal, event: Event, recorder: Recorder) -> None:
    """blinker would drop it, for its references are weak."""

    def subscribe() -> None:
        def closure(sender: Any, event: Event) -> None: ...

        placed.connect(closure)

    subscribe()
    placed.send(event=event)
    assert recorder.owed == ["closure"]
    with pytest.raises(ValueError, match="leave weak=True out"):
        placed.connect(first, weak=True)


def test_connecting_twice_is_connecting_once(placed: DurableSignal, event: Event, recorder: Recorder) -> None:
    placed.connect(first)
    placed.connect(first)
    placed.send(event=event)
    assert recorder.owed == ["first"]


def test_two_receivers_of_one_name_are_refused(placed: DurableSignal) -> None:
    placed.connect(first)
    with pytest.raises(ValueError, match="another receiver named 'first'"):
        placed.connect(second, name="first")


def test_a_receiver_without_a_stable_name_is_refused(placed: DurableSignal) -> None:
    with pytest.raises(ValueError, match="no name to be found by"):
        placed.connect(lambda sender, event: None)
    placed.connect(lambda sender, event: None, name="a_name")


def test_connected_to_connects_for_a_while(placed: DurableSignal, event: Event, recorder: Recorder) -> None:
    with placed.connected_to(first):
        placed.send(event=event)
        assert recorder.owed == ["first"]
    placed.send(event=event)
    assert recorder.owed == []


def test_a_muted_signal_stores_the_fact_and_owes_nothing(
    placed: DurableSignal, event: Event, recorder: Recorder
) -> None:
    placed.connect(first)
    with placed.muted():
        assert placed.send("here", event=event) == []
    assert recorder.stored == [(event, "here", [])]


def test_a_receiver_may_listen_to_one_sender(placed: DurableSignal, event: Event, recorder: Recorder) -> None:
    placed.connect(first, sender="shop-a")
    placed.connect_via("shop-b")(second)
    assert list(placed.receivers_for("shop-a")) == [first]
    assert placed.has_receivers_for("shop-b")
    placed.send("shop-a", event=event)
    assert recorder.owed == ["first"]
    placed.send("shop-c", event=event)
    assert recorder.owed == []


def test_a_proxy_stands_for_its_object(placed: DurableSignal, event: Event, recorder: Recorder) -> None:
    """``current_app`` sent as the sender reaches those who connected to the application."""

    class Application:
        name = "shop"

    application = Application()
    placed.connect(first, sender=application)
    placed.send(LocalProxy(lambda: application), event=event)
    assert recorder.stored == [(event, "shop", ["first"])]


def test_disconnecting_one_sender_keeps_the_other(placed: DurableSignal, event: Event, recorder: Recorder) -> None:
    placed.connect(first, sender="a")
    placed.connect(first, sender="b")
    placed.disconnect(first, sender="a")
    placed.send("b", event=event)
    assert recorder.owed == ["first"]
    placed.disconnect(first)
    assert placed.subscriptions == {}


def test_blinkers_own_signals_are_sent(placed: DurableSignal) -> None:
    seen: list[Any] = []

    def note(signal: Any, /, **_: Any) -> None:
        seen.append(signal)

    placed.receiver_connected.connect(note)
    placed.receiver_disconnected.connect(note)
    placed.connect(first)
    placed.disconnect(first)
    assert seen == [placed, placed]


def test_a_signal_carries_one_type_of_event() -> None:
    sent = NotificationSent(order_id="1", user_id="2", recipient="a@b.example", message_id="<x>")
    with pytest.raises(TypeError, match="order_created carries OrderCreated, not NotificationSent"):
        order_created.send("here", event=sent)
    with pytest.raises(ValueError, match="already"):
        signal.signal("order_created", OrderCreated)


def test_sending_outside_a_transaction_says_what_to_do() -> None:
    with pytest.raises(OutsideTransaction, match=r"Send it inside db.transact"):
        order_created.send("here", event=CREATED)


async def _await(signal: DurableSignal) -> None:
    await signal.send_async()


def test_sending_async_says_what_to_do() -> None:
    with pytest.raises(TypeError, match=r"use send\(\) inside db.transact"):
        _await(order_created).send(None)
