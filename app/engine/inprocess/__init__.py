"""The in-process engine: deliveries run in threads of this process."""

from app.engine.inprocess.engine import Engine

__all__ = ["Engine"]
