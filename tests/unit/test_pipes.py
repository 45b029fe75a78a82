"""A log's stream: what a full pipe does not take is dropped after one wait."""

import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest

from app.observe.pipes import WAIT_SECONDS, dropping

Ends = tuple[int, IO[str]]


@pytest.fixture
def ends() -> Iterator[Ends]:
    """The end of a small pipe to read from, and the end to write to."""
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    os.set_blocking(reader, False)
    with os.fdopen(writer, "w") as stream:
        yield reader, stream
    os.close(reader)


def test_a_reader_that_is_behind_is_waited_for_once(ends: Ends) -> None:
    reader, stream = ends
    log = dropping(stream)
    began = time.monotonic()
    for number in range(200):
        log.write(f"line {number:090}\n")
    assert WAIT_SECONDS <= time.monotonic() - began < 3 * WAIT_SECONDS
    assert os.read(reader, 65536).decode().splitlines()[-1].startswith("line 0")


def test_a_line_that_was_cut_short_does_not_run_into_the_next(ends: Ends) -> None:
    reader, stream = ends
    log = dropping(stream)
    log.write("x" * 6000 + "\n")
    os.read(reader, 65536)
    log.write("next\n")
    assert os.read(reader, 65536) == b"\nnext\n"


def test_what_others_have_opened_waits_as_before(ends: Ends) -> None:
    _, stream = ends
    dropping(stream)
    assert os.get_blocking(stream.fileno())


def test_a_file_is_written_to_as_it_is(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as file:
        assert dropping(file) is file
    assert dropping(file) is file  # closed
