"""How connections are spread, and what happens once they are. With real processes: tests/acceptance/test_serving.py."""

from types import SimpleNamespace
from typing import Any

import pytest

from app import serving
from app.serving import (
    ACCEPT_DELAY_SECONDS,
    MOST_DELAYING_CONNECTIONS,
    SpreadingWorker,
    ThreadWorker,
    processes,
)
from config import Settings


@pytest.mark.parametrize(
    "connections, delaying",
    [
        (0, 0),  # a lone client waits for nobody
        (1, 1),
        (MOST_DELAYING_CONNECTIONS, MOST_DELAYING_CONNECTIONS),
        (400, MOST_DELAYING_CONNECTIONS),  # many idle ones make no client wait longer
        (-3, 0),  # gunicorn counts some errors twice
    ],
)
def test_a_process_is_the_slower_to_accept_the_more_connections_it_has(
    connections: int, delaying: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []
    monkeypatch.setattr(serving, "time", SimpleNamespace(sleep=slept.append))
    monkeypatch.setattr(ThreadWorker, "accept", lambda *_: None)
    worker = object.__new__(SpreadingWorker)
    worker.nr_conns = connections
    worker.accept(None)
    assert slept == [delaying * ACCEPT_DELAY_SECONDS]


def test_a_request_that_has_its_answer_gets_no_error_behind_it(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []
    monkeypatch.setattr(ThreadWorker, "handle_request", lambda *_: True)
    monkeypatch.setattr(ThreadWorker, "handle_error", lambda self, req, *_: told.append(req))
    worker = object.__new__(SpreadingWorker)
    answered, unanswered = SimpleNamespace(), SimpleNamespace()
    assert worker.handle_request(answered, None) is True
    for request in (answered, unanswered, None):
        worker.handle_error(request, None, None, ValueError())
    assert told == [unanswered, None]


@pytest.mark.parametrize(
    "given, expected",
    [
        ({"web_concurrency": 1}, 1),  # it does both
        ({"web_concurrency": 2}, 3),
        ({"web_concurrency": 2, "dispatch_in_web": False}, 2),
    ],
    ids=str,
)
def test_one_process_more_than_serve_dispatches(given: dict[str, Any], expected: int) -> None:
    assert processes(Settings.of(**given)) == expected
