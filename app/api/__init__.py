"""EVENT SOURCE: the HTTP API. An order comes in, an event goes out; programs read what followed."""

from app.api.extension import init_app

__all__ = ["init_app"]
