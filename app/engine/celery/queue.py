"""A receiver's queue at the broker, as a relay sees it."""

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from celery import Celery
from kombu.exceptions import KombuError

from app.bus import Lease
from app.engine.celery.configure import queue_of
from app.errors import BrokerUnavailable

CONNECT_SECONDS = 4.0

CONFIRM_SECONDS = 10.0
"""How long RabbitMQ may take to confirm a batch, or Redis to take it."""

MOST_WAITING = 200
LEAST_WAITING = 10
"""Messages that may wait for a worker: the bounds of a queue's window."""


class ReceiverQueue:
    """Publishes to one receiver's queue. For one thread; ``close()`` for any, once that has ended.

    RabbitMQ confirms each message once a majority of the queue's replicas has it on disk. A batch is published as a
    whole before the first confirmation is waited for. Redis answers each message.
    """

    def __init__(self, celery: Celery, receiver: str, expiration: float) -> None:
        """``expiration`` is after how many seconds RabbitMQ drops a message, because its lease has run out."""
        self.receiver = receiver
        self._celery, self._queue, self._expiration = celery, queue_of(receiver), expiration
        self._connection: Any = None
        self._channel: Any = None
        self._producer: Any = None
        self._published = 0
        """On this channel: RabbitMQ counts likewise."""
        self._unconfirmed: dict[int, Lease] = {}
        self._refused: list[Lease] = []
        self._waiting = 0
        self.is_taken = True
        """Whether a worker takes from it, as RabbitMQ said last. Redis doesn't say."""
        self.window = MOST_WAITING
        """How many messages may wait. Where workers are slow, more would outlive their leases, and be in the way of
        those that are published in their stead."""
        self._draining = False
        self._shrunk_at = float("-inf")

    def publish(self, leases: list[Lease]) -> list[Lease]:
        """Returns those that the broker refused. Raises BrokerUnavailable; then it may have some, or none."""
        with self._channel_errors():
            self._open()
            self._refused.clear()
            for lease in leases:
                self._send(lease)
            self._await_confirmations()
            self._waiting += len(leases)
            return self._refused[:]

    def is_full(self) -> bool:
        """Whether more messages would wait too long, or for nobody. Asks the broker where that may be. Raises
        BrokerUnavailable."""
        if self._connection is None or self._draining or self._waiting >= self.window or not self.is_taken:
            self._waiting = self.count()
            if not self._waiting:
                self.window = self.window if self._draining else min(MOST_WAITING, 2 * self.window)
                self._draining = False
        return self._draining or self._waiting >= self.window or not self.is_taken

    def count(self) -> int:
        """How many messages wait, as the broker says. Raises BrokerUnavailable."""
        with self._channel_errors():
            self._open()
            return self._count()

    def shrink(self) -> None:
        """A lease ran out on its way: fewer messages may wait from now on, and none before those that do are gone. From
        any thread."""
        now = time.monotonic()
        if now - self._shrunk_at > self._expiration:  # those that were published together run out together
            self._shrunk_at = now
            self.window = max(LEAST_WAITING, self.window // 2)
            self._draining = True

    @property
    def url(self) -> str:
        """The broker's, without the password."""
        return str(self._celery.connection_for_write().as_uri())

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(Exception):  # it may be broken in any way
                connection.collect(socket_timeout=1)

    @contextmanager
    def _channel_errors(self) -> Iterator[None]:
        """Whatever the broker's client raises: it has no common base, and each kind leaves the channel useless."""
        client = self._celery.connection_for_write()
        try:
            yield
        except (OSError, KombuError, *client.connection_errors, *client.channel_errors) as error:
            self.close()
            raise BrokerUnavailable(f"{self.url}: {_words(error)}") from error
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        if self._connection is not None:
            return
        limits = {"read_timeout": CONFIRM_SECONDS, "write_timeout": CONFIRM_SECONDS}
        connection = self._celery.connection_for_write(
            heartbeat=0,  # nobody answers it while nothing is due
            connect_timeout=CONNECT_SECONDS,
            transport_options=limits if is_amqp(self._celery) else {"socket_timeout": CONFIRM_SECONDS},
        )
        self._connection = connection  # from now on there is something to close
        self._channel = connection.channel()
        self._queue.bind(self._channel).declare()
        self._producer = self._celery.amqp.Producer(self._channel, auto_declare=False)
        self._published = 0
        self._unconfirmed.clear()
        if is_amqp(self._celery):
            self._channel.confirm_select()
            self._channel.events["basic_ack"].add(self._settle)
            self._channel.events["basic_nack"].add(self._not_confirmed)
        self._waiting = self._count()

    def _count(self) -> int:
        """To declare a queue that is there counts what waits in it, and who takes from it."""
        found = self._channel.queue_declare(
            queue=self._queue.name, durable=True, auto_delete=False, arguments=self._queue.queue_arguments
        )
        self.is_taken = bool(found.consumer_count) or not is_amqp(self._celery)
        return int(found.message_count)

    def _send(self, lease: Lease) -> None:
        message = {"delivery_id": lease.delivery_id, "lease_token": lease.token}
        self._celery.send_task(
            self.receiver,
            kwargs=message,
            producer=self._producer,
            queue=self._queue,
            declare=(),
            expiration=self._expiration,
            retry=False,
            ignore_result=True,
        )
        self._published += 1
        if is_amqp(self._celery):
            self._unconfirmed[self._published] = lease

    def _await_confirmations(self) -> None:
        deadline = time.monotonic() + CONFIRM_SECONDS
        while self._unconfirmed:
            if (left := deadline - time.monotonic()) <= 0:
                raise TimeoutError(f"it has not confirmed {len(self._unconfirmed)} messages in {CONFIRM_SECONDS:g} s")
            self._connection.drain_events(timeout=left)

    def _not_confirmed(self, tag: int, multiple: bool) -> None:
        self._refused += self._settle(tag, multiple)

    def _settle(self, tag: int, multiple: bool) -> list[Lease]:
        tags = [each for each in self._unconfirmed if each == tag or (multiple and each <= tag)]
        return [self._unconfirmed.pop(each) for each in tags]


def is_amqp(celery: Celery) -> bool:
    return str(celery.conf.broker_url).startswith("amqp")


def _words(error: BaseException) -> str:
    return str(error).partition("\n")[0].rstrip(".") or type(error).__name__
