"""Commands for people: flask bus, flask orders, flask users, flask db, flask doctor."""

from app.cli.extension import init_app

__all__ = ["init_app"]
