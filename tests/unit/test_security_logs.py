"""A log line shows no address in full, and is one line: whatever a stranger wrote into what it tells of."""

import io
import json
import logging
import re
import sys
import time
from collections.abc import Callable, Iterator
from select import PIPE_BUF
from types import SimpleNamespace
from typing import Any, TextIO, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, OperationalError

from app.db import Database
from app.errors import DatabaseUnavailable
from app.observe import logs
from config import Settings

Printed = Callable[[], str]


@pytest.fixture(params=["text", "json"])
def printed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Printed]:
    """What the log shows."""
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    logs.configure(Settings.of(log_format=request.param, log_level="DEBUG"))
    yield stream.getvalue
    monkeypatch.undo()
    logs.configure(Settings.of(log_level="ERROR"))


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
    assert logs.masked(told) == shown


@settings(deadline=None)
@given(st.text(st.characters(exclude_categories=())))
def test_whatever_is_told_becomes_one_printable_line(told: str) -> None:
    assert logs.masked(told).isprintable()


@pytest.mark.parametrize(
    "told", ["a" * 10**5, "a" * 10**5 + " @", "a@" * 10**5, "@" * 10**5, "a." * 10**5 + "@", "\0" * 10**5]
)
def test_masking_takes_linear_time(told: str) -> None:
    began = time.perf_counter()
    logs.masked(told)
    assert time.perf_counter() - began < 1


def test_a_fact_is_told_in_one_line_without_addresses(printed: Printed) -> None:
    logs.log.warning(
        "delivery failed",
        reason="550 <ann@example.com>\n2026-11-23 [info] delivery done order_id=1",
        by="operator:\x1b[2J",
    )
    (line,) = printed().splitlines()
    assert "ann@" not in line
    assert "***@example.com" in line
    assert "\x1b" not in line.removeprefix("\x1b")


def test_other_loggers_lines_are_masked_too(printed: Printed) -> None:
    logging.getLogger("app").warning("Exception on %s", "/api/orders/\nforged for ann@example.com")
    (line,) = printed().splitlines()
    assert "ann@" not in line


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_what_gunicorn_says_looks_the_same(log_format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    gunicorn = logging.getLogger("gunicorn.error")
    monkeypatch.setattr(gunicorn, "handlers", [logging.StreamHandler(stream)])
    logs.configure(Settings.of(log_format=log_format, log_level="ERROR"))

    gunicorn.error("Error handling request %s", "/api/orders/ann@example.com\nforged")

    (line,) = stream.getvalue().splitlines()
    assert "ann@" not in line
    assert re.search('"level": "error"' if log_format == "json" else r"^[0-9-]{10}T[0-9:.]+Z \[error   \] Error", line)


def test_a_traceback_is_masked_and_none_of_its_lines_passes_for_one_of_the_log(printed: Printed) -> None:
    secret = "a local variable"
    try:
        raise ValueError(f"ann@example.com is wrong\n2026-11-23T00:00:00Z [info] forged {len(secret)}")
    except ValueError as error:
        logging.getLogger("app").exception("it failed")
        logs.log.error("dispatcher failed", error=error)
    told = printed()
    assert "Traceback" in told
    assert "ValueError" in told
    assert "ann@" not in told
    assert secret not in told.replace('secret = "a local variable"', "")
    assert not [line for line in told.splitlines() if line.startswith("2026-11-23T00:00:00Z")]
    if told.startswith("{"):
        assert [json.loads(line)["level"] for line in told.splitlines()] == ["error", "error"]


def test_a_database_that_is_lost_is_told_of_in_its_own_words(printed: Printed) -> None:
    error = DatabaseUnavailable()
    error.__cause__ = OperationalError("SELECT 1", {}, Exception("connection refused\nIs the server running?"))
    logs.database_lost(None, error=error)
    (line,) = printed().splitlines()
    assert re.search("""reason(=|": )['"]connection refused['"]""", line)


def test_an_error_of_the_database_tells_no_values(tmp_path: Any) -> None:
    database = Database(f"sqlite:///{tmp_path}/orders.db")
    with pytest.raises(DBAPIError) as problem, database.engine.connect() as connection:
        connection.execute(text("SELECT :address FROM nowhere"), {"address": "ann@example.com"})
    database.close()
    assert "nowhere" in str(problem.value)
    assert "ann@example.com" not in str(problem.value)


def test_lines_that_come_together_are_written_together_but_never_more_than_a_pipe_takes_whole() -> None:
    pieces: list[str] = []
    stream = SimpleNamespace(write=pieces.append)
    log = logs.Log(cast(TextIO, stream), "INFO", as_json=False)
    log.put("one", "two")
    assert pieces == ["one\ntwo\n"]
    pieces.clear()
    lines = ["x" * length for length in range(0, 1000, 9)]
    log.put(*lines)
    assert "".join(pieces) == "".join(f"{line}\n" for line in lines)
    assert max(map(len, pieces)) <= PIPE_BUF
    assert len(pieces) < len(lines) / 3
