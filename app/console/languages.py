"""Words, dates and amounts in the reader's language: Chinese or English, by Flask-Babel."""

import threading
from datetime import datetime
from decimal import Decimal
from functools import lru_cache

from babel import Locale, UnknownLocaleError
from babel.dates import format_datetime
from babel.numbers import format_decimal
from flask import current_app, request
from flask_babel import Babel, get_locale

LANGUAGES = ("en", "zh")
COOKIE = "language"
COOKIE_SECONDS = 365 * 24 * 3600

_lock = threading.Lock()


def prepare() -> None:
    """Give the application its Babel, when its first page is asked for."""
    app = current_app
    if "babel" in app.extensions:
        return
    with _lock:
        if "babel" not in app.extensions:
            folder = f"{app.root_path}/console/translations"
            Babel(
                app._get_current_object(),  # type: ignore[attr-defined]
                default_translation_directories=folder,
                locale_selector=choose_locale,
            )


def choose_locale() -> str:
    """The language that the reader chose, else the browser's first that is one of ours; English without any. A region
    of the browser's, as in en-GB, decides about dates and amounts."""
    tags = [tag for tag, _ in request.accept_languages]
    chosen = request.cookies.get(COOKIE)
    wanted = [chosen] if chosen in LANGUAGES else [tag.partition("-")[0].lower() for tag in tags]
    language = next((each for each in wanted if each in LANGUAGES), "en")
    return next((known for tag in tags if (known := _known(tag, language))), language)


@lru_cache(64)
def _known(tag: str, language: str) -> str | None:
    """The tag as Babel names it, where it is of this language and known."""
    if tag.partition("-")[0].lower() != language or len(tag) > 20:
        return None
    try:
        return str(Locale.parse(tag, sep="-"))
    except (UnknownLocaleError, ValueError):
        return None


def language() -> str:
    """``en`` or ``zh``."""
    return str(get_locale().language)


def html_language() -> str:
    """As HTML's ``lang`` has it: ``zh-CN``."""
    return "zh-CN" if language() == "zh" else str(get_locale()).replace("_", "-")


def shown_moment(moment: datetime) -> str:
    """The date and time of day, in UTC, in the reader's form; a script makes it local."""
    return str(format_datetime(moment, "medium", locale=get_locale()))


def shown_number(number: int) -> str:
    return str(format_decimal(number, locale=get_locale()))


def shown_amount(amount: Decimal) -> str:
    """With two decimals, exact."""
    return str(format_decimal(amount, "#,##0.00", locale=get_locale()))
