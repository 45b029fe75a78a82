"""Acts in the background: a large one goes on though its page is closed, and the request does not wait for it."""

import logging
import threading
from collections.abc import Callable

from app.bus import Bus, operate
from app.bus.operate import Chosen
from app.errors import DatabaseUnavailable

AGAIN_SECONDS = 5.0
"""After which an act goes on that the database kept from it."""

log = logging.getLogger(__name__)


def carry_out(bus: Bus, chosen: Chosen) -> int:
    """Record the act, and carry it out: at once where a transaction holds it, else in the background. Returns its id.

    An act whose process ends in the middle is ``left``: its person goes on with it by a click.
    """
    started = bus.start(chosen)
    assert started.act_id is not None  # noqa: S101 - start() gave it
    if len(chosen) <= operate.BATCH:
        bus.carry_out(started)
    else:
        run(f"act {started.act_id}", lambda: _carry_out(bus, started))
    return started.act_id


def _carry_out(bus: Bus, started: Chosen) -> None:
    """Where the database goes away for longer than a transaction waits, the act goes on once it is back."""
    while True:
        try:
            bus.carry_out(started)
            return
        except DatabaseUnavailable as error:
            log.warning("act %s waits for the database: %s", started.act_id, error.reason)
        threading.Event().wait(AGAIN_SECONDS)


def run(name: str, work: Callable[[], object]) -> None:
    """In a thread that ends with the process."""
    threading.Thread(target=work, name=name, daemon=True).start()
