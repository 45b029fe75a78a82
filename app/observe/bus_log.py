"""The bus's log: what it reports as lifecycle signals becomes records of the logger ``app.bus``.

Level and words are chosen here. A record's message is the words alone; its facts are one attribute, ``facts``, because
facts of their own, such as a dispatcher's ``name``, would collide with a record's attributes.
"""

import logging
from contextlib import nullcontext, suppress
from typing import Any

from app.bus import Bus, Filter, Lease, LeaseEnd
from app.bus.lifecycle import lifecycle
from app.bus.outbox import Recorded
from app.bus.troubles import DATABASE, Trouble
from app.errors import DatabaseUnavailable
from app.observe.lines import written_together

PARENT = logging.getLogger("app")
LOGGER = logging.getLogger("app.bus")


class BusLog:
    """Listens to one application's bus, and logs from that application's LOG_LEVEL on.

    Signals hold it weakly: keep it for as long as the bus.
    """

    def __init__(self, bus: Bus, level: int) -> None:
        self.level = level
        self._dispatches = False
        for name, signal in lifecycle.items():
            if listener := getattr(self, name, None):  # what no line tells has none
                signal.connect(listener, sender=bus)

    def logs(self, level: int) -> bool:
        """Whether the application wants this level, and whoever configured its loggers wants it as well.

        LOG_LEVEL takes the place of the root logger's level, which is WARNING where nobody has chosen one.
        """
        return level >= self.level and level >= (LOGGER.level or PARENT.level) and level > logging.root.manager.disable

    def log(self, level: int, message: str, facts: dict[str, Any], error: BaseException | None = None) -> None:
        if not self.logs(level):
            return
        exc_info = (type(error), error, error.__traceback__) if error else None
        record = LOGGER.makeRecord(LOGGER.name, level, "bus_log.py", 0, message, (), exc_info, extra={"facts": facts})
        # A handler of somebody else's that raises must not answer 500 to an order that is stored.
        with suppress(BaseException):
            LOGGER.handle(record)

    def events_recorded(self, _: Bus, events: list[Recorded]) -> None:
        if not self.logs(logging.INFO):
            return
        with written_together() if len(events) > 1 else nullcontext():
            for event in events:
                facts = {
                    "type": event.type,
                    "order_id": event.order_id,
                    "event_id": event.event_id,
                    "source": event.source,
                    "receivers": ",".join(event.receivers) or "none",
                }
                self.log(logging.INFO, "event recorded", facts)

    def delivery_settled(self, _: Bus, end: LeaseEnd) -> None:
        facts, outcome, reason, due_at = _of(end.lease), end.outcome, end.reason, end.due_at
        match end.state:
            case "done":
                self.log(logging.INFO, "delivery done", facts)
            case "discarded":
                self.log(logging.WARNING, "delivery discarded", facts | {"reason": reason})
            case "dead":
                facts |= {"outcome": str(outcome or "none"), "reason": reason}
                self.log(logging.ERROR, "delivery dead", facts)
            case _ if outcome is None:
                self.log(logging.INFO, "delivery postponed", facts | {"reason": reason, "due_at": str(due_at)})
            case _:
                facts |= {"outcome": str(outcome), "reason": reason, "due_at": str(due_at)}
                self.log(logging.WARNING, "delivery failed", facts)

    def lease_lost(self, _: Bus, lease: Lease) -> None:
        self.log(logging.WARNING, "lease lost", _of(lease))

    def receiver_raised(self, _: Bus, lease: Lease, error: BaseException) -> None:
        self.log(logging.ERROR, "receiver raised", _of(lease), error)

    def receiver_still_runs(self, _: Bus, lease: Lease, seconds: float) -> None:
        self.log(logging.WARNING, "receiver still running", _of(lease) | {"seconds": round(seconds)})

    def receiver_missing(self, _: Bus, lease: Lease) -> None:
        self.log(logging.ERROR, "receiver missing", _of(lease))

    def operator_acted(self, _: Bus, action: str, which: Filter, count: int, by: str) -> None:
        facts = {"action": action, "which": str(which), "count": count, "by": by}
        self.log(logging.INFO, "operator acted", facts)

    def events_pruned(self, _: Bus, count: int) -> None:
        self.log(logging.INFO, "events pruned", {"count": count})

    def times_pulled_back(self, _: Bus, count: int) -> None:
        self.log(logging.WARNING, "due times pulled back", {"count": count, "reason": "the clock had run ahead"})

    def dispatcher_started(self, _: Bus, name: str) -> None:
        self._dispatches = True
        self.log(logging.INFO, "dispatcher started", {"name": name})

    def dispatcher_stopped(self, _: Bus, name: str, unfinished: object) -> None:
        self._dispatches = False
        self.log(logging.INFO, "dispatcher stopped", {"name": name, "unfinished": unfinished})

    def dispatcher_failed(self, _: Bus, error: BaseException) -> None:
        self.log(logging.ERROR, "dispatcher failed", {}, error)

    def answer_unstored(self, _: Bus, lease: Lease, error: BaseException, failures: int) -> None:
        reason = error.reason if isinstance(error, DatabaseUnavailable) else str(error).partition("\n")[0]
        self.log(logging.ERROR, "result not stored", _of(lease) | {"reason": reason, "tries": failures})

    def process_given_up(self, _: Bus, reason: str) -> None:
        self.log(logging.CRITICAL, "ending this process", {"reason": reason})

    def database_lost(self, _: Bus, error: DatabaseUnavailable) -> None:
        self.log(logging.ERROR, "database lost", {"reason": error.reason})

    def database_back(self, _: Bus) -> None:
        self.log(logging.INFO, "database back", {})

    def trouble_began(self, _: Bus, trouble: Trouble) -> None:
        if self._is_told_by_dispatcher(trouble):
            return
        level = logging.WARNING if trouble.is_warning else logging.ERROR
        self.log(level, "trouble began", _about(trouble) | {"reason": str(trouble)}, trouble.error)

    def trouble_ended(self, _: Bus, trouble: Trouble) -> None:
        if self._is_told_by_dispatcher(trouble):
            return
        self.log(logging.INFO, "trouble ended", _about(trouble))

    def _is_told_by_dispatcher(self, trouble: Trouble) -> bool:
        """One line for one fault: a process that dispatches tells by itself that it lost the database."""
        return self._dispatches and trouble.cause in DATABASE


def _of(lease: Lease) -> dict[str, Any]:
    return {
        "receiver": lease.receiver,
        "order_id": lease.order_id,
        "event_id": lease.event_id,
        "attempt": lease.spent + 1,
    }


def _about(trouble: Trouble) -> dict[str, Any]:
    return {"cause": str(trouble.cause)} | ({"receiver": trouble.receiver} if trouble.receiver else {})
