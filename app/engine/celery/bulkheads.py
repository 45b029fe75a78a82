"""Bulkheads in a Celery worker: receivers that hang occupy so many of its processes, and no more.

The worker hands a message to whichever of its processes is free. Without a bound all of them would soon wait for the
same silent mail server, and order records with them.
"""

from collections import defaultdict, deque
from collections.abc import Callable, Collection
from functools import partial
from typing import Any


class Bulkheads:
    """Starts a receiver's messages while fewer than its limit are running, and keeps the others in their order.

    For the worker's event loop. What waits here is not acknowledged: the broker bounds how much that is, for each
    queue by itself on RabbitMQ.
    """

    def __init__(self, start: Callable[[Any], object], limit: Callable[[str], int | None]) -> None:
        """``start`` hands a request to the pool. ``limit`` is asked by the task's name; None: it may use all."""
        self._start, self._limit = start, limit
        self._running: defaultdict[str, set[Any]] = defaultdict(set)
        self._waiting: defaultdict[str, deque[Any]] = defaultdict(deque)

    def __call__(self, request: Any) -> None:
        if self._limit(request.name) is None:
            self._start(request)
        else:
            self._waiting[request.name].append(request)
            self._start_waiting(request.name)

    def forget_all_but(self, begun: Collection[Any]) -> None:
        """The connection broke. Of what was started Celery drops all that no process had begun, and tells no end of it;
        the broker hands it out again, as it does what waits here."""
        self._waiting.clear()
        for running in self._running.values():
            running.intersection_update(begun)

    def _start_waiting(self, name: str) -> None:
        waiting, running, limit = self._waiting[name], self._running[name], self._limit(name)
        while waiting and (limit is None or len(running) < limit):
            request = self._watched(waiting.popleft())
            running.add(request)
            self._start(request)

    def _watched(self, request: Any) -> Any:
        """Celery tells the end of a request by one of these methods, which it looks up when it starts it.

        A process that was killed at its hard limit is told twice.
        """

        def tell(method: Callable[..., Any], *given: Any, **named: Any) -> Any:
            is_soft = bool(given and given[0]) if method is on_timeout else False
            try:
                return method(*given, **named)
            finally:
                if not is_soft and request in self._running[request.name]:
                    self._running[request.name].remove(request)
                    self._start_waiting(request.name)

        on_timeout = request.on_timeout
        request.on_timeout = partial(tell, on_timeout)
        request.on_success = partial(tell, request.on_success)
        request.on_failure = partial(tell, request.on_failure)
        return request
