"""A discrete-event simulation: a day's messages, a backend, and what decides when to try."""

import heapq
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from app.retry.costs import Costs
from benchmarks.retry.backends import DAY, START, Backend, Message, Reply
from benchmarks.retry.rules import Rule

END = START + 6 * DAY
"""Everything is over: the day, and five more."""

BLOCKED = Reply("blocked", seconds=0.0)


@dataclass(frozen=True, slots=True)
class Result:
    """Of one day: cost above the oracle's, by Costs; in total."""

    excess: float
    attempts: int
    attempts_while_down: int
    lost: int
    delay_minutes: float
    messages: int


class Loop:
    """Events in the order of time."""

    def __init__(self) -> None:
        self.now = START
        self._events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._numbers = itertools.count()

    def at(self, when: float, what: Callable[..., None], *arguments: Any) -> None:
        heapq.heappush(self._events, (max(when, self.now), next(self._numbers), what, arguments))

    def run(self) -> None:
        while self._events:
            self.now, _, what, arguments = heapq.heappop(self._events)
            if self.now > END:
                return
            what(*arguments)


class PlainBus:
    """Every message by itself, as its rule says."""

    def __init__(self, backend: Backend, rule: Rule, loop: Loop) -> None:
        self.backend, self.rule, self.loop = backend, rule, loop

    def arrive(self, message: Message) -> None:
        self.start(message)

    def start(self, message: Message) -> None:
        if self.rule.blocked(self.loop.now):
            self.ended(message, BLOCKED, self.loop.now)
            return
        message.attempts += 1
        reply = self.backend.answer(message, self.loop.now)
        self.loop.at(self.loop.now + reply.seconds, self.ended, message, reply, self.loop.now)

    def ended(self, message: Message, reply: Reply, began: float) -> None:
        if reply is not BLOCKED:
            self.rule.note(message, reply, self.loop.now)
        if reply.outcome == "ok":
            message.delivered = began
            return
        wait = None if reply.outcome == "refused" else self.rule.wait(message, reply, self.loop.now)
        if wait is None:
            message.lost = True
        else:
            self.loop.at(self.loop.now + wait, self.start, message)


def play(backend: Backend, make_bus: Callable[[Backend, Loop], Any], costs: Costs | None = None) -> Result:
    """One day."""
    costs = costs or Costs()
    loop = Loop()
    bus = make_bus(backend, loop)
    messages = backend.messages()
    for message in messages:
        loop.at(message.arrived, bus.arrive, message)
    loop.run()
    return judge(backend, messages, costs)


def judge(backend: Backend, messages: list[Message], costs: Costs) -> Result:
    times, needed = backend.oracle(messages)
    ideal = cost = delay = 0.0
    for message, earliest, attempts in zip(messages, times, needed, strict=True):
        wait = costs.loss if earliest is None else min(costs.loss, (earliest - message.arrived) / 60)
        ideal += wait + costs.attempt * attempts
        took = costs.loss if message.delivered is None else (message.delivered - message.arrived) / 60
        cost += took + costs.attempt * message.attempts
        delay += took if message.delivered is not None else 0.0
    return Result(
        excess=cost - ideal,
        attempts=sum(message.attempts for message in messages),
        attempts_while_down=backend.attempts_while_down,
        lost=sum(message.delivered is None for message in messages),
        delay_minutes=delay,
        messages=len(messages),
    )


def plain(make_rule: Callable[[random.Random], Rule], seed: int) -> Callable[[Backend, Loop], PlainBus]:
    return lambda backend, loop: PlainBus(backend, make_rule(random.Random(seed)), loop)
