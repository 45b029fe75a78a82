"""Real troubles of a real mail server, met by RETRY_POLICY=learned and by exponential: attempts, delays, drain time.

    python benchmarks/outages.py [--only down,greylist,throttle] [--database sqlite,postgresql] [--orders 2000]

One gunicorn as it comes, on SQLite; and on PostgreSQL with `flask bus run` as a second dispatcher. Everything is on
loopback, and each run has a fresh database:

- down: nobody listens for 90 s while the orders wait.
- greylist: each recipient is refused with 450 4.7.1 for 60 s from its first try on; 300 orders. The learned policy
  meets it a second time, with what it has learned of the first.
- throttle: the server takes 20 mails a second, and refuses what is more with 450 4.7.0. The orders wait while the
  receiver is paused, and delays count from the first mail after that.
"""

import argparse
import asyncio
import contextlib
import http.client
import json
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.processes import CHECKOUT, environment, free_port, listens, postgresql, process, run, wait_until

DOWN_SECONDS = 90.0
GREY_SECONDS = 60.0
GREYLISTED = 300
TAKES = 20.0
MAIL = "send_email_notification"
LIMIT_SECONDS = 1500.0
"""A run that takes longer ends as it is."""


@dataclass
class Server:
    """An SMTP server on loopback, in a thread of its own."""

    port: int
    trouble: str
    arrivals: dict[str, float] = field(default_factory=dict)
    """By recipient, the first copy's."""
    copies: int = 0
    refused: int = 0
    first_seen: dict[str, float] = field(default_factory=dict)
    tokens: float = TAKES
    tokens_at: float = 0.0

    def start(self) -> None:
        started = threading.Event()
        threading.Thread(target=lambda: asyncio.run(self._serve(started)), daemon=True).start()
        started.wait()

    async def _serve(self, started: threading.Event) -> None:
        server = await asyncio.start_server(self._talk, "127.0.0.1", self.port)
        started.set()
        async with server:
            await server.serve_forever()

    def refusal(self, recipient: str) -> bytes | None:
        now = time.monotonic()
        if self.trouble == "greylist" and now < self.first_seen.setdefault(recipient, now) + GREY_SECONDS:
            return b"450 4.7.1 greylisted, come back later\r\n"
        if self.trouble == "throttle":
            self.tokens = min(TAKES, self.tokens + TAKES * (now - self.tokens_at))
            self.tokens_at = now
            if self.tokens < 1:
                return b"450 4.7.0 too many mails\r\n"
            self.tokens -= 1
        return None

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        recipient, accepted = "", False
        writer.write(b"220 here\r\n")
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while line := await reader.readline():
                verb = line[:4].upper()
                answer = b"250 ok\r\n"
                if verb == b"EHLO":
                    answer = b"250-here\r\n250 PIPELINING\r\n"
                elif verb == b"RCPT":
                    recipient = line.partition(b"<")[2].partition(b">")[0].decode()
                    refusal = self.refusal(recipient)
                    accepted = refusal is None
                    self.refused += not accepted
                    answer = refusal or answer
                elif verb == b"DATA" and not accepted:
                    answer = b"503 5.5.1 no recipient\r\n"
                elif verb == b"DATA":
                    writer.write(b"354 go on\r\n")
                    await reader.readuntil(b"\r\n.\r\n")
                    self.copies += 1
                    self.arrivals.setdefault(recipient, time.monotonic())
                    answer = b"250 taken\r\n"
                elif verb == b"QUIT":
                    answer = b"221 bye\r\n"
                writer.write(answer)
                if verb == b"QUIT":
                    break
            await writer.drain()
        writer.close()


@contextlib.contextmanager
def service(folder: Path, policy: str, database: str, smtp_port: int) -> Iterator[tuple[int, dict[str, str]]]:
    """gunicorn, and on PostgreSQL a second dispatcher. Yields its port and its environment."""
    port = free_port()
    env = environment(
        INSTANCE_PATH=folder / "instance",
        MAIL_SERVER="127.0.0.1",
        MAIL_PORT=smtp_port,
        RETRY_POLICY=policy,
        PORT=port,
        LOG_LEVEL="WARNING",
        USER_EMAIL_DOMAIN="users.example",
    )
    with contextlib.ExitStack() as stack:
        if database == "postgresql":
            address, _ = stack.enter_context(postgresql(folder))
            env["DATABASE_URL"] = f"postgresql+psycopg://{address}"
            flask(env, "db", "upgrade")
        gunicorn = (sys.executable, "-m", "gunicorn", "wsgi:app")
        stack.enter_context(process(*gunicorn, log=folder / "service.log", env=env, cwd=CHECKOUT))
        wait_until(lambda: listens(port), "gunicorn")
        if database == "postgresql":
            second = (sys.executable, "-m", "flask", "--app", "wsgi", "bus", "run")
            stack.enter_context(process(*second, log=folder / "second.log", env=env, cwd=CHECKOUT))
        yield port, env


def place(port: int, count: int, prefix: str) -> dict[str, float]:
    """Place orders; returns when each recipient's was placed."""
    client = http.client.HTTPConnection("127.0.0.1", port)
    placed = {}
    for number in range(count):
        recipient = f"{prefix}-{number}@users.example"
        order = {"order_id": f"{prefix}-{number}", "user_id": f"{prefix}-{number}", "total_price": "19.99"}
        placed[recipient] = time.monotonic()
        client.request("POST", "/api/create_order", json.dumps(order), {"Content-Type": "application/json"})
        answer = client.getresponse()
        answer.read()
        if answer.status != 201:
            raise RuntimeError(f"answered {answer.status}")
    return placed


def flask(env: dict[str, str], *words: str) -> None:
    run(sys.executable, "-m", "flask", "--app", "wsgi", *words, env=env, cwd=CHECKOUT)


def attempts(env: dict[str, str]) -> int:
    """That failed, as the database has them."""
    code = (
        "from wsgi import app\nfrom sqlalchemy import text\n"
        "with app.extensions['database'].read() as session:\n"
        "    print(session.execute(text(\"SELECT count(*) FROM attempts WHERE outcome != 'ok'\")).scalar_one())"
    )
    return int(run(sys.executable, "-c", code, env=env, cwd=CHECKOUT).split()[-1])


def play(trouble: str, policy: str, database: str, orders: int) -> Iterator[dict[str, Any]]:
    with tempfile.TemporaryDirectory(prefix="outages-") as made:
        server = Server(free_port(), trouble)
        folder = Path(made)
        folder.chmod(0o755)  # PostgreSQL may run as another user
        with service(folder, policy, database, server.port) as (port, env):
            if trouble != "down":
                server.start()
            yield measure(server, port, env, orders, policy, database, "first")
            if trouble == "greylist" and policy == "learned":
                flask(env, "bus", "policy", "fit")
                time.sleep(6)  # the dispatchers look for a newer table every 5 s
                yield measure(server, port, env, orders, policy, database, "again")


def measure(
    server: Server, port: int, env: dict[str, str], orders: int, policy: str, database: str, round_name: str
) -> dict[str, Any]:
    before = attempts(env)
    began = time.monotonic()
    if server.trouble == "throttle":
        flask(env, "bus", "pause", MAIL, "--because", "benchmark")
    placed = place(port, orders, round_name)
    back = began
    if server.trouble == "throttle":
        flask(env, "bus", "resume", MAIL)
    if server.trouble == "down":
        back = began + DOWN_SECONDS
        time.sleep(max(0.0, back - time.monotonic()))
        server.start()
    with contextlib.suppress(TimeoutError):
        wait_until(lambda: placed.keys() <= server.arrivals.keys(), "all mails", LIMIT_SECONDS, pause=0.2)
    arrived = {recipient: server.arrivals[recipient] for recipient in placed if recipient in server.arrivals}
    if server.trouble == "throttle":
        back = min(arrived.values(), default=began)
    since = {recipient: max(at, back) for recipient, at in placed.items()}
    late = [at - since[recipient] for recipient, at in arrived.items()]
    time.sleep(1)
    return {
        "trouble": server.trouble if round_name == "first" else f"{server.trouble}, the second time",
        "policy": policy,
        "database": database,
        "orders": orders,
        "failed attempts": attempts(env) - before,
        "delay, mean": round(statistics.mean(late), 1) if late else None,
        "delay, most": round(max(late), 1) if late else None,
        "drained after": round(max(arrived.values()) - back, 1) if arrived else None,
        "not arrived": orders - len(arrived),
        "copies": server.copies - len(server.arrivals),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="down,greylist,throttle")
    parser.add_argument("--policies", default="learned,exponential")
    parser.add_argument("--database", default="sqlite,postgresql")
    parser.add_argument("--orders", type=int, default=2000)
    given = parser.parse_args()
    columns: list[str] = []
    for trouble in given.only.split(","):
        for database in given.database.split(","):
            for policy in given.policies.split(","):
                orders = GREYLISTED if trouble == "greylist" else given.orders
                for line in play(trouble, policy, database, orders):
                    if not columns:
                        columns = list(line)
                        print("| " + " | ".join(columns) + " |")
                        print("|" + "---|" * len(columns))
                    print("| " + " | ".join(str(line[name]) for name in columns) + " |", flush=True)


if __name__ == "__main__":
    main()
