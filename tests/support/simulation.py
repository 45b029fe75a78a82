"""A deterministic simulation: the real application on a real SQLite file, in a world of one thread and one seed.

The seed draws a script. Several dispatchers take their steps (claim, attempt, extend, stop) in whatever order it says,
and inside one another's steps: while one sends a mail, the others go on. Clients place orders, and place them again;
a person retries and discards. Processes are paused past their leases, or die: between two steps, between two
statements, before a commit, after it, before and after the mail server's acceptance. The database goes away, is busy,
and loses its answers; the mail server is down, silent, greylists, refuses, or fails to say that it accepted. The clock
stands still until the script moves it, and an administrator sets it wrong.

Every other script retries by the learned policy.
Then all is healed and drained, and what was promised is compared with what is there. Nothing sleeps, and nothing
depends on anything but the seed: the number of the script that failed plays it again.
"""

import contextlib
import logging
import random
from collections import Counter
from collections.abc import Callable, Iterator
from contextvars import Context
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from decimal import Decimal
from itertools import count
from types import SimpleNamespace
from typing import Any

from sqlalchemy import event

import app.clock
import app.db.group_commit
from app.bus import Dispatcher, Filter, LeaseEnd, lifecycle
from app.bus.invoke import is_transactional
from app.bus.leases import Lease
from app.bus.settle import GIVEN_UP, NO_RESULT
from app.clock import TimeOrderedIds, uuid7
from app.db import Transaction, iso, sqlite_module
from app.errors import DatabaseUnavailable, Deferred, InDoubt, OrderConflict, Refused, Throttled, TimedOut, Unreachable
from app.events import OrderCreated, order_created
from app.mail.envelope import OutgoingMail
from app.orders import place_order
from app.retry import ExponentialBackoff, LearnedPolicy
from app.states import NotificationStatus
from config import Settings
from tests.support.shop import START, Shop, not_begun

RECORD, MAIL, NOTE = RECEIVERS = ("update_user_order_record", "send_email_notification", "update_order_notification")
OWED = {"OrderCreated": {RECORD, MAIL}}
"""Which receivers an event is owed to; any other type is owed to NOTE."""

LEASE_SECONDS = 30
RETENTION = timedelta(hours=1)
MAIL_TIMEOUT_SECONDS = 10
TABLES = (
    *("operator_act_deliveries", "attempts", "deliveries", "events", "orders", "users", "circuit_breakers"),
    *("operator_acts", "dispatchers", "retry_transitions"),
)

BUSY, DISK, AWAY = (5, "database is locked"), (10, "disk I/O error"), (14, "unable to open database file")
"""SQLite's result codes, and its words for them."""

FAULTS = {
    "dies before a statement": 4,
    "dies before its commit": 2,
    "dies after its commit": 4,
    "dies when the mail server has accepted": 2,
    "finds the database busy at a statement": 1,
    "finds the database busy at its commit": 1,
    "does not hear that its commit succeeded": 2,
    "has a disk error instead of a commit": 1,
    "has a disk error after its commit": 2,
}
"""What may befall whoever takes a step, and how often in comparison."""

MODES = {
    "works": 4,
    "is down": 2,
    "is silent": 1,
    "greylists": 2,
    "is overloaded": 1,
    "refuses": 2,
    "accepts without saying so": 1,
}


class Violation(AssertionError):
    """A promise is broken."""


class Killed(BaseException):
    """A process ends between two of its instructions. Some ``except`` may see it, where a ``kill -9`` is seen by none;
    but no statement of a dead actor comes through any more, and no mail."""


def settings(folder: Any, **more: Any) -> Settings:
    """What the simulation runs with: everything happens within hours of its clock."""
    return Settings.of(
        instance_path=folder,
        database_url=f"sqlite:///{folder}/orders.db",
        database_timeout=0.1,
        mail_backend="memory",
        user_email_domain=None,  # so that some orders have no address
        lease_seconds=LEASE_SECONDS,
        retention_days=RETENTION / timedelta(days=1),
        log_level="ERROR",
        **more,
    )


@dataclass(eq=False)
class Actor:
    """Whose code runs: a client's request, a person's command, a dispatcher's process."""

    name: str
    fault: str = ""
    statements: int = 0
    """How many statements until the fault strikes."""
    dead: bool = False
    committed: bool = False
    """Whether a transaction of its present step became durable."""


@dataclass(eq=False)
class Process(Actor):
    """A dispatcher's process. ``waiting`` are the batches that no thread of it has begun."""

    dispatcher: Any = None
    waiting: list[list[Lease]] = field(default_factory=list)
    paused: bool = False


@dataclass(frozen=True)
class Placed:
    """An order, as its client knows it."""

    user_id: str
    price: str
    email: str | None
    event_id: str = field(compare=False)


@dataclass(frozen=True)
class Copy:
    """A mail that the server accepted, and the lease under which it was sent."""

    message_id: str
    recipient: str
    order_id: str
    delivery_id: int
    token: int


class World:
    """One application, and everything around it that can go wrong. ``play`` runs a seed's script."""

    def __init__(self, settings: Settings) -> None:
        self.shop = Shop(settings)
        self.clock, self.bus, self.database = self.shop.clock, self.shop.bus, self.shop.database
        self.eye = sqlite_module().connect(str(self.database.url.database), isolation_level=None)
        self.server = self.shop.mailer.backend = MailServer(self)
        self.reported: set[str] = set()
        self.struck: Counter[tuple[str, type[Actor]]] = Counter()
        """Which faults have befallen whom, in all scripts."""
        self._undo = contextlib.ExitStack()
        self._undo.callback(self.shop.close)
        self._undo.callback(self.eye.close)
        self._undo.enter_context(quiet())
        self._undo.enter_context(_simulated_time(self.clock))
        self._undo.enter_context(lifecycle.events_recorded.connected_to(self._on_events_recorded, self.bus))
        _make_cheap(self.database.engine)
        _come_between(self, self.database.engine)

    def close(self) -> None:
        self._undo.close()

    def play(self, seed: int) -> list[str]:
        """Play the script of ``seed``, and return its lines. Raises Violation with them in its text."""
        self._begin(seed)
        try:
            for _ in range(self.dice.randint(4, 40)):
                self.step()
                demand(not self.noticed, "; ".join(self.noticed))
                if self.dice.random() < 0.1:
                    self.check_records()
            self.heal()
            self.drain()
            self.check_promises()
            if self.look("SELECT 1 FROM deliveries WHERE state != 'done' LIMIT 1"):
                self.retry_everything()
                self.drain()
                self.check_promises()
            self.check_nothing_is_left()
        except (Exception, Killed) as error:
            story = "\n".join(self.script)
            why = str(error) if isinstance(error, Violation) else f"{type(error).__name__}: {error}"
            raise Violation(
                f"{why}\n\nThe script of seed {seed}; SIMULATION_SEED={seed} plays it again:\n{story}"
            ) from error
        return self.script

    def _begin(self, seed: int) -> None:
        self._wipe()
        random.seed(seed)
        self.dice = random.Random(seed)
        app.clock.ids = TimeOrderedIds(self._time_ns, random.randbytes)
        self.clock.time, self.clock.seconds = START, 0.0
        self.bus.policy = ExponentialBackoff(base=5, maximum=600, max_attempts=4, rng=self.dice)
        if seed % 2:
            self.bus.policy = LearnedPolicy(maximum=600, rng=self.dice)
        self.script: list[str] = []
        self.stack: list[Actor] = []
        self.healed = False
        self.away_until = 0.0
        self.clock_is_set = self.dice.random() < 0.4
        """Whether, in this script, somebody sets the wall clock."""
        self.placed: dict[str, Placed] = {}
        self.refused: dict[str, Placed] = {}
        self.addresses: dict[str, str] = {}
        self.killers: set[str] = set()
        """Orders whose mail kills the process that sends it, each time, until all is healed."""
        self.tried_alone: set[tuple[int, int]] = set()
        """Leases of deliveries in doubt: the delivery and the token."""
        self.pruned: dict[str, dict[Any, Any]] = {"events": {}, "deliveries": {}, "attempts": {}}
        self.reported.clear()
        self.noticed: list[str] = []
        self.server.begin()
        self._order_numbers, self._process_numbers = count(1), count(1)
        self.processes: list[Process] = []
        for _ in range(self.dice.randint(2, 3)):
            self.start_process()

    def _time_ns(self) -> int:
        return int(self.clock.now().timestamp() * 1_000_000) * 1000

    def _wipe(self) -> None:
        self.eye.execute("BEGIN IMMEDIATE")
        for table in TABLES:
            self.eye.execute(f"DELETE FROM {table}")
        self.eye.execute("DELETE FROM sqlite_sequence")
        self.eye.execute("COMMIT")

    def step(self) -> None:
        (chosen,) = self.dice.choices(list(STEPS), list(STEPS.values()))
        chosen(self)

    def tell(self, text: str) -> None:
        self.script.append(f"{self.clock.seconds:9.1f}s  {'    ' * len(self.stack)}{text}")

    def run(self, actor: Actor, what: str, work: Callable[[], Any]) -> Any:
        """Let the actor do it, with its luck. Returns what the work returned, or the error that ended it."""
        actor.committed = False
        earlier, actor.fault = actor.fault, ""
        if self.dice.random() < 0.2:
            (actor.fault,) = self.dice.choices(list(FAULTS), list(FAULTS.values()))
            actor.statements = self.dice.randint(0, 12)
        self.tell(f"{actor.name} {what}{', and ' * bool(actor.fault)}{actor.fault}")
        self.stack.append(actor)
        try:
            result = Context().run(work)
        except (Exception, Killed) as error:
            if not (actor.dead or isinstance(error, DatabaseUnavailable)):
                raise
            result = error
        finally:
            self.stack.pop()
            actor.fault = earlier
        if actor.dead:  # whatever caught its death, and went on for a while: none of its statements came through
            result = Killed()
        if isinstance(result, DatabaseUnavailable | Killed):
            self.tell(f"    {actor.name} ends with {type(result).__name__}")
        if isinstance(result, Killed):
            self.forget(actor)
        return result

    def meanwhile(self) -> None:
        """While the present actor waits for something, the others go on; and one of them may kill it."""
        me = self.stack[-1]
        while not (self.healed or me.dead) and len(self.stack) < 3 and self.dice.random() < 0.45:
            self.step()
        if me.dead:
            raise Killed

    def die(self) -> None:
        """The present actor's process ends here."""
        self.stack[-1].dead = True
        raise Killed

    def befall(self, actor: Actor) -> str:
        """Its fault, which strikes now and then never again."""
        fault, actor.fault = actor.fault, ""
        self.struck[fault, type(actor)] += 1
        return fault

    # Steps of clients

    def place(self) -> None:
        cents = self.dice.choice([0, 10, 30, 1999, 999_999_999_999, self.dice.randint(0, 100_000)])
        email = self.dice.choice([None, None, "a@mail.example", "b@mail.example"])
        order = Placed(f"u{self.dice.randint(1, 3)}", f"{Decimal(cents) / 100:.2f}", email, "")
        order_id = f"o{next(self._order_numbers)}"
        if self.dice.random() < 0.08:
            self.killers.add(order_id)
        self.post(order_id, order)

    def place_again(self) -> None:
        """A client that does not know whether its order was stored; or another one that takes the same id."""
        known = self.refused | self.placed
        if known:
            order_id = self.dice.choice(sorted(known))
            price = Decimal(known[order_id].price) + (self.dice.random() < 0.2)
            self.post(order_id, replace(known[order_id], price=f"{price:.2f}"))

    def post(self, order_id: str, order: Placed) -> None:
        """As the route does it; and the answer must be true."""
        order = replace(order, event_id=uuid7())
        client = Actor("a client")
        shown = f"{order_id}: {order.user_id} {order.price} {order.email or ''}".rstrip()
        answer = self.run(client, f"places {shown}", lambda: self._request(order_id, order))
        earlier = self.placed.get(order_id)
        if isinstance(answer, OrderConflict):
            demand(earlier is not None and earlier != order, f"{order_id} was refused without a reason")
        elif isinstance(answer, DatabaseUnavailable | Killed):
            if earlier is None and not client.committed:
                self.refused[order_id] = order
            elif earlier is None:
                self._remember(order_id, order)
        elif earlier is None:
            demand(answer in (None, order.event_id), f"{order_id} is new, and was said to be known")
            self._remember(order_id, order)
        else:
            demand(earlier == order, f"{order_id} was answered as if it had this content")
            demand(answer == earlier.event_id, f"{order_id} was taken a second time")

    def _request(self, order_id: str, order: Placed) -> Any:
        content: dict[str, Any] = {
            "order_id": order_id,
            "user_id": order.user_id,
            "total_price": Decimal(order.price),
            "email": order.email,
        }

        def work(transaction: Transaction) -> str | None:
            earlier = place_order(transaction, **content, event_id=order.event_id)
            if earlier is None:
                order_created.send("simulation", event=OrderCreated(**content), event_id=order.event_id)
            return earlier

        try:
            return self.database.transact(work)
        except OrderConflict as conflict:
            return conflict

    def _remember(self, order_id: str, order: Placed) -> None:
        self.placed[order_id] = order
        self.refused.pop(order_id, None)
        if order.email is not None:
            self.addresses[order.user_id] = order.email

    # Steps of dispatchers

    def start_process(self) -> None:
        process = Process(f"dispatcher {next(self._process_numbers)}", dispatcher=self.bus.dispatcher())
        process.dispatcher.name = process.name
        self.processes.append(process)

    def forget(self, actor: Actor) -> None:
        """Its memory is gone; its leases run out. Another process takes its place."""
        actor.dead = True
        if actor in self.processes:
            self.processes.remove(actor)  # type: ignore[arg-type]  # what is in the list is a Process
            self.start_process()

    def _some_process(self) -> Process:
        """One that is not paused; where all are, one that goes on unawares."""
        awake = [process for process in self.processes if not process.paused]
        return self.dice.choice(awake or self.processes)

    def claim(self) -> None:
        process = self._some_process()
        wanted = self.dice.sample(RECEIVERS, self.dice.randint(1, 3))
        self._claim(process, {receiver: self.dice.choice([1, 2, 20]) for receiver in wanted})

    def _claim(self, process: Process, capacity: dict[str, int]) -> list[list[Lease]]:
        leases = self.run(process, "claims", lambda: process.dispatcher.claim(capacity))
        if not isinstance(leases, list):  # its commit may have succeeded all the same
            held = self.look(
                "SELECT delivery_id, lease_token FROM deliveries WHERE (state, outcome) = ('leased', 'unknown')"
            )
            self.tried_alone.update(held)
            return []
        self.tell(f"    holds {_shown(leases) or 'nothing'}")
        self._note_claim(leases)
        process.waiting += (batches := process.dispatcher.batches(leases))
        return batches

    def _note_claim(self, leases: list[Lease]) -> None:
        in_doubt = [lease for lease in leases if lease.in_doubt]
        demand(not in_doubt or len(leases) == 1, f"claimed together: {_shown(leases)}")
        self.tried_alone.update((lease.delivery_id, lease.token) for lease in in_doubt)

    def attempt(self) -> None:
        process = self._some_process()
        if process.waiting:
            self._attempt(process, self.dice.choice(process.waiting))

    def round(self) -> None:
        """Claim, and try at once what was claimed."""
        process = self._some_process()
        for batch in self._claim(process, dict.fromkeys(RECEIVERS, 20)):
            if not process.dead and batch in process.waiting:
                self._attempt(process, batch)

    def _attempt(self, process: Process, batch: list[Lease]) -> None:
        process.waiting.remove(batch)
        with self.server.called_under(batch[0]):
            settled = self.run(process, f"tries {_shown(batch)}", lambda: self._deliver(process, batch))
        if isinstance(settled, list):
            self.tell(f"    settled: {', '.join(f'{s.state} ({s.outcome or s.reason})' for s in settled) or 'nothing'}")

    def _deliver(self, process: Process, batch: list[Lease]) -> list[LeaseEnd]:
        """As an engine does it: what was done waits to be stored while the database is away."""
        dispatcher: Dispatcher = process.dispatcher
        try:
            if is_transactional(batch[0]):
                return self._until_stored(lambda: dispatcher.deliver_transactional(batch))
            answers = [(lease, answer) for lease in batch if (answer := dispatcher.invoke(lease)) is not None]
            return self._until_stored(lambda: dispatcher.settle(answers))
        finally:
            dispatcher.abandon(batch)

    def _until_stored(self, store: Callable[[], list[LeaseEnd]]) -> list[LeaseEnd]:
        """Sometimes the process is stopped before the database is back."""
        while True:
            try:
                return store()
            except DatabaseUnavailable:
                if self.dice.random() < 0.3:
                    raise
            self.clock.advance(1)
            self.meanwhile()

    def extend(self) -> None:
        process = self._some_process()
        self.run(process, "says that it is alive", process.dispatcher.heartbeat)

    def stop(self) -> None:
        """What was not begun is given back. An attempt that is under way ends later, or is killed."""
        process = self._some_process()
        unbegun = [lease for batch in process.waiting for lease in batch]
        process.waiting = []
        self.processes.remove(process)
        self.start_process()

        def work() -> None:
            process.dispatcher.settle(not_begun(unbegun))
            process.dispatcher.sign_off()

        self.run(process, f"stops, and gives back {_shown(unbegun) or 'nothing'}", work)

    def kill(self) -> None:
        process = self._some_process()
        self.tell(f"{process.name} is killed")
        self.forget(process)

    def pause(self) -> None:
        process = self._some_process()
        process.paused = True
        self.tell(f"{process.name} is paused")
        if self.dice.random() < 0.7:
            self.clock.advance(LEASE_SECONDS + self.dice.choice([0, 1]))

    def overtake(self) -> None:
        """One is paused past its leases, another takes over, and the first goes on where it was."""
        late = self._some_process()
        if not late.waiting:
            self._claim(late, dict.fromkeys(RECEIVERS, 20))
        late.paused = True
        self.tell(f"{late.name} is paused past its leases")
        self.clock.advance(LEASE_SECONDS)
        self.round()
        late.paused = False
        if late.dead:
            return
        if self.dice.random() < 0.5:
            self.run(late, "is back, and says that it is alive", late.dispatcher.heartbeat)
        for batch in list(late.waiting):
            if not late.dead and batch in late.waiting:
                self._attempt(late, batch)

    def resume(self) -> None:
        for process in self.processes:
            process.paused = False

    # Steps of people

    def person(self) -> None:
        which = self.dice.choice(
            [
                Filter(),
                Filter(state="dead"),
                Filter(state="discarded"),
                Filter(receiver=self.dice.choice(RECEIVERS)),
                Filter(outcome="unknown"),
                Filter(order_id=f"o{self.dice.randint(1, 9)}"),
            ]
        )
        person = Actor("a person")
        if self.dice.random() < 0.6:
            self.run(person, f"retries {which}", lambda: self.bus.retry(which, by="simulation"))
        else:
            self.run(person, f"discards {which}", lambda: self.bus.discard(which, "not wanted", by="simulation"))

    def late_news(self) -> None:
        """A mail is refused, and a person has it tried again, while whoever has the news of the refusal is held up."""
        self._set_mail_server("refuses")
        self.round()
        slow = self._some_process()
        self._claim(slow, {NOTE: 20})
        slow.paused = True
        self.tell(f"{slow.name} is paused")
        person = Actor("a person")
        self.run(person, "retries what is dead", lambda: self.bus.retry(Filter(state="dead"), by="simulation"))
        self._set_mail_server("works")
        for _ in range(2):
            self.round()

    def prune(self) -> None:
        """What is finished and old goes. What was known of it is noted down first, to be held against the promises."""
        if self.dice.random() < 0.7:
            self.clock.advance(RETENTION.total_seconds())
        before = self._facts()
        self.run(Actor("a dispatcher"), "prunes", self.bus.prune)
        after = self._facts()
        cutoff = iso(self.clock.now() - RETENTION)
        for table, rows in before.items():
            self.pruned[table] |= {key: row for key, row in rows.items() if key not in after[table]}
        for key in before["deliveries"].keys() - after["deliveries"].keys():
            order_id, receiver, state, _, settled_at = before["deliveries"][key]
            demand(state in ("done", "discarded"), f"{receiver} of {order_id} was pruned while it was {state}")
            demand(settled_at < cutoff, f"{receiver} of {order_id} was pruned too early")

    # Steps of the world

    def time_passes(self) -> None:
        self.clock.advance(self.dice.choice([0.1, 1, 5, 12, LEASE_SECONDS, LEASE_SECONDS, 60, 300]))

    def set_clock(self) -> None:
        if self.clock_is_set:
            seconds = self.dice.choice([-7200, -60, -5, 5, 60, 7200])
            self.tell(f"the wall clock is set by {seconds} s")
            self.clock.jump(seconds)

    def change_mail_server(self) -> None:
        (mode,) = self.dice.choices(list(MODES), list(MODES.values()))
        self._set_mail_server(mode)

    def _set_mail_server(self, mode: str) -> None:
        self.server.mode = mode
        self.tell(f"the mail server {mode}")

    def database_goes_away(self) -> None:
        self.away_until = self.clock.seconds + self.dice.choice([0.3, 2, 40])
        self.tell(f"the database is away until {self.away_until:.1f}s")

    # The end of a script

    def heal(self) -> None:
        self.tell("all is healed")
        self.healed = True
        self.away_until = 0.0
        self.server.mode = "works"
        self.healer = self.bus.dispatcher()
        self.healer.name = "the last dispatcher"

    def drain(self) -> None:
        """Rounds of one dispatcher, each when the next delivery is due, until nothing is unfinished."""
        for _ in range(300):
            due = self._due()
            if not due:
                demand(self.healer.next_due() == {}, "the dispatcher waits for what is finished")
                return
            self.clock.advance(max(0.0, (min(due.values()) - self.clock.now()).total_seconds()))
            overdue = [receiver for receiver, due_at in due.items() if due_at <= self.clock.now()]
            leases = self.healer.claim(dict.fromkeys(overdue, 20))
            self._note_claim(leases)
            for batch in self.healer.batches(leases):
                with self.server.called_under(batch[0]):
                    self.healer.deliver(batch)
        raise Violation(f"after 300 rounds there is still something to do: {due}")

    def _due(self) -> dict[str, datetime]:
        """For each receiver that has something to do, when: as Dispatcher.next_due(), in a tenth of the time where no
        gate decides."""
        if isinstance(self.bus.policy, LearnedPolicy):
            return self.healer.next_due()
        found = self.look(
            "SELECT receiver, max(min(due_at), ifnull(probe_at, '')) FROM deliveries "
            "LEFT JOIN circuit_breakers USING (receiver) WHERE state IN ('ready', 'leased') GROUP BY receiver"
        )
        return {receiver: datetime.fromisoformat(due_at) for receiver, due_at in found}

    def retry_everything(self) -> None:
        self.tell("a person retries everything")
        for which in (Filter(), Filter(state="discarded")):
            self.bus.retry(which, by="simulation")

    # What must be so

    def check_records(self) -> None:
        """At any moment: an order is confirmed and in its user's record, or neither; to the cent."""
        found = self._known()
        counted = {
            order_id
            for order_id, receiver, state, *_ in found["deliveries"].values()
            if (receiver, state) == (RECORD, "done")
        }
        orders = {
            row[0]: row[1:]
            for row in self.look(
                "SELECT order_id, user_id, total_price, email, status, created_at, notification FROM orders"
            )
        }
        confirmed = {order_id for order_id, row in orders.items() if row[3] == "confirmed"}
        demand(confirmed == counted, f"confirmed are {sorted(confirmed)}, and done the deliveries of {sorted(counted)}")
        for user_id, orders_count, total, last in self.look(
            "SELECT user_id, orders_count, total_spent, last_order_id FROM users"
        ):
            his = {order_id: row for order_id, row in orders.items() if row[0] == user_id and order_id in confirmed}
            demand(orders_count == len(his), f"{user_id} has {orders_count} orders, and {len(his)} are confirmed")
            wanted = sum((Decimal(row[1]) for row in his.values()), Decimal(0))
            demand(total == f"{wanted:.2f}", f"{user_id} has spent {total}, and the orders' sum is {wanted:.2f}")
            newest = max(his, key=lambda order_id: (his[order_id][4], order_id), default=None)
            demand(last == newest, f"the last order of {user_id} is {last}, and should be {newest}")

    def check_promises(self) -> None:
        """When nothing is due any more."""
        demand(not self.noticed, "; ".join(self.noticed))
        self.check_records()
        found = self._known()
        self._check_orders(found)
        self._check_deliveries(found)
        self._check_mails(found)
        self._check_notifications(found)

    def check_nothing_is_left(self) -> None:
        """When all works and everything was retried: only what has no address is not done."""
        for order_id, receiver, state, reason, _ in self._facts()["deliveries"].values():
            addressless = receiver == MAIL and self.addresses.get(self.placed[order_id].user_id) is None
            demand(state == ("discarded" if addressless else "done"), f"{receiver} of {order_id} is {state}: {reason}")

    def _check_orders(self, found: dict[str, dict[Any, Any]]) -> None:
        stored = {
            row[0]: Placed(*row[1:])
            for row in self.look("SELECT order_id, user_id, total_price, email, event_id FROM orders")
        }
        demand(stored == self.placed, f"stored are {stored}, and placed were {self.placed}")
        announced = {order_id: key for key, (order_id, kind) in found["events"].items() if kind == "OrderCreated"}
        owed = {order_id: order.event_id for order_id, order in self.placed.items()}
        demand(announced == owed, f"announced are {announced}, and placed were {owed}")
        demand(
            len(announced) == sum(kind == "OrderCreated" for _, kind in found["events"].values()),
            "an order was announced twice",
        )
        for user_id, email in self.look("SELECT user_id, email FROM users"):
            demand(email == self.addresses.get(user_id), f"the address of {user_id} is {email}")
        demand(self.reported <= found["events"].keys(), "an event was reported that is not stored")

    def _check_deliveries(self, found: dict[str, dict[Any, Any]]) -> None:
        receivers: dict[str, set[str]] = {event_id: set() for event_id in found["events"]}
        for event_id, receiver in self.look("SELECT event_id, receiver FROM deliveries"):
            receivers[event_id].add(receiver)
        for event_id, owed in receivers.items():
            order_id, kind = found["events"][event_id]
            wanted = set() if event_id in self.pruned["events"] else OWED.get(kind, {NOTE})
            demand(owed == wanted, f"{kind} of {order_id} is owed to {owed}")
        outcomes = found["attempts"]
        for delivery_id, (order_id, receiver, state, reason, settled_at) in found["deliveries"].items():
            what = f"{receiver} of {order_id} is {state}"
            demand(state in ("done", "dead", "discarded") and settled_at is not None, what)
            demand(state == "done" or bool(reason), f"{what} without a reason")
            oks = sum(outcome == "ok" for (owner, _), outcome in outcomes.items() if owner == delivery_id)
            demand(oks == (state == "done"), f"{what}, and {oks} of its attempts are ok")
        alone = Counter(delivery_id for delivery_id, _ in self.tried_alone)
        for delivery_id, charged, answered in self.look(
            "SELECT delivery_id, attempts, (SELECT count(*) FROM attempts WHERE attempts.delivery_id = "
            f"deliveries.delivery_id AND ifnull(detail, '') NOT IN ('{NO_RESULT}', '{GIVEN_UP}')) FROM deliveries"
        ):
            known = answered + alone[delivery_id]
            demand(
                charged <= known, f"{delivery_id} is charged for {charged} attempts, and has {known} that are its own"
            )
        ((rows, distinct),) = self.look(
            "SELECT count(*), count(DISTINCT delivery_id || '#' || lease_token) FROM attempts"
        )
        demand(rows == distinct, "two attempts were recorded under one lease")

    def _check_mails(self, found: dict[str, dict[Any, Any]]) -> None:
        for copy in self.server.accepted:
            outcome = found["attempts"].get((copy.delivery_id, copy.token))
            true = outcome in ("ok", "unknown")
            demand(true, f"the mail of {copy.order_id} was accepted, and its attempt reads {outcome}")
            order = self.placed[copy.order_id]
            demand(
                order.event_id in copy.message_id, f"the mail of {copy.order_id} has the Message-ID {copy.message_id}"
            )
            addresses = {o.email for o in self.placed.values() if o.user_id == order.user_id}
            demand(
                copy.recipient in ({order.email} if order.email else addresses),
                f"{copy.order_id} went to {copy.recipient}",
            )
        demand(
            len({copy.message_id for copy in self.server.accepted}) == len({c.order_id for c in self.server.accepted}),
            "Message-IDs differ",
        )
        sent = {(copy.delivery_id, copy.token) for copy in self.server.accepted}
        for lease, outcome in found["attempts"].items():
            order_id, receiver, *_ = found["deliveries"][lease[0]]
            demand(receiver != MAIL or outcome != "ok" or lease in sent, f"the mail of {order_id} was never sent")

    def _check_notifications(self, found: dict[str, dict[Any, Any]]) -> None:
        told: dict[str, list[str]] = {order_id: [] for order_id in self.placed}
        for order_id, kind in found["events"].values():
            if kind != "OrderCreated":
                told[order_id].append(kind.removeprefix("Notification").lower())
        unheard = {row[0] for row in found["deliveries"].values() if row[1] == NOTE and row[2] != "done"}
        for order_id, notification in self.look("SELECT order_id, notification FROM orders"):
            latest = max(["pending", *told[order_id]], key=list(NotificationStatus).index)
            demand(
                notification == latest or order_id in unheard,
                f"{order_id} reads {notification}, and what happened is {told[order_id]}",
            )
        for order_id, receiver, state, reason, _ in found["deliveries"].values():
            if receiver == MAIL:
                end = {"done": "sent", "dead": "failed"}.get(state, "skipped" if reason != "not wanted" else None)
                demand(
                    end is None or end in told[order_id], f"the mail of {order_id} is {state}; told is {told[order_id]}"
                )
                demand(told[order_id].count("sent") == (state == "done"), f"{order_id} was told {told[order_id]}")

    # What can be seen

    def look(self, query: str) -> list[tuple[Any, ...]]:
        """Past the application, what is committed."""
        found: list[tuple[Any, ...]] = self.eye.execute(query).fetchall()
        return found

    def _facts(self) -> dict[str, dict[Any, Any]]:
        """What there is now, by key."""
        events = {row[0]: row[1:] for row in self.look("SELECT event_id, order_id, type FROM events")}
        deliveries = self.look("SELECT delivery_id, event_id, receiver, state, reason, settled_at FROM deliveries")
        attempts = self.look("SELECT delivery_id, lease_token, outcome FROM attempts")
        return {
            "events": events,
            "deliveries": {row[0]: (events[row[1]][0], *row[2:]) for row in deliveries},
            "attempts": {row[:2]: row[2] for row in attempts},
        }

    def _known(self) -> dict[str, dict[Any, Any]]:
        """What there is now, and what was there when it was pruned."""
        return {table: self.pruned[table] | rows for table, rows in self._facts().items()}

    def watch_lease(self, lease: Lease) -> None:
        """Whoever begins has the right to. A clock that is set makes leases end early, and is excused."""
        ((token, state),) = self.look(
            f"SELECT lease_token, state FROM deliveries WHERE delivery_id = {lease.delivery_id}"
        )
        if not self.clock_is_set and (token, state) != (lease.token, "leased"):
            # Not raised: what a receiver raises is the dispatcher's to catch.
            self.noticed.append(
                f"the mail of {lease.order_id} is begun under lease #{lease.token}; the delivery is {state} at #{token}"
            )

    def _on_events_recorded(self, _: object, events: list[Any]) -> None:
        self.reported.update(event.event_id for event in events)

    # Where the database can go wrong

    def before_statement(self) -> None:
        if not self.stack:
            return
        actor = self.stack[-1]
        if actor.dead:
            raise Killed
        if self.clock.seconds < self.away_until:
            raise _trouble(AWAY)
        if actor.fault.endswith("a statement"):
            actor.statements -= 1
            if actor.statements < 0:
                self._strike(actor, BUSY)

    def commit(self, really: Callable[[], None], roll_back: Callable[[], None]) -> None:
        actor = self.stack[-1] if self.stack else Actor("nobody")
        if actor.fault.endswith(("before its commit", "busy at its commit", "instead of a commit")):
            roll_back()  # as both databases do when a commit fails
            self._strike(actor, DISK if "disk" in actor.fault else BUSY)
        really()
        actor.committed = True
        if actor.fault.endswith(("after its commit", "its commit succeeded")):
            self._strike(actor, DISK if "disk" in actor.fault else BUSY)

    def _strike(self, actor: Actor, code: tuple[int, str]) -> None:
        if self.befall(actor).startswith("dies"):
            self.die()
        raise _trouble(code)


STEPS: dict[Callable[[World], None], int] = {
    World.place: 10,
    World.place_again: 3,
    World.claim: 12,
    World.attempt: 14,
    World.round: 8,
    World.extend: 5,
    World.stop: 2,
    World.kill: 3,
    World.pause: 3,
    World.overtake: 3,
    World.resume: 4,
    World.person: 4,
    World.late_news: 1,
    World.prune: 1,
    World.time_passes: 14,
    World.set_clock: 3,
    World.change_mail_server: 5,
    World.database_goes_away: 2,
}
"""What a script is made of, and how often in comparison."""


class MailServer:
    """Stands where a mail backend stands."""

    def __init__(self, world: World) -> None:
        self.world = world

    def begin(self) -> None:
        self.mode = "works"
        self.accepted: list[Copy] = []
        self.seen: set[str] = set()
        self._leases: list[Lease] = []

    @contextlib.contextmanager
    def called_under(self, lease: Lease) -> Iterator[None]:
        self._leases.append(lease)
        try:
            yield
        finally:
            self._leases.pop()

    def deliver(self, mail: OutgoingMail) -> None:
        if self.world.stack and self.world.stack[-1].dead:
            raise Killed
        self.world.watch_lease(self._leases[-1])
        if self.world.healed:
            return self._accept(mail)
        if self._leases[-1].order_id in self.world.killers:
            self.world.tell("this mail kills its process")
            self.world.die()
        self.world.meanwhile()
        match self.mode:
            case "is down":
                raise Unreachable("connection refused")
            case "is silent":
                self.world.clock.advance(MAIL_TIMEOUT_SECONDS)
                raise TimedOut("no reply to EHLO")
            case "is overloaded":
                raise Throttled("421 too many connections")
            case "refuses":
                raise Refused("550 no such user")
            case "greylists" if str(mail.message().msgId) not in self.seen:
                self.seen.add(str(mail.message().msgId))
                raise Deferred("450 4.7.1 come back later")
        unsaid = self.mode == "accepts without saying so"
        self._accept(mail)
        self.world.tell("the mail server has accepted")
        actor = self.world.stack[-1]
        if actor.fault.startswith("dies when the mail server"):
            self.world.befall(actor)
            self.world.die()
        self.world.meanwhile()
        if unsaid:
            raise InDoubt("no reply to the whole message; a copy may have arrived")
        return None

    def _accept(self, mail: OutgoingMail) -> None:
        lease = self._leases[-1]
        message_id = str(mail.message().msgId)
        self.accepted.append(Copy(message_id, mail.envelope.recipient, lease.order_id, lease.delivery_id, lease.token))

    def check(self) -> None: ...

    def close(self) -> None: ...


def demand(holds: bool, otherwise: str) -> None:
    """Raises Violation with the words ``otherwise``."""
    if not holds:
        raise Violation(otherwise)


def _shown(leases: list[Lease]) -> str:
    return ", ".join(f"{lease.order_id} {lease.receiver} #{lease.token}" for lease in leases)


def _trouble(code: tuple[int, str]) -> Exception:
    """An error of the driver, as SQLite would give it."""
    error: Exception = sqlite_module().OperationalError(code[1])
    error.sqlite_errorcode = code[0]  # type: ignore[attr-defined]  # the driver sets it on its own errors
    return error


def _make_cheap(engine: Any) -> None:
    """No power is lost here: a process that dies takes only what it had not committed with it."""

    @event.listens_for(engine, "connect")
    def configure(connection: Any, _: Any) -> None:
        connection.execute("PRAGMA synchronous=OFF")


def _come_between(world: World, engine: Any) -> None:
    """Let every statement and every commit of the application pass the world's faults.

    At the driver, beneath SQLAlchemy: prepared statements, and transactions of nothing else, go past that.
    """
    driver: Any = sqlite_module()

    class Cursor(driver.Cursor):  # type: ignore[misc]
        def execute(self, *arguments: Any) -> Any:
            world.before_statement()
            return super().execute(*arguments)

        def executemany(self, *arguments: Any) -> Any:
            world.before_statement()
            return super().executemany(*arguments)

    class Connection(driver.Connection):  # type: ignore[misc]
        def cursor(self) -> Any:
            return super().cursor(Cursor)

        def execute(self, *arguments: Any) -> Any:
            return self.cursor().execute(*arguments)

        def commit(self) -> None:
            world.commit(super().commit, super().rollback)

    @event.listens_for(engine, "do_connect")
    def connect(_: Any, __: Any, ___: Any, options: dict[str, Any]) -> None:
        options["factory"] = Connection


@contextlib.contextmanager
def _simulated_time(clock: Any) -> Iterator[None]:
    """Waiting moves the simulation's clock; each seed makes its ids of it."""
    real = app.db.group_commit.time, app.db.admission.time, app.clock.ids
    time: Any = SimpleNamespace(monotonic=clock.monotonic, sleep=clock.advance)
    app.db.group_commit.time = app.db.admission.time = time
    try:
        yield
    finally:
        app.db.group_commit.time, app.db.admission.time, app.clock.ids = real


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Thousands of deliveries go dead here, and each would have its line in the log."""
    logger = logging.getLogger("app.bus")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
