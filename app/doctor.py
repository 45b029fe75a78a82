"""Diagnostics of the service and of this shell: findings that are wrong, worth a thought, or fine.

The running processes are known by their dispatchers' heartbeats, and compared with the settings of this shell.
"""

import os
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from flask import Flask

from app.bus import Bus, Filter, delivers_by, heartbeats
from app.bus.status import ReceiverStatus, Status, sentence
from app.bus.tables import DispatcherHeartbeat
from app.bus.troubles import DATABASE, Cause, missing
from app.db import Database, schema
from app.db.sqlite import WAL_LIMIT_BYTES
from app.errors import AppError, BrokerUnavailable, DatabaseUnavailable
from app.mail import Mailer, reach
from app.states import DeliveryState
from app.translatable import Translatable
from config import ENV_FILE, Settings

LOW_DISK_BYTES = 500_000_000

LARGE_WAL_BYTES = 4 * WAL_LIMIT_BYTES

CLOCK_SECONDS = 2.0
"""Clocks that differ by no more agree: a busy machine may take a second to write what it has read."""

OF_THE_DATABASE = (*DATABASE, Cause.SCHEMA_DIFFERS)


@dataclass(frozen=True)
class Finding:
    """A check's result. ``level`` is ``fine``, ``note`` (worth a thought) or ``wrong`` (is failing, or will)."""

    level: str
    check: str
    text: str
    """Translatable where it is our own."""

    def __str__(self) -> str:
        return f"{self.level:<6} {self.check}: {self.text}"


@dataclass(frozen=True)
class Findings:
    """Those of every check, in the order in which a person would mend things."""

    findings: list[Finding]
    is_complete: bool
    """Whether the bus's tables could be read: else nothing is known of what is in them."""

    @property
    def exit_code(self) -> int:
        """2 where it could not look, 1 where something is wrong, else 0."""
        if not self.is_complete:
            return 2
        return int(any(finding.level == "wrong" for finding in self.findings))

    def as_json(self) -> dict[str, Any]:
        return {"findings": [asdict(each) for each in self.findings], "exit_code": self.exit_code}


def examine(app: Flask) -> Findings:
    """Look at everything. Sends no mail, makes no database, and changes nothing but an older file's schema, which a
    start would bring up to date as well."""
    settings, database, bus = app.extensions["settings"], app.extensions["database"], app.extensions["bus"]
    absence = schema.absence(database)
    if absence is None:
        with suppress(AppError):  # what is wrong is told below
            schema.prepare(database)
    status = _status(bus)
    found = [
        *([Finding("wrong", "database", absence)] if absence else _check_database(database, status)),
        *_check_disk(settings, database),
        *_check_permissions(settings, database),
        *_check_mail(settings, app.extensions["mailer"]),
        *_check_broker(app.extensions["engine"]),
        *_check_dispatchers(bus, status),
        *_check_clocks(bus, status),
        *_check_bus(status),
        *_check_exposure(settings),
    ]
    return Findings(found, status.readiness.is_read)


def _status(bus: Bus) -> Status:
    """Where the database went away in the middle, it is asked once more what is wrong with it."""
    with suppress(DatabaseUnavailable):
        return bus.status()
    return Status(bus.database.clock.now(), bus.watch.look(), [], [], None)


# The database, its disk and its files


def _check_database(database: Database, status: Status) -> Iterator[Finding]:
    troubles = [trouble for trouble in status.readiness.troubles if trouble.cause in OF_THE_DATABASE]
    for trouble in troubles:
        yield Finding("wrong", "database", trouble.in_full)
    if not troubles:
        url = database.url.set(query={}).render_as_string()
        yield Finding("fine", "database", Translatable("%(url)s, schema up to date", url=url))
        if defect := database.dialect.defect():
            yield Finding("note", "database", defect)
        yield from _check_session(database)


def _check_session(database: Database) -> Iterator[Finding]:
    """What is relied on, read back, and what the server's own configuration takes from it."""
    try:
        with database.read() as session:
            version = database.dialect.version(session)
            settings = database.dialect.session_settings(session)
            weaknesses = database.dialect.weaknesses(session)
            connections = database.dialect.connections(session)
    except DatabaseUnavailable as error:
        yield Finding("wrong", "database", error.reason)
        return
    shown = ", ".join(f"{name}={value}" for name, value in settings.items())
    yield Finding("fine", "database session", f"{version}, {shown}")
    if connections is not None:
        level = "wrong" if connections.are_nearly_used_up else "note" if connections.cure else "fine"
        text = f"{connections}; {connections.cure}" if connections.cure else str(connections)
        yield Finding(level, "connections", text)
    for weakness in weaknesses:
        yield Finding("note", "database", weakness)


def _check_disk(settings: Settings, database: Database) -> Iterator[Finding]:
    for folder in _folders(settings, database):
        free = shutil.disk_usage(folder).free
        told = Translatable("%(size)s MB free at %(folder)s", size=f"{free // 1_000_000:,}", folder=folder)
        if free < LOW_DISK_BYTES:
            yield Finding("note", "disk", told.then(Translatable("make room before orders are refused")))
        else:
            yield Finding("fine", "disk", told)
    if database.dialect.file is not None:
        yield from _check_wal(Path(f"{database.dialect.file}-wal"))


def _folders(settings: Settings, database: Database) -> list[Path]:
    """Those that are written to; where one is made only when it is needed, the one that it will be in."""
    folders = [database.dialect.file.parent] if database.dialect.file else []
    folders += [settings.instance_path] if settings.mail_backend == "file" else []
    existing = [next(each for each in (folder, *folder.parents) if each.exists()) for folder in folders]
    return list(dict.fromkeys(existing))


def _check_wal(wal: Path) -> Iterator[Finding]:
    """SQLite can't empty its WAL beyond what the oldest reader sees."""
    if wal.exists() and (size := wal.stat().st_size) > LARGE_WAL_BYTES:
        yield Finding(
            "note",
            "disk",
            Translatable(
                "%(file)s has grown to %(size)s MB because a transaction stays open that reads; end it, for example "
                "an sqlite3 shell or a program that makes copies",
                file=wal,
                size=f"{size // 1_000_000:,}",
            ),
        )


def _check_permissions(settings: Settings, database: Database) -> Iterator[Finding]:
    """Of the user that runs this. The service may be another: SQLite's files belong to whoever makes them."""
    file = database.dialect.file
    needed = [(folder, os.W_OK | os.X_OK) for folder in _folders(settings, database)]
    if file is not None:
        parts = [file, Path(f"{file}-wal"), Path(f"{file}-shm")]
        needed += [(each, os.R_OK | os.W_OK) for each in parts if each.exists()]
    refused = [str(path) for path, mode in needed if not os.access(path, mode)]
    if refused:
        text = Translatable(
            "%(files)s can't be written; run this as the service's user, or let user %(user)s write there",
            files=", ".join(refused),
            user=os.geteuid(),
        )
        yield Finding("wrong", "permissions", text)
    elif needed:
        text = Translatable("user %(user)s may write to all files and folders of the service", user=os.geteuid())
        yield Finding("fine", "permissions", text)
    owners = {path.stat().st_uid for path, _ in needed if path.is_file()}
    if len(owners) > 1:
        text = Translatable(
            "the files of %(file)s belong to several users, %(users)s; let one user run the service and its commands, "
            "and chown them to it",
            file=file,
            users=sorted(owners),
        )
        yield Finding("note", "permissions", text)
    if ENV_FILE.is_file() and ENV_FILE.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH):
        text = Translatable("others may read the passwords in %(file)s; chmod 600 %(file)s", file=ENV_FILE)
        yield Finding("note", "permissions", text)


# Mail


def _check_mail(settings: Settings, mailer: Mailer) -> Iterator[Finding]:
    backend = settings.mail_backend
    try:
        mailer.check()
    except AppError as error:
        yield Finding("wrong", "mail", str(error))
    else:
        where = settings.mail_server if backend == "smtp" else backend
        yield Finding(
            "fine", "mail", Translatable("%(backend)s backend answers (%(where)s)", backend=backend, where=where)
        )
    if backend == "smtp":
        yield from _check_smtp_settings(settings)
    else:
        text = Translatable("kept by the %(backend)s backend; set MAIL_SERVER to send it", backend=backend)
        yield Finding("note", "mail", text)


def _check_broker(engine: Any) -> Iterator[Finding]:
    """Of an engine that has one."""
    try:
        if answered := engine.check():
            yield Finding("fine", "broker", answered)
    except BrokerUnavailable as error:
        yield Finding("wrong", "broker", f"{error}; start it, or set CELERY_BROKER_URL to where it is")


def _check_smtp_settings(settings: Settings) -> Iterator[Finding]:
    if "@localhost" in settings.mail_default_sender:
        text = Translatable("the sender is at localhost, which others refuse; set MAIL_DEFAULT_SENDER")
        yield Finding("note", "mail", text)
    if not (settings.mail_use_tls or settings.mail_use_ssl):
        text = Translatable("goes in plain text; set MAIL_USE_TLS (587) or MAIL_USE_SSL (465)")
        yield Finding("note", "mail", text)
    if settings.user_email_domain is None:
        text = Translatable("none for users whose address nobody gave; set USER_EMAIL_DOMAIN to make addresses")
        yield Finding("note", "mail", text)


# The processes that dispatch, beside this shell


def _check_dispatchers(bus: Bus, status: Status) -> Iterator[Finding]:
    """What they use, and where this shell would use something else."""
    if not status.readiness.is_read:
        return
    here = delivers_by.record(bus.settings)
    for each in status.readiness.dispatchers:
        since = {"name": each.name, "since": f"{each.started_at:%Y-%m-%d %H:%M:%S} UTC"}
        if each.told:
            how, version = delivers_by.in_words(each.told), each.told["version"]
            yield Finding(
                "fine",
                "dispatcher",
                Translatable(
                    "%(name)s is alive, since %(since)s, delivers mail %(how)s, version %(version)s",
                    how=how,
                    version=version,
                    **since,
                ),
            )
        else:
            yield Finding("fine", "dispatcher", Translatable("%(name)s is alive, since %(since)s", **since))
    told = [each for each in status.before if each.told]
    for each in told:
        if differs := delivers_by.differences(each.told, here):
            between = delivers_by.shown(differs, "there", "here")
            text = (
                Translatable(
                    "the last dispatcher, %(name)s, and this shell differ: %(how)s", name=each.name, how=between
                )
                if each.has_stopped
                else Translatable("%(name)s and this shell differ: %(how)s", name=each.name, how=between)
            )
            yield Finding("note", "settings", text)
    if told and not any(delivers_by.differences(each.told, here) for each in told):
        yield Finding("fine", "settings", Translatable("this shell has those that the dispatchers use"))
    if status.refused_here:
        text = Translatable("'flask bus run' would refuse here: %(why)s", why=status.refused_here)
        yield Finding("note", "settings", text)
    yield from _check_their_mail_servers(bus.settings, [each.told for each in told], delivers_by.route(here))


def _check_their_mail_servers(settings: Settings, told: list[Mapping[str, Any]], here: str) -> Iterator[Finding]:
    """Those that this shell would not send to: whether they answer, without logging in."""
    others = {delivers_by.route(each): each for each in told if each["mail_backend"] == "smtp"}
    others.pop(here, None)
    for where, each in others.items():
        try:
            reach(settings, each)
        except AppError as error:
            yield Finding("wrong", "mail", Translatable("of the service: %(error)s", error=error))
        else:
            yield Finding("fine", "mail", Translatable("of the service: %(where)s answers", where=where))


def _check_clocks(bus: Bus, status: Status) -> Iterator[Finding]:
    """Heartbeats against this machine's clock, and the database server's against both."""
    if not status.readiness.is_read:
        return
    wrong = [text for each in status.readiness.dispatchers if (text := _clock_of(each, status.at))]
    with suppress(DatabaseUnavailable), bus.database.read() as session:
        before = bus.database.clock.now()
        server = bus.database.dialect.server_time(session)
        if server and abs(ahead := (server - before).total_seconds()) > CLOCK_SECONDS:
            wrong.append(_server_clock(ahead))
    for text in wrong:
        yield Finding("wrong", "clocks", text.then(Translatable("run NTP on all machines")))
    if not wrong:
        text = Translatable("those of this machine, of the dispatchers and of the database agree")
        yield Finding("fine", "clocks", text)


def _server_clock(ahead: float) -> Translatable:
    time = f"{abs(ahead):.1f} s"
    if ahead > 0:
        return Translatable("the database server's clock is %(time)s ahead of this machine's", time=time)
    return Translatable("the database server's clock is %(time)s behind this machine's", time=time)


def _clock_of(dispatcher: DispatcherHeartbeat, now: datetime) -> Translatable | None:
    """A heartbeat of the future, or one that is older than the pause between two."""
    ahead = (dispatcher.seen_at - now).total_seconds()
    if ahead > CLOCK_SECONDS:
        return Translatable(
            "the clock of %(name)s is at least %(time)s ahead of this machine's",
            name=dispatcher.name,
            time=f"{ahead:.1f} s",
        )
    if not (told := dispatcher.told):
        return None
    pause = heartbeats.pause_seconds(told["lease_seconds"], told["ready_lag_seconds"])
    if -ahead > pause + CLOCK_SECONDS:
        return Translatable(
            "%(name)s was last seen %(time)s ago, and says that it is alive every %(pause)s: it hangs, or its clock is "
            "behind this machine's",
            name=dispatcher.name,
            time=f"{-ahead:.1f} s",
            pause=f"{pause:.1f} s",
        )
    return None


# The outbox


def _check_bus(status: Status) -> Iterator[Finding]:
    for trouble in status.readiness.troubles:
        if trouble.cause not in (*OF_THE_DATABASE, Cause.RECEIVER_MISSING):  # told above and below
            is_note = trouble.is_warning or trouble.cause is Cause.NO_DISPATCHER
            yield Finding("note" if is_note else "wrong", "bus", trouble.in_full)
    for receiver in status.receivers:
        yield from _check_receiver(receiver, status.at)


def _check_receiver(receiver: ReceiverStatus, now: datetime) -> Iterator[Finding]:
    name = receiver.receiver
    if not receiver.is_connected:
        text = Translatable(
            "%(count)s %(deliveries)s", count=receiver.waiting + receiver.dead, deliveries=missing(name)
        )
        yield Finding("wrong", "outbox", text)
        return
    needs_a_thought = receiver.breaker or receiver.pause or receiver.retrying or receiver.dead
    yield Finding("note" if needs_a_thought else "fine", "outbox", sentence(receiver, now))
    if held := receiver.held_back:
        text = Translatable(
            "%(count)s deliveries to %(receiver)s wait behind others of their key, the first behind delivery "
            "%(behind)s of %(key)s; 'flask bus list --delivery %(behind)s' tells what keeps it, 'flask bus discard' "
            "lets the next go",
            count=held.deliveries,
            receiver=name,
            behind=held.waits_behind,
            key=held.ordering_key,
        )
        yield Finding("note", "outbox", text)
    if receiver.dead:
        dead = Filter(receiver=name, state=DeliveryState.DEAD).options()
        text = Translatable(
            "what is dead of %(receiver)s waits for a person; 'flask bus list %(dead)s --by reason' tells why, "
            "'flask bus retry %(dead)s' tries again",
            receiver=name,
            dead=dead,
        )
        yield Finding("note", "outbox", text)
    if receiver.skipped:
        text = Translatable(
            "of the latest %(among)s deliveries, %(count)s to %(receiver)s were skipped, the last because %(why)s",
            among=f"{receiver.skipped_among:,}",
            count=receiver.skipped,
            receiver=name,
            why=receiver.skipped_because,
        )
        yield Finding("note", "outbox", text)


# Access


def _check_exposure(settings: Settings) -> Iterator[Finding]:
    if settings.api_token is None:
        text = Translatable("the API is open to whoever reaches it; set API_TOKEN to demand a bearer token")
        yield Finding("note", "access", text)
    else:
        yield Finding("fine", "access", Translatable("the API demands a bearer token"))
    if settings.console_password is None:
        text = Translatable("operator routes answer this machine only; behind a proxy set CONSOLE_PASSWORD")
        yield Finding("note", "access", text)
