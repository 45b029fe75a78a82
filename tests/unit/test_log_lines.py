"""How lines leave: each by itself, or those of a commit together."""

import logging
from select import PIPE_BUF

import pytest

from app.observe.lines import LineHandler, TextFormatter, written_together


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


def test_lines_that_are_written_together_leave_by_one_write(logger: logging.Logger, stream: Stream) -> None:
    with written_together():
        logger.info("one")
        logger.info("two")
        assert stream.writes == []
    (text,) = stream.writes
    assert [line.split()[-1] for line in text.splitlines()] == ["one", "two"]
    logger.info("three")
    assert len(stream.writes) == 2


def test_what_was_logged_before_an_error_leaves_all_the_same(logger: logging.Logger, stream: Stream) -> None:
    def fail() -> None:
        with written_together():
            logger.info("one")
            raise LookupError

    with pytest.raises(LookupError):
        fail()
    assert len(stream.writes) == 1


def test_no_piece_is_longer_than_a_pipe_takes_whole(logger: logging.Logger, stream: Stream) -> None:
    with written_together():
        for _ in range(20):
            logger.info("x" * (PIPE_BUF // 5))
    assert len(stream.writes) == 5
    assert max(map(len, stream.writes)) <= PIPE_BUF
    assert all(text.endswith("\n") for text in stream.writes)


def test_a_stream_that_fails_raises_nothing(logger: logging.Logger, stream: Stream) -> None:
    def full(_: str) -> int:
        raise OSError("no space left")

    stream.write = full  # type: ignore[method-assign]
    with written_together():
        logger.info("one")
    logger.info("two")
