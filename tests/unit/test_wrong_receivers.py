"""Receivers that could never work are refused when they are connected, and the error says what to write instead."""

import functools
import math
import re
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from app.events import NotificationFailed, OrderCreated, notification_skipped
from app.signal import DurableSignal, ReceiverOptions, check_options


class Placed(OrderCreated):
    pass


@pytest.fixture
def placed() -> DurableSignal:
    return DurableSignal("placed", Placed)


def tell_sales(sender: Any, event: Any) -> None: ...


async def awaited(sender: Any, event: Any) -> None: ...


def yielding(sender: Any, event: Any) -> Iterator[None]:
    yield None


async def awaited_and_yielding(sender: Any, event: Any) -> AsyncIterator[None]:
    yield None


def addressless(value: Any) -> str:
    """A test's name is the same in every process that runs a part of the tests."""
    return re.sub(r" at 0x[0-9a-f]+", "", str(value))


class Sales:
    """Each kind of callable that a class has."""

    def tell(self, sender: Any, event: Any) -> None: ...

    async def tell_later(self, sender: Any, event: Any) -> None: ...

    @staticmethod
    def tell_plainly(sender: Any, event: Any) -> None: ...

    @staticmethod
    async def tell_plainly_later(sender: Any, event: Any) -> None: ...

    @classmethod
    def tell_all(cls, sender: Any, event: Any) -> Iterator[None]:
        yield None


class Awaited:
    async def __call__(self, sender: Any, event: Any) -> None: ...


class Yielding:
    def __call__(self, sender: Any, event: Any) -> Iterator[None]:
        yield None


class Plain:
    def __call__(self, sender: Any, event: Any) -> None: ...


@pytest.mark.parametrize(
    "receiver, words",
    [
        (awaited, "awaited is async, and calling it would do nothing; write 'def'"),
        (yielding, r"yielding is a generator, .*; return Done\(event, ...\) instead of yielding events"),
        (awaited_and_yielding, "is an async generator, .*; write 'def', and return Done"),
        (Sales().tell_later, "Sales.tell_later is async"),
        (Sales.tell_plainly_later, "is async"),
        (staticmethod(awaited), "is async"),
        (Sales.tell_all, "Sales.tell_all is a generator"),
        (Awaited(), "is async"),
        (Yielding(), "is a generator"),
        (functools.partial(awaited), "is async"),
        (functools.partial(Sales().tell_later), "is async"),
        (functools.partial(functools.partial(Yielding())), "is a generator"),
    ],
    ids=addressless,
)
def test_what_does_nothing_when_it_is_called(placed: DurableSignal, receiver: Any, words: str) -> None:
    refused(placed, receiver, words)


@pytest.mark.parametrize(
    "receiver, words",
    [
        (lambda: None, "takes none of event, delivery, session, transaction, by these names; write: def"),
        (lambda order: None, r"takes none of .*; write: def receiver\(sender, event\)"),
        (lambda order, user: None, "takes none of"),
        (lambda *facts: None, "takes none of"),
        (lambda event: None, r"multiple values for argument 'event'; write: def receiver\(sender, event\)"),
        (lambda *, event: None, r"too many positional arguments; write: def receiver\(sender, event\)"),
        (lambda session, event: None, "multiple values for argument 'session'"),
        (lambda sender, event, mailer: None, "'mailer'; .* give every parameter but .* a default"),
        (lambda sender, event, /: None, "can't be called with the sender and, by name, event"),
        (functools.partial(tell_sales, "here"), "multiple values for argument 'sender'|'event'"),
        (print, "takes none of"),
        (Sales, "Sales is a class; give a function, or an object of the class with __call__"),
        ("tell_sales", "'tell_sales' can't be called; give a function"),
        (None, "None can't be called"),
    ],
    ids=lambda value: value if isinstance(value, str) else "receiver",
)
def test_what_the_bus_has_no_arguments_for(placed: DurableSignal, receiver: Any, words: str) -> None:
    refused(placed, receiver, words)


def test_the_cure_has_the_functions_own_name(placed: DurableSignal) -> None:
    def count_orders(order: Any) -> None: ...

    refused(placed, count_orders, r"write: def count_orders\(sender, event\)", name=None)


def refused(placed: DurableSignal, receiver: Any, words: str, **how: Any) -> None:
    with pytest.raises(TypeError, match=words) as caught:
        placed.connect(receiver, **{"name": "a_name", **how})
    assert "\n" not in str(caught.value)
    assert (placed.subscriptions, placed.receivers) == ({}, {}), "nothing is left half connected"


@pytest.mark.parametrize(
    "receiver",
    [
        tell_sales,
        Sales().tell,
        Sales.tell_plainly,
        staticmethod(tell_sales),
        functools.wraps(tell_sales)(lambda *args, **kwargs: None),
    ],
    ids=addressless,
)
def test_what_works_is_connected_by_its_own_name(placed: DurableSignal, receiver: Any) -> None:
    placed.connect(receiver)
    assert [*placed.subscriptions] == [receiver.__name__]


@pytest.mark.parametrize(
    "receiver",
    [
        Plain(),
        functools.partial(tell_sales),
        functools.partial(lambda mailer, sender, event: None, object()),
        lambda sender, event: None,
        lambda sender, **facts: None,
        lambda *args, **facts: None,
        lambda event, /, **facts: None,
        lambda sender, event, mailer=None: None,
        lambda sender, delivery: None,
        lambda order, session: None,
        lambda sender: None,
        lambda _: None,
        lambda *_: None,
    ],
    ids=lambda _: "receiver",
)
def test_what_works_but_has_no_name_is_given_one(placed: DurableSignal, receiver: Any) -> None:
    with pytest.raises(
        ValueError, match=r"no name to be found by .*; write it as a function .*, or connect it with name="
    ):
        placed.connect(receiver)
    placed.connect(receiver, name="tell_sales")
    assert [*placed.subscriptions] == ["tell_sales"]


@pytest.mark.parametrize("name", ["", "x" * 101, "two\nlines", 7])
def test_a_name_that_no_delivery_can_be_stored_with(placed: DurableSignal, name: Any) -> None:
    with pytest.raises(ValueError, match="give 1 to 100 printable characters, such as 'tell_sales'"):
        placed.connect(tell_sales, name=name)
    placed.connect(tell_sales, name="x" * 100)


def test_a_name_that_is_another_functions(placed: DurableSignal) -> None:
    placed.connect(tell_sales)
    with pytest.raises(ValueError, match=r"placed has another receiver named 'tell_sales', .*\.tell_sales; rename one"):
        placed.connect(Sales().tell, name="tell_sales")
    placed.connect(Sales().tell, name="tell_sales_too")


def test_a_name_that_another_function_has_on_another_signal(placed: DurableSignal) -> None:
    """Its threads, options and circuit breaker would be shared."""
    with notification_skipped.connected_to(tell_sales):
        with pytest.raises(ValueError, match="notification_skipped has another receiver named 'tell_sales'"):
            placed.connect(Sales().tell, name="tell_sales")
        placed.connect(tell_sales)


@pytest.mark.parametrize(
    "when_dead, words",
    [
        (lambda event: None, "too many positional arguments; write: def announce"),
        (lambda: None, "can't be called with an event and a reason"),
        (NotificationFailed, "NotificationFailed can't be called with an event and a reason"),
        (awaited, "awaited is async"),
        (yielding, "return the event instead of yielding it"),
        ("announce", "can't be called"),
    ],
    ids=addressless,
)
def test_a_when_dead_that_can_not_be_called(placed: DurableSignal, when_dead: Any, words: str) -> None:
    with pytest.raises(TypeError, match=words):
        placed.connect(tell_sales, when_dead=when_dead)
    assert placed.subscriptions == {}


@pytest.mark.parametrize(
    "when_dead",
    [lambda event, reason: None, lambda *facts: None, lambda event, reason="": None, Sales().tell],
    ids=addressless,
)
def test_a_when_dead_that_can_be_called(placed: DurableSignal, when_dead: Callable[..., Any]) -> None:
    placed.connect(tell_sales, when_dead=when_dead)
    assert placed.subscriptions["tell_sales"].when_dead == when_dead


@pytest.mark.parametrize(
    "options, words",
    [
        ({"concurrency": 0}, "concurrency=0 would let no delivery through; give 1 or more"),
        ({"unknown_limit": 0}, "unknown_limit=0 would let no delivery through"),
        ({"timeout_seconds": 0}, "timeout_seconds=0 is no time; give more than 0, or leave it out"),
        ({"timeout_seconds": -1.5}, "timeout_seconds=-1.5"),
        ({"timeout_seconds": math.nan}, "timeout_seconds=nan"),
    ],
    ids=addressless,
)
def test_options_with_which_no_delivery_could_succeed(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ReceiverOptions(**options)


def test_options_for_a_receiver_that_is_not_there() -> None:
    with notification_skipped.connected_to(tell_sales):
        check_options({"tell_sales": ReceiverOptions()})
        with pytest.raises(ValueError, match=r"options for 'tell_sale', .*; did you mean 'tell_sales'\?"):
            check_options({"tell_sale": ReceiverOptions()})
        with pytest.raises(ValueError, match=r"options for 'x', .*; connected are .*tell_sales"):
            check_options({"x": ReceiverOptions()})


def test_a_receiver_in_a_transaction_has_one_thread() -> None:
    def count_orders(sender: Any, event: Any, session: Any) -> None: ...

    with notification_skipped.connected_to(count_orders):
        check_options({"count_orders": ReceiverOptions(timeout_seconds=5)})
        with pytest.raises(ValueError, match=r"count_orders takes a session or transaction, .*; leave concurrency out"):
            check_options({"count_orders": ReceiverOptions(concurrency=2)})
