"""What run.py measured, as Markdown tables, and as pictures: see README.md.

    python3 benchmarks/tables.py [FILE ...]           prints the tables of these numbers; of benchmarks/numbers*.json
    python3 benchmarks/tables.py [FILE ...] --docs    writes them, and the pictures, into docs/

Each part is of one file: run.py may have measured parts in runs of their own. In docs a table stands between
``<!-- numbers: NAME -->`` and ``<!-- end -->``; what is between is replaced.
"""

import argparse
import json
import re
import statistics
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pictures
from contenders import BEFORE, CONTENDERS, DEFAULTS, EQUAL, Contender
from engines import CASES
from processes import CHECKOUT, HERE

Row = dict[str, Any]
Value = Callable[[Row], float | None]
IN_REQUEST, PROCRASTINATE = "blinker, in the request", "procrastinate (postgresql)"


class Numbers:
    """The rows of a run, or of several that measured different parts."""

    def __init__(self, *runs: dict[str, Any]) -> None:
        self.machines: list[Row] = [run["machine"] for run in runs]
        self.rows: list[Row] = [row for run in runs for row in run["rows"]]

    def of(self, what: str, name: str) -> list[Row]:
        return [row for row in self.rows if row["what"] == what and row["name"] == name and "failed" not in row]

    def values(self, what: str, name: str, value: Value | str) -> list[float]:
        """One of each round."""
        read = (lambda row: row.get(value)) if isinstance(value, str) else value
        return [found for row in self.of(what, name) if (found := read(row)) is not None]

    def median(self, what: str, name: str, value: Value | str) -> float:
        return statistics.median(self.values(what, name, value))

    def against(self, what: str, base: str, key: str) -> Value:
        """A row's figure as a multiple of another contender's in the same round."""
        others = {row["round"]: row for row in self.of(what, base)}
        return lambda row: row[key] / others[row["round"]][key] if row["round"] in others else None

    def line(self, what: str, name: str, columns: Iterable[tuple[str, Value | str]]) -> list[str]:
        return [spread(self.values(what, name, value), form) for form, value in columns]

    def has(self, what: str) -> bool:
        return any(row["what"] == what for row in self.rows)


# Against others

SERVICE = {"sqlite": "this service", "postgresql": "this service (postgresql)"}
"""By the database that it stores orders in."""
GRANIAN = "this service (granian)"


def comparison(numbers: Numbers, at: str) -> list[str]:
    lines = against_others(numbers, [each for each in CONTENDERS if at in each.tables])
    return [f"### Against others, at {'their ' if at == DEFAULTS else ''}{at}", "", *lines]


def everybody(numbers: Numbers) -> list[str]:
    """Both comparisons in one table."""
    return ["### Against others", "", *against_others(numbers, CONTENDERS, "at")]


def against_others(numbers: Numbers, contenders: Iterable[Contender], at: str = "") -> list[str]:
    titles = ["", at, "POST/s", "of empty", "p99 ms", "mails/s", "of this service's", "POST to mail p50 ms", "p99 ms"]
    titles += ["CPU ms an order", "PSS MiB", "errors", "unfinished", "what a crash costs"]
    skipped = {row["name"]: row["skipped"] for row in numbers.rows if "skipped" in row}
    lines = []
    for each in contenders:
        both = "both" if len(each.tables) > 1 else each.tables[0]
        head = [each.name, both if at else ""]
        if each.name in skipped:
            lines.append([*head, skipped[each.name], *[""] * (len(titles) - 3)])
        elif numbers.of("throughput", each.name) or numbers.of("latency", each.name):
            lines.append([*head, *compared(numbers, each), each.durability])
    return markdown(titles, lines)


def compared(numbers: Numbers, contender: Contender) -> list[str]:
    share = numbers.against("throughput", SERVICE[contender.database], "mails_per_second")
    load: list[tuple[str, Value | str]] = [("{:.0f}", "per_second"), ("{:.2f}", "share"), ("{:.0f}", "p99_ms")]
    load += [("{:.0f}", "mails_per_second"), ("{:.2f}", share)] if contender.mails else [("", "none")] * 2
    rest = [("{:.2f}", "cpu_ms"), ("{:.0f}", "pss"), ("{:.0f}", "errors"), ("{:.0f}", "unfinished")]
    return [
        *numbers.line("throughput", contender.name, load),
        *numbers.line("latency", contender.name, [("{:.1f}", "p50_ms"), ("{:.1f}", "p99_ms")]),
        *numbers.line("throughput", contender.name, rest),
    ]


def targets(numbers: Numbers) -> list[str]:
    """The service's figures against the best peer's, from the same rounds."""
    lines = []

    def line(words: str, what: str, name: str, value: Value | str, form: str) -> None:
        if found := numbers.values(what, name, value):
            lines.append([words, spread(found, form)])

    for table in (DEFAULTS, EQUAL):
        if best := best_peer(numbers, table):
            times, words = (
                numbers.against("throughput", best, "mails_per_second"),
                f"the best peer's at {table}: {best}",
            )
            line(f"mails a second end to end, of {words}", "throughput", SERVICE["sqlite"], times, "{:.1f}")
    for name, by in ((SERVICE["sqlite"], "gunicorn"), (GRANIAN, "granian")):
        line(
            f"POSTs a second by {by}, of an empty route's by gunicorn at its best",
            "throughput",
            name,
            "share",
            "{:.2f}",
        )
        line(f"p99 of a POST by {by} less that route's, ms", "throughput", name, "p99_over_empty_ms", "{:.0f}")
    for key in ("p50_ms", "p99_ms"):
        times = numbers.against("latency", IN_REQUEST, key)
        line(f"POST to mail, {key[:3]}, of the in-request peer's", "latency", SERVICE["sqlite"], times, "{:.2f}")
    for key, word in (("per_second", "POSTs"), ("mails_per_second", "mails end to end")):
        times = numbers.against("throughput", PROCRASTINATE, key)
        line(f"{word} a second on PostgreSQL, of Procrastinate's", "throughput", SERVICE["postgresql"], times, "{:.1f}")
    for key, word in (("per_second", "POSTs"), ("mails_per_second", "mails end to end"), ("cpu_ms", "processor")):
        times = numbers.against("throughput", BEFORE, key)
        line(f"{word}, of the service's before", "throughput", SERVICE["sqlite"], times, "{:.2f}")
    return ["### In one line each", "", *markdown(["", "measured"], lines)]


def best_peer(numbers: Numbers, at: str) -> str | None:
    """Who sends most mails a second, on whatever it stores things in."""
    sent = {
        each.name: numbers.values("throughput", each.name, "mails_per_second")
        for each in CONTENDERS
        if at in each.tables and not each.is_service
    }
    return max((name for name in sent if sent[name]), key=lambda name: statistics.median(sent[name]), default=None)


# The service alone


def memory(numbers: Numbers) -> list[str]:
    columns = [
        ("{:.0f}", "pss"),
        ("{:.0f}", "pss_anon"),
        ("{:.0f}", "rss"),
        ("{:.0f}", "server_pss"),
        ("{:.2f}", "start_seconds"),
    ]
    titles = ["", "PSS MiB", "of it no file's", "RSS MiB", "its server's PSS MiB", "start to first answer s"]
    names = [each.name for each in CONTENDERS if numbers.of("memory", each.name)]
    lines = [[name, *numbers.line("memory", name, columns)] for name in names]
    return ["### Memory at rest after the first order, all processes", "", *markdown(titles, lines)]


def growth(numbers: Numbers) -> list[str]:
    titles = {"orders in the file": "orders", "MiB": "file_mib", "POST/s": "per_second", "of empty": "share"}
    titles |= {"mails/s": "mails_per_second", "CPU ms an order": "cpu_ms", "RSS MiB": "rss"}
    forms = ("{:,.0f}", "{:.0f}", "{:.0f}", "{:.2f}", "{:.0f}", "{:.2f}", "{:.0f}")
    lines = [
        [form.format(row[key]) for form, key in zip(forms, titles.values(), strict=True)]
        for row in numbers.of("growth", "this service")
    ]
    return ["### Growth under full load", "", *markdown([*titles], lines)]


STEPS = ("post", "claim", "settle")


def backlog(numbers: Numbers) -> list[str]:
    names = [row["name"] for row in numbers.rows if row["what"] == "backlog, filled"]
    columns: list[tuple[str, Value | str]] = []
    for step in STEPS:
        columns.append(("{:.2f}", lambda row, step=step: 1000 * row[step]))
        columns.append(("{:.2f}", numbers.against("backlog", names[0], step)))
    lines = [[name, *numbers.line("backlog", name, columns)] for name in names]
    titles = [title for step in STEPS for title in (f"{step} ms", "of the first")]
    scans = [scan for row in numbers.rows if row["what"] == "plans" for scan in row["scans"]]
    return [
        "### Backlog: CPU time of an order's POST, and of a delivery's claim and settle",
        "",
        *markdown(["in the database", *titles], lines),
        "",
        "Statements that scan a table: " + ("; ".join(scans) or "none."),
    ]


def engines(numbers: Numbers) -> list[str]:
    first = next(iter(CASES))
    columns: list[tuple[str, Value | str]] = [
        ("{:.0f}", "per_second"),
        ("{:.2f}", numbers.against("engines", first, "per_second")),
        ("{:.0f}", "p99_ms"),
        ("{:.0f}", "mails_per_second"),
        ("{:.2f}", numbers.against("engines", first, "mails_per_second")),
        ("{:.1f}", "cpu_ms"),
        ("{:.0f}", "mails_alone"),
    ]
    lines = []
    for name in CASES:
        one = re.sub(r"\d+ (\w+?)s?$", r"1 \1", name)
        more = [
            ("{:.2f}", numbers.against("engines", one, "mails_alone")),
            ("{:.2f}", "busy_alone"),
            ("{:.0f}", "slow_mails"),
            ("{:.2f}", numbers.against("engines", one, "slow_mails")),
            ("{:.0f}", "unfinished"),
        ]
        if numbers.of("engines", name):
            lines.append([name, *numbers.line("engines", name, [*columns, *more])])
    titles = ["", "POST/s", "of SQLite's", "p99 ms", "mails/s end to end", "of SQLite's", "CPU ms an order"]
    titles += [
        "a backlog's mails/s",
        "of one's",
        "cores busy",
        "mails/s where each takes 30 ms",
        "of one's",
        "unfinished",
    ]
    return ["### Engines: 16 connections, then until the last mail; then a backlog alone", "", *markdown(titles, lines)]


def model(numbers: Numbers) -> list[str]:
    """``X = C / p``, ``Y = 1 / d``, ``Z = 1 / (1/X + 1/Y)``, beside what was measured."""
    cores = numbers.machines[0]["cores"]
    lines = []
    for name in [each for each in CASES if each.endswith(" 1 dispatcher")]:
        rows = numbers.of("engines", name)
        if rows:
            p, d, x, y, z = (
                statistics.median(row[key] for row in rows)
                for key in ("post_cpu_ms", "cpu_ms_alone", "posts_alone", "mails_alone", "mails_per_second")
            )
            predicted = 1000 * cores / p, 1000 / d, 1 / (1 / x + 1 / y)
            pairs = [f"{value:,.0f}, measured {found:,.0f}" for value, found in zip(predicted, (x, y, z), strict=True)]
            lines.append([name, f"{p:.2f}", f"{d:.2f}", *pairs])
    return ["### The model", "", *markdown(["", "p ms", "d ms", "X a second", "Y a second", "Z a second"], lines)]


def purge(numbers: Numbers) -> list[str]:
    rows = [row for row in numbers.rows if row["what"] == "purge" and "failed" not in row]
    figures = [[name, f"{value:,.0f}"] for row in rows for name, value in row["figures"].items()]
    return ["### The broker purged while orders come", "", *markdown(["", ""], figures)]


WORKS = {"POST": "a POST", "deliveries": "its deliveries"}
COUNTS = {
    "statements": ("statements; of deliveries, one order's of twenty", "{:.1f}"),
    "commits": ("commits, each with an fsync; the same", "{:.2f}"),
    "instructions": ("instructions without the kernel's, of an empty route's", "{:.2f}"),
}


def shares(numbers: Numbers) -> list[str]:
    lines = [
        [part, *(spread([row["parts"].get(part, 0) for row in numbers.of("shares", name)], "{:.2f}") for name in WORKS)]
        for part in parts(numbers)
    ]
    sums = [spread([sum(row["parts"].values()) for row in numbers.of("shares", name)], "{:.2f}") for name in WORKS]
    counted = [
        [words, *(spread(numbers.values("counts", name, key), form) for name in WORKS)]
        for key, (words, form) in COUNTS.items()
    ]
    titles = ["processor time, of an empty route's", *WORKS.values()]
    return ["### Where an order's time goes", "", *markdown(titles, [*lines, ["**together**", *sums], *counted])]


def parts(numbers: Numbers) -> list[str]:
    seen = list(dict.fromkeys(part for row in numbers.rows if row["what"] == "shares" for part in row["parts"]))
    return sorted(seen, key="the rest".__eq__)


TABLES: dict[str, tuple[str, Callable[[Numbers], list[str]]]] = {
    "defaults": ("throughput latency", lambda numbers: comparison(numbers, DEFAULTS)),
    "others": ("throughput latency", everybody),
    "equal": ("throughput latency", lambda numbers: comparison(numbers, EQUAL)),
    "targets": ("throughput", targets),
    "shares": ("shares", shares),
    "memory": ("memory", memory),
    "growth": ("growth", growth),
    "backlog": ("backlog", backlog),
    "engines": ("engines", engines),
    "model": ("engines", model),
    "purge": ("purge", purge),
}
"""By name: the parts of run.py that it needs, and what writes it."""


def table(numbers: Numbers, name: str) -> list[str]:
    """Its heading, an empty line, and the table. Nothing where it was not measured."""
    wanted, write = TABLES[name]
    return write(numbers) if any(numbers.has(part) for part in wanted.split()) else []


def words(numbers: Numbers) -> list[str]:
    """What was run, when, and on what."""
    runs = [
        f"- `{facts['command']}`: {facts['when']}, {facts['commit']}, {facts['system']}, {facts['cores']} cores, "
        f"fsync {facts['fsync_ms']:.2f} ms, rounds: {facts['rounds']}"
        for facts in numbers.machines
    ]
    return [*runs, "", "Given are medians of the rounds; in brackets the least and the most."]


# Pictures


def draw(numbers: Numbers) -> dict[str, str]:
    """SVGs by the name of their file."""
    drawn = {}
    if numbers.has("shares"):
        values = {
            words: {
                part: statistics.median(row["parts"].get(part, 0) for row in numbers.of("shares", name))
                for part in parts(numbers)
            }
            for name, words in WORKS.items()
        }
        notes = {
            words: "{:.1f} statements and {:.2f} commits, each with an fsync".format(
                *(numbers.median("counts", name, key) for key in ("statements", "commits"))
            )
            for name, words in WORKS.items()
        }
        label = "processor time, an empty Flask route's being 1"
        drawn["performance-order.svg"] = pictures.stacks(values, notes, label)
    if numbers.has("growth") or numbers.has("backlog"):
        drawn["performance-growth.svg"] = pictures.lines(
            grown(numbers), "orders in the database", "of what it is in the smallest", from_zero=True
        )
    if cases := [name for name in CASES if numbers.of("engines", name)]:
        keys = {"per_second": "POSTs a second", "mails_per_second": "mails a second, end to end"}
        keys |= {"slow_mails": "mails a second where each takes 30 ms"}
        rates = {name: [numbers.median("engines", name, key) for key in keys] for name in cases}
        drawn["performance-dispatchers.svg"] = pictures.bars(rates, tuple(keys.values()))
    return drawn


def grown(numbers: Numbers) -> dict[str, list[tuple[float, float]]]:
    """By what is measured: orders in the database, and the figure as a multiple of that in the smallest."""
    series = {}
    sized = {
        row["name"]: row["orders"] for row in numbers.rows if row["what"] == "backlog, filled" and not row["waiting"]
    }
    if sized:
        base = next(iter(sized))
        for step in STEPS:
            times = numbers.against("backlog", base, step)
            points = [(max(1, orders), numbers.median("backlog", name, times)) for name, orders in sized.items()]
            series[f"processor time of a {step}"] = points
    rows = numbers.of("growth", "this service")
    if rows:
        series["POSTs a second under full load, of an empty route's"] = [
            (row["orders"], row["share"] / rows[0]["share"]) for row in rows
        ]
    return series


# Words


def spread(values: list[float], form: str) -> str:
    """The median, and in brackets the least and the most where they read differently."""
    if not values:
        return "–"
    least, middle, most = (form.format(each) for each in (min(values), statistics.median(values), max(values)))
    return middle if least == most else f"{middle} ({least}–{most})"


def markdown(titles: list[str], lines: Iterable[list[str]]) -> list[str]:
    """A column that is empty in every line is left out."""
    lines = [*lines]
    kept = [n for n, _ in enumerate(titles) if n == 0 or any(line[n] not in ("", "–") for line in lines)]
    rows = [[line[n] for n in kept] for line in (titles, ["---"] * len(titles), *lines)]
    return ["| " + " | ".join(row) + " |" for row in rows]


def printed(numbers: Numbers) -> str:
    found = (table(numbers, name) for name in TABLES if name != "others")  # which says the same as two others
    return "\n".join([*words(numbers), *(line for lines in found if lines for line in ("", *lines))])


def publish(numbers: Numbers) -> None:
    """Every marked table in docs, and the pictures; what was not measured stays."""
    for name, picture in draw(numbers).items():
        (CHECKOUT / "docs" / name).write_text(picture)
    for page in (CHECKOUT / "docs").glob("*.md"):
        page.write_text(re.sub(MARKED, lambda found: marked(numbers, found), page.read_text(), flags=re.DOTALL))


MARKED = r"<!-- numbers: (\w+) -->\n(.*?)<!-- end -->"


def marked(numbers: Numbers, found: "re.Match[str]") -> str:
    name = found[1]
    body = words(numbers) if name == "machine" else table(numbers, name)[2:]
    return f"<!-- numbers: {name} -->\n" + ("\n".join([*body, ""]) if body else found[2]) + "<!-- end -->"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path, default=sorted(HERE.glob("numbers*.json")))
    parser.add_argument("--docs", action="store_true")
    options = parser.parse_args()
    numbers = Numbers(*(json.loads(file.read_text()) for file in options.files))
    if options.docs:
        publish(numbers)
    else:
        print(printed(numbers))


if __name__ == "__main__":
    main()
