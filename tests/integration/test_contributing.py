"""The recipes of CONTRIBUTING.md, carried out as they are written, in a copy of the tree."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.recipe import change_tree, copy_of_checkout, sections, steps

RECIPES = sections("CONTRIBUTING.md", "## Add ")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return copy_of_checkout(tmp_path / "tree")


@pytest.mark.parametrize("title", RECIPES)
def test_a_recipe_works_as_it_is_written(title: str, tree: Path) -> None:
    kinds = set()
    for step in steps(RECIPES[title]):
        kinds.add(step.kind)
        if step.kind == "console":
            for line in step.text.splitlines():
                carry_out(line.removeprefix("$ "), tree)
        else:
            change_tree(tree, step)
    assert kinds >= {"diff", "console"}
    run(tree, "ruff", "check", "--no-cache")
    run(tree, "ruff", "format", "--check", "--no-cache")


def carry_out(line: str, tree: Path) -> None:
    """As ``make`` and the environment's programs run it, with this test's interpreter in place of .venv's."""
    match shlex.split(line):
        case ["make", "test", arguments]:
            run(tree, "pytest", "-p", "no:cacheprovider", arguments.removeprefix("ARGS="))
        case ["make", "format"]:
            run(tree, "ruff", "check", "--fix-only", "--no-cache")
            run(tree, "ruff", "format", "--no-cache")
        case ["flask", *words]:
            run(tree, "flask", *words)
        case other:
            raise AssertionError(other)


def run(tree: Path, *words: str) -> None:
    inherited = {name: value for name, value in os.environ.items() if name != "TEST_POSTGRES_URL"}
    done = subprocess.run(
        [sys.executable, "-m", *words], cwd=tree, env=inherited, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout}{done.stderr}"
