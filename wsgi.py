"""The WSGI application. Importing this module in the process that serves is enough to run everything."""

import atexit
import logging
import signal
import sys

import click
from flask.cli import ScriptInfo
from flask.helpers import get_debug_flag
from werkzeug.serving import is_running_from_reloader

import config
from app import affinity, create_app
from app.db.schema import prepare
from app.errors import AppError, DatabaseUnavailable, SchemaAhead
from app.observe import logs

logs.configure(config.Settings.for_logs())

_by_gunicorn = config.gunicorn_serves()
_by_its_hooks = "app.serving" in sys.modules  # gunicorn.conf.py imports it, nothing else does
if _by_gunicorn and not _by_its_hooks:
    logs.fail(
        "gunicorn runs without this service's gunicorn.conf.py, which it reads from the folder where it is "
        f"started; start it in {config.CHECKOUT}, or with '-c {config.CHECKOUT}/gunicorn.conf.py'",
        code=4,  # tells gunicorn that it is no use to start another worker
    )

_context = click.get_current_context(silent=True)  # granian has one too, without Flask's ScriptInfo
_flask = _context if _context and _context.find_object(ScriptInfo) else None
_serving = _flask is None or _flask.info_name == "run"
if _flask and _serving:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # with all that atexit holds, as Ctrl-C does
    _reloads = _flask.params["reload"]
    if get_debug_flag() if _reloads is None else _reloads:
        _serving = is_running_from_reloader()  # or else it only watches the files, with the code of its start

try:
    settings = config.Settings.load()
    if _serving and not _by_gunicorn:  # gunicorn.conf.py has said it
        logs.announce(settings)
    app = create_app(settings, prepare_file=False)
    _database = app.extensions["database"]
    if _serving and not (_by_gunicorn and _database.is_sqlite):  # its master prepares a file, and pins it
        prepare(_database)
        _database.close()  # gunicorn --preload forks after this
    if _serving and not _by_gunicorn:
        _database.hold_file()
except DatabaseUnavailable:
    pass  # PostgreSQL: requests are answered 503 until it can be reached
except SchemaAhead as error:
    if not _by_gunicorn:
        logs.fail(error)
    # Its master's start has checked the schema. This process takes the place of one that died, and goes on as that did.
    logging.getLogger("app.db").warning("%s", error)
except (config.ConfigError, AppError) as error:
    logs.fail(error)

if "granian" in sys.modules:  # it has no hooks
    affinity.keep_to_a_core(settings.web_concurrency)

# Under gunicorn a hook starts the dispatcher instead, after the fork: see app/serving.py.
if _serving and app.extensions["settings"].dispatch_in_web and not _by_gunicorn:
    app.extensions["engine"].start()
    atexit.register(app.extensions["engine"].stop)
