"""The in-process engine: deliveries run in threads of this process."""

from app.engine.inprocess.engine import InProcessEngine

__all__ = ["InProcessEngine"]
