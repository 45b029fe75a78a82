"""The metrics in Prometheus' text format. Imported at the first scrape, and so in no dispatcher."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from itertools import accumulate

from prometheus_client import generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from app.observe.counts import Key
from app.observe.metrics import COUNTED, Counter, Histogram, Metrics
from app.observe.queues import Queue

GAUGES = {
    "orders_deliveries_waiting": ("Deliveries that are due, or wait for their next try.", "waiting"),
    "orders_deliveries_in_flight": ("Deliveries that are being tried.", "in_flight"),
    "orders_deliveries_retrying": (
        "Of the waiting ones, those that failed at least once; 10000 are counted at most.",
        "retrying",
    ),
    "orders_deliveries_dead": ("Deliveries given up, and not retried; 10000 are counted at most.", "dead"),
    "orders_oldest_due_age_seconds": ("For how long the oldest due delivery has waited.", "overdue_seconds"),
    "orders_breaker_open": ("Whether the circuit breaker is open (1): only probes are let through.", "breaker_open"),
    "orders_receiver_paused": ("Whether a person has paused the receiver (1).", "paused"),
}
"""By receiver: name, help, and the attribute of Queue."""


def exposition(metrics: Metrics) -> bytes:
    return generate_latest(_Collector(metrics))


class _Collector:
    def __init__(self, metrics: Metrics) -> None:
        self.metrics = metrics

    def collect(self) -> Iterator[Metric]:
        counted: defaultdict[str, dict[Key, float]] = defaultdict(dict)
        for (name, *rest), count in sorted(self.metrics.counts.totals().items()):
            counted[name][tuple(rest)] = count
        for metric in COUNTED:
            counts = counted[metric.name]
            yield _of_counter(metric, counts) if isinstance(metric, Counter) else _of_histogram(metric, counts)
        reading = self.metrics.queues.read()
        up = "Whether the database could be read (1). Where it could not, the metrics behind this one are missing."
        yield GaugeMetricFamily("orders_database_up", up, value=reading is not None)
        if reading is not None:
            yield from _of_queues(reading.queues)
            yield from _of_dispatchers(reading.dispatchers)


def _of_counter(metric: Counter, counts: Mapping[Key, float]) -> Metric:
    family = CounterMetricFamily(metric.name, metric.help, labels=metric.labels)
    for values, count in counts.items():
        family.add_metric(values, count)
    return family


def _of_histogram(metric: Histogram, counts: Mapping[Key, float]) -> Metric:
    family = HistogramMetricFamily(metric.name, metric.help, labels=metric.labels)
    names = [*map(str, metric.bounds), "+Inf"]
    for label in dict.fromkeys(label for label, _ in counts):
        reached = accumulate(counts.get((label, str(number)), 0.0) for number in range(len(names)))
        family.add_metric((label,), list(zip(names, reached, strict=True)), counts.get((label, "sum"), 0.0))
    return family


def _of_queues(queues: Sequence[Queue]) -> Iterator[Metric]:
    for name, (help_text, attribute) in GAUGES.items():
        family = GaugeMetricFamily(name, help_text, labels=("receiver",))
        for queue in queues:
            family.add_metric((queue.receiver,), float(getattr(queue, attribute)))
        yield family


def _of_dispatchers(dispatchers: Mapping[str, datetime]) -> Iterator[Metric]:
    yield GaugeMetricFamily("orders_dispatchers", "Dispatchers that are alive.", value=len(dispatchers))
    seen = GaugeMetricFamily(
        "orders_dispatcher_heartbeat_timestamp_seconds",
        "When a living dispatcher last said so, as a Unix time.",
        labels=("dispatcher",),
    )
    for name, at in dispatchers.items():
        seen.add_metric((name,), at.timestamp())
    yield seen
