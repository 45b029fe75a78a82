"""Celery as this service uses it: its configuration, and a queue and a task for each receiver.

Celery only carries. Its own retries, ETA and countdown are not used: when a delivery is tried again stands in the
outbox. Messages are acknowledged when a process begins with them, because from then on the lease is what brings a
delivery back.
"""

import os
from collections.abc import Callable

from celery import Celery
from kombu import Exchange, Queue

from app.bus import Bus
from app.signal import subscriptions
from config import Settings

PREFIX = "orders."
"""Of the queues' names: another application may share the broker."""

PREFETCH_MULTIPLIER = 4
"""Messages that a worker reserves for each of its processes. Where it dies the broker hands them out again."""

HEARTBEAT_SECONDS = 10
"""Of a worker's connection to RabbitMQ: one that broke without a word is noticed after twice as long."""

CHILD_START_SECONDS = 60
"""How long a process of a worker may take to load the application, on a busy machine."""


def make_celery(settings: Settings) -> Celery:
    """Connects to nothing. Every receiver that is connected by now has its queue."""
    celery = Celery("orders", broker=settings.celery_broker_url, set_as_current=False)
    celery.conf.update(
        task_queues=[queue_of(receiver) for receiver in subscriptions()],
        task_default_queue=f"{PREFIX}default",  # nothing is sent there; without one Celery declares "celery"
        task_default_queue_type="quorum",
        task_create_missing_queues=False,
        task_ignore_result=True,
        task_acks_late=False,
        task_serializer="json",
        accept_content=["json"],
        broker_heartbeat=HEARTBEAT_SECONDS,
        # RabbitMQ keeps a connection that broke without a word for a while: an exclusive queue would be locked by it,
        # and the worker that comes back on another would end.
        control_queue_exclusive=False,
        control_queue_durable=True,  # RabbitMQ gives up queues that are neither
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        worker_consumer="app.engine.celery.consumer:Consumer",
        worker_detect_quorum_queues=True,
        worker_prefetch_multiplier=PREFETCH_MULTIPLIER,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        worker_proc_alive_timeout=CHILD_START_SECONDS,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
    )
    return celery


def queue_of(receiver: str) -> Queue:
    """A quorum queue: what RabbitMQ has confirmed outlives the death of its process, and of a minority of its nodes."""
    name = f"{PREFIX}{receiver}"
    exchange = Exchange(f"{PREFIX}deliveries", type="direct", durable=True)
    return Queue(name, exchange, routing_key=name, durable=True, queue_arguments={"x-queue-type": "quorum"})


def add_tasks(celery: Celery, bus: Bus, carry: Callable[[int, int], str]) -> None:
    """A task for each receiver, by its name, so that Flower and Celery's log tell them apart.

    Its soft limit is the receiver's own time limit. The hard one leaves the database time to take and to settle.
    """
    for receiver, subscription in subscriptions().items():
        limits = {"soft_time_limit": time_limit(bus, receiver), "time_limit": hard_limit(bus, receiver)}
        task = celery.task(carry, name=receiver, **limits)
        task.concurrency = None if subscription.transactional else bus.options[receiver].concurrency
    # Processes of a worker, where nobody says how many: as many as there are processors, and enough that receivers
    # which wait for others (mail's) never occupy all.
    waiting = sum(bus.options[name].concurrency for name, each in subscriptions().items() if not each.transactional)
    celery.conf.worker_concurrency = max(os.cpu_count() or 1, waiting + 1)


def time_limit(bus: Bus, receiver: str) -> float:
    """How many seconds the receiver may take."""
    return bus.options[receiver].timeout_seconds or bus.settings.receiver_timeout


def hard_limit(bus: Bus, receiver: str) -> float:
    """After so many seconds the process that has taken a delivery is killed; its lease then runs out."""
    return time_limit(bus, receiver) + 2 * bus.settings.database_timeout
