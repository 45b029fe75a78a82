"""The application of Celery's own commands, started in this folder: ``celery -A celery_app worker``, ``… flower``.

What carries deliveries is in app/engine/celery; settings are those of every other process, config.py.
"""

import logging
from functools import partial

from celery import signals

import config
from app import create_app
from app.engine.celery.processes import Processes
from app.errors import AppError
from app.observe import logs

logs.configure(config.Settings.for_logs())
signals.setup_logging.connect(lambda **_: None, weak=False)  # Celery leaves logging alone where somebody listens
for name in ("celery.worker.strategy", "celery.app.trace"):  # each message's receipt and end: the bus tells its own
    logging.getLogger(name).setLevel(logging.WARNING)
logging.getLogger("celery").setLevel(logging.INFO)

try:
    settings = config.Settings.load()
    if settings.bus_engine != "celery":
        raise config.ConfigError("BUS_ENGINE is not celery, so nothing is given to Celery's workers; set it to celery")
    make_app = partial(create_app, settings, prepare_file=False)
    app = Processes(settings, make_app(), make_app, logs.fail).celery
except (config.ConfigError, AppError) as error:
    logs.fail(error)
