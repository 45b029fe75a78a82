"""Fixtures of the integration tests."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from app.engine.inprocess.worker import TRANSACTIONAL
from app.events import OrderCreated
from tests.support.api import Api
from tests.support.shop import Shop
from tests.support.waiting import until


@pytest.fixture(autouse=True)
def patient() -> Iterator[None]:
    """On a busy machine a database that is well can take longer to answer than readiness waits for it.

    With a patch of its own: what a test patches is to be undone before its shop is closed.
    """
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("app.bus.watch.ANSWER_SECONDS", 20.0)
        yield


@pytest.fixture
def file(sqlite_url: str) -> Path:
    """The SQLite database's."""
    return Path(sqlite_url.removeprefix("sqlite:///"))


@pytest.fixture
def run(shop: Shop) -> Any:
    """Run 'flask ...' and return what it prints; an exit code other than ``code`` is a failure."""
    runner = shop.app.test_cli_runner()

    def command(*words: str, code: int = 0, typed: str | None = None) -> str:
        result = runner.invoke(args=list(words), input=typed)
        assert result.exit_code == code, (result.output, result.exception)
        assert "Traceback" not in result.output
        return str(result.output)

    return command


@pytest.fixture
def late(shop: Shop) -> list[str]:
    """The orders that the receiver ``late`` was given. Three were placed before it was connected, a minute apart."""
    given: list[str] = []

    def late(sender: str, event: OrderCreated) -> None:
        given.append(event.order_id)

    for n in range(3):
        shop.place_order(f"{n}")
        shop.clock.advance(60)
    shop.dispatch_all()
    shop.receive(late)
    return given


@pytest.fixture
def api(shop: Shop) -> Api:
    """A client of the shop's API, which holds every answer against /openapi.json."""
    return Api(shop)


@pytest.fixture
def wait_for_threads() -> Callable[[], None]:
    """What a dispatcher that was given up leaves behind ends with its process. In a test it still holds connections."""
    others = set(threading.enumerate())

    def wait() -> None:
        until(lambda: not {"dispatcher", TRANSACTIONAL} & {each.name for each in set(threading.enumerate()) - others})

    return wait
