"""benchmarks/tables.py: ratios are of one round, and what was not measured stays as it is in docs."""

import re
import sys

from config import CHECKOUT

sys.path.append(str(CHECKOUT / "benchmarks"))
import tables

MACHINE = {"command": "run", "when": "", "commit": "", "system": "", "cores": 2, "fsync_ms": 1.0, "rounds": 2}


def load(name: str, number: int, mails: float) -> dict[str, object]:
    figures = dict.fromkeys(("per_second", "share", "p99_ms", "cpu_ms", "pss", "errors", "unfinished"), 1.0)
    return {"what": "throughput", "name": name, "round": number, "mails_per_second": mails} | figures


NUMBERS = tables.Numbers(
    {
        "machine": MACHINE,
        "rows": [
            *(load("this service", number, mails) for number, mails in ((0, 100.0), (1, 1000.0))),
            *(load("unhinged (sqlite)", number, mails) for number, mails in ((0, 50.0), (1, 250.0))),
            {"what": "throughput", "name": "dbos (sqlite)", "round": 0, "failed": "it ended"},
        ],
    }
)


def test_a_ratio_is_of_the_same_round() -> None:
    assert line(tables.table(NUMBERS, "equal"), "unhinged")[4:6] == ["150 (50–250)", "0.38 (0.25–0.50)"]
    assert "3.0 (2.0–4.0)" in "\n".join(tables.table(NUMBERS, "targets"))


def test_a_contender_that_failed_has_no_line() -> None:
    assert not any("dbos" in each for each in tables.table(NUMBERS, "equal"))


def test_what_was_not_measured_stays_in_docs() -> None:
    page = "<!-- numbers: purge -->\nas it was\n<!-- end --> and <!-- numbers: targets -->\nold\n<!-- end -->"
    new = re.sub(tables.MARKED, lambda found: tables.marked(NUMBERS, found), page, flags=re.DOTALL)
    assert "purge -->\nas it was\n<!-- end -->" in new
    assert "old" not in new
    assert "unhinged" in new


def line(table: list[str], name: str) -> list[str]:
    return next([cell.strip() for cell in each.split("|")[1:]] for each in table if name in each)
