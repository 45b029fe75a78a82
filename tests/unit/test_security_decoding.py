"""Readers of what others wrote, of JSON, stored events, and a request's framing: a ValueError, or the truth."""

import contextlib
import io
import itertools
import json
from decimal import Decimal
from http import HTTPStatus
from typing import Any

from flask import Flask
from gunicorn.config import Config
from gunicorn.http.errors import ParseException
from gunicorn.http.parser import RequestParser
from gunicorn.http.unreader import Unreader
from hypothesis import example, given, settings
from hypothesis import strategies as st

from app import events, signal
from app.api.json_provider import ExactJSONProvider
from app.http import MAX_BODY_BYTES
from app.server import LARGEST_REQUEST, AllThereIs, Incoming
from config import Settings

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


# A request's end


class Source(Unreader):
    """Bytes, and then a complaint that there are no more."""

    def __init__(self, data: bytes) -> None:
        super().__init__()
        self.left = io.BytesIO(data)

    def chunk(self, size_hint: int | None = None) -> bytes:
        data = self.left.read(8192)
        assert data, "gunicorn would wait for more"
        return data


def gunicorn_reads(data: bytes) -> tuple[bytes, bytes] | None:
    """The body of the request, and what follows it; None where it is no request."""
    parser = RequestParser(Config(), iter([b""]), ("127.0.0.1", 1))
    parser.unreader = Source(data)
    try:
        request = next(parser)
        body = request.body.read()
    except ParseException:
        return None
    return body, parser.unreader.take_buffered() + parser.unreader.left.read()


FIELDS = st.lists(
    st.sampled_from([b"Host: a", b"X: y", b"Expect: 100-continue", b"Content-Type: a; b=c"]), max_size=3, unique=True
)
BODIES = st.binary(max_size=60) | st.sampled_from(
    [b"\r\n\r\n", b"0\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n", b"Content-Length: 9\r\n\r\n"]
)


def with_length(body: bytes, name: bytes) -> tuple[bytes, bytes]:
    return name + b": %d" % len(body), body


def in_chunks(parts: list[bytes], trailers: bytes) -> tuple[bytes, bytes]:
    chunks = b"".join(b"%X;a=b\r\n%s\r\n" % (len(part), part) for part in parts if part)
    return b"Transfer-Encoding: chunked", chunks + b"000\r\n" + trailers + b"\r\n"


FRAMED = st.builds(
    with_length, BODIES, st.sampled_from([b"Content-Length", b"content-length", b"CONTENT-LENGTH"])
) | st.builds(in_chunks, st.lists(BODIES, max_size=4), st.sampled_from([b"", b"X: y\r\n", b"X: y\r\nZ: 0\r\n"]))


def request_of(fields: list[bytes], framed: tuple[bytes, bytes]) -> bytes:
    framing, content = framed
    return b"\r\n".join([b"POST /a HTTP/1.1", *fields, framing, b"", b""]) + content


@settings(max_examples=200, deadline=None)
@given(fields=FIELDS, framed=FRAMED, cuts=st.lists(st.integers(0, 300), max_size=6), behind=BODIES)
def test_a_request_is_complete_with_its_last_byte_and_not_before(
    fields: list[bytes], framed: tuple[bytes, bytes], cuts: list[int], behind: bytes
) -> None:
    whole = request_of(fields, framed)
    places = sorted({0, len(whole) - 1, *(cut % len(whole) for cut in cuts)})
    incoming = Incoming()
    for begin, end in itertools.pairwise(places):
        assert incoming.feed(whole[begin:end]) is None
    assert incoming.feed(whole[-1:] + behind) == HTTPStatus.OK
    read = gunicorn_reads(bytes(incoming.content))
    assert read is not None
    assert read[1] == behind


@settings(max_examples=300, deadline=None)
@given(fields=FIELDS, framed=FRAMED, spoils=SPOILS)
@example(fields=[], framed=(b"Content-Length: 5\r\nContent-Length: 9", b"12345"), spoils=[])
@example(fields=[], framed=(b"Transfer-Encoding: chunked\r\nContent-Length: 9", b"0\r\n\r\n"), spoils=[])
@example(fields=[], framed=(b"Transfer-Encoding: gzip, chunked", b"0\r\n\r\n"), spoils=[])
@example(fields=[], framed=(b"Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked", b"0\r\n\r\n"), spoils=[])
@example(fields=[b"X: a\r\n Content-Length: 5"], framed=(b"Content-Length: 0", b""), spoils=[])
def test_what_counts_as_complete_is_so_for_gunicorn_too(
    fields: list[bytes], framed: tuple[bytes, bytes], spoils: list[tuple[int, int, bytes]]
) -> None:
    """Otherwise it would take the beginning of a body for the whole, or for the next request."""
    incoming = Incoming()
    data = spoil(request_of(fields, framed), spoils)
    if incoming.feed(data) == HTTPStatus.OK:
        gunicorn_reads(data)  # fails where it wants more


def test_a_request_is_refused_as_soon_as_it_says_that_it_is_too_large() -> None:
    head = b"POST / HTTP/1.1\r\n"
    for framing in (b"Content-Length: %d\r\n\r\n" % LARGEST_REQUEST, b"Transfer-Encoding: chunked\r\n\r\nfffff\r\n"):
        assert Incoming().feed(head + framing) == HTTPStatus.REQUEST_ENTITY_TOO_LARGE


def test_the_server_lets_every_body_through_that_the_application_takes() -> None:
    assert MAX_BODY_BYTES * 1.5 < LARGEST_REQUEST


def test_nothing_that_a_thread_reads_from_can_wait() -> None:
    assert AllThereIs().read() == b""
    assert AllThereIs().read(5) == b""


def test_the_setting_is_seconds() -> None:
    assert Settings.of(request_read_seconds="2.5").request_read_seconds == 2.5
