"""Lifecycle signals: the bus reports what it does by plain blinker signals; it needs no listener.

The sender is the Bus, so a listener may be connected to one application's. A signal is sent after the commit of what it
reports. ``Engine.wake`` listens to ``deliveries_due``; ``observe.bus_log.BusLog`` listens to the others, by a
method of the same name; ``observe.metrics`` and ``observe.traces`` listen to what they count.
"""

import contextlib
import logging

from blinker import NamedSignal, Namespace

log = logging.getLogger(__name__)
lifecycle = Namespace()

events_recorded = lifecycle.signal("events_recorded", "Events were stored by one commit. `events`: of Recorded.")
deliveries_due = lifecycle.signal(
    "deliveries_due", "A commit made deliveries due now. Engines wake at it: one, or all where `everywhere` is true."
)
deliveries_settled = lifecycle.signal(
    "deliveries_settled", "One commit ended these leases, or they had run out. `ends`: of LeaseEnd."
)
lease_lost = lifecycle.signal("lease_lost", "A result came too late: another dispatcher has taken over. `lease`.")
receiver_raised = lifecycle.signal("receiver_raised", "A receiver raised an unexpected exception. `lease`, `error`.")
receiver_still_runs = lifecycle.signal("receiver_still_runs", "A receiver runs for long. `lease`, `seconds`.")
receiver_missing = lifecycle.signal("receiver_missing", "A delivery's receiver isn't connected. `lease`.")
operator_acted = lifecycle.signal("operator_acted", "A person did something. `action`, `which`, `count`, `by`.")
events_pruned = lifecycle.signal("events_pruned", "Old finished events were deleted. `count`.")
times_pulled_back = lifecycle.signal("times_pulled_back", "Due times were further ahead than any wait. `count`.")
dispatcher_started = lifecycle.signal(
    "dispatcher_started", "`name`, `differs`: settings that are others than those of the dispatcher before it."
)
dispatcher_refused = lifecycle.signal(
    "dispatcher_refused", "It would deliver mail otherwise than those before it. `name`, `reason`."
)
dispatcher_stopped = lifecycle.signal("dispatcher_stopped", "`name`, `unfinished`: receivers still running.")
dispatcher_failed = lifecycle.signal("dispatcher_failed", "A fault in the dispatcher itself; it goes on. `error`.")
answer_unstored = lifecycle.signal(
    "answer_unstored", "An answer can't be stored, and is kept. `lease`, `error`, `failures`: tries so far."
)
process_given_up = lifecycle.signal("process_given_up", "Only the process' end helps; it ends now. `reason`.")
database_lost = lifecycle.signal("database_lost", "The dispatcher can't reach the database. `error`.")
database_back = lifecycle.signal("database_back", "The dispatcher reaches the database again.")

broker_lost = lifecycle.signal("broker_lost", "A relay can't hand deliveries to the broker. `error`.")
broker_back = lifecycle.signal("broker_back", "The broker takes messages again.")

backend_lost = lifecycle.signal("backend_lost", "What a receiver needs is down: its breaker is open. `outage`.")
backend_still_lost = lifecycle.signal("backend_still_lost", "It is down still, a minute later. `outage`.")
backend_back = lifecycle.signal("backend_back", "It is there again. `outage`, as last seen; `lasted`, `waiting`.")

policy_fitted = lifecycle.signal(
    "policy_fitted", "A new table of the retry policy. `version`, `transitions`, `lasted`: seconds, `refuted`: keys."
)
policy_unfitted = lifecycle.signal("policy_unfitted", "The fit of a new table failed. `reason`.")
policy_ignored = lifecycle.signal(
    "policy_ignored", "A table can't be read; the one before it serves. `version`, `reason`."
)

trouble_began = lifecycle.signal("trouble_began", "Something keeps the service from working: see Watch. `trouble`.")
trouble_ended = lifecycle.signal("trouble_ended", "It does so no more. `trouble`, as it began.")


def report(signal: NamedSignal, sender: object, **facts: object) -> None:
    """Send a lifecycle signal. A listener that fails is logged, and harms neither the bus nor other listeners."""
    for listener in list(signal.receivers_for(sender)):
        try:
            listener(sender, **facts)
        except BaseException:  # foreign code, in a thread that serves others
            with contextlib.suppress(BaseException):  # the very handler that failed may be the log's
                log.exception("a listener of %s failed", signal.name)
