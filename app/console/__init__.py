"""CONSOLE: pages on which people watch the flow of events and correct what went wrong."""

from app.console.extension import init_app

__all__ = ["init_app"]
