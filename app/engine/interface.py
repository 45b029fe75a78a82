"""The engine's interface. There are two engines, and ``BUS_ENGINE`` chooses one.

| | ``inprocess`` | ``celery`` |
|---|---|---|
| ``start()`` | claims due deliveries for threads of its own | claims them as *dispatched*, and publishes messages |
| receivers run in | these threads | Celery's workers, which take over a message's delivery by compare-and-set |
| ``wake()`` | the loop looks for due deliveries now | the same |
| ``stop()`` | waits for running receivers | waits for messages that are being published |

Both use the same steps of the bus: ``Dispatcher`` claims, takes, invokes and settles. The bus knows no engine: it
reports ``lifecycle.deliveries_due``, and engines listen.
"""

from collections.abc import Callable
from typing import Protocol

from app.bus import Bus


class Running(Protocol):
    """A started engine."""

    refusal: str | None
    """Why it does not deliver: see ``bus.delivers_by``."""


class Engine(Protocol):
    """Brings due deliveries to where receivers run."""

    bus: Bus
    end_process: Callable[[], object]
    """Called when only the end of the process helps."""

    @property
    def alive(self) -> bool:
        """Whether it is started, and none of its own threads has ended."""

    def start(self, *, anyway: bool = False, waits: bool = True) -> Running:
        """Dispatch from this process until ``stop()``. Does nothing when it does so already. Raises nothing: what
        can't be reached is tried again.

        ``anyway``: also where mail went otherwise before. ``waits``: where that is refused, look again now and then;
        else end.
        """

    def stop(self) -> bool:
        """Claim no more, and wait SHUTDOWN_SECONDS for what runs. Returns whether all ended."""

    def check(self) -> str | None:
        """Ask what it needs beside the database. Returns in words what answered; None where it needs nothing. Raises
        BrokerUnavailable."""

    def wake(self, _: object = None, everywhere: bool = False) -> None:
        """Deliveries are due: wake what is started here, or else other processes; all of them where ``everywhere``."""
