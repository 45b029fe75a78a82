"""Real services for a test, and nothing of them left after it."""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import pytest

from tests.support.carried import CarriedService, dispatches
from tests.support.console import Tab, browser
from tests.support.service import Service
from tests.support.smtp import SmtpServer


class Serve(Protocol):
    def __call__(self, *command: str, **settings: Any) -> Service: ...


@contextmanager
def service_folder(request: pytest.FixtureRequest) -> Iterator[Path]:
    """Holds instance and logs. Its path is short, as sockets in it need; it stays when a test fails."""
    made = Path(tempfile.mkdtemp(prefix="svc-"))
    failures = request.session.testsfailed
    yield made
    if request.session.testsfailed == failures:
        shutil.rmtree(made)
    else:
        print(f"instance and logs stay in {made}")


@contextmanager
def services(folder: Path, **common: Any) -> Iterator[Serve]:
    """Makes services, not started yet, that share one instance folder.

    They have one worker, unless told otherwise, and poll too rarely for that to save any test.
    """
    made: list[Service] = []

    def make(*command: str, **settings: Any) -> Service:
        given = {"web_concurrency": 1, "poll_seconds": 60} | common | settings
        kind = CarriedService if common and dispatches(command, given) else Service
        service = kind(folder, *command, **given)
        made.append(service)
        return service

    yield make
    for service in made:
        service.close()
    for service in made:
        print(f"--- {' '.join(service.command)} on port {service.port}\n{service.log}")  # shown when the test fails


@pytest.fixture
def folder(request: pytest.FixtureRequest) -> Iterator[Path]:
    with service_folder(request) as made:
        yield made


@pytest.fixture
def serve(folder: Path, engine_settings: dict[str, str]) -> Iterator[Serve]:
    with services(folder, **engine_settings) as make:
        yield make


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def database(request: pytest.FixtureRequest) -> dict[str, str]:
    """Settings of a service: a SQLite file that isn't there yet, or an empty PostgreSQL schema that is up to date."""
    return {} if request.param == "sqlite" else {"database_url": request.getfixturevalue("postgres_url")}


@pytest.fixture
def sink() -> Iterator[SmtpServer]:
    with SmtpServer() as server:
        yield server


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with browser() as opened:
        yield opened


@pytest.fixture
def open_tab(chromium: Any, service: Service) -> Iterator[Callable[..., Tab]]:
    """Opens pages of the module's own service, and closes them all."""
    tabs: list[Tab] = []

    def make(**how: Any) -> Tab:
        tabs.append(Tab(chromium, service, **how))
        return tabs[-1]

    yield make
    for tab in tabs:
        tab.context.close()
