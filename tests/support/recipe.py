"""Documents as recipes: new files, changes to files, and commands, as they are written, for a copy of the checkout."""

import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from config import CHECKOUT

LEFT_OUT = shutil.ignore_patterns(".*", "instance", "__pycache__")
STEP = re.compile(r"\]\((?P<link>[\w./]+)\)|^```(?P<kind>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Step:
    """A block of code. ``file`` is the one that is linked last before it."""

    kind: str
    text: str
    file: str


def sections(document: str, heading: str) -> dict[str, str]:
    """The document's text under each heading that begins with ``heading``, by the rest of that line."""
    text = (CHECKOUT / document).read_text()
    return dict(re.findall(rf"^{heading}([^\n]+)\n(.*?)(?=^##|\Z)", text, re.MULTILINE | re.DOTALL))


def steps(recipe: str) -> Iterator[Step]:
    file = ""
    for found in STEP.finditer(recipe):
        if found["link"]:
            file = found["link"]
        else:
            yield Step(found["kind"], found["text"], file)


def copy_of_checkout(folder: Path) -> Path:
    return shutil.copytree(CHECKOUT, folder, ignore=LEFT_OUT)


def change_tree(tree: Path, step: Step) -> None:
    """Do what a block of Python, a file's name in its first line, or a diff says."""
    if step.kind == "python":
        name, _, text = step.text.partition("\n")
        (tree / name.removeprefix("# ")).write_text(text)
    else:
        _apply(tree / step.file, step.text)


def _apply(file: Path, diff: str) -> None:
    """Each line of the diff begins with a blank, ``-`` or ``+``; what stands there before it must stand there once."""
    before = "".join(line[1:] for line in diff.splitlines(keepends=True) if line[0] in " -")
    after = "".join(line[1:] for line in diff.splitlines(keepends=True) if line[0] in " +")
    text = file.read_text()
    assert text.count(before) == 1, f"{file.name}:\n{before}"
    file.write_text(text.replace(before, after))
