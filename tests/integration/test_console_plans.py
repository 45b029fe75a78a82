"""The console's queries: each finds its rows by an index, so that a page costs the same with a million orders."""

import re
from collections.abc import Iterator
from typing import Any

import pytest

from app.bus import Act, Filter
from app.db import schema
from benchmarks import pages
from config import Settings
from tests.support import postgres
from tests.support.console import Visitor
from tests.support.shop import Shop
from tests.support.statements import queries_noted

GROWING = "orders|users|events|deliveries|attempts"
TABLES = f"{GROWING}|operator_act_deliveries"

PAGES = {
    "/orders": ["orders_event_id"],
    "/orders?sort=oldest": ["orders_event_id"],
    "/orders?sort=order": ["sqlite_autoindex_orders_1"],
    "/orders?sort=user": ["orders_user_id_event_id"],
    "/orders?sort=user&cursor=42/{event}": ["orders_user_id_event_id"],
    "/orders?cursor={event}": ["orders_event_id"],
    "/orders?q=42": ["orders_user_id_event_id", "sqlite_autoindex_orders_1"],
    "/orders?q=a%40b.example": ["orders_email_event_id"],
    "/orders?q=42&notification=failed": ["orders_user_id_event_id"],
    "/orders?notification=failed": ["orders_unsent"],
    "/orders?notification=skipped&sort=oldest": ["orders_unsent"],
    "/orders?notification=pending": ["orders_event_id"],
    "/orders?status=created&sort=order": ["sqlite_autoindex_orders_1"],
    "/orders.csv": ["orders_event_id"],
    "/orders/1001": [
        "sqlite_autoindex_orders_1",
        "events_order_id",
        "deliveries_event_id_receiver",
        "attempts_delivery_id",
    ],
    "/orders/1001/mail/{sent}": ["events_order_id", "deliveries_event_id_receiver", "attempts_delivery_id"],
    "/users": ["sqlite_autoindex_users_1"],
    "/users?q=a%40b.example": ["users_email_user_id"],
    "/users/42": ["orders_user_id_event_id", "sqlite_autoindex_users_1"],
    "/events": ["INTEGER PRIMARY KEY"],
    "/events?type=NotificationSent&until=2026-11-24T00:00:00Z": ["INTEGER PRIMARY KEY"],
    "/events?order_id=1001": ["events_order_id"],
    "/events.json": ["INTEGER PRIMARY KEY"],
    "/events/{event}": ["events_event_id", "deliveries_event_id_receiver", "events_order_id"],
    "/events/types": ["INTEGER PRIMARY KEY"],
    "/deliveries?delivery_id=1": ["INTEGER PRIMARY KEY", "attempts_delivery_id"],
    "/users/strict": ["orders_user_id_event_id", "events_order_id", "deliveries_event_id_receiver"],
    "/": [],
    "/flow/live": [],
    "/deliveries": ["operator_act_deliveries_delivery_id"],
    "/deliveries?state=waiting": ["deliveries_due"],
    "/deliveries?state=retrying&view=list": ["deliveries_due", "operator_act_deliveries_delivery_id"],
    "/deliveries?state=dead&view=list": ["operator_act_deliveries_delivery_id"],
    "/deliveries?state=discarded": [],
    "/deliveries/act?action=retry&state=dead": [],
    "/acts": [],
    "/acts/1": [],
    "/system": [],
}
"""And the indexes that their queries use, among others."""

ON_POSTGRESQL = {"/orders/1001": "/orders/o21", "42/": "large/", "q=42": "q=large", "/users/42": "/users/large"}
ON_POSTGRESQL |= {"/users/strict": "/users/u2", "order_id=1001": "order_id=o21"}
"""What is asked for there, by what is asked for in a database of a few rows."""

OF_LITTLE = "deliveries_due"
"""An index that may be walked and sorted: it has what is unfinished, and does not grow with history."""

FATES = {
    "dead": "state = 'dead', outcome = 'refused', reason = '550 no such user'",
    "retried": "state = 'dead', outcome = 'refused', reason = '550 no such user'",
    "retrying": "state = 'ready', outcome = 'deferred', reason = '450 greylisted', settled_at = NULL",
    "skipped": "state = 'discarded', reason = 'there is no address for user strict'",
}
"""What becomes of the mails of these orders."""

OF_ORDER = "event_id IN (SELECT event_id FROM orders WHERE order_id = :o)"

ORDERS = 20_000
"""So many are in the PostgreSQL database: of a few rows its planner reads tables as a whole."""


WHERE_AN_INDEX_SERVES = "; ".join(f"SET LOCAL enable_{way} = off" for way in ("seqscan", "mergejoin", "hashjoin"))
"""Even of so many, some hundred rows that lie side by side are had faster without one."""


@pytest.fixture
def database_url(sqlite_url: str) -> str:
    return sqlite_url


@pytest.fixture(scope="module")
def large(postgres_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """On PostgreSQL, with orders of every fate, and an act."""
    with postgres.another_database(postgres_server) as url:
        given = {"database_url": url, "instance_path": tmp_path_factory.mktemp("large")}
        shop = Shop(Settings.of(**given, mail_backend="memory", log_level="ERROR"))
        schema.upgrade(shop.database)
        shop.database.transact(lambda transaction: pages.fill(transaction.session, ORDERS))
        shop.bus.carry_out(shop.bus.choose(Act("retry", Filter(state="dead", order_id="o21"), "ann")))
        shop.execute("ANALYZE")
        yield shop
        shop.close()


def fill(shop: Shop) -> str:
    """Deliveries in every state, and an act. Returns the event of order 1001."""
    created = shop.place_order(email="a@b.example")
    shop.dispatch_all()
    for order_id, fate in FATES.items():
        shop.place_order(order_id, user_id="strict")
        shop.dispatch_all()
        shop.execute(
            f"UPDATE deliveries SET {fate} WHERE receiver = 'send_email_notification' AND {OF_ORDER}", o=order_id
        )
    shop.execute("UPDATE orders SET notification = 'skipped' WHERE order_id = 'skipped'")
    shop.execute("UPDATE users SET email = NULL")
    shop.place_order("waiting")
    shop.bus.carry_out(shop.bus.choose(Act("retry", Filter(state="dead"), "ann")))
    return created


@pytest.mark.parametrize("path", PAGES)
def test_a_page_finds_its_rows_by_an_index(shop: Shop, path: str) -> None:
    """No table is read as a whole, nor sorted; an index is walked only where a LIMIT ends that."""
    created, plans = fill(shop), []
    (sent,) = shop.execute_all("SELECT event_id FROM events WHERE type = 'NotificationSent'")[0]
    with queries_noted(shop) as queries:
        assert Visitor(shop).get(path.format(event=created, sent=sent)).status == 200
    with shop.database.read() as session:
        for query, parameters in queries.items():
            connection = session.connection().connection.dbapi_connection
            assert connection is not None
            plan = [row[3] for row in connection.cursor().execute(f"EXPLAIN QUERY PLAN {query}", parameters)]
            walked = [step for step in plan if re.match(rf"SCAN ({TABLES})\b", step)]
            assert not walked or "LIMIT" in query, (query, plan)
            is_page = "LIMIT" in query and query.count("SELECT") == 1
            sorts = any("TEMP B-TREE" in step for step in plan) and not any(OF_LITTLE in step for step in plan)
            assert not (is_page and sorts), (query, plan)
            plans += plan
    for index in PAGES[path]:
        assert any(index in step for step in plans), (index, plans)


@pytest.mark.postgres
@pytest.mark.parametrize("path", PAGES)
def test_and_so_it_does_on_postgresql(large: Shop, path: str) -> None:
    """As its planner decides by what it knows of the tables."""
    created, sent = (f"019a{kind}-{21 >> 12:04x}-7{21 & 4095:03x}-8000-{21:012x}" for kind in ("0000", "0001"))
    for name, own in ON_POSTGRESQL.items():
        path = path.replace(name, own)
    with queries_noted(large) as queries:
        assert Visitor(large).get(path.format(event=created, sent=sent)).status == 200
    with large.database.read() as session:
        session.connection().exec_driver_sql(WHERE_AN_INDEX_SERVES)
        for query, parameters in queries.items():
            (found,) = session.connection().exec_driver_sql(f"EXPLAIN (FORMAT JSON) {query}", parameters).one()
            plan = [node for node in within(found[0]["Plan"]) if re.fullmatch(GROWING, node.get("Relation Name", ""))]
            assert "Seq Scan" not in [node["Node Type"] for node in plan], (query, plan)
            walked = [node for node in plan if "Index Cond" not in node and node["Node Type"] != "Bitmap Heap Scan"]
            assert not walked or "LIMIT" in query or OF_LITTLE in walked[0].get("Index Name", ""), (query, plan)


def within(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A step of a plan, and those that it rests on."""
    yield {name: value for name, value in node.items() if name != "Plans"}
    for each in node.get("Plans", ()):
        yield from within(each)
