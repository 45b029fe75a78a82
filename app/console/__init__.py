"""CONSOLE: pages for people, who look at the flow of events and put right what went wrong."""

from app.console.extension import init_app

__all__ = ["init_app"]
