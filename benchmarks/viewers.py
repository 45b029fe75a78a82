"""What a hundred open pages of the console cost the POSTs: throughput with them and without, in turns.

    .venv/bin/python benchmarks/viewers.py [--pages 100] [--rounds 6] [--seconds 8]

The service runs as it comes, on SQLite, with a mail server that accepts everything. Each page asks for the live part of
the front page as its script does: over a connection that stays open, with the last answer's ETag, after the pause that
this answer asks for. The load is that of run.py: 16 connections that POST new orders as fast as they are answered.
Prints the POSTs per second with and without, and how many the service stored in a second of its processor time, which
other work on the machine changes less; and the medians of the rounds' ratios. Fails where a tenth or more is lost of
the latter.
"""

import argparse
import asyncio
import contextlib
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


class Pages:
    """Open pages, in a thread with an event loop."""

    def __init__(self, port: int, count: int) -> None:
        self.port, self.count = port, count
        self.answers: Counter[str] = Counter()
        """By their status."""
        self._loop = asyncio.new_event_loop()

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
        while True:
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
class Rates:
    """POSTs in a second, and in a second of the service's processor time."""

    per_second: float
    per_cpu_second: float


def measured(port: int, pid: int, pages: int, seconds: float, prefix: str) -> Rates:
    with contextlib.ExitStack() as stack:
        opened = stack.enter_context(Pages(port, pages)) if pages else None
        answers = opened.answers.copy() if opened else Counter[str]()
        before = cpu_seconds(family(pid))
        found = load.full(port, seconds, prefix)
        spent = cpu_seconds(family(pid)) - before
        if opened:
            told = (
                f"{count / seconds:.0f} answers {status}"
                for status, count in sorted((opened.answers - answers).items())
            )
            print(f"  {pages} pages: {', '.join(told)} a second", file=sys.stderr)
    return Rates(found["per_second"], found["requests"] / spent)


def main() -> int:
    options = argparse.ArgumentParser()
    options.add_argument("--pages", type=int, default=100)
    options.add_argument("--rounds", type=int, default=6)
    options.add_argument("--seconds", type=float, default=8)
    given = options.parse_args()
    rates: dict[int, list[Rates]] = {0: [], given.pages: []}
    with TemporaryDirectory() as folder, service(Path(folder)) as (port, pid):
        load.full(port, 3, "warm")
        for number in range(given.rounds):
            for pages in (0, given.pages) if number % 2 else (given.pages, 0):
                time.sleep(2)  # what was accepted last is stored
                found = measured(port, pid, pages, given.seconds, f"{number}-{pages}")
                rates[pages].append(found)
                print(f"round {number + 1}, {pages} pages: {found}", file=sys.stderr)
    for name in ("per_second", "per_cpu_second"):
        without, with_them = ([getattr(each, name) for each in found] for found in rates.values())
        ratios = [many / none for none, many in zip(without, with_them, strict=True)]
        ratio = statistics.median(ratios)
        each = f"{statistics.median(without):.0f} without a page, {statistics.median(with_them):.0f} with {given.pages}"
        print(f"POSTs {name}: {each}", end="; ")
        print(f"median of the ratios {ratio:.3f} ({min(ratios):.3f} to {max(ratios):.3f})")
    return int(ratio <= 1 - MOST_LOST)


if __name__ == "__main__":
    sys.exit(main())
