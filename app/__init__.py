"""A Flask service that takes orders and lets everything that follows happen by durable events."""

import logging

from flask import Flask
from sqlalchemy.orm import configure_mappers

from app import api, cli, console, docs, mail, receivers
from app.bus import Bus, lifecycle
from app.clock import Clock
from app.db import Database, schema
from app.engine import make_engine
from app.observe import logs, metrics, traces
from app.retry import Costs, ExponentialBackoff, LearnedPolicy, Policy
from app.signal import check_options
from config import Settings

__all__ = ["create_app"]


def create_app(
    settings: Settings | None = None,
    *,
    clock: Clock | None = None,
    policy: Policy | LearnedPolicy | None = None,
    prepare_file: bool = True,
) -> Flask:
    """The application: the only place that knows every part. Starts no thread: ``wsgi.py`` does.

    ``prepare_file`` brings the schema of a SQLite file up to date. Commands that see to a file that can't be used do
    without. Raises ConfigError when a setting is wrong; with ``prepare_file``, DatabaseUnusable when the file can't be
    opened, and SchemaAhead when its schema is newer than the code.
    """
    settings = settings or Settings.load()
    configure_mappers()  # under a lock, which a fork at that moment would leave locked in the child for ever
    app = Flask(__name__, instance_path=str(settings.instance_path))
    app.config.from_mapping({name.upper(): value for name, value in settings if name != "trusted_hosts"})  # see auth.py
    clock = clock or Clock()
    database = Database(
        settings.database_url, clock=clock, timeout=settings.database_timeout, pool_size=settings.database_pool_size
    )
    policy = policy or _policy(settings)
    if prepare_file and database.dialect.file is not None:
        schema.prepare(database)
        database.close()  # a server that loads the application and then forks hands no open connection down
    app.extensions.update(settings=settings, database=database)
    bus = Bus(app, database, policy=policy, settings=settings, options=receivers.options(settings))
    app.extensions["bus"] = bus
    app.extensions["engine"] = make_engine(bus)

    logs.init_app(app)
    metrics.init_app(app)
    if defect := database.dialect.defect():
        logging.getLogger("app.db").warning(defect)
    mailer = mail.init_app(app, settings)
    lifecycle.dispatcher_stopped.connect(mailer.close, sender=bus)
    receivers.connect_all()
    check_options(bus.options)
    api.init_app(app)
    console.init_app(app)
    docs.init_app(app)
    traces.init_app(app)
    cli.init_app(app)
    return app


def _policy(settings: Settings) -> Policy | LearnedPolicy:
    if settings.retry_policy == "learned":
        costs = Costs(settings.retry_attempt_cost, settings.retry_loss_cost, settings.retry_copy_cost)
        return LearnedPolicy(costs=costs, maximum=settings.retry_max_seconds)
    return ExponentialBackoff(settings.retry_base_seconds, settings.retry_max_seconds, settings.retry_max_attempts)
