"""gunicorn's settings: read by itself from the current folder, so ``gunicorn wsgi:app`` is enough.

The hooks are in app/serving.py.
"""

import math
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # for -c from another folder

import config as service  # gunicorn has a setting of its own named "config"
from app.errors import NoTemporaryFolder
from app.observe import logs
from app.serving import Serving, processes, temporary_folder

logs.configure(service.Settings.for_logs())
try:
    # Here, before any worker: a worker that ends itself over a wrong setting is started again for ever.
    settings = service.Settings.load()
    logs.announce(settings)
    folder = temporary_folder(settings.instance_path)
except (service.ConfigError, NoTemporaryFolder) as error:
    logs.fail(error)
serving = Serving(settings, folder)

chdir = str(service.CHECKOUT)
wsgi_app = "wsgi:app"
bind = f"{settings.web_host}:{settings.port}"
worker_class = "app.serving.SpreadingWorker"  # gthread
workers = processes(settings)
threads = settings.web_threads
keepalive = 5
worker_connections = 500  # a process; files are limited too, often to 1024
forwarded_allow_ips = ""  # nothing that a client says of itself is believed
forwarder_headers = ""
timeout = 30
graceful_timeout = 20 + math.ceil(settings.shutdown_seconds)  # requests, then running receivers
control_socket_disable = True  # all instances of a user would share one socket
worker_tmp_dir = str(folder)
limit_request_line = 4094
limit_request_fields = 50
limit_request_field_size = 8190
logger_class = logs.GunicornLogger

on_starting = serving.on_starting
post_worker_init = serving.post_worker_init
worker_exit = serving.worker_exit
