"""The relay: the dispatcher's loop, where deliveries go to a broker instead of to threads.

It claims due deliveries as *dispatched* (``leased_by`` is empty), publishes a message for each, and keeps nothing of
them. Several relays share the work, because each claims what no other has.
"""

from collections.abc import Callable
from functools import partial
from itertools import groupby
from operator import attrgetter
from typing import Any

from app.bus import Lease, LeaseEnd, lifecycle
from app.bus.invoke import NotBegun
from app.db import iso
from app.engine.celery.queue import ReceiverQueue
from app.engine.inprocess.pool import ReceiverPool
from app.engine.inprocess.worker import RETRY_SECONDS, Worker
from app.errors import BrokerUnavailable
from app.signal import subscriptions

MOST_PUBLISHED = 100
"""Messages in one batch: one claim, and one wait for the broker."""

FULL_SECONDS = 0.05
"""Between looks whether a full queue has room again."""


class PublishingPool(ReceiverPool):
    """One thread that publishes a batch at a time. Meanwhile what is due gathers in the outbox, as the next batch."""

    def __init__(self, queue: ReceiverQueue, deliver: Callable[[list[Lease]], None], wake: Callable[[], None]) -> None:
        super().__init__(queue.receiver, 1, deliver, wake, batch=MOST_PUBLISHED)
        self.queue = queue

    @property
    def free_slots(self) -> int:
        return min(super().free_slots, self.queue.window) if self.idle else 0


class Relay(Worker):
    """Publishes what is due until it is stopped. Deliveries without a receiver it settles itself, as a worker does."""

    def __init__(self, *given: Any, queue: Callable[[str], ReceiverQueue], **options: Any) -> None:
        """``queue`` opens the queue of the receiver that it is given."""
        super().__init__(*given, **options)
        self._open_queue = queue
        self._queues: dict[str, ReceiverQueue] = {}
        lifecycle.deliveries_settled.connect(self._note_expired, sender=self.dispatcher.sender)

    def stop(self, seconds: float) -> bool:
        ended = super().stop(seconds)
        for each in self._queues.values():
            each.close()
        return ended

    def _hand_out(self, claimed: list[Lease]) -> None:
        """In one batch for each receiver."""
        known = subscriptions()
        super()._hand_out([lease for lease in claimed if lease.receiver not in known])
        for receiver, batch in groupby(filter(lambda lease: lease.receiver in known, claimed), attrgetter("receiver")):
            self._pool(receiver).submit(list(batch))

    def _pool(self, receiver: str) -> ReceiverPool:
        if receiver not in subscriptions():
            return super()._pool(receiver)
        if receiver not in self._pools:
            queue = self._open_queue(receiver)
            self._queues[receiver] = queue
            self._pools[receiver] = PublishingPool(queue, partial(self._publish, queue), self.wakeup.wake)
        return self._pools[receiver]

    def _note_expired(self, _: object, ends: list[LeaseEnd]) -> None:
        """Of what ran out on its way the message was lost, or waits still."""
        for receiver in {end.lease.receiver for end in ends if end.lease.expired and end.lease.leased_by is None}:
            if queue := self._queues.get(receiver):
                queue.shrink()

    def _publish(self, queue: ReceiverQueue, batch: list[Lease]) -> None:
        """In the receiver's thread. What the broker does not take is due again at once; then wait until it may be."""
        self.dispatcher.abandon(batch)  # a message has its lease from here on, and nobody extends it
        refused = batch
        try:
            refused = queue.publish(batch)
        except BrokerUnavailable as error:
            self._note_broker_lost(error)
        except BaseException as error:  # a fault of ours
            self._report_fault(error)
        if refused:
            self.hand_back(*[(lease, NotBegun()) for lease in refused])
            self.wakeup.wake()
            self._stopping.wait(RETRY_SECONDS)
        with self.reporting_faults():
            self._await_room(queue)

    def _await_room(self, queue: ReceiverQueue) -> None:
        while not self.stopping:
            pause = FULL_SECONDS
            try:
                is_full = queue.is_full()
                self._note_broker_back()
                self._note_taken(queue)
                if not is_full:
                    return
            except BrokerUnavailable as error:
                self._note_broker_lost(error)
                pause = RETRY_SECONDS
            self._stopping.wait(pause)

    def _note_broker_lost(self, error: BrokerUnavailable) -> None:
        since = iso(self.dispatcher.clock.now())
        if self._tell(lambda known: {"lost_since": since, "reason": str(error)} | known):
            lifecycle.report(lifecycle.broker_lost, self.dispatcher.sender, error=error)

    def _note_broker_back(self) -> None:
        if self._tell(lambda known: {"untaken": known.get("untaken")}):
            lifecycle.report(lifecycle.broker_back, self.dispatcher.sender)

    def _note_taken(self, queue: ReceiverQueue) -> None:
        own = set() if queue.is_taken else {queue.receiver}
        self._tell(lambda known: known | {"untaken": sorted({*known.get("untaken", [])} - {queue.receiver} | own)})

    def _tell(self, change: Callable[[dict[str, Any]], dict[str, Any]]) -> bool:
        """By a heartbeat, where this changes what is known. Returns whether it does."""
        with self._lock:
            known, told = self.dispatcher.broker, change(self.dispatcher.broker)
            self.dispatcher.broker = {name: value for name, value in told.items() if value}
            changes = self.dispatcher.broker != known
        if changes:
            self._beat_once()
        return changes
