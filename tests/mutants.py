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
READY, ACTS = "integration/test_readiness.py::test_", "integration/test_acts.py::test_"
FILE, BACKUP, FILES = (
    f"{name}.py::test_"
    for name in ("integration/test_sqlite_file", "integration/test_backup", "acceptance/test_sqlite_file")
)
WRONG_CLOCK = "integration/test_wrong_clock.py::test_"
POSTGRES, TROUBLE = "integration/test_postgresql.py::test_", "integration/test_storage_trouble.py::test_"
PUBLISHED = "integration/test_published.py::test_"
GROUP, POOL = "unit/test_group_commit.py::test_", "unit/test_pool.py::test_"
LEARNED, LEARNING = "integration/test_learned_retries.py::test_", "integration/test_learning.py::test_"
PAUSE, REPLAY, ADDRESSES = (f"integration/test_{name}.py::test_" for name in ("pause", "replay", "addresses"))
DEAD, LOCKS = (f"integration/test_{name}.py::test_" for name in ("dead_server", "lock_order"))
KILLS, SERVING, SYSCALLS = (f"acceptance/test_{name}.py::test_" for name in ("kills", "serving", "syscall_faults"))
NETWORK = "acceptance/test_network.py::test_"
ORDERED, MOVE = "integration/test_ordered.py::test_", "integration/test_move.py::test_"
LATE = f"{ORDERED}one_that_commits_late_does_not_run_beside_another_of_its_key"
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
        "a commit is acknowledged where the file is still the one at the path",
        "app/db/database.py",
        "            self.dialect.check_file()\n            self.written_at",
        "            self.written_at",
        (f"{FILE}what_is_committed_into_a_file_that_was_replaced_meanwhile_is_not_acknowledged[replace]",),
    ),
    Mutant(
        "1",
        "a lost file's WAL is moved into it",
        "app/db/sqlite_file.py",
        "            self._save_wal()\n",
        "",
        (f"{FILE}a_lost_file_is_complete_and_its_wal_spoils_no_other_file",),
    ),
    Mutant(
        "1",
        "a process that takes a dead one's place opens no other file",
        "app/db/sqlite_file.py",
        "            if before != _pinned.get(self._path, before):\n",
        "            if False:\n",
        (f"{FILES}a_process_that_takes_a_dead_ones_place_begins_with_no_other_file[another file]",),
    ),
    Mutant(
        "1",
        "a request that outlasts gunicorn's stop writes into no file",
        "app/serving.py",
        "        self.method_queue = LastingQueue()\n",
        "",
        ("unit/test_serving.py::test_a_request_that_outlasts_the_stop_writes_into_no_file_that_was_opened_since",),
    ),
    Mutant(
        "1",
        "a database that a process has open is not restored over",
        "app/db/sqlite_backup.py",
        "        fcntl.lockf(opened, fcntl.LOCK_EX | fcntl.LOCK_NB, *SHARED_LOCK)\n",
        "        pass\n",
        (f"{BACKUP}a_restore_is_refused_while_any_process_has_the_database_open",),
    ),
    Mutant(
        "1",
        "a copy is checked before it is called a backup",
        "app/db/sqlite_backup.py",
        '        if found != "ok":\n',
        "        if False:\n",
        (f"{BACKUP}a_damaged_database_makes_no_backup",),
    ),
    Mutant(
        "1",
        "on PostgreSQL, a commit waits for the disk whatever the server's default is",
        "app/db/postgresql.py",
        '"local" if synchronous_commit == "off" else synchronous_commit',
        "synchronous_commit",
        (f"{POSTGRES}what_is_relied_on_holds_whatever_the_administrator_has_set",),
    ),
    Mutant(
        "1",
        "on PostgreSQL, what is relied on in a session is read back",
        "app/db/postgresql.py",
        "            if has != value:\n",
        "            if False:\n",
        (f"{POSTGRES}a_setting_that_the_server_takes_otherwise_stops_the_start",),
    ),
    Mutant(
        "1",
        "behind a pooler, each transaction that writes has its settings",
        "app/db/postgresql.py",
        "            self._set(driver, self._limits, is_local=True)\n",
        "            pass\n",
        (f"{POSTGRES}through_pgbouncer_every_order_is_dealt_with_once[transaction]",),
    ),
    Mutant(
        "1, 4",
        "behind a pooler, no statement is prepared",
        "app/db/postgresql.py",
        "            driver.prepare_threshold = None\n",
        "            pass\n",
        (f"{POSTGRES}through_pgbouncer_every_order_is_dealt_with_once[transaction]",),
    ),
    Mutant(
        "1",
        "connections are closed before a preloading server forks",
        "app/serving.py",
        "                database.close()\n",
        "                self.kept = database\n",
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
        "2",
        "a file that is not the opened one is not written",
        "app/db/sqlite.py",
        "        self._database_file.check()\n        driver.execute",
        "        driver.execute",
        (f"{FILE}it_goes_on_by_itself_when_the_file_is_back",),
    ),
    Mutant(
        "1, 2",
        "the event is stored in the order's transaction",
        "app/orders/intake.py",
        "        if earlier_id is None:\n"
        "            order_created.send(source, event=event, event_id=event_id, origin=origin)\n"
        "        return earlier_id\n"
        "\n"
        "    stored = database.transact(work, lock_order=event.order_id, first=first)\n",
        "        return earlier_id\n"
        "\n"
        "    stored = database.transact(work, lock_order=event.user_id, first=first)\n"
        "    if stored is None:\n"
        "        send = order_created.send\n"
        "        database.transact(lambda _: send(source, event=event, event_id=event_id, origin=origin))\n",
        (f"{KILLED_AT}[sqlite-before-commit]",),
    ),
    Mutant(
        "2",
        "an exception rolls back",
        "app/db/database.py",
        "            self._connection.close()  # which rolls back\n",
        "            self._connection.connection.commit()\n            self._connection.close()\n",
        (SIMULATION, f"{BUS}what_is_rolled_back_leaves_nothing[sqlite]"),
    ),
    Mutant(
        "2",
        "of the orders of a commit, each is told whether it is new",
        "app/db/database.py",
        "            transaction.is_new = first.row[first.key] in new",
        "            transaction.is_new = bool(new)",
        (f"{COMMITS}orders_of_a_commit_are_inserted_by_one_statement_and_each_is_told_its_own[sqlite]",),
    ),
    Mutant(
        "2",
        "a mail only after the order's commit",
        "app/signal.py",
        "        record(event, source=source, owed=owed, event_id=event_id, origin=origin)\n",
        "        record(event, source=source, owed=owed, event_id=event_id, origin=origin)\n"
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
        "            self._postponed.clear()\n            with self._or_lost(error):\n",
        "            with self._or_lost(error):\n",
        (SIMULATION, f"{BUS}what_a_failing_receiver_published_is_gone[sqlite]"),
    ),
    # 3. A receiver's effects in the database happen exactly once
    Mutant(
        "3",
        "a receiver's effect and its delivery's end in one transaction",
        "app/bus/dispatcher.py",
        "        ends = self.database.transact("
        "lambda transaction: deliver_within(transaction, self.retries, self.invoker, held))\n",
        "        from app.bus.settle import _deliver\n"
        "        ends = self.database.transact(\n"
        "            lambda work: _deliver(work, self.retries, self.invoker, leases.lock_held(work, held))\n"
        "        )\n"
        "        self.database.transact(lambda work: leases.end(work, ends))\n",
        (SIMULATION, f"{KILLED_AT}[sqlite-inside-settle]"),
    ),
    Mutant(
        "3",
        "a savepoint around a batch's receivers",
        "app/bus/settle.py",
        "        with recording_savepoint(transaction):\n            return [_answered",
        "        if True:\n            return [_answered",
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
        "invoker, leases.lock_held(transaction, batch))\n",
        "invoker, batch)\n",
        (SIMULATION, f"{BUS}a_late_process_calls_no_receiver_with_a_session[sqlite-1]"),
    ),
    Mutant(
        "3",
        "on PostgreSQL, the leases that were looked up are locked",
        "app/bus/leases.py",
        "_is_one_of(count)).order_by(Delivery.delivery_id).with_for_update())",
        "_is_one_of(count)).order_by(Delivery.delivery_id))",
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
        "the fencing token in the ends of leases whose receivers succeeded",
        "app/bus/leases.py",
        '            Delivery.lease_token == bindparam("under_token"),\n'
        "            _is_one_of(count),\n        )\n        .values(\n            state=DeliveryState.DONE",
        "            _is_one_of(count),\n        )\n        .values(\n            state=DeliveryState.DONE",
        (SIMULATION,),
    ),
    Mutant(
        "3",
        "of a batch in which one receiver failed, the others run again",
        "app/bus/settle.py",
        "        return [*before, end, *_deliver(transaction, retries, invoker, held[place + 1 :])]\n",
        "        return [*before, end]\n",
        (f"{BUS}of_a_batch_only_what_failed_is_tried_again[sqlite]",),
    ),
    Mutant(
        "3",
        "the fencing token grows with each lease",
        "app/bus/leases.py",
        "        token=token if expired else token + 1,\n",
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
        "        if len(answers) == 1:\n",
        "        if len(answers) == 1 or isinstance(error, LeaseLost):\n",
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
        "            return leases.extend(transaction, held, self.lease, self.retries.extend_probe)\n",
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
        "        self._held.drop(lease for lease, holds in found.items() if not holds)\n",
        "",
        (SIMULATION, MODEL),
    ),
    Mutant(
        "3",
        "on PostgreSQL, a delivery that is being claimed is locked",
        "app/bus/leases.py",
        "    return first.with_for_update(of=Delivery, skip_locked=True)\n",
        "    return first\n",
        (f"{BUS}what_another_is_claiming_at_this_moment_is_passed_over[postgresql]",),
    ),
    Mutant(
        "3",
        "after a failure, each work that shared the commit runs by itself",
        "app/db/group_commit.py",
        "                if len(batch) > 1:\n                    self._separate(batch)\n",
        "                if False:\n                    self._separate(batch)\n",
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
        "app/bus/settle.py",
        "    return LeaseEnd(lease, DeliveryState.READY, Outcome.UNKNOWN, NO_RESULT)\n",
        "    return LeaseEnd(lease, DeliveryState.READY, None, NO_RESULT)\n",
        (SIMULATION, f"{OPERATE}an_unknown_attempt_is_repeated_by_default[sqlite]"),
    ),
    Mutant(
        "4",
        "an attempt that was made alone, and whose process did not come back, is charged",
        "app/bus/leases.py",
        "self.outcome is not None and (self.lease.in_doubt or not self.lease.expired)\n",
        "self.outcome is not None and not self.lease.expired\n",
        (f"{BUS}what_kills_its_process_each_time_is_given_up[sqlite]",),
    ),
    Mutant(
        "4",
        "each attempt is recorded",
        "app/bus/leases.py",
        '        insert_plain_attempts(len(plain))(transaction, {"now": transaction.now, **_ids(plain)})\n',
        "        pass\n",
        (SIMULATION,),
    ),
    Mutant(
        "3",
        "of a receiver that fails in the publishing transaction nothing stays",
        "app/bus/settle.py",
        "    if not isinstance(answer, Done):\n        raise _Undo(lease, answer)\n    return",
        "    return",
        (f"{PUBLISHED}where_it_does_not_succeed_it_is_tried_like_any_other",),
    ),
    Mutant(
        "4",
        "after a death nothing runs in the publishing transaction",
        "app/bus/outbox.py",
        " and not cause.in_doubt:",
        ":",
        (f"{PUBLISHED}after_a_death_it_waits_for_its_own_turn[sqlite]",),
    ),
    Mutant(
        "5",
        "an open breaker and a pause hold up what would run in the publishing transaction",
        "app/bus/settle.py",
        "if each.receiver not in probes and each.receiver not in paused]",
        "]",
        (f"{PUBLISHED}an_open_circuit_breaker_holds_it_up[sqlite]",),
    ),
    Mutant(
        "4",
        "leases run out",
        "app/bus/leases.py",
        'Delivery.due_at <= bindparam("now"), UNFINISHED, *which)',
        'Delivery.due_at <= bindparam("now"), UNFINISHED, Delivery.state == DeliveryState.READY, *which)',
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
        "app/engine/inprocess/unsettled.py",
        "                self._separate(answers)\n",
        "                self._settled(answers)\n",
        (f"{WORKER}the_dispatcher_outlives_a_database_that_goes_away[sqlite]",),
    ),
    Mutant(
        "4",
        "an answer that the database refuses is kept",
        "app/bus/settle.py",
        "transaction.dialect.trouble(error) is None and not isinstance(error, AppError)",
        "not isinstance(error, AppError)",
        (f"{TROUBLE}an_answer_that_a_trigger_refuses_waits_for_longer_than_its_lease[sqlite]",),
    ),
    Mutant(
        "4",
        "trouble that nobody has thought of is nobody's fault",
        "app/db/postgresql.py",
        "or (Trouble.SERVER,))[0]",
        "or (Trouble.STATEMENT,))[0]",
        (f"{TROUBLE}an_order_is_answered_as_the_table_says[45000-postgresql]",),
    ),
    Mutant(
        "4",
        "after trouble with the server no old connection is used",
        "app/db/database.py",
        '        if record.info["generation"] != self.generation:\n',
        "        if False:\n",
        (f"{TROUBLE}after_trouble_with_the_server_no_old_connection_is_used[postgresql]",),
    ),
    Mutant(
        "4",
        "a write that is surely right tells an answer's trouble from the database's",
        "app/bus/dispatcher.py",
        "                heartbeats.record(transaction, self.name, self._told)\n            holder ",
        "                pass\n            holder ",
        (f"{POSTGRES}a_server_that_only_reads_for_a_while_loses_nothing",),
    ),
    Mutant(
        "5",
        "a transaction that fails each time waits, also on Celery",
        "app/engine/celery/runner.py",
        "undone(error) if self._can_write(error) else NotBegun()\n",
        "NotBegun()\n",
        (
            "integration/test_engines.py::"
            "test_a_transaction_that_the_database_fails_each_time_waits_and_says_why[celery-postgresql]",
        ),
    ),
    Mutant(
        "5",
        "a Celery worker's process goes on where one answer can't be stored",
        "app/engine/celery/runner.py",
        "len(self._answers) >= MOST_UNSTORED:\n",
        "len(self._answers):\n",
        ("integration/test_engines.py::test_an_answer_that_cannot_be_stored_holds_up_no_other[celery-sqlite]",),
    ),
    Mutant(
        "4",
        "where many answers can't be stored, nothing more is claimed",
        "app/engine/inprocess/worker.py",
        "        if self._answers.separated >= MOST_UNSTORED:\n",
        "        if False:\n",
        (f"{TROUBLE}where_many_answers_cannot_be_stored_nothing_more_is_claimed[sqlite]",),
    ),
    Mutant(
        "3",
        "a transaction that is gone is run again",
        "app/db/transaction.py",
        "            raise TransactionLost from why or error\n",
        "            raise why or error from None\n",
        (f"{DATABASE}a_failure_in_a_transaction_that_is_gone_is_not_the_failures_alone[sqlite]",),
    ),
    Mutant(
        "4",
        "only a write tells that the database is back",
        "app/engine/inprocess/worker.py",
        "        self.dispatcher.heartbeat(self.at_work())\n        with self._lock:\n",
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
        "            self.abandon([lease])\n            lifecycle",
        "            lifecycle",
        (f"{BUS}a_lease_that_ran_out_before_it_was_begun_is_left_to_others[sqlite-True]",),
    ),
    Mutant(
        "4",
        "a lease that no thread has is not extended",
        "app/bus/dispatcher.py",
        "            held = [lease for lease in held if lease not in idle]\n",
        "",
        (f"{BUS}a_lease_that_no_thread_has_is_not_extended[sqlite]",),
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
        "str(end.outcome) if end.outcome else end.lease.outcome,\n",
        "str(end.outcome) if end.outcome else None,\n",
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
        "whatever a receiver raises is its own failure",
        "app/bus/invoke.py",
        "        except BaseException as error:  # foreign code may",
        "        except Exception as error:  # foreign code may",
        (f"{BUS}whatever_a_receiver_raises_is_its_own_failed_attempt[sqlite-CancelledError-False]",),
    ),
    Mutant(
        "5",
        "of whatever a receiver raises in a transaction, nothing stays",
        "app/db/transaction.py",
        "        except BaseException as error:  # SystemExit",
        "        except Exception as error:  # SystemExit",
        (f"{BUS}an_answer_that_raises_when_it_is_used_is_a_failed_attempt",),
    ),
    Mutant(
        "5",
        "an answer that can't be concluded fails alone",
        "app/bus/settle.py",
        "        if isinstance(answer, Failure) or transaction.dialect.is_transient(error):\n",
        "        if True:\n",
        (f"{BUS}an_answer_that_raises_when_it_is_used_is_a_failed_attempt",),
    ),
    Mutant(
        "5",
        "what a work raises is its own caller's",
        "app/db/group_commit.py",
        "            except BaseException as error:  # SystemExit",
        "            except Exception as error:  # SystemExit",
        (f"{GROUP}a_work_that_ends_its_thread_harms_neither_its_leader_nor_its_followers",),
    ),
    Mutant(
        "5",
        "what is in doubt is claimed alone",
        "app/bus/claim.py",
        "        chosen = chosen[:1] if self.alone else chosen\n",
        "",
        (SIMULATION, f"{BUS}what_was_claimed_together_with_a_killer_is_not_given_up_with_it[sqlite]"),
    ),
    Mutant(
        "5",
        "and not with what is not in doubt",
        "app/bus/claim.py",
        "if lease.in_doubt == self.alone and not lease.expired]",
        "if not lease.expired]",
        (SIMULATION, f"{BUS}what_was_claimed_together_with_a_killer_is_not_given_up_with_it[sqlite]"),
    ),
    Mutant(
        "5",
        "nothing else has just begun, or begins, beside what is in doubt",
        "app/bus/dispatcher.py",
        "        wanted = {} if self.rest_seconds(answers, alone=alone) else capacity\n",
        "        wanted = capacity\n",
        (f"{BUS}what_is_in_doubt_begins_while_nothing_else_does[sqlite]",),
    ),
    Mutant(
        "5",
        "what shared its process with others that died with it is not charged",
        "app/bus/leases.py",
        "self.outcome is not None and (self.lease.in_doubt or not self.lease.expired)\n",
        "self.outcome is not None\n",
        (SIMULATION, f"{BUS}what_was_claimed_together_with_a_killer_is_not_given_up_with_it[sqlite]"),
    ),
    Mutant(
        "5",
        "a receiver that does not return is written off",
        "app/engine/inprocess/watchdog.py",
        "            self._give_up_on(lease, seconds)\n",
        "            pass\n",
        (f"{WORKER}a_receiver_that_does_not_return_is_written_off[sqlite]",),
    ),
    Mutant(
        "5",
        "a receiver that hangs in a transaction ends the process",
        "app/engine/inprocess/watchdog.py",
        "        if is_transactional(lease):\n            others_can_settle",
        "        if False:\n            others_can_settle",
        (f"{WORKER}a_receiver_that_hangs_in_its_transaction_ends_the_process[sqlite]",),
    ),
    Mutant(
        "5",
        "a thread that ended by itself is replaced",
        "app/engine/inprocess/worker.py",
        "        self._replace_ended_threads()\n",
        "",
        (f"{WORKER}a_thread_that_ends_by_itself_is_replaced[sqlite]",),
    ),
    Mutant(
        "5",
        "a dispatcher whose own thread ended ends the process",
        "app/engine/inprocess/watchdog.py",
        "        if not (worker.alive or worker.stopping):\n",
        "        if False:\n",
        (f"{WORKER}a_dispatcher_whose_own_thread_ends_ends_the_process[sqlite]",),
    ),
    Mutant(
        "5",
        "while the process is stopped, nothing comes to hang",
        "app/engine/inprocess/stopwatch.py",
        "        self._now += min(self._last_look - last_look, 2 * LOOK_SECONDS)\n",
        "        self._now += self._last_look - last_look\n",
        ("unit/test_stopwatch.py::test_while_the_process_is_stopped_no_time_passes",),
    ),
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
        "app/bus/retries.py",
        "        return Admission(1, probe=True, why=why.PROBE)\n",
        "        return Admission(limit, probe=True)\n",
        (f"{BREAKER}only_one_dispatcher_gets_the_probe[sqlite]",),
    ),
    Mutant(
        "5",
        "and no other before that one ends",
        "app/bus/retries.py",
        '        breaker.MOVE_PROBE(transaction, {"name": receiver, "at": transaction.now + lease})\n',
        "",
        (f"{BREAKER}only_one_dispatcher_gets_the_probe[sqlite]",),
    ),
    Mutant(
        "5",
        "on PostgreSQL, the breaker's row is locked while a probe is taken",
        "app/bus/breaker.py",
        "    .with_for_update()\n    .subquery",
        "    .subquery",
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
        "a probe's wait is extended with its lease",
        "app/bus/leases.py",
        "                if one.probe and found[one]:\n",
        "                if False:\n",
        (f"{BREAKER}a_probe_that_runs_for_longer_than_a_lease_stays_the_only_one[sqlite]",),
    ),
    Mutant(
        "5",
        "a due time further ahead than any wait is not believed",
        "app/engine/inprocess/worker.py",
        "            self.dispatcher.pull_back()\n",
        "",
        (f"{WRONG_CLOCK}a_dispatcher_looks_by_itself_when_it_starts[sqlite]",),
    ),
    Mutant(
        "5",
        "a lease from a time to come is left to a holder that lives",
        "app/bus/leases.py",
        "(DeliveryState.LEASED, lease, now + lease))",
        "(DeliveryState.LEASED, lease, now))",
        (f"{WRONG_CLOCK}a_living_processs_lease_is_not_taken_from_it[sqlite]",),
    ),
    Mutant(
        "5",
        "a probe that was lost with its process is followed by another",
        "app/bus/retries.py",
        '"at": transaction.now + lease}',
        '"at": transaction.now + 1000 * lease}',
        (f"{BREAKER}a_probe_whose_process_died_is_followed_by_another[sqlite]",),
    ),
    Mutant(
        "5",
        "a probe that finds nothing due is given back",
        "app/bus/retries.py",
        "        if admission.probe and not count:\n",
        "        if False:\n",
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
        "    session.execute(due.values(due_at=now, due_because=why.CLOSED))\n",
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
        "by the learned policy, too, an open breaker lets one probe through",
        "app/bus/learned_retries.py",
        "            gate.start(seconds(transaction.now), count, lease.total_seconds())\n",
        "",
        (f"{LEARNED}two_dispatchers_share_one_probe[sqlite]",),
    ),
    Mutant(
        "5",
        "on PostgreSQL, a gate's row is locked while a probe is taken",
        "app/bus/gates.py",
        "_locked = _holding.with_for_update().subquery",
        "_locked = _holding.subquery",
        (f"{LEARNED}two_that_claim_at_once_share_one_probe[postgresql]",),
    ),
    Mutant(
        "5",
        "successes through a gate that holds others back are told to it",
        "app/bus/learned_retries.py",
        "        noted = gate.succeed(seconds(lease.leased_at), seconds(transaction.now), probe=lease.probe)\n",
        "        return\n",
        (f"{LEARNED}an_outage_of_90_seconds_costs_few_attempts_and_all_drain_when_it_ends[sqlite]",),
    ),
    Mutant(
        "5",
        "the messages of a run that proved an outage wait at the gate",
        "app/bus/learned_retries.py",
        "            transaction.session.execute(moved.values(**behind, **_columns(None)))\n",
        "",
        (f"{LEARNED}what_proved_the_outage_waits_at_the_gate[sqlite]",),
    ),
    Mutant(
        "5",
        "a table that can't be read is ignored",
        "app/bus/learning.py",
        "        if widths != {BUCKETS} or len(entry.plan) not in (1, len(LEVELS)):\n",
        "        if False:\n",
        (f"{LEARNING}garbage_in_the_table_is_ignored_with_a_log_line[sqlite-short]",),
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
        "            if self.stopping or pool.stalled or self.dispatcher.in_doubt_waits:\n",
        "            if not self.stopping and (pool.stalled or self.dispatcher.in_doubt_waits):\n",
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
        "            if self.stopping or pool.stalled or self.dispatcher.in_doubt_waits:\n",
        "            if self.stopping or self.dispatcher.in_doubt_waits:\n",
        (f"{WORKER}what_was_prefetched_is_given_back_behind_one_that_hangs[sqlite]",),
    ),
    Mutant(
        "5",
        "the most overdue first",
        "app/bus/leases.py",
        "FIND_DUE = _find_due(order=_oldest_first)",
        "FIND_DUE = _find_due(order=(Delivery.delivery_id,))",
        (f"{BUS}what_failed_waits_behind_what_was_not_tried[sqlite]",),
    ),
    Mutant(
        "5",
        "works lock rows in one order",
        "app/db/database.py",
        'sorted(take_works(), key=lambda work: work.lock_order or "")',
        "take_works()",
        (f"{COMMITS}works_lock_rows_in_one_order_whichever_came_first[sqlite]",),
    ),
    Mutant(
        "5",
        "on PostgreSQL, an answer that does not come is given up",
        "app/db/answer_deadline.py",
        "            if time.monotonic() > end:\n",
        "            if False:\n",
        (f"{DEAD}an_answer_that_does_not_come_is_given_up",),
    ),
    Mutant(
        "5",
        "on PostgreSQL, all answers of a request have one deadline",
        "app/db/database.py",
        "        with NO_DEADLINE if lock_order is None else self.dialect.deadline(self.timeout):\n",
        "        with NO_DEADLINE:\n",
        (f"{DEAD}all_answers_of_a_request_have_one_deadline",),
    ),
    Mutant(
        "5",
        "a work whose time is up when its commit fails is not tried again",
        "app/db/group_commit.py",
        "                        self._give_up(batch[0], trouble, self._admission.is_overdue)\n",
        "                        pass\n",
        (f"{GROUP}works_whose_time_was_up_when_their_commit_failed_are_not_tried_again",),
    ),
    Mutant(
        "5",
        "a stop does not wait for a database that never answers",
        "app/engine/inprocess/worker.py",
        "signing_off.join(SIGN_OFF_SECONDS)",
        "signing_off.join()",
        (f"{DEAD}a_stop_ends_though_the_database_never_answers",),
    ),
    Mutant(
        "5",
        "orders share a commit in the order of their ids",
        "app/orders/intake.py",
        "lock_order=event.order_id",
        "lock_order=event.user_id",
        (f"{LOCKS}duplicates_over_two_servers_deadlock_nowhere",),
    ),
    Mutant(
        "5",
        "users' rows are locked after all orders of the commit",
        "app/orders/records.py",
        "transaction.postpone(user_id, partial(set_email, transaction, user_id, email))",
        "set_email(transaction, user_id, email)",
        (f"{LOCKS}a_users_row_is_locked_after_all_orders_of_the_commit",),
    ),
    Mutant(
        "5",
        "postponed writes lock rows in one order",
        "app/db/transaction.py",
        "sorted(self._postponed.writes, key=itemgetter(0))",
        "self._postponed.writes",
        (f"{COMMITS}postponed_writes_come_last_and_in_one_order[sqlite]",),
    ),
    Mutant(
        "5",
        "on PostgreSQL, one process at a time runs transactional receivers of one user",
        "app/bus/settle.py",
        "    transaction.dialect.lock_keys(transaction.driver, [lease.user_id for lease in batch])\n",
        "",
        (f"{LOCKS}transactional_receivers_of_one_user_run_in_one_process_at_a_time",),
    ),
    Mutant(
        "5",
        "leases are extended in the order in which they are settled",
        "app/bus/leases.py",
        "sorted(leases, key=LOCK_ORDER)",
        "leases",
        (f"{LOCKS}leases_are_locked_in_the_order_of_their_numbers",),
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
        "ordered",
        "of a key, a delivery waits behind those that came before it",
        "app/bus/leases.py",
        "select(Delivery.delivery_id, Delivery.ordering_key, WAITS_BEHIND)",
        'select(Delivery.delivery_id, Delivery.ordering_key, text("NULL"))',
        (f"{ORDERED}of_one_key_one_delivery_is_under_way_at_a_time[sqlite]",),
    ),
    Mutant(
        "ordered",
        "it waits for one that runs, though that came later",
        "app/bus/leases.py",
        "_other.c.delivery_id != Delivery.delivery_id",
        "_other.c.delivery_id < Delivery.delivery_id",
        (f"{ORDERED}one_that_a_person_retries_waits_for_what_runs_and_comes_before_what_does_not[sqlite]",),
    ),
    Mutant(
        "ordered",
        "the end of a delivery releases the next of its key",
        "app/bus/leases.py",
        "        release(transaction, [(lease.receiver, lease.ordering_key) for lease in ordered])\n",
        "        pass\n",
        (f"{ORDERED}the_next_is_due_in_the_transaction_that_ends_the_one_before[sqlite]",),
    ),
    Mutant(
        "ordered",
        "so does a person who discards one",
        "app/bus/operate.py",
        "        release_next(transaction, list(touched))\n",
        "",
        (f"{ORDERED}one_that_a_person_discards_lets_the_next_one_go[sqlite]",),
    ),
    Mutant(
        "ordered",
        "on PostgreSQL, one transaction at a time claims of a key",
        "app/bus/leases.py",
        "    had = transaction.dialect.try_lock_keys(transaction.driver, names.values())\n",
        "    had = set(names.values())\n",
        (f"{LATE}[after it has looked-postgresql]",),
    ),
    Mutant(
        "ordered",
        "and once it has the key, it looks again",
        "app/bus/leases.py",
        "    return {number: keys[number] for number in locked if number in still}\n",
        "    return {number: keys[number] for number in locked}\n",
        (f"{LATE}[before it looks again-postgresql]",),
    ),
    Mutant(
        "move",
        "nobody else has the file open while it is copied",
        "app/db/move.py",
        "PRAGMA locking_mode = EXCLUSIVE",
        "PRAGMA locking_mode = NORMAL",
        (f"{MOVE}a_service_that_runs_is_not_moved",),
    ),
    Mutant(
        "move",
        "what was copied is counted and summed before the commit",
        "app/db/move.py",
        "        if here[name] != value:\n",
        "        if False:\n",
        (f"{MOVE}a_copy_that_differs_is_not_kept",),
    ),
    Mutant(
        "move",
        "no number is given twice",
        "app/db/move.py",
        "        _continue_numbers(reader, connection, table)\n",
        "",
        (f"{MOVE}no_number_is_given_twice_even_where_the_newest_were_pruned",),
    ),
    Mutant(
        "5",
        "an answer that can't be stored holds up no other",
        "app/bus/settle.py",
        "        if len(answers) == 1:\n            return _settle_otherwise",
        "        if len(answers) != 1:\n            raise\n        if answers:\n            return _settle_otherwise",
        (f"{TROUBLE}an_answer_that_cannot_be_stored_spoils_none_that_is_settled_with_it[sqlite]",),
    ),
    Mutant(
        "5",
        "a row that can't be written keeps no other lease from being extended",
        "app/bus/leases.py",
        "    except Exception:\n        if len(leases) == 1:\n            return {}\n",
        "    except Exception:\n        if leases:\n            raise\n",
        (f"{TROUBLE}a_row_that_cannot_be_written_keeps_no_other_lease_from_being_extended[sqlite]",),
    ),
    Mutant(
        "5",
        "on PostgreSQL, a locked row is given up on",
        "app/db/postgresql.py",
        '            "lock_timeout": milliseconds(min(timeout_seconds, LOCK_TIMEOUT_SECONDS)),\n',
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
        "5",
        "on PostgreSQL, a dead network is given up in time for another try",
        "app/db/postgresql.py",
        "    return max(timeout_seconds / 2, min(timeout_seconds, 1.0))\n",
        "    return timeout_seconds\n",
        (f"{NETWORK}connections_that_a_firewall_forgot_are_noticed_in_time",),
    ),
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
        "behind a pooler, a listener finds out whether it hears",
        "app/db/postgresql.py",
        "                self._hears = listener.hears(LISTEN_PROBE_SECONDS)\n",
        "                pass\n",
        (f"{POSTGRES}a_listener_behind_pgbouncer_finds_out_whether_it_hears[transaction]",),
    ),
    Mutant(
        "6",
        "on PostgreSQL, a listener that hears nothing asks whether its server is there",
        "app/engine/inprocess/wakeup.py",
        "            elif is_due:\n",
        "            elif False:\n",
        (f"{DEAD}a_listener_that_will_never_hear_again_is_replaced",),
    ),
    Mutant(
        "6",
        "on PostgreSQL, a dispatcher looks when it has begun to listen",
        "app/engine/inprocess/wakeup.py",
        "        return self._listener is not None\n",
        "        return False\n",
        (f"{DEAD}a_listener_that_will_never_hear_again_is_replaced",),
    ),
    Mutant(
        "6",
        "the first look, at the start",
        "app/engine/inprocess/worker.py",
        "        while self._signed_on and not self._is_done():\n",
        "        self.wakeup.wait(self.poll_seconds)\n        while self._signed_on and not self._is_done():\n",
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
        "        StoredEvent.occurred_at < cutoff, StoredEvent.position > last, ~still_needed\n    )\n"
        "    if end is not None:\n",
        "        StoredEvent.position > last, ~still_needed\n    )\n    if False:\n",
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
        "a retry spares what runs and what is done",
        "app/bus/operate.py",
        '"retry": (DeliveryState.DEAD, DeliveryState.READY, DeliveryState.DISCARDED),',
        '"retry": tuple(DeliveryState),',
        (f"{ACTS}what_runs_is_spared[sqlite]",),
    ),
    Mutant(
        "7",
        "a retry begins a new budget",
        "app/bus/operate.py",
        '"attempts": 0, "outcome": None, "settled_at": None}',
        '"outcome": None, "settled_at": None}',
        (f"{BUS}a_dead_delivery_is_retried_with_a_new_budget_and_its_attempts_stay[sqlite]",),
    ),
    Mutant(
        "7",
        "a retry of what waits leaves in doubt what is in doubt",
        "app/bus/operate.py",
        '_update(transaction, waiting, {"due_at": now, "due_because": why.ASKED_FOR}, ',
        '_update(transaction, waiting, DUE_ANEW | {"due_at": now}, ',
        (f"{ACTS}one_in_doubt_stays_in_doubt_and_no_copy_is_forgotten[sqlite]",),
    ),
    Mutant(
        "7",
        "what was discarded is retried only when asked for",
        "app/bus/operate.py",
        "UNASKED = (DeliveryState.DEAD, DeliveryState.READY)",
        "UNASKED = (DeliveryState.DEAD, DeliveryState.READY, DeliveryState.DISCARDED)",
        (f"{ACTS}waiting_and_dead_ones_are_retried_and_discarded_ones_when_asked_for[sqlite]",),
    ),
    Mutant(
        "7",
        "a claim reads the pause",
        "app/bus/retries.py",
        "        if (None,) in found or utc(found[0][0]) > transaction.now:\n",
        "        if found[0][0] is None:\n            return Admission(limit)\n"
        "        if utc(found[0][0]) > transaction.now:\n",
        (f"{PAUSE}nothing_is_delivered_to_a_paused_receiver_and_all_to_the_others[sqlite]",),
    ),
    Mutant(
        "7",
        "on PostgreSQL, a pause waits for the claims that began before it",
        "app/bus/pause.py",
        "    transaction.dialect.lock_table(transaction.driver, CircuitBreaker.__tablename__)\n",
        "",
        (f"{PAUSE}a_pause_waits_for_the_claims_that_began_before_it[postgresql]",),
    ),
    Mutant(
        "7",
        "what was claimed ahead of a pause is given back",
        "app/engine/inprocess/worker.py",
        "            self._take_back_paused(self.dispatcher.paused)\n",
        "            pass\n",
        (f"{PAUSE}what_was_claimed_ahead_is_given_back_at_once[sqlite]",),
    ),
    Mutant(
        "7",
        "a delivery that waits is touched when its order's address is put right",
        "app/orders/emails.py",
        "        leases.touch(transaction, order_id)\n",
        "",
        (f"{ADDRESSES}the_first_try_goes_there_too[sqlite-ann@exmaple.com]",),
    ),
    Mutant(
        "7",
        "what is replayed counts as touched",
        "app/bus/replay.py",
        '"attempts": 0, "lease_token": 1}',
        '"attempts": 0, "lease_token": 0}',
        (f"{ADDRESSES}what_is_replayed_goes_there[sqlite]",),
    ),
    Mutant(
        "7",
        "on PostgreSQL, what is replayed is not forgotten at that moment",
        "app/bus/prune.py",
        "    session.execute(select(StoredEvent.position).where(StoredEvent.event_id.in_(ids)).with_for_update())\n",
        "",
        (f"{REPLAY}what_is_replayed_at_this_moment_is_not_forgotten[postgresql]",),
    ),
    Mutant(
        "7",
        "a discard spares what runs",
        "app/bus/operate.py",
        '"discard": (DeliveryState.DEAD, DeliveryState.READY),',
        '"discard": (DeliveryState.DEAD, DeliveryState.READY, DeliveryState.LEASED),',
        (f"{ACTS}what_runs_is_spared[sqlite]",),
    ),
    Mutant(
        "7",
        "an act spares what was tried since it was counted",
        "app/bus/operate.py",
        "if row.lease_token == counted[row.delivery_id]",
        "if row.delivery_id in counted",
        (f"{ACTS}what_came_after_the_count_is_not_touched[sqlite]",),
    ),
    Mutant(
        "7",
        "on PostgreSQL, a person's act locks what it has chosen",
        "app/bus/operate.py",
        ".with_for_update(of=Delivery)",
        "",
        (f"{OPERATE}what_a_person_discards_at_this_moment_is_not_claimed[postgresql]",),
    ),
    Mutant(
        "7",
        "every act of a person is recorded",
        "app/bus/operate.py",
        "deliveries=OperatorAct.deliveries + len(touched)",
        "deliveries=OperatorAct.deliveries",
        (f"{OPERATE}an_act_is_recorded_with_when_who_what_why_and_how_many[sqlite]",),
    ),
    Mutant(
        "7",
        "two processes at one act touch nothing twice",
        "app/bus/operate.py",
        "touched = {number: untried[number] for number in keep_before(transaction, act_id, untried)}",
        "touched = untried if keep_before(transaction, act_id, untried) is not None else {}",
        (f"{ACTS}two_processes_that_go_on_with_it_touch_nothing_twice[sqlite]",),
    ),
    Mutant(
        "7",
        "an abort spares what was tried",
        "app/bus/acts.py",
        "Delivery.state == DeliveryState.READY, ~_tried, ~_touched_later)",
        "Delivery.state == DeliveryState.READY, ~_touched_later)",
        (f"{ACTS}what_failed_since_stays[sqlite]",),
    ),
    Mutant(
        "7",
        "an abort spares what a later act touched",
        "app/bus/acts.py",
        "~_tried, ~_touched_later)",
        "~_tried)",
        (f"{ACTS}what_a_later_act_touched_is_that_acts[sqlite]",),
    ),
    Mutant(
        "7",
        "on PostgreSQL, an abort looks again at what it has locked",
        "app/bus/acts.py",
        'query = _takeable(act_id, ActDelivery.delivery_id.label("number"), *columns)',
        'query = select(ActDelivery.delivery_id.label("number"), *columns).where(ActDelivery.act_id == act_id)',
        (f"{ACTS}what_is_tried_at_this_moment_is_not_taken_back[postgresql]",),
    ),
    # Readiness
    Mutant(
        "–",
        "a receiver that hangs makes the service unready",
        "app/bus/troubles.py",
        "if lease and self.now - lease.leased_at > self.lag else None",
        "if lease and False else None",
        (f"{READY}a_receiver_that_hangs[sqlite]",),
    ),
    Mutant(
        "–",
        "a receiver that is missing makes the service unready",
        "app/bus/troubles.py",
        "            return self._missing(queue) if waits else None\n",
        "            return None\n",
        (f"{READY}a_receiver_that_is_missing[sqlite]",),
    ),
    Mutant(
        "–",
        "a backend that is down makes the service unready, though nothing is overdue",
        "app/bus/troubles.py",
        "        if breaker and self.now - breaker.opened_at > self.lag:\n",
        "        if breaker and False:\n",
        (f"{READY}a_backend_that_is_down[sqlite]",),
    ),
    Mutant(
        "–",
        "a heartbeat from before the clock was set back counts for nothing",
        "app/bus/queries.py",
        "    is_near = now - silence < heartbeat.seen_at < now + silence\n",
        "    is_near = now - silence < heartbeat.seen_at\n",
        (f"{READY}a_clock_that_was_set_back[sqlite]",),
    ),
    Mutant(
        "–",
        "whether the database takes a write is tried",
        "app/bus/watch.py",
        "                look.readiness = self._write(look.readiness)\n",
        "                pass\n",
        (f"{READY}whether_it_can_be_written_is_tried_only_where_nobody_here_wrote[sqlite]",),
    ),
    Mutant(
        "–",
        "each change of readiness is reported once",
        "app/bus/watch.py",
        "        self._reported.update({(trouble.cause, trouble.receiver): trouble for trouble in began})\n",
        "",
        (f"{READY}each_change_is_reported_once_however_often_somebody_asks[sqlite]",),
    ),
    Mutant(
        "–",
        "readiness is answered in time, whatever the database does",
        "app/bus/watch.py",
        "        if look.ended.wait(max(0.0, ANSWER_SECONDS - waited)):\n",
        "        if look.ended.wait():\n",
        ("unit/test_watch.py::test_a_silent_database_is_told_in_time_to_all_who_ask",),
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
        "case((_is_latest, value), else_=table(User).c[name])",
        "value",
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
