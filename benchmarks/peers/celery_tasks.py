"""Celery as Flask's documentation has it; BROKER_URL says whether on RabbitMQ or Redis."""

import os

from celery import Celery, Task

from peers import shop


class FlaskTask(Task):
    def __call__(self, *args, **kwargs):
        with app.app_context():
            return self.run(*args, **kwargs)


celery = Celery("orders", task_cls=FlaskTask)
celery.config_from_object({"broker_url": os.environ["BROKER_URL"], "task_ignore_result": True})


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
