"""Log lines have their home here: the bus reports facts as signals, and this file chooses level and words.

What strangers wrote stands in many of them: a mail server's reply, an exception's message. So no line shows an e-mail
address in full, nor lets a character through that ends the line or moves a terminal's cursor. The database keeps all.
"""

import contextlib
import json
import logging
import re
import sys
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from select import PIPE_BUF
from typing import Any, TextIO

from app.bus import lifecycle as signals
from app.bus.leases import Lease, LeaseEnd
from app.bus.operate import Filter
from app.bus.outbox import Recorded
from app.errors import DatabaseUnavailable
from app.text import masked
from config import Settings

_PLAIN = re.compile("[A-Za-z0-9._:/,+-]+").fullmatch
"""What most values consist of, and what needs no second look."""

_UNCLEAR = re.compile(r"""[\s="']""")


def init(settings: Settings) -> None:
    """Choose how lines look, and listen to what buses report."""
    configure(settings)
    for name, listener in LISTENERS.items():
        signals.lifecycle[name].connect(listener)


class Log:
    """Writes a line for each fact. Every order passes here several times, so it is made of little."""

    def __init__(self, stream: TextIO, level: str, *, as_json: bool) -> None:
        self.stream = stream
        self.level = logging.getLevelNamesMapping()[level]
        self.as_json = as_json

    def info(self, message: str, **facts: Any) -> None:
        if self.level <= logging.INFO:
            self.write("info", message, facts)

    def warning(self, message: str, **facts: Any) -> None:
        if self.level <= logging.WARNING:
            self.write("warning", message, facts)

    def error(self, message: str, error: BaseException | None = None, **facts: Any) -> None:
        self.write("error", message, facts, error)

    def write(self, level: str, message: str, facts: dict[str, Any], error: BaseException | None = None) -> None:
        self.put(self.line(level, message, facts, error))

    def put(self, *lines: str) -> None:
        """Write lines at once, in pieces that a pipe takes whole: nothing of another process' comes between."""
        pieces = [""]
        for line in lines:
            if len(pieces[-1]) + len(line) >= PIPE_BUF:
                pieces.append("")
            pieces[-1] += f"{line}\n"
        # A full disk, a pipe that nobody reads, a stream that was closed: what the line tells of has happened all the
        # same. An error from here would answer 500 to an order that is stored, and end the threads that deliver.
        with contextlib.suppress(OSError, ValueError):
            for piece in pieces:
                self.stream.write(piece)

    def line(self, level: str, message: str, facts: dict[str, Any], error: BaseException | None = None) -> str:
        time = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
        message = masked(message)
        # The lines of a traceback are set in, so that none of them can pass for a line of the log.
        trace = [f"    {masked(each)}" for each in _lines(error)] if error else []
        if self.as_json:
            facts = {name: masked(value) if isinstance(value, str) else value for name, value in facts.items()}
            line = {"message": message, "level": level, "timestamp": time} | facts
            if trace:
                line["exception"] = "\n".join(trace)
            return json.dumps(line, ensure_ascii=False, default=str)
        told = " ".join([f"{time} [{level:8}] {message:24}", *(f"{name}={_shown(facts[name])}" for name in facts)])
        return "\n".join([told.rstrip(), *trace])


class Alike(logging.Formatter):
    """What the standard library's loggers say looks like everything else."""

    def format(self, record: logging.LogRecord) -> str:
        error = record.exc_info[1] if record.exc_info else None
        return log.line(record.levelname.lower(), record.getMessage(), {}, error)


log = Log(sys.stderr, "INFO", as_json=False)


def configure(settings: Settings) -> None:
    """``text``: a line each for people; ``json``: an object each for machines. Standard library loggers go along.

    So do gunicorn's, where it runs this: wherever it writes to, and from whatever level on, as it is told by its own
    options.
    """
    global log
    log = Log(sys.stderr, settings.log_level, as_json=settings.log_format == "json")
    root = logging.getLogger("app")
    root.handlers, root.propagate = [logging.StreamHandler(sys.stderr)], False
    root.setLevel(settings.log_level)
    for handler in (*root.handlers, *logging.getLogger("gunicorn.error").handlers):
        if isinstance(handler, logging.StreamHandler):  # a file is one too; syslog has a form of its own
            handler.setFormatter(Alike())
    # Of each connection that breaks it would print a traceback; that the database is away is said once, in a line.
    logging.getLogger("sqlalchemy.pool").setLevel(logging.CRITICAL)


def _lines(error: BaseException) -> list[str]:
    return "".join(traceback.format_exception(error)).rstrip().split("\n")


def _shown(value: Any) -> str:
    """A value as it is, unless something in it is to be masked, or it would be hard to see where it ends."""
    text = value if isinstance(value, str) else str(value)
    if _PLAIN(text):
        return text
    text = masked(text)
    return text if text and text.isascii() and not _UNCLEAR.search(text) else repr(text)


def events_recorded(_: object, events: list[Recorded]) -> None:
    """A commit's lines are written at once, for each writing lets another thread cut in."""
    if log.level <= logging.INFO:
        log.put(*(log.line("info", "event recorded", _recorded(event)) for event in events))


def _recorded(event: Recorded) -> dict[str, Any]:
    return {
        "type": event.type,
        "order_id": event.order_id,
        "event_id": event.event_id,
        "source": event.source,
        "receivers": ",".join(event.receivers) or "none",
    }


def delivery_settled(_: object, end: LeaseEnd) -> None:
    settled = end
    facts = _of(settled.lease)
    match settled.state:
        case "done":
            log.info("delivery done", **facts)
        case "discarded":
            log.warning("delivery discarded", **facts, reason=settled.reason)
        case "dead":
            log.error("delivery dead", **facts, outcome=str(settled.outcome or "none"), reason=settled.reason)
        case _ if settled.outcome is None:
            log.info("delivery postponed", **facts, reason=settled.reason, due_at=str(settled.due_at))
        case _:
            words = {"outcome": str(settled.outcome), "reason": settled.reason, "due_at": str(settled.due_at)}
            log.warning("delivery failed", **facts, **words)


def operator_acted(_: object, action: str, which: Filter, count: int, by: str) -> None:
    log.info("operator acted", action=action, which=str(which), count=count, by=by)


def database_lost(_: object, error: DatabaseUnavailable) -> None:
    log.error("database lost", reason=error.reason)


def _line(level: str, message: str) -> Callable[..., None]:
    """A listener that tells the facts as they come."""

    def listen(_: object, lease: Lease | None = None, **facts: Any) -> None:
        getattr(log, level)(message, **(_of(lease) if lease else {}), **facts)

    return listen


LISTENERS: dict[str, Callable[..., None]] = {
    "events_recorded": events_recorded,
    "delivery_settled": delivery_settled,
    "lease_lost": _line("warning", "lease lost"),
    "lease_expired": _line("warning", "lease taken over"),
    "receiver_raised": _line("error", "receiver raised"),
    "receiver_missing": _line("error", "receiver missing"),
    "operator_acted": operator_acted,
    "events_pruned": _line("info", "events pruned"),
    "dispatcher_started": _line("info", "dispatcher started"),
    "dispatcher_stopped": _line("info", "dispatcher stopped"),
    "dispatcher_failed": _line("error", "dispatcher failed"),
    "database_lost": database_lost,
    "database_back": _line("info", "database back"),
}


def _of(lease: Lease) -> dict[str, Any]:
    return {
        "receiver": lease.receiver,
        "order_id": lease.order_id,
        "event_id": lease.event_id,
        "attempt": lease.spent + 1,
    }
