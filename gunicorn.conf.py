"""How gunicorn serves the application: read by itself from the current folder, so ``gunicorn wsgi:app`` is enough."""

import fcntl
import gc
import math
import os
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # for -c from another folder

import config as service  # gunicorn has a setting of its own named "config"
from app.observe import logs

logs.configure(service.Settings.for_logs())
try:
    # Here, before any worker: a worker that ends itself over a wrong setting is started again for ever.
    settings = service.Settings.load()
except service.ConfigError as error:
    logs.fail(error)

chdir = str(service.CHECKOUT)
wsgi_app = "wsgi:app"
bind = f"{settings.web_host}:{settings.port}"
worker_class = "app.server.PatientWorker"  # gthread, but slow clients hold no thread
# One more dispatches, see post_worker_init; where one process is to serve, it does both.
workers = settings.web_concurrency + (settings.dispatch_in_web and settings.web_concurrency > 1)
threads = settings.web_threads
keepalive = 5
worker_connections = 500  # a process; files are limited too, often to 1024
forwarded_allow_ips = ""  # nothing that a client says of itself is believed
forwarder_headers = ""
sendfile = False  # the worker sends
timeout = 30
graceful_timeout = 20 + math.ceil(settings.shutdown_seconds)  # what is under way, then running receivers
control_socket_disable = True  # all instances of a user would share one socket
worker_tmp_dir = "/dev/shm" if Path("/dev/shm").is_dir() else None  # noqa: S108 - a heartbeat file, no data
limit_request_line = 4094
limit_request_fields = 50
limit_request_field_size = 8190

service.SERVER_STARTS_DISPATCHER = True


logger_class = logs.GunicornLogger

DELIVERING_NICENESS = 15
"""Where there is more to do than the processor can, requests come first and deliveries catch up. Not on SQLite: who is
kept waiting there may hold the write lock, see Worker._give_way() instead."""

VACANT_SECONDS = 5
"""After so long without a dispatcher a process that serves becomes one too. gunicorn replaces one that died sooner."""

# Whoever holds its lock dispatches; the kernel frees a dead process' lock. It is open for as long as gunicorn runs.
generation = tempfile.TemporaryFile()  # noqa: SIM115


def on_starting(server):
    """Bring the schema up to date, or say why not, once and before any worker."""
    from app.db import Database
    from app.db.schema import prepare
    from app.errors import AppError, DatabaseUnavailable

    try:
        database = Database(settings.database_url, timeout=settings.database_timeout)
        try:
            prepare(database)
        finally:
            database.close()
    except DatabaseUnavailable:
        server.log.warning("PostgreSQL can't be reached; requests are answered 503 until it can")
    except AppError as error:
        logs.fail(error)
    gc.collect()
    gc.freeze()  # nor, in the processes that are forked, through what they share: that would make copies of it


def on_reload(server):
    """The new workers choose a dispatcher among themselves, while the old ones end."""
    global generation
    generation = tempfile.TemporaryFile()  # noqa: SIM115 - as above


def post_worker_init(worker):
    """The application is loaded and the process forked. The first that comes here dispatches, and serves nobody, so
    that requests and deliveries don't wait for one interpreter. A lone process does both."""
    gc.freeze()  # the collector need not go through all that was loaded, each time again
    if not settings.dispatch_in_web:
        return
    if _take_office():
        worker.serves = worker.cfg.workers == 1
        if not worker.serves and not settings.is_sqlite:
            os.nice(DELIVERING_NICENESS)
        _bus(worker).start()
    else:
        threading.Thread(target=_stand_by, args=[worker], name="stand-by", daemon=True).start()


def worker_exit(server, worker):
    """Requests are answered; let running receivers end, and give back what was not begun."""
    if worker.wsgi is not None:
        _bus(worker).stop()


def child_exit(server, worker):
    worker.is_gone()


def _take_office():
    try:
        fcntl.lockf(generation, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _stand_by(worker):
    """Dispatch here as well, should there be nobody left who does: say, after SIGTTOU took that process away."""
    while worker.alive:
        fcntl.lockf(generation, fcntl.LOCK_EX)
        fcntl.lockf(generation, fcntl.LOCK_UN)
        time.sleep(VACANT_SECONDS)
        if worker.alive and _take_office():
            _bus(worker).start()
            return


def _bus(worker):
    return worker.wsgi.extensions["engine"]
