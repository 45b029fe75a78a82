"""Celery's application with what a module for tests adds to the service, such as receivers:

WITH=tests.support.faulty DISPATCH_IN_WEB=false celery -A tests.support.celery_worker worker
"""

import os
from importlib import import_module

import_module(os.environ["WITH"])

from celery_app import app  # noqa: E402 - the queues are of the receivers that are connected by now

__all__ = ["app"]
