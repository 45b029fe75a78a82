"""The order-created flow, from the signal to the records and the mail."""

from tests.support.shop import Shop


def test_an_order_is_confirmed_counted_and_notified(shop: Shop) -> None:
    shop.place_order()
    assert (shop.order().status, shop.order().notification) == ("created", "pending")

    shop.dispatch_all()

    assert (shop.order().status, shop.order().notification) == ("confirmed", "sent")
    assert (shop.user().orders_count, str(shop.user().total_spent), shop.user().last_order_id) == (1, "19.99", "1001")
    assert [message.recipients for message in shop.mailer.outbox] == [["42@users.example"]]
    assert set(shop.states().values()) == {"done"}
