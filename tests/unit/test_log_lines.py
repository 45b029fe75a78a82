"""How lines leave: each by itself, or those of a commit together."""

import logging
import re
from select import PIPE_BUF

import pytest

from app.observe.lines import JsonFormatter, LineHandler, TextFormatter


class Stream:
    """Remembers what each write was."""

    def __init__(self) -> None:
        self.writes: list[str] = []

    def write(self, text: str) -> int:
        self.writes.append(text)
        return len(text)

    def flush(self) -> None: ...


@pytest.fixture
def stream() -> Stream:
    return Stream()


@pytest.fixture
def logger(stream: Stream) -> logging.Logger:
    made = logging.Logger("lines", logging.INFO)  # noqa: LOG001 - one of its own, that nobody else has a handler on
    handler = LineHandler(stream)  # type: ignore[arg-type]  # it writes, and that is all
    handler.setFormatter(TextFormatter())
    made.addHandler(handler)
    return made


def test_a_line_leaves_at_once(logger: logging.Logger, stream: Stream) -> None:
    logger.info("one")
    logger.info("two")
    assert [text.split()[-1] for text in stream.writes] == ["one", "two"]


@pytest.mark.parametrize("formatter", [TextFormatter(), JsonFormatter()])
def test_a_record_of_several_facts_is_a_line_for_each_by_one_write(
    logger: logging.Logger, stream: Stream, formatter: logging.Formatter
) -> None:
    logger.handlers[0].setFormatter(formatter)
    logger.info("delivery done", extra={"facts": [{"delivery_id": 1}, {"delivery_id": 2}]})
    (text,) = stream.writes
    first, second = text.splitlines()
    assert "delivery done" in first
    assert "delivery done" in second
    assert re.findall(r"delivery_id\W+(\d)", text) == ["1", "2"]


def test_no_piece_is_longer_than_a_pipe_takes_whole(logger: logging.Logger, stream: Stream) -> None:
    logger.info("many", extra={"facts": [{"x": "x" * (PIPE_BUF // 5)} for _ in range(20)]})
    assert len(stream.writes) == 5
    assert max(map(len, stream.writes)) <= PIPE_BUF
    assert all(text.endswith("\n") for text in stream.writes)
    assert "".join(stream.writes).count("many") == 20


def test_a_line_that_no_pipe_takes_whole_is_a_piece_of_its_own(logger: logging.Logger, stream: Stream) -> None:
    logger.info("many", extra={"facts": [{"x": "short"}, {"x": "x" * PIPE_BUF}, {"x": "short"}, {"x": "x" * PIPE_BUF}]})
    assert [text.count("many") for text in stream.writes] == [1, 1, 1, 1]


def test_a_stream_that_fails_raises_nothing(logger: logging.Logger, stream: Stream) -> None:
    def full(_: str) -> int:
        raise OSError("no space left")

    stream.write = full  # type: ignore[method-assign]
    logger.info("one")
    logger.info("two")
