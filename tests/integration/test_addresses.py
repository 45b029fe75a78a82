"""An address is put right by a person: an order's, or a user's; and what was skipped for want of one is sent."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import select

from app import orders
from app.bus import Filter, Replay
from app.bus.operate import Chosen
from app.bus.tables import OperatorAct
from app.db import Reader
from app.errors import OrderNotFound, Refused
from app.events import order_created
from config import Settings
from tests.support.shop import START, Shop

MAIL = "send_email_notification"
WRONG, RIGHT = "ann@exmaple.com", "ann@example.com"


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"user_email_domain": None})


def set_email(shop: Shop, order_id: str, address: str) -> bool:
    return orders.set_order_email(shop.bus, order_id, address, by="cli:ann")


def recipients(shop: Shop) -> list[str]:
    return [recipient for message in shop.mailer.outbox for recipient in message.recipients]


def refuse(*_: object) -> None:
    raise Refused("550 no such mailbox")


def go_dead(shop: Shop) -> None:
    """The mail server refuses what is due."""
    shop.mailer.backend.deliver, deliver = refuse, shop.mailer.backend.deliver
    shop.dispatch_all()
    shop.mailer.backend.deliver = deliver


def acts(shop: Shop) -> list[Any]:
    columns = (OperatorAct.acted_at, OperatorAct.acted_by, OperatorAct.action, OperatorAct.filter, OperatorAct.reason)
    with shop.database.read() as session:
        return [tuple(row) for row in session.execute(select(*columns).order_by(OperatorAct.act_id))]


# An order's


def test_a_retry_goes_to_the_orders_own_address_also_where_it_came_with_another(shop: Shop) -> None:
    shop.place_order(email=WRONG)
    go_dead(shop)
    assert shop.order().notification == "failed"
    assert set_email(shop, "1001", RIGHT)
    shop.bus.retry(Filter(order_id="1001"), by="ann")
    shop.dispatch_all()
    assert recipients(shop) == [RIGHT]
    assert shop.order().notification == "sent"
    assert shop.timeline()[0]["data"]["email"] == WRONG, "what happened stays as it happened"


@pytest.mark.parametrize("email", [WRONG, None])
def test_the_first_try_goes_there_too(shop: Shop, email: str | None) -> None:
    """The outage began before the order, and the mistake was seen while it waited."""
    shop.place_order(email=email)
    set_email(shop, "1001", RIGHT)
    shop.dispatch_all()
    assert recipients(shop) == [RIGHT]


def test_it_comes_before_the_users_address(shop: Shop) -> None:
    orders.set_user_email(shop.bus, "42", "old@example.com", by="ann")
    shop.place_order("1")
    shop.place_order("2")
    set_email(shop, "2", RIGHT)
    shop.dispatch_all()
    assert sorted(recipients(shop)) == [RIGHT, "old@example.com"]
    assert shop.user().email == "old@example.com"


def test_what_is_being_tried_keeps_what_it_began_with(shop: Shop) -> None:
    shop.place_order(email=WRONG)
    leases = shop.dispatcher.claim({MAIL: 1})
    set_email(shop, "1001", RIGHT)
    shop.dispatcher.deliver(leases)
    assert recipients(shop) == [WRONG]


def test_a_lease_that_was_taken_before_is_not_fenced_off(shop: Shop) -> None:
    """And where nobody settles it, the next try goes to the new address."""
    shop.place_order(email=WRONG)
    other = shop.bus.dispatcher()
    (lease,) = other.claim({MAIL: 1})
    set_email(shop, "1001", RIGHT)
    assert shop.delivery(MAIL).lease_token == lease.token
    shop.clock.advance(30)
    shop.dispatch_all()
    assert recipients(shop) == [RIGHT]


def test_what_a_person_discarded_before_it_was_tried_goes_there(shop: Shop) -> None:
    shop.place_order(email=WRONG)
    shop.bus.discard(Filter(receiver=MAIL), "wrong address", by="ann")
    set_email(shop, "1001", RIGHT)
    shop.bus.retry(Filter(receiver=MAIL, state="discarded"), by="ann")
    shop.dispatch_all()
    assert recipients(shop) == [RIGHT]


def test_what_is_replayed_goes_there(shop: Shop) -> None:
    """Its delivery is a new one, of an event from before."""
    with order_created.muted():
        shop.place_order(email=WRONG)
    set_email(shop, "1001", RIGHT)
    which = Replay(MAIL, "OrderCreated")
    shop.bus.replay(which, shop.bus.find_recorded(which), by="ann")
    shop.dispatch_all()
    assert recipients(shop) == [RIGHT]


def test_the_last_of_several_counts(shop: Shop) -> None:
    shop.place_order(email=WRONG)
    for address in (WRONG, RIGHT, "bob@example.com"):
        set_email(shop, "1001", address)
    shop.dispatch_all()
    assert recipients(shop) == ["bob@example.com"]
    changes = [event["data"] for event in shop.timeline() if event["type"] == "OrderEmailChanged"]
    assert [(change["before"], change["email"]) for change in changes] == [(WRONG, RIGHT), (RIGHT, "bob@example.com")]


def test_the_timeline_and_the_acts_tell_who_did_it(shop: Shop) -> None:
    shop.place_order(email=WRONG)
    shop.clock.advance(60)
    set_email(shop, "1001", RIGHT)
    (_, change) = shop.timeline()
    assert (change["type"], change["occurred_at"]) == ("OrderEmailChanged", START + timedelta(seconds=60))
    assert change["data"] == {
        "order_id": "1001",
        "user_id": "42",
        "email": RIGHT,
        "before": WRONG,
        "changed_by": "cli:ann",
    }
    assert acts(shop) == [
        (START + timedelta(seconds=60), "cli:ann", "set-email", str(Filter(order_id="1001")), f"to {RIGHT}")
    ]
    assert (shop.order().email, shop.order().placed_email) == (RIGHT, WRONG)
    assert shop.order().email_set_at == START + timedelta(seconds=60)


def test_the_same_address_again_is_no_change(shop: Shop) -> None:
    shop.place_order(email=RIGHT)
    assert not set_email(shop, "1001", "ann@EXAMPLE.com")
    assert acts(shop) == []
    assert shop.order().email_set_at is None


@pytest.mark.parametrize("email", [WRONG, None])
def test_the_client_may_send_its_order_again(shop: Shop, email: str | None) -> None:
    """As it was: that is the same order, and no other."""
    given = {} if email is None else {"email": email}
    assert shop.post(**given).status_code == 201
    for address in (RIGHT, "bob@example.com"):
        set_email(shop, "1001", address)
    assert shop.post(**given).status_code == 200
    assert shop.post(email="bob@example.com").status_code == 409
    assert shop.order().email == "bob@example.com"


def test_an_order_that_is_not_there_and_an_address_that_is_none_are_refused(shop: Shop) -> None:
    with pytest.raises(OrderNotFound, match="there is no order 5"):
        set_email(shop, "5", RIGHT)
    shop.place_order()
    with pytest.raises(ValueError, match="@"):
        set_email(shop, "1001", "nonsense")
    assert acts(shop) == []


def test_a_delivery_that_nobody_touched_reads_no_address(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """That came with its order. A statement for each mail would be for the one in a thousand that is put right."""
    reads: list[int] = []
    query = shop.database.query

    def counting(ask: Callable[[Reader], Any]) -> Any:
        reads.append(1)
        return query(ask)

    shop.place_order(email=RIGHT)
    (lease,) = shop.dispatcher.claim({MAIL: 1})
    monkeypatch.setattr(shop.database, "query", counting)
    shop.dispatcher.deliver([lease])
    assert (reads, recipients(shop)) == ([], [RIGHT])


# A user's


def test_a_users_address_is_recorded_with_who_set_it(shop: Shop) -> None:
    assert orders.set_user_email(shop.bus, "42", RIGHT, by="cli:ann")
    assert not orders.set_user_email(shop.bus, "42", RIGHT, by="cli:ann")
    assert shop.user().email == RIGHT
    assert acts(shop) == [(START, "cli:ann", "set-email", str(Filter(user_id="42")), f"to {RIGHT}")]


# What was skipped


def choose(shop: Shop, domain: str | None = None, **conditions: Any) -> Chosen:
    shop.bus.settings = shop.settings.model_copy(update={"user_email_domain": domain})
    return orders.choose_skipped(shop.bus, "cli:ann", **conditions)


def skipped(shop: Shop, domain: str | None = None, **conditions: Any) -> int:
    return len(choose(shop, domain, **conditions))


def send_skipped(shop: Shop, **conditions: Any) -> int:
    return int(shop.bus.carry_out(choose(shop, **conditions)).deliveries)


@pytest.fixture
def without(shop: Shop) -> Shop:
    """Six orders of three users whose address nobody knows; the seventh was discarded by a person."""
    for n in range(7):
        shop.place_order(f"{n}", user_id=f"u{n % 3}")
    shop.bus.discard(Filter(order_id="6", receiver=MAIL), "no address known", by="ann")
    shop.dispatch_all()
    assert {order_id: shop.order(order_id).notification for order_id in "06"} == {"0": "skipped", "6": "pending"}
    return shop


def test_once_there_is_an_address_one_act_sends_all_that_was_skipped(without: Shop) -> None:
    """Of all users and orders; neither what has no address still, nor what a person discarded."""
    assert skipped(without) == 0
    orders.set_user_email(without.bus, "u0", RIGHT, by="ann")
    set_email(without, "1", "bob@example.com")
    assert skipped(without) == 3
    assert send_skipped(without) == 3
    without.dispatch_all()
    assert sorted(recipients(without)) == [RIGHT, RIGHT, "bob@example.com"]
    assert [without.order(f"{n}").notification for n in range(7)] == [
        *("sent", "sent", "skipped", "sent", "skipped", "skipped", "pending")
    ]
    assert skipped(without) == 0


def test_of_one_user_or_one_order_only(without: Shop) -> None:
    for user_id in ("u0", "u1", "u2"):
        orders.set_user_email(without.bus, user_id, RIGHT, by="ann")
    assert (skipped(without), skipped(without, user_id="u0"), skipped(without, order_id="1")) == (6, 2, 1)
    assert send_skipped(without, user_id="u0") == 2
    assert send_skipped(without, order_id="1", over_seconds=60) == 1
    assert skipped(without) == 3


def test_an_address_that_came_with_a_later_order_counts(without: Shop) -> None:
    without.place_order("later", user_id="u1", email=RIGHT)
    assert skipped(without) == 2


def test_an_address_that_is_made_with_a_domain_counts(without: Shop) -> None:
    """USER_EMAIL_DOMAIN was set since. Not every id makes one."""
    without.place_order("8", user_id="a:b")
    without.dispatch_all()
    assert skipped(without, "users.example") == 6


def test_what_was_skipped_and_sent_since_is_not_touched(without: Shop) -> None:
    orders.set_user_email(without.bus, "u0", RIGHT, by="ann")
    chosen = choose(without)
    without.bus.retry(Filter(order_id="0", state="discarded"), by="ann")
    without.dispatch_all()
    assert without.bus.carry_out(chosen).deliveries == 1
    without.dispatch_all()
    assert recipients(without) == [RIGHT, RIGHT]


def test_why_a_notification_is_not_sent_is_found_for_a_page_of_orders(shop: Shop) -> None:
    shop.place_order("sent", email=RIGHT)
    shop.dispatch_all()
    shop.place_order("skipped", user_id="43")
    shop.dispatch_all()
    shop.place_order("failed", email=WRONG)
    go_dead(shop)
    shop.place_order("pending")
    with shop.database.read() as session:
        found = orders.notification_reasons(session, ["sent", "skipped", "failed", "pending"])
    assert found["failed"] == "550 no such mailbox"
    assert found["skipped"].startswith("there is no address for user '43': ")
    assert set(found) == {"failed", "skipped"}
