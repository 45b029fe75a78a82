"""The Celery engine of one application: where it is started, a relay."""

from collections.abc import Callable
from contextlib import closing
from functools import partial
from typing import Any

from app.bus import Role
from app.engine.celery.configure import make_celery
from app.engine.celery.queue import ReceiverQueue
from app.engine.celery.relay import Relay
from app.engine.inprocess.engine import Engine
from app.engine.inprocess.worker import Worker
from app.signal import subscriptions


class CeleryEngine(Engine):
    """Starts, wakes and stops a relay as its base does a worker of threads. Receivers run in Celery's workers."""

    def _new_worker(self, *given: Any, **options: Any) -> Worker:
        return Relay(self.bus, self.bus.dispatcher(Role.RELAY), *given, queue=self._queues(), **options)

    def check(self) -> str | None:
        open_queue = self._queues()
        waiting = {}
        for receiver in subscriptions():
            with closing(open_queue(receiver)) as queue:
                waiting[receiver] = queue.count()
        return f"{queue.url} answers; messages wait: {', '.join(f'{n} to {name}' for name, n in waiting.items())}"

    def _queues(self) -> Callable[[str], ReceiverQueue]:
        """Not before every receiver is connected."""
        settings = self.bus.settings
        return partial(ReceiverQueue, make_celery(settings), expiration=settings.lease_seconds)
