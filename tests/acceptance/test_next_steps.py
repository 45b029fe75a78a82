"""The README's next steps, from the welcome on, carried out as they are written, in a copy of the checkout."""

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from config import CHECKOUT
from tests.support.recipe import change_tree, copy_of_checkout, sections, steps
from tests.support.service import LIMIT, Service, environment, free_port, wait_until

SECTIONS = sections("README.md", "### ")
BEFORE, LAST = "Keep a table of your own", "Hand it the orders of before"
PROGRAMS = ("curl", "sqlite3", "bash")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(240),
    pytest.mark.skipif(not all(map(shutil.which, PROGRAMS)), reason=f"one of {', '.join(PROGRAMS)} is not there"),
]


class Newcomer:
    """Reads the README, and does what it says: on a port of the test's, and with the test's interpreter."""

    def __init__(self, tree: Path) -> None:
        self.tree = tree
        self.service = Service(tree, port=free_port(), web_concurrency=1)
        self.service.cwd = tree
        self._done: list[str] = []
        self._programs = tree / "programs"
        self._programs.mkdir()
        flask = self._programs / "flask"
        flask.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m flask "$@"\n')
        flask.chmod(0o755)

    def place_the_first_order(self) -> None:
        """As the greeting says."""
        (curl,) = set(re.findall(r"^  (curl -i .*create_order.*)$", (CHECKOUT / "README.md").read_text(), re.MULTILINE))
        self._type("make run")
        self._type_until(curl, ["HTTP/1.1 201 CREATED"])

    def read_to_the_end_of(self, title: str) -> None:
        if not self._done:
            self.place_the_first_order()
        titles = list(SECTIONS)
        for each in titles[len(self._done) : titles.index(title) + 1]:
            self._carry_out(SECTIONS[each])
            self._done.append(each)

    def _carry_out(self, section: str) -> None:
        for step in steps(section):
            if step.kind == "console":
                for command, shown in commands(step.text):
                    self._type_until(command, shown)
            elif step.kind:
                change_tree(self.tree, step)
            else:
                for line in step.text.splitlines():
                    self._wait_for_log(line)

    def _type(self, command: str) -> str:
        if command == "make run":
            if not self.service.ended:
                self.service.stop()  # which Ctrl-C does
            self.service.start()
            return ""
        done = subprocess.run(
            ["bash", "-c", command.replace(":8000", f":{self.service.port}")],
            cwd=self.tree,
            env=self._environment(),
            input="y\n",
            capture_output=True,
            text=True,
            timeout=LIMIT,
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        return done.stdout

    def _type_until(self, command: str, shown: list[str]) -> None:
        """What only looks is typed again until it prints these lines: what follows from an order takes a moment."""
        looks = command.startswith(("flask orders show", "sqlite3"))
        printed = self._type(command)

        def is_shown() -> bool:
            nonlocal printed
            found = all(re.search(f"^{pattern(line)}$", printed, re.MULTILINE) for line in shown)
            if not found and looks:
                printed = self._type(command)
            return found or not looks

        wait_until(is_shown, f"{shown} from {command}")
        for line in shown:
            assert re.search(f"^{pattern(line)}$", printed, re.MULTILINE), f"{command}\n{printed}"

    def _wait_for_log(self, line: str) -> None:
        wait_until(lambda: re.search(pattern(line), self.service.log), f"{line!r} in the log")

    def _environment(self) -> dict[str, str]:
        given = environment(**self.service.settings)
        return given | {"PATH": f"{self._programs}:{given['PATH']}"}


def commands(block: str) -> Iterator[tuple[str, list[str]]]:
    """Each command of a console, and the lines that it prints."""
    for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
        command, *shown = part.splitlines()
        yield command, shown


def pattern(line: str) -> str:
    """A line as the README shows it, where an ellipsis is what differs each time, and lines are narrower."""
    return re.sub(r"(?:\\ ){2,}", " +", ".*".join(map(re.escape, line.split("…"))))


@pytest.fixture(scope="module")
def newcomer() -> Iterator[Newcomer]:
    with tempfile.TemporaryDirectory(prefix="svc-") as folder:
        reader = Newcomer(copy_of_checkout(Path(folder) / "tree"))
        yield reader
        reader.service.close()
        print(reader.service.log)


def test_a_receiver_an_event_and_a_table_of_ones_own_are_added_as_written(newcomer: Newcomer) -> None:
    newcomer.read_to_the_end_of(BEFORE)


def test_a_new_receiver_is_handed_the_orders_of_before_as_written(newcomer: Newcomer) -> None:
    newcomer.read_to_the_end_of(LAST)


def test_both_languages_say_the_same_steps() -> None:
    english, chinese = (
        [[(step.kind, step.text) for step in steps(section)] for section in sections(readme, "### ").values()]
        for readme in ("README.md", "README.zh.md")
    )
    assert english == chinese
