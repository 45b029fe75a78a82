"""The processes of a Celery worker: each makes an application of its own, after the fork, and one Runner."""

import os
from collections.abc import Callable
from typing import Any

from celery import Celery, signals
from celery.concurrency import prefork, solo
from flask import Flask

from app.bus import Bus
from app.db.schema import prepare
from app.engine.celery.configure import add_tasks, make_celery
from app.engine.celery.runner import Runner
from app.errors import AppError, DatabaseUnavailable
from config import Settings

POOLS = (prefork.TaskPool, solo.TaskPool)
CURE = "leave --pool out, or give --pool=prefork or --pool=solo"


class Processes:
    """``make_app`` makes the application of the process that calls it: nothing of the database crosses a fork."""

    def __init__(
        self, settings: Settings, app: Flask, make_app: Callable[[], Flask], refuse: Callable[[object], object]
    ) -> None:
        """``app`` is the worker's own, which knows the receivers. ``refuse`` is given why the worker must not start."""
        self._app, self._make_app, self._refuse = app, make_app, refuse
        self._runner: Runner | None = None
        self._pid = 0
        self.celery: Celery = make_celery(settings)
        add_tasks(self.celery, app.extensions["bus"], self._carry)
        signals.worker_init.connect(self._check)
        signals.worker_process_init.connect(self._start)
        signals.worker_process_shutdown.connect(self._stop)

    def _check(self, sender: Any, **_: Any) -> None:
        """Before the fork. Where the database is away each process looks again.

        Celery only logs what is raised here.
        """
        if not issubclass(sender.pool_cls, POOLS):
            self._refuse(f"receivers need a process each, and this pool gives them none: {CURE}")
        bus: Bus = self._app.extensions["bus"]
        try:
            prepare(bus.database)
            if refused := bus.status().refused_here:
                self._refuse(refused)
        except DatabaseUnavailable:
            pass
        except AppError as error:
            self._refuse(error)
        bus.database.close()

    def _carry(self, delivery_id: int, lease_token: int) -> str:
        return self._find_runner().carry(delivery_id, lease_token)

    def _start(self, **_: Any) -> None:
        self._find_runner()

    def _stop(self, **_: Any) -> None:
        if self._runner is not None and self._pid == os.getpid():
            self._runner.stop()

    def _find_runner(self) -> Runner:
        if self._runner is None or self._pid != os.getpid():
            self._runner, self._pid = Runner(self._make_app().extensions["bus"]), os.getpid()
            self._runner.start()
        return self._runner
