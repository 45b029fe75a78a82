"""What the console's pages cost with 1,000,000 orders and 3,000,000 deliveries, on SQLite or on PostgreSQL.

    python -m benchmarks.pages FOLDER [--orders N] [--rounds N]
    python -m benchmarks.pages FOLDER --postgresql

FOLDER keeps the SQLite file for the next run; a PostgreSQL server is made in it, filled, and gone at the end. Each page
is asked for --rounds times in this process, after a first time that is not counted: it prints the milliseconds until
the first byte, median and p95, and fails where a p95 is above LIMIT_MS. They are of CPU time, that of PostgreSQL's
processes included: it is the same on a busy machine as on a quiet one, but for caches. The database is in the page
cache. Run it with the Python that has the service's requirements.
"""

import argparse
import gc
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from sqlalchemy import create_engine, text
from sqlalchemy.orm import Session

from app import create_app
from app.db import schema
from benchmarks.processes import family, postgresql
from config import Settings

LIMIT_MS = 100

USERS = 20_000
LARGE_USER_SHARE = 10
"""Every tenth order is one user's: ``large``."""

DEAD, SKIPPED, WAITING = 2_000, 5_000, 10_000
"""Of the notifications: the newest wait; dead and skipped are spread."""

PAGES = (
    "/",
    "/flow/live",
    "/orders",
    "/orders?sort=oldest",
    "/orders?sort=order",
    "/orders?sort=user",
    "/orders?q={order}",
    "/orders?q=large",
    "/orders?q=large&notification=failed",
    "/orders?q=u77",
    "/orders?q=u77%40example.com",
    "/orders?notification=failed",
    "/orders?notification=skipped",
    "/orders?notification=pending",
    "/orders?notification=sent",
    "/orders?status=created",
    "/orders?status=created&cursor={middle}",
    "/orders?cursor={middle}",
    "/orders/{order}",
    "/orders.csv",
    "/orders.json?notification=failed",
    "/users",
    "/users?q=u77",
    "/users?q=u77%40example.com",
    "/users/u77",
    "/users/u2",  # who has skipped notifications
    "/users/large",
    "/events",
    "/events?type=NotificationSent",
    "/events?type=OrderEmailChanged",
    "/events?order_id={order}",
    "/events?until=2026-10-01T00:00:00Z",
    "/events/{middle}",
    "/events/types",
    "/events.json",
    "/deliveries",
    "/deliveries?state=waiting",
    "/deliveries?state=retrying&view=list",
    "/deliveries?state=dead",
    "/deliveries?state=dead&view=list",
    "/deliveries?state=discarded",
    "/deliveries/act?action=retry&state=dead",
    "/acts",
    "/mailbox",
    "/retries",
    "/retries?receiver=send_email_notification&scope=message&kind=451",
    "/system",
    "/system/doctor",
)
"""``{order}`` is an order in the middle, ``{middle}`` its event."""


def hexadecimal(number: str, digits: int) -> str:
    """SQL for a number with so many hexadecimal digits, on PostgreSQL."""
    return f"lpad(to_hex({number}), {digits}, '0')"


def fill(session: Any, orders: int) -> None:
    """Every order with its record's and its mail's delivery, and with what followed."""
    is_sqlite = session.get_bind().dialect.name == "sqlite"

    def event_id(kind: str) -> str:
        """Of the nth order's event: it grows with n, as a UUIDv7 does with time."""
        if is_sqlite:
            return f"printf('019a{kind}-%04x-7%03x-8000-%012x', n >> 12, n & 4095, n)"
        parts = (hexadecimal("n >> 12", 4), "'-7'", hexadecimal("n & 4095", 3), "'-8000-'", hexadecimal("n", 12))
        return f"'019a{kind}-' || {' || '.join(parts)}"

    def at(seconds: float = 0) -> str:
        """The moment of the nth order: ten a minute, up to now."""
        if is_sqlite:  # as the text that a time is stored as
            return f"strftime('%Y-%m-%dT%H:%M:%f000Z', :start + n * 6 + {seconds}, 'unixepoch')"
        return f"to_timestamp(:start + n * 6 + {seconds})"

    given = {"start": time.time() - orders * 6, "orders": orders}

    def run(statement: str) -> None:
        session.execute(text(statement), {name: value for name, value in given.items() if f":{name}" in statement})

    def insert(table: str, rows: str = "numbers", **values: str) -> None:
        columns, made = ", ".join(values), ", ".join(values.values())
        run(f"INSERT INTO {table} ({columns}) SELECT {made} FROM {rows}")  # noqa: S608 - our own words

    user = f"CASE WHEN n % {LARGE_USER_SHARE} = 0 THEN 'large' ELSE 'u' || (n % {USERS}) END"
    price = "printf('%d.%02d', n % 200, n % 100)" if is_sqlite else "(n % 200) + (n % 100) / 100.0"
    waits = f"n > :orders - {WAITING}"

    def by_fate(waiting: str, failed: str, skipped: str, sent: str) -> str:
        fails, skips = f"n % {orders // DEAD} = 1", f"n % {orders // SKIPPED} = 2"
        return (
            f"CASE WHEN {waits} THEN {waiting} WHEN {fails} THEN {failed} WHEN {skips} THEN {skipped} ELSE {sent} END"
        )

    run("CREATE TEMP TABLE numbers (n INTEGER PRIMARY KEY)")
    run(
        "INSERT INTO numbers WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c WHERE n < :orders) "
        "SELECT n FROM c"
    )
    insert(
        "orders",
        order_id="'o' || n",
        user_id=user,
        total_price=price,
        email=f"CASE WHEN n % 3 = 0 THEN {user} || '@example.com' END",
        status=f"CASE WHEN {waits} THEN 'created' ELSE 'confirmed' END",
        notification=by_fate("'pending'", "'failed'", "'skipped'", "'sent'"),
        created_at=at(),
        event_id=event_id("0000"),
    )
    insert(
        "users",
        "orders WHERE status = 'confirmed' GROUP BY user_id",
        user_id="user_id",
        email="user_id || '@example.com'",
        orders_count="count(*)",
        total_spent="printf('%.2f', sum(total_price))" if is_sqlite else "sum(total_price)",
        last_order_id="max(order_id)",
        last_order_at="max(created_at)",
    )
    who = f"""'{{"order_id":"o' || n || '","user_id":"' || {user}"""
    data = {
        "0000": f"""{who} || '","total_price":"' || {price} || '"}}'""",
        "0001": f"""{who} || '","recipient":"ann@example.com","message_id":"<' || n || '@example.com>"}}'""",
    }
    for kind, event, source, cause in (
        ("0000", "OrderCreated", "/api/create_order", "NULL"),
        ("0001", "NotificationSent", "send_email_notification", event_id("0000")),
    ):
        insert(
            "events",
            "numbers" if kind == "0000" else f"numbers WHERE NOT {waits}",
            event_id=event_id(kind),
            type=f"'{event}'",
            version="1",
            source=f"'{source}'",
            order_id="'o' || n",
            user_id=user,
            data=data[kind],
            occurred_at=at(),
            cause_id=cause,
            correlation_id=event_id("0000"),
            transaction_id="0",
        )
    done = by_fate("'ready'", "'done'", "'done'", "'done'")
    for kind, receiver, state in (
        ("0000", "update_user_order_record", done),
        ("0000", "send_email_notification", by_fate("'ready'", "'dead'", "'discarded'", "'done'")),
        ("0001", "update_order_notification", done),
    ):
        is_mail = receiver == "send_email_notification"
        insert(
            "deliveries",
            "numbers" if kind == "0000" else f"numbers WHERE NOT {waits}",
            event_id=event_id(kind),
            receiver=f"'{receiver}'",
            state=state,
            due_at=at(),
            attempts="1",
            lease_token="1",  # noqa: S106 - the number of a lease
            outcome=by_fate("NULL", "'refused'" if is_mail else "'ok'", "'ok'", "'ok'"),
            reason=by_fate("NULL", "'550 no such user'", f"'there is no address for user ' || {user}", "NULL")
            if is_mail
            else "NULL",
            created_at=at(),
            settled_at=f"CASE WHEN NOT {waits} THEN {at(seconds=1)} END",
        )
    insert(
        "attempts",
        "deliveries WHERE outcome IS NOT NULL",
        delivery_id="delivery_id",
        lease_token="1",  # noqa: S106 - the number of a lease
        outcome="outcome",
        detail="reason",
        started_at="created_at",
        ended_at="settled_at",
        dispatcher="'bench'",
    )
    insert(
        "retry_transitions",
        "numbers",
        receiver="'send_email_notification'",
        scope="CASE WHEN n % 2 = 0 THEN 'backend' ELSE 'message' END",
        kind="CASE WHEN n % 2 = 0 THEN 'unreachable' ELSE '451' END",
        age_from="n % 977",
        age_to="n % 977 + n % 131 + 1",
        gone="n % 7 = 0",
        at=at(),
    )
    run("DROP TABLE numbers")
    run("ANALYZE")


def opened(folder: Path, orders: int, database_url: str | None) -> Any:
    """The application on a database that is filled where it is empty: by default a file in the folder."""
    where = {} if database_url is None else {"database_url": database_url}
    settings = Settings.of(instance_path=folder, mail_backend="memory", log_level="ERROR", **where)
    app = create_app(settings)
    database = app.extensions["database"]
    schema.upgrade(database)
    with database.read() as session:
        is_empty = session.execute(text("SELECT 1 FROM orders LIMIT 1")).first() is None
    if not is_empty:
        return app
    if database_url is None:
        database.transact(lambda transaction: fill(transaction.session, orders))
    else:  # not by the application's connections, which give a statement up that takes minutes
        engine = create_engine(database_url)
        with Session(engine) as session, session.begin():
            fill(session, orders)
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text("VACUUM ANALYZE"))  # as the server does by itself, in its own time
    app.extensions["bus"].learning.fit("bench")
    return app


def cpu_seconds(server: int | None) -> float:
    """Of the database server's processes."""
    spent = 0
    for pid in family(server) if server else ():
        with suppress(OSError):  # it has ended
            spent += int(Path(f"/proc/{pid}/schedstat").read_text().split()[0])
    return spent / 1e9


def first_byte(app: Any, path: str, server: int | None) -> Callable[[], float]:
    """Ask for the path; returns the CPU milliseconds until its answer's first part was there."""

    def ask() -> float:
        environ = {"REMOTE_ADDR": "127.0.0.1"}
        client = app.test_client()
        before = cpu_seconds(server)
        began = time.process_time()
        answer = client.get(path, environ_overrides=environ)
        part = next(iter(answer.iter_encoded()), b"")
        own = time.process_time() - began
        took = (own + cpu_seconds(server) - before) * 1000
        assert answer.status_code == 200, (path, answer.status_code, part)
        answer.close()
        return took

    return ask


def measured(app: Any, rounds: int, server: int | None = None) -> Iterator[tuple[str, float, float]]:
    """For each page its median and its p95, in CPU milliseconds."""
    with app.extensions["database"].read() as session:
        count = session.execute(text("SELECT count(*) FROM orders")).scalar()
        middle = session.execute(
            text("SELECT order_id, event_id FROM orders WHERE order_id = :id"), {"id": f"o{count // 2 + 3}"}
        ).one()
    asked = {
        page: first_byte(app, page.format(order=middle.order_id, middle=middle.event_id), server) for page in PAGES
    }
    for ask in asked.values():
        ask()
    gc.freeze()  # as the service does
    for page, ask in asked.items():
        took = sorted(ask() for _ in range(rounds))
        yield page, took[rounds // 2], took[-(-rounds * 95 // 100) - 1]


def main() -> int:
    options = argparse.ArgumentParser()
    options.add_argument("folder", type=Path)
    options.add_argument("--postgresql", action="store_true")
    options.add_argument("--orders", type=int, default=1_000_000)
    options.add_argument("--rounds", type=int, default=20)
    given = options.parse_args()
    slow = 0
    with ExitStack() as stack:
        address, server = stack.enter_context(postgresql(given.folder)) if given.postgresql else (None, None)
        url = f"postgresql+psycopg://{address}" if address else None
        for page, median, p95 in measured(opened(given.folder, given.orders, url), given.rounds, server):
            slow += p95 > LIMIT_MS
            print(f"{page:44} {median:7.1f} {p95:7.1f}{'  too slow' if p95 > LIMIT_MS else ''}", flush=True)
    return int(slow > 0)


if __name__ == "__main__":
    sys.exit(main())
