"""A ledger kept outside of the service: what it answered to each order, to be held against what it did.

    ledger = Ledger(seed)
    with Load(ledger, service.port):
        ledger.wait_for(100)
        service.kill()
    ...
    ledger.wait_until_settled(service.database_url)
    ledger.check(service.database_url, server.received)

An order is *acknowledged* (2xx), *refused* (any other answer, or the connection could not even be made), or *unknown*
(the connection died before the answer). Every order has an address of its own, by which its mails are known.
"""

import contextlib
import itertools
import json
import math
import random
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from http.client import HTTPException
from typing import Any, Protocol, Self

from sqlalchemy import create_engine, text

from app.db import sqlite_module
from tests.support.service import LIMIT, Answer, Client, wait_until

DOMAIN = "ledger.example"


class Mail(Protocol):
    @property
    def recipients(self) -> list[str]: ...
    @property
    def message_id(self) -> str: ...


@dataclass(frozen=True)
class Order:
    order_id: str
    user_id: str
    total_price: str

    @property
    def body(self) -> dict[str, str]:
        return {
            "order_id": self.order_id,
            "user_id": self.user_id,
            "total_price": self.total_price,
            "email": f"{self.order_id}@{DOMAIN}",
        }


class Ledger:
    """For many threads at once."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = random.Random(seed)
        self.acknowledged: dict[str, Order] = {}
        self.event_ids: dict[str, str] = {}
        self.refused: dict[str, Order] = {}
        self.unknown: dict[str, Order] = {}
        self.answers: Counter[int] = Counter()
        self.wrong: list[str] = []
        """Answers that break the contract."""
        self._numbers = itertools.count(1)
        self._changed = threading.Condition()

    def new_order(self) -> Order:
        with self._changed:
            number = next(self._numbers)
            cents = self.rng.choice((0, 1, 10, 1999, self.rng.randrange(10**8), 999999999999))
            return Order(f"order-{number}", f"user-{self.rng.randrange(5)}", f"{cents // 100}.{cents % 100:02}")

    def place(self, client: Client, order: Order | None = None) -> Answer | None:
        """Post an order, a new one unless it is given, and note what came of it. Returns None where nobody knows."""
        order = order or self.new_order()
        try:
            client.connect()
        except OSError:
            self._note(self.refused, order)
            return None
        try:
            answer = client.post(**order.body)
        except (OSError, HTTPException):
            self._note(self.unknown, order)
            return None
        self._take(order, answer)
        return answer

    def place_wrong(self, client: Client) -> None:
        """Post what must be refused: a bad price, or a known id with another price."""
        with self._changed:
            known = list(self.acknowledged.values())
        order = self.new_order()
        if known and self.rng.random() < 0.5:
            order, expected = self.rng.choice(known), (409, 503)
            wrong = order.body | {"total_price": "0.02" if order.total_price == "0.01" else "0.01"}
        else:
            wrong, expected = order.body | {"total_price": "-1"}, (422, 422)
            self._note(self.refused, order)
        with contextlib.suppress(OSError, HTTPException):
            answer = client.post(**wrong)
            self.answers[answer.status] += 1
            if answer.status not in expected:
                self.wrong.append(f"{wrong} was answered {answer.status} {answer.body}")

    def place_unknown_again(self, client: Client) -> None:
        """As a client does that got no answer. Afterwards nothing is unknown."""
        for order in list(self.unknown.values()):
            assert self.place(client, order) is not None, f"no answer to {order}"
        assert not self.unknown

    def wait_for(self, count: int, limit: float = 60) -> None:
        """Wait until ``count`` orders are acknowledged."""
        with self._changed:
            found = self._changed.wait_for(lambda: len(self.acknowledged) >= count, limit)
        assert found, f"only {len(self.acknowledged)} of {count} orders were acknowledged: {dict(self.answers)}"

    def _take(self, order: Order, answer: Answer) -> None:
        with self._changed:
            self.answers[answer.status] += 1
        if answer.status in (200, 201):
            event_id = self.event_ids.setdefault(order.order_id, answer.body["event_id"])
            if event_id != answer.body["event_id"]:
                self.wrong.append(f"{order} was announced as {event_id} and as {answer.body['event_id']}")
            if answer.status == 201 and order.order_id in self.acknowledged:
                self.wrong.append(f"{order} was created twice")
            self._note(self.acknowledged, order)
        else:
            if answer.status != 503:
                self.wrong.append(f"{order} was answered {answer.status} {answer.body}")
            self._note(self.refused, order)

    def _note(self, page: dict[str, Order], order: Order) -> None:
        with self._changed:
            if page is not self.acknowledged and order.order_id in self.acknowledged:
                return  # a replay; what was acknowledged once stays so
            for other in (self.refused, self.unknown):
                other.pop(order.order_id, None)
            page[order.order_id] = order
            self._changed.notify_all()

    def wait_until_settled(self, database_url: str, limit: float = 90) -> None:
        """Wait until no delivery waits or runs. One whose holder is killed twice waits for two leases of 30 s."""

        def unfinished() -> int:
            return int(
                read(database_url, "SELECT count(*) AS n FROM deliveries WHERE state IN ('ready', 'leased')")[0]["n"]
            )

        wait_until(lambda: unfinished() == 0, "the end of all deliveries", limit, pause=0.05)

    def check(self, database_url: str, mails: Sequence[Mail], *, copies: int | None = None) -> "Figures":
        """Hold the ledger against the database and the mails that arrived. ``copies`` is how many there may be."""
        found = Findings(database_url, mails)
        figures = Figures(
            acknowledged=len(self.acknowledged),
            unknown=len(self.unknown),
            refused=len(self.refused),
            lost=len(self.acknowledged.keys() - found.orders.keys()),
            copies=sum(len(sent) - 1 for sent in found.mails.values()),
            unknown_attempts=sum(outcomes.count("unknown") for outcomes in found.outcomes.values()),
        )
        problems = [*self.wrong, *self._of_orders(found), *found.of_users(), *found.of_mails(), *found.of_events()]
        if copies is not None and figures.copies > copies:
            problems.append(f"{figures.copies} mails came twice, and at most {copies} may")
        assert not problems, f"{figures}\n" + "\n".join(problems[:20])
        return figures

    def _of_orders(self, found: "Findings") -> Iterable[str]:
        for order in self.acknowledged.values():
            row = found.orders.get(order.order_id)
            if row is None:
                yield f"{order} was acknowledged, and is lost"
            elif (row["user_id"], f"{row['total_price']}") != (order.user_id, order.total_price):
                yield f"{order} was acknowledged, and stored as {row}"
            elif row["event_id"] != self.event_ids[order.order_id]:
                yield f"{order} was acknowledged as {self.event_ids[order.order_id]}, and stored as {row}"
        for order_id in found.orders.keys() - self.acknowledged.keys() - self.unknown.keys():
            yield f"{order_id} was not accepted, and is stored"
        for order_id in found.mails.keys() - found.orders.keys():
            yield f"{order_id} is not stored, and a mail went out"


class Findings:
    """What the service left behind, read from its database without its code, and what the mail server got."""

    def __init__(self, database_url: str, mails: Sequence[Mail]) -> None:
        self.orders = {row["order_id"]: row for row in read(database_url, "SELECT * FROM orders")}
        self.users = {row["user_id"]: row for row in read(database_url, "SELECT * FROM users")}
        self.events = read(database_url, "SELECT * FROM events ORDER BY position")
        self.deliveries = read(
            database_url,
            "SELECT d.*, e.order_id, e.type FROM deliveries d LEFT JOIN events e ON e.event_id = d.event_id",
        )
        self.outcomes: dict[int, list[str]] = defaultdict(list)
        for row in read(database_url, "SELECT delivery_id, outcome FROM attempts ORDER BY attempt_id"):
            self.outcomes[row["delivery_id"]].append(row["outcome"])
        self.mails: dict[str, list[str]] = defaultdict(list)
        for mail in mails:
            for recipient in mail.recipients:
                self.mails[recipient.removesuffix(f"@{DOMAIN}")].append(mail.message_id.strip())
        self.damage = (
            [row for row in read(database_url, "PRAGMA integrity_check") if row["integrity_check"] != "ok"]
            + read(database_url, "PRAGMA foreign_key_check")
            if database_url.startswith("sqlite:")
            else []
        )

    def of_users(self) -> Iterable[str]:
        """Each user's record equals what follows from the user's orders."""
        for user_id in self.users.keys() | {row["user_id"] for row in self.orders.values()}:
            own = [row for row in self.orders.values() if row["user_id"] == user_id]
            last = max(own, key=lambda row: (row["created_at"], row["order_id"]), default={})
            spent = sum((Decimal(row["total_price"]) for row in own), Decimal(0))
            expected = (len(own), spent, last.get("order_id"), last.get("created_at"))
            row = self.users.get(user_id, defaultdict(int))
            found = (row["orders_count"], Decimal(row["total_spent"]), row["last_order_id"], row["last_order_at"])
            if found != expected:
                yield f"{user_id} has {found}, and the orders make {expected}"

    def of_mails(self) -> Iterable[str]:
        """Each order's mail went out; again only where an attempt's process died, and under the same Message-ID."""
        doubts = {row["order_id"]: self.outcomes[row["delivery_id"]].count("unknown") for row in self._sending()}
        sent = [row for row in self.events if row["type"] == "NotificationSent"]
        announced = {row["order_id"]: json.loads(row["data"])["message_id"] for row in sent}
        for order_id in self.orders:
            ids = self.mails.get(order_id, [])
            if not ids:
                yield f"{order_id} got no mail"
            elif set(ids) != {announced.get(order_id)}:
                yield f"{order_id} got mails {ids}, and {announced.get(order_id)} was announced"
            elif len(ids) - 1 > doubts.get(order_id, 0):
                yield f"{order_id} got {len(ids)} mails with {doubts.get(order_id, 0)} attempts of unknown outcome"

    def of_events(self) -> Iterable[str]:
        """Each order has its two events, and each event's deliveries ended, with one success and no fault."""
        for damage in self.damage:
            yield f"the database is damaged: {damage}"
        counts = Counter((row["order_id"], row["type"]) for row in self.events)
        expected = {(order_id, kind): 1 for order_id in self.orders for kind in ("OrderCreated", "NotificationSent")}
        for key in counts.keys() | expected.keys():
            if counts[key] != expected.get(key, 0):
                yield f"{key} was recorded {counts[key]} times"
        causes = {row["event_id"]: row for row in self.events}
        for row in self.events:
            if row["type"] == "NotificationSent" and causes.get(row["cause_id"], {}).get("order_id") != row["order_id"]:
                yield f"{row} has a wrong cause"
        for row in self.deliveries:
            outcomes = self.outcomes[row["delivery_id"]]
            if (
                row["state"] != "done"
                or outcomes.count("ok") != 1
                or outcomes[-1] != "ok"
                or set(outcomes) - {"ok", "unknown"}
            ):
                yield f"{row['receiver']} of {row['order_id']} is {row['state']} after {outcomes}: {row['reason']}"
        for row in self.orders.values():
            if (row["status"], row["notification"]) != ("confirmed", "sent"):
                yield f"{row['order_id']} is {row['status']}, {row['notification']}"

    def _sending(self) -> list[dict[str, Any]]:
        return [row for row in self.deliveries if row["receiver"] == "send_email_notification"]


@dataclass(frozen=True)
class Figures:
    acknowledged: int
    unknown: int
    refused: int
    lost: int
    copies: int
    unknown_attempts: int

    def __str__(self) -> str:
        return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in vars(self).items())


class Clients:
    """Threads that send requests until the end of the ``with`` block."""

    STUCK = "a request was never answered"
    """What it means when a thread does not end."""

    def __init__(self) -> None:
        self._stopping = threading.Event()
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive(), self.STUCK


class Load(Clients):
    """Clients that post orders one after the other, until the end of the ``with`` block.

    Most are new; some were acknowledged already, some must be refused. ``limit`` is how many they post at the most.
    """

    def __init__(self, ledger: Ledger, *ports: int, clients: int = 4, limit: float = math.inf) -> None:
        super().__init__()
        self.ledger = ledger
        self._left = limit
        self._threads = [
            threading.Thread(target=self._run, args=(port, random.Random(ledger.rng.random())), daemon=True)
            for port, _ in zip(itertools.cycle(ports), range(clients), strict=False)
        ]

    def _run(self, port: int, rng: random.Random) -> None:
        with contextlib.closing(Client(port)) as client:
            while not self._stopping.is_set() and self._left > 0:
                try:
                    client.connect()
                except OSError:  # it is being restarted: the same clients come back
                    self._stopping.wait(0.02)
                    continue
                self._left -= 1
                self._step(client, rng)

    def _step(self, client: Client, rng: random.Random) -> None:
        known = list(self.ledger.acknowledged.values())
        match rng.random():
            case roll if roll < 0.05 and known:
                self.ledger.place(client, rng.choice(known))
            case roll if roll < 0.1:
                self.ledger.place_wrong(client)
            case _:
                self.ledger.place(client)


@dataclass(frozen=True)
class Seen:
    """An answer, or that there was none, as a customer saw it. Times are in seconds."""

    began: float
    ended: float
    status: int | None


class Customers(Clients):
    """Clients that send orders, a moment apart, each until it is acknowledged.

    The ``with`` block's end waits until each has what it sent acknowledged. So nothing stays refused or unknown.
    """

    PAUSE_SECONDS = 0.05
    STUCK = "an order was never acknowledged"

    def __init__(
        self, ledger: Ledger, *addresses: tuple[str, int] | int, clients: int = 4, timeout: float = LIMIT
    ) -> None:
        """``addresses`` are (host, port), or ports of this machine; a client goes to the next one when one fails, or
        does not answer for ``timeout`` seconds."""
        super().__init__()
        self.ledger, self._timeout = ledger, timeout
        self.seen: list[Seen] = []
        self._addresses = [each if isinstance(each, tuple) else ("127.0.0.1", each) for each in addresses]
        self._threads = [threading.Thread(target=self._run, args=[n], daemon=True) for n in range(clients)]

    def _run(self, number: int) -> None:
        while not self._stopping.is_set():
            order = self.ledger.new_order()
            while not self._place(order, *self._addresses[number % len(self._addresses)]):
                number += 1
                time.sleep(self.PAUSE_SECONDS)
            time.sleep(self.PAUSE_SECONDS)

    def _place(self, order: Order, host: str, port: int) -> bool:
        with contextlib.closing(Client(port, self._timeout, host)) as client:
            began = time.monotonic()
            answer = self.ledger.place(client, order)
            self.seen.append(Seen(began, time.monotonic(), answer.status if answer else None))
        return answer is not None and answer.status in (200, 201)

    def outage(self) -> "Outage":
        """The longest time in which no order was acknowledged, and what was answered in it."""
        good = sorted(each.ended for each in self.seen if each.status in (200, 201))
        begin, end = max(itertools.pairwise(good), key=lambda pair: pair[1] - pair[0])
        bad = [each for each in self.seen if each.status not in (200, 201)]
        return Outage(
            begin,
            end,
            unavailable=sum(each.status == 503 for each in bad),
            unanswered=sum(each.status is None for each in bad),
            slowest=max(each.ended - each.began for each in self.seen),
        )


@dataclass(frozen=True)
class Outage:
    begin: float
    end: float
    unavailable: int
    unanswered: int
    slowest: float

    @property
    def seconds(self) -> float:
        return self.end - self.begin

    def __str__(self) -> str:
        return (
            f"no order taken for {self.seconds:.1f} s, 503 {self.unavailable} times, no answer {self.unanswered} "
            f"times, the slowest answer after {self.slowest:.1f} s"
        )


def read(database_url: str, query: str) -> list[dict[str, Any]]:
    """Rows as people would see them. Each time by a new connection, as the service may be killed meanwhile."""
    on_sqlite = database_url.startswith("sqlite:")
    engine = create_engine(database_url, **({"module": sqlite_module()} if on_sqlite else {}))
    try:
        with engine.connect() as connection:
            return [dict(row._mapping) for row in connection.execute(text(query))]
    finally:
        engine.dispose()
