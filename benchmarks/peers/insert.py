"""The order is stored, and nothing follows."""

from peers.shop import make_app

app = make_app()
