"""Retries: the retry policy's decisions, what it has learned, and how well its predictions hold."""

import math
from dataclasses import dataclass
from datetime import datetime

from flask.typing import ResponseReturnValue
from flask_babel import gettext
from pydantic import Field
from werkzeug.exceptions import NotFound

from app.bus import gates, learning
from app.bus.troubles import REFUTED_WITHIN
from app.console import policy_pictures, why
from app.console.pages import Sign, page, read_filter
from app.current import bus, database
from app.db import Reader
from app.fields import Text
from app.request_models import RequestModel
from app.retry import ExponentialBackoff, Gate, LearnedPolicy, Phase, Scope
from app.retry.shown import Shown, learned

SHOWN_WAITS = 12
"""Of the plain rule."""


class RetrySearch(RequestModel):
    """Which obstacle to show; the fields stand together. Without them, the one of which most was learned."""

    receiver: Text | None = Field(None, max_length=100, description="a receiver's name of at most 100 characters")
    scope: Scope | None = Field(None, description="backend or message")
    kind: Text | None = Field(None, max_length=32, description="a kind of failures, such as unreachable")


@dataclass(frozen=True)
class Down:
    """An open circuit breaker."""

    gate: Gate
    waiting: int
    probe_at: datetime

    @property
    def since(self) -> datetime:
        return gates.moment(self.gate.since)

    @property
    def age(self) -> float:
        """Of the obstacle, as the policy sees it: up to the latest failure."""
        return self.gate.failed_at - self.gate.since

    def is_of(self, shown: Shown) -> bool:
        return (shown.receiver, shown.scope, shown.kind) == (self.gate.receiver, Scope.BACKEND, self.gate.kind)


def show_retries() -> ResponseReturnValue:
    """Raises NotFound for an obstacle that the policy does not know, and Problem with 422."""
    query = read_filter(RetrySearch)
    learns = bus().learning
    if learns is None:
        plain = bus().policy
        waits = _waits(plain) if isinstance(plain, ExponentialBackoff) else None
        return page("retries.html", plain=plain, waits=waits, why=why)
    learns.look()
    policy = learns.policy
    down = database().query(lambda reader: _down(reader, policy))
    choices = learned(policy)
    choices += [_of_gate(policy, each.gate) for each in down if not any(map(each.is_of, choices))]
    shown = _chosen(query, policy, choices, down)
    stands = next((each for each in down if each.is_of(shown)), None)
    entry, costs = shown.entry, policy.table.costs if policy.table else policy.costs
    with database().read() as session:
        since = gates.moment(entry.forget_before if entry else 0.0)
        measured = learning.measured(session, shown.receiver, shown.scope, shown.kind, policy_pictures.AGES, since)
    return page(
        "retries.html",
        plain=None,
        table=policy.table,
        fitted_at=gates.moment(policy.table.fitted_at) if policy.table else None,
        refit_seconds=learning.REFIT.total_seconds(),
        first_ends=learning.FIRST_ENDS,
        costs=costs,
        maximum=policy.maximum,
        choices=[(each, guard(each)) for each in choices],
        shown=shown,
        guard=guard(shown),
        forgotten_at=gates.moment(entry.forgotten_at) if entry and entry.forgotten_at else None,
        forget_before=since,
        fitted_to_at=gates.moment(entry.fitted_at) if entry and entry.transitions else None,
        down=stands,
        heat=policy_pictures.heat_map(shown, (stands.age, stands.waiting) if stands else None),
        curve=policy_pictures.curve(shown, measured),
        chain=policy_pictures.chain(measured),
        is_backend=shown.scope is Scope.BACKEND,
        discount_of_an_hour=math.exp(-3600 * costs.beta),
        pictures=policy_pictures,
        why=why,
    )


def _down(reader: Reader, policy: LearnedPolicy) -> list[Down]:
    now, found = database().clock.now(), []
    for gate in gates.holding(reader, now)[0]:
        if gate.phase is Phase.OPEN:
            waiting = gates.count_waiting(reader, gate, now)
            probe_at = gate.next_start(policy, gates.seconds(now), waiting)
            found.append(Down(gate, waiting, gates.not_before(probe_at, now)))
    return found


def _of_gate(policy: LearnedPolicy, gate: Gate) -> Shown:
    return Shown(policy, Scope.BACKEND, gate.kind, gate.receiver)


def _chosen(query: RetrySearch, policy: LearnedPolicy, choices: list[Shown], down: list[Down]) -> Shown:
    if query.scope is None or query.kind is None or query.receiver is None:
        if down:
            return _of_gate(policy, down[0].gate)
        return choices[0] if choices else Shown(policy, Scope.BACKEND, "unreachable", next(iter(bus().mails), ""))
    shown = Shown(policy, query.scope, query.kind, query.receiver)
    if policy.table and shown.entry is None:
        raise NotFound
    return shown


def guard(shown: Shown) -> Sign:
    """Whether what a table predicts is what happens."""
    entry = shown.entry
    if entry is None or not entry.fitted_at:
        return Sign("dim", "○", gettext("nothing to judge"))
    if entry.forgotten_at and database().clock.now() - gates.moment(entry.forgotten_at) < REFUTED_WITHIN:
        return Sign("warn", "◼", gettext("fell back"))
    if not entry.judged:
        return Sign("dim", "○", gettext("not judged yet"))
    return Sign("ok", "✓", gettext("holds"))


def _waits(policy: ExponentialBackoff) -> list[float]:
    """The longest waits after the first attempts, in seconds."""
    waits = [min(policy.maximum, policy.base * 2.0**n) for n in range(min(policy.max_attempts - 1, SHOWN_WAITS))]
    rising = [wait for wait in waits if wait < policy.maximum]
    return waits[: len(rising) + 1]
