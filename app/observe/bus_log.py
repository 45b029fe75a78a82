"""The bus's log: its lifecycle signals become records of the logger ``app.bus``.

Level and words are chosen here. A record's message is the words alone; its facts are one attribute, ``facts``, because
separate attributes, such as a dispatcher's ``name``, would collide with a record's own. Of the events that a commit
stored, and of the deliveries that it ended as done, ``facts`` is a list, where there are several: a line for each, and
one record, which costs three times what a line does.
"""

import logging
from contextlib import suppress
from datetime import timedelta
from typing import Any

from app.bus import Bus, Lease, LeaseEnd
from app.bus.breaker import BACKEND_DOWN
from app.bus.delivers_by import shown
from app.bus.lifecycle import lifecycle
from app.bus.outbox import Recorded
from app.bus.troubles import DATABASE, Cause, Outage, Trouble
from app.errors import BrokerUnavailable, DatabaseUnavailable
from app.observe.concerns import ids_here, ids_of, request_of
from app.states import DeliveryState

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
        if self.logs(level):
            self._emit(level, message, facts, error)

    def _emit(
        self,
        level: int,
        message: str,
        facts: dict[str, Any] | list[dict[str, Any]],
        error: BaseException | None = None,
    ) -> None:
        exc_info = (type(error), error, error.__traceback__) if error else None
        record = LOGGER.makeRecord(LOGGER.name, level, "bus_log.py", 0, message, (), exc_info)
        vars(record)["facts"] = facts
        # A handler of somebody else's that raises must not answer 500 to an order that is stored.
        with suppress(BaseException):
            LOGGER.handle(record)

    def events_recorded(self, _: Bus, events: list[Recorded]) -> None:
        if self.logs(logging.INFO):
            self._log_each("event recorded", [_about_event(event) for event in events])

    def deliveries_settled(self, _: Bus, ends: list[LeaseEnd]) -> None:
        if self.logs(logging.INFO):
            self._log_each("delivery done", [ids_of(end.lease) for end in ends if end.state is DeliveryState.DONE])
        for end in ends:
            if end.state is not DeliveryState.DONE:
                self._delivery_not_done(end)

    def _log_each(self, message: str, facts: list[dict[str, Any]]) -> None:
        if facts:
            self._emit(logging.INFO, message, facts if len(facts) > 1 else facts[0])

    def _delivery_not_done(self, end: LeaseEnd) -> None:
        facts, outcome, reason, due_at = ids_of(end.lease), end.outcome, end.reason, end.due_at
        match end.state:
            case "discarded":
                self.log(logging.INFO, "delivery discarded", facts | {"reason": reason})
            case "dead":
                facts |= {"outcome": str(outcome or "none"), "reason": reason}
                self.log(logging.ERROR, "delivery dead", facts)
            case _ if outcome is None:
                self.log(logging.INFO, "delivery postponed", facts | {"reason": reason, "due_at": str(due_at)})
            case _:
                facts |= {"outcome": str(outcome), "reason": reason, "due_at": str(due_at)}
                # A probe of a backend that is down tells nothing that the lines about the outage don't tell.
                is_known = end.lease.probe and outcome in BACKEND_DOWN
                self.log(logging.DEBUG if is_known else logging.WARNING, "delivery failed", facts)

    def lease_lost(self, _: Bus, lease: Lease) -> None:
        self.log(logging.WARNING, "lease lost", ids_of(lease))

    def receiver_raised(self, _: Bus, lease: Lease, error: BaseException) -> None:
        self.log(logging.ERROR, "receiver raised", ids_of(lease), error)

    def receiver_still_runs(self, _: Bus, lease: Lease, seconds: float) -> None:
        self.log(logging.WARNING, "receiver still running", ids_of(lease) | {"seconds": round(seconds)})

    def receiver_missing(self, _: Bus, lease: Lease) -> None:
        self.log(logging.ERROR, "receiver missing", ids_of(lease))

    def policy_fitted(self, _: Bus, version: int, transitions: int, lasted: float, refuted: list[str]) -> None:
        facts = {"version": version, "attempts": transitions, "seconds": round(lasted, 2)}
        self.log(logging.INFO, "retry policy fitted", facts)
        for key in refuted:
            self.log(logging.WARNING, "retry policy refuted", {"version": version, "obstacle": key})

    def policy_unfitted(self, _: Bus, reason: str) -> None:
        self.log(logging.WARNING, "retry policy not fitted", {"reason": reason})

    def policy_ignored(self, _: Bus, version: int, reason: str) -> None:
        self.log(logging.WARNING, "retry policy table ignored", {"version": version, "reason": reason})

    def operator_acted(self, _: Bus, action: str, which: object, count: int, by: str) -> None:
        facts = {"action": action, "which": str(which), "count": count, "by": by} | ids_here()
        self.log(logging.INFO, "operator acted", facts)

    def events_pruned(self, _: Bus, count: int) -> None:
        self.log(logging.INFO, "events pruned", {"count": count})

    def times_pulled_back(self, _: Bus, count: int) -> None:
        self.log(logging.WARNING, "due times pulled back", {"count": count, "reason": "the clock had run ahead"})

    def dispatcher_started(self, _: Bus, name: str, differs: dict[str, list[Any]]) -> None:
        self._dispatches = True
        facts = {"name": name} | ({"differs": shown(differs, "before", "now")} if differs else {})
        self.log(logging.INFO, "dispatcher started", facts)

    def dispatcher_refused(self, _: Bus, name: str, reason: str) -> None:
        self._dispatches = True
        self.log(logging.ERROR, "dispatcher refuses to start", {"name": name, "reason": reason})

    def dispatcher_stopped(self, _: Bus, name: str, unfinished: object) -> None:
        self._dispatches = False
        self.log(logging.INFO, "dispatcher stopped", {"name": name, "unfinished": unfinished})

    def dispatcher_failed(self, _: Bus, error: BaseException) -> None:
        self.log(logging.ERROR, "dispatcher failed", {}, error)

    def answer_unstored(self, _: Bus, lease: Lease, error: BaseException, failures: int) -> None:
        reason = error.reason if isinstance(error, DatabaseUnavailable) else str(error).partition("\n")[0]
        self.log(logging.ERROR, "result not stored", ids_of(lease) | {"reason": reason, "tries": failures})

    def process_given_up(self, _: Bus, reason: str) -> None:
        self.log(logging.CRITICAL, "ending this process", {"reason": reason})

    def database_lost(self, _: Bus, error: DatabaseUnavailable) -> None:
        self._dispatches = True
        self.log(logging.ERROR, "database lost", {"reason": error.reason})

    def database_back(self, _: Bus) -> None:
        self.log(logging.INFO, "database back", {})

    def broker_lost(self, _: Bus, error: BrokerUnavailable) -> None:
        self.log(logging.ERROR, "broker lost", {"reason": str(error)})

    def broker_back(self, _: Bus) -> None:
        self.log(logging.INFO, "broker back", {})

    def backend_lost(self, bus: Bus, outage: Outage) -> None:
        self.log(logging.ERROR, f"{_backend(bus, outage)} lost", _of_outage(outage))

    def backend_still_lost(self, bus: Bus, outage: Outage) -> None:
        self.log(logging.WARNING, f"{_backend(bus, outage)} still lost", _of_outage(outage))

    def backend_back(self, bus: Bus, outage: Outage, lasted: timedelta, waiting: int) -> None:
        facts = {"receiver": outage.receiver, "seconds": round(lasted.total_seconds()), "waiting": waiting}
        self.log(logging.INFO, f"{_backend(bus, outage)} back", facts)

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
        """One line for one fault: a process that dispatches tells by itself that it lost the database or the broker, or
        refuses."""
        return self._dispatches and trouble.cause in (*DATABASE, Cause.BROKER_UNREACHABLE, Cause.DISPATCHER_REFUSES)


def _about_event(event: Recorded) -> dict[str, Any]:
    facts = {
        "type": event.type,
        "order_id": event.order_id,
        "event_id": event.event_id,
        "source": event.source,
        "receivers": ",".join(event.receivers) or "none",
    }
    if event.traceparent is None and event.request_id is None:
        return facts
    return facts | request_of(event)


def _of_outage(outage: Outage) -> dict[str, Any]:
    facts = {"reason": outage.reason, "since": str(outage.since), "waiting": outage.waiting}
    return {"receiver": outage.receiver} | facts


def _backend(bus: Bus, outage: Outage) -> str:
    return "mail server" if bus.options[outage.receiver].sends_mail else "backend"


def _about(trouble: Trouble) -> dict[str, Any]:
    return {"cause": str(trouble.cause)} | ({"receiver": trouble.receiver} if trouble.receiver else {})
