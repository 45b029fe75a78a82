"""Reasons of attempts, in the reader's language: why a delivery is tried at its time and not before."""

from flask_babel import gettext

from app.console.languages import language
from app.console.pages import in_units, state_word
from app.retry import why
from app.retry.why import Parts, seconds_told


def told(sentence: str) -> tuple[str, bool]:
    """A sentence of ``retry.why``, and whether it stays English on a page in another language: an earlier version
    wrote it. In English it is as it was stored."""
    if language() == "en":
        return sentence, False
    found = why.parts(sentence)
    return (_said(found), False) if found else (sentence, True)


def _said(parts: Parts) -> str:
    template, values = parts
    said = {name: _value(name, value) if isinstance(value, str) else _said(value) for name, value in values.items()}
    return str(gettext(template, **said))


def _value(name: str, value: str) -> str:
    if name in ("wait", "age", "late", "lasted"):
        return in_units(value)
    return kind(value) if name == "kind" else value


def kind(name: str) -> str:
    """A kind of failures: an outcome, a reply code, or what an enhanced code says."""
    known = {
        "mailbox full": gettext("a full mailbox"),
        "mailbox": gettext("a mailbox that is not ready"),
        "address": gettext("an address that is not ready"),
        "greylisted": gettext("greylisting"),
    }
    return str(known.get(name) or state_word(name)[2])


def seconds(number: float) -> str:
    """With three digits: ``4.27 min``."""
    return in_units(seconds_told(number))


def about(number: float) -> str:
    """With two digits: ``4.3 min``."""
    amount, unit = seconds_told(number).split()
    return in_units(f"{float(f'{float(amount):.2g}'):g} {unit}")
