"""Counts: processes add up to one sum, whichever of them dies."""

import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app.observe import counts as module
from app.observe.counts import Counts

ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "metrics"


@pytest.fixture
def counts(folder: Path) -> Iterator[Counts]:
    made = Counts(folder)
    yield made
    made.close()


class Process:
    """Another process, which has counted three oranges, and lives until it is killed."""

    CODE = (
        "import sys, pathlib; from app.observe.counts import Counts\n"
        "counts = Counts(pathlib.Path(sys.argv[1]))\n"
        "for _ in range(3): counts.add(('oranges',))\n"
        "print('counted', flush=True); sys.stdin.read()"
    )

    def __init__(self, folder: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", self.CODE, str(folder)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"counted\n"

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.communicate(timeout=20)


def files(folder: Path) -> int:
    return len(list(folder.glob("*.counts")))


def test_what_is_counted_is_the_sum_of_all_processes(folder: Path, counts: Counts) -> None:
    counts.add(("oranges",))
    counts.add(("apples", "red"), 2.5)
    other = Process(folder)
    try:
        assert counts.totals() == {("oranges",): 4, ("apples", "red"): 2.5}
    finally:
        other.kill()


def test_a_sum_never_shrinks_when_processes_die_and_their_files_do_not_pile_up(folder: Path, counts: Counts) -> None:
    counts.add(("oranges",))
    for dead in range(1, 4):
        Process(folder).kill()
        assert counts.totals()[("oranges",)] == 1 + 3 * dead
        assert files(folder) == 2  # ours, and that of all who ended
    counts.add(("oranges",))
    assert counts.totals()[("oranges",)] == 11


def test_the_first_process_of_a_new_start_begins_at_zero(folder: Path) -> None:
    Process(folder).kill()
    with_leftovers = Counts(folder)
    assert with_leftovers.totals() == {}
    assert files(folder) == 1
    with_leftovers.close()


def test_a_child_that_is_forked_counts_into_a_file_of_its_own(folder: Path, counts: Counts) -> None:
    counts.add(("oranges",))
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        try:
            counts.add(("oranges",), 10)
            os.write(writer, b"counted")
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert os.read(reader, 100) == b"counted"
    os.close(reader)
    os.close(writer)
    counts.add(("oranges",))
    assert counts.totals() == {("oranges",): 12}


def test_while_another_process_reads_nobody_waits_and_nothing_is_lost(folder: Path, counts: Counts) -> None:
    import fcntl

    folder.mkdir()
    with (folder / "lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        counts.add(("oranges",), 2)
        assert files(folder) == 0
    counts.add(("oranges",))
    assert counts.totals() == {("oranges",): 3}


def test_where_the_folder_cannot_be_written_it_is_said_once_and_the_process_counts_for_itself(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    counts = Counts(tmp_path / "file" / "metrics")
    with caplog.at_level(logging.WARNING):
        counts.add(("oranges",))
        counts.add(("oranges",))
    assert counts.totals() == {("oranges",): 2}
    assert len(caplog.records) == 1


class FullDisk:
    """Takes so many bytes more."""

    def __init__(self, room: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.room, self.write = room, module._write
        monkeypatch.setattr(module, "_write", self)

    def __call__(self, opened: Any, content: bytes) -> None:
        self.write(opened, content[: self.room])
        if len(content) > self.room:
            raise OSError(28, "No space left on device")
        self.room -= len(content)


def test_on_a_full_disk_no_file_is_left_and_the_process_counts_for_itself(
    folder: Path, counts: Counts, monkeypatch: pytest.MonkeyPatch
) -> None:
    FullDisk(1000, monkeypatch)
    counts.add(("oranges",))
    assert files(folder) == 0
    monkeypatch.undo()
    assert counts.totals() == {("oranges",): 1}
    assert files(folder) == 1


def test_a_disk_that_is_full_later_loses_only_counts_that_are_new(
    folder: Path, counts: Counts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The array has its place already: a mapped page for which there is none would kill the process."""
    counts.add(("oranges",))
    FullDisk(3, monkeypatch)
    counts.add(("apples",))
    counts.add(("oranges",))
    monkeypatch.undo()
    counts.add(("apples",))
    counts.add(("oranges",))
    assert counts.totals() == {("oranges",): 3}
    (file,) = folder.glob("*.counts")
    assert file.stat().st_blocks * 512 >= module.ARRAY_BYTES, "the array has holes"


def test_there_is_a_limit_to_what_is_counted(folder: Path, counts: Counts) -> None:
    for number in range(module.MOST + 10):
        counts.add(("fruit", str(number)))
    counts.add(("fruit", "0"))
    assert len(counts.totals()) == module.MOST
    assert counts.totals()["fruit", "0"] == 2


def test_threads_lose_no_count(counts: Counts) -> None:
    def count() -> None:
        for _ in range(2000):
            counts.add(("oranges",))

    threads = [threading.Thread(target=count) for _ in range(8)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert counts.totals() == {("oranges",): 16000}
