"""Classification of failures: what an outcome, a reply code and an enhanced code say about the obstacle.

Reply codes are those of RFC 5321, enhanced ones those of RFC 3463. This is the only place that reads them for a retry.
"""

import enum
import re
from dataclasses import dataclass


class Scope(enum.StrEnum):
    """Whose obstacle it is: one delivery's own, or its backend's."""

    BACKEND = "backend"  # of all deliveries of a receiver: an outage
    MESSAGE = "message"  # of one delivery: greylisting, a full mailbox


@dataclass(frozen=True, slots=True)
class Cause:
    """A class of failures that are estimated together."""

    kind: str
    """Its name: a reply code, or what the enhanced code or the outcome says more exactly."""
    backend: bool = False
    """Whether it can be the backend's; else it is always the message's own."""
    in_a_row: int = 1
    """At least so many distinct messages must fail before the backend counts as down."""
    lone_share: float = 0.02
    """Prior mean of the probability that an attempt fails so while the backend is up."""
    rate: bool = False
    """Whether it asks for slower sending, rather than for waiting. Where nothing at all is taken it is an outage."""
    final: bool = False
    """Whether trying again cannot help."""
    connection: bool = False
    """Whether no reply came: then any reply later shows that the backend is back."""
    silent: bool = False
    """Whether the backend said nothing for long: what it answered others meanwhile shows that it is up."""
    soon: bool = False
    """Whether one message's obstacle of this kind may be gone within seconds: nobody refused it."""
    copies: bool = False
    """Whether the attempt may have had its effect, so that the next one may make a copy."""


BY_OUTCOME = {
    "refused": Cause("refused", final=True),
    "throttled": Cause("throttled", rate=True),
    "unreachable": Cause("unreachable", backend=True, connection=True, soon=True),
    "timeout": Cause("timeout", backend=True, in_a_row=2, connection=True, silent=True, soon=True),
    "unknown": Cause("unknown", backend=True, in_a_row=2, connection=True, silent=True, copies=True),
    "bug": Cause("bug", soon=True),
    "deferred": Cause("deferred", backend=True, in_a_row=3, lone_share=0.05),
}
BY_CODE = {code: Cause(str(code), backend=True, in_a_row=3, lone_share=0.05) for code in (450, 451, 452)}
ENHANCED = re.compile(r"[0-9]+\.([0-9]+)\.([0-9]+)")
BY_DETAIL = {(2, 2): Cause("mailbox full"), (7, 1): Cause("greylisted")}
"""By an enhanced code's second and third number."""
BY_SUBJECT = {1: Cause("address"), 2: Cause("mailbox")}
"""By an enhanced code's second number: about the recipient's address, or the recipient's mailbox."""
BY_KIND = {
    cause.kind: cause for cause in (*BY_OUTCOME.values(), *BY_CODE.values(), *BY_SUBJECT.values(), *BY_DETAIL.values())
}


def classify(outcome: str, code: int | None = None, enhanced: str | None = None) -> Cause:
    """The cause of a failed attempt.

    ``outcome`` is a word of ``app.states.Outcome``; ``code`` and ``enhanced`` are the reply's, such as 450 and "4.7.1".
    What names a recipient is never the backend's; 4.7.1 is how greylisting says "the first time".
    """
    if outcome == "deferred":
        found = ENHANCED.fullmatch(enhanced or "")
        subject, detail = map(int, found.groups()) if found else (0, 0)
        by_enhanced = BY_DETAIL.get((subject, detail)) or BY_SUBJECT.get(subject)
        return by_enhanced or BY_CODE.get(code or 0) or BY_OUTCOME["deferred"]
    return BY_OUTCOME.get(outcome, BY_OUTCOME["bug"])


def named(kind: str) -> Cause:
    """The cause with this name; one of which nothing more is known where there is none."""
    return BY_KIND.get(kind) or Cause(kind)
