"""Counters in shared files: each process of the service has one, and all are added up.

A file is an array of numbers, mapped into memory, and behind it their keys, a line each. A process locks its own file
for as long as it lives, so an unlocked file is a dead process's. It is added to the file ``ended``, because a sum that
became smaller would read as a restart. When no process is left the service has ended, and the first process of the next
one begins at zero.
"""

import contextlib
import errno
import fcntl
import functools
import json
import logging
import mmap
import os
import threading
import uuid
import weakref
from array import array
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import IO, NamedTuple

log = logging.getLogger(__name__)

Key = tuple[str, ...]

MOST = 2048
"""Counts of one process. Clients can't make up so many; a mistake of ours could."""

ARRAY_BYTES = MOST * array("d").itemsize


class File(NamedTuple):
    """A process' counts. ``numbers`` are mapped: what is written to them is in the file."""

    numbers: "memoryview[float]"
    mapped: mmap.mmap
    opened: IO[bytes]
    """Open, and so locked, for as long as the process lives."""

    def close(self) -> None:
        self.numbers.release()
        self.mapped.close()
        self.opened.close()


class Counts:
    """One for each application. For any thread. Where the folder can't be written, the process counts for itself."""

    def __init__(self, folder: Path, *, parents: bool = True) -> None:
        """``parents``: whether the folders above it are made where they are missing."""
        self.folder, self._parents = folder, parents
        self._start_afresh()
        _all.add(self)

    def _start_afresh(self) -> None:
        self._lock = threading.Lock()
        self._places: dict[Key, int] = {}
        self._numbers: memoryview[float] = memoryview(array("d", bytes(ARRAY_BYTES)))
        """The process' own, until it has a file."""
        self._file: File | None = None
        self._is_told = False
        """Whether the log says that the folder can't be written."""
        self._is_full = False
        self._finish: Callable[[], object] | None = None

    def after_fork(self) -> None:
        """The file is the parent's, who holds it still."""
        self.close()
        self._start_afresh()

    def close(self) -> None:
        if self._finish is not None:
            self._finish()

    def add(self, key: Key, amount: float = 1) -> None:
        """Add to the count of that key. Raises nothing, and waits for no other process."""
        self.add_all([(key, amount)])

    def add_all(self, amounts: Iterable[tuple[Key, float]]) -> None:
        """The same for many."""
        with self._lock:
            if self._file is None and not self._is_told:
                self._open()
            for key, amount in amounts:
                place = self._places.get(key)
                if place is None:
                    place = self._make_place(key)
                if place is not None:
                    self._numbers[place] += amount

    def totals(self) -> dict[Key, float]:
        """The sums of all processes', by key."""
        with self._lock:
            if self._file is None:
                self._open()
            if self._file is None:
                return {key: self._numbers[place] for key, place in self._places.items()}
        with self._folder_lock() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self._add_dead()
            return _sums(self._files())

    def _make_place(self, key: Key) -> int | None:
        """None where there is no room: the key is not counted."""
        if self._is_full or len(self._places) == MOST:
            return None
        if self._file is not None:
            try:
                _write(self._file.opened, _line(key))
            except OSError as error:
                self._is_full = True  # half a line may stand at the end
                self._tell(error)
                return None
        place = self._places[key] = len(self._places)
        return place

    def _open(self) -> None:
        """Make the file. Not at this time, where another process reads the folder."""
        try:
            self.folder.mkdir(mode=0o700, parents=self._parents, exist_ok=True)
            with self._folder_lock() as lock, contextlib.suppress(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if not any(map(_is_held, self._files())):
                    for left_over in self._files():
                        left_over.unlink()
                values = {key: self._numbers[place] for key, place in self._places.items()}
                self._file = _new_file(self.folder / f"{uuid.uuid4().hex}.counts", values)
                self._numbers = self._file.numbers
                self._finish = weakref.finalize(self, self._file.close)
        except OSError as error:
            self._tell(error)

    def _tell(self, error: OSError) -> None:
        if not self._is_told:
            self._is_told = True
            log.warning("metrics of this process are its own, because %s can't be written: %s", self.folder, error)

    def _add_dead(self) -> None:
        dead = {file for file in self._files() if not _is_held(file)}
        ended = self.folder / "ended.counts"
        if left := dead - {ended}:
            new = self.folder / "ended.new"
            new.unlink(missing_ok=True)
            _new_file(new, _sums(dead)).close()
            new.replace(ended)
            for file in left:
                file.unlink()

    def _files(self) -> list[Path]:
        return list(self.folder.glob("*.counts"))

    def _folder_lock(self) -> IO[bytes]:
        """The file whose lock is the folder's."""
        return _open_private(self.folder / "lock", "ab")


def _new_file(path: Path, values: Mapping[Key, float]) -> File:
    """A file with these values. Raises OSError, and leaves none.

    The array is written before it is mapped: a mapped page for which a full disk has no place ends the process.
    """
    opened = _open_private(path, "xb+")
    try:
        fcntl.flock(opened, fcntl.LOCK_EX)
        numbers = array("d", [*values.values(), *[0.0] * (MOST - len(values))])
        _write(opened, numbers.tobytes() + b"".join(map(_line, values)))
        mapped = mmap.mmap(opened.fileno(), ARRAY_BYTES)
    except BaseException:
        opened.close()
        path.unlink()
        raise
    return File(memoryview(mapped).cast("d"), mapped, opened)


def _open_private(path: Path, mode: str) -> IO[bytes]:
    """Without a buffer. A file that is made is its owner's alone, whatever the umask says."""
    return open(path, mode, buffering=0, opener=functools.partial(os.open, mode=0o600))


def _write(opened: IO[bytes], content: bytes) -> None:
    """Raises OSError where the file doesn't take all of it."""
    if opened.write(content) < len(content):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _line(key: Key) -> bytes:
    return json.dumps(key).encode() + b"\n"


def _is_held(file: Path) -> bool:
    """Whether the process that made it lives. The kernel frees the lock of one that died."""
    with file.open("rb") as opened:
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


def _sums(files: Iterable[Path]) -> dict[Key, float]:
    found: defaultdict[Key, float] = defaultdict(float)
    for file in files:
        stored = file.read_bytes()
        *lines, _ = stored[ARRAY_BYTES:].split(b"\n")  # behind the last line's end there may be half a line
        numbers = array("d", stored[:ARRAY_BYTES])
        for line, number in zip(lines, numbers, strict=False):
            found[tuple(json.loads(line))] += number
    return dict(found)


_all: "weakref.WeakSet[Counts]" = weakref.WeakSet()


def _after_fork() -> None:
    for counts in list(_all):
        counts.after_fork()


os.register_at_fork(after_in_child=_after_fork)
