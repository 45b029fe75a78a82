"""The JSON provider: exact numbers, refusals, and UTF-8 output."""

import time
from decimal import Decimal
from typing import Any

import pytest
from flask import Flask

from app.api.json_provider import ExactJSONProvider
from app.text import shortened

provider = ExactJSONProvider(Flask("test"))


@pytest.mark.parametrize(
    "text, value",
    [
        ("19.99", Decimal("19.99")),
        ("0.1000000000000000055", Decimal("0.1000000000000000055")),  # not 0.1, which a double would make of it
        ("1e2", Decimal("1E+2")),
        ("-0", 0),
        ("9" * 100, int("9" * 100)),
        ("9" * 101, Decimal("9" * 101)),
        ("9" * 5000, Decimal("9" * 5000)),  # Python refuses to read more than 4300 digits as an int
        ("1e99999999999999999999", Decimal("Infinity")),
        ("Infinity", Decimal("Infinity")),
        ("-Infinity", Decimal("-Infinity")),
        ('"\\ud800"', "\ud800"),
        (b'\xef\xbb\xbf"a"', "a"),
        ("true", True),
        ("null", None),
    ],
    ids=lambda value: ascii(value)[:20],
)
def test_a_value_is_read_as_it_was_written(text: str | bytes, value: Any) -> None:
    found = provider.loads(text)
    assert found == value
    assert type(found) is type(value)


def test_nan_is_read_and_equals_no_price() -> None:
    assert provider.loads("NaN").is_nan()


@pytest.mark.parametrize(
    "text",
    [b"\xff", b'"\xed\xa0\x80"', "", "{", '{"a":1,"a":2}', '[{"a":1,"a":1}]', "[" * 100_000, '{"a":' * 100_000, "01"],
    ids=lambda value: ascii(value)[:20],
)  # fmt: skip
def test_what_is_no_json_is_a_value_error_and_nothing_worse(text: str | bytes) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        provider.loads(text)


def test_a_hostile_body_costs_no_time() -> None:
    """Thousands of names with one twice at the end, and as many digits as fit: linear work, not quadratic."""
    names = ",".join(f'"{number:x}":0' for number in range(7000))
    started = time.perf_counter()
    with pytest.raises(ValueError, match="twice"):
        provider.loads(f'{{{names},"1b57":0}}')
    provider.loads("9" * 65_000)
    provider.loads("0." + "9" * 65_000)
    assert time.perf_counter() - started < 0.5


def test_chinese_is_written_as_it_is() -> None:
    assert provider.dumps("订单") == '"订单"'


def test_a_lone_surrogate_is_written_as_an_escape() -> None:
    assert provider.dumps({"a": "\ud800订"}) == '{"a":"\\ud800订"}'


def test_a_decimal_is_written_as_a_string() -> None:
    assert provider.dumps(Decimal("19.90")) == '"19.90"'


@pytest.mark.parametrize(
    "name, shown",
    [
        ("order_id", "order_id"),
        ("颜色", "颜色"),
        ("a\nb\x1b[31m", "a�b�[31m"),
        ("\u202egnp.exe", "�gnp.exe"),  # would turn the rest of a line round
        ("x" * 64, "x" * 64),
        ("x" * 65, "x" * 63 + "…"),
    ],
)
def test_a_name_is_shown_short_and_harmless(name: str, shown: str) -> None:
    assert shortened(name) == shown
