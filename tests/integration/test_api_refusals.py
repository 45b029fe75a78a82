"""POST /api/create_order with a body that is no order: a 4xx that names the reason, and nothing stored."""

import io
import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.api import CREATE, ID_RULE, ORDER, Api, messages, parse

KIB_64 = 64 * 1024


def short(value: Any) -> str:
    return ascii(value)[:24]


@pytest.fixture
def database_url(sqlite_url: str) -> str:
    """What is refused never comes as far as a database: one is enough."""
    return sqlite_url


def test_every_wrong_field_is_named_at_once_with_what_is_allowed(api: Api) -> None:
    found = api.refused({"order_id": "", "total_price": -1, "email": "ann", "colour": "red"})

    assert list(found) == ["order_id", "user_id", "total_price", "email", "colour"]
    assert found["order_id"] == f"must be {ID_RULE}"
    assert found["user_id"] == f"is required: {ID_RULE}"
    assert "from 0 to 9999999999.99 with at most two decimals" in found["total_price"]
    assert "ann@example.com" in found["email"]
    assert "@-sign" in found["email"]
    assert found["colour"] == "is unknown; known are order_id, user_id, total_price, email"


@pytest.mark.parametrize("field", ["order_id", "user_id"])
@pytest.mark.parametrize(
    "value",
    ['""', '"."', '".."', '"\\u002e"', f'"{"a" * 65}"', '"a b"', '"a/b"', '"ä"', '"٣"', '"a\\n"', '"a\\u0000"',
     '"\\ud800"', '"a\\r\\nBcc: x"',
     "-1", "7.0", "1e2", "true", "null", "[7]", "{}", "NaN", str(10**64), "9" * 5000],
    ids=short,
)  # fmt: skip
def test_what_is_no_id_is_refused(api: Api, field: str, value: str) -> None:
    order = {name: json.dumps(given) for name, given in ORDER.items()} | {field: value}
    body = ", ".join(f'"{name}": {given}' for name, given in order.items())
    assert list(api.refused(f"{{{body}}}")) == [field]


@pytest.mark.parametrize(
    "value",
    ["19.990", "19.941", "0.001", "1e-3", "1e10", "10000000000", "10000000000.00", "-0.01", "-1", "1e400", "-1e400",
     "NaN", "Infinity", "-Infinity", "1e99999999999999999999", "1e-99999999999999999999", "9" * 5000, "0." + "9" * 5000,
     "true", "null", "[1]", "{}", '"abc"', '""', '"19.990"', '"19."', '".5"', '"-1"', '"+1"', '" 1"', '"1\\n"', '"1e2"',
     '"1_000"', '"1,00"', '"١٩"', '"NaN"', '"10000000000"', '"\\ud800"', f'"{"9" * 5000}"'],
    ids=short,
)  # fmt: skip
def test_what_is_no_price_is_refused(api: Api, value: str) -> None:
    assert list(api.refused(f'{{"order_id": 1001, "user_id": 42, "total_price": {value}}}')) == ["total_price"]


@pytest.mark.parametrize(
    "value",
    ["", "ann", "ann@", "@example.com", "a@b@example.com", "ann@example.com\r\nBcc: b@example.com", "ann@example.com\n",
     "ann@\ud800.com", "\ud800@example.com", "ann\x00@example.com", "Ann <ann@example.com>", "änn@example.com",
     "a@" + "x" * 60 + ".example" * 25, "a" * 65 + "@example.com", "a" * 60_000, 7, True, ["ann@example.com"], {}],
    ids=short,
)  # fmt: skip
def test_what_is_no_address_is_refused(api: Api, value: Any) -> None:
    assert list(api.refused(ORDER | {"email": value})) == ["email"]


def test_an_address_may_be_as_long_as_254_characters(api: Api) -> None:
    domain = ".".join(["x" * 61] * 4)
    assert len(f"abcdef@{domain}") == 254
    assert list(api.refused(ORDER | {"email": f"abcdefg@{domain}"})) == ["email"]
    assert api.place(email=f"abcdef@{domain}").status_code == 201


@pytest.mark.parametrize(
    "name, shown",
    [
        ("x" * 64, "x" * 64),
        ("x" * 65, "x" * 63 + "…"),
        ("a\r\nb\x00", "a��b�"),
        ("\ud800", "�"),
        ("颜色", "颜色"),
        ("", ""),
    ],
)
def test_an_unknown_field_is_named_in_a_form_that_does_nothing(api: Api, name: str, shown: str) -> None:
    assert list(api.refused(ORDER | {name: 1})) == [shown]


def test_thousands_of_unknown_fields_are_counted_and_a_hundred_are_named(api: Api) -> None:
    response = api.post(ORDER | {f"f{number}": 0 for number in range(5000)})
    assert parse(response)["detail"] == "5000 fields are wrong."
    assert len(messages(response)) == 100


@pytest.mark.parametrize("body", ["[]", "null", "7", "NaN", '"text"', "true", f"[{json.dumps(ORDER)}]"])
def test_json_that_is_no_object_is_refused_as_a_whole(api: Api, body: str) -> None:
    assert api.refused(body) == {"": "must be a JSON object"}


@pytest.mark.parametrize(
    "body, reason",
    [
        (b"", "Expecting value"),
        (b"{", "Expecting property name"),
        (b"{'order_id': 1}", "Expecting property name"),
        (b"order_id=1", "Expecting value"),
        (b'{"order_id": 01}', "Expecting"),
        (json.dumps(ORDER).encode() + b"x", "Extra data"),
        (b'{"order_id": "\xff"}', "not UTF-8 at byte 14"),
        (json.dumps(ORDER).encode("utf-16"), "not UTF-8"),
        (b'{"order_id": "\xed\xa0\x80"}', "not UTF-8"),
        (b'{"order_id": "a\x00"}', "Invalid control character"),
        (b'{"order_id": 1, "order_id": 1}', "'order_id' twice"),
        (b'{"order_id": {"a": 1, "a": 2}}', "'a' twice"),
        (b'{"\\ud800": 1, "\\ud800": 2}', "twice"),
        (b"[" * 10_000, "nested too deeply"),
        (b'{"a":' * 10_000, "nested too deeply"),
        (b"[" * 10_000 + b"]" * 10_000, "nested too deeply"),
    ],
    ids=short,
)
def test_what_is_no_json_is_refused_with_the_reason(api: Api, body: bytes, reason: str) -> None:
    response = api.post(body)
    assert response.status_code == 400
    assert reason in parse(response)["detail"]
    assert api.stored() == (0, 0, 0)


def test_a_byte_order_mark_is_ignored(api: Api) -> None:
    assert api.post(b"\xef\xbb\xbf" + json.dumps(ORDER).encode()).status_code == 201


@pytest.mark.parametrize("terminated", [False, True], ids=["with a length", "in chunks"])
@pytest.mark.parametrize("size, status", [(KIB_64, 201), (KIB_64 + 1, 413), (KIB_64 + 2, 413), (1024 * 1024, 413)])
def test_a_body_may_have_64_kib(api: Api, size: int, status: int, terminated: bool) -> None:
    body = json.dumps(ORDER).encode().ljust(size)
    how: dict[str, Any] = {"data": body}
    if terminated:
        how = {"input_stream": io.BytesIO(body), "environ_overrides": {"wsgi.input_terminated": True}}
    response = api.client.post(CREATE, content_type="application/json", **how)
    assert response.status_code == status
    assert api.stored()[0] == (status == 201)


@pytest.mark.parametrize(
    "content_type, status",
    [
        ("application/json", 201),
        ("application/json; charset=utf-8", 201),
        ('Application/JSON; charset="UTF-8"', 201),
        ("application/json; charset=utf8", 201),
        ("application/json; version=1", 201),
        ("application/json; charset=latin-1", 415),
        ("application/json; charset=utf-16", 415),
        ("application/vnd.api+json", 415),
        ("text/plain", 415),
        ("text/json", 415),
        ("application/x-www-form-urlencoded", 415),
        ("multipart/form-data; boundary=x", 415),
        ("", 415),
        (None, 415),
        ("\xff;;=", 415),
    ],
)
def test_a_body_must_say_that_it_is_json(api: Api, content_type: str | None, status: int) -> None:
    response = api.post(ORDER, content_type=content_type)
    assert response.status_code == status
    if status == 415:
        assert response.headers["Accept"] == "application/json"


def test_a_compressed_body_is_refused(api: Api) -> None:
    assert api.post(ORDER, headers={"Content-Encoding": "gzip"}).status_code == 415
    assert api.post(ORDER, headers={"Content-Encoding": "identity"}).status_code == 201


def test_the_first_thing_wrong_is_the_one_answered(api: Api) -> None:
    """What it is, how large, whether JSON, then the fields."""
    too_large = b"{" * (KIB_64 + 1)
    assert api.post(too_large, content_type="text/plain").status_code == 415
    assert api.post(too_large).status_code == 413
    assert api.post(b'{"order_id": -1, "order_id": -1}').status_code == 400


def test_a_client_that_goes_away_in_the_middle_leaves_nothing(api: Api) -> None:
    body = json.dumps(ORDER).encode()
    response = api.post(body, environ_overrides={"CONTENT_LENGTH": str(len(body) + 10)})
    assert response.status_code == 400
    assert api.stored() == (0, 0, 0)


def test_chunks_that_the_server_cannot_read_are_the_clients_fault(api: Api) -> None:
    """gunicorn's InvalidChunkSize, as an example, is neither an OSError nor a ValueError."""

    class BrokenChunks(io.BytesIO):
        def readinto(self, _: Any) -> int:
            raise Exception("invalid chunk size")

    response = api.client.post(
        CREATE,
        input_stream=BrokenChunks(),
        content_type="application/json",
        environ_overrides={"wsgi.input_terminated": True},
    )
    assert response.status_code == 400
    assert "chunks" in parse(response)["detail"]


def test_a_refused_order_does_not_use_its_id_up(api: Api) -> None:
    assert api.place(total_price="abc").status_code == 422
    assert api.place().status_code == 201


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=()))
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=5)
FIELDS = st.sampled_from(["order_id", "user_id", "total_price", "email"]) | st.text(
    st.characters(exclude_categories=())
)
BODIES = st.dictionaries(FIELDS, VALUES, max_size=6).map(json.dumps) | VALUES.map(json.dumps) | st.binary()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=BODIES)
def test_whatever_is_posted_is_answered_as_described(api: Api, body: str | bytes) -> None:
    """The client of these tests holds each answer against the document, which knows no 500 for a body's sake."""
    assert api.post(body).status_code in (200, 201, 400, 409, 422)
