"""Downloads: tables as CSV or JSON, sent a page at a time.

Each page is read in a transaction of its own, so that a slow reader holds none open; what changes meanwhile may be
there or not. A stream that breaks off lacks its end mark: the browser says that the download failed.
"""

import csv
import io
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from http import HTTPStatus
from itertools import chain
from typing import Any, TypeVar

from flask import Response, current_app
from flask_babel import gettext

from app.current import settings
from app.http import Problem

ROWS_AT_ONCE = 500

THREADS_EACH = 4
"""Of so many threads one may be held by a download: a reader may be slow, and the others are for everybody else."""

RETRY_SECONDS = 30

FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""A spreadsheet takes a cell that begins so for a formula, and runs it."""

Cursor = TypeVar("Cursor")
Row = Mapping[str, Any]


def all_pages(read: Callable[[Cursor | None], tuple[Sequence[Row], Cursor | None]]) -> Iterator[Sequence[Row]]:
    """The rows of a table. ``read(cursor)`` returns a page, and the next one's cursor: None after the last page."""
    rows, cursor = read(None)
    yield rows
    while cursor is not None:
        rows, cursor = read(cursor)
        yield rows


def send_csv(pages: Iterable[Sequence[Row]], columns: Sequence[str], name: str) -> Response:
    """With a header line. Raises Problem with 429 while others are under way."""
    return _send(_csv_parts(pages, columns), "text/csv", name)


def send_json(pages: Iterable[Sequence[Row]], name: str) -> Response:
    """An array, each object on a line of its own. Raises Problem with 429 while others are under way."""
    return _send(_json_parts(pages, current_app.json.dumps), "application/json", name)


def _csv_parts(pages: Iterable[Sequence[Row]], columns: Sequence[str]) -> Iterator[str]:
    head: list[Sequence[str]] = [columns]
    for rows in pages:
        written = io.StringIO()
        csv.writer(written).writerows(chain(head, ([guarded(row[name]) for name in columns] for row in rows)))
        yield written.getvalue()
        head = []


def guarded(value: object) -> str:
    """A cell's text: what a spreadsheet would run has an apostrophe before it."""
    text = "" if value is None else str(value)
    return f"'{text}" if text.startswith(FORMULA) else text


def _json_parts(pages: Iterable[Sequence[Row]], dumps: Callable[[Any], str]) -> Iterator[str]:
    before = "[\n"
    for rows in pages:
        if rows:
            yield before + ",\n".join(dumps(row) for row in rows)
            before = ",\n"
    yield "[]\n" if before == "[\n" else "\n]\n"


def _send(parts: Iterator[str], mimetype: str, name: str) -> Response:
    """The first part is made before the answer begins: an error until then is answered as a page."""
    slots = _slots()
    if not slots.acquire(blocking=False):
        text = gettext("Other downloads are under way. Try again when they have ended.")
        raise Problem(HTTPStatus.TOO_MANY_REQUESTS, text, headers={"Retry-After": str(RETRY_SECONDS)})
    try:
        begun = chain([next(parts)], parts)
    except BaseException:
        slots.release()
        raise
    response = Response(begun, mimetype=mimetype, headers={"Content-Disposition": f'attachment; filename="{name}"'})
    response.call_on_close(slots.release)
    return response


def _slots() -> threading.BoundedSemaphore:
    """This process': a thread each."""
    most = max(1, settings().web_threads // THREADS_EACH)
    found: threading.BoundedSemaphore = current_app.extensions.setdefault(
        "console_downloads", threading.BoundedSemaphore(most)
    )
    return found
