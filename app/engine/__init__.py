"""ENGINE: what brings leased deliveries to where receivers run."""

from app.engine.inprocess import InProcessEngine

__all__ = ["InProcessEngine"]
