"""Celery as Flask's documentation has it; BROKER_URL says whether on RabbitMQ or Redis.

With DURABLE as its own documentation has it for tasks that must not be lost: published with RabbitMQ's confirms to a
quorum queue, which is on the disk before it confirms, and acknowledged when they are done.
"""

import os

from celery import Celery, Task

from peers import shop


class FlaskTask(Task):
    def __call__(self, *args, **kwargs):
        with app.app_context():
            return self.run(*args, **kwargs)


celery = Celery("orders", task_cls=FlaskTask)
celery.config_from_object({"broker_url": os.environ["BROKER_URL"], "task_ignore_result": True})
if shop.DURABLE:
    celery.conf.update(task_acks_late=True, task_reject_on_worker_lost=True)
    if celery.conf.broker_url.startswith("amqp"):
        celery.conf.update(broker_transport_options={"confirm_publish": True}, task_default_queue_type="quorum")


@celery.task
def update_user_order_record(order):
    shop.update_user_order_record(order)


@celery.task
def send_email_notification(order):
    shop.send_email_notification(order)


def publish(order):
    update_user_order_record.delay(order)
    send_email_notification.delay(order)


app = shop.make_app(publish)
