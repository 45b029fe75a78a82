"""Mutation testing of the guarantees: each mechanism is taken out of a copy of the code, and some test must notice.

    python -m tests.mutants                 all of them, in some twenty minutes
    python -m tests.mutants "fencing token" those whose row has these words
    python -m tests.mutants --list          the rows, and the tests that are to notice

Prints the table of docs/guarantees.md. Exits with 1 when a mutant survives, and when one is stale: its text is not in
the code any more, or its test is gone. It needs PostgreSQL's programs, or TEST_POSTGRES_URL.
"""

import argparse
import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from sqlalchemy import create_engine, make_url, text

from tests.support import postgres

CHECKOUT = Path(__file__).resolve().parents[1]

LIMIT_SECONDS = 1200
"""For one mutant's tests. A mutant that is not decided by then counts as one that survived."""

MARK = "MUTANT"
"""The environment variable by which the processes of a run are known."""

SIMULATION = "integration/test_simulation.py::test_every_promise_holds_in_every_script"
MODEL = "integration/test_model.py::test_the_bus_does_what_its_model_says[sqlite]"
BUS, BREAKER, COMMITS, DATABASE, OPERATE, WORKER, SMTP, TWO = (
    f"integration/test_{name}.py::test_"
    for name in (*("bus", "circuit_breaker", "commits", "db", "operate", "worker", "smtp_faults", "two_applications"),)
)
GROUP, POOL = "unit/test_group_commit.py::test_", "unit/test_pool.py::test_"
KILLS, SERVING, SYSCALLS = (f"acceptance/test_{name}.py::test_" for name in ("kills", "serving", "syscall_faults"))
KILLED_AT = f"{KILLS}nothing_is_lost_when_it_is_killed_at_a_named_point"


@dataclass(frozen=True)
class Mutant:
    """A mechanism, taken out: ``text`` in ``file`` becomes ``instead``. ``tests`` are tried in their order."""

    promise: str
    name: str
    file: str
    text: str
    instead: str
    tests: tuple[str, ...]

    def apply(self, folder: Path) -> None:
        """Raises ValueError where the text does not stand there exactly once."""
        file = folder / self.file
        code = file.read_text()
        if (found := code.count(self.text)) != 1:
            raise ValueError(f"stale: its text is {found} times in {self.file}")
        file.write_text(code.replace(self.text, self.instead))


MUTANTS = (
    # 1. An order that was answered is never lost
    Mutant(
        "1",
        "the answer waits for the commit",
        "app/db/database.py",
        "            committed = self.group_commit.wait(mine)\n",
        "            if lock_order is not None:\n"
        "                import threading\n"
        "                threading.Thread(target=self.group_commit.wait, args=[mine], daemon=True).start()\n"
        "                return cast(T, None)\n"
        "            committed = self.group_commit.wait(mine)\n",
        (f"{KILLED_AT}[sqlite-before-commit]", f"{KILLS}nothing_is_lost_when_everything_is_killed[sqlite]"),
    ),
    Mutant(
        "1",
        "each commit is synced to the disk",
        "app/db/sqlite.py",
        '"synchronous": 2,  # FULL',
        '"synchronous": 1,',
        (f"{SYSCALLS}an_order_is_on_the_disk_before_it_is_answered", f"{DATABASE}sqlite_is_durable_and_says_so"),
    ),
    Mutant(
        "1",
        "pragmas are read back",
        "app/db/sqlite.py",
        "        if found != value:\n",
        "        if False:\n",
        (f"{DATABASE}a_pragma_that_sqlite_refuses_is_an_error",),
    ),
    Mutant(
        "1",
        "connections are closed before a preloading server forks",
        "wsgi.py",
        '        app.extensions["database"].close()  # gunicorn',
        "        # gunicorn",
        (f"{SERVING}one_worker_dispatches_and_a_preloading_master_holds_no_connection",),
    ),
    Mutant(
        "1",
        "a forked child forgets its parent's connections",
        "app/engine/inprocess/engine.py",
        "        self.bus.database.forget_connections()\n",
        "",
        (f"{WORKER}a_forked_child_begins_without_its_parents_connections[sqlite]",),
    ),
    # 2. An order that was not stored leaves nothing
    Mutant(
        "1, 2",
        "the event is stored in the order's transaction",
        "app/api/orders.py",
        "        if earlier_id is None:\n"
        "            order_created.send(SOURCE, event=event, event_id=event_id)\n"
        "        return earlier_id\n"
        "\n"
        "    stored = database().transact(work, lock_order=order.user_id)\n",
        "        return earlier_id\n"
        "\n"
        "    stored = database().transact(work, lock_order=order.user_id)\n"
        "    if stored is None:\n"
        "        database().transact(lambda _: order_created.send(SOURCE, event=event, event_id=event_id))\n",
        (f"{KILLED_AT}[sqlite-before-commit]",),
    ),
    Mutant(
        "2",
        "an exception rolls back",
        "app/db/database.py",
        "            connection.close()  # which rolls back\n",
        "            connection.connection.commit()\n            connection.close()\n",
        (SIMULATION, f"{BUS}what_is_rolled_back_leaves_nothing[sqlite]"),
    ),
    Mutant(
        "2",
        "a mail only after the order's commit",
        "app/signal.py",
        "        record(event, source=source, owed=owed, event_id=event_id)\n",
        "        record(event, source=source, owed=owed, event_id=event_id)\n"
        "        from datetime import UTC, datetime\n"
        "        from types import SimpleNamespace\n"
        "        for each in owed:\n"
        "            if not each.transactional:\n"
        "                facts = SimpleNamespace(event_id=event_id, occurred_at=datetime.now(UTC))\n"
        "                each.receiver(source, event=event, delivery=facts)\n",
        (f"{KILLED_AT}[sqlite-before-commit]",),
    ),
    Mutant(
        "2",
        "the recorder follows the running transaction",
        "app/bus/outbox.py",
        "    recorder.set(partial(record, transaction))\n",
        '    recorder.set(globals().setdefault("first", partial(record, transaction)))\n',
        (f"{TWO}what_is_sent_is_stored_where_its_transaction_is",),
    ),
    Mutant(
        "2",
        "what a savepoint undoes is not inserted later",
        "app/db/transaction.py",
        "            self._added_rows.clear()\n            if self._session",
        "            if self._session",
        (SIMULATION, f"{BUS}what_a_failing_receiver_published_is_gone[sqlite]"),
    ),
    # 3. A receiver's effects in the database happen exactly once
    Mutant(
        "3",
        "a receiver's effect and its delivery's end in one transaction",
        "app/bus/dispatcher.py",
        "        ends = self.database.transact("
        "lambda transaction: deliver_within(transaction, self.policy, self.invoker, held))\n",
        "        from app.bus.settle import _deliver_one\n"
        "        ends = self.database.transact(\n"
        "            lambda work: [\n"
        "                _deliver_one(work, self.policy, self.invoker, one) for one in leases.lock_held(work, held)\n"
        "            ]\n"
        "        )\n"
        "        self.database.transact(lambda work: leases.end(work, ends))\n",
        (SIMULATION, f"{KILLED_AT}[sqlite-inside-settle]"),
    ),
    Mutant(
        "3",
        "a savepoint around each receiver",
        "app/bus/settle.py",
        "        with recording_savepoint(transaction):\n            answer = invoker",
        "        if True:\n            answer = invoker",
        (f"{BUS}a_failed_receivers_partial_work_never_stays[sqlite]",),
    ),
    Mutant(
        "3",
        "a savepoint around what is settled together",
        "app/bus/settle.py",
        "        with recording_savepoint(transaction):\n            ends =",
        "        if True:\n            ends =",
        (SIMULATION, f"{BUS}publishing_what_is_no_event_is_a_bug_and_not_a_loop[sqlite]"),
    ),
    Mutant(
        "3",
        "whose lease holds is looked up in the transaction",
        "app/bus/settle.py",
        "    held = leases.lock_held(transaction, batch)\n",
        "    held = batch\n",
        (SIMULATION, f"{BUS}a_late_process_calls_no_receiver_with_a_session[sqlite-1]"),
    ),
    Mutant(
        "3",
        "on PostgreSQL, the leases that were looked up are locked",
        "app/bus/leases.py",
        "Delivery.delivery_id.in_(ids)).with_for_update())",
        "Delivery.delivery_id.in_(ids)))",
        (f"{BUS}what_is_about_to_be_settled_is_not_taken_over[postgresql]",),
    ),
    Mutant(
        "3",
        "the fencing token in a lease's end",
        "app/bus/leases.py",
        "END = Prepared(\n    HELD.values(",
        'END = Prepared(\n    update(table(Delivery)).where(Delivery.delivery_id == bindparam("of_delivery")).values(',
        (SIMULATION, f"{BUS}a_late_process_settles_nothing[sqlite]"),
    ),
    Mutant(
        "3",
        "the fencing token grows with each lease",
        "app/bus/leases.py",
        "        token=token + 1,\n",
        "        token=token,\n",
        (SIMULATION, f"{BUS}a_late_process_settles_nothing[sqlite]"),
    ),
    Mutant(
        "3",
        "an end that changes no row is noticed",
        "app/bus/leases.py",
        " != len(ends):\n        raise LeaseLost",
        " < 0:\n        raise LeaseLost",
        (SIMULATION, f"{BUS}a_late_process_settles_nothing[sqlite]"),
    ),
    Mutant(
        "3",
        "a lost lease spoils no answer that is settled with it",
        "app/bus/settle.py",
        "        if len(answers) > 1:\n",
        "        if len(answers) > 1 and not isinstance(error, LeaseLost):\n",
        (f"{BUS}a_lost_lease_spoils_no_answer_that_is_settled_with_it[sqlite]",),
    ),
    Mutant(
        "3",
        "a process that was paused past its lease does not begin",
        "app/bus/held_leases.py",
        "            return now < self._ends.get(lease, now)\n",
        "            return lease in self._ends\n",
        (SIMULATION, f"{BUS}a_process_that_was_paused_past_its_lease_does_not_begin[sqlite]"),
    ),
    Mutant(
        "3",
        "leases are extended",
        "app/bus/dispatcher.py",
        "            return leases.extend(transaction, held, self.lease)\n",
        "            return []\n",
        (SIMULATION, f"{BUS}a_lease_is_extended_while_the_receiver_runs[sqlite]"),
    ),
    Mutant(
        "3",
        "only one's own leases are extended",
        "app/bus/leases.py",
        'EXTEND = Prepared(HELD.values(due_at=bindparam("due_at")))',
        "EXTEND = Prepared(\n"
        '    update(table(Delivery)).where(Delivery.delivery_id == bindparam("of_delivery"))\n'
        '    .values(due_at=bindparam("due_at"))\n'
        ")",
        (SIMULATION, MODEL),
    ),
    Mutant(
        "3",
        "a lease that could not be extended is held no more",
        "app/bus/dispatcher.py",
        "        self._held.drop(lost)\n",
        "",
        (SIMULATION, MODEL),
    ),
    Mutant(
        "3",
        "on PostgreSQL, a delivery that is being claimed is locked",
        "app/bus/leases.py",
        "        .with_for_update(of=Delivery, skip_locked=True)\n",
        "",
        (f"{BUS}what_another_is_claiming_at_this_moment_is_passed_over[postgresql]",),
    ),
    Mutant(
        "3",
        "after a failure, each work that shared the commit runs by itself",
        "app/db/group_commit.py",
        "                if len(batch) > 1:\n                    self._separate(batch)\n                elif",
        "                if",
        (f"{GROUP}after_a_failure_each_work_runs_alone_and_late_ones_do_not_join",),
    ),
    Mutant(
        "3",
        "each work runs in its caller's context",
        "app/db/group_commit.py",
        "self.context.run(run_within, transaction, self.function, before)",
        "run_within(transaction, self.function, before)",
        (f"{COMMITS}each_work_runs_in_its_callers_context[sqlite]",),
    ),
    Mutant(
        "3",
        "a session can't end the transaction that others share",
        "app/db/transaction.py",
        '            join_transaction_mode="create_savepoint",\n',
        '            join_transaction_mode="control_fully",\n',
        (
            f"{COMMITS}no_session_ends_the_transaction_that_others_share[sqlite]",
            f"{COMMITS}an_error_undoes_its_own_work_only[sqlite]",
        ),
    ),
    Mutant(
        "3",
        "on PostgreSQL, a user's record is locked while it is counted up",
        "app/orders/records.py",
        '    .where(User.user_id == bindparam("id"))\n    .with_for_update()\n',
        '    .where(User.user_id == bindparam("id"))\n',
        (f"{BUS}two_orders_of_one_user_read_at_once_are_both_counted[postgresql]",),
    ),
    # 4. A mail is sent at least once
    Mutant(
        "4",
        "done only after the server's 250",
        "app/mail/smtp_client.py",
        "        self.read_reply(self.step)\n        self.mails_sent += 1\n",
        "        self.mails_sent += 1\n",
        (f"{SMTP}a_fault_that_passes_is_on_record_and_then_the_mail_arrives",),
    ),
    Mutant(
        "4",
        "after the message's last byte a failure reads `unknown`",
        "app/mail/smtp_client.py",
        "        self.in_doubt = True\n",
        "",
        (f"{SMTP}a_mail_whose_acceptance_was_not_heard_is_held_where_that_is_wanted",),
    ),
    Mutant(
        "4",
        "an attempt whose process did not come back is recorded as `unknown`",
        "app/bus/leases.py",
        "        record_unknown(transaction, delivery_id, token, utc(leased_at), leased_by)\n",
        "        pass\n",
        (SIMULATION, f"{OPERATE}an_unknown_attempt_is_repeated_by_default[sqlite]"),
    ),
    Mutant(
        "4",
        "an attempt whose process did not come back is counted",
        "app/bus/leases.py",
        "        spent=attempts + expired,\n",
        "        spent=attempts,\n",
        (f"{BUS}what_kills_its_process_each_time_is_given_up[sqlite]",),
    ),
    Mutant(
        "4",
        "each attempt is recorded",
        "app/bus/leases.py",
        "    if attempts:\n",
        "    if False:\n",
        (SIMULATION,),
    ),
    Mutant(
        "4",
        "leases run out",
        "app/bus/leases.py",
        'Delivery.due_at <= bindparam("now"), UNFINISHED)',
        'Delivery.due_at <= bindparam("now"), UNFINISHED, Delivery.state == DeliveryState.READY)',
        (SIMULATION, f"{OPERATE}an_unknown_attempt_is_repeated_by_default[sqlite]"),
    ),
    Mutant(
        "4",
        "the Message-ID is a function of the event",
        "app/mail/messages.py",
        'f"<{self.event_id}.order@',
        'f"<{id(self)}.{self.event_id}.order@',
        (SIMULATION, f"{KILLED_AT}[sqlite-after-send]"),
    ),
    Mutant(
        "4",
        "a stop waits for receivers",
        "app/engine/inprocess/worker.py",
        "busy = self._answers or any(pool.running or pool.waiting for pool in self._pools.values())",
        "busy = self._answers",
        (f"{WORKER}a_stop_waits_for_the_receiver_and_keeps_its_result[sqlite]",),
    ),
    Mutant(
        "4",
        "an answer stays in the worker's list while the database is away",
        "app/engine/inprocess/worker.py",
        "        except DatabaseUnavailable:\n            raise\n",
        "        except DatabaseUnavailable:\n            self._forget(answers)\n            raise\n",
        (f"{WORKER}the_dispatcher_outlives_a_database_that_goes_away[sqlite]",),
    ),
    Mutant(
        "4",
        "only a write tells that the database is back",
        "app/engine/inprocess/worker.py",
        "        self.dispatcher.heartbeat()\n        with self._lock:\n",
        "        with self._lock:\n",
        (f"{WORKER}the_dispatcher_outlives_a_database_that_goes_away[sqlite]",),
    ),
    Mutant(
        "4",
        "after an outage of the database, others have time to extend their leases",
        "app/engine/inprocess/worker.py",
        "        self._stopping.wait(2 * RETRY_SECONDS)\n",
        "",
        (f"{SYSCALLS}whose_disk_is_back_first_takes_nothing_over_from_one_who_still_works",),
    ),
    Mutant(
        "4",
        "a lease that ran out before it was begun is held no more",
        "app/bus/dispatcher.py",
        "            self.abandon([lease])\n            self._report_lost(lease)\n",
        "            self._report_lost(lease)\n",
        (f"{BUS}a_lease_that_ran_out_before_it_was_begun_is_left_to_others[sqlite-True]",),
    ),
    Mutant(
        "4",
        "a lease whose receiver's thread ended is held no more",
        "app/bus/dispatcher.py",
        "            self.abandon([lease])  # extended",
        "            # extended",
        (f"{BUS}a_lease_whose_thread_ended_is_left_to_others[sqlite]",),
    ),
    Mutant(
        "4",
        "`hold` leaves an unknown outcome to a person",
        "app/bus/invoke.py",
        "        if lease.in_doubt and self.options[lease.receiver].hold_unknown:\n",
        "        if False:\n",
        (f"{OPERATE}an_unknown_attempt_can_be_left_to_a_person[sqlite]",),
    ),
    Mutant(
        "4",
        "unknown attempts have a budget of their own",
        "app/bus/invoke.py",
        "        if limit is None or unknown < limit:\n",
        "        if True:\n",
        (f"{SMTP}a_mail_whose_acceptance_is_never_heard_gets_three_copies_and_is_dead[sqlite-hangs]", MODEL),
    ),
    Mutant(
        "4",
        "a delivery that was given back is in doubt still",
        "app/bus/leases.py",
        '        "outcome": end.outcome or end.lease.outcome,\n',
        '        "outcome": end.outcome,\n',
        (f"{OPERATE}an_unknown_attempt_is_left_to_a_person_also_when_the_next_has_not_begun_it[sqlite-given back]",),
    ),
    Mutant(
        "4",
        "`NotificationFailed` when given up",
        "app/bus/settle.py",
        "            _publish(lease, _death_notice(lease, detail))\n",
        "            pass\n",
        (SIMULATION,),
    ),
    Mutant(
        "4",
        "what an answer publishes is stored with the delivery's end",
        "app/bus/settle.py",
        "            _publish(lease, answer.publish)\n            return LeaseEnd(lease, DeliveryState.DONE",
        "            return LeaseEnd(lease, DeliveryState.DONE",
        (SIMULATION,),
    ),
    Mutant(
        "4",
        "an order's notification never moves backwards",
        "app/orders/records.py",
        'Order.order_id == bindparam("id"), or_(*earlier))',
        'Order.order_id == bindparam("id"))',
        (SIMULATION, f"{OPERATE}what_was_sent_is_not_marked_failed_by_an_older_fact[sqlite]"),
    ),
    # 5. One failing receiver, one poison event or one hanging server delays nobody else
    Mutant(
        "5",
        "each receiver has threads of its own",
        "app/engine/inprocess/worker.py",
        "known.transactional else receiver\n",
        'known.transactional else "(shared)"\n',
        (f"{WORKER}a_hanging_receiver_holds_up_nobody_else[sqlite]",),
    ),
    Mutant(
        "5",
        "a failure opens the circuit breaker",
        "app/bus/breaker.py",
        "    if outcome in BACKEND_DOWN and not answers_others:\n",
        "    if outcome in BACKEND_DOWN and not answers_others and probe:\n",
        (f"{BREAKER}an_outage_is_met_with_few_attempts_and_all_drain_when_it_ends[sqlite]",),
    ),
    Mutant(
        "5",
        "an open breaker lets one probe through",
        "app/bus/leases.py",
        '"most": 1 if probe else limit}',
        '"most": limit}',
        (f"{BREAKER}only_one_dispatcher_gets_the_probe[sqlite]",),
    ),
    Mutant(
        "5",
        "and no other before that one ends",
        "app/bus/breaker.py",
        '    MOVE_PROBE(transaction, {"name": receiver, "at": transaction.now + lease})\n',
        "",
        (f"{BREAKER}only_one_dispatcher_gets_the_probe[sqlite]",),
    ),
    Mutant(
        "5",
        "on PostgreSQL, the breaker's row is locked while a probe is taken",
        "app/bus/breaker.py",
        '.where(CircuitBreaker.receiver == bindparam("name")).with_for_update()\n',
        '.where(CircuitBreaker.receiver == bindparam("name"))\n',
        (f"{BREAKER}two_that_claim_at_once_share_one_probe[postgresql]",),
    ),
    Mutant(
        "5",
        "a failed probe makes the wait longer",
        "app/bus/breaker.py",
        "        probe_at = now + timedelta(seconds=probe_wait(failures + 1))\n",
        "        probe_at = now\n",
        (f"{BREAKER}an_outage_is_met_with_few_attempts_and_all_drain_when_it_ends[sqlite]",),
    ),
    Mutant(
        "5",
        "a probe that was lost with its process is followed by another",
        "app/bus/breaker.py",
        '"at": transaction.now + lease}',
        '"at": transaction.now + 1000 * lease}',
        (f"{BREAKER}a_probe_whose_process_died_is_followed_by_another[sqlite]",),
    ),
    Mutant(
        "5",
        "a probe that finds nothing due is given back",
        "app/bus/leases.py",
        "    elif probe:\n        breaker.give_back_probe(transaction, receiver)\n",
        "",
        (f"{BREAKER}a_probe_that_finds_nothing_due_leaves_the_next_to_another[sqlite]",),
    ),
    Mutant(
        "5",
        "a probe that comes through closes the breaker",
        "app/bus/breaker.py",
        "    elif probe:\n        _close(transaction, receiver)\n",
        "",
        (f"{BREAKER}a_probe_whose_process_died_is_followed_by_another[sqlite]",),
    ),
    Mutant(
        "5",
        "what failed while it was open is due when it closes",
        "app/bus/breaker.py",
        "    session.execute(due.values(due_at=now))\n",
        "",
        (f"{BREAKER}an_outage_is_met_with_few_attempts_and_all_drain_when_it_ends[sqlite]", MODEL),
    ),
    Mutant(
        "5",
        "what hangs while the backend answers others opens no circuit breaker",
        "app/bus/breaker.py",
        "    answers_others = outcome in SILENT and _answered_since(transaction, receiver, began)\n",
        "    answers_others = False\n",
        (f"{BREAKER}what_hangs_while_others_come_through_opens_no_breaker[sqlite-error0]", MODEL),
    ),
    Mutant(
        "5",
        "the probe is a delivery that has not failed yet",
        "app/bus/leases.py",
        "(probe and FIND_PROBE(transaction, values).fetchall()) or ",
        "",
        (f"{BREAKER}the_probe_is_the_newest_that_has_not_failed[sqlite]", MODEL),
    ),
    Mutant(
        "5",
        "what had failed before the breaker opened keeps its wait when it closes",
        "app/bus/breaker.py",
        "Delivery.outcome.in_(SURELY_FAILED), failed_meanwhile)",
        "Delivery.outcome.in_(SURELY_FAILED))",
        (f"{BREAKER}the_end_of_an_outage_hurries_only_what_surely_failed_in_it[sqlite]", MODEL),
    ),
    Mutant(
        "5",
        "`NotBegun` spends no attempt",
        "app/bus/settle.py",
        "        case NotBegun():\n            return LeaseEnd(lease, DeliveryState.READY)\n",
        "        case NotBegun():\n            return LeaseEnd(lease, DeliveryState.READY, Outcome.UNKNOWN)\n",
        (f"{BUS}what_was_not_begun_is_given_back_at_a_stop[sqlite]",),
    ),
    Mutant(
        "5",
        "prefetched deliveries are given back at a stop",
        "app/engine/inprocess/worker.py",
        "            if self.stopping or pool.stalled:\n",
        "            if pool.stalled and not self.stopping:\n",
        (f"{WORKER}what_was_prefetched_is_given_back_at_a_stop[sqlite]",),
    ),
    Mutant(
        "5",
        "prefetched deliveries are given back when the backend is found down",
        "app/engine/inprocess/worker.py",
        "self._pool(lease.receiver).take_back() if _finds_backend_down(answer) else []",
        "[]",
        (f"{WORKER}what_was_prefetched_is_given_back_when_the_backend_is_found_down[sqlite]",),
    ),
    Mutant(
        "5",
        "prefetched deliveries are given back when nothing ends",
        "app/engine/inprocess/worker.py",
        "            if self.stopping or pool.stalled:\n",
        "            if self.stopping:\n",
        (f"{WORKER}what_was_prefetched_is_given_back_behind_one_that_hangs[sqlite]",),
    ),
    Mutant(
        "5",
        "the most overdue first",
        "app/bus/leases.py",
        "        .order_by(Delivery.due_at, Delivery.delivery_id)",
        "        .order_by(Delivery.delivery_id)",
        (f"{BUS}what_failed_waits_behind_what_was_not_tried[sqlite]",),
    ),
    Mutant(
        "5",
        "works lock rows in one order",
        "app/db/database.py",
        'sorted(works, key=lambda work: work.lock_order or "")',
        "works",
        (f"{COMMITS}works_lock_rows_in_one_order_whichever_came_first[sqlite]",),
    ),
    Mutant(
        "5",
        "a dispatcher's batch locks rows in that order too",
        "app/bus/dispatcher.py",
        'sorted(filter(is_transactional, claimed), key=attrgetter("user_id"))',
        "list(filter(is_transactional, claimed))",
        (f"{BUS}a_batch_locks_users_rows_in_the_order_in_which_others_do[sqlite]",),
    ),
    Mutant(
        "5",
        "on PostgreSQL, a locked row is given up on",
        "app/db/postgresql.py",
        "-c lock_timeout={lock_timeout} ",
        "",
        (f"{COMMITS}a_row_that_somebody_keeps_locked_holds_up_only_works_that_want_it[postgresql]",),
    ),
    Mutant(
        "5",
        "on PostgreSQL, a work that has queued for long leads beside one that is stuck",
        "app/db/group_commit.py",
        "timeout=-1 if self._dialect.one_writer else QUEUE_SECONDS",
        "timeout=-1",
        (f"{COMMITS}on_postgresql_a_work_that_hangs_holds_up_neither_requests_nor_a_dispatcher[postgresql]",),
    ),
    Mutant(
        "5",
        "on PostgreSQL, a dispatcher does not queue",
        "app/db/group_commit.py",
        "        if not (self._dialect.one_writer or work.lock_order is not None):\n",
        "        if False:\n",
        (f"{COMMITS}on_postgresql_a_work_that_hangs_holds_up_neither_requests_nor_a_dispatcher[postgresql]",),
    ),
    # 6. Nothing waits for a poll
    Mutant(
        "6",
        "the wake-up in the same process",
        "app/engine/inprocess/engine.py",
        "            worker.wakeup.wake()\n",
        "            pass\n",
        (f"{WORKER}an_order_is_dealt_with_at_once_though_the_poll_is_a_minute_away[sqlite]",),
    ),
    Mutant(
        "6",
        "the wake-up of other processes",
        "app/engine/inprocess/wakeup_sender.py",
        "            reached = self._send_datagrams()\n",
        "            reached = 1\n",
        (f"{WORKER}another_process_that_only_publishes_wakes_the_dispatcher[sqlite]",),
    ),
    Mutant(
        "6",
        "on PostgreSQL, the wake-up of other machines",
        "app/db/postgresql.py",
        '                connection.execute(text("SELECT pg_notify(:channel, \'\')"), {"channel": channel})\n',
        "                pass\n",
        (f"{DATABASE}what_one_process_notifies_another_hears",),
    ),
    Mutant(
        "6",
        "the first look, at the start",
        "app/engine/inprocess/worker.py",
        "        self._beat_once()\n        while not self._is_done():\n",
        "        self._beat_once()\n        self.wakeup.wait(self.poll_seconds)\n        while not self._is_done():\n",
        (f"{WORKER}what_waited_before_the_start_is_dealt_with[sqlite]",),
    ),
    Mutant(
        "6",
        "the loop sleeps until the next retry",
        "app/engine/inprocess/worker.py",
        "        soonest = min([timedelta(seconds=self.poll_seconds), *waits]).total_seconds()\n",
        "        soonest = self.poll_seconds\n",
        (f"{WORKER}a_retry_is_woken_by_its_time_and_not_by_the_poll[sqlite]",),
    ),
    # 7. What was given up is never thrown away silently
    Mutant(
        "7",
        "retention spares what is unfinished",
        "app/bus/prune.py",
        "    needed = or_(unfinished, Delivery.settled_at >= cutoff)\n",
        "    needed = Delivery.settled_at >= cutoff\n",
        (SIMULATION, f"{OPERATE}what_is_not_finished_is_never_forgotten[sqlite-dead]"),
    ),
    Mutant(
        "7",
        "retention spares what ended lately",
        "app/bus/prune.py",
        "    needed = or_(unfinished, Delivery.settled_at >= cutoff)\n",
        "    needed = unfinished\n",
        (SIMULATION, f"{OPERATE}what_ended_lately_is_kept_however_old_it_is[sqlite]"),
    ),
    Mutant(
        "7",
        "retention spares what is young",
        "app/bus/prune.py",
        "    if end is not None:\n",
        "    if False:\n",
        (f"{OPERATE}what_is_young_is_kept_though_it_is_owed_to_nobody[sqlite]",),
    ),
    Mutant(
        "7",
        "on PostgreSQL, retention looks again at what it has locked",
        "app/bus/prune.py",
        "    spared = set(session.scalars(select(Delivery.event_id).where(Delivery.event_id.in_(ids), needed)))\n",
        "    spared: set[str] = set()\n",
        (f"{OPERATE}what_a_person_retries_at_this_moment_is_not_forgotten[postgresql]",),
    ),
    Mutant(
        "7",
        "a retry touches only what is dead or discarded",
        "app/bus/operate.py",
        '"retry": (DeliveryState.DEAD, DeliveryState.DISCARDED),',
        '"retry": tuple(DeliveryState),',
        (SIMULATION,),
    ),
    Mutant(
        "7",
        "a retry begins a new budget",
        "app/bus/operate.py",
        '"attempts": 0, ',
        "",
        (SIMULATION, f"{BUS}a_dead_delivery_is_retried_with_a_new_budget_and_its_attempts_stay[sqlite]"),
    ),
    Mutant(
        "7",
        "a discard spares what runs",
        "app/bus/operate.py",
        '"discard": (DeliveryState.READY, DeliveryState.DEAD),',
        '"discard": (DeliveryState.READY, DeliveryState.DEAD, DeliveryState.LEASED),',
        (SIMULATION, f"{BUS}discarding_needs_a_reason_and_spares_what_is_running[sqlite]"),
    ),
    Mutant(
        "7",
        "on PostgreSQL, a person's act locks what it has chosen",
        "app/bus/operate.py",
        ".limit(BATCH).with_for_update(of=Delivery)",
        ".limit(BATCH)",
        (f"{OPERATE}what_a_person_discards_at_this_moment_is_not_claimed[postgresql]",),
    ),
    Mutant(
        "7",
        "every act of a person is recorded",
        "app/bus/operate.py",
        "deliveries=OperatorAct.deliveries + len(ids)",
        "deliveries=OperatorAct.deliveries",
        (f"{OPERATE}an_act_is_recorded_with_when_who_what_why_and_how_many[sqlite]",),
    ),
    # The records themselves
    Mutant(
        "–",
        "sums and prices are exact",
        "app/db/sqlite.py",
        'f"{value:.2f}"',
        'f"{value:.0f}.00"',
        (SIMULATION,),
    ),
    Mutant(
        "–",
        "the newest order is the user's last",
        "app/orders/records.py",
        "        latest = max(latest, (utc(last_at), last_id))\n",
        "        pass\n",
        (SIMULATION,),
    ),
)


def main() -> int:
    arguments = _arguments()
    chosen = [mutant for mutant in MUTANTS if not arguments.names or any(n in mutant.name for n in arguments.names)]
    if arguments.list:
        for mutant in chosen:
            print(f"{mutant.promise:5} {mutant.name}\n", *(f"          {test}\n" for test in mutant.tests))
        return 0
    print("| promise | taken out | noticed by |\n|---|---|---|", flush=True)
    with _postgres_server() as server:
        noticed = [_report(mutant, server) for mutant in chosen]
    print(f"{sum(noticed)} of {len(noticed)} noticed", file=sys.stderr)
    return 0 if all(noticed) else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="words of the rows to run")
    parser.add_argument("--list", action="store_true", help="run nothing")
    return parser.parse_args()


@contextlib.contextmanager
def _postgres_server() -> Iterator[str]:
    if given := os.environ.get("TEST_POSTGRES_URL"):
        yield given
    elif postgres.binaries() is None:
        sys.exit("there is no PostgreSQL here: install its server, or set TEST_POSTGRES_URL")
    else:
        with postgres.private_server() as url:
            yield url


def _report(mutant: Mutant, server: str) -> bool:
    """Print the mutant's row. Returns whether a test noticed it."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mutant-") as name:
        folder = Path(name, "checkout")
        shutil.copytree(CHECKOUT, folder, ignore=shutil.ignore_patterns(".*", "__pycache__", "instance"))
        try:
            mutant.apply(folder)
            with _new_database(server) as url:
                noticed_by, why = _first_failure(mutant, folder, url)
        except ValueError as error:
            noticed_by, why = None, str(error)
    print(f"| {mutant.promise} | {mutant.name} | {noticed_by or f'**nothing**: {why}'} |", flush=True)
    print(f"{time.monotonic() - began:6.1f} s  {mutant.name}: {why}", file=sys.stderr, flush=True)
    return noticed_by is not None


@contextlib.contextmanager
def _new_database(server: str) -> Iterator[str]:
    """An empty database of the server's: what one mutant leaves behind is not the next one's trouble."""
    name = f"mutant_{uuid4().hex}"
    engine = create_engine(server, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    try:
        yield make_url(server).set(database=name).render_as_string(hide_password=False)
    finally:
        with engine.connect() as connection:
            connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
        engine.dispose()


def _first_failure(mutant: Mutant, folder: Path, postgres_url: str) -> tuple[str | None, str]:
    """Which test noticed, and what it said. Raises ValueError where the tests could not be run."""
    mark = uuid4().hex
    options = ("-x", "-p", "no:randomly", "-p", "no:cacheprovider", "-rfE", "--tb=short")
    command = [sys.executable, "-m", "pytest", *options, *(f"tests/{test}" for test in mutant.tests)]
    environment = os.environ | {MARK: mark, "TEST_POSTGRES_URL": postgres_url, "COLUMNS": "400"}
    output = folder.with_name("output")
    with output.open("w") as file:
        tests = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=file, stderr=file, stdin=subprocess.DEVNULL
        )
        try:
            status = tests.wait(LIMIT_SECONDS)
        except subprocess.TimeoutExpired:
            return None, f"not decided within {LIMIT_SECONDS} s"
        finally:
            _kill_all(mark)
            tests.wait()
    said = output.read_text(errors="replace")
    failed = re.search(r"^FAILED tests/\w+/(.+?)(?: - (.*))?$", said, re.MULTILINE)
    if status == 0:
        return None, "it survives"
    if status != 1 or failed is None:
        raise ValueError(f"the tests could not be run, pytest ended with {status}:\n{said[-3000:]}")
    seed = re.search(r"SIMULATION_SEED=(\d+) plays", said)
    return f"`simulation` (seed {seed[1]})" if seed else f"`{failed[1]}`", failed[2] or ""


def _kill_all(mark: str) -> None:
    """End every process of the run, also one that made itself a leader of its own session."""
    wanted = f"{MARK}={mark}".encode()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if wanted in (process / "environ").read_bytes().split(b"\0"):
                os.kill(int(process.name), signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main())
