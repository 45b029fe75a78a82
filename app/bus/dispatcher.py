"""The dispatcher's step: claim, invoke, settle, report. It never waits: the engine's loop waits and repeats."""

import json
import os
import socket
from collections.abc import Collection, Iterable, Mapping
from datetime import datetime, timedelta
from operator import attrgetter
from typing import Any

from app.bus import delivers_by, heartbeats, leases, lifecycle
from app.bus.claim import Claim
from app.bus.held_leases import HeldLeases
from app.bus.invoke import MISSING_RECEIVER_WAIT_SECONDS, Answer, Invoker, NotBegun, is_transactional
from app.bus.leases import Lease, LeaseEnd
from app.bus.retries import Retries
from app.bus.settle import SHORTEST_WAIT_SECONDS, Unstored, deliver_within, settle
from app.bus.tables import Role
from app.clock import Clock, uuid7
from app.db import Database, Reader, Transaction
from app.errors import DatabaseUnavailable
from app.signal import subscriptions
from config import Settings

BATCH = 20
"""How many deliveries to transactional receivers share a transaction: it bounds how long one holds the write lock."""

ALONE_SECONDS = 0.25
"""So long before and after a delivery in doubt begins, no other begins in its process. A receiver that kills its
process mostly does so at once; one that takes longer, such as a mail that hangs, shall hold up nobody.
"""


class Dispatcher:
    """Takes due deliveries under a lease, invokes their receivers and settles the results.

    It waits for nothing. Where the database can't take a result it raises DatabaseUnavailable, and its caller either
    tries again, or gives the leases up with abandon() so that they run out.
    """

    def __init__(
        self,
        database: Database,
        retries: Retries,
        invoker: Invoker,
        settings: Settings,
        *,
        mails: list[str],
        sender: object,
        role: Role = Role.DISPATCHER,
    ) -> None:
        """``mails`` are the receivers that send mail, ``sender`` is that of the lifecycle signals."""
        self.database = database
        self.retries = retries
        self.invoker = invoker
        self.lease = timedelta(seconds=settings.lease_seconds)
        self.heartbeat_seconds = heartbeats.pause_seconds(settings.lease_seconds, settings.ready_lag_seconds)
        self.sender = sender
        self.name = f"{socket.gethostname()}:{os.getpid()}:{uuid7()[-6:]}"
        self.in_doubt_waits = False
        """Whether the last claim passed over a delivery in doubt. The next one should be for it, alone."""
        self.paused: set[str] = set()
        """The receivers that were paused when it was last asked what is due."""
        self.broker: dict[str, Any] = {}
        """What a relay finds wrong at its broker. Heartbeats tell it: see ``DispatcherHeartbeat.broker``."""
        self._one_is_alone = False
        self._held = HeldLeases()
        self._settings, self._mails, self.role = settings, mails, role
        self._told = json.dumps(delivers_by.record(settings, role))

    @property
    def clock(self) -> Clock:
        return self.database.clock

    def run_once(self) -> list[LeaseEnd]:
        """One round in the calling thread: claim for each receiver, invoke, settle. Returns what it did."""
        claimed = self.claim(dict.fromkeys(subscriptions(), BATCH))
        return [end for batch in self.batches(claimed) for end in self.deliver(batch)]

    def deliver(self, batch: list[Lease]) -> list[LeaseEnd]:
        """Invoke and settle the deliveries of one batch. Raises DatabaseUnavailable; then their leases run out."""
        try:
            if is_transactional(batch[0]):
                return self.deliver_transactional(batch)
            return self.settle([(lease, answer) for lease in batch if (answer := self.invoke(lease)) is not None])
        finally:
            self.abandon(batch)

    @staticmethod
    def batches(claimed: list[Lease]) -> list[list[Lease]]:
        """Leases that are settled together: those of transactional receivers share a transaction.

        They come in the order of users, whose rows they may lock: see Database.transact().
        """
        shared = sorted(filter(is_transactional, claimed), key=attrgetter("user_id"))
        alone = [[lease] for lease in claimed if not is_transactional(lease)]
        return [shared[i : i + BATCH] for i in range(0, len(shared), BATCH)] + alone

    # Claim

    def next_due(self) -> dict[str, datetime]:
        """For each receiver with unfinished deliveries, when the earliest may be claimed. Takes no write lock."""
        due, starts, self.paused = self.database.query(self._look)
        held = {receiver: max(due_at, starts.get(receiver, due_at)) for receiver, due_at in due.items()}
        return {receiver: at for receiver, at in held.items() if receiver not in self.paused}

    def _look(self, reader: Reader) -> tuple[dict[str, datetime], dict[str, datetime], set[str]]:
        due = leases.earliest_due(reader, subscriptions())
        starts, paused = self.retries.held_back(reader, self.clock.now()) if due else ({}, set())
        return due, starts, paused

    def claim(self, capacity: Mapping[str, int]) -> list[Lease]:
        """Lease due deliveries, for each receiver as many as ``capacity`` says; or one that is in doubt, alone."""
        claimed: list[Lease] = []
        for alone in (self.in_doubt_waits, not self.in_doubt_waits):
            if not claimed:
                _, claimed, _ = self.settle_and_claim([], capacity, alone=alone)
        return claimed

    def rest_seconds(self, answers: list[tuple[Lease, Answer]], *, alone: bool) -> float:
        """For how long nothing is to be claimed, once these answers are settled, so that what is in doubt is alone.

        ``alone``: whether that is to be claimed next.
        """
        if not (alone or self._one_is_alone):
            return 0
        last_claim = self._held.last_claim({lease for lease, _ in answers})
        rest = max(0.0, last_claim + ALONE_SECONDS - self.clock.monotonic())
        self._one_is_alone &= rest > 0
        return rest

    def claim_without_receiver(self) -> list[Lease]:
        """Lease what has been overdue for a while because no process knows its receiver: it shall become visible."""
        before = self.clock.now() - timedelta(seconds=MISSING_RECEIVER_WAIT_SECONDS)
        with self.database.read() as session:
            unknown = leases.receivers_left_waiting(session, subscriptions(), before)
        return self.claim(dict.fromkeys(unknown, BATCH)) if unknown else []

    def pull_back(self) -> int:
        """Make due what waits for longer than anything may: the clock ran ahead when its time was set.

        Returns how many moments were changed.
        """
        longest_wait = timedelta(seconds=max(self.retries.maximum, SHORTEST_WAIT_SECONDS))

        def work(transaction: Transaction) -> int:
            count = self.retries.pull_back(transaction, self.lease)
            return count + leases.pull_back(transaction, subscriptions(), longest_wait, self.lease)

        count = self.database.transact(work)
        if count:
            lifecycle.report(lifecycle.times_pulled_back, self.sender, count=count)
        return count

    def take(self, delivery_id: int, token: int) -> Lease | None:
        """Take over the delivery that a relay leased under ``token`` and dispatched: sent a message with its number.

        Between the two nobody holds it: ``leased_by`` is empty. The token is swapped for one of this dispatcher's by
        compare-and-set, so a message that comes twice, or late, loses. None where the delivery was taken, or its lease
        ran out; and where the receiver was paused or its circuit breaker has opened meanwhile. Then it is ready again,
        and no attempt is recorded.
        """

        def work(transaction: Transaction) -> tuple[Lease | None, list[LeaseEnd]]:
            found = leases.find_dispatched(transaction, delivery_id, token, self.name)
            if found is None:
                return None, []
            taken, until = found
            admission = self.retries.readmit(transaction, taken.receiver, until)
            if not admission.most:
                taken.token = token
                ends, _ = settle(transaction, self.retries, self.invoker, [(taken, NotBegun())])
                return None, ends
            admission.admits(taken)
            taken.probe = admission.probe
            leases.hold(transaction, [taken], self.lease)
            if taken.probe:
                self.retries.extend_probe(transaction, taken.receiver, transaction.now + self.lease)
            return taken, []

        now = self.clock.monotonic()
        taken, ends = self.database.transact(work)
        if taken is not None:
            self._held.add([taken], now, now + self.lease.total_seconds())
        self._report_ends(ends)
        return taken

    # Invoke

    def invoke(self, lease: Lease) -> Answer | None:
        """Call a receiver that has its effects elsewhere, outside any transaction. The answer is to be settled.

        None where the lease was lost before.
        """
        if not self._holds(lease):
            return None
        answer = self.invoker.invoke(lease)
        self.retries.heard(lease, answer)
        return answer

    # Settle

    def settle(self, answers: list[tuple[Lease, Answer]]) -> list[LeaseEnd]:
        """Store what receivers answered, in one transaction. Raises DatabaseUnavailable; then the leases of what could
        not be stored stay held."""
        ends, _, unstored = self.settle_and_claim(answers, {})
        if unstored:
            raise DatabaseUnavailable from unstored[0].error
        return ends

    def settle_and_claim(
        self, answers: list[tuple[Lease, Answer]], capacity: Mapping[str, int], *, alone: bool = False
    ) -> tuple[list[LeaseEnd], list[Lease], list[Unstored]]:
        """Settle and claim in one transaction: what is answered makes way for what is due.

        ``alone``: claim one that is in doubt, to be begun at once; else only such as are not. While there are
        ``rest_seconds()``, nothing is claimed. Returns how leases ended, the new ones, and the answers that could not
        be stored, whose leases stay held. Raises DatabaseUnavailable; then nothing has changed, and all the answers'
        leases stay held.
        """
        wanted = {} if self.rest_seconds(answers, alone=alone) else capacity

        def work(transaction: Transaction) -> tuple[list[LeaseEnd], Claim, list[Unstored]]:
            if answers:
                transaction.dialect.lock_keys(transaction.driver, [lease.user_id for lease, _ in answers])
            ends, unstored = settle(transaction, self.retries, self.invoker, answers)
            if unstored:
                # A write that is surely right: it raises where the database takes none, which is no answer's fault.
                heartbeats.record(transaction, self.name, self._told)
            holder = None if self.role is Role.RELAY else self.name
            claim = Claim(transaction, self.retries, self.lease, holder, alone)
            for receiver, limit in wanted.items():
                claim.take(receiver, limit)
            return ends, claim, unstored

        now = self.clock.monotonic()  # before the transaction, so that no lease ends later than its row says
        ends, claim, unstored = self.database.transact(work)
        self._held.add(claim.leases, now, now + self.lease.total_seconds())
        if wanted:
            self.in_doubt_waits = claim.in_doubt_waits and not alone  # in between, the others have their turn
            self._one_is_alone = alone and bool(claim.leases)
        settled = [lease for lease, _ in answers]
        if unstored:
            self.database.renew_connections()  # should it be the connection's fault, the next try has another
            settled = [lease for lease in settled if lease not in {each.lease for each in unstored}]
        self._report(settled, ends)
        self._report_ends(claim.expired)
        return ends, claim.leases, unstored

    def deliver_transactional(self, batch: list[Lease]) -> list[LeaseEnd]:
        """Invoke and settle in one transaction. Raises DatabaseUnavailable; then nothing was done, all stay held."""
        held = [lease for lease in batch if self._holds(lease)]
        ends = self.database.transact(lambda transaction: deliver_within(transaction, self.retries, self.invoker, held))
        self._report(held, ends)
        return ends

    # Sign on, hold, sign off

    def sign_on(self, *, anyway: bool = False) -> tuple[str | None, dict[str, list[Any]]]:
        """Record what this dispatcher delivers by. Returns why it must not start, and where its settings differ.

        It must not where it would deliver mail otherwise than the dispatchers before it; ``anyway`` lets it.
        """
        return self.database.transact(
            lambda t: delivers_by.sign_on(t, self.name, self._settings, self._mails, self.role, anyway=anyway)
        )

    def heartbeat(self, at_work: Collection[Lease] | None = None) -> None:
        """Say that this dispatcher is alive, and let every lease it holds run on from now.

        Where ``at_work`` is given, only these: a lease that no thread has shall run out.
        """
        now = self.clock.monotonic()
        held, held_until = self._held.all(), now + self.lease.total_seconds()
        if at_work is not None:
            idle = set(held).difference(at_work)
            self._held.drop([lease for lease in idle if not self._held.holds(lease, now)])
            held = [lease for lease in held if lease not in idle]

        def work(transaction: Transaction) -> dict[Lease, bool]:
            heartbeats.record(transaction, self.name, self._told)
            if self.role is Role.RELAY:
                heartbeats.tell_of_broker(transaction, self.name, self.broker)
            return leases.extend(transaction, held, self.lease, self.retries.extend_probe)

        found = self.database.transact(work)
        self._held.drop(lease for lease, holds in found.items() if not holds)
        self._held.extend(found, held_until)

    def abandon(self, given_up: Iterable[Lease]) -> None:
        """Hold these leases no longer: what is not settled yet runs out, and another dispatcher takes it over."""
        self._held.drop(given_up)

    def sign_off(self) -> None:
        """This dispatcher is not alive any more; others that were not seen for a day are forgotten."""
        self.database.transact(lambda t: delivers_by.sign_off(t, self.name))

    def _holds(self, lease: Lease) -> bool:
        """A process that was paused past its lease must not begin: another dispatcher may be at it, or may take it."""
        held = self._held.holds(lease, self.clock.monotonic())
        if not held:
            self.abandon([lease])
            lifecycle.report(lifecycle.lease_lost, self.sender, lease=lease)
        return held

    # Report

    def _report(self, settled: list[Lease], ends: list[LeaseEnd]) -> None:
        """After the commit: what became of each lease."""
        self.abandon(settled)
        self._report_ends(ends)
        ended = {end.lease for end in ends}
        for lease in settled:
            if lease not in ended:
                lifecycle.report(lifecycle.lease_lost, self.sender, lease=lease)

    def _report_ends(self, ends: list[LeaseEnd]) -> None:
        if ends:
            lifecycle.report(lifecycle.deliveries_settled, self.sender, ends=ends)
