"""The WSGI application with one failpoint armed: ``gunicorn tests.support.failpoints:app`` with FAILPOINT=name[:nth].

The process kills itself (SIGKILL: nothing is flushed, no handler runs) when it passes the named point for the nth
time. The application knows nothing of this: its own functions are wrapped from here.
"""

import os
import signal
import threading
from collections.abc import Callable
from typing import Any

from alembic import op

from app import mail
from app.bus import dispatcher, leases
from app.db import Database
from app.db.group_commit import Work

POINTS = ("before-commit", "after-commit", "after-claim", "after-send", "inside-settle", "during-upgrade")

_armed, _, _nth = os.environ.get("FAILPOINT", "").partition(":")
_left = int(_nth or "1")
_lock = threading.Lock()


def reach(point: str) -> None:
    global _left
    if point != _armed:
        return
    with _lock:
        _left -= 1
        if _left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


def _wrap(owner: Any, name: str, before: str | None = None, after: str | None = None) -> None:
    original: Callable[..., Any] = getattr(owner, name)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if before:
            reach(before)
        result = original(*args, **kwargs)
        if after:
            reach(after)
        return result

    setattr(owner, name, wrapped)


def _commits_of_orders(run_batch: Callable[..., None], commit: Callable[..., None]) -> tuple[Callable[..., None], ...]:
    """Only commits that store an order count, not those of the dispatcher."""
    thread = threading.local()

    def remember_works(database: Database, take_works: Callable[[], list[Work]]) -> None:
        def taken() -> list[Work]:
            thread.works = take_works()
            return thread.works

        run_batch(database, taken)

    def reach_points(database: Database, connection: Any) -> None:
        recorded = [event.type for work in thread.works for event in work.facts.get("recorded", ())]
        if "OrderCreated" in recorded:
            reach("before-commit")
        commit(database, connection)
        if "OrderCreated" in recorded:
            reach("after-commit")

    return remember_works, reach_points


def _claim_of_some(settle_and_claim: Callable[..., Any]) -> Callable[..., Any]:
    """It is called also where there is nothing to claim."""

    def wrapped(*arguments: Any, **how: Any) -> Any:
        ends, claimed, unstored = settle_and_claim(*arguments, **how)
        if claimed:
            reach("after-claim")
        return ends, claimed, unstored

    return wrapped


def _end_of_some(end: Callable[..., None]) -> Callable[..., None]:
    """It is called also where there is nothing to end."""

    def wrapped(transaction: Any, ends: list[Any]) -> None:
        end(transaction, ends)
        if ends:
            reach("inside-settle")

    return wrapped


assert not _armed or _armed in POINTS, f"FAILPOINT is {_armed!r}; it must be one of {POINTS}"
Database.run_batch, Database.commit = _commits_of_orders(  # type: ignore[method-assign]
    Database.run_batch, Database.commit
)
dispatcher.Dispatcher.settle_and_claim = _claim_of_some(  # type: ignore[method-assign]
    dispatcher.Dispatcher.settle_and_claim
)
_wrap(mail.Mailer, "send", after="after-send")
leases.end = _end_of_some(leases.end)
_wrap(op, "create_table", after="during-upgrade")

from wsgi import app  # noqa: E402 - the wrapping comes first

__all__ = ["POINTS", "app"]
