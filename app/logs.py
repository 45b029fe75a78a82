"""Log lines have their home here: the bus reports facts as signals, and this file chooses level and words.

What strangers wrote stands in many of them: a mail server's reply, an exception's message. So no line shows an e-mail
address in full, nor lets a character through that ends the line or moves a terminal's cursor. The database keeps all.
"""

import logging
import re
import sys
from typing import Any

import structlog

from app.bus import signals
from app.bus.dispatcher import Settled
from app.bus.operate import Filter
from app.bus.record import Recorded
from app.bus.store import Lease
from app.errors import Outcome
from config import Settings

log = structlog.get_logger()

_LOCAL_PART = re.compile(r"""(?<![^\s@<>()\[\]\\,:;"])[^\s@<>()\[\]\\,:;"]++@(?=\w)""")


def init(settings: Settings) -> None:
    """Choose how lines look, and listen to what buses report."""
    configure(settings)
    for name, listener in LISTENERS.items():
        signals.lifecycle[name].connect(listener)


def configure(settings: Settings) -> None:
    """``text``: a line each for people; ``json``: an object each for machines. Standard library loggers go along."""
    shared: list[Any] = [
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.EventRenamer("message") if settings.log_format == "json" else _unchanged,
        structlog.processors.format_exc_info,
        _harmless,
    ]
    renderer: Any = (
        structlog.processors.JSONRenderer(ensure_ascii=False)
        if settings.log_format == "json"
        else structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(),
            sort_keys=False,
            pad_event_to=24,
            exception_formatter=structlog.dev.plain_traceback,  # Rich's, where it is installed, shows variables
        )
    )
    structlog.configure(
        processors=[*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(settings.log_level),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    root = logging.getLogger("app")
    root.handlers, root.propagate = [handler], False
    root.setLevel(settings.log_level)


def _unchanged(_: Any, __: str, line: Any) -> Any:
    return line


def _harmless(_: Any, __: str, line: Any) -> Any:
    for name, value in line.items():
        if name == "exception":  # many lines: set in, so that none of them can pass for a line of the log
            line[name] = "\n".join(f"    {masked(each)}" for each in value.split("\n"))
        elif isinstance(value, str):
            line[name] = masked(value)
    return line


def masked(text: str) -> str:
    """On one line, with ``***`` for what stands before the @ of an address, and for a password in a URL."""
    if not text.isprintable():
        text = "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)
    return _LOCAL_PART.sub("***@", text) if "@" in text else text


def event_recorded(_: object, event: Recorded) -> None:
    log.info(
        "event recorded",
        type=event.type,
        order_id=event.order_id,
        event_id=event.event_id,
        source=event.source,
        receivers=",".join(event.receivers) or "none",
    )


def delivery_settled(_: object, settled: Settled) -> None:
    facts = _of(settled.lease)
    match settled.state:
        case "done":
            log.info("delivery done", **facts)
        case "discarded":
            log.warning("delivery discarded", **facts, reason=settled.reason)
        case "dead":
            log.error("delivery dead", **facts, outcome=_word(settled.outcome), reason=settled.reason)
        case _ if settled.outcome is None:
            log.info("delivery postponed", **facts, reason=settled.reason, due_at=str(settled.due_at))
        case _:
            words = {"outcome": _word(settled.outcome), "reason": settled.reason, "due_at": str(settled.due_at)}
            log.warning("delivery failed", **facts, **words)


def lease_lost(_: object, lease: Lease) -> None:
    log.warning("lease lost", **_of(lease))


def lease_expired(_: object, lease: Lease) -> None:
    log.warning("lease taken over", **_of(lease))


def receiver_raised(_: object, lease: Lease, error: Exception) -> None:
    log.error("receiver raised", **_of(lease), exc_info=error)


def receiver_missing(_: object, lease: Lease) -> None:
    log.error("receiver missing", **_of(lease))


def operator_acted(_: object, action: str, which: Filter, count: int, by: str) -> None:
    log.info("operator acted", action=action, which=str(which), count=count, by=by)


def events_pruned(_: object, count: int) -> None:
    log.info("events pruned", count=count)


def dispatcher_started(_: object, name: str) -> None:
    log.info("dispatcher started", name=name)


def dispatcher_stopped(_: object, name: str, unfinished: int) -> None:
    log.info("dispatcher stopped", name=name, unfinished=unfinished)


def dispatcher_failed(_: object, error: Exception) -> None:
    log.error("dispatcher failed", exc_info=error)


def database_lost(_: object, error: Exception) -> None:
    log.error("database lost", error=str(error.__cause__ or error).splitlines()[0])


def database_back(_: object) -> None:
    log.info("database back")


LISTENERS = {
    listener.__name__: listener
    for listener in (
        event_recorded,
        delivery_settled,
        lease_lost,
        lease_expired,
        receiver_raised,
        receiver_missing,
        operator_acted,
        events_pruned,
        dispatcher_started,
        dispatcher_stopped,
        dispatcher_failed,
        database_lost,
        database_back,
    )
}


def _of(lease: Lease) -> dict[str, Any]:
    return {
        "receiver": lease.receiver,
        "order_id": lease.order_id,
        "event_id": lease.event_id,
        "attempt": lease.spent + 1,
    }


def _word(outcome: Outcome | None) -> str:
    return str(outcome) if outcome else "none"
