"""unhinged, as its README has it: a task with a step for each receiver. Run as a program it is the worker."""

import os

from unhinged import Unhinged

from peers import shop

tasks = Unhinged(os.environ["BROKER_URL"], queue_name="orders")


@tasks.register_task("order-created")
def order_created(order, ctx):
    ctx.step("record", lambda: shop.update_user_order_record(order))
    with app.app_context():
        ctx.step("mail", lambda: shop.send_email_notification(order))


app = shop.make_app(lambda order: tasks.spawn("order-created", order))

if __name__ == "__main__":
    tasks.start_worker(concurrency=shop.AT_ONCE)
