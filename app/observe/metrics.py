"""Counters and histograms for GET /metrics, counted as things happen.

The bus reports by its lifecycle signals, the API by each response. ``exposition`` shows the counts, together with
gauges from the database.
"""

from bisect import bisect_left
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from flask import Flask

from app.bus import Bus, LeaseEnd, lifecycle
from app.bus.outbox import Recorded
from app.observe.counts import Counts, Key
from app.observe.queues import Queues

METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"))
"""Others, of which a client may make up as many as it likes, are counted as ``other``."""


@dataclass(frozen=True, slots=True)
class Counter:
    """Its counts have the name and the labels' values as their key."""

    name: str
    help: str
    labels: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Histogram:
    """Its counts' key has one word more: the number of the bucket, or ``sum``."""

    name: str
    help: str
    labels: tuple[str, ...]
    bounds: tuple[float, ...]

    def observed(self, label: str, seconds: float) -> tuple[tuple[Key, float], tuple[Key, float]]:
        """What an observation adds to the counts."""
        bucket = BUCKETS[bisect_left(self.bounds, seconds)]
        return ((self.name, label, bucket), 1), ((self.name, label, "sum"), seconds)


BUCKETS = tuple(str(number) for number in range(100))

REQUESTS = Counter(
    "orders_http_requests_total",
    "Requests answered, by the route's pattern; route is empty where there is none.",
    ("method", "route", "status"),
)
EVENTS = Counter("orders_events_total", "Events stored.", ("type",))
DELIVERIES = Counter(
    "orders_deliveries_total",
    "Ends of leases: the delivery's new state, and its attempt's outcome (none: no attempt was made).",
    ("receiver", "state", "outcome"),
)
ATTEMPT_SECONDS = Histogram(
    "orders_attempt_seconds",
    "From the lease to the end of an attempt, in seconds.",
    ("receiver",),
    (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300),
)
MAIL_SECONDS = Histogram(
    "orders_event_to_mail_seconds",
    "From the event to the record that the mail backend accepted its mail, in seconds; of OrderCreated, POST to mail.",
    ("event",),
    (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800, 3600, 14400, 86400),
)
COUNTED = (REQUESTS, EVENTS, DELIVERIES, ATTEMPT_SECONDS, MAIL_SECONDS)


def init_app(app: Flask) -> None:
    folder: Path = app.extensions["settings"].instance_path
    file = app.extensions["bus"].database.dialect.file
    # A folder in which a SQLite database was is not made anew: its database would be another, empty one.
    counts = Counts(folder / "metrics", parents=file is None or folder not in file.parents)
    app.extensions["metrics"] = Metrics(app.extensions["bus"], counts)


class Metrics:
    """One application's. Signals hold it weakly: keep it for as long as the bus."""

    def __init__(self, bus: Bus, counts: Counts) -> None:
        self.counts, self.queues = counts, Queues(bus)
        lifecycle.events_recorded.connect(self.events_recorded, sender=bus)
        lifecycle.deliveries_settled.connect(self.deliveries_settled, sender=bus)

    def count_request(self, environ: dict[str, object], status: str) -> None:
        """``status`` is the response's line."""
        method = str(environ["REQUEST_METHOD"])
        rule = getattr(environ.get("werkzeug.request"), "url_rule", None)
        route = "" if rule is None else rule.rule
        self.counts.add((REQUESTS.name, method if method in METHODS else "other", route, status[:3]))

    def events_recorded(self, _: Bus, events: list[Recorded]) -> None:
        self.counts.add_all([((EVENTS.name, event.type), 1) for event in events])

    def deliveries_settled(self, bus: Bus, ends: list[LeaseEnd]) -> None:
        now, amounts = bus.database.clock.now(), list[tuple[Key, float]]()
        for end in ends:
            lease = end.lease
            amounts.append(((DELIVERIES.name, lease.receiver, end.state, end.outcome or "none"), 1))
            if end.outcome is not None:
                amounts += ATTEMPT_SECONDS.observed(lease.receiver, _seconds(lease.leased_at, now))
            if end.state == "done" and bus.options[lease.receiver].sends_mail:
                amounts += MAIL_SECONDS.observed(lease.type, _seconds(lease.occurred_at, now))
        self.counts.add_all(amounts)


def _seconds(since: datetime, now: datetime) -> float:
    """Never negative, also where a clock was set back."""
    return max(0.0, (now - since).total_seconds())
