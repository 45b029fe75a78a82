"""ENGINE: what brings leased deliveries to where receivers run."""

from app.engine.choice import make_engine
from app.engine.interface import Engine

__all__ = ["Engine", "make_engine"]
