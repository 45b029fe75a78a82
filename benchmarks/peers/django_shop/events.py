"""The event and its two receivers, which the relay runs: each in a transaction with its delivery's end."""

from dataclasses import asdict, dataclass
from decimal import Decimal

from django.core.mail import EmailMultiAlternatives
from django.db.models import F
from django.template.loader import render_to_string
from django_domain_events import event, receiver

from peers.django_shop.models import Order, User


@event
@dataclass(frozen=True, slots=True)
class OrderCreated:
    order_id: str
    user_id: str
    total_price: str
    created_at: str


@receiver(OrderCreated)
def update_user_order_record(created: OrderCreated) -> None:
    price = Decimal(created.total_price)
    Order.objects.filter(pk=created.order_id).update(status="confirmed")
    User.objects.get_or_create(pk=created.user_id)
    User.objects.filter(pk=created.user_id).update(
        orders_count=F("orders_count") + 1, total_spent=F("total_spent") + price
    )


@receiver(OrderCreated)
def send_email_notification(created: OrderCreated) -> None:
    facts = asdict(created) | {"language": "zh-CN"}
    subject, body = render_to_string("order_notification.zh.txt", facts).split("\n\n", 1)
    mail = EmailMultiAlternatives(subject, body, to=[f"{created.user_id}@users.example"])
    mail.attach_alternative(render_to_string("order_notification.zh.html", facts), "text/html")
    mail.send()
    Order.objects.filter(pk=created.order_id).update(notification="sent")
