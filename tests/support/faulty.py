"""The WSGI application with one receiver more, whose fault is chosen by an order's id.

    gunicorn tests.support.faulty:app

``hang-…`` never returns, ``raise-…`` raises, ``kill-…`` ends the process. Once the file CURE names exists, the receiver
is well.
"""

import os
import time
from pathlib import Path

from app.events import OrderCreated, order_created

CURE = Path(os.environ["CURE"])


def misbehave(sender: str, event: OrderCreated) -> None:
    fault = event.order_id.partition("-")[0]
    while fault == "hang" and not CURE.exists():
        time.sleep(0.05)
    if CURE.exists():
        return
    if fault == "raise":
        raise KeyError("price list")
    if fault == "kill":
        os._exit(7)


order_created.connect(misbehave)

from wsgi import app  # noqa: E402 - dispatching begins there

__all__ = ["app", "misbehave"]
