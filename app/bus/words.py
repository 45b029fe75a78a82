"""Words for moments and durations, as people say them."""

from datetime import datetime, timedelta


def lasting(duration: timedelta) -> str:
    """``24 s``, ``3 min``, ``5 h``, ``3 days``: rounded down to the largest unit of which there are at least two."""
    seconds = max(0, int(duration.total_seconds()))
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds // length} {unit}"
    return f"{seconds} s"


def moment(at: datetime, now: datetime) -> str:
    """The time of day, in UTC; with its date where that is another than today's."""
    return f"{at:%H:%M:%S}" if at.date() == now.date() else f"{at:%Y-%m-%d %H:%M:%S}"
