"""The recipes of CONTRIBUTING.md, carried out as they are written, in a copy of the tree."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from config import CHECKOUT

RECIPES = dict(
    re.findall(r"^## (Add [^\n]+)\n(.*?)(?=^## )", (CHECKOUT / "CONTRIBUTING.md").read_text(), re.MULTILINE | re.DOTALL)
)
STEP = re.compile(r"\]\((?P<link>[\w./]+)\)|^```(?P<kind>\w+)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
LEFT_OUT = shutil.ignore_patterns(".*", "instance", "__pycache__")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return shutil.copytree(CHECKOUT, tmp_path / "tree", ignore=LEFT_OUT)


@pytest.mark.parametrize("title", RECIPES)
def test_a_recipe_works_as_it_is_written(title: str, tree: Path) -> None:
    assert carry_out(RECIPES[title], tree) >= {"diff", "console"}
    run(tree, sys.executable, "-m", "ruff", "check", "--no-cache")
    run(tree, sys.executable, "-m", "ruff", "format", "--check", "--no-cache")


def carry_out(recipe: str, tree: Path) -> set[str]:
    """Make new files, change the file that was last linked, run commands. Returns the kinds of steps."""
    kinds, file = set(), ""
    for step in STEP.finditer(recipe):
        if step["link"]:
            file = step["link"]
            continue
        kinds.add(step["kind"])
        match step["kind"]:
            case "python":
                new = tree / step["text"].partition("\n")[0].removeprefix("# ")
                assert not new.exists()
                new.write_text(step["text"].partition("\n")[2])
            case "diff":
                change(tree / file, step["text"])
            case "console":
                for line in step["text"].splitlines():
                    run(tree, *command(line.removeprefix("$ ")))
    return kinds


def change(file: Path, diff: str) -> None:
    """Each line of the diff begins with a blank, ``-`` or ``+``; what stands there before it must stand there once."""
    before = "".join(line[1:] for line in diff.splitlines(keepends=True) if line[0] in " -")
    after = "".join(line[1:] for line in diff.splitlines(keepends=True) if line[0] in " +")
    text = file.read_text()
    assert text.count(before) == 1, f"{file.name}:\n{before}"
    file.write_text(text.replace(before, after))


def command(line: str) -> list[str]:
    """As ``make`` and the environment's programs run it, with this test's interpreter in place of .venv's."""
    words = shlex.split(line)
    if words[:2] == ["make", "test"]:
        return [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", words[2].removeprefix("ARGS=")]
    assert words[0] == "flask"
    return [sys.executable, "-m", *words]


def run(tree: Path, *words: str) -> None:
    inherited = {name: value for name, value in os.environ.items() if name != "TEST_POSTGRES_URL"}
    done = subprocess.run(words, cwd=tree, env=inherited, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout}{done.stderr}"
