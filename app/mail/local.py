"""The backends that need no server: a Maildir, stdout, a list."""

import collections
import errno
import os
import socket
import sys
import time
from pathlib import Path

from flask_mail import Message

from app.errors import AttemptFailed, Deferred, Unreachable
from app.mail.envelope import Backend, Parcel
from config import Settings

OUTBOX_LIMIT = 1000


class FileBackend(Backend):
    """A Maildir (cr.yp.to/proto/maildir.html) in ``mail`` under the instance folder. Made when it is needed.

    A mail is on the disk, under its final name, when deliver() returns. The standard library's ``mailbox.Maildir``
    is not used because it doesn't sync the directory, and two processes that make the folder at once collide.
    """

    def __init__(self, settings: Settings) -> None:
        self.folder = settings.instance_path / "mail"

    def deliver(self, parcel: Parcel) -> None:
        """Raises Deferred when the disk is full, Unreachable when the folder can't be written to."""
        self._write(parcel.readable(), keep=True)

    def check(self) -> None:
        self._write(b"", keep=False)

    def _write(self, content: bytes, *, keep: bool) -> None:
        name = _unique_name()
        draft, final = self.folder / "tmp" / name, self.folder / "new" / name
        try:
            self._make()
            try:
                with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
                if keep:
                    draft.rename(final)
                    _sync(final.parent)
            finally:
                draft.unlink(missing_ok=True)
        except OSError as problem:
            kind: type[AttemptFailed] = Unreachable
            cure = "make it a folder that the service's user can write to, or set INSTANCE_PATH"
            if problem.errno in (errno.ENOSPC, errno.EDQUOT):
                kind, cure = Deferred, "free some space"
            raise kind(f"{self.folder} doesn't take a mail: {problem.strerror}; {cure}.") from problem

    def _make(self) -> None:
        if not (self.folder / "new").is_dir():
            for folder in (self.folder.parent, self.folder, *(self.folder / name for name in ("tmp", "cur", "new"))):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            _sync(self.folder)
            _sync(self.folder.parent)


class ConsoleBackend(Backend):
    """Prints headers and text to stdout."""

    def deliver(self, parcel: Parcel) -> None:
        """Raises Unreachable when stdout is closed."""
        headers = parcel.readable().decode().partition("\n\n")[0]
        shown = f"{'-' * 78}\n{headers}\n\n{parcel.message.body or ''}\n{'-' * 78}\n"
        encoding = sys.stdout.encoding or "utf-8"
        try:
            sys.stdout.write(shown.encode(encoding, "backslashreplace").decode(encoding))
            sys.stdout.flush()
        except (OSError, ValueError) as problem:
            raise Unreachable(f"The mail can't be printed: {problem}; set MAIL_BACKEND to file.") from problem


class MemoryBackend(Backend):
    """Remembers the last thousand messages."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.outbox: collections.deque[Message] = collections.deque(maxlen=OUTBOX_LIMIT)

    def deliver(self, parcel: Parcel) -> None:
        parcel.content()  # what no server could get fails here too
        self.outbox.append(parcel.message)


def _unique_name() -> str:
    """``SECONDS.Mmicroseconds.Rrandom.host``: it sorts by time."""
    seconds, microseconds = divmod(time.time_ns() // 1000, 1_000_000)
    host = socket.gethostname().replace("/", "-").replace(":", "-")
    return f"{seconds}.M{microseconds:06}R{os.urandom(8).hex()}.{host}"


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
