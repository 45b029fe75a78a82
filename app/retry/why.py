"""Reasons as sentences: why a delivery is tried at its time, and not before. Standard library only.

A sentence is stored with its attempt, in English, so that it reads well in a plain select. ``parts`` takes one apart
again, so that a page can say it in another language.
"""

import re
from collections.abc import Mapping
from functools import lru_cache


def N_(words: str) -> str:  # noqa: N802 - gettext's own name for it
    """Marks words for the translations of the console."""
    return words


# By the learned policy

WAITED = N_(
    "Tried again after %(wait)s, because no other time is worth more: %(what)s, and after this wait it comes through "
    "with a probability of %(chance)s (%(source)s)."
)
LOOKED_EARLIER = N_(
    "Tried again after %(wait)s, earlier than planned, to learn whether such failures end sooner: %(what)s, and after "
    "this wait it comes through with a probability of %(chance)s (%(source)s)."
)
GIVEN_UP = N_("Given up: %(what)s, and another attempt would cost more than its chance is worth (%(source)s).")

OWN_FIRST = N_("this delivery has failed with %(kind)s for the first time")
OWN = N_("this delivery has failed with %(kind)s for %(age)s")
BACKEND_OF_MANY = N_("the backend has failed with %(kind)s for %(age)s and %(waiting)s deliveries wait")
BACKEND = N_("the backend has failed with %(kind)s for %(age)s")

NO_TABLE = N_("by the prior, no table is fitted yet")
NO_END = N_("by the prior, no such end seen yet, table %(version)s")
ENDS = N_("%(ends)s such ends seen, table %(version)s")

WAITS_FOR_BACKEND = N_("The backend is down: it waits, and spends no attempt, until a probe finds it back.")
BACK = N_("The backend is back after %(lasted)s: each success lets two more start.")
SLOWED = N_("The backend takes %(rate)s a second, and each delivery waits for its turn.")

# By the plain rule

DRAWN = N_(
    "Tried again after %(wait)s: by the plain rule the wait is drawn at random, up to a limit that doubles with each "
    "failure, and this was failure %(count)s."
)
PROBE = N_("The circuit breaker is open: one delivery at a time is tried, to find out whether the backend is back.")
CLOSED = N_("The circuit breaker has closed: what failed during the outage is due at once.")

# By either

ASKED_FOR = N_("A person asked for it.")
BEHIND = N_("It waits behind delivery %(behind)s of the same %(by)s.")
DUE = N_("It was due, and nothing held it back.")
LATE = N_(
    "It was due %(late)s before: its circuit breaker was open, its receiver was paused, no dispatcher was at work, or "
    "other deliveries came first."
)

SENTENCES = (
    *(WAITED, LOOKED_EARLIER, GIVEN_UP, WAITS_FOR_BACKEND, BACK, SLOWED),
    *(DRAWN, PROBE, CLOSED, ASKED_FOR, BEHIND, DUE, LATE),
)
CLAUSES = {"what": (OWN_FIRST, OWN, BACKEND_OF_MANY, BACKEND), "source": (NO_TABLE, NO_END, ENDS)}
"""What may stand in a sentence's place of this name."""

_DURATION = r"[\d.e+-]+ (?:s|min|h|days)"
_PLACES = {
    **dict.fromkeys(("wait", "age", "late", "lasted"), _DURATION),
    **dict.fromkeys(("waiting", "version", "ends", "count", "behind"), r"\d+"),
    "chance": r"\d+%",
    "rate": r"[\d.e+-]+",
    "kind": r"[\w -]+?",
}
_PLACE = re.compile(r"%\((\w+)\)s")

Parts = tuple[str, Mapping[str, "str | Parts"]]
"""A template, and what stands in its places."""


def parts(text: str, templates: tuple[str, ...] = SENTENCES) -> Parts | None:
    """None of a sentence that is none of ours, as one that an earlier version wrote."""
    for template in templates:
        if found := _pattern(template).fullmatch(text):
            values: dict[str, str | Parts] = {}
            for name, value in found.groupdict().items():
                inner = parts(value, CLAUSES[name]) if name in CLAUSES else value
                if inner is None:
                    return None
                values[name] = inner
            return template, values
    return None


@lru_cache(len(SENTENCES) + sum(map(len, CLAUSES.values())))
def _pattern(template: str) -> re.Pattern[str]:
    words = _PLACE.split(template)  # text and names by turns
    return re.compile(
        "".join(
            f"(?P<{word}>{_PLACES.get(word, '.+')})" if number % 2 else re.escape(word)
            for number, word in enumerate(words)
        )
    )


def seconds_told(seconds: float) -> str:
    """As people say it: 40 s, 12 min, 3.5 h, 2.1 days."""
    for unit, name in ((86_400.0, "days"), (3600.0, "h"), (60.0, "min")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:.3g} {name}"
    return f"{seconds:.3g} s"
