"""Receivers' signatures, checked when a receiver is connected; an error says what to write instead.

Raises nothing but TypeError, in one line.
"""

import functools
import inspect
from typing import Any

FILLED = ("event", "delivery", "session", "transaction")
"""The parameters that the bus fills, by name. A receiver's first one is the sender, whatever its name."""


def shown(receiver: Any) -> str:
    """A receiver as its author knows it: by module and name, where it has them."""
    name = getattr(receiver, "__qualname__", None)
    return f"{receiver.__module__}.{name}" if name else repr(receiver)


def _function_in(receiver: Any) -> Any:
    """The function that is called in the end: behind partials, methods, static methods and callable objects."""
    while True:
        if isinstance(receiver, functools.partial):
            receiver = receiver.func
        elif inspect.ismethod(receiver) or isinstance(receiver, staticmethod):
            receiver = receiver.__func__
        elif inspect.isroutine(receiver) or inspect.isclass(receiver) or not callable(receiver):
            return receiver
        else:
            receiver = type(receiver).__call__


def check_called(receiver: Any, instead_of_yield: str) -> None:
    """Raises TypeError for what does nothing when it is called: the bus calls, and neither awaits nor iterates."""
    function = _function_in(receiver)
    if not callable(function):
        raise TypeError(f"{receiver!r} can't be called; give a function, or an object with __call__")
    for kind, is_one, cure in (
        ("an async generator", inspect.isasyncgenfunction, f"write 'def', and {instead_of_yield}"),
        ("async", inspect.iscoroutinefunction, "write 'def', and run what must be awaited by asyncio.run(...)"),
        ("a generator", inspect.isgeneratorfunction, instead_of_yield),
    ):
        if is_one(function) or is_one(receiver):
            raise TypeError(f"{shown(receiver)} is {kind}, and calling it would do nothing; {cure}")


def _signature_of(function: Any) -> inspect.Signature:
    try:
        return inspect.signature(function)
    except ValueError:  # some functions written in C have none
        raise TypeError(f"{function!r} tells no parameters; call it in a function of yours") from None


def parameters_of(receiver: Any) -> frozenset[str]:
    """The names of its parameters. Raises TypeError, with the cure, when the bus can't call it with them."""
    if inspect.isclass(receiver):
        raise TypeError(f"{shown(receiver)} is a class; give a function, or an object of the class with __call__")
    signature = _signature_of(receiver)
    parameters = signature.parameters
    names = set(parameters)
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        names |= {"event", "delivery"}
    filled = names.intersection(FILLED)
    name = getattr(receiver, "__name__", "")
    cure = f"write: def {name if name.isidentifier() else 'receiver'}(sender, event)"
    if not filled and not _wants_no_more_than_the_sender(names):
        raise TypeError(f"{shown(receiver)} takes none of {', '.join(FILLED)}, by these names; {cure}")
    try:
        signature.bind("sender", **dict.fromkeys(filled))
    except TypeError as error:
        raise TypeError(
            f"{shown(receiver)} can't be called with the sender and, by name, {', '.join(sorted(filled))}: {error}; "
            f"{cure}, and give every parameter but the sender and {', '.join(FILLED)} a default"
        ) from None
    return frozenset(names)


def _wants_no_more_than_the_sender(names: set[str]) -> bool:
    """By its name. Another one, such as ``order``, is of a function that takes the sender for something else."""
    return len(names) == 1 and all(name == "sender" or name.startswith("_") for name in names)


def check_when_dead(when_dead: Any) -> None:
    """Raises TypeError for what can't be called with an event and a reason."""
    check_called(when_dead, "return the event instead of yielding it")
    signature = _signature_of(when_dead)
    try:
        signature.bind("event", "reason")
    except TypeError as error:
        raise TypeError(
            f"when_dead: {shown(when_dead)} can't be called with an event and a reason: {error}; write: "
            "def announce(event, reason), which returns the event to publish"
        ) from None
