"""How answers leave, and how a process tells that it is alive. What clients see of it: test_hostile_clients.py."""

import socket
import threading
from types import SimpleNamespace
from typing import cast

import pytest

from app.server import KEPT_BYTES, NOTICE_SECONDS, Connection, Outlet, PatientWorker, Threads
from tests.support.waiting import until


def test_an_answer_leaves_as_a_whole() -> None:
    """Two packets would wake the client twice."""
    client, server = socket.socketpair()
    with client, server:
        client.setblocking(False)
        outlet = Outlet(server)
        outlet.sendall(b"head")
        outlet.send(b"body")
        with pytest.raises(BlockingIOError):
            client.recv(100)
        outlet.flush()
        assert client.recv(100) == b"headbody"
        assert not outlet.rest


def test_of_an_answer_that_is_long_no_more_is_kept_than_may_be() -> None:
    client, server = socket.socketpair()
    with client, server:
        outlet = Outlet(server)
        outlet.sendall(b"x" * (KEPT_BYTES + 1))
        assert len(outlet.rest) <= KEPT_BYTES
        assert client.recv(10) == b"x" * 10


def test_the_master_is_told_now_and_then_that_the_loop_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[int] = []
    now = [100.0]
    monkeypatch.setattr("app.server.time", SimpleNamespace(monotonic=lambda: now[0]))
    worker = object.__new__(PatientWorker)
    worker.next_notice = 0.0
    worker.tmp = SimpleNamespace(notify=lambda: told.append(1))
    for _ in range(3):
        worker.notify()
    assert len(told) == 1
    now[0] += NOTICE_SECONDS
    worker.notify()
    assert len(told) == 2


def test_threads_begin_when_there_is_something_to_answer_and_all_of_them_end() -> None:
    answered: list[Connection] = []
    both = threading.Barrier(2)

    def answer(conn: Connection) -> None:
        both.wait(10)
        answered.append(conn)

    def alive() -> int:
        return sum(thread.name.startswith("request-") for thread in threading.enumerate())

    threads = Threads(2, answer)
    assert alive() == 0
    given = [cast(Connection, SimpleNamespace(number=number)) for number in range(4)]
    for conn in given:
        threads.give(conn)
    assert alive() == 2
    threads.shutdown()
    until(lambda: alive() == 0)
    assert sorted(answered, key=given.index) == given
