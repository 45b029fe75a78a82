"""Log lines: a formatter for people, a formatter for machines, and the handler that writes them.

Foreign text stands in many lines: a mail server's reply, an exception's message. Both formatters mask e-mail addresses
and replace characters that end a line or move a terminal's cursor, whichever logger a record comes from.
"""

import json
import logging
import math
import re
import traceback
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from functools import lru_cache
from select import PIPE_BUF
from typing import Any, TextIO

from app.observe.concerns import ids_here
from app.observe.pipes import DroppingStream
from app.text import masked, one_line

_PLAIN = re.compile("[A-Za-z0-9._:/,+-]+").fullmatch
"""Most values match; they need neither quotes nor masking."""

_UNCLEAR = re.compile(r"""[\s="']""")

_COLOUR = re.compile("\x1b\\[[0-9;]*m")
"""Werkzeug colours its lines, whether or not a terminal shows them."""

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
"""The attributes of every record; others came as ``extra``."""

_LONGEST_WARNING = 1000


class TextFormatter(logging.Formatter):
    """``time [level   ] message                  name=value …``, and a traceback below it, set in."""

    def format(self, record: logging.LogRecord) -> str:
        head = f"{_time(record)} [{record.levelname.lower():8}] {_message(record):24}"
        lines = []
        for facts in _facts(record):
            told = [head]
            for name, value in facts.items():
                plain = type(value) is str and _PLAIN(value)
                told.append(f"{name}={value if plain else _shown(value)}")
            lines.append(" ".join(told).rstrip())
        if _is_traced(record):
            lines += _trace(record)
        return "\n".join(lines)


class JsonFormatter(logging.Formatter):
    """An object on one line: ``message``, ``level``, ``timestamp``, ``logger``, each fact, and ``exception``."""

    def format(self, record: logging.LogRecord) -> str:
        head: dict[str, Any] = {
            "message": _message(record),
            "level": record.levelname.lower(),
            "timestamp": _time(record),
            "logger": record.name,
        }
        lines = []
        for facts in _facts(record):
            line = dict(head)
            for name, value in facts.items():
                line.setdefault(name, masked(value) if isinstance(value, str) else _scalar(value))
            if _is_traced(record):
                line["exception"] = "\n".join(_trace(record))
            lines.append(json.dumps(line, ensure_ascii=False))
        return "\n".join(lines)


class LineHandler(logging.StreamHandler[TextIO | DroppingStream]):
    """Writes each record by one call, as far as a pipe takes it whole, and fails silently.

    It fails on a full disk, a pipe that nobody reads, a closed stream. The reported fact has happened all the same; an
    error from here would answer 500 to an order that is stored, and end the threads that deliver.
    """

    def emit(self, record: logging.LogRecord) -> None:
        try:
            lines = f"{self.format(record)}\n"
            for piece in [lines] if len(lines) <= PIPE_BUF else _pieces(lines):
                self.stream.write(piece)
        except Exception:
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the base class' name
        """Nothing: the base class would print a traceback to what may be the very stream that fails."""

    def flush(self) -> None:
        with suppress(Exception):
            self.stream.flush()


def _pieces(lines: str) -> Iterator[str]:
    """Pieces of whole lines that a pipe takes whole, so that nothing of another process comes between."""
    begin = 0
    while len(lines) - begin > PIPE_BUF:
        end = lines.rfind("\n", begin, begin + PIPE_BUF) + 1 or lines.index("\n", begin) + 1
        yield lines[begin:end]
        begin = end
    if begin < len(lines):
        yield lines[begin:]


def _time(record: logging.LogRecord) -> str:
    return f"{_second(int(record.created))}.{int(record.created % 1 * 1_000_000):06}Z"


@lru_cache(maxsize=4)
def _second(timestamp: int) -> str:
    return f"{datetime.fromtimestamp(timestamp, UTC):%Y-%m-%dT%H:%M:%S}"


def _message(record: logging.LogRecord) -> str:
    try:
        message = record.getMessage()
    except Exception:
        message = f"{_text(record.msg)} (logged with arguments that don't fit)"
    if "\x1b" in message:
        message = _COLOUR.sub("", message)
    if record.name == "py.warnings":
        return masked(one_line(message, _LONGEST_WARNING))  # its second line is the source code's
    return masked(message)


def _facts(record: logging.LogRecord) -> list[Mapping[str, Any]]:
    """Of each line: those of the bus, or whatever else was given as ``extra`` and the ids of what runs here."""
    known = vars(record)
    if "facts" in known:
        given = known["facts"] if isinstance(known["facts"], list) else [known["facts"]]
        return [facts if isinstance(facts, Mapping) else {"facts": facts} for facts in given]
    return [{masked(name): value for name, value in known.items() if name not in _STANDARD} | ids_here()]


def _is_traced(record: logging.LogRecord) -> bool:
    return bool(record.exc_info or record.exc_text or record.stack_info)


def _trace(record: logging.LogRecord) -> list[str]:
    """A traceback's lines, set in, so that none of them can pass for a line of the log."""
    told = []
    if record.exc_info:
        told += "".join(traceback.format_exception(*record.exc_info)).rstrip().split("\n")
    elif record.exc_text:  # a record that was pickled keeps no more
        told += record.exc_text.split("\n")
    if record.stack_info:
        told += record.stack_info.split("\n")
    return [f"    {masked(line)}" for line in told]


def _shown(value: Any) -> str:
    """A value as it is, unless something in it is to be masked, or it would be hard to see where it ends."""
    text = _text(value)
    if _PLAIN(text):
        return text
    text = masked(text)
    return text if text and text.isascii() and not _UNCLEAR.search(text) else repr(text)


def _scalar(value: Any) -> Any:
    """As JSON has it, or as text: for a dict too, which may hold anything, itself included."""
    if value is None or isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    return masked(_text(value))


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    try:
        return str(value)
    except Exception:
        return f"<{type(value).__name__} that can't be shown>"
