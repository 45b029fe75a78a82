"""Filters, acts and their results, in the reader's words."""

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from flask_babel import gettext

from app.bus import delivers_by
from app.bus.acts import GIVEN_UP, ActView
from app.bus.tables import DispatcherHeartbeat
from app.console.pages import lasting, seen, state_word, unit_word
from app.translatable import Translatable


def field(name: str) -> str:
    """A filter's or a replay's field."""
    known: dict[str, str] = {
        "delivery_id": gettext("Delivery"),
        "state": gettext("State"),
        "tried": gettext("Failed before"),
        "receiver": gettext("Receiver"),
        "event_type": gettext("Event"),
        "order_id": gettext("Order"),
        "user_id": gettext("User"),
        "outcome": gettext("Outcome"),
        "reason": gettext("Words in the reason"),
        "reason_group": gettext("Reason"),
        "older_than": gettext("Made before"),
        "since": gettext("Since"),
        "until": gettext("Before"),
        "force": gettext("Also what was done"),
    }
    return known.get(name, seen(name))


def value(name: str, given: object) -> str:
    if isinstance(given, bool):
        return str(gettext("yes") if given else gettext("no"))
    if name in ("state", "outcome"):
        return state_word(str(given))[2]
    return seen(given)


def selection(given: object) -> list[tuple[str, str]]:
    """The fields of an act's filter, each with its value."""
    if not isinstance(given, Mapping):
        return [("", seen(given))] if given else []
    return [(field(name), value(name, each)) for name, each in given.items()]


def action(name: str) -> str:
    known: dict[str, str] = {
        "retry": gettext("retry"),
        "discard": gettext("discard"),
        "resend": gettext("send again"),
        "set-email": gettext("set the address"),
        "replay": gettext("replay"),
        "pause": gettext("pause"),
        "resume": gettext("resume"),
        "probe": gettext("probe"),
    }
    return known.get(name, seen(name))


def fates(act: ActView) -> list[tuple[str, str, str, int]]:
    """What became of what it touched, as a tone, a shape, a word and a number. None where there is nothing."""
    progress = act.progress
    if progress is None:
        return []
    words: list[tuple[str, str, str, int]] = [("ok", "✓", gettext("done"), progress.done)]
    words += [("bad", "✕", _failed(outcome), count) for outcome, count in progress.failed.items()]
    words += [
        ("dim", "–", gettext("discarded"), progress.discarded),
        ("warn", "↺", gettext("taken back"), progress.taken_back),
        ("dim", "?", gettext("forgotten since"), progress.forgotten),
        ("accent", "●", gettext("not tried yet"), progress.left),
    ]
    return [each for each in words if each[3]]


def _failed(outcome: str) -> str:
    return str(gettext("given up")) if outcome == GIVEN_UP else state_word(outcome)[2]


def seconds(number: int) -> str:
    return lasting(timedelta(seconds=number))


def anything(given: Any) -> str:
    """A setting's value."""
    if isinstance(given, bool):
        return str(gettext("yes") if given else gettext("no"))
    if given is None:
        return "–"
    return seen(", ".join(map(str, given)) if isinstance(given, tuple | list) else given)


def mail_goes_to(dispatcher: DispatcherHeartbeat) -> str:
    """``mail.example:25``, a folder, or the backend's name."""
    told = dispatcher.told
    return told.get("mail_folder") or (delivers_by.route(told) if told else "–")


def told(text: object) -> str:
    """The service's own sentences in the reader's language, and foreign words as they are."""
    if not isinstance(text, Translatable):
        return seen(text)
    return str(gettext(text.pattern)) % {name: _told_value(value) for name, value in text.values.items()}


def _told_value(value: object) -> str:
    number, _, unit = str(value).partition(" ")
    if number.isdecimal() and unit in ("s", "min", "h", "days"):
        return f"{number} {unit_word(unit)}"
    return told(value)


def check(name: str) -> str:
    """The name of a check of the doctor."""
    known: dict[str, str] = {
        "database": gettext("database"),
        "database session": gettext("database session"),
        "disk": gettext("disk"),
        "permissions": gettext("permissions"),
        "mail": gettext("mail"),
        "dispatcher": gettext("dispatcher"),
        "settings": gettext("settings"),
        "clocks": gettext("clocks"),
        "bus": gettext("bus"),
        "outbox": gettext("outbox"),
        "access": gettext("access"),
    }
    return known.get(name, seen(name))
