"""The modules' arrows point one way."""

import ast
import re
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ALLOWED = {
    "states": set(),
    "text": set(),
    "version": set(),
    "files": set(),
    "clock": set(),
    "retry": set(),
    "http": {"errors"},
    "current": {"bus", "db"},
    "trace_context": set(),
    "translatable": set(),
    "errors": {"states"},
    "callables": set(),
    "cloud_events": set(),
    "signal": {"callables", "errors"},
    "events": {"signal"},
    "answers": {"signal"},
    "affinity": set(),
    "addresses": {"errors"},
    "db": {"clock", "errors", "files"},
    "bus": {"answers", "clock", "db", "errors", "retry", "signal", "states", "text", "translatable", "version"},
    "engine": {"bus", "clock", "db", "errors", "signal", "states"},
    "orders": {"addresses", "bus", "db", "errors", "events", "signal", "states"},
    "mail": {"addresses", "errors", "files", "text"},
    "resend": {"bus", "clock", "db", "events", "orders", "signal"},
    "receivers": {"addresses", "answers", "db", "events", "mail", "orders", "signal", "states"},
    "api": {
        "bus",
        "clients",
        "clock",
        "cloud_events",
        "current",
        "db",
        "doctor",
        "errors",
        "events",
        "fields",
        "http",
        "observe",
        "orders",
        "refusals",
        "request_models",
        "resend",
        "signal",
        "states",
        "text",
        "trace_context",
        "validation",
        "version",
    },
    "clients": set(),
    "fields": {"addresses", "orders"},
    "request_models": {"fields", "orders", "states", "text"},
    "refusals": set(),
    "validation": {"http", "refusals", "text"},
    "console": {
        "addresses",
        "fields",
        *(
            "bus",
            "clients",
            "clock",
            "cloud_events",
            "current",
            "db",
            "doctor",
            "errors",
            "events",
            "http",
            "mail",
            "orders",
        ),
        *("request_models", "resend", "retry", "signal", "states", "text", "translatable", "validation"),
    },
    "observe": {"bus", "errors", "http", "signal", "states", "text", "trace_context", "version"},
    "serving": {"affinity", "db", "engine", "errors", "http", "observe", "streams", "text"},
    "streams": set(),
    "docs": set(),
    "doctor": {"bus", "db", "errors", "mail", "states", "translatable"},
    "cli": {
        *(
            "addresses",
            "affinity",
            "bus",
            "current",
            "db",
            "doctor",
            "engine",
            "errors",
            "observe",
            "orders",
            "resend",
            "retry",
            "states",
            "text",
        )
    },
}
"""What each part may import of the application. Nothing imports api, cli or receivers but create_app."""

TRANSACTIONS_OF_THEIR_OWN = {
    "app.db.database": "transact() is there",
    "app.db.transaction": "a session learns there of the transaction that it is in",
    "app.db.move": "it fills a database that nobody uses yet, in one transaction",
    "app.db.prepared": "it asks the engine how SQL is spelt",
    "app.db.sqlite": "the engine is made there; a migration changes tables, and must be alone",
    "app.db.postgresql": "the same; and NOTIFY is heard once it is committed, and writes nothing",
}


def modules() -> dict[str, Path]:
    return {
        ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file
        for file in (ROOT / "app").rglob("*.py")
    }


def imports(file: Path, name: str) -> set[str]:
    """The application's modules that a file imports, wherever in it the import stands."""
    known = modules()
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {full if (full := f"{node.module}.{alias.name}") in known else node.module for alias in node.names}
    return {module for module in found if module in known and module not in ("app", name)}


def part(module: str) -> str:
    return module.split(".")[1]


@pytest.mark.parametrize("name", sorted(name for name in modules() if name != "app"))
def test_a_module_imports_only_what_its_part_may(name: str) -> None:
    parts = {part(imported) for imported in imports(modules()[name], name)} - {part(name)}
    assert parts <= ALLOWED[part(name)]


def test_no_import_goes_in_a_circle() -> None:
    graph = {name: imports(file, name) - {name} for name, file in modules().items() if name != "app"}
    TopologicalSorter(graph).prepare()  # raises CycleError


def test_every_part_has_its_line() -> None:
    assert {part(name) for name in modules() if name != "app"} == set(ALLOWED)


def test_all_writes_go_through_transact() -> None:
    """Which retries them, bounds how long they wait, and tells what was committed. Mail, which has no database, says
    begin() to a server."""
    opens = {
        name
        for name, file in modules().items()
        if name == "app" or "db" in {part(name)} | ALLOWED[part(name)]
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Attribute) and node.attr in ("engine", "begin", "commit")
    }
    assert opens == set(TRANSACTIONS_OF_THEIR_OWN)


def test_only_config_reads_the_environment() -> None:
    files = [*(ROOT / "app").rglob("*.py"), *(ROOT / name for name in ("wsgi.py", "gunicorn.conf.py", "celery_app.py"))]
    assert [file.name for file in files if reads_environment(ast.parse(file.read_text()))] == []


def reads_environment(tree: ast.Module) -> bool:
    """Code that does so; the samples that the API shows are text."""
    return any(
        re.fullmatch(r"os\.(environ|getenv)", ast.unparse(node))
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
    )
