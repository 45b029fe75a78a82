"""Age of an obstacle, in buckets of growing width: the state's time axis.

Edges: 0, 1/20, 1 second, then e' = max(e + 1 s, 1.08 e) up to 5 days. Below 13 s a bucket is a second wide.
"""

from bisect import bisect_right

RATIO = 1.08
HORIZON = 5 * 86_400.0
"""Seconds. Mail servers give up after 5 days (RFC 5321, section 4.5.4.1); so does the policy."""

MOST_WAITING = 12
"""The number of deliveries that wait is known to the next power of two, up to 2 to this power."""


def _edges() -> tuple[float, ...]:
    edges = [0.0, 0.05, 1.0]
    while edges[-1] < HORIZON:
        edges.append(min(HORIZON, max(edges[-1] + 1, RATIO * edges[-1])))
    return tuple(edges)


EDGES = _edges()
BUCKETS = len(EDGES) - 1
LEVELS = tuple(2**n for n in range(MOST_WAITING + 1))


def bucket_of(age: float) -> int:
    """The bucket that holds an age in seconds; the first for a negative one, as after a clock was set back."""
    return max(0, min(bisect_right(EDGES, age) - 1, BUCKETS))


def level_of(waiting: int) -> int:
    """The index in LEVELS of the next power of two."""
    return min(MOST_WAITING, max(0, waiting - 1).bit_length())
