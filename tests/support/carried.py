"""The service on Celery: a worker beside each command that dispatches, which lives and dies with it."""

import signal
from pathlib import Path
from typing import Any, Self

from tests.support.service import CELERY_WORKER, LIMIT, Service, wait_until

PROCESSES = 4
"""Of a worker: one for records, two for mails, and another."""


def dispatches(command: tuple[str, ...], settings: dict[str, Any]) -> bool:
    return "bus" in command or bool(settings.get("dispatch_in_web", True))


class CarriedService(Service):
    """Its relay's messages are carried by a worker that prints into the same log.

    Both are started, stopped, paused and killed at once; what ends the first process of the service by itself ends the
    worker too.
    """

    def __init__(self, folder: Path, *command: str, port: int | None = None, **settings: Any) -> None:
        super().__init__(folder, *command, port=port, **settings)
        words = [*CELERY_WORKER, "--concurrency", f"{PROCESSES}", "-n", f"on-{self.port}@%h"]
        settings["dispatch_in_web"] = False  # or else the application of a module for tests would
        for word in self.command:
            if word.startswith("tests.support."):
                words[2], settings["with"] = "tests.support.celery_worker", word.partition(":")[0]
        self.worker = Service(folder, *words, port=self.port, **settings)
        self.worker.log_file = self.log_file
        self._worker_is_told = False

    def start(self, ready: str | None = None) -> Self:
        super().start(ready)
        self.wait_for_log(" ready.")
        return self

    def launch(self, output: int | None = None, **settings: Any) -> Self:
        super().launch(output, **settings)
        self.worker.cwd, self.worker.within, self.worker.read_env_file = self.cwd, self.within, self.read_env_file
        self.worker.launch(output, **settings)
        self._worker_is_told = False
        return self

    def pids(self) -> list[int]:
        return super().pids() + self.worker.pids()

    def signal(self, number: int, *pids: int) -> None:
        super().signal(number, *pids)
        if pids or self.worker.ended:
            return
        if number in (signal.SIGSTOP, signal.SIGCONT):
            self.worker.signal(number, *self.worker.pids())
        elif number == signal.SIGTERM:
            self._tell_worker()

    def wait_for_end(self, limit: float = LIMIT) -> int:
        wait_until(lambda: not super(CarriedService, self).pids(), f"the end of {' '.join(self.command)}", limit)
        self._tell_worker()
        return super().wait_for_end(limit)

    def _tell_worker(self) -> None:
        """To end. The second time it would not wait for its tasks."""
        if not (self._worker_is_told or self.worker.ended):
            self._worker_is_told = True
            self.worker.signal(signal.SIGTERM)

    def kill(self, *pids: int) -> None:
        if not self.worker.ended and (not pids or self.pid in pids):
            self.worker.kill()
        super().kill(*pids)

    def close(self) -> None:
        self.worker.close()
        super().close()
