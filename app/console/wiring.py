"""The wiring: which event goes to which receivers, and what these publish. Pure; asks the signals only.

A receiver does not declare the events that it publishes. They are found by the names of event classes in its code and
in that of its ``when_dead``, and by the events that it has published of late.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import CodeType

from app.signal import SIGNALS, Subscription


@dataclass(frozen=True)
class Receiver:
    """A receiver in the picture."""

    name: str
    takes: tuple[str, ...]
    """Types of events."""
    publishes: tuple[str, ...]
    transactional: bool
    file: str
    """Where its code is, as a path from the module's root: ``app/receivers/notification.py``."""


@dataclass(frozen=True)
class Wiring:
    """All types of events, and all receivers, the nearest to the source first."""

    sources: tuple[str, ...]
    """Types of events that no receiver publishes: they come from outside."""
    receivers: tuple[Receiver, ...]
    depth: Mapping[str, int]
    """By the receiver's name: 1 where it takes what comes from outside, 2 where it takes what those publish."""


def wiring(observed: Iterable[tuple[str, str]] = ()) -> Wiring:
    """``observed`` are pairs of a source and a type of event: those whose source is a receiver's name count."""
    found: dict[str, Receiver] = {}
    subscribed: dict[str, list[tuple[str, Subscription]]] = {}
    for event_type, signal in SIGNALS.items():
        for subscription in signal.subscriptions.values():
            subscribed.setdefault(subscription.name, []).append((event_type, subscription))
    seen = set(observed)
    for name, taken in subscribed.items():
        takes = tuple(event_type for event_type, _ in taken)
        names = {word for _, each in taken for word in _names(each.receiver) | _names(each.when_dead)}
        names |= {event_type for source, event_type in seen if source == name}
        publishes = tuple(each for each in SIGNALS if each in names and each not in takes)
        found[name] = Receiver(name, takes, publishes, taken[0][1].transactional, _file(taken[0][1].receiver))
    published = {event_type for receiver in found.values() for event_type in receiver.publishes}
    sources = tuple(event_type for event_type in SIGNALS if event_type not in published)
    depth = _depths(sources, found)
    return Wiring(sources, tuple(sorted(found.values(), key=lambda each: depth[each.name])), depth)


def _names(function: Callable[..., object] | None) -> set[str]:
    """The global names in a function's code, and in that of the functions within it."""
    code = getattr(function, "__code__", None) or getattr(getattr(function, "__func__", None), "__code__", None)
    if not isinstance(code, CodeType):
        return set()
    found, left = set(), [code]
    while left:
        each = left.pop()
        found |= set(each.co_names)
        left += [constant for constant in each.co_consts if isinstance(constant, CodeType)]
    return found


def _file(function: Callable[..., object]) -> str:
    module = getattr(function, "__module__", None) or type(function).__module__
    return module.replace(".", "/") + ".py"


def _depths(sources: tuple[str, ...], receivers: Mapping[str, Receiver]) -> dict[str, int]:
    """Steps from the source, by the shortest way. A receiver that nothing outside leads to stands with the first."""
    depths: dict[str, int] = {}
    reached, depth = set(sources), 1
    while fresh := [r for r in receivers.values() if r.name not in depths and reached.intersection(r.takes)]:
        depths.update({each.name: depth for each in fresh})
        reached |= {event_type for each in fresh for event_type in each.publishes}
        depth += 1
    return {name: depths.get(name, 1) for name in receivers}
