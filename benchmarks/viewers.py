"""What a hundred open pages of the console cost the POSTs: throughput while they poll and while they don't, in turns.

    .venv/bin/python benchmarks/viewers.py [--pages 100] [--rounds 6] [--seconds 2.5]

The service runs as it comes, on SQLite, with a mail server that accepts everything. Each page asks for the live part of
the front page as its script does: over a connection that stays open, with the last answer's ETag, after the pause that
this answer asks for. The load is that of run.py: 16 connections that POST new orders as fast as they are answered. In
each round it goes on while the pages are quiet, poll, poll, and are quiet: so what grows meanwhile, and which process
has which connections, is the same for both. Prints for each round how many orders the service stored in a second, and
in a second of its processor time, which other work on the machine changes less; and the medians of the rounds' ratios.
Fails where a tenth or more is lost of the latter.
"""

import argparse
import asyncio
import contextlib
import sqlite3
import statistics
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import load
from processes import CHECKOUT, cpu_seconds, environment, family, free_port, listens, process, sink, wait_until

MOST_LOST = 0.1

SETTLE_SECONDS = 0.5
"""After which pages poll, or have stopped."""


class Pages:
    """Open pages, in a thread with an event loop."""

    def __init__(self, port: int, count: int) -> None:
        self.port, self.count = port, count
        self.answers: Counter[str] = Counter()
        """By their status."""
        self._loop = asyncio.new_event_loop()
        self._polls = asyncio.Event()
        self._polls.set()

    def poll(self, polls: bool) -> None:
        """Whether they do, from now on."""
        self._loop.call_soon_threadsafe(self._polls.set if polls else self._polls.clear)

    def __enter__(self) -> "Pages":
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._task = asyncio.run_coroutine_threadsafe(self._open(), self._loop)
        wait_until(lambda: self.answers.total() >= self.count, "the pages' first answers")
        return self

    def __exit__(self, *_: object) -> None:
        self._task.cancel()
        asyncio.run_coroutine_threadsafe(asyncio.sleep(0.1), self._loop).result()  # the pages end
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    async def _open(self) -> None:
        await asyncio.gather(*(self._page(number) for number in range(self.count)))

    async def _page(self, number: int) -> None:
        await asyncio.sleep(number / self.count)
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        tag = ""
        while await self._polls.wait():
            known = f"If-None-Match: {tag}\r\n" if tag else ""
            writer.write(f"GET /flow/live HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Live: 1\r\n{known}\r\n".encode())
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            status, headers = head.split(" ", 2)[1], dict(line.split(": ", 1) for line in head.split("\r\n")[1:-2])
            if status != "304":
                await reader.readexactly(int(headers["Content-Length"]))
            self.answers[status] += 1
            tag = headers["ETag"]
            await asyncio.sleep(float(headers["Next-Poll-Seconds"]))


@contextlib.contextmanager
def service(folder: Path) -> Iterator[tuple[int, int]]:
    """Yields its port, and its first process' id."""
    with sink(folder) as mails:
        port = free_port()
        mail = {"MAIL_SERVER": "127.0.0.1", "MAIL_PORT": mails.port, "USER_EMAIL_DOMAIN": "users.example"}
        env = environment(INSTANCE_PATH=folder, PORT=port, **mail)
        command = (sys.executable, "-m", "gunicorn", "wsgi:app")
        with process(*command, log=folder / "service.log", env=env, cwd=CHECKOUT) as started:
            wait_until(lambda: listens(port), "the service")
            yield port, started.pid


@dataclass(frozen=True)
class Slice:
    """What was stored in a stretch of time, and at what cost."""

    orders: int
    seconds: float
    cpu_seconds: float
    polls: Counter[str]

    def __add__(self, other: "Slice") -> "Slice":
        mine, theirs = vars(self), vars(other)
        return Slice(**{name: mine[name] + theirs[name] for name in mine})

    @property
    def per_second(self) -> float:
        return self.orders / self.seconds

    @property
    def per_cpu_second(self) -> float:
        return self.orders / self.cpu_seconds

    def __str__(self) -> str:
        told = ", ".join(f"{count / self.seconds:.0f} answers {status}" for status, count in sorted(self.polls.items()))
        return f"{self.per_second:.0f} POSTs per second, {self.per_cpu_second:.0f} per CPU second; {told or 'no poll'}"


class Meter:
    """Measures slices. The number of the newest row is that of the orders."""

    def __init__(self, pid: int, file: Path, pages: Pages) -> None:
        self.pid, self.pages = pid, pages
        self._database = sqlite3.connect(f"file:{file}?mode=ro", uri=True, isolation_level=None)

    def slice(self, seconds: float) -> Slice:
        before = self._now()
        time.sleep(seconds)
        orders, at, cpu, polls = self._now()
        return Slice(orders - before[0], at - before[1], cpu - before[2], polls - before[3])

    def _now(self) -> tuple[int, float, float, Counter[str]]:
        orders = self._database.execute("SELECT max(rowid) FROM orders").fetchone()[0]
        return orders, time.monotonic(), cpu_seconds(family(self.pid)), self.pages.answers.copy()


def main() -> int:
    options = argparse.ArgumentParser()
    options.add_argument("--pages", type=int, default=100)
    options.add_argument("--rounds", type=int, default=6)
    options.add_argument("--seconds", type=float, default=2.5)
    given = options.parse_args()
    rounds: list[tuple[Slice, Slice]] = []
    with TemporaryDirectory() as folder, service(Path(folder)) as (port, pid), Pages(port, given.pages) as pages:
        load.full(port, 3, "warm")
        meter = Meter(pid, Path(folder) / "orders.db", pages)
        for number in range(given.rounds):
            found = one_round(port, meter, given.seconds, f"{number}")
            rounds.append(found)
            print(f"round {number + 1}: {found[0]} | {found[1]}", flush=True)
    for name in ("per_second", "per_cpu_second"):
        ratios = [getattr(many, name) / getattr(none, name) for none, many in rounds]
        ratio = statistics.median(ratios)
        print(f"POSTs {name}, with {given.pages} pages to without: median {ratio:.3f}", end=" ")
        print(f"({min(ratios):.3f} to {max(ratios):.3f})")
    return int(ratio <= 1 - MOST_LOST)


def one_round(port: int, meter: Meter, seconds: float, name: str) -> tuple[Slice, Slice]:
    """Without polls, and with them."""
    time.sleep(2)  # what was accepted last is delivered
    meter.pages.poll(False)
    whole = 4 * (seconds + SETTLE_SECONDS) + 1
    loading = threading.Thread(target=load.full, args=(port, whole, name))
    loading.start()
    found: dict[bool, list[Slice]] = {False: [], True: []}
    for polls in (False, True, True, False):
        meter.pages.poll(polls)
        time.sleep(SETTLE_SECONDS)
        found[polls].append(meter.slice(seconds))
    meter.pages.poll(True)
    loading.join()
    return found[False][0] + found[False][1], found[True][0] + found[True][1]


if __name__ == "__main__":
    sys.exit(main())
