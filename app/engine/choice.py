"""The engine that BUS_ENGINE names."""

from app.bus import Bus
from app.engine.inprocess.engine import Engine


def make_engine(bus: Bus) -> Engine:
    """Nothing of Celery is imported for another engine."""
    if bus.settings.bus_engine == "celery":
        from app.engine.celery.engine import CeleryEngine

        return CeleryEngine(bus)
    return Engine(bus)
