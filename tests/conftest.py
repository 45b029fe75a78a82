"""Fixtures for every layer. A test that takes ``shop`` runs on SQLite and on PostgreSQL."""

import gc
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from sqlalchemy import create_engine, text

from app.db import Base, Database, schema
from config import Settings
from tests.support import postgres
from tests.support.brokers import Rabbit, Redis
from tests.support.engines import OnCelery
from tests.support.postgres import Door
from tests.support.shop import Shop

# A busy machine is no fault of the code's, nor of the examples that it takes long to make up.
hypothesis.settings.register_profile("patient", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("patient")

for name in [name for name in os.environ if name.lower() in Settings.model_fields]:
    del os.environ[name]  # the developer's own settings are not the tests'
os.environ["FLASK_SKIP_DOTENV"] = "1"  # nor are those in .env


def pytest_addoption(parser: pytest.Parser) -> None:
    engines = ["inprocess", "celery"]
    parser.addoption("--engine", choices=engines, default=engines[0], help="what runs receivers: BUS_ENGINE")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--engine") == "celery":
        config.pluginmanager.register(OnCelery(config), "on-celery")


def pytest_collection_finish() -> None:
    """The garbage collector shall not look again and again at what stays: it took a seventh of the tests' processor."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def engine_settings(pytestconfig: pytest.Config) -> Iterator[dict[str, str]]:
    """Settings of the engine that the tests are run on. Each test has a broker for itself."""
    on_celery: OnCelery | None = pytestconfig.pluginmanager.get_plugin("on-celery")
    if on_celery is None:
        yield {}
    else:
        with on_celery.virtual_hosts.new() as url:
            yield {"bus_engine": "celery", "celery_broker_url": url}


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
    """A database of one's own at TEST_POSTGRES_URL where it is set, else a private server; skips without either."""
    if given := os.environ.get("TEST_POSTGRES_URL"):
        with postgres.another_database(given) as url:
            yield url
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
        # TRUNCATE makes each table and index anew, which takes longer than DELETE where they hold little.
        large = connection.execute(
            text("SELECT relname FROM pg_stat_user_tables WHERE pg_relation_size(relid) > 1000000")
        ).scalars()
        if names := ", ".join(large):
            connection.execute(text(f"TRUNCATE {names} CASCADE"))
        for table in reversed(Base.metadata.sorted_tables):
            connection.execute(table.delete())
        used = connection.execute(text("SELECT sequencename FROM pg_sequences WHERE last_value IS NOT NULL")).scalars()
        for sequence in used.all():
            connection.execute(text(f"ALTER SEQUENCE {sequence} RESTART"))
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
def settings(database_url: str, tmp_path: Path, engine_settings: dict[str, Any]) -> Settings:
    return Settings.of(
        instance_path=tmp_path / "instance",
        database_url=database_url,
        database_timeout=15,
        mail_backend="memory",
        poll_seconds=30,
        log_level="ERROR",
        **engine_settings,
    )


@pytest.fixture
def shop(settings: Settings) -> Iterator[Shop]:
    made = Shop(settings)
    yield made
    made.close()


@pytest.fixture
def own_server() -> Iterator[str]:
    """Another PostgreSQL server than the tests share, on which transactions are numbered from the beginning."""
    if postgres.binaries() is None:
        pytest.skip("no PostgreSQL here: install its server")
    with postgres.private_server() as url:
        yield url


@pytest.fixture
def door(postgres_url: str) -> Iterator[Door]:
    """A way to the PostgreSQL server that a test can shut."""
    with Door(postgres_url) as made:
        made.open()
        yield made


@pytest.fixture(scope="session")
def rabbit() -> Iterator[Rabbit]:
    """A private RabbitMQ, for all tests of a process: it takes six seconds to start, or more on a busy machine."""
    if not Rabbit.is_installed():
        pytest.skip("no RabbitMQ here: install rabbitmq-server")
    made = Rabbit()
    try:
        yield made.start()
    finally:
        made.close()


@pytest.fixture
def redis() -> Iterator[Redis]:
    if not Redis.is_installed():
        pytest.skip("no Redis here: install redis-server")
    made = Redis()
    yield made
    made.close()


@pytest.fixture
def report(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Print a line of figures at the end of the run."""
    return lambda line: request.node.user_properties.append(("figures", line))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    done = [test for outcome in ("passed", "failed") for test in terminalreporter.stats.get(outcome, [])]
    if lines := [f"{test.nodeid}: {line}" for test in done for name, line in test.user_properties if name == "figures"]:
        terminalreporter.section("figures")
        for line in lines:
            terminalreporter.write_line(line)
