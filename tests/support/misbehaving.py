"""The WSGI application with two more receivers, which misbehave: ``gunicorn tests.support.misbehaving:app``.

``with_session`` and ``without`` do for the order ``segfault-with_session``, say, what KINDS has under ``segfault``, and
nothing for any other order.
"""

import asyncio
import ctypes
import os
import resource
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

from app.events import OrderCreated, order_created
from wsgi import app

__all__ = ["DEADLY", "HANGING", "KINDS", "RAISING", "app"]


def _raise(error: BaseException) -> Callable[[], Any]:
    def misbehave() -> None:
        raise error

    return misbehave


def _spin() -> None:
    while True:
        pass


RAISING: dict[str, Callable[[], Any]] = {
    "sys.exit": lambda: sys.exit(1),
    "cancelled": _raise(asyncio.CancelledError()),
    "interrupt": _raise(KeyboardInterrupt()),
    "generator": _raise(GeneratorExit()),
}
DEADLY: dict[str, Callable[[], Any]] = {
    "os._exit": lambda: os._exit(7),
    "segfault": lambda: ctypes.string_at(0),
    "oom-kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
}
HANGING: dict[str, Callable[[], Any]] = {"sleep": lambda: threading.Event().wait(), "spin": _spin}
KINDS = RAISING | DEADLY | HANGING

resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # nobody wants the memory of what crashes here


def with_session(sender: str, event: OrderCreated, session: Any) -> None:
    misbehave(event.order_id, "with_session")


def without(sender: str, event: OrderCreated) -> None:
    misbehave(event.order_id, "without")


def misbehave(order_id: str, receiver: str) -> None:
    kind, _, whose = order_id.partition("-with")
    if f"with{whose}" == receiver and kind in KINDS:
        KINDS[kind]()


order_created.connect(with_session)
order_created.connect(without)
