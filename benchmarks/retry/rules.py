"""The retry rules to stand beside, as their projects define them. Each decides for one message, most share nothing.

Where a project's rule ends after few attempts, the message is lost; "no limit" beside its name is the same rule with
that limit lifted, as a durable queue would set it: the stronger opponent where outages are long.
"""

import math
import random
from collections import deque
from collections.abc import Callable
from typing import Protocol

from benchmarks.retry.backends import Message, Reply

DAY = 86_400.0
FIVE_DAYS = 5 * DAY


class Rule(Protocol):
    def wait(self, message: Message, reply: Reply, now: float) -> float | None:
        """Seconds until the next attempt, or None: lost."""

    def blocked(self, now: float) -> bool:
        """Whether it refuses the attempt by itself, without asking the backend."""

    def note(self, message: Message, reply: Reply, now: float) -> None:
        """An attempt ended so."""


class Waits:
    """A rule that looks at nothing but the number of attempts that failed, 1 after the first."""

    def __init__(self, wait: Callable[[int, random.Random], float], most: float, rng: random.Random) -> None:
        self._wait, self._most, self._rng = wait, most, rng

    def wait(self, message: Message, reply: Reply, now: float) -> float | None:
        over = message.attempts >= self._most or now - message.arrived > FIVE_DAYS
        return None if over else self._wait(message.attempts, self._rng)

    def blocked(self, now: float) -> bool:
        return False

    def note(self, message: Message, reply: Reply, now: float) -> None:
        pass


def celery(n: int, rng: random.Random) -> float:
    """``retry_backoff=True``: celery.utils.time.get_exponential_backoff_interval(1, n - 1, 600, full_jitter=True)."""
    return float(rng.randrange(int(min(600, 2 ** min(n - 1, 60))) + 1))


def sidekiq(n: int, rng: random.Random) -> float:
    """Sidekiq::JobRetry: count ** 4 + 15 + rand(10) * (count + 1), count from 0."""
    return float((n - 1) ** 4 + 15 + rng.randrange(10) * n)


def oban(n: int, rng: random.Random) -> float:
    """Oban.Worker.backoff: 15 + 2 ** attempt, plus up to 10 %."""
    return (15 + 2.0 ** min(n, 60)) * rng.uniform(1, 1.1)


def river(n: int, rng: random.Random) -> float:
    """river.DefaultClientRetryPolicy: attempt ** 4, give or take 10 %."""
    return n**4 * rng.uniform(0.9, 1.1)


SVIX = (5.0, 300.0, 1800.0, 7200.0, 18_000.0, 36_000.0, 36_000.0)


def svix(n: int, _: random.Random) -> float:
    return SVIX[n - 1]


class Decorrelated:
    """AWS Architecture Blog, 2015: sleep = min(cap, uniform(base, sleep * 3)); here 1 s and 10 min."""

    def __init__(self, rng: random.Random) -> None:
        self._rng, self._slept = rng, dict[int, float]()

    def wait(self, message: Message, reply: Reply, now: float) -> float | None:
        if now - message.arrived > FIVE_DAYS:
            return None
        slept = self._slept.get(message.number, 1.0)
        self._slept[message.number] = slept = min(600.0, self._rng.uniform(1.0, slept * 3))
        return slept

    def blocked(self, now: float) -> bool:
        return False

    def note(self, message: Message, reply: Reply, now: float) -> None:
        pass


class Postfix:
    """The queue manager: a deferred message is tried again after its own age, between 300 s and 4,000 s, by a scan
    every 300 s (minimal_backoff_time, maximal_backoff_time, queue_run_delay), for 5 days."""

    def wait(self, message: Message, reply: Reply, now: float) -> float | None:
        age = now - message.arrived
        if age > FIVE_DAYS:
            return None
        due = now + min(4000.0, max(300.0, age))
        return math.ceil(due / 300) * 300 - now

    def blocked(self, now: float) -> bool:
        return False

    def note(self, message: Message, reply: Reply, now: float) -> None:
        pass


class AwsSdk:
    """AWS_NEW_RETRIES_2026: full jitter from 50 ms (throttled: 1 s), at most 20 s, 3 attempts; a bucket of 500 tokens,
    of which a transient retry costs 14, a throttled one 5; a first attempt that succeeds returns 1, a retry what it
    cost."""

    def __init__(self, rng: random.Random, most: float = 3) -> None:
        self._rng, self._most, self._tokens, self._paid = rng, most, 500.0, dict[int, float]()

    def wait(self, message: Message, reply: Reply, now: float) -> float | None:
        throttled = reply.outcome == "throttled"
        cost = 5.0 if throttled else 14.0
        if message.attempts >= self._most or self._tokens < cost or now - message.arrived > FIVE_DAYS:
            return None
        self._tokens -= cost
        self._paid[message.number] = cost
        longest = min(20.0, (1.0 if throttled else 0.05) * 2.0 ** min(message.attempts - 1, 60))
        return self._rng.uniform(0, longest)

    def blocked(self, now: float) -> bool:
        return False

    def note(self, message: Message, reply: Reply, now: float) -> None:
        if reply.outcome == "ok":
            self._tokens = min(500.0, self._tokens + self._paid.pop(message.number, 1.0))


class Finagle:
    """RetryBudget: 20 % of requests and 10 a second, credits live 10 s; requeued at once, at most for a fifth of the
    balance. What the budget refuses fails to the caller: lost."""

    def __init__(self) -> None:
        self._deposits: deque[tuple[float, float]] = deque()
        self._spent: deque[float] = deque()
        self._seen: set[int] = set()

    def wait(self, message: Message, reply: Reply, now: float) -> float | None:
        while self._deposits and self._deposits[0][0] < now - 10:
            self._deposits.popleft()
        while self._spent and self._spent[0] < now - 10:
            self._spent.popleft()
        balance = 100 + sum(share for _, share in self._deposits) - len(self._spent)
        if balance < 1 or message.attempts > max(1, 0.2 * balance):
            return None
        self._spent.append(now)
        return 0.0

    def blocked(self, now: float) -> bool:
        return False

    def note(self, message: Message, reply: Reply, now: float) -> None:
        if message.number not in self._seen:
            self._seen.add(message.number)
            self._deposits.append((now, 0.2))


class Polly:
    """Polly 8: a breaker that opens at 10 % failures of at least 100 calls in 30 s for 5 s, around a retry with
    exponential backoff from 2 s and jitter, at most 10 min, for as long as a durable queue retries: 5 days."""

    def __init__(self, rng: random.Random) -> None:
        self._rng, self._calls, self._open_until = rng, deque[tuple[float, bool]](), 0.0
        self._blocked: dict[int, int] = {}

    def wait(self, message: Message, reply: Reply, now: float) -> float | None:
        if now - message.arrived > FIVE_DAYS:
            return None
        if reply.outcome == "blocked":
            self._blocked[message.number] = self._blocked.get(message.number, 0) + 1
        tried = message.attempts + self._blocked.get(message.number, 0)
        return min(600.0, 2.0 * 2.0 ** min(tried - 1, 60)) * self._rng.uniform(0.75, 1.25)

    def blocked(self, now: float) -> bool:
        return now < self._open_until

    def note(self, message: Message, reply: Reply, now: float) -> None:
        self._calls.append((now, reply.outcome != "ok"))
        while self._calls[0][0] < now - 30:
            self._calls.popleft()
        failed = sum(failed for _, failed in self._calls)
        if len(self._calls) >= 100 and failed >= 0.1 * len(self._calls):
            self._open_until = now + 5.0
            self._calls.clear()


NO_LIMIT = math.inf

COMMON: dict[str, Callable[[random.Random], Rule]] = {
    "fixed 30 s": lambda rng: Waits(lambda *_: 30.0, NO_LIMIT, rng),
    "Celery": lambda rng: Waits(celery, 4, rng),
    "Celery, no limit": lambda rng: Waits(celery, NO_LIMIT, rng),
    "AWS decorrelated": Decorrelated,
    "AWS SDKs 2026": AwsSdk,
    "Finagle": lambda _: Finagle(),
    "Sidekiq": lambda rng: Waits(sidekiq, 26, rng),
    "Oban": lambda rng: Waits(oban, 20, rng),
    "River": lambda rng: Waits(river, 25, rng),
    "Postfix": lambda _: Postfix(),
    "Svix": lambda rng: Waits(svix, 8, rng),
    "Polly": Polly,
}
