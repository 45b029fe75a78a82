"""Explanation of a delivery: why each attempt was made at its time and not before, and when the next one is due."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy.orm import Session

from app.bus import queries
from app.bus.tables import Delivery
from app.errors import DeliveryNotFound
from app.retry import why
from app.states import DeliveryState

AT_ONCE = timedelta(seconds=2)
"""A first attempt within this time of its event was not held up."""


@dataclass(frozen=True, slots=True)
class Tried:
    """An attempt, and why it was made then: a sentence of ``retry.why``, or of an earlier version."""

    started_at: datetime
    outcome: str
    why: str


@dataclass(frozen=True, slots=True)
class Explanation:
    """One sentence for each attempt, and one for the next."""

    delivery_id: int
    receiver: str
    state: str
    attempts: list[Tried]
    due_at: datetime | None
    """Of the next try; None unless one waits for it."""
    due_because: str | None
    probe_at: datetime | None
    """When the next probe of its open circuit breaker may be made: it is not tried before."""

    @property
    def is_telling(self) -> bool:
        """Whether there is more to say than that it was tried at once."""
        return self.due_at is not None or [each.why for each in self.attempts] not in ([], [why.DUE])


def explain(session: Session, delivery_id: int) -> Explanation:
    """Raises DeliveryNotFound."""
    found = queries.deliveries(session, Delivery.delivery_id == delivery_id)
    if not found:
        raise DeliveryNotFound
    return of(found[0], queries.open_breakers(session))


def of(delivery: Mapping[str, Any], breakers: Mapping[str, queries.OpenBreaker]) -> Explanation:
    """Of a delivery as ``queries.timeline`` has it, and the open circuit breakers by receiver."""
    waits = delivery["state"] == DeliveryState.READY
    breaker = breakers.get(delivery["receiver"]) if waits else None
    return Explanation(
        delivery["delivery_id"],
        delivery["receiver"],
        delivery["state"],
        [_tried(delivery, number) for number in range(len(delivery["attempts"]))],
        delivery["due_at"] if waits else None,
        delivery["due_because"] if waits else None,
        breaker.probe_at if breaker else None,
    )


def _tried(delivery: Mapping[str, Any], number: int) -> Tried:
    attempt = delivery["attempts"][number]
    late = attempt["started_at"] - delivery["created_at"]
    told = attempt["why"] or why.DUE
    if not attempt["why"] and number == 0 and late > AT_ONCE:
        told = why.LATE % {"late": why.seconds_told(round(late.total_seconds()))}
    return Tried(attempt["started_at"], attempt["outcome"], told)
