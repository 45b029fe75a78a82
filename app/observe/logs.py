"""Logging by the standard library: what an entry point sets up for its process, and an application for itself.

``configure()`` is the entry points': wsgi.py and gunicorn.conf.py call it, ``create_app()`` doesn't. Handlers and
``dictConfig`` of others, earlier or later, are left alone.
"""

import logging
import sys
import threading
from types import TracebackType
from typing import Any, NoReturn

from flask import Flask
from gunicorn.glogging import Logger  # type: ignore[import-untyped]
from sqlalchemy import make_url

from app.bus.delivers_by import record, route
from app.observe.bus_log import BusLog
from app.observe.lines import JsonFormatter, LineHandler, TextFormatter
from app.observe.pipes import dropping
from app.text import printable
from app.version import VERSION
from config import Settings, without_effect

PROCESS = logging.getLogger("app.process")


def init_app(app: Flask) -> None:
    """Log what the application's bus reports, from the application's own LOG_LEVEL on."""
    level = logging.getLevelNamesMapping()[app.extensions["settings"].log_level]
    app.extensions["bus_log"] = BusLog(app.extensions["bus"], level)


def configure(settings: Settings) -> None:
    """Set the process up: ``text``, a line each for people, or ``json``, an object each for machines, to stderr.

    Warnings and the tracebacks of whatever dies go the same way. Calling it again changes nothing.
    """
    root = logging.getLogger()
    if not root.handlers:
        handler = LineHandler(dropping(sys.stderr))
        handler.setFormatter(JsonFormatter() if settings.log_format == "json" else TextFormatter())
        root.addHandler(handler)
    _choose_level("app", settings.log_level)
    # Of each connection that breaks it would print a traceback; that the database is away is said once, in a line.
    _choose_level("sqlalchemy.pool", "CRITICAL")
    logging.captureWarnings(True)
    sys.excepthook = _log_uncaught
    sys.unraisablehook = _log_unraisable
    threading.excepthook = _log_dead_thread


def announce(settings: Settings) -> None:
    """The first lines of a start: the version, where orders are kept, how mail leaves, and what is set in vain."""
    PROCESS.info("starting", extra={"facts": {"version": VERSION}})
    url = make_url(settings.database_url).set(query={})  # it may hold a password as well
    PROCESS.info("orders are kept", extra={"facts": {"in": url.render_as_string()}})
    mine = record(settings)
    by = {"by": mine["mail_backend"], "to": mine["mail_folder"] or route(mine), "sender": settings.mail_default_sender}
    PROCESS.info("mail leaves" if settings.mail_backend == "smtp" else "mail stays here", extra={"facts": by})
    for line in without_effect():
        PROCESS.warning("%s", line)


def fail(error: object, code: int = 1) -> NoReturn:
    """End a start that can't go on, with one line: as commands tell errors, or as JSON where the log is JSON."""
    if any(isinstance(handler.formatter, JsonFormatter) for handler in logging.getLogger().handlers):
        PROCESS.critical("%s", error)
    else:
        sys.stderr.write(f"error: {printable(str(error))}\n")
    sys.exit(code)


class GunicornLogger(Logger):  # type: ignore[misc]
    """gunicorn's lines look like all others, its access log's too, wherever its own options send them.

    Not where a configuration file of logging is among these options, nor in syslog, which has a form of its own.
    """

    def setup(self, cfg: Any) -> None:
        super().setup(cfg)
        ours = next((each for each in logging.getLogger().handlers if isinstance(each, LineHandler)), None)
        if ours is None or cfg.logconfig or cfg.logconfig_dict or cfg.logconfig_json:
            return
        for handler in (*self.error_log.handlers, *self.access_log.handlers):
            if isinstance(handler, logging.StreamHandler):  # a file is one too
                handler.setFormatter(ours.formatter)
            if type(handler) is logging.StreamHandler:
                handler.setStream(dropping(handler.stream))
        ours.setStream(dropping(sys.stderr))  # gunicorn may have put a file in its place


def _choose_level(logger: str, level: str) -> None:
    if logging.getLogger(logger).level == logging.NOTSET:
        logging.getLogger(logger).setLevel(level)


def _log_uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    PROCESS.critical("uncaught exception", exc_info=(kind, error, trace))


def _log_unraisable(hook: "sys.UnraisableHookArgs") -> None:
    facts = {"facts": {"in": repr(hook.object)}}
    PROCESS.error("exception ignored", exc_info=(hook.exc_type, hook.exc_value, hook.exc_traceback), extra=facts)  # type: ignore[arg-type]


def _log_dead_thread(hook: "threading.ExceptHookArgs") -> None:
    if hook.exc_type is SystemExit:
        return
    facts = {"facts": {"thread": hook.thread.name if hook.thread else "none"}}
    PROCESS.critical("thread died", exc_info=(hook.exc_type, hook.exc_value, hook.exc_traceback), extra=facts)  # type: ignore[arg-type]
