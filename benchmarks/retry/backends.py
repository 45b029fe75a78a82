"""The backends that are played: when they are down, whom they put off, what they take. And the oracle's share of it.

A day's parameters are the nominal ones times a random factor of its own, so no two days are alike; a day is drawn by
its seed alone, and training and test days have other seeds.
"""

import bisect
import math
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

DAY = 86_400.0
START = 1_800_000_000.0
"""Seconds since 1970: a day in 2027."""
SPREAD = 0.25
"""Standard deviation of the logarithm of a day's parameters."""


@dataclass(frozen=True, slots=True)
class Reply:
    outcome: str
    code: int | None = None
    enhanced: str | None = None
    seconds: float = 0.05


OK = Reply("ok")
REFUSED = Reply("refused", 550, "5.1.1")
UNREACHABLE = Reply("unreachable", seconds=0.02)
TIMEOUT = Reply("timeout", seconds=10.0)
GREYLISTED = Reply("deferred", 450, "4.2.0")
"""As Postgrey answers: "450 4.2.0 …: Recipient address rejected: Greylisted"."""
LOCAL_ERROR = Reply("deferred", 451, "4.3.0")
FULL = Reply("deferred", 452, "4.2.2")
NO_DOMAIN = Reply("deferred", 450, "4.1.2")
THROTTLED = Reply("throttled", 421, "4.7.0")
NOISE = (UNREACHABLE, UNREACHABLE, TIMEOUT, LOCAL_ERROR)


@dataclass(slots=True, eq=False)
class Message:
    number: int
    arrived: float
    attempts: int = 0
    first_tried: float | None = None
    delivered: float | None = None
    lost: bool = False
    obstacle: tuple[str, float] | None = None
    """Its own: a kind, and a number of its kind."""


class Spans:
    """Times at which something is so."""

    def __init__(self, spans: list[tuple[float, float]]) -> None:
        self.spans = spans
        self.starts = [start for start, _ in spans]

    def end_at(self, now: float) -> float | None:
        """The end of the span that holds ``now``."""
        found = bisect.bisect_right(self.starts, now) - 1
        return self.spans[found][1] if found >= 0 and self.spans[found][1] > now else None


def spans_of(gap: Callable[[], float], length: Callable[[], float]) -> Spans:
    """One after the other, from a random gap on."""
    spans, now = [], START
    while (now := now + gap()) < START + DAY:
        spans.append((now, now := now + length()))
    return Spans(spans)


@dataclass
class Backend:
    """One day of one scenario. The oracle delivers as early as ``earliest`` says, with ``needed`` attempts."""

    rng: random.Random
    down: Spans = field(default_factory=lambda: Spans([]))
    down_reply: Reply = UNREACHABLE
    down_share: float = 1.0
    """Of the messages that fail while it is down: the others take another way within it."""
    noise: float = 0.0
    """Share of all attempts that fail at random."""
    noise_seed: int = 0
    greylisted: float = 0.0
    """Share of messages that are put off for greylist_seconds after their first attempt."""
    greylist_seconds: float = 300.0
    full: float = 0.0
    full_median: float = 6 * 3600.0
    full_never: float = 0.0
    no_domain: float = 0.0
    no_domain_median: float = 3600.0
    no_domain_never: float = 0.0
    bad: float = 0.0
    """Share of messages whose address is refused for good."""
    per_second: float | None = None
    """What it takes; more is throttled."""
    burst: float = 10.0
    fragile: int | None = None
    """More than so many attempts in five seconds make it fall over."""
    arrivals: Callable[[float], float] = lambda _: 0.1
    """Messages a second, by the second of the day."""
    most_arrivals: float = 0.1
    attempts_while_down: int = 0
    _tokens: float = 0.0
    _tokens_at: float = START
    _latest: deque[float] = field(default_factory=deque)
    _fallen_until: float = 0.0

    def messages(self) -> list[Message]:
        """Poisson arrivals over a day, by thinning."""
        found: list[Message] = []
        now = 0.0
        while (now := now + self.rng.expovariate(self.most_arrivals)) < DAY:
            if self.rng.random() * self.most_arrivals < self.arrivals(now):
                message = Message(len(found), START + now)
                message.obstacle = self._own_obstacle()
                found.append(message)
        self._tokens = self.burst
        return found

    def _own_obstacle(self) -> tuple[str, float] | None:
        drawn = self.rng.random()
        for name, share in (("bad", self.bad), ("grey", self.greylisted), ("full", self.full), ("dns", self.no_domain)):
            if drawn < share:
                return self._drawn(name)
            drawn -= share
        return None

    def _drawn(self, name: str) -> tuple[str, float]:
        if name == "grey":
            return name, self.greylist_seconds
        if name in ("full", "dns"):
            median = self.full_median if name == "full" else self.no_domain_median
            never = self.full_never if name == "full" else self.no_domain_never
            lasts = math.inf if self.rng.random() < never else median * math.exp(self.rng.gauss(0, 1.2))
            return name, lasts
        return name, math.inf

    # What happens

    def answer(self, message: Message, now: float) -> Reply:
        if message.first_tried is None:
            message.first_tried = now
        if self._is_affected(message) and self.down.end_at(now) is not None:
            self.attempts_while_down += 1
            return self.down_reply
        if self.fragile is not None and self._falls_over(now):
            self.attempts_while_down += 1
            return self.down_reply
        if self.noise and (drawn := self._drawn_for(message)) < self.noise:
            return NOISE[int(drawn / self.noise * len(NOISE))]
        if (own := self._own_reply(message, now)) is not None:
            return own
        return THROTTLED if self.per_second is not None and not self._takes(now) else OK

    def _drawn_for(self, message: Message) -> float:
        """The same number for a message's n-th attempt under whatever rule: common random numbers, so that a rule is
        not better by luck."""
        return random.Random((self.noise_seed * 100_000 + message.number) * 100_000 + message.attempts).random()

    def _is_affected(self, message: Message) -> bool:
        return self.down_share == 1 or random.Random(message.number).random() < self.down_share

    def _own_reply(self, message: Message, now: float) -> Reply | None:
        if message.obstacle is None:
            return None
        name, lasts = message.obstacle
        if name == "bad":
            return REFUSED
        if name == "grey":  # greylisting counts from the first attempt that reached it
            if lasts == self.greylist_seconds:
                message.obstacle = (name, now + lasts)
                return GREYLISTED
            return GREYLISTED if now < lasts else None
        if now < message.arrived + lasts:
            return FULL if name == "full" else NO_DOMAIN
        return None

    def _takes(self, now: float) -> bool:
        assert self.per_second is not None
        self._tokens = min(self.burst, self._tokens + (now - self._tokens_at) * self.per_second)
        self._tokens_at = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True

    def _falls_over(self, now: float) -> bool:
        assert self.fragile is not None
        if now < self._fallen_until:
            return True
        self._latest.append(now)
        while self._latest[0] < now - 5:
            self._latest.popleft()
        if len(self._latest) > self.fragile:
            self._fallen_until = now + 60 * math.exp(self.rng.gauss(0, 0.5))
            self._latest.clear()
            return True
        return False

    # What an oracle would have made of it

    def oracle(self, messages: list[Message]) -> tuple[list[float | None], list[int]]:
        """For each message: the earliest time at which it could have been delivered, None: never; attempts needed."""
        times: list[float | None] = []
        needed = []
        for message in messages:
            earliest, attempts = self._earliest(message)
            times.append(earliest)
            needed.append(attempts)
        rate = self.per_second if self.fragile is None else self.fragile / 5
        if rate is not None:
            self._queue(times, rate, self.burst if self.fragile is None else self.fragile)
        return times, needed

    def _earliest(self, message: Message) -> tuple[float | None, int]:
        now = self._up(message, message.arrived)
        if message.obstacle is None:
            return now, 1
        name, lasts = message.obstacle
        if name == "bad" or math.isinf(lasts):
            return None, 1 if name == "bad" else 0
        if name == "grey":
            return self._up(message, now + self.greylist_seconds), 2
        return self._up(message, max(now, message.arrived + lasts)), 1

    def _up(self, message: Message, now: float) -> float:
        return (self.down.end_at(now) or now) if self._is_affected(message) else now

    def _queue(self, times: list[float | None], rate: float, burst: float) -> None:
        """First come, first served, through a token bucket."""
        tokens, last = burst, START
        for index in sorted((i for i, t in enumerate(times) if t is not None), key=lambda i: times[i] or 0.0):
            now = max(times[index] or 0.0, last)
            tokens = min(burst, tokens + (now - last) * rate)
            if tokens < 1:
                now += (1 - tokens) / rate
                tokens = 1.0
            tokens -= 1
            times[index] = last = now


def lognormal(rng: random.Random, median: float, sigma: float) -> Callable[[], float]:
    return lambda: median * math.exp(rng.gauss(0, sigma))


def exponential(rng: random.Random, mean: float) -> Callable[[], float]:
    return lambda: rng.expovariate(1 / mean)


def pareto(rng: random.Random, least: float, alpha: float, most: float) -> Callable[[], float]:
    return lambda: min(most, least * rng.paretovariate(alpha))


class _Day:
    """Draws a day's parameters."""

    def __init__(self, seed: str) -> None:
        self.rng = random.Random(seed)

    def __call__(self, nominal: float) -> float:
        return nominal * math.exp(self.rng.gauss(0, SPREAD))


def long_outages(day: _Day) -> Backend:
    down = spans_of(exponential(day.rng, day(4 * 3600)), lognormal(day.rng, day(600), 1.0))
    return Backend(day.rng, down)


def short_crashes(day: _Day) -> Backend:
    down = spans_of(exponential(day.rng, day(1800)), lognormal(day.rng, day(20), 0.4))
    return Backend(day.rng, down)


def pareto_outages(day: _Day) -> Backend:
    down = spans_of(exponential(day.rng, day(3600)), pareto(day.rng, day(10), 0.8, 6 * 3600))
    return Backend(day.rng, down, TIMEOUT)


def flapping(day: _Day) -> Backend:
    """Four hours in which it is up for a minute and down for half of one, by turns."""
    begins, lasts = [day.rng.uniform(0, DAY) for _ in range(4)], day(3600)
    up, down = exponential(day.rng, day(60)), exponential(day.rng, day(30))
    spans: list[tuple[float, float]] = []
    for begin in sorted(begins):
        now = max(START + begin, spans[-1][1] + 1 if spans else 0.0)
        while now < START + begin + lasts:
            spans.append((now, now := now + down()))
            now += up()
    return Backend(day.rng, Spans(spans))


def greylisting(day: _Day) -> Backend:
    return Backend(day.rng, greylisted=min(0.9, day(0.5)))


def local_errors(day: _Day) -> Backend:
    """Bursts of 451: nine of ten messages are put off for some minutes, as while a filter restarts."""
    down = spans_of(exponential(day.rng, day(2 * 3600)), lognormal(day.rng, day(90), 0.8))
    return Backend(day.rng, down, LOCAL_ERROR, down_share=0.9)


def throttling(day: _Day) -> Backend:
    """It takes a message every four seconds or so; at the day's two peaks half as many again arrive."""
    takes = day(0.25)
    peaks = [day.rng.uniform(0.1, 0.4) * DAY, day.rng.uniform(0.55, 0.85) * DAY]
    lasts = day(2400)

    def arrivals(now: float) -> float:
        return takes * (1.5 if any(peak <= now < peak + lasts for peak in peaks) else 0.35)

    return Backend(day.rng, per_second=takes, arrivals=arrivals, most_arrivals=1.5 * takes)


def full_mailboxes(day: _Day) -> Backend:
    return Backend(day.rng, full=day(0.02), full_median=day(6 * 3600))


def noise(day: _Day) -> Backend:
    return Backend(day.rng, noise=0.05, noise_seed=day.rng.getrandbits(32))


def bad_addresses(day: _Day) -> Backend:
    """Most are refused for good at once; of a share the domain is not found, and a third of these never is."""
    return Backend(day.rng, bad=day(0.03), no_domain=day(0.02), no_domain_median=day(3600), no_domain_never=1 / 3)


def fragile(day: _Day) -> Backend:
    """After an outage it falls over under more than 25 attempts in five seconds."""
    down = spans_of(exponential(day.rng, day(3 * 3600)), lognormal(day.rng, day(600), 0.7))
    return Backend(day.rng, down, fragile=round(day(25)))


def mix(day: _Day) -> Backend:
    down = spans_of(exponential(day.rng, day(3 * 3600)), lognormal(day.rng, day(300), 1.2))
    more = {"noise": 0.01, "noise_seed": day.rng.getrandbits(32)}
    return Backend(day.rng, down, **more, greylisted=day(0.2), full=day(0.003), full_median=day(6 * 3600), bad=0.01)


SCENARIOS: dict[str, Callable[[_Day], Backend]] = {
    "long outages": long_outages,
    "short crashes": short_crashes,
    "Pareto outages": pareto_outages,
    "flapping": flapping,
    "greylisting": greylisting,
    "451 bursts": local_errors,
    "throttling": throttling,
    "full mailboxes": full_mailboxes,
    "5 % noise": noise,
    "bad addresses": bad_addresses,
    "fragile server": fragile,
    "mix": mix,
}


def play_day(scenario: str, seed: int, *, training: bool) -> Backend:
    return SCENARIOS[scenario](_Day(f"{scenario}/{'train' if training else 'test'}/{seed}"))
