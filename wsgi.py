"""The WSGI application. Importing this module in the process that serves is enough to run everything."""

import atexit
import sys

import click
from flask.cli import ScriptInfo

import config
from app import create_app
from app.errors import AppError, DatabaseUnavailable
from app.schema import prepare

_command = click.get_current_context(silent=True)  # granian has one too, without Flask's ScriptInfo
_serving = _command is None or _command.find_object(ScriptInfo) is None or _command.info_name == "run"

try:
    app = create_app()
    if _serving:
        prepare(app.extensions["database"])
        app.extensions["database"].close()  # gunicorn --preload forks after this: see create_app
except DatabaseUnavailable as error:
    if config.Settings.load().is_sqlite:
        sys.exit(f"error: {error}")
except (config.ConfigError, AppError) as error:
    sys.exit(f"error: {error}")

# gunicorn.conf.py starts the dispatcher after the fork instead, in each process that serves.
if _serving and app.extensions["settings"].dispatch_in_web and not config.SERVER_STARTS_DISPATCHER:
    app.extensions["bus"].start()
    atexit.register(app.extensions["bus"].stop)
