"""Fixtures for every layer. A test that takes ``shop`` runs on SQLite and on PostgreSQL."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest
from sqlalchemy import create_engine, text

from app.db import Base, Database, schema
from config import Settings
from tests.support import postgres
from tests.support.shop import Shop

# A busy machine is no fault of the code's, nor of the examples that it takes long to make up.
hypothesis.settings.register_profile("patient", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("patient")

for name in [name for name in os.environ if name.lower() in Settings.model_fields]:
    del os.environ[name]  # the developer's own settings are not the tests'

FIGURES = pytest.StashKey[list[str]]()


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty database file at the newest revision."""
    file = tmp_path_factory.mktemp("template") / "orders.db"
    database = Database(f"sqlite:///{file}")
    schema.upgrade(database)
    database.close()
    return file


@pytest.fixture
def sqlite_url(sqlite_template: Path, tmp_path: Path) -> str:
    (tmp_path / "instance").mkdir()
    shutil.copy(sqlite_template, tmp_path / "instance" / "orders.db")
    return f"sqlite:///{tmp_path}/instance/orders.db"


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """TEST_POSTGRES_URL where it is set (its tables are emptied!), else a private server; skips without either."""
    if given := os.environ.get("TEST_POSTGRES_URL"):
        yield given
        return
    if postgres.binaries() is None:
        pytest.skip("no PostgreSQL here: install its server, or set TEST_POSTGRES_URL")
    with postgres.private_server() as url:
        yield url


@pytest.fixture(scope="session")
def postgres_at_head(postgres_server: str) -> str:
    database = Database(postgres_server)
    schema.upgrade(database)
    database.close()
    return postgres_server


@pytest.fixture
def postgres_url(postgres_at_head: str) -> str:
    engine = create_engine(postgres_at_head)
    with engine.begin() as connection:
        tables = ", ".join(table.name for table in Base.metadata.sorted_tables)
        connection.execute(text(f"TRUNCATE {tables} RESTART IDENTITY"))
    engine.dispose()
    return postgres_at_head


@pytest.fixture
def bare_postgres_url(postgres_server: str) -> Iterator[str]:
    """A PostgreSQL database without a schema."""
    with postgres.another_database(postgres_server) as url:
        yield url


@pytest.fixture
def latin1_postgres_url(postgres_server: str) -> Iterator[str]:
    """A PostgreSQL database that can't hold every text."""
    with postgres.another_database(postgres_server, "LATIN1") as url:
        yield url


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def database_url(request: pytest.FixtureRequest) -> str:
    url: str = request.getfixturevalue("sqlite_url" if request.param == "sqlite" else "postgres_url")
    return url


@pytest.fixture
def settings(database_url: str, tmp_path: Path) -> Settings:
    return Settings.of(
        instance_path=tmp_path / "instance",
        database_url=database_url,
        database_timeout=5,
        mail_backend="memory",
        poll_seconds=30,
        log_level="ERROR",
    )


@pytest.fixture
def shop(settings: Settings) -> Iterator[Shop]:
    made = Shop(settings)
    yield made
    made.close()


@pytest.fixture
def report(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Print a line of figures at the end of the run."""
    lines = request.config.stash.setdefault(FIGURES, [])

    def note(line: str) -> None:
        lines.append(f"{request.node.name}: {line}")

    return note


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if lines := terminalreporter.config.stash.get(FIGURES, []):
        terminalreporter.section("figures")
        for line in lines:
            terminalreporter.write_line(line)
