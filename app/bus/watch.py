"""Watch: is the service ready, and if not, why? It answers in time whatever the database does, and logs changes."""

import os
import socket
import threading
import time
from dataclasses import replace

from sqlalchemy.exc import DBAPIError

from app.bus import heartbeats, lifecycle, queries
from app.bus.troubles import DISPATCHING, MOST_COUNTED, Cause, Outage, Readiness, Trouble, examine
from app.db import Database
from app.errors import AppError, DatabaseUnavailable
from app.signal import subscriptions
from app.translatable import Translatable
from config import Settings

ANSWER_SECONDS = 3.0
"""A database that answers later than this counts as one that does not answer."""

LONGEST_PAUSE_SECONDS = 5.0
"""Between the looks of a process that dispatches."""

WRITTEN_SECONDS = 15.0
"""A process that committed within so long need not try to write. It is longer than a dispatcher's pause between
heartbeats, so only a process that serves, and had no order, tries."""

GRACE_SECONDS = 5.0
"""After the process' start, and after an outage of the database, dispatchers have so long to come back before it is
reported that none is alive, or that deliveries are overdue."""

STILL_SECONDS = 60.0
"""Between lines about an outage that lasts."""

SEE_TO_THE_DATABASE = Translatable("see that it runs, and that DATABASE_URL names it")
SEE_TO_WRITING = Translatable(
    "see that its disk has room, that this service may write, and that DATABASE_URL names the primary"
)


class _Look:
    """One look at the database, in a thread of its own: the database may keep it waiting."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.ended = threading.Event()
        self.readiness = Readiness(is_complete=False)
        """The latest result."""
        self.writes = False
        """Whether all was read, and it tries to write."""


class Watch:
    """One for each application. For any thread."""

    def __init__(self, database: Database, settings: Settings, *, sender: object) -> None:
        """``sender`` is that of the lifecycle signals."""
        lag = settings.ready_lag_seconds
        self.database = database
        self.pause_seconds = min(lag / 2, LONGEST_PAUSE_SECONDS)
        self._settings = settings
        self._written_seconds = min(lag / 2, WRITTEN_SECONDS)
        self._sender = sender
        self.after_fork()

    def after_fork(self) -> None:
        """The parent's threads are not here."""
        self._lock = threading.Lock()
        self._latest: _Look | None = None
        self._reported: dict[tuple[Cause, str | None], Trouble] = {}
        self._outages: dict[str, Outage] = {}
        """Of receivers' backends, as they were seen last."""
        self._told_at: dict[str, float] = {}
        """When the outage was last told of, by the monotonic clock."""
        self._grace_ends = time.monotonic() + GRACE_SECONDS

    def look(self) -> Readiness:
        """Whether the service is ready now, or why not. Answers within ANSWER_SECONDS; raises nothing."""
        return self._answer(self._look())

    def look_and_report(self) -> Readiness:
        """Look, and report by lifecycle signals which troubles began and ended since this process last did."""
        look = self._look()
        readiness = self._answer(look)
        with self._lock:
            began, ended = self._changes(readiness) if look is self._latest else ([], [])
        for trouble in began:
            lifecycle.report(lifecycle.trouble_began, self._sender, trouble=trouble)
        for trouble in ended:
            lifecycle.report(lifecycle.trouble_ended, self._sender, trouble=trouble)
        return readiness

    def run(self, stopped: threading.Event, dispatcher: str) -> None:
        """Check and report now and then, until the event is set. Of the living dispatchers the first by name logs
        backends' outages: one line for all processes.
        """
        while not stopped.wait(self.pause_seconds):
            self.report_outages(self.look_and_report(), dispatcher)

    def report_outages(self, readiness: Readiness, dispatcher: str) -> None:
        """Report by lifecycle signals which backends were lost, are lost still, and are back. For one thread."""
        if not readiness.is_complete:
            return
        tells = dispatcher == min((each.name for each in readiness.dispatchers), default=dispatcher)
        present = {outage.receiver: outage for outage in readiness.outages}
        for receiver in self._outages.keys() - present.keys():
            outage = self._outages.pop(receiver)
            if tells:
                self._report_back(outage)
        for receiver, outage in present.items():
            known = receiver in self._outages
            self._outages[receiver] = outage
            now = self.database.clock.monotonic()
            if known and (now - self._told_at[receiver] < STILL_SECONDS or not outage.waiting):
                continue
            self._told_at[receiver] = now
            if tells:
                signal = lifecycle.backend_still_lost if known else lifecycle.backend_lost
                lifecycle.report(signal, self._sender, outage=outage)

    def _report_back(self, outage: Outage) -> None:
        lasted = self.database.clock.now() - outage.since
        try:
            with self.database.read() as session:
                waiting = queries.count_unfinished(session, outage.receiver, MOST_COUNTED)
        except (DatabaseUnavailable, DBAPIError):
            waiting = outage.waiting
        lifecycle.report(lifecycle.backend_back, self._sender, outage=outage, lasted=lasted, waiting=waiting)

    # One look for all who ask at the same time

    def _look(self) -> _Look:
        with self._lock:
            if self._latest is None or self._latest.ended.is_set():
                self._latest = _Look()
                threading.Thread(target=self._examine, args=[self._latest], name="readiness", daemon=True).start()
            return self._latest

    def _answer(self, look: _Look) -> Readiness:
        waited = time.monotonic() - look.began
        if look.ended.wait(max(0.0, ANSWER_SECONDS - waited)):
            return look.readiness
        found, silent = look.readiness, f"{time.monotonic() - look.began:.0f} s"
        if look.writes and (trouble := self.database.trouble):
            return _unwritable(found, *_unwritten(trouble))
        if look.writes:
            text = Translatable("the database can be read, but has not taken a write for %(time)s", time=silent)
            return _unwritable(found, text.then(SEE_TO_WRITING))
        text = Translatable("the database has not answered for %(time)s", time=silent)
        return _with(found, Trouble(Cause.DATABASE_UNREACHABLE, text.then(SEE_TO_THE_DATABASE)))

    def _examine(self, look: _Look) -> None:
        try:
            look.readiness = self._read()
            if look.readiness.is_complete:
                look.writes = True
                look.readiness = self._write(look.readiness)
        except Exception as error:
            text = Translatable("the check of readiness itself failed; /readyz logs its traceback")
            look.readiness = _with(look.readiness, Trouble(Cause.CHECK_FAILED, text, repr(error), error=error))
        finally:
            look.ended.set()

    def _read(self) -> Readiness:
        nothing = Readiness(is_complete=False)
        try:
            self.database.check_schema()
            with self.database.read() as session:
                return examine(session, self.database.clock.now(), self._settings, subscriptions())
        except (DatabaseUnavailable, DBAPIError) as error:
            words, detail = _words(error, SEE_TO_THE_DATABASE)
            text = Translatable("the database can't be read: %(words)s", words=words)
            return _with(nothing, Trouble(Cause.DATABASE_UNREACHABLE, text, detail))
        except AppError as error:
            return _with(nothing, Trouble(Cause.SCHEMA_DIFFERS, str(error)))

    def _write(self, found: Readiness) -> Readiness:
        """Only a write tells: a database on a full disk, and a standby, can be read.

        Where none can be made, no dispatcher can say that it is alive, nor end a delivery: that is told alone.
        """
        if self.database.clock.monotonic() - self.database.written_at < self._written_seconds:
            return found
        name = f"write probe of {socket.gethostname()}:{os.getpid()}"
        try:
            self.database.transact(lambda transaction: heartbeats.probe(transaction, name))
        except (DatabaseUnavailable, DBAPIError) as error:
            return _unwritable(found, *_unwritten(error))
        return found

    # Changes

    def _changes(self, readiness: Readiness) -> tuple[list[Trouble], list[Trouble]]:
        """Which troubles began and which ended. Called under the lock."""
        if not readiness.is_complete:
            self._grace_ends = time.monotonic() + GRACE_SECONDS
        too_early = DISPATCHING if time.monotonic() < self._grace_ends else ()
        present = {(each.cause, each.receiver): each for each in readiness.troubles if each.cause not in too_early}
        began = [trouble for key, trouble in present.items() if key not in self._reported]
        over = self._reported.keys() - present.keys() if readiness.is_complete else set()
        ended = [self._reported.pop(key) for key in over]
        self._reported.update({(trouble.cause, trouble.receiver): trouble for trouble in began})
        return began, ended


def _with(readiness: Readiness, trouble: Trouble) -> Readiness:
    return replace(readiness, troubles=(trouble, *readiness.troubles))


def _unwritable(found: Readiness, text: str, detail: str = "") -> Readiness:
    return replace(found, troubles=(Trouble(Cause.DATABASE_UNWRITABLE, text, detail),), is_complete=False)


def _unwritten(error: DatabaseUnavailable | DBAPIError) -> tuple[str, str]:
    words, detail = _words(error, SEE_TO_WRITING)
    return Translatable("the database can be read, but not written: %(words)s", words=words), detail


def _words(error: DatabaseUnavailable | DBAPIError, cure: str) -> tuple[str, str]:
    """The database's words that anybody may read, with the cure, and those that may name hosts and users.

    ``cure`` is told where the error names none of its own.
    """
    if isinstance(error, DBAPIError):  # refused for a reason that nobody foresaw, such as a missing privilege
        cause, error = error, DatabaseUnavailable(cure=cure)
        error.__cause__ = cause
    error.cure = error.cure or cure
    public = error.public_reason
    return (public, "") if public is not None else (Translatable("it gives no connection").then(cure), error.reason)
