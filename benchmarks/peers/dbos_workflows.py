"""DBOS Transact in the orders' own SQLite file: its client enqueues the workflow in the order's transaction.

Run as a program it is the worker.
"""

import os
import threading

from dbos import DBOS, DBOSClient

from peers import shop

client = DBOSClient(system_database_engine=shop.engine)


@DBOS.step()
def update_user_order_record(order):
    shop.update_user_order_record(order)


@DBOS.step()
def send_email_notification(order):
    with app.app_context():
        shop.send_email_notification(order)


@DBOS.workflow(name="order_created")
def order_created(order):
    update_user_order_record(order)
    send_email_notification(order)


def publish_inside(order, session):
    session.flush()
    client.enqueue_in_transaction(session, {"queue_name": "orders", "workflow_name": "order_created"}, order)


app = shop.make_app(publish_inside=publish_inside)

if __name__ == "__main__":
    DBOS(config={"name": "orders", "system_database_url": os.environ["DATABASE_URL"]})
    DBOS.launch()
    DBOS.register_queue("orders")
    threading.Event().wait()
