"""Diagnostics of the database, the disk, the mail server, the bus and the access settings, each with its cure."""

import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flask import Flask

from app.bus import queries
from app.bus.troubles import DATABASE, Cause, Readiness, missing
from app.db import Database, schema
from app.db.sqlite import WAL_LIMIT_BYTES
from app.errors import AppError, DatabaseUnavailable
from app.signal import SIGNALS
from app.states import DeliveryState
from config import Settings

LOW_DISK_BYTES = 500_000_000

LARGE_WAL_BYTES = 4 * WAL_LIMIT_BYTES

OF_THE_DATABASE = (*DATABASE, Cause.SCHEMA_DIFFERS)


@dataclass(frozen=True)
class Finding:
    """A check's result. ``level`` is ``fine``, ``note`` (worth a thought) or ``wrong`` (will fail)."""

    level: str
    text: str

    def __str__(self) -> str:
        return f"{self.level:<6} {self.text}"


def examine(app: Flask) -> list[Finding]:
    """The findings of every check, in the order in which a person would mend things."""
    settings, database = app.extensions["settings"], app.extensions["database"]
    with suppress(AppError):  # what is wrong is told below
        schema.prepare(database)
    readiness = app.extensions["bus"].watch.look()
    return [
        *_check_database(database, readiness),
        *_check_disk(settings, database),
        *_check_mail(settings, app),
        *_check_bus(database, readiness),
        *_check_exposure(settings),
    ]


def _check_database(database: Database, readiness: Readiness) -> Iterator[Finding]:
    troubles = [trouble for trouble in readiness.troubles if trouble.cause in OF_THE_DATABASE]
    for trouble in troubles:
        yield Finding("wrong", f"database: {trouble}")
    if not troubles:
        yield Finding("fine", f"database: {database.url.set(query={}).render_as_string()}, schema up to date")
        if defect := database.dialect.defect():
            yield Finding("note", defect)
        yield from _check_session(database)


def _check_session(database: Database) -> Iterator[Finding]:
    """What is relied on, read back, and what the server's own configuration takes from it."""
    try:
        with database.read() as session:
            settings = database.dialect.session_settings(session)
            weaknesses = database.dialect.weaknesses(session)
    except DatabaseUnavailable as error:
        yield Finding("wrong", f"database: {error.reason}")
        return
    yield Finding("fine", "database session: " + ", ".join(f"{name}={value}" for name, value in settings.items()))
    for weakness in weaknesses:
        yield Finding("note", f"database: {weakness}")


def _check_disk(settings: Settings, database: Database) -> Iterator[Finding]:
    folders = [database.dialect.file.parent] if database.dialect.file else []
    folders += [settings.instance_path] if settings.mail_backend == "file" else []
    for folder in dict.fromkeys(folders):
        existing = next(each for each in (folder, *folder.parents) if each.exists())  # it is made when it is needed
        free = shutil.disk_usage(existing).free
        level, cure = ("note", "; make room before orders are refused") if free < LOW_DISK_BYTES else ("fine", "")
        yield Finding(level, f"disk: {free // 1_000_000:,} MB free at {existing}{cure}")
    if database.dialect.file is not None:
        yield from _check_wal(Path(f"{database.dialect.file}-wal"))


def _check_wal(wal: Path) -> Iterator[Finding]:
    """SQLite can't empty its WAL beyond what the oldest reader sees."""
    if wal.exists() and (size := wal.stat().st_size) > LARGE_WAL_BYTES:
        yield Finding(
            "note",
            f"disk: {wal} has grown to {size // 1_000_000:,} MB because a transaction stays open that reads; "
            "end it, for example an sqlite3 shell or a program that makes copies",
        )


def _check_mail(settings: Settings, app: Flask) -> Iterator[Finding]:
    backend = settings.mail_backend
    try:
        with app.app_context():
            app.extensions["mailer"].check()
    except AppError as error:
        yield Finding("wrong", f"mail: {error}")
    else:
        where = settings.mail_server if backend == "smtp" else backend
        yield Finding("fine", f"mail: {backend} backend answers ({where})")
    if backend == "smtp":
        yield from _check_smtp_settings(settings)
    else:
        yield Finding("note", f"mail: kept by the {backend} backend; set MAIL_SERVER to send it")


def _check_smtp_settings(settings: Settings) -> Iterator[Finding]:
    if "@localhost" in settings.mail_default_sender:
        yield Finding("note", "mail: the sender is at localhost, which others refuse; set MAIL_DEFAULT_SENDER")
    if not (settings.mail_use_tls or settings.mail_use_ssl):
        yield Finding("note", "mail: goes in plain text; set MAIL_USE_TLS (587) or MAIL_USE_SSL (465)")
    if settings.user_email_domain is None:
        yield Finding("note", "mail: none for users whose address nobody gave; set USER_EMAIL_DOMAIN to make addresses")


def _check_bus(database: Database, readiness: Readiness) -> Iterator[Finding]:
    if alive := readiness.dispatchers:
        yield Finding("fine", f"dispatchers alive: {len(alive)}")
    for trouble in readiness.troubles:
        if trouble.cause not in (*OF_THE_DATABASE, Cause.RECEIVER_MISSING):  # told above and below
            is_note = trouble.is_warning or trouble.cause is Cause.NO_DISPATCHER
            yield Finding("note" if is_note else "wrong", str(trouble))
    if readiness.is_read:
        with database.read() as session:
            backlog = queries.backlog(session)
        yield from _check_backlog(backlog)


def _check_backlog(backlog: list[Any]) -> Iterator[Finding]:
    """Deliveries that nobody takes by itself: without a receiver, or dead."""
    connected = {name for signal in SIGNALS.values() for name in signal.subscriptions}
    for row in backlog:
        if row.receiver not in connected:
            yield Finding("wrong", f"{row.deliveries} {missing(row.receiver)}")
        elif row.state == DeliveryState.DEAD:
            yield Finding(
                "note",
                f"{row.deliveries} deliveries to {row.receiver} are dead; 'flask orders show' tells why, "
                f"'flask bus retry --receiver {row.receiver}' tries again",
            )


def _check_exposure(settings: Settings) -> Iterator[Finding]:
    if settings.api_token is None:
        yield Finding("note", "the API is open to whoever reaches it; set API_TOKEN to demand a bearer token")
    else:
        yield Finding("fine", "the API demands a bearer token")
    if settings.console_password is None:
        yield Finding("note", "operator routes answer this machine only; behind a proxy set CONSOLE_PASSWORD")
