"""A blinker signal, as its documentation has it: receivers run in the request."""

from blinker import signal

from peers.shop import make_app, send_email_notification, update_user_order_record

order_created = signal("order_created")


@order_created.connect
def on_created_record(_, order):
    update_user_order_record(order)


@order_created.connect
def on_created_mail(_, order):
    send_email_notification(order)


app = make_app(lambda order: order_created.send("/api/create_order", order=order))
