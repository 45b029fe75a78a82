"""Compare the service with other ways of doing the same, on this machine: see README.md.

python3 benchmarks/run.py [throughput|latency|backlog|memory|scaling|engines|all]
                          [--rounds N] [--seconds S] [--only NAME,...]
"""

import argparse
import contextlib
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import load
import pictures
from contenders import CONTENDERS, PEERS, Contender, Running, prepared
from processes import (
    CHECKOUT,
    HERE,
    Missing,
    Sink,
    busy_seconds,
    cpu_seconds,
    environment,
    memory,
    process,
    program,
    run,
    sink,
    wait_until,
)

Row = dict[str, Any]
REFERENCE = "celery (rabbitmq)"
DISPATCHERS = (1, 2, 4)
TRIES = 12
"""How often the empty route is measured until both of its processes are at work; four times in ten they are not."""
SLOW_MAIL = 0.03
"""Seconds that a mail server far away takes for a mail."""


class Bench:
    """What all measurements share: the options, the sink, and the rows that were measured."""

    def __init__(self, options: argparse.Namespace, mails: Sink, contenders: list[Contender]) -> None:
        self.options, self.mails, self.contenders = options, mails, contenders
        self.rows: list[Row] = []
        self.skipped: dict[str, str] = {}

    def each(self, what: str, contenders: Iterable[Contender]) -> Iterator[tuple[Contender, Row]]:
        """Every contender in every round; the order turns round, and begins elsewhere, from one round to the next."""
        listed = list(contenders)
        for number in range(self.options.rounds):
            first = number * len(listed) // max(1, self.options.rounds)
            turned = listed[first:] + listed[:first]
            for contender in turned if number % 2 == 0 else reversed(turned):
                if contender.name not in self.skipped:
                    say(f"{what}, round {number + 1} of {self.options.rounds}: {contender.name}")
                    yield contender, {"what": what, "name": contender.name, "round": number}

    def measure(self, what: str, contenders: Iterable[Contender], measured: Callable[[Running], Row]) -> None:
        for contender, row in self.each(what, contenders):
            try:
                with self.prepared(contender) as running:
                    row |= measured(running)
            except Missing as missing:
                self.skipped[contender.name] = f"skipped: no {missing}"
            except (RuntimeError, TimeoutError) as error:
                say(f"  failed: {error}")
                row["failed"] = str(error)[-2000:]
                self.rows.append(row)
            else:
                self.rows.append(row)

    def prepared(self, contender: Contender) -> contextlib.AbstractContextManager[Running]:
        return prepared(contender, self.mails, self.options.service_python)

    def table(self, what: str, columns: dict[str, str], extra: Callable[[str], list[str]] = lambda _: []) -> list[str]:
        """Markdown: for each contender the median over the rounds, and from least to most."""
        lines = []
        for contender in self.contenders:
            rows = [row for row in self.rows if row["what"] == what and row["name"] == contender.name]
            good = [row for row in rows if "failed" not in row]
            if contender.name in self.skipped or (rows and not good):
                reason = self.skipped.get(contender.name, "failed")
                lines.append(cells([contender.name, reason, *[""] * (len(columns) - 1), *extra(contender.name)]))
            elif good:
                values = [spread([row.get(key) for row in good], form) for key, form in columns.items()]
                lines.append(cells([contender.name, *values, *extra(contender.name)]))
        return lines


# throughput


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


def throughput(bench: Bench) -> list[str]:
    seconds = bench.options.seconds
    empty = next(contender for contender in CONTENDERS if contender.name == "empty")
    with bench.prepared(empty) as beside, beside.started():

        def measured(running: Running) -> Row:
            with running.started():
                load.full(running.port, 1, "warm")
                warm = running.drain().get("stored", 0)
                pids = [*running.pids, *running.server_pids]
                before = at_its_best(beside, min(2, seconds))
                burned = cpu_seconds(pids)
                mails_before = bench.mails.ask("count")
                found = load.full(running.port, seconds, "load")
                counts = running.drain()
                mails = bench.mails.ask("count")
                burned = cpu_seconds([*running.pids, *running.server_pids]) - burned
                used = memory(running.pids)["pss"]
                after = at_its_best(beside, min(2, seconds))
            orders = counts.get("stored", warm + found["requests"]) - warm
            row = found | {
                "paired_empty": [before, after],
                "share": found["per_second"] / statistics.mean((before["per_second"], after["per_second"])),
                "p99_ratio": found["p99_ms"] / statistics.mean((before["p99_ms"], after["p99_ms"])),
                "cpu_ms": 1000 * burned / orders,
                "pss": used,
                "counts": counts,
                "errors": found["refused"] + found["broken"],
            }
            if running.contender.mails:
                arrived = mails["mails"] - mails_before["mails"]
                row |= {
                    "mails": arrived,
                    "mails_per_second": arrived / (mails["last"] - found["began"]),
                    "mail_bytes": round((mails["bytes"] - mails_before["bytes"]) / max(1, arrived)),
                    "unfinished": counts["stored"] - min(counts.values()),
                    "extra_mails": mails["mails"] - counts["stored"],
                }
            return row

        bench.measure("throughput", bench.contenders, measured)
    promises = {contender.name: contender.durability for contender in bench.contenders}
    columns = {
        "per_second": "{:.0f}",
        "share": "{:.2f}",
        "p50_ms": "{:.1f}",
        "p99_ms": "{:.0f}",
        "p99_ratio": "{:.1f}",
        "mails_per_second": "{:.0f}",
        "cpu_ms": "{:.2f}",
        "pss": "{:.0f}",
        "errors": "{:.0f}",
        "unfinished": "{:.0f}",
    }
    head = [
        "contender",
        "POST/s",
        "of empty",
        "p50 ms",
        "p99 ms",
        "p99 of empty",
        "mails/s",
        "CPU ms an order",
        "PSS MiB",
    ]
    return [
        f"### Throughput: 16 connections, {seconds:g} s",
        "",
        *header([*head, "errors", "unfinished", "what a crash costs"]),
        *bench.table("throughput", columns, lambda name: [promises[name]]),
    ]


# latency


def latency(bench: Bench) -> list[str]:
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
        if len(waits) < 100:
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
    good = {(row["name"], row["round"]): row for row in bench.rows if row["what"] == "latency" and "failed" not in row}
    for (_, number), row in good.items():
        if reference := good.get((REFERENCE, number)):
            row["of_reference"] = row["p50_ms"] / reference["p50_ms"]
            row["p99_of_reference"] = row["p99_ms"] / reference["p99_ms"]
    columns = {"p50_ms": "{:.1f}", "p99_ms": "{:.1f}", "of_reference": "{:.2f}", "p99_of_reference": "{:.2f}"}
    ratios = [f"p50 of {REFERENCE}", f"p99 of {REFERENCE}", "errors", "missing"]
    return [
        f"### Latency: from the POST to the mail's arrival, {pace} orders a second for {seconds:g} s",
        "",
        *header(["contender", "p50 ms", "p99 ms", *ratios]),
        *bench.table("latency", columns | {"errors": "{:.0f}", "missing": "{:.0f}"}),
    ]


# memory


def use_of_memory(bench: Bench) -> list[str]:
    def measured(running: Running) -> Row:
        with running.started():
            time.sleep(2)
            own, server = memory(running.pids), memory(running.server_pids)
            return own | {"server_pss": server["pss"], "start_seconds": running.start_seconds}

    bench.measure("memory", bench.contenders, measured)
    columns = {
        "pss": "{:.0f}",
        "pss_anon": "{:.0f}",
        "rss": "{:.0f}",
        "server_pss": "{:.0f}",
        "start_seconds": "{:.2f}",
    }
    lines = [
        "### Memory at rest after the first order, all processes, and the time to a first answer",
        "",
        *header(["contender", "PSS MiB", "of it no file's", "RSS MiB", "its server's PSS MiB", "start s"]),
        *bench.table("memory", columns),
    ]
    service = next((each for each in bench.contenders if each.name == "this service"), None)
    if service is None or not bench.options.growth_orders:
        return lines
    say(f"memory: growth of this service over {bench.options.growth_orders} orders")
    with bench.prepared(service) as running, running.started():
        load.full(running.port, 2, "warm")  # what is made once, such as caches and pools, is no growth
        running.drain()
        row = {"what": "growth", "name": service.name, "before": memory(running.pids), "orders": 0}
        while row["orders"] < bench.options.growth_orders:
            load.full(running.port, 10, f"growth-{row['orders']}")
            row["orders"] = running.drain()["stored"]
        time.sleep(2)
        row["after"] = memory(running.pids)
    bench.rows.append(row)
    return [
        *lines,
        "",
        f"This service over {row['orders']} orders at full load, in MiB: "
        + ", ".join(f"{kind.upper()} {row['before'][kind]:.1f} → {row['after'][kind]:.1f}" for kind in ("rss", "pss"))
        + ". RSS tells what it grew by; PSS also rises as forked processes copy pages that they shared.",
    ]


# backlog


def backlog(bench: Bench) -> list[str]:
    """The cost of an order in databases of different sizes, in turns: see backlog.py."""
    options = bench.options
    sizes = {
        "empty": (0, 0, 0),
        f"{options.finished} finished": (options.finished, 0, 0),
        f"{options.waiting} waiting, not due": (0, options.waiting, 0),
        f"{options.waiting} waiting, overdue": (0, 0, options.waiting),
    }
    steps = ("post", "claim", "settle")
    env = environment(PYTHONPATH=CHECKOUT)
    with contextlib.ExitStack() as stack:
        workers = {}
        for name, size in sizes.items():
            folder = stack.enter_context(TemporaryDirectory(prefix="bench-"))
            say(f"backlog: filling a database with {name}")
            command = [options.service_python, str(HERE / "backlog.py"), folder, *map(str, size)]
            worker = subprocess.Popen(
                command,
                env=env,
                cwd=CHECKOUT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
            stack.callback(worker.wait)
            stack.callback(worker.kill)
            workers[name] = worker
            row = ask(worker)
            bench.rows.append({"what": "backlog, filled", "name": name} | row)
        for number in range(-2, options.rounds * 10):  # two turns to warm up
            for name, worker in workers.items() if number % 2 else reversed(list(workers.items())):
                row = ask(worker, "turn")
                if number >= 0:
                    bench.rows.append({"what": "backlog", "name": name, "round": number} | row)
        scans = {name: ask(worker, "plan")["scans"] for name, worker in workers.items()}
    bench.rows.append({"what": "plans", "scans": scans})
    found = {
        (name, step): [row[step] for row in bench.rows if row["what"] == "backlog" and row["name"] == name]
        for name in sizes
        for step in steps
    }
    lines = []
    for name in sizes:
        values = []
        for step in steps:
            own, base = found[name, step], found["empty", step]
            ratios = [mine / other for mine, other in zip(own, base, strict=True)]
            values += [spread([1000 * each for each in own], "{:.2f}"), f"{statistics.median(ratios):.2f}"]
        lines.append(cells([name, *values]))
    scanned = sorted({scan for each in scans.values() for scan in each})
    titles = [title for step in steps for title in (f"{step} ms", "of empty")]
    return [
        "### Backlog: CPU time of an order's POST, and of a delivery's claim and settle, in this service",
        "",
        *header(["deliveries in the database", *titles]),
        *lines,
        "",
        "Statements that scan a table: " + ("; ".join(scanned) or "none."),
    ]


def ask(worker: "subprocess.Popen[str]", words: str = "") -> Row:
    assert worker.stdin is not None
    assert worker.stdout is not None
    if words:
        worker.stdin.write(words + "\n")
        worker.stdin.flush()
    line = worker.stdout.readline()
    if not line:
        raise RuntimeError(f"backlog.py ended with {worker.wait()}")
    return json.loads(line)


# scaling


def scaling(bench: Bench) -> list[str]:
    """A backlog on one PostgreSQL, delivered by one and by more ``flask bus run``."""
    service = next(each for each in CONTENDERS if each.is_service and each.server == "postgresql")
    mails = {"answered at once": 0.0, f"answered after {1000 * SLOW_MAIL:g} ms": SLOW_MAIL}
    cases = {f"{n}, mails {how}": (n, how) for how in mails for n in DISPATCHERS}
    part = Bench(bench.options, bench.mails, [replace(service, name=name) for name in cases])
    part.rows = bench.rows

    def measured(running: Running) -> Row:
        dispatchers, how = cases[running.contender.name]
        bench.mails.ask(f"pause {mails[how]}")
        try:
            return drained(running, dispatchers, bench)
        finally:
            bench.mails.ask("pause 0")

    part.measure("scaling", part.contenders, measured)
    good = {(row["name"], row["round"]): row for row in part.rows if row["what"] == "scaling" and "failed" not in row}
    for (name, number), row in good.items():
        if one := good.get((f"1, mails {cases[name][1]}", number)):
            row["of_one"] = row["per_second"] / one["per_second"]
    columns = {"per_second": "{:.0f}", "of_one": "{:.2f}", "busy": "{:.2f}", "unfinished": "{:.0f}"}
    return [
        "### Scaling: dispatchers that deliver a backlog on one PostgreSQL",
        "",
        *header(["dispatchers", "mails/s", "of one's", "cores busy", "unfinished"]),
        *part.table("scaling", columns),
    ]


def drained(running: Running, dispatchers: int, bench: Bench) -> Row:
    running.env["DISPATCH_IN_WEB"] = "false"
    web, bus = ("gunicorn", "wsgi:app"), ("flask", "--app", "wsgi.py", "bus", "run")

    def started(*command: str) -> contextlib.AbstractContextManager[subprocess.Popen[bytes]]:
        log = running.folder / f"{command[0]}.log"
        return process(running.python, "-m", *command, log=log, env=running.env, cwd=CHECKOUT)

    with started(*web):
        wait_until(lambda: running.place("first"), "a first answer")
        load.full(running.port, min(2, bench.options.seconds), "backlog")
    orders = running.counts()["stored"]
    with contextlib.ExitStack() as stack:
        running.roots = [stack.enter_context(started(*bus)).pid for _ in range(dispatchers)]
        wait_until(lambda: bench.mails.ask("count")["mails"], "a first mail")
        began, burned = time.monotonic(), busy_seconds()
        wait_until(lambda: bench.mails.ask("count")["mails"] >= orders, "the last mail", limit=300)
        busy = (busy_seconds() - burned) / (time.monotonic() - began)
        counts = running.drain()
        arrivals = [moment for _, moment in bench.mails.ask("arrivals")]
    return {
        "mails": len(arrivals),
        "per_second": (len(arrivals) - 1) / (arrivals[-1] - arrivals[0]),
        "busy": busy,
        "unfinished": counts["stored"] - min(counts.values()),
    }


# engines


def engines(bench: Bench) -> list[str]:
    """POSTs, and mails end to end, on SQLite and on PostgreSQL with more and more ``flask bus run``; a picture too."""
    ours = {each.database: each for each in CONTENDERS if each.is_service}
    cases = {"SQLite, 1 dispatcher": ("sqlite", 1)}
    cases |= {f"PostgreSQL, {n} dispatcher{'s' * (n > 1)}": ("postgresql", n) for n in DISPATCHERS}
    part = Bench(bench.options, bench.mails, [replace(ours[where], name=name) for name, (where, _) in cases.items()])
    part.rows = bench.rows

    def measured(running: Running) -> Row:
        return served(running, cases[running.contender.name][1], bench)

    part.measure("engines", part.contenders, measured)
    first, rates = next(iter(cases)), {"per_second": "posts_ratio", "mails_per_second": "mails_ratio"}
    good = {(row["name"], row["round"]): row for row in part.rows if row["what"] == "engines" and "failed" not in row}
    for (_, number), row in good.items():
        if base := good.get((first, number)):
            row |= {ratio: row[rate] / base[rate] for rate, ratio in rates.items()}
    columns = {"per_second": "{:.0f}", "posts_ratio": "{:.2f}", "p99_ms": "{:.0f}"}
    columns |= {"mails_per_second": "{:.0f}", "mails_ratio": "{:.2f}", "cpu_ms": "{:.1f}", "unfinished": "{:.0f}"}
    if bench.options.picture:
        medians = {
            name: [statistics.median(row[rate] for (one, _), row in good.items() if one == name) for rate in rates]
            for name in cases
            if any(one == name for one, _ in good)
        }
        bench.options.picture.write_text(
            pictures.bars(medians, ("orders taken a second", "mails a second, end to end"))
        )
    return [
        f"### Engines: 16 connections, {bench.options.seconds:g} s, then until the last mail",
        "",
        *header(["", "POST/s", "of SQLite's", "p99 ms", "mails/s", "of SQLite's", "CPU ms an order", "unfinished"]),
        *part.table("engines", columns),
    ]


def served(running: Running, dispatchers: int, bench: Bench) -> Row:
    running.env["DISPATCH_IN_WEB"] = "false"
    with contextlib.ExitStack() as stack:

        def start(*command: str) -> int:
            log = running.folder / f"{command[0]}.log"
            begun = process(running.python, "-m", *command, log=log, env=running.env, cwd=CHECKOUT)
            return stack.enter_context(begun).pid

        running.roots = [start("gunicorn", "wsgi:app")]
        running.roots += [start("flask", "--app", "wsgi.py", "bus", "run") for _ in range(dispatchers)]
        wait_until(lambda: running.place("first"), "a first answer")
        load.full(running.port, 1, "warm")
        running.drain()
        pids = [*running.pids, *running.server_pids]
        before, burned = bench.mails.ask("count")["mails"], cpu_seconds(pids)
        found = load.full(running.port, bench.options.seconds, "load")
        counts, mails = running.drain(60), bench.mails.ask("count")
        burned = cpu_seconds([*running.pids, *running.server_pids]) - burned
    return found | {
        "mails_per_second": (mails["mails"] - before) / (mails["last"] - found["began"]),
        "cpu_ms": 1000 * burned / (mails["mails"] - before),
        "unfinished": counts["stored"] - min(counts.values()),
    }


# Numbers and words


def percentile(ordered: list[float], percent: float) -> float:
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


def spread(values: Iterable[float | None], form: str) -> str:
    """The median, and in brackets the least and the most where they read differently."""
    given = [value for value in values if value is not None]
    if not given:
        return "–"
    least, middle, most = (form.format(each) for each in (min(given), statistics.median(given), max(given)))
    return middle if least == most else f"{middle} ({least}–{most})"


def cells(values: Iterable[str]) -> str:
    return "| " + " | ".join(values) + " |"


def header(titles: list[str]) -> list[str]:
    return [cells(titles), "|---" * len(titles) + "|"]


def say(words: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {words}", file=sys.stderr, flush=True)


def machine() -> Row:
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
        "system": platform.platform(),
        "cores": os.cpu_count(),
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
    "backlog": backlog,
    "scaling": scaling,
    "engines": engines,
}


def arguments() -> argparse.Namespace:
    own = CHECKOUT / ".venv" / "bin" / "python"
    parser = argparse.ArgumentParser(description="Compare the service with other ways of doing the same.")
    parser.add_argument("part", nargs="?", default="all", choices=[*PARTS, "all"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=8, help="of each load at full throughput")
    parser.add_argument("--latency-seconds", type=float, default=10)
    parser.add_argument("--growth-orders", type=int, default=100_000, help="over which memory is watched; 0: don't")
    parser.add_argument("--finished", type=int, default=1_000_000, help="deliveries in the backlog's full database")
    parser.add_argument("--waiting", type=int, default=100_000, help="deliveries in the backlog's waiting databases")
    parser.add_argument("--only", default="", help="contenders, by their names or parts of them, with commas")
    parser.add_argument("--picture", type=Path, help="an SVG file for the picture of 'engines'")
    parser.add_argument("--out", type=Path, help="a file for the raw numbers, as JSON")
    default = str(own) if own.exists() else os.environ.get("SERVICE_PYTHON", "")
    parser.add_argument("--service-python", default=default, help="has the service's requirements ($SERVICE_PYTHON)")
    options = parser.parse_args()
    if not options.service_python:
        parser.error("there is no .venv in the checkout: run 'make run' once, or give --service-python")
    return options


def main() -> None:
    options = arguments()
    parts = list(PARTS) if options.part == "all" else [options.part]
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # like Ctrl-C: what was started is ended
    wanted = [word.strip() for word in options.only.split(",") if word.strip()]
    names = {each.name for each in CONTENDERS}
    chosen = [
        each
        for each in CONTENDERS
        if not wanted or any(word == each.name if word in names else word in each.name for word in wanted)
    ]
    try:
        program("wrk")
    except Missing:
        parts = [part for part in parts if part not in ("throughput", "memory", "scaling", "engines")]
        say("throughput, memory, scaling and engines are left out: there is no wrk (apt-get install wrk)")
    if set(parts) - {"backlog", "scaling", "engines"}:
        make_peers()
    facts = machine()
    sections: list[str] = []
    with TemporaryDirectory(prefix="bench-") as folder, sink(Path(folder)) as mails:
        bench = Bench(options, mails, chosen)
        try:
            for part in parts:
                sections += ["", *PARTS[part](bench)]
        finally:
            if options.out:
                options.out.write_text(json.dumps({"machine": facts, "rows": bench.rows}, indent=1) + "\n")
    print(
        f"{facts['when']}, {facts['commit']}, {facts['system']}, {facts['cores']} cores, "
        f"fsync {facts['fsync_ms']:.2f} ms. Medians of {options.rounds} rounds; in brackets the least and the most."
    )
    print("\n".join(sections))


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("interrupted; everything that was started has been ended")
