"""What a person selects, as it is kept, and when each of many spread tries is due."""

from datetime import UTC, datetime, timedelta

import pytest

from app.bus import Filter, Replay
from app.bus.operate import time_of_try

BEGAN = datetime(2026, 11, 23, 8, tzinfo=UTC)


@pytest.mark.parametrize(
    "selection, kept",
    [
        (Filter(), "{}"),
        (Filter(delivery_id=0, reason=""), '{"delivery_id": 0, "reason": ""}'),
        (Filter(older_than=BEGAN), '{"older_than": "2026-11-23T08:00:00.000000Z"}'),
        (Replay("mail", "OrderCreated"), '{"receiver": "mail", "event_type": "OrderCreated"}'),
        (
            Replay("发送", "OrderCreated", since=BEGAN, force=True),
            '{"receiver": "发送", "event_type": "OrderCreated", "since": "2026-11-23T08:00:00.000000Z", "force": true}',
        ),
    ],
)
def test_what_restricts_is_kept_as_json_with_times_as_everywhere(selection: Filter | Replay, kept: str) -> None:
    assert str(selection) == kept


@pytest.mark.parametrize(
    "after, over, place, due_after",
    [
        (0, 60, 0, 0),
        (0, 60, 1, 15),
        (0, 60, 3, 45),  # one distance before the end
        (20, 60, 1, 20),  # its batch came late: a time in the past would read as overdue
        (20, 60, 2, 30),
        (20, None, 3, 20),  # not spread
        (20, 0, 3, 20),
    ],
)
def test_tries_are_spread_evenly_and_none_is_due_in_the_past(
    after: int, over: int | None, place: int, due_after: int
) -> None:
    now = BEGAN + timedelta(seconds=after)
    assert time_of_try(now, BEGAN, over, place, of=4) == BEGAN + timedelta(seconds=due_after)
