"""Log lines have their home here: the bus reports facts as signals, and this file chooses level and words."""

import logging
import sys
from typing import Any

import structlog
from flask import Flask

from app.bus import signals
from app.bus.dispatcher import Settled
from app.bus.operate import Filter
from app.bus.record import Recorded
from app.bus.store import Lease
from app.errors import Outcome
from config import Settings

log = structlog.get_logger()


def init_app(app: Flask, settings: Settings) -> None:
    """Choose how lines look, and listen to what the bus of ``app`` reports."""
    configure(settings)
    for name, listener in LISTENERS.items():
        signals.lifecycle[name].connect(listener)


def configure(settings: Settings) -> None:
    """``text``: a line each for people; ``json``: an object each for machines. Standard library loggers go along."""
    shared: list[Any] = [
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.EventRenamer("message") if settings.log_format == "json" else _unchanged,
    ]
    renderer: Any = (
        structlog.processors.JSONRenderer(ensure_ascii=False)
        if settings.log_format == "json"
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), sort_keys=False, pad_event_to=24)
    )
    formatting = structlog.processors.format_exc_info if settings.log_format == "json" else _unchanged
    structlog.configure(
        processors=[*shared, formatting, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(settings.log_level),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, formatting, renderer],
        )
    )
    root = logging.getLogger("app")
    root.handlers, root.propagate = [handler], False
    root.setLevel(settings.log_level)


def _unchanged(_: Any, __: str, line: Any) -> Any:
    return line


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
    log.info(f"operator: {action}", which=str(which), count=count, by=by)


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
