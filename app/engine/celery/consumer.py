"""The part of a Celery worker that receives messages, without the steps that this service has no use for."""

from collections.abc import Callable
from typing import Any

from celery.worker import consumer

from app.engine.celery.bulkheads import Bulkheads

DELAYED = "celery.worker.consumer.delayed_delivery:DelayedDelivery"
"""It would declare 28 queues, for messages with an ETA."""


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

    def _limit(self, task: str) -> int | None:
        """How many of the worker's processes the task's receiver may use: see ``configure.add_tasks()``.

        However few there are, one is left to others.
        """
        most = getattr(self.app.tasks[task], "concurrency", None)
        return None if most is None else min(most, max(1, self.pool.num_processes - 1))
