"""Compare the service with other ways of doing the same, on this machine: see README.md.

python3 benchmarks/run.py [throughput|latency|memory|growth|backlog|engines|purge|shares|all]
                          [--rounds N] [--seconds S] [--only NAME,...] [--out FILE]
"""

import argparse
import contextlib
import json
import os
import platform
import shlex
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import engines
import load
import tables
from contenders import BEFORE, CONTENDERS, PEERS, Contender, Running, prepared
from processes import (
    CHECKOUT,
    HERE,
    Missing,
    Sink,
    cpu_seconds,
    environment,
    memory,
    program,
    run,
    sink,
)

Row = dict[str, Any]
TRIES = 12
"""How often the empty route is measured until both of its processes are at work; four times in ten they are not."""
SERVICE = next(each for each in CONTENDERS if each.is_service)


class Bench:
    """What all measurements share: the options, the sink, and the rows that were measured."""

    def __init__(self, options: argparse.Namespace, mails: Sink, contenders: list[Contender]) -> None:
        self.options, self.mails, self.contenders = options, mails, contenders
        self.rows: list[Row] = []

    def each(self, what: str, contenders: Iterable[Contender]) -> Iterator[tuple[Contender, Row]]:
        """Every contender in every round; the order turns round, and begins elsewhere, from one round to the next."""
        listed = list(contenders)
        for number in range(self.options.rounds):
            first = number * len(listed) // max(1, self.options.rounds)
            turned = listed[first:] + listed[:first]
            for contender in turned if number % 2 == 0 else reversed(turned):
                if not any(row.get("skipped") and row["name"] == contender.name for row in self.rows):
                    say(f"{what}, round {number + 1} of {self.options.rounds}: {contender.name}")
                    yield contender, {"what": what, "name": contender.name, "round": number}

    def measure(self, what: str, contenders: Iterable[Contender], measured: Callable[[Running], Row]) -> None:
        for contender, row in self.each(what, contenders):
            try:
                with self.prepared(contender) as running:
                    row |= measured(running)
            except Missing as missing:
                row |= {"failed": str(missing), "skipped": f"skipped: no {missing}"}
            except (RuntimeError, TimeoutError) as error:
                say(f"  failed: {error}")
                row["failed"] = str(error)[-2000:]
            self.rows.append(row)

    def prepared(self, contender: Contender) -> contextlib.AbstractContextManager[Running]:
        checkout = self.options.before if contender.name == BEFORE else CHECKOUT
        return prepared(contender, self.mails, self.options.service_python, checkout)

    @contextlib.contextmanager
    def beside(self) -> Iterator[Callable[[], Row]]:
        """An empty route that is measured whenever it is asked for."""
        empty = next(contender for contender in CONTENDERS if contender.name == "empty")
        with self.prepared(empty) as running, running.started():
            yield lambda: at_its_best(running, min(2, self.options.seconds))


# Under full load


def at_its_best(beside: Running, seconds: float) -> Row:
    """The empty route with both of its processes at work.

    Whichever process of gunicorn's is awake accepts a connection; now and then one takes all 16, or nearly all, while
    the other has nothing to do. Then the route answers a third of what it could, and is no measure for others.
    """
    for _ in range(TRIES):
        before = {pid: cpu_seconds([pid]) for pid in beside.pids}
        found = load.full(beside.port, seconds, "e")
        less, more = sorted(cpu_seconds([pid]) - spent for pid, spent in before.items())[-2:]
        if less > more / 2:
            return found
    raise RuntimeError("one process of the empty route's takes all connections again and again")


def loaded(bench: Bench, running: Running, empty: Callable[[], Row], seconds: float, prefix: str) -> Row:
    """Full load, then the wait for the last mail; the empty route immediately before and after."""
    stored = running.drain().get("stored", 0)
    before, burned = empty(), engines.spent(running)
    mails_before = bench.mails.ask("count")
    found = load.full(running.port, seconds, prefix)
    counts, mails = running.drain(), bench.mails.ask("count")
    burned, used = engines.spent(running) - burned, memory(running.pids)
    after = empty()
    best = {key: statistics.mean((before[key], after[key])) for key in ("per_second", "p99_ms")}
    row = found | {
        "paired_empty": [before, after],
        "share": found["per_second"] / best["per_second"],
        "p99_over_empty_ms": found["p99_ms"] - best["p99_ms"],
        "cpu_ms": 1000 * burned / (counts.get("stored", stored + found["requests"]) - stored),
        "pss": used["pss"],
        "rss": used["rss"],
        "errors": found["refused"] + found["broken"],
    }
    if running.contender.mails:
        arrived = mails["mails"] - mails_before["mails"]
        row |= {
            "mails_per_second": arrived / (mails["last"] - found["began"]),
            "mail_bytes": round((mails["bytes"] - mails_before["bytes"]) / max(1, arrived)),
            "unfinished": counts["stored"] - min(counts.values()),
            "extra_mails": mails["mails"] - counts["stored"],
        }
    return row


def throughput(bench: Bench) -> None:
    with bench.beside() as empty:

        def measured(running: Running) -> Row:
            with running.started():
                load.full(running.port, 1, "warm")
                return loaded(bench, running, empty, bench.options.seconds, "load")

        bench.measure("throughput", bench.contenders, measured)


def growth(bench: Bench) -> None:
    """The service under full load again and again, until its file holds so many orders."""
    with bench.beside() as empty, bench.prepared(SERVICE) as running, running.started():
        load.full(running.port, 2, "warm")  # what is made once, such as caches and pools, is no growth
        orders = 0
        while orders < bench.options.growth_orders:
            row = loaded(bench, running, empty, bench.options.seconds, f"growth-{orders}")
            orders = running.counts()["stored"]
            mib = sum(file.stat().st_size for file in running.folder.glob("orders.db*")) / 2**20
            say(f"growth: {orders} of {bench.options.growth_orders} orders")
            bench.rows.append({"what": "growth", "name": SERVICE.name, "orders": orders, "file_mib": mib} | row)


# A calm stream


def latency(bench: Bench) -> None:
    """From the POST's sending to the mail's arrival, 40 orders a second."""
    pace, seconds = 40, bench.options.latency_seconds

    def measured(running: Running) -> Row:
        with running.started():
            load.paced(running.port, pace, 1.5, "warm")
            running.drain()
            bench.mails.ask("reset")
            sent, late, failed = load.paced(running.port, pace, seconds, "paced")
            deadline = time.monotonic() + 30
            while bench.mails.ask("count")["mails"] < len(sent) and time.monotonic() < deadline:
                time.sleep(0.1)
            arrived: dict[str, float] = {}
            for recipient, moment in bench.mails.ask("arrivals"):
                arrived.setdefault(recipient.partition("@")[0], moment)
        waits = sorted(1000 * (arrived[order] - moment) for order, moment in sent.items() if order in arrived)
        if len(waits) < len(sent) / 2:
            raise RuntimeError(f"{len(waits)} of {len(sent)} mails arrived")
        return {
            "p50_ms": percentile(waits, 50),
            "p99_ms": percentile(waits, 99),
            "most_ms": waits[-1],
            "missing": len(sent) - len(waits),
            "errors": failed,
            "client_late_ms": 1000 * late,
        }

    bench.measure("latency", [each for each in bench.contenders if each.mails], measured)


def percentile(ordered: list[float], percent: float) -> float:
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


# At rest


def use_of_memory(bench: Bench) -> None:
    def measured(running: Running) -> Row:
        with running.started():
            time.sleep(2)
            own, server = memory(running.pids), memory(running.server_pids)
            return own | {"server_pss": server["pss"], "start_seconds": running.start_seconds}

    bench.measure("memory", bench.contenders, measured)


# The engines: see engines.py


def by_engine(bench: Bench) -> None:
    seconds = bench.options.seconds
    bench.measure("engines", engines.ENGINES, lambda running: engines.measured(running, bench.mails, seconds))


def purge(bench: Bench) -> None:
    with bench.prepared(engines.PURGED) as running:
        say("purge")
        figures = engines.purged(running, bench.mails, bench.options.purge_orders)
    bench.rows.append({"what": "purge", "name": engines.PURGED.name, "figures": figures})


# In one process of the service's


def backlog(bench: Bench) -> None:
    """The processor time of an order in databases of different sizes, in turns: see backlog.py."""
    orders, waiting = bench.options.orders, bench.options.waiting
    sizes = {"one order": (0, 0, 0)}
    sizes |= {f"{number:,} finished orders": (3 * number, 0, 0) for number in (orders // 100, orders // 10, orders)}
    sizes[f"{waiting:,} deliveries waiting, not due"] = (0, waiting, 0)
    sizes[f"{waiting:,} deliveries waiting, overdue"] = (0, 0, waiting)
    with contextlib.ExitStack() as stack:
        workers = {}
        for name, (finished, *others) in sizes.items():
            folder = stack.enter_context(TemporaryDirectory(prefix="bench-"))
            say(f"backlog: filling a database with {name}")
            workers[name] = answering(bench, stack, "backlog.py", folder, finished, *others)
            row = ask(workers[name]) | {"orders": finished // 3, "waiting": sum(others)}
            bench.rows.append({"what": "backlog, filled", "name": name} | row)
        for number in range(-2, bench.options.rounds * 10):  # two turns to warm up
            for name, worker in workers.items() if number % 2 else reversed(list(workers.items())):
                row = ask(worker, "turn")
                if number >= 0:
                    bench.rows.append({"what": "backlog", "name": name, "round": number} | row)
        scans = {scan for worker in workers.values() for scan in ask(worker, "plan")["scans"]}
    bench.rows.append({"what": "plans", "name": SERVICE.name, "scans": sorted(scans)})


def shares(bench: Bench) -> None:
    """What the processor does for an order, and what is counted of it: see shares.py."""
    for number in range(bench.options.rounds):
        say(f"shares, round {number + 1} of {bench.options.rounds}")
        bench.mails.ask("reset")
        with TemporaryDirectory(prefix="bench-") as folder, contextlib.ExitStack() as stack:
            worker = answering(bench, stack, "shares.py", folder, bench.mails.port)
            for name, found in ask(worker).items():
                bench.rows.append({"what": "shares", "name": name, "round": number, "parts": found})
            if number == 0:
                bench.rows += [{"what": "counts", "name": name} | found for name, found in ask(worker).items()]


def answering(bench: Bench, stack: contextlib.ExitStack, *command: object) -> "subprocess.Popen[str]":
    """One of our programs, with the service's Python, that prints lines of JSON."""
    script, *arguments = map(str, command)
    worker = subprocess.Popen(
        [bench.options.service_python, str(HERE / script), *arguments],
        env=environment(PYTHONPATH=CHECKOUT),
        cwd=CHECKOUT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    stack.callback(worker.wait)
    stack.callback(worker.kill)
    return worker


def ask(worker: "subprocess.Popen[str]", words: str = "") -> Row:
    assert worker.stdin is not None
    assert worker.stdout is not None
    if words:
        worker.stdin.write(words + "\n")
        worker.stdin.flush()
    line = worker.stdout.readline()
    if not line:
        raise RuntimeError(f"it ended with {worker.wait()}")
    return json.loads(line)


# The run


def say(words: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {words}", file=sys.stderr, flush=True)


def machine(rounds: int) -> Row:
    """What the numbers depend on."""
    with TemporaryDirectory(prefix="bench-") as folder:
        file = os.open(Path(folder, "file"), os.O_WRONLY | os.O_CREAT)
        waits = []
        for _ in range(50):
            began = time.monotonic()
            os.write(file, bytes(4096))
            os.fsync(file)
            waits.append(time.monotonic() - began)
        os.close(file)
    return {
        "when": time.strftime("%Y-%m-%d %H:%M"),
        "command": shlex.join(["python3", "benchmarks/run.py", *(word.rpartition("/")[2] for word in sys.argv[1:])]),
        "system": platform.platform(),
        "cores": os.cpu_count(),
        "rounds": rounds,
        "fsync_ms": 1000 * statistics.median(waits),
        "commit": run("git", "-C", str(CHECKOUT), "describe", "--always", "--dirty").strip(),
    }


def make_peers() -> None:
    """The peers' own virtual environment, as requirements.txt has it."""
    wanted, stamp = (HERE / "requirements.txt").read_text(), PEERS.parent / "made-from.txt"
    if stamp.exists() and stamp.read_text() == wanted:
        return
    say("making benchmarks/.venv")
    run(sys.executable, "-m", "venv", "--clear", str(PEERS.parent))
    run(str(PEERS / "pip"), "install", "--quiet", "-r", str(HERE / "requirements.txt"), env=dict(os.environ))
    stamp.write_text(wanted)


PARTS = {
    "throughput": throughput,
    "latency": latency,
    "memory": use_of_memory,
    "growth": growth,
    "backlog": backlog,
    "engines": by_engine,
    "purge": purge,
    "shares": shares,
}
WITHOUT_WRK = ("latency", "backlog", "shares")


def arguments() -> argparse.Namespace:
    own = CHECKOUT / ".venv" / "bin" / "python"
    parser = argparse.ArgumentParser(description="Compare the service with other ways of doing the same.")
    parser.add_argument(
        "parts", nargs="*", default=["all"], choices=[*PARTS, "all"], metavar="PART", help=", ".join(PARTS)
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=8, help="of each load at full throughput")
    parser.add_argument("--latency-seconds", type=float, default=10)
    parser.add_argument("--growth-orders", type=int, default=100_000, help="until which 'growth' goes on")
    parser.add_argument(
        "--orders", type=int, default=1_000_000, help="finished orders in the backlog's fullest database"
    )
    parser.add_argument("--waiting", type=int, default=100_000, help="deliveries in the backlog's waiting databases")
    parser.add_argument("--purge-orders", type=int, default=10_000)
    parser.add_argument("--before", type=Path, help="another checkout, whose service takes part")
    parser.add_argument("--only", default="", help="contenders, by their names or parts of them, with commas")
    parser.add_argument("--out", type=Path, help="a file for the numbers, as JSON: tables.py reads it")
    default = str(own) if own.exists() else os.environ.get("SERVICE_PYTHON", "")
    parser.add_argument("--service-python", default=default, help="has the service's requirements ($SERVICE_PYTHON)")
    options = parser.parse_args()
    if not options.service_python:
        parser.error("there is no .venv in the checkout: run 'make run' once, or give --service-python")
    return options


def main() -> None:
    options = arguments()
    parts = list(PARTS) if "all" in options.parts else options.parts
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # like Ctrl-C: what was started is ended
    wanted = [word.strip() for word in options.only.split(",") if word.strip()]
    names = {each.name for each in CONTENDERS}
    chosen = [
        each
        for each in CONTENDERS
        if not wanted or any(word == each.name if word in names else word in each.name for word in wanted)
    ]
    chosen = [each for each in chosen if each.name != BEFORE]
    if options.before:
        chosen += [each for each in CONTENDERS if each.name == BEFORE]
    try:
        program("wrk")
    except Missing:
        parts = [part for part in parts if part in WITHOUT_WRK]
        say(f"only {', '.join(WITHOUT_WRK)}: there is no wrk (apt-get install wrk)")
    make_peers()
    numbers: Row = {"machine": machine(options.rounds)}
    with TemporaryDirectory(prefix="bench-") as folder, sink(Path(folder)) as mails:
        bench = Bench(options, mails, chosen)
        numbers["rows"] = bench.rows
        try:
            for part in parts:
                PARTS[part](bench)
        finally:
            if options.out:
                rows = ",\n".join(json.dumps(row) for row in bench.rows)
                options.out.write_text(f'{{"machine": {json.dumps(numbers["machine"])}, "rows": [\n{rows}\n]}}\n')
    print(tables.printed(tables.Numbers(numbers)))


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("interrupted; everything that was started has been ended")
