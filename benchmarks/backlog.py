"""Run by run.py with the service's Python: one database of the service, of a certain size, in a process of its own.

    backlog.py FOLDER FINISHED WAITING OVERDUE

How many deliveries are finished, waiting for a time in the future, and waiting and overdue. The rows are copies of
those that the service itself wrote for one order. Then for each line of input there is a line of JSON: to ``turn`` the
CPU seconds of a POST, and of a delivery's claim and settle, measured over ``ORDERS`` orders; to ``plan`` the statements
of a turn that scan a table.
"""

import json
import re
import sys
import time
from pathlib import Path

from sqlalchemy import event, text

from app import create_app
from app.bus.dispatcher import BATCH, subscriptions
from config import Settings

ORDERS = 40
TABLES = ("orders", "users", "events", "deliveries", "attempts")
MODEL = "the-order"


class Shop:
    def __init__(self, folder: Path) -> None:
        settings = Settings.of(instance_path=folder, mail_backend="memory", log_level="ERROR")
        self.app = create_app(settings)
        self.database = self.app.extensions["database"]
        self.statements: set[str] = set()
        event.listen(self.database.engine, "connect", self._listen)
        self.client = self.app.test_client()
        self.dispatcher = self.app.extensions["bus"].dispatcher()
        self.turns = 0

    def _listen(self, connection, _) -> None:
        connection.set_trace_callback(self.statements.add if self.tracing else None)

    tracing = False

    def place(self, order_id: str, user_id: str) -> None:
        order = {"order_id": order_id, "user_id": user_id, "total_price": 19.99}
        answer = self.client.post("/api/create_order", json=order)
        assert answer.status_code == 201, answer.text

    def turn(self) -> dict[str, float]:
        """CPU seconds: ``post`` of one order, ``claim`` and ``settle`` of one delivery."""
        self.turns += 1
        began = time.process_time()
        for number in range(ORDERS):
            self.place(f"turn-{self.turns}-{number}", str(number))
        post = time.process_time() - began
        claim = settle = 0.0
        claimed = 0
        for _ in range(ORDERS // BATCH * 2):  # what follows from a mail has its turn too
            began = time.process_time()
            leases = self.dispatcher.claim(dict.fromkeys(subscriptions(), BATCH))
            between = time.process_time()
            for batch in self.dispatcher.batches(leases):
                self.dispatcher.deliver(batch)
            settle += time.process_time() - between
            claim += between - began
            claimed += len(leases)
        return {"post": post / ORDERS, "claim": claim / claimed, "settle": settle / claimed, "claimed": claimed}

    def fill(self, finished: int, waiting: int, overdue: int) -> dict[str, int]:
        self.place(MODEL, "the-user")
        if finished:
            while self.dispatcher.run_once():
                pass
        with self.database.read() as session:
            owed = session.execute(text("SELECT count(*) FROM deliveries")).scalar()
        copies = -(-(finished or waiting or overdue) // owed)
        if copies:
            later = "+1000 days" if waiting else None
            self.database.transact(lambda transaction: self._copy(transaction.session, copies, later))
        with self.database.read() as session:
            query = text("SELECT state, count(*) FROM deliveries GROUP BY state")
            return dict(map(tuple, session.execute(query)))

    def _copy(self, session, copies: int, later: str | None) -> None:
        """Every row that the one order has, once more for each number up to ``copies``, with ids of its own."""
        session.execute(text("PRAGMA defer_foreign_keys=1"))
        session.execute(text("CREATE TEMP TABLE numbers (n INTEGER PRIMARY KEY)"))
        count = text(
            "INSERT INTO numbers WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c WHERE n < :most) "
            "SELECT n FROM c"
        )
        session.execute(count, {"most": copies})
        most = session.execute(text("SELECT max(delivery_id) FROM deliveries")).scalar()
        for table in TABLES:
            columns = session.scalars(text("SELECT name FROM pragma_table_info(:name)"), {"name": table}).all()
            made = {name: name for name in columns}
            for name in ("event_id", "cause_id", "correlation_id"):
                made[name] = f"substr({name}, 1, 24) || printf('%012x', n)"
            made |= {
                "order_id": "'copy-' || n",
                "data": f"replace(data, '{MODEL}', 'copy-' || n)",
                "delivery_id": f"delivery_id + n * {most}",
                "position": "NULL",
                "attempt_id": "NULL",
            }
            if table == "users":
                made["user_id"] = "'user-' || n"
            if later:
                made["due_at"] = f"strftime('%Y-%m-%dT%H:%M:%f000Z', due_at, '{later}')"
            values = ", ".join(made[name] for name in columns)
            into = f"INSERT INTO {table} ({', '.join(columns)})"
            session.execute(text(f"{into} SELECT {values} FROM {table}, numbers ORDER BY n"))  # noqa: S608 - our own words
        session.execute(text("DROP TABLE numbers"))

    def scans(self) -> list[str]:
        """Of the statements of one turn, those that look at every row of a table."""
        self.tracing = True
        self.database.close()  # new connections, that are traced
        self.turn()
        seen = {re.sub(r"'[^']*'|\b\d+\b", "?", each): each for each in self.statements}
        assert any("deliveries" in each for each in seen), "nothing was traced"
        found = set()
        with self.database.engine.connect() as connection:
            for words in seen.values():
                if not words.startswith(("SELECT", "UPDATE", "DELETE", "WITH")):
                    continue
                rows = connection.exec_driver_sql("EXPLAIN QUERY PLAN " + words).all()
                found |= {f"`{words[:60]}…`: {row[3]}" for row in rows if re.match(r"SCAN (?!CONSTANT|\()", row[3])}
        return sorted(found)


def main() -> None:
    folder, *sizes = sys.argv[1:]
    shop = Shop(Path(folder))
    began = time.monotonic()
    filled = shop.fill(*map(int, sizes))
    print(json.dumps({"filled": filled, "seconds": time.monotonic() - began}), flush=True)
    for line in sys.stdin:
        answer = {"scans": shop.scans()} if line.strip() == "plan" else shop.turn()
        print(json.dumps(answer), flush=True)


main()
