"""Celery's workers as threads of the test's process: they take messages, and give them to runners, as a worker's
processes do. Real ones are in tests/acceptance."""

import json
import threading
from contextlib import suppress
from typing import Any

from kombu import Connection, Consumer

from app.bus import Bus
from app.engine.celery.configure import queue_of
from app.engine.celery.engine import CeleryEngine
from app.engine.celery.runner import Runner
from app.engine.inprocess.worker import Worker
from app.signal import subscriptions


class CarriedEngine(CeleryEngine):
    """Starts and stops carriers with the relay: for each receiver as many as it may have processes."""

    _carriers: "list[Carrier]"

    def __init__(self, bus: Bus) -> None:
        super().__init__(bus)
        self._carriers = []

    def start(self, *, anyway: bool = False, waits: bool = True) -> Worker:
        url = self.bus.settings.celery_broker_url
        with Connection(url) as connection:  # RabbitMQ fails where several make one at once
            for receiver in subscriptions():
                queue_of(receiver).bind(connection.default_channel).declare()
        running = super().start(anyway=anyway, waits=waits)
        if not self._carriers:
            options = self.bus.options
            self._carriers = [
                Carrier(self.bus, receiver)
                for receiver, each in subscriptions().items()
                for _ in range(1 if each.transactional else options[receiver].concurrency)
            ]
            for carrier in self._carriers:
                carrier.start()
        return running

    def stop(self) -> bool:
        ended = super().stop()
        carriers, self._carriers = self._carriers, []
        for carrier in carriers:
            carrier.ask_to_stop()
        for carrier in carriers:
            carrier.stop()
        return ended


class Carrier:
    """A thread that takes messages to one receiver. What it has begun it ends at a stop, as a worker does."""

    def __init__(self, bus: Bus, receiver: str) -> None:
        self.runner = Runner(bus)
        self._url, self._receiver = bus.settings.celery_broker_url, receiver
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"carrier-{receiver}", daemon=True)

    def start(self) -> None:
        self.runner.start()
        self._thread.start()

    def ask_to_stop(self) -> None:
        self._stopping.set()

    def stop(self) -> None:
        self._thread.join(30)
        self.runner.stop()

    def _run(self) -> None:
        def carry(message: Any) -> None:
            message.ack()
            self.runner.carry(**json.loads(message.body)[1])

        with (
            Connection(self._url) as connection,
            suppress(*connection.connection_errors),
        ):  # its broker may end before it
            queue = queue_of(self._receiver)
            with Consumer(connection.channel(), [queue], on_message=carry, prefetch_count=1):
                while not self._stopping.is_set():
                    with suppress(TimeoutError):
                        connection.drain_events(timeout=0.05)
