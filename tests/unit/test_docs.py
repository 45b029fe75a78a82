"""What the documents say of the code is so: excerpts, links, and names of files and tests."""

import ast
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.version import VERSION
from config import CHECKOUT
from tests import pictures

DOCUMENTS = sorted(file.relative_to(CHECKOUT) for file in CHECKOUT.glob("[!.]*/**/*.md")) + sorted(
    file.relative_to(CHECKOUT) for file in CHECKOUT.glob("*.md")
)
TWINS = [("README.md", "README.zh.md"), ("docs/article.md", "docs/article.zh.md")]
LONGEST_EXCERPT = 10
"""Lines of code: an article's reader wants the idea, and has a link to the rest."""

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
DEFINED = re.compile(r"^ *(?:async )?def (test_\w+)", re.MULTILINE)
LOGS = ("log", "info", "warning", "error", "critical", "exception")
LINK = re.compile(r"\]\((?!\w+:)([^)#\s]*)(?:#([^)\s]+))?\)")


def text_of(document: Path | str) -> str:
    return (CHECKOUT / document).read_text()


def excerpts(document: Path | str) -> list[tuple[str, str]]:
    """(file, code) of each Python block, where the file is the last one linked before it.

    A block that begins with a comment that names a file shows a new file: it is no excerpt.
    """
    text = text_of(document)
    found = []
    for fence in FENCE.finditer(text):
        if fence[1] == "python" and not re.match(r"# \S+\.py\n", fence[2]):
            links = LINK.findall(text[: fence.start()].rpartition("```")[2])
            assert links, f"{document}: no file is linked before:\n{fence[2]}"
            found.append((links[-1][0], fence[2]))
    return found


def anchors(document: Path) -> set[str]:
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", text_of(document)), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=str)
def test_every_excerpt_is_in_the_file_that_is_named_before_it(document: Path) -> None:
    for link, code in excerpts(document):
        file = ((CHECKOUT / document).parent / link).read_text()
        assert any(f"\n{textwrap.indent(code, ' ' * depth)}" in f"\n{file}" for depth in (0, 4, 8)), f"{link}:\n{code}"


@pytest.mark.parametrize("document", ["docs/article.md", "docs/article.zh.md"])
def test_an_excerpt_of_the_article_is_short(document: str) -> None:
    found = excerpts(document)
    assert len(found) >= 10
    assert [code for _, code in found if len(code.splitlines()) > LONGEST_EXCERPT] == []


@pytest.mark.parametrize("english, chinese", TWINS)
def test_both_languages_show_the_same_code(english: str, chinese: str) -> None:
    assert excerpts(english) == excerpts(chinese)


@pytest.mark.parametrize("english, chinese", TWINS)
def test_both_languages_have_the_same_sections(english: str, chinese: str) -> None:
    levels = [re.findall(r"^(#+) ", FENCE.sub("", text_of(twin)), re.MULTILINE) for twin in (english, chinese)]
    assert levels[0] == levels[1]


@pytest.mark.parametrize("document", DOCUMENTS, ids=str)
def test_every_link_within_the_tree_leads_somewhere(document: Path) -> None:
    folder = (CHECKOUT / document).parent
    for target, anchor in LINK.findall(text_of(document)):
        file = (folder / target).resolve() if target else CHECKOUT / document
        assert file.exists(), f"{document} links {target}"
        assert not anchor or anchor in anchors(file), f"{document} links {target}#{anchor}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=str)
def test_every_module_that_is_named_exists(document: Path) -> None:
    named = re.findall(r"`((?:app|tests|benchmarks|deploy|docs|migrations)/[\w/.-]*\w)", text_of(document))
    assert [name for name in named if not (CHECKOUT / name).exists()] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=str)
def test_every_test_that_is_named_exists(document: Path) -> None:
    files = list((CHECKOUT / "tests").rglob("*.py"))
    tests = {file.stem for file in files} | {name for file in files for name in DEFINED.findall(file.read_text())}
    named = re.findall(r"\btest_[a-z0-9_]*[a-z0-9]\b", FENCE.sub("", text_of(document)))
    assert [name for name in named if name not in tests] == []


def logged(file: Path) -> Iterator[str]:
    """The words of the lines that the module logs, up to the first placeholder."""
    for call in ast.walk(ast.parse(file.read_text())):
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr in LOGS:
            texts = [word.value for word in call.args[:2] if isinstance(word, ast.Constant)]
            yield from (str(text).partition("%")[0].rstrip() for text in texts[:1])


def test_every_line_of_the_log_is_told_with_what_to_do() -> None:
    files = [*(CHECKOUT / "app").rglob("*.py"), CHECKOUT / "wsgi.py"]
    lines = {line for file in files for line in logged(file)} - {""}
    assert {"delivery dead", "answering 503:"} < lines
    page = text_of("docs/operations.md")
    assert [line for line in sorted(lines) if f"`{line}" not in page] == []


def test_the_newest_version_of_the_changelog_is_the_codes() -> None:
    headings = re.findall(r"^## (.+)$", text_of("CHANGELOG.md"), re.MULTILINE)
    assert [heading for heading in headings[:2] if heading != "Unreleased"][:1] == [VERSION]
    assert "Unreleased" not in headings[1:]


def test_the_tag_of_a_release_is_its_version() -> None:
    for document in ("CHANGELOG.md", "CONTRIBUTING.md"):
        assert f"`v{VERSION}`" in text_of(document) or f"git tag -a v{VERSION}`" in text_of(document)


def test_the_consoles_pictures_are_those_that_are_taken_and_each_is_shown() -> None:
    """python -m tests.pictures takes them."""
    tables = (pictures.SIGNED_OUT, pictures.DURING_THE_OUTAGE, pictures.AFTER_IT, pictures.BY_DEFAULT)
    taken = {f"{each.name}-{variant}.webp" for table in tables for each in table for variant in each.variants}
    assert {file.name for file in (CHECKOUT / "docs" / "console").iterdir()} == taken
    assert set(re.findall(r'"console/([^"]+)"', text_of("docs/console.md"))) == taken
