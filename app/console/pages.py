"""Common parts of all pages: the frame, template filters, forms that are read as the API reads bodies, errors."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache, partial
from http import HTTPStatus
from pathlib import Path
from typing import Any, TypeVar

from flask import Response, flash, make_response, redirect, render_template, request, url_for
from flask.typing import ResponseReturnValue
from flask_babel import gettext
from pydantic import BaseModel
from werkzeug.exceptions import HTTPException

from app.addresses import checked_email
from app.bus import queries, words
from app.clock import iso
from app.console import access, languages
from app.console.access import N_
from app.current import database
from app.errors import AppError, DatabaseUnavailable
from app.http import Problem, problem_of
from app.request_models import EmailRequest
from app.validation import validate

Model = TypeVar("Model", bound=BaseModel)

NAVIGATION = (
    ("console.show_flow", N_("Flow")),
    ("console.show_orders", N_("Orders")),
    ("console.show_users", N_("Users")),
    ("console.show_events", N_("Events")),
    ("console.show_deliveries", N_("Deliveries")),
    ("console.show_acts", N_("Acts")),
    ("console.show_mailbox", N_("Mailbox")),
    ("console.show_retries", N_("Retries")),
    ("console.show_system", N_("System")),
    ("docs.show", N_("API")),
)
"""Endpoints of the pages, in the order of the navigation."""

MOST_DEAD = 100_000


# The frame


def page(template: str, **values: Any) -> str:
    """A page in the reader's language."""
    for_every_page = {
        "asset": asset,
        "dead": _count_dead,
        "iso": iso,
        "lasting": lasting,
        "html_language": languages.html_language(),
        "is_chinese": languages.language() == "zh",
        "amount": languages.shown_amount,
        "moment": languages.shown_moment,
        "pretty": partial(json.dumps, indent=2, ensure_ascii=False),
        "number": languages.shown_number,
        "navigation": [(name, gettext(word), url_for(name)) for name, word in NAVIGATION],
        "now": database().clock.now,
        "here": request.full_path.rstrip("?"),
        "token": access.token,
        "took": took,
        "seen": seen,
        "seen_lines": seen_lines,
        "state_word": state_word,
        "visitor": access.visitor(),
    }
    return render_template(f"console/{template}", **(for_every_page | values))


def go_to(endpoint: str, **values: Any) -> ResponseReturnValue:
    """The browser asks for that page of the console next."""
    return redirect(url_for(f"console.{endpoint}", **values), HTTPStatus.SEE_OTHER)


def live_part(tag: str, html: str | bytes) -> Response:
    """A page's live part, whose ETag is ``tag``; 304 while nothing has changed."""
    is_known = request.if_none_match.contains_weak(tag)
    response = make_response(("", HTTPStatus.NOT_MODIFIED) if is_known else html)
    response.set_etag(tag, weak=True)
    return response


def asset(name: str) -> str:
    """The address of a file in ``static``, with its digest: browsers keep it until it changes."""
    return url_for("console.static", filename=name, v=_digest(name))


@lru_cache
def _digest(name: str) -> str:
    return hashlib.sha256((Path(__file__).with_name("static") / name).read_bytes()).hexdigest()[:12]


def _count_dead() -> int:
    """For the navigation; none where the database doesn't tell, which the page itself says."""
    try:
        with database().read() as session:
            return queries.count_all_dead(session, MOST_DEAD)
    except DatabaseUnavailable:
        return 0


# Words


def seen(text: object) -> str:
    """A foreign text with its control characters made visible, as ``␊`` and ``␛``."""
    return "".join(_seen(character) for character in str(text))


def seen_lines(text: str) -> str:
    """As ``seen``, with its line breaks."""
    return "\n".join(map(seen, text.replace("\r\n", "\n").split("\n")))


def _seen(character: str) -> str:
    number = ord(character)
    if number < 0x20:
        return chr(0x2400 + number)
    if number == 0x7F:
        return "\N{SYMBOL FOR DELETE}"
    return character if character.isprintable() else f"⟨U+{number:04X}⟩"


def lasting(duration: timedelta) -> str:
    """As ``words.lasting`` says it, in the reader's language."""
    return in_units(words.lasting(duration))


def in_units(duration: str) -> str:
    """``4.5 min``, in the reader's language."""
    number, unit = duration.split()
    return f"{number} {unit_word(unit)}"


def took(seconds: float | None) -> str:
    """``6 ms``, ``1.2 s``, ``3 min``; a dash where nothing is known."""
    if seconds is None:
        return "–"
    if seconds < 1:
        return f"{languages.shown_number(round(seconds * 1000))} ms"
    return f"{seconds:.1f} {unit_word('s')}" if seconds < 120 else lasting(timedelta(seconds=seconds))


UNITS = {"s": N_("s"), "min": N_("min"), "h": N_("h"), "days": N_("days")}


def unit_word(unit: str) -> str:
    return str(gettext(UNITS[unit]))


@dataclass(frozen=True)
class Sign:
    """How something is: a tone, a shape, and words."""

    tone: str
    shape: str
    text: str
    more: str = ""


STATE_WORDS: dict[str, tuple[str, str, str]] = {
    "created": ("dim", "○", N_("created")),
    "confirmed": ("ok", "✓", N_("confirmed")),
    "pending": ("dim", "○", N_("pending")),
    "sent": ("ok", "✓", N_("sent")),
    "failed": ("bad", "✕", N_("failed")),
    "skipped": ("dim", "–", N_("skipped")),
    "ready": ("dim", "○", N_("waiting")),
    "waiting": ("dim", "○", N_("waiting")),
    "leased": ("accent", "●", N_("in flight")),
    "retrying": ("warn", "↻", N_("retrying")),
    "done": ("ok", "✓", N_("done")),
    "dead": ("bad", "✕", N_("dead")),
    "discarded": ("dim", "–", N_("discarded")),
    "ok": ("ok", "✓", N_("ok")),
    "refused": ("bad", "✕", N_("refused")),
    "deferred": ("warn", "↻", N_("deferred")),
    "throttled": ("warn", "↻", N_("throttled")),
    "unreachable": ("warn", "◼", N_("unreachable")),
    "timeout": ("warn", "◼", N_("timeout")),
    "bug": ("bad", "✕", N_("bug")),
    "unknown": ("warn", "?", N_("unknown")),
    "fine": ("ok", "✓", N_("fine")),
    "note": ("warn", "◼", N_("worth a thought")),
    "wrong": ("bad", "✕", N_("wrong")),
    "running": ("accent", "●", N_("under way")),
    "left": ("warn", "?", N_("left in the middle")),
    "ended": ("ok", "✓", N_("ended")),
    "aborted": ("warn", "✕", N_("aborted")),
}
"""Of a state or an outcome: its tone, its shape, and its word, to be translated."""


def state_word(state: str) -> tuple[str, str, str]:
    """A state's or an outcome's tone, its shape, and its word in the reader's language."""
    if state not in STATE_WORDS:
        return "dim", "○", seen(state)
    tone, shape, word = STATE_WORDS[state]
    return tone, shape, gettext(word)


# Forms


def read_filter(model: type[Model]) -> Model:
    """The query's parameters; an empty field of a form is none. Raises Problem with 422."""
    return validate(model, {name: value for name, value in request.args.items() if value.strip()})


def read_form(model: type[Model]) -> Model:
    """The model's fields of the form that was sent; an empty one is none. Raises Problem with 422."""
    fields = model.model_fields
    return validate(model, {name: value for name in fields if (value := request.form.get(name, "").strip())})


def keep_address(
    keep: Callable[[str], bool], told: str, show: Callable[..., str], back: ResponseReturnValue
) -> ResponseReturnValue:
    """Keep the address that the form has, say so by ``told`` where it is another one, and answer with ``back``.

    ``show`` makes the form's page anew of what was given and what is wrong with it: that stands beside the field.
    """
    try:
        email = read_form(EmailRequest).email
    except Problem as problem:
        return show(request.form, wrong_fields(problem)), HTTPStatus.UNPROCESSABLE_ENTITY
    flash(told if keep(email) else gettext("This was the address before."))
    return back


def wrong_fields(problem: Problem) -> dict[str, str]:
    """The error of each field, in the reader's language."""
    return {error["field"]: _what_is_wrong(**error) for error in problem.members.get("errors", ())}


def _what_is_wrong(field: str, message: str) -> str:
    """By the field's rule; of a field that people are not meant to fill in, as a program is told."""
    rule = _rules().get(field)
    if rule is None or not message.startswith(("must be", "is required")):
        return message
    if message.startswith("is required"):
        return str(gettext("is needed: %(rule)s", rule=rule))
    return str(gettext("must be %(rule)s", rule=rule))


def _rules() -> dict[str, str]:
    """Of the fields that people fill in. A field of one name has one rule on all pages."""
    id_rule = gettext("1 to 64 letters, digits, '.', '_', ':' or '-', and not '.' or '..' alone")
    moment_rule = gettext("a time with its offset: 2026-11-23T08:00:00Z")
    return {
        "order_id": id_rule,
        "user_id": id_rule,
        "total_price": gettext("an amount from 0 to 9999999999.99, with two decimals at most: 19.99"),
        "email": gettext("an e-mail address of 254 characters at most: ann@example.com"),
        "reason": gettext("1 to 1000 characters, without control characters that can't be kept"),
        "q": gettext("254 characters at most"),
        "type": gettext("64 characters at most"),
        "since": moment_rule,
        "until": moment_rule,
    }


def sought_address(sought: str) -> str:
    """As an address is stored, where it is one."""
    try:
        return checked_email(sought)
    except ValueError:
        return sought


def next_page(endpoint: str, query: BaseModel, cursor: object | None) -> str | None:
    """The address of the page after this one, with the same filters; None on the last page."""
    if cursor is None:
        return None
    parameters = query.model_dump(mode="json", exclude_none=True, exclude_defaults=True) | {"cursor": cursor}
    return url_for(f"console.{endpoint}", **parameters)


def local_target(target: str | None) -> str:
    """Where to go next: an address of this service, or else the first page."""
    is_local = target and target.startswith("/") and not target.startswith(("//", "/\\")) and target.isprintable()
    return target if target and is_local else url_for("console.show_flow")


# Errors


def answer_error(error: HTTPException | AppError) -> ResponseReturnValue:
    """An error as a page, which says what to do; as plain text where a script asked."""
    if isinstance(error, AppError):
        error = problem_of(error)
    if error.code is not None and error.code < 400:
        return error
    detail = _details().get(error.code or 500) or gettext(error.description or error.name)
    if "X-Live" in request.headers:
        return make_response(detail, error.code, {"Content-Type": "text/plain; charset=utf-8"})
    fields = wrong_fields(error) if isinstance(error, Problem) else {}
    html = page(
        "error.html", code=error.code, title=_titles().get(error.code or 500, error.name), detail=detail, fields=fields
    )
    response = make_response(html, error.code)
    response.headers.update(getattr(error, "headers", {}))
    return response


def _titles() -> dict[int, str]:
    return {
        401: gettext("Sign in again"),
        403: gettext("Not allowed"),
        404: gettext("Nothing here"),
        409: gettext("It exists already"),
        422: gettext("Something is not as it must be"),
        429: gettext("Too many tries"),
        500: gettext("Something went wrong"),
        503: gettext("The database can't be reached"),
    }


def _details() -> dict[int, str]:
    """Where our own words do for every error of that status."""
    return {
        404: gettext("There is no such page, or what it showed was never stored. Look for it under Orders."),
        405: gettext("This address can't be asked so. Go back, and use the page's own buttons."),
        413: gettext("What was sent is too large."),
        500: gettext("Something is wrong on our side, and has been logged."),
        503: gettext("Nothing is lost: what was stored stays, and this page works again once the database does."),
    }
