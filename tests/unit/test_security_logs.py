"""A log line shows no address in full, and is one line: whatever a stranger wrote into what it tells of."""

import io
import json
import logging
import re
import time
import warnings
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, OperationalError

from app.db import Database
from app.errors import DatabaseUnavailable
from app.observe.lines import JsonFormatter, LineHandler, TextFormatter
from app.text import masked

FORMATTERS = {"text": TextFormatter(), "json": JsonFormatter()}


class Written(logging.Logger):
    """A logger of a test's own, and what its handler wrote."""

    def __init__(self, formatter: logging.Formatter, name: str = "elsewhere") -> None:
        super().__init__(name)
        self.stream = io.StringIO()
        handler = LineHandler(self.stream)
        handler.setFormatter(formatter)
        self.addHandler(handler)

    @property
    def lines(self) -> list[str]:
        return self.stream.getvalue().splitlines()


@pytest.fixture(params=FORMATTERS)
def log(request: pytest.FixtureRequest) -> Written:
    return Written(FORMATTERS[request.param])


@pytest.fixture
def as_json() -> Written:
    return Written(FORMATTERS["json"])


@pytest.mark.parametrize(
    "told, shown",
    [
        ("550 5.1.1 <ann.o'neil+x@example.com>: no such user", "550 5.1.1 <***@example.com>: no such user"),
        ("ann@example.com", "***@example.com"),
        ("a@b.example, c@d.example;e@f.example", "***@b.example, ***@d.example;***@f.example"),
        ("to='ann@example.com'", "***@example.com'"),
        ("mailto:ann@example.com", "mailto:***@example.com"),
        ("安@例え.jp", "***@例え.jp"),
        ("ann%40b@example.com", "***@example.com"),
        ("postgresql://shop:pass@db/orders", "postgresql://shop:***@db/orders"),
        ("@ example @", "@ example @"),
        ("no address", "no address"),
        ("a\r\nb\x1b[31mc\x85d\u2028e\u202ef\x00", "a��b�[31mc�d�e�f�"),
        ("订单 №1 – ✓", "订单 №1 – ✓"),
    ],
)
def test_what_stands_before_the_at_sign_and_what_does_something_is_masked(told: str, shown: str) -> None:
    assert masked(told) == shown


@settings(deadline=None)
@given(st.text(st.characters(exclude_categories=())))
def test_whatever_is_told_becomes_one_printable_line(told: str) -> None:
    assert masked(told).isprintable()


@pytest.mark.parametrize(
    "told", ["a" * 10**5, "a" * 10**5 + " @", "a@" * 10**5, "@" * 10**5, "a." * 10**5 + "@", "\0" * 10**5]
)
def test_masking_takes_linear_time(told: str) -> None:
    began = time.perf_counter()
    masked(told)
    assert time.perf_counter() - began < 1


FOREIGN = "550 <ann@example.com>\n2026-11-23 [info] delivery done order_id=1 \x1b[2J\u2028"


def test_facts_are_told_in_one_line_without_addresses(log: Written) -> None:
    log.warning("delivery failed", extra={"facts": {"reason": FOREIGN, "by": [FOREIGN], "count": 3}})
    assert_harmless(log)


def test_what_other_loggers_say_and_their_extra_is_masked_too(log: Written) -> None:
    log.warning("Exception on %s", FOREIGN, extra={"reason": FOREIGN, "nested": {"by": FOREIGN}, FOREIGN: 1})
    assert_harmless(log)


def assert_harmless(log: Written) -> None:
    (line,) = log.stream.getvalue().rstrip("\n").split("\n")
    assert line.isprintable()
    assert "ann@" not in line
    assert "***@example.com" in line
    if line.startswith("{"):
        assert all(masked(str(value)) == str(value) for value in json.loads(line).values())


def test_a_traceback_is_masked_and_none_of_its_lines_passes_for_one_of_the_log(log: Written) -> None:
    secret = "a local variable"
    try:
        raise ValueError(f"ann@example.com is wrong\n2026-11-23T00:00:00Z [info] forged {len(secret)}")
    except ValueError:
        log.exception("it failed", stack_info=True)
    told = log.stream.getvalue()
    assert "Traceback" in told
    assert "ValueError" in told
    assert "Stack (most recent call last)" in told
    assert "ann@" not in told
    assert secret not in told.replace('secret = "a local variable"', "")
    assert not [line for line in log.lines if line.startswith("2026-11-23T00:00:00Z")]
    if told.startswith("{"):
        assert [json.loads(line)["level"] for line in log.lines] == ["error"]


def test_a_traceback_that_was_text_already_is_set_in(log: Written) -> None:
    """As a QueueHandler leaves it."""
    record = log.makeRecord("elsewhere", logging.ERROR, "", 0, "it failed", (), None)
    record.exc_text = "Traceback:\nforged for ann@example.com"
    log.handle(record)
    assert "ann@" not in log.stream.getvalue()
    assert not [line for line in log.lines if line.startswith("forged")]


def test_json_keeps_facts_as_they_are_and_says_who_told_them(as_json: Written) -> None:
    as_json.warning("delivery failed", extra={"facts": {"attempt": 2, "due": None, "name": "x", "level": "forged"}})
    told = json.loads(as_json.lines[0])
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", told.pop("timestamp"))
    assert told == {
        "message": "delivery failed",
        "level": "warning",
        "logger": "elsewhere",
        "attempt": 2,
        "due": None,
        "name": "x",
    }


class Unshowable:
    def __str__(self) -> str:
        raise RuntimeError


def test_json_stays_json_whatever_the_facts_are(as_json: Written) -> None:
    circular: dict[str, Any] = {}
    circular["self"] = circular
    values = {"nan": float("nan"), "inf": float("inf"), "half": "\ud800", "object": Unshowable(), "circular": circular}
    as_json.error("odd", extra={"facts": values})
    as_json.error("odd", extra={"facts": "not even a mapping"})
    as_json.error("odd", extra=values)
    for line in as_json.lines:
        json.loads(line, parse_constant=pytest.fail)
    assert len(as_json.lines) == 3


def test_arguments_that_do_not_fit_lose_no_line(log: Written) -> None:
    log.error("%d orders", "many")
    (line,) = log.lines
    assert "%d orders (logged with arguments that don't fit)" in line


def test_text_puts_a_fact_in_quotes_where_it_would_be_hard_to_see_its_end() -> None:
    log = Written(FORMATTERS["text"])
    log.warning("delivery failed", extra={"facts": {"order_id": "1001", "reason": "not yet", "attempt": 1}})
    told = re.sub(r"^\S{26}Z", "2026-11-23T08:00:00.000000Z", log.lines[0])
    line = "2026-11-23T08:00:00.000000Z [warning ] delivery failed          order_id=1001 reason='not yet' attempt=1"
    assert told == line


def test_a_warning_is_one_line_with_the_line_of_code(log: Written) -> None:
    log.name = "py.warnings"
    log.warning("%s", warnings.formatwarning("old for ann@example.com", DeprecationWarning, "a.py", 7, "call(\n)"))
    (line,) = log.lines
    assert "a.py:7: DeprecationWarning: old for ***@example.com call( )" in line


def test_colours_are_left_out(log: Written) -> None:
    log.info('\x1b[33m"GET / HTTP/1.1" 404 -\x1b[0m')
    (line,) = log.lines
    assert "[33m" not in line
    assert "404 -" in line


@pytest.mark.parametrize("error", [OSError("full"), ValueError("closed"), RuntimeError("anything")])
def test_a_stream_that_fails_harms_nobody_and_says_nothing(
    log: Written, error: Exception, capsys: pytest.CaptureFixture[str]
) -> None:
    class Failing(io.StringIO):
        def write(self, _: str) -> int:
            raise error

        flush = write  # type: ignore[assignment]

    (handler,) = log.handlers
    assert isinstance(handler, LineHandler)
    handler.setStream(Failing())
    log.error("it failed", exc_info=error)
    handler.flush()
    assert capsys.readouterr() == ("", "")


def test_a_database_that_is_lost_is_told_of_in_its_own_words(log: Written) -> None:
    error = DatabaseUnavailable()
    error.__cause__ = OperationalError("SELECT 1", {}, Exception("connection refused\nIs the server running?"))
    log.error("database lost", extra={"facts": {"reason": error.reason}})
    (line,) = log.lines
    assert re.search("""reason(=|": )['"]connection refused['"]""", line)


def test_an_error_of_the_database_tells_no_values(tmp_path: Any) -> None:
    database = Database(f"sqlite:///{tmp_path}/orders.db")
    with pytest.raises(DBAPIError) as problem, database.engine.connect() as connection:
        connection.execute(text("SELECT :address FROM nowhere"), {"address": "ann@example.com"})
    database.close()
    assert "nowhere" in str(problem.value)
    assert "ann@example.com" not in str(problem.value)
