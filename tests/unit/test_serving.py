"""How connections are spread, and what happens once they are. With real processes: tests/acceptance/test_serving.py."""

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from gunicorn.config import Config  # type: ignore[import-untyped]

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


@pytest.fixture
def connection() -> Iterator[SimpleNamespace]:
    """``sock`` is the server's end, ``client`` the other."""
    server, client = socket.socketpair()
    with closing(server), closing(client):
        yield SimpleNamespace(sock=server, client=client)


@pytest.mark.parametrize(
    "answers, comes, in_threads, alive, handled",
    [
        ([True, True, False], True, 2, True, 3),  # until it is closed
        ([True], False, 2, True, 1),
        ([True], True, 3, True, 1),  # one of the three waits for one of two threads
        ([True], True, 2, False, 1),
        ([False], True, 1, True, 1),
    ],
    ids=["the next comes at once", "none comes", "another waits", "it stops", "it is closed"],
)
def test_a_thread_stays_with_a_connection_whose_next_request_comes_at_once(
    connection: SimpleNamespace,
    answers: list[bool],
    comes: bool,
    in_threads: int,
    alive: bool,
    handled: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = iter(answers)
    monkeypatch.setattr(ThreadWorker, "handle", lambda *_: next(given))
    worker = object.__new__(SpreadingWorker)
    worker.alive, worker.cfg = alive, SimpleNamespace(threads=2)
    worker.nr_conns, worker.keepalived_conns, worker.pending_conns = in_threads + 3, [None] * 2, [None]
    if comes:
        connection.client.send(b"GET / HTTP/1.1")
    assert worker.handle(connection) is answers[-1]
    assert len(answers) - len(list(given)) == handled


def test_once_the_master_is_dead_no_thread_stays_with_its_connection(
    connection: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """gthread then ends its loop, and leaves ``alive`` as it is."""
    handled: list[Any] = []
    monkeypatch.setattr(ThreadWorker, "handle", lambda _, conn: handled.append(conn) or True)
    worker = object.__new__(SpreadingWorker)
    worker.alive, worker.ppid, worker.log = True, os.getppid() + 1, logging.getLogger()
    worker.nr_conns, worker.keepalived_conns, worker.pending_conns = 1, [], []
    worker.cfg = SimpleNamespace(threads=2)
    connection.client.send(b"GET / HTTP/1.1")
    assert not worker.is_parent_alive()
    assert worker.handle(connection) is True
    assert handled == [connection]


def test_a_request_that_outlasts_the_stop_writes_into_no_file_that_was_opened_since(tmp_path: Path) -> None:
    worker = SpreadingWorker(1, os.getppid(), [], None, 30, Config(), logging.getLogger())
    worker.method_queue.init()
    worker.method_queue.close()  # as at the end of gthread's run()
    with ExitStack() as opened:
        files = [opened.enter_context((tmp_path / f"{n}").open("wb")) for n in range(4)]
        worker.method_queue.defer(lambda: None)
        assert [os.fstat(file.fileno()).st_size for file in files] == [0] * 4
    for end in (worker.method_queue._read_fd, worker.method_queue._write_fd):
        os.close(end)
    worker.tmp.close()


@pytest.mark.parametrize("alive", [True, False])
def test_a_living_master_ends_and_revives_nothing(alive: bool) -> None:
    worker = object.__new__(SpreadingWorker)
    worker.alive, worker.ppid = alive, os.getppid()
    assert worker.is_parent_alive()
    assert worker.alive is alive


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
