"""The file backend: a Maildir (cr.yp.to/proto/maildir.html), which any mail program opens."""

import contextlib
import errno
import heapq
import math
import os
import re
import socket
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from app.errors import Deferred, Unreachable
from app.files import sync
from app.mail.backend import Backend
from app.mail.envelope import OutgoingMail, readable
from config import Settings

OUTAGE_FILE = "mail-outage"

MOST_SEARCHED = 1000
"""So many files are opened to find a mail, those first whose names have a time near its own."""


def begin_outage(instance_path: Path, until: datetime) -> None:
    """Every file backend of this instance folder fails until then, as an unreachable server would."""
    instance_path.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = instance_path / f"{OUTAGE_FILE}.{os.getpid()}"
    draft.write_text(until.isoformat(), "ascii")
    draft.replace(instance_path / OUTAGE_FILE)


class FileBackend(Backend):
    """A Maildir in ``mail`` under the instance folder, made when it is needed.

    A mail is on the disk, under its final name, when deliver() returns. The standard library's ``mailbox.Maildir``
    is not used because it doesn't sync the directory, and two processes that make the folder at once collide.
    """

    def __init__(self, settings: Settings) -> None:
        self.folder = settings.instance_path / "mail"
        self._outage = settings.instance_path / OUTAGE_FILE

    def deliver(self, mail: OutgoingMail) -> None:
        """Raises Deferred when the disk is full, Unreachable when the folder can't be written to, and in an outage that
        a visitor began."""
        self._suffer_outage()
        with self._draft(readable(mail.message())) as draft:
            final = self.folder / "new" / draft.name
            draft.rename(final)
            sync(final.parent)

    def check(self) -> None:
        with self._draft(b""):
            pass

    def find(self, message_id: str, at: datetime) -> bytes | None:
        """Raises OSError where the folder, or the mail in it, can't be read."""
        names = [(kept, name) for kept in ("new", "cur") for name in self._names(kept)]
        wanted = re.compile(rb"(?mi)^Message-ID:\s*" + re.escape(message_id.encode()))
        for kept, name in heapq.nsmallest(MOST_SEARCHED, names, key=lambda each: _seconds_from(each[1], at)):
            with contextlib.suppress(FileNotFoundError):  # a mail program has just moved it
                content = (self.folder / kept / name).read_bytes()
                if wanted.search(content.partition(b"\n\n")[0]):
                    return content
        return None

    def _names(self, kept: str) -> list[str]:
        try:
            return [entry.name for entry in (self.folder / kept).iterdir()]
        except FileNotFoundError:  # no mail was delivered yet
            return []

    def _suffer_outage(self) -> None:
        try:
            until = datetime.fromisoformat(self._outage.read_text("ascii"))
        except FileNotFoundError:
            return
        if datetime.now(UTC) < until:
            raise Unreachable(f"the mail server is down until {until:%H:%M:%S} UTC: somebody broke it, to see it mend")
        self._outage.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _draft(self, content: bytes) -> Iterator[Path]:
        draft = self.folder / "tmp" / _unique_name()
        try:
            self._make()
            try:
                _write(draft, content)
                yield draft
            finally:
                draft.unlink(missing_ok=True)
        except OSError as problem:
            raise self._failure(problem) from problem

    def _make(self) -> None:
        if not (self.folder / "new").is_dir():
            for folder in (self.folder.parent, self.folder, *(self.folder / name for name in ("tmp", "cur", "new"))):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            sync(self.folder)
            sync(self.folder.parent)

    def _failure(self, problem: OSError) -> Deferred | Unreachable:
        what = f"{self.folder} doesn't take a mail: {problem.strerror}"
        if problem.errno in (errno.ENOSPC, errno.EDQUOT):
            return Deferred(f"{what}; free some space.")
        return Unreachable(f"{what}; make it a folder that the service's user can write to, or set INSTANCE_PATH.")


def _unique_name() -> str:
    """``SECONDS.Mmicroseconds.Rrandom.host``: it sorts by time."""
    seconds, microseconds = divmod(time.time_ns() // 1000, 1_000_000)
    host = socket.gethostname().replace("/", "-").replace(":", "-")
    return f"{seconds}.M{microseconds:06}R{os.urandom(8).hex()}.{host}"


def _seconds_from(name: str, at: datetime) -> float:
    """Between the time in the name and ``at``; names of others have none."""
    seconds = name.partition(".")[0]
    return abs(int(seconds) - at.timestamp()) if seconds.isascii() and seconds.isdigit() else math.inf


def _write(file: Path, content: bytes) -> None:
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as draft:
        draft.write(content)
        draft.flush()
        os.fsync(draft.fileno())
