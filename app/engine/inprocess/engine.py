"""The in-process engine of one application: a worker, started and stopped on demand."""

import os
import threading
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

from app.bus import Bus, lifecycle
from app.engine.inprocess.wakeup_sender import WakeupSender
from app.engine.inprocess.watchdog import Watchdog
from app.engine.inprocess.worker import Worker


class Engine:
    """Dispatches in threads of this process while it is started. Where it is not, it wakes those who dispatch."""

    def __init__(self, bus: Bus) -> None:
        self.bus = bus
        self.worker: Worker | None = None
        self._stopped = threading.Event()
        self.end_process: Callable[[], object] = partial(os._exit, 1)
        """Called when only the end of the process helps. Who watches the process, as gunicorn does, starts another."""
        self._others = WakeupSender(bus.database)
        self._lock = threading.Lock()
        lifecycle.deliveries_due.connect(self.wake, sender=bus)
        _engines.add(self)

    @property
    def alive(self) -> bool:
        """Whether it is started, and none of its own threads has ended."""
        worker = self.worker
        return worker is not None and worker.alive

    def start(self, *, anyway: bool = False, waits: bool = True) -> Worker:
        """Dispatch in this process, in threads, until ``stop()``. Does nothing when it does so already. Raises nothing:
        what can't be reached is tried again.

        ``anyway``: also where mail went otherwise before. ``waits``: where that is refused, look again now and then;
        else end, with ``Worker.refusal``.
        """
        with self._lock:
            if self.worker is None:
                wake_others = partial(self._others.wake, everywhere=True)
                worker = self.worker = self._new_worker(wake_others, anyway=anyway, waits=waits)
                worker.start()
                _start_thread("watchdog", Watchdog(worker, self.end_process).run)
                self._stopped = threading.Event()
                _start_thread("watch", self.bus.watch.run, self._stopped, worker.dispatcher.name)
                if (learning := self.bus.learning) is not None:
                    _start_thread("learning", learning.run, self._stopped, worker.dispatcher.name)
            return self.worker

    def _new_worker(self, *given: Any, **options: Any) -> Worker:
        return Worker(self.bus, self.bus.dispatcher(), *given, **options)

    def stop(self) -> bool:
        """Stop dispatching here, waiting ``shutdown_seconds`` for running receivers. Returns whether all ended."""
        with self._lock:
            worker, self.worker = self.worker, None
            self._stopped.set()
        return worker is None or worker.stop(self.bus.settings.shutdown_seconds)

    def check(self) -> str | None:
        """Ask what it needs beside the database. Returns in words what answered; None where it needs nothing. Raises
        BrokerUnavailable."""
        return None

    def wake(self, _: object = None, everywhere: bool = False) -> None:
        """Deliveries are due: wake the worker here, or the dispatchers of other processes where this one has none.

        A process that serves has none: see serving.py. ``everywhere``: wake all, on all machines.
        """
        worker = self.worker
        if worker is not None:
            worker.wakeup.wake()
        if worker is None or everywhere:
            self._others.wake(everywhere=everywhere)

    def _after_fork(self) -> None:
        """Threads stay behind in the parent, and its connections are its own: begin anew."""
        self.bus.database.forget_connections()
        self.bus.watch.after_fork()
        self._lock = threading.Lock()
        if self.worker is not None:
            self.worker = None
            self.start()


def _start_thread(name: str, run: Callable[..., object], *arguments: Any) -> None:
    threading.Thread(target=run, args=arguments, name=f"dispatcher-{name}", daemon=True).start()


_engines: "weakref.WeakSet[Engine]" = weakref.WeakSet()


def _after_fork() -> None:
    for engine in list(_engines):
        engine._after_fork()


os.register_at_fork(after_in_child=_after_fork)
