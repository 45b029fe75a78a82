"""Readers of what others wrote, of JSON and stored events: a ValueError, or the truth."""

import contextlib
import json
from decimal import Decimal
from typing import Any

from flask import Flask
from hypothesis import given, settings
from hypothesis import strategies as st

from app import events, signal
from app.api.json_provider import ExactJSONProvider

ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=20)
provider = ExactJSONProvider(Flask("test"))


# JSON


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | ANY_TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(ANY_TEXT, inner, max_size=4),
    max_leaves=10,
)
SPOILS = st.lists(st.tuples(st.integers(0, 300), st.integers(0, 3), st.binary(min_size=1, max_size=3)), max_size=5)


def spoil(data: bytes, spoils: list[tuple[int, int, bytes]]) -> bytes:
    for at, left_out, put_in in spoils:
        at %= len(data) + 1
        data = data[:at] + put_in + data[at + left_out :]
    return data


def exact(value: Any) -> Any:
    match value:
        case float():
            return Decimal(repr(value))
        case list():
            return [exact(each) for each in value]
        case dict():
            return {name: exact(each) for name, each in value.items()}
    return value


@settings(deadline=None)
@given(JSON_VALUES)
def test_json_is_read_as_it_was_written(value: Any) -> None:
    assert provider.loads(json.dumps(value)) == exact(value)


@settings(deadline=None)
@given(value=JSON_VALUES, spoils=SPOILS)
def test_spoilt_json_is_a_value_error_or_what_others_read_too(value: Any, spoils: list[tuple[int, int, bytes]]) -> None:
    data = spoil(json.dumps(value).encode(), spoils)
    try:
        found = provider.loads(data)
    except ValueError:
        return
    assert json.loads(data.decode("utf-8-sig"), parse_float=Decimal, parse_constant=Decimal) == found or "NaN" in repr(
        found
    )


@settings(deadline=None)
@given(st.binary(max_size=200) | st.text(max_size=200))
def test_whatever_is_read_as_json_nothing_worse_than_a_value_error_happens(data: bytes | str) -> None:
    with contextlib.suppress(ValueError):
        provider.loads(data)


# Events


EVENTS = st.one_of(
    st.builds(
        events.OrderCreated,
        order_id=ANY_TEXT,
        user_id=ANY_TEXT,
        total_price=st.decimals(allow_nan=False, allow_infinity=False),
        email=st.none() | ANY_TEXT,
    ),
    st.builds(
        events.NotificationRequested,
        order_id=ANY_TEXT,
        user_id=ANY_TEXT,
        total_price=st.decimals(allow_nan=False, allow_infinity=False),
        email=st.none() | ANY_TEXT,
        ordered_at=ANY_TEXT,
        requested_by=ANY_TEXT,
    ),
    st.builds(events.NotificationSent, order_id=ANY_TEXT, user_id=ANY_TEXT, recipient=ANY_TEXT, message_id=ANY_TEXT),
    st.builds(events.NotificationFailed, order_id=ANY_TEXT, user_id=ANY_TEXT, reason=ANY_TEXT),
    st.builds(events.NotificationSkipped, order_id=ANY_TEXT, user_id=ANY_TEXT, reason=ANY_TEXT),
)


@settings(max_examples=200, deadline=None)
@given(event=EVENTS, spoils=SPOILS)
def test_a_spoilt_event_is_a_value_error_or_an_event(event: signal.Event, spoils: list[tuple[int, int, bytes]]) -> None:
    data = spoil(signal.encode(event).encode(errors="surrogatepass"), spoils)
    try:
        found = signal.decode(type(event).__name__, 1, data)
    except ValueError:
        return
    assert type(found) is type(event)
    assert signal.decode(type(event).__name__, 1, signal.encode(found)) == found


@settings(deadline=None)
@given(kind=st.sampled_from([*signal.SIGNALS, "Nothing", ""]), version=st.integers(), data=JSON_VALUES.map(json.dumps))
def test_json_that_is_another_thing_is_a_value_error_or_an_event(kind: str, version: int, data: str) -> None:
    with contextlib.suppress(ValueError):
        assert isinstance(signal.decode(kind, version, data), signal.Event)
