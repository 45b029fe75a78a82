"""The file backend: a Maildir (cr.yp.to/proto/maildir.html), which any mail program opens."""

import contextlib
import errno
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from app.errors import Deferred, Unreachable
from app.files import sync
from app.mail.backend import Backend
from app.mail.envelope import OutgoingMail, readable
from config import Settings


class FileBackend(Backend):
    """A Maildir in ``mail`` under the instance folder, made when it is needed.

    A mail is on the disk, under its final name, when deliver() returns. The standard library's ``mailbox.Maildir``
    is not used because it doesn't sync the directory, and two processes that make the folder at once collide.
    """

    def __init__(self, settings: Settings) -> None:
        self.folder = settings.instance_path / "mail"

    def deliver(self, mail: OutgoingMail) -> None:
        """Raises Deferred when the disk is full, Unreachable when the folder can't be written to."""
        with self._draft(readable(mail.message())) as draft:
            final = self.folder / "new" / draft.name
            draft.rename(final)
            sync(final.parent)

    def check(self) -> None:
        with self._draft(b""):
            pass

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


def _write(file: Path, content: bytes) -> None:
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as draft:
        draft.write(content)
        draft.flush()
        os.fsync(draft.fileno())
