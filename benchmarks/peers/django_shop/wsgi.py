"""The route: the event is fired in the order's transaction."""

import json
from datetime import UTC, datetime
from decimal import Decimal

from django.core.wsgi import get_wsgi_application
from django.db import transaction
from django.http import HttpRequest, JsonResponse
from django.urls import path
from django.views.decorators.http import require_POST

app = get_wsgi_application()

from django_domain_events import fire  # noqa: E402 - Django is to be set up first

from peers.django_shop.events import OrderCreated  # noqa: E402
from peers.django_shop.models import Order  # noqa: E402


@require_POST
def create_order(request: HttpRequest) -> JsonResponse:
    given = json.loads(request.body)
    now = datetime.now(UTC)
    price = Decimal(str(given["total_price"]))
    created = OrderCreated(
        order_id=str(given["order_id"]),
        user_id=str(given["user_id"]),
        total_price=f"{price:.2f}",
        created_at=f"{now:%Y-%m-%d %H:%M:%S} UTC",
    )
    with transaction.atomic():
        Order.objects.create(order_id=created.order_id, user_id=created.user_id, total_price=price, created_at=now)
        fire(created)
    return JsonResponse({"status": "success", "message": "订单创建成功", "order_id": created.order_id}, status=201)


urlpatterns = [path("api/create_order", create_order)]
