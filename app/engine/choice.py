"""The engine that BUS_ENGINE names."""

from app.bus import Bus
from app.engine.inprocess import Engine
from config import Settings


def make_engine(bus: Bus, settings: Settings) -> Engine:
    """Nothing of Celery is imported for another engine."""
    if settings.bus_engine == "celery":
        from app.engine.celery.engine import CeleryEngine

        return CeleryEngine(bus, settings)
    return Engine(bus, settings)
