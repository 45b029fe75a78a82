"""Procrastinate, with jobs deferred in the order's own transaction."""

import os

from procrastinate import App, PsycopgConnector

from peers import shop

jobs = App(connector=PsycopgConnector(conninfo=os.environ["BROKER_URL"]))


@jobs.task
def update_user_order_record(order):
    shop.update_user_order_record(order)


@jobs.task
def send_email_notification(order):
    with app.app_context():
        shop.send_email_notification(order)


def publish_inside(order, session):
    session.flush()
    connection = session.connection().connection.dbapi_connection
    update_user_order_record.configure(connection=connection).defer(order=order)
    send_email_notification.configure(connection=connection).defer(order=order)


app = shop.make_app(publish_inside=publish_inside)
