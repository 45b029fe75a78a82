"""Huey with its SQLite storage, as its guide has it; DURABLE says whether with ``fsync``."""

import os

from huey import SqliteHuey

from peers import shop

huey = SqliteHuey(filename=os.environ["BROKER_URL"], fsync=shop.DURABLE or None)


@huey.task()
def update_user_order_record(order):
    shop.update_user_order_record(order)


@huey.task()
def send_email_notification(order):
    with app.app_context():
        shop.send_email_notification(order)


def publish(order):
    update_user_order_record(order)
    send_email_notification(order)


app = shop.make_app(publish)
