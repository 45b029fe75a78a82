"""A blinker signal that is sent in a thread, so that the request need not wait."""

from concurrent.futures import ThreadPoolExecutor

from peers.blinker_request import order_created
from peers.shop import AT_ONCE, make_app

pool = ThreadPoolExecutor(AT_ONCE // 2)  # in each of two processes


def send(order):
    with app.app_context():
        order_created.send("/api/create_order", order=order)


app = make_app(lambda order: pool.submit(send, order))
