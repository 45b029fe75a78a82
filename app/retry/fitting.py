"""The program that fits: transitions as JSON on stdin, a table as JSON on stdout.

It runs in a process of its own, which lives for a second, so that no other process holds numpy's memory, nor waits for
its import. It imports app.retry alone, because the whole application takes ten times as long.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from app.retry.costs import Costs
from app.retry.table import Table

PROGRAM = (
    "import sys, types; app = types.ModuleType('app'); app.__path__ = [sys.argv[1]]; sys.modules['app'] = app; "
    "from app.retry import fitting; fitting.main()"
)
TIMEOUT_SECONDS = 120.0
NICENESS = 10
"""Orders come first."""


class FitFailed(Exception):
    """The process that fits ended without a table."""


def fit_apart(
    seen: Mapping[tuple[str, str, str], tuple[list[float], list[float], list[bool], list[float]]],
    now: float,
    costs: Costs,
    previous: Table | None,
    lone: Mapping[str, Mapping[str, tuple[float, float]]],
) -> Table:
    """``fit.fit`` in a process of its own; ``seen`` has a column of each field of ``fit.Transitions``.

    Raises FitFailed.
    """
    given = {
        "seen": [[*key, *columns] for key, columns in seen.items()],
        "now": now,
        "costs": asdict(costs),
        "previous": previous.to_json() if previous else None,
        "lone": lone,
    }
    command = [sys.executable, "-c", PROGRAM, str(Path(__file__).resolve().parents[1])]
    try:
        done = subprocess.run(
            command, input=json.dumps(given), capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise FitFailed(f"{type(error).__name__}: {error}") from error
    if done.returncode:
        raise FitFailed((done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1])
    table = Table.from_json(done.stdout)
    if table is None:
        raise FitFailed("its table is in another format")
    return table


def main() -> None:
    os.nice(NICENESS)
    from app.retry.fit import Transitions, fit  # numpy

    given: dict[str, Any] = json.load(sys.stdin)
    seen = {(receiver, scope, kind): Transitions(*columns) for receiver, scope, kind, *columns in given["seen"]}
    previous = Table.from_json(given["previous"]) if given["previous"] else None
    table = fit(seen, given["now"], costs=Costs(**given["costs"]), previous=previous, lone=given["lone"])
    sys.stdout.write(table.to_json())
