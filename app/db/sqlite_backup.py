"""Backup and restore of a SQLite file: a consistent copy that was checked before it is called a backup.

The copy is made by SQLite's backup API on one snapshot, while others write. It is a plain file without a WAL, and
appears under its name only when it is whole and on the disk.
"""

import fcntl
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

from app.db.database import SCHEMA_REVISION, Database
from app.db.schema import upgrade
from app.db.sqlite import driver_module
from app.errors import BackupFailed
from app.files import sync

PAGES_PER_STEP = 4096
"""Of 4 KiB, copied between two reports of progress."""

SHARED_LOCK = (510, 0x40000002)
"""Length and offset of the bytes on which every connection to a file in WAL mode holds a lock (SQLite's os_unix.c)."""

STOP_ALL = "stop the service, and every dispatcher, command and shell that uses it, first"

Progress = Callable[[int, int], None]
"""Called with how many pages are copied, and how many there are."""


@dataclass(frozen=True)
class Contents:
    """The contents of a checked copy."""

    revision: str
    orders: int
    newest: str | None
    """When its newest order was created."""
    unfinished: int
    """Deliveries that are not done."""


def back_up(file: Path, target: Path, progress: Progress) -> Contents:
    """Copy the database to a new file, whoever uses it meanwhile. Raises BackupFailed."""
    if target.exists() or target.is_symlink():
        raise BackupFailed(f"{target} is there already; name a file that is not")
    if not target.parent.is_dir():
        raise BackupFailed(f"there is no folder {target.parent}; make it, or name another")
    with _failures(f"{target} was not made"), _part_of(target) as part:
        _copy(file, part, progress)
        contents = _checked(part)
        sync(part)
        part.rename(target)
        sync(target.parent)
    return contents


@dataclass(frozen=True)
class Restore:
    """A checked copy beside the database's file, which ``replace()`` puts in its place."""

    file: Path
    part: Path
    contents: Contents

    def replace(self) -> Path | None:
        """Returns where the earlier file is kept, None where there was none. Raises BackupFailed."""
        kept = self.file.with_name(f"{self.file.name}.before-restore-{datetime.now(UTC):%Y%m%dT%H%M%SZ}")
        wal, shm = (Path(f"{self.file}{suffix}") for suffix in ("-wal", "-shm"))
        with _failures(f"{self.file} was not replaced"):
            _empty_wal(self.file)
            with _alone(self.file) as is_kept:
                if is_kept:
                    kept.hardlink_to(self.file)
                if wal.exists():  # its database is gone
                    wal.rename(f"{kept}-wal")
                shm.unlink(missing_ok=True)
                self.part.rename(self.file)
                sync(self.file.parent)
        return kept if is_kept else None


@contextmanager
def restoring(database: Database, source: Path, progress: Progress) -> Iterator[Restore]:
    """Copy a backup to the folder of the database, check the copy and bring its schema up to date.

    Raises BackupFailed, before it copies too when any process has the database open.
    """
    file = database.dialect.file
    assert file is not None  # noqa: S101 - for the type checker: callers ask before
    if not source.is_file():
        raise BackupFailed(f"there is no file {source}; name a backup that 'flask db backup' made")
    if file.exists() and source.samefile(file):
        raise BackupFailed(f"{source} is the database itself; name a backup of it")
    database.close()
    with _failures(f"{source} was not restored"), _part_of(file) as part:
        with _alone(file):
            pass
        _copy(source, part, progress)
        contents = _checked(part)
        if contents.revision > SCHEMA_REVISION:
            raise BackupFailed(
                f"{source} has schema {contents.revision}, which is newer than this code, whose schema is "
                f"{SCHEMA_REVISION}; restore it with the newer version of the code"
            )
        if contents.revision < SCHEMA_REVISION:
            with closing(Database(database.url.set(database=os.fspath(part)).render_as_string())) as copy:
                upgrade(copy)
        sync(part)
        yield Restore(file, part, contents)


@contextmanager
def _failures(what: str) -> Iterator[None]:
    """Trouble with files, the disk and SQLite becomes BackupFailed."""
    try:
        yield
    except (OSError, driver_module().Error) as error:
        reason = f"{error.strerror} ({error.filename})" if isinstance(error, OSError) else error
        raise BackupFailed(f"{what}: {reason}") from error


@contextmanager
def _part_of(file: Path) -> Iterator[Path]:
    """A name beside the file for what is not whole yet; nothing of it stays when the block fails."""
    part = file.with_name(f"{file.name}.part-{os.getpid()}")
    try:
        part.touch(mode=stat.S_IRUSR | stat.S_IWUSR, exist_ok=False)  # it holds customers' addresses
        yield part
    finally:
        for suffix in ("", "-journal", "-wal", "-shm", ".lock"):
            Path(f"{part}{suffix}").unlink(missing_ok=True)


def _copy(source: Path, target: Path, progress: Progress) -> None:
    driver = driver_module()
    uri = f"file:{quote(os.fspath(source.absolute()))}?mode=ro"
    with closing(driver.connect(uri, uri=True)) as original, closing(driver.connect(target)) as copy:
        original.isolation_level = None
        # A snapshot: without it, each commit of another process would make the copying begin anew.
        original.execute("BEGIN")
        original.execute("PRAGMA schema_version").fetchall()
        original.backup(
            copy, pages=PAGES_PER_STEP, progress=lambda _, left, total: progress(total - left, total), sleep=0
        )
        original.execute("ROLLBACK")
        copy.execute("PRAGMA journal_mode=delete").fetchall()  # one file, which needs no other beside it


def _checked(file: Path) -> Contents:
    """Raises BackupFailed when the copy is damaged, or no database of this service."""
    driver = driver_module()
    with closing(driver.connect(file)) as copy:
        found = copy.execute("PRAGMA integrity_check(1)").fetchone()[0]
        if found != "ok":
            raise BackupFailed(f"the database is damaged ({found.splitlines()[-1]}); take an earlier backup")
        unfinished = "SELECT count(*) FROM deliveries WHERE state IN ('ready', 'leased')"
        try:
            (revision,) = copy.execute("SELECT version_num FROM alembic_version").fetchone()
            orders, newest = copy.execute("SELECT count(*), max(created_at) FROM orders").fetchone()
            return Contents(revision, orders, newest, copy.execute(unfinished).fetchone()[0])
        except (driver.OperationalError, TypeError) as error:
            raise BackupFailed(f"it is no database of this service ({error}); name another file") from error


def _empty_wal(file: Path) -> None:
    """Move what a killed process left in the WAL into the file: whoever closes it last deletes the WAL."""
    if not _holds_anything(file):  # SQLite would delete the WAL of an empty file
        return
    driver = driver_module()
    with suppress(driver.Error), closing(driver.connect(file)) as connection:  # a damaged file is kept as it is
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()


@contextmanager
def _alone(file: Path) -> Iterator[bool]:
    """Hold SQLite's own lock on the file, where there is one with anything in it: yields whether there is.

    No connection of this process may be open, because closing the file here drops this process's locks on it. Raises
    BackupFailed when another process has the database open.
    """
    if not _holds_anything(file):
        yield False
        return
    with file.open("r+b") as opened:
        try:
            fcntl.lockf(opened, fcntl.LOCK_EX | fcntl.LOCK_NB, *SHARED_LOCK)
        except BlockingIOError as error:
            raise BackupFailed(f"a process has {file} open; {STOP_ALL}") from error
        yield True


def _holds_anything(file: Path) -> bool:
    return file.exists() and file.stat().st_size > 0
