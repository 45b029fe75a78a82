"""The part of a Celery worker that receives messages, without the steps that this service has no use for."""

import logging
from collections.abc import Callable
from typing import Any

from celery.worker import consumer
from celery.worker.state import active_requests, maybe_shutdown

from app.engine.celery.bulkheads import Bulkheads

DELAYED = "celery.worker.consumer.delayed_delivery:DelayedDelivery"
"""It would declare 28 queues, for messages with an ETA."""

RECONNECT_SECONDS = 1
"""Between tries to reach a broker that is away. Celery's own pauses grow to half a minute: so much later would a worker
see that it is back."""

log = logging.getLogger("celery.worker.consumer")


class Consumer(consumer.Consumer):  # type: ignore[misc]
    """Workers need not know of each other, because leases keep them apart: no mingle, no gossip."""

    class Blueprint(consumer.Consumer.Blueprint):  # type: ignore[misc]
        default_steps = [step for step in consumer.Consumer.Blueprint.default_steps if step != DELAYED]  # noqa: RUF012

    def __init__(
        self, start: Callable[[Any], None], *given: Any, worker_options: dict[str, Any] | None = None, **more: Any
    ) -> None:
        """``start`` hands a request to the pool."""
        without = {"without_mingle": True, "without_gossip": True}
        super().__init__(start, *given, worker_options=(worker_options or {}) | without, **more)
        self.on_task_request = Bulkheads(start, self._limit)

    def ensure_connected(self, conn: Any) -> Any:
        """Connect, however long that takes. The first failure is logged, and the end of it."""
        failures: list[Exception] = []

        def note(error: Exception, _: float) -> None:
            if not failures:
                log.error("broker lost %s: %s; trying again each %s s", conn.as_uri(), error, RECONNECT_SECONDS)
            failures.append(error)

        pause = {"interval_start": RECONNECT_SECONDS, "interval_step": 0, "interval_max": RECONNECT_SECONDS}
        connected = conn.ensure_connection(note, callback=maybe_shutdown, **pause)
        if failures:
            log.info("broker back")
        self.first_connection_attempt = False
        return connected

    def on_close(self) -> None:
        """The connection broke."""
        super().on_close()
        self.on_task_request.forget_all_but(set(active_requests))

    def _limit(self, task: str) -> int | None:
        """How many of the worker's processes the task's receiver may use: see ``configure.add_tasks()``.

        However few there are, one is left to others.
        """
        most = getattr(self.app.tasks[task], "concurrency", None)
        return None if most is None else min(most, max(1, self.pool.num_processes - 1))
