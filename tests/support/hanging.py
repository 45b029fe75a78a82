"""The service with two receivers that do not return, for ``flask --app`` and for ``celery -A``."""

import contextlib
import logging
import time

from celery import signals
from flask import Flask

from app import create_app
from app.engine.celery.processes import Processes
from app.errors import InDoubt
from app.events import OrderCreated, order_created
from app.observe import logs
from app.signal import ReceiverOptions
from config import Settings

LIMIT_SECONDS = 1.0

logs.configure(Settings.for_logs())
signals.setup_logging.connect(lambda **_: None, weak=False)  # as celery_app.py has it
logging.getLogger("celery").setLevel(logging.INFO)


def hangs(sender: str, event: OrderCreated) -> None:
    time.sleep(3600)


def ignores_its_limit(sender: str, event: OrderCreated) -> None:
    while True:
        with contextlib.suppress(InDoubt):
            time.sleep(3600)


order_created.connect(hangs)
order_created.connect(ignores_its_limit)


def make_app() -> Flask:
    made = create_app(Settings.load(), prepare_file=False)
    for name in ("hangs", "ignores_its_limit"):
        made.extensions["bus"].options[name] = ReceiverOptions(timeout_seconds=LIMIT_SECONDS)
    return made


app = make_app()
worker = Processes(app.extensions["settings"], app, make_app, logs.fail).celery
