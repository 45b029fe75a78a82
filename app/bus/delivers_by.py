"""How a dispatcher delivers mail: recorded with its heartbeat, and compared before another one starts.

A dispatcher that was started in a shell without MAIL_SERVER would write waiting mails to a folder, and record them as
sent. So a dispatcher that would deliver mail otherwise than those before it refuses to start.
"""

import json
import os
import socket
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from app.bus import heartbeats, queries
from app.bus.tables import DispatcherHeartbeat, Role
from app.bus.words import moment
from app.db import Transaction, iso
from app.translatable import Translatable
from app.version import VERSION
from config import Settings

ONE_AT_A_TIME = "dispatchers that sign on"
"""The key of a lock."""

MOST_COUNTED = 1000

FORGOTTEN_AFTER = timedelta(days=1)
"""A dispatcher without a heartbeat for so long is removed from the table, once another one ends."""

RECORDED = (
    *("mail_backend", "mail_server", "mail_port", "mail_use_tls", "mail_use_ssl", "mail_default_sender"),
    *("mail_locale", "user_email_domain", "lease_seconds", "ready_lag_seconds", "retention_days"),
)
"""Settings in which dispatchers of one database should agree. No secrets, and no names of accounts."""

OF_SMTP = ("mail_server", "mail_port", "mail_use_tls", "mail_use_ssl")


def record(settings: Settings, role: Role = Role.DISPATCHER) -> dict[str, Any]:
    """What a dispatcher of this process would record. None stands for what its mail backend has no use for."""
    found = {name: getattr(settings, name) for name in RECORDED}
    if settings.mail_backend != "smtp":
        found |= dict.fromkeys(OF_SMTP)
    folder = str(settings.instance_path / "mail") if settings.mail_backend == "file" else None
    about = {"engine": str(role), "version": VERSION, "host": socket.gethostname(), "pid": os.getpid()}
    return found | {"mail_folder": folder} | about


def route(recorded: Mapping[str, Any]) -> str:
    """Where mail goes: ``mail.example:25``, or the backend that keeps it. MAIL_INSTEAD_OF names one like this."""
    if recorded["mail_backend"] != "smtp":
        return str(recorded["mail_backend"])
    return f"{recorded['mail_server']}:{recorded['mail_port']}".lower()


def in_words(recorded: Mapping[str, Any]) -> Translatable:
    """``by smtp, to mail.example:25``."""
    match recorded["mail_backend"]:
        case "smtp":
            where = f"{recorded['mail_server']}:{recorded['mail_port']}"
            if recorded["mail_use_tls"]:
                return Translatable("by smtp, to %(where)s, by STARTTLS", where=where)
            if recorded["mail_use_ssl"]:
                return Translatable("by smtp, to %(where)s, by TLS", where=where)
            return Translatable("by smtp, to %(where)s", where=where)
        case "file":
            return Translatable("by file, into %(folder)s", folder=recorded["mail_folder"])
        case other:
            return Translatable("by %(backend)s", backend=other)


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, list[Any]]:
    """For each setting that is another one, and for the version, both values: the one before, and the one now."""
    compared = (*RECORDED, "version") if before else ()
    found = {name: [before.get(name), now[name]] for name in compared if before.get(name) != now[name]}
    if "mail_backend" in found:  # the others of SMTP differ for that reason only
        return {name: values for name, values in found.items() if name not in OF_SMTP or name == "mail_server"}
    return found


def shown(found: Mapping[str, list[Any]], before: str, now: str) -> str:
    """``MAIL_PORT 25 there, 2525 here``."""
    return "; ".join(
        f"{name.upper()} {_value(values[0])} {before}, {_value(values[1])} {now}" for name, values in found.items()
    )


def _value(value: Any) -> str:
    return "unset" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def those_before(
    session: Session, now: datetime, silence: timedelta, but: str | None = None
) -> list[DispatcherHeartbeat]:
    """The dispatchers that are alive, without the one named ``but``; where none is, the last one that was. No relays:
    they deliver no mail."""
    known = [each for each in queries.heartbeats(session) if each.name != but and not each.is_relay]
    if alive := [each for each in queries.alive(known, now, silence) if each.told]:
        return alive
    last = queries.last_heartbeat(known)
    return [last] if last and last.told else []


def refusal(
    session: Session, now: datetime, silence: timedelta, settings: Settings, mails: list[str], but: str | None = None
) -> str | None:
    """Why a dispatcher with these settings must not start, in one line with the cure; None where it may.

    ``mails`` are the receivers that send mail. Nothing is lost where no mail waits, nobody else delivers, and mail
    still goes to a server: then a change of the settings is taken for meant.
    """
    mine, before = record(settings), those_before(session, now, silence, but)
    routes = [route(each.told) for each in before]
    if not before or route(mine) in routes or (settings.mail_instead_of or "").lower() in routes:
        return None
    other = before[-1]
    waiting = sum(queries.count_unfinished(session, receiver, MOST_COUNTED) for receiver in mails)
    alive = queries.is_alive(other, now, silence)
    is_kept = settings.mail_backend != "smtp" and other.told["mail_backend"] == "smtp"
    if not (alive or waiting or is_kept):
        return None
    who = f"{other.name}, which is alive, delivers" if alive else f"the last one, {other.name}, delivered"
    when = "" if alive else f" until {moment(other.seen_at, now)} UTC"
    waits = f", and {'at least ' * (waiting >= MOST_COUNTED)}{waiting} deliveries wait" if waiting else ""
    return (
        f"this dispatcher would deliver mail {in_words(mine)}, but {who} it {in_words(other.told)}{when}{waits}: give "
        "it the same MAIL_BACKEND, MAIL_SERVER and MAIL_PORT; or, if the change is meant, set "
        f"MAIL_INSTEAD_OF={route(other.told)}, or add --anyway to 'flask bus run'"
    )


def sign_on(
    transaction: Transaction, name: str, settings: Settings, mails: list[str], role: Role, *, anyway: bool
) -> tuple[str | None, dict[str, list[Any]]]:
    """Record the dispatcher ``name``, at work or as one that refuses to start.

    Returns why it refuses, and where its settings differ from those of the dispatcher before it.
    """
    session, now, silence = transaction.session, transaction.now, heartbeats.silence(settings.ready_lag_seconds)
    transaction.dialect.lock_keys(transaction.driver, [ONE_AT_A_TIME])
    before = those_before(session, now, silence, name)
    refused = None if anyway or role is Role.RELAY else refusal(session, now, silence, settings, mails, name)
    mine = record(settings, role)
    differs = differences(before[-1].told, mine) if before else {}
    told = mine | {"differs": differs} | ({"refused": refused} if refused else {})
    row = transaction.dialect.insert(DispatcherHeartbeat)
    row = row.values(name=name, started_at=now, seen_at=now, settings=json.dumps(told))
    values = {"seen_at": now, "settings": row.excluded.settings}
    session.execute(row.on_conflict_do_update(index_elements=["name"], set_=values))
    return refused, differs


def sign_off(transaction: Transaction, name: str) -> None:
    """The dispatcher ``name`` ends; so have, without a word, those that were unseen for FORGOTTEN_AFTER, or were seen
    by a clock that ran ahead by as much. Its settings stay, as the last ones, until another dispatcher ends."""
    session, now = transaction.session, transaction.now
    own = session.get(DispatcherHeartbeat, name)
    stays = own is not None and bool(own.told) and not own.is_refused
    gone = []
    for each in session.scalars(select(DispatcherHeartbeat)):
        if each is own and stays:
            each.seen_at = now
            each.settings = json.dumps(each.told | {"stopped_at": iso(now)})
        elif each is own or (stays and (each.has_stopped or abs(each.seen_at - now) > FORGOTTEN_AFTER)):
            gone.append(each.name)
    # Not by session.delete(), which expects each to be there: dispatchers that end together delete the same rows.
    session.execute(delete(DispatcherHeartbeat).where(DispatcherHeartbeat.name.in_(sorted(gone))))
