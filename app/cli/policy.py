"""flask bus policy: show the retry policy, fit it, explain one delivery, and simulate."""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import click
from sqlalchemy import select

from app.bus.explain import Explanation
from app.bus.explain import explain as explain_delivery
from app.bus.learning import Learning
from app.bus.tables import CircuitBreaker
from app.cli import output
from app.cli.bus import bus_group
from app.cli.group import Group, bus, operator
from app.db import iso
from app.retry import Gate, LearnedPolicy, Obstacle, Scope, Table
from app.retry.ages import HORIZON
from app.retry.causes import named
from app.retry.shown import Shown, learned
from app.retry.why import seconds_told

AGES = (0.0, 10.0, 60.0, 600.0, 3600.0, 21_600.0, 86_400.0)
"""Seconds at which a policy is shown."""

WAITING = (1, 64, 4096)
"""Deliveries behind a backend, for which it is shown."""

MOST_ATTEMPTS = 10_000
"""That are played."""

policy_group = Group("policy", help="See how retries are decided, and have the policy fitted anew.")
bus_group.add_command(policy_group)


@policy_group.command("show")
@output.json_option
def show() -> None:
    """The table in use: for each obstacle what it was learned from, how long it lasts, and how long is waited; and what
    is known of each backend."""
    learning, table = _read()
    with bus().database.read() as session:
        stored = session.scalars(select(CircuitBreaker.gate).where(CircuitBreaker.gate.is_not(None)))
        gates = [Gate.from_json(str(each)) for each in stored]
    found = {
        "policy": "learned",
        "version": table.version if table else 0,
        "fitted_at": datetime.fromtimestamp(table.fitted_at, UTC) if table else None,
        "costs": learning.policy.costs,
        "obstacles": [_entry(each) for each in learned(learning.policy)],
        "backends": [_backend(gate) for gate in gates],
    }
    output.document(found)
    output.line(*_shown(found))


@policy_group.command("fit")
@output.json_option
def fit() -> None:
    """Fit the table to what the attempts have shown, now; a dispatcher does so every few minutes."""
    learning, _ = _read()
    fitted = learning.fit(operator())
    if fitted is None:
        raise click.ClickException("it was not fitted: another process began to, or numpy can't be used; see the log")
    transitions = sum(entry.transitions for entry in fitted.entries.values())
    output.document({"version": fitted.version, "attempts": transitions})
    output.line(f"table {fitted.version}, fitted to {transitions} attempts at obstacles")


@policy_group.command("explain")
@click.argument("delivery", type=click.IntRange(1))
@output.json_option
def explain(delivery: int) -> None:
    """Why DELIVERY was tried when it was and not before, and when it is tried next."""
    with bus().database.read() as session:
        explained = explain_delivery(session, delivery)
    output.document(explained)
    output.line(*_explained(explained))


@policy_group.command("simulate")
@click.option("--receiver", default="send_email_notification", show_default=True)
@click.option("--scope", type=click.Choice([str(scope) for scope in Scope]), default="backend", show_default=True)
@click.option("--kind", default="unreachable", show_default=True, help="Such as unreachable, timeout, greylisted, 451.")
@click.option("--lasts", type=click.FloatRange(0, HORIZON), default=90.0, show_default=True, help="In seconds.")
@click.option("--waiting", type=click.IntRange(1), default=1, show_default=True, help="Deliveries behind it.")
@output.json_option
def simulate(receiver: str, scope: str, kind: str, lasts: float, waiting: int) -> None:
    """Play the policy against an obstacle that LASTS so long: which attempts it makes, and how late it sees the end."""
    learning, table = _read()
    obstacle = Obstacle(receiver, Scope(scope), named(kind), 0.0, waiting)
    policy = LearnedPolicy(table, learning.policy.costs, explores=False)
    attempts = list(_played(policy, obstacle, lasts))
    late = attempts[-1]["at"] - lasts if attempts and attempts[-1]["at"] >= lasts else None
    output.document({"attempts": attempts, "late_seconds": late})
    rows = [[seconds_told(each["at"]), seconds_told(each["waited"]), f"{each['chance']:.0%}"] for each in attempts]
    output.table(["at", "after", "chance"], rows, empty="no attempt")
    ends = f"{seconds_told(late)} after its end" if late is not None else "never: given up before it ended"
    output.line(f"{len(attempts)} attempts after the first failure; it comes through {ends}")


def _read() -> tuple[Learning, Table | None]:
    """Raises ClickException where RETRY_POLICY is another one."""
    learning = bus().learning
    if learning is None:
        raise click.ClickException("RETRY_POLICY is exponential; set it to learned to see a policy here")
    learning.look()
    return learning, learning.policy.table


def _entry(shown: Shown) -> dict[str, Any]:
    entry = shown.entry
    assert entry is not None  # noqa: S101 - for the type checker: it is of a table
    return {
        "receiver": shown.receiver,
        "scope": shown.scope,
        "kind": shown.kind,
        "attempts": entry.transitions,
        "ends": entry.ends,
        "predicted": entry.expected,
        "seen": entry.seen,
        "judged": entry.judged,
        "survival": {f"{age:.0f}": shown.gone_between(0.0, age) for age in AGES[1:]},
        "waits": {
            str(waiting): {f"{age:.0f}": shown.decide(age, waiting).wait for age in AGES}
            for waiting in (WAITING if shown.scope is Scope.BACKEND else WAITING[:1])
        },
    }


def _backend(gate: Gate) -> dict[str, Any]:
    return {
        "receiver": gate.receiver,
        "phase": gate.phase,
        "kind": gate.kind or None,
        "limit_per_second": gate.limit,
        "remembered_drain_rate": gate.drain_rate,
        "remembered_rate": gate.rate.per_second,
    }


def _shown(found: dict[str, Any]) -> Iterator[str]:
    costs = found["costs"]
    version, fitted_at = found["version"], found["fitted_at"]
    yield f"table {version}, fitted {iso(fitted_at)}" if fitted_at else "no table yet: by the prior"
    yield (
        f"in minutes of one delivery's delay: an attempt costs {costs.attempt:g}, a copy {costs.copy:g}, a loss "
        f"{costs.loss:g}"
    )
    for each in found["obstacles"]:
        yield ""
        learned_from = f"{each['attempts']} attempts, {each['ends']} ends seen"
        yield f"{each['receiver']}: {each['kind']} of the {each['scope']}, {learned_from}"
        if each["judged"]:
            predicted, seen = f"{each['predicted']:.1f} should have come through", f"{each['seen']:.1f} did"
            yield f"    of the last {each['judged']:.0f} attempts {predicted}, and {seen}"
        gone = (f"{seconds_told(float(age))}: {share:.0%}" for age, share in each["survival"].items())
        yield f"    gone after {', '.join(gone)}"
        for waiting, waits in each["waits"].items():
            told = (
                f"{seconds_told(float(age))}: {'given up' if wait is None else seconds_told(wait)}"
                for age, wait in waits.items()
            )
            behind = f" with {waiting} waiting" if each["scope"] == Scope.BACKEND else ""
            yield f"    wait at age{behind}: {', '.join(told)}"
    for each in found["backends"]:
        rate = f", {each['limit_per_second']:.3g} a second" if each["limit_per_second"] else ""
        yield ""
        yield f"backend of {each['receiver']}: {each['phase']}{rate}"


def _explained(explained: Explanation) -> Iterator[str]:
    yield f"delivery {explained.delivery_id} to {explained.receiver}: {explained.state}"
    for each in explained.attempts:
        yield f"{iso(each.started_at)}  {each.outcome}: {each.why}"
    if explained.due_at is not None:
        because = f": {explained.due_because}" if explained.due_because else ""
        yield f"{iso(explained.due_at)}  next try{because}"
    if explained.probe_at is not None:
        yield f"its backend is down; the next probe is due at {iso(explained.probe_at)}"


def _played(policy: LearnedPolicy, obstacle: Obstacle, lasts: float) -> Iterator[dict[str, float]]:
    age = 0.0
    for _ in range(MOST_ATTEMPTS):
        decision = policy.decide(Obstacle(obstacle.receiver, obstacle.scope, obstacle.cause, age, obstacle.waiting))
        if decision.wait is None:
            return
        age += decision.wait
        yield {"at": age, "waited": decision.wait, "chance": decision.chance}
        if age >= lasts:
            return
