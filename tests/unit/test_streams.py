"""The guard of streams: what a server sees of one that fails, and when a stop cuts it."""

from collections.abc import Callable, Iterable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from gunicorn.workers.gthread import ThreadWorker

from app.serving import SpreadingWorker
from app.streams import PART_SECONDS, PIECE_BYTES, STOP_SECONDS, Streams


class Parts:
    """A stream that remembers whether it was closed."""

    def __init__(self, *parts: bytes | Exception) -> None:
        self.left = iter(parts)
        self.closed = False

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        part = next(self.left)
        if isinstance(part, Exception):
            raise part
        return part

    def close(self) -> None:
        self.closed = True


class Client:
    """A socket that remembers whether it was shut down."""

    is_shut_down = False
    timeout: float | None = None

    def settimeout(self, seconds: float | None) -> None:
        self.timeout = seconds

    def shutdown(self, how: int) -> None:
        self.is_shut_down = True


def guarded(answer: Iterable[bytes], client: Client | None = None, **how: Any) -> Iterator[bytes]:
    is_stopping: Callable[[], bool] = how.pop("is_stopping", lambda: False)
    streams = Streams(lambda environ, start_response: answer, is_stopping, **how)
    return iter(streams({"gunicorn.socket": client or Client()}, None))


def test_parts_pass_as_they_are() -> None:
    assert list(guarded(Parts(b"a", b"", b"b"))) == [b"a", b"", b"b"]


def test_a_large_part_leaves_in_pieces() -> None:
    """Each has its own time to leave, from the first on: a buffer may be full of what came before."""
    pieces, client = 3, Client()
    content = bytes(range(256)) * (pieces * PIECE_BYTES // 256 - 1)
    parts = guarded(Parts(content, b"the next"), client)
    first = next(parts)
    assert client.timeout == PART_SECONDS
    others = [next(parts) for _ in range(pieces - 1)]
    assert client.timeout == PART_SECONDS
    assert b"".join([first, *others]) == content
    assert max(map(len, [first, *others])) == PIECE_BYTES
    assert list(parts) == [b"the next"]


def test_a_client_that_does_not_read_holds_its_thread_for_a_while_only() -> None:
    """Each part has its time to leave, from the second on; what the connection carries next has none."""
    client = Client()
    parts = guarded(Parts(b"a", b"b"), client)
    next(parts)
    assert client.timeout is None
    next(parts)
    assert client.timeout == PART_SECONDS
    parts.close()  # type: ignore[attr-defined]
    assert client.timeout is None


def test_a_client_that_did_not_read_counts_as_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """So gunicorn writes no traceback, and its main loop does not wait for the client to close."""

    def time_out(*_: Any) -> None:
        raise TimeoutError

    monkeypatch.setattr(ThreadWorker, "handle_request", time_out)
    connection = SimpleNamespace(sock=Client())
    with pytest.raises(ConnectionResetError, match="does not read"):
        SpreadingWorker.handle_request(object.__new__(SpreadingWorker), SimpleNamespace(), connection)
    assert connection.sock.is_shut_down


def test_an_answer_that_is_no_stream_passes_as_it_is() -> None:
    whole = [b"a"]
    assert Streams(lambda environ, start_response: whole, lambda: False)({}, None) is whole


def test_a_stream_that_raises_looks_like_a_client_that_went_away() -> None:
    client = Client()
    parts = guarded(Parts(b"a", ValueError()), client)
    assert next(parts) == b"a"
    with pytest.raises(ConnectionResetError, match="its generator raised"):
        next(parts)
    assert client.is_shut_down


@pytest.mark.parametrize("before", [[], [b""]], ids=["nothing", "an empty part"])
def test_before_anything_has_left_the_server_sees_the_error_and_can_answer_500(before: list[bytes]) -> None:
    client = Client()
    with pytest.raises(ZeroDivisionError):
        list(guarded(Parts(*before, ZeroDivisionError()), client))
    assert not client.is_shut_down


def test_closing_closes_the_generator() -> None:
    parts = Parts(b"a", b"b")
    stream: Any = guarded(parts)
    next(stream)
    stream.close()
    assert parts.closed


def test_a_stop_cuts_a_stream_after_a_while_and_not_before() -> None:
    now = [100.0]
    stopping: list[bool] = []
    stream = guarded(Parts(b"1", b"2", b"3", b"4"), is_stopping=lambda: bool(stopping), seconds=lambda: now[0])
    assert next(stream) == b"1"
    stopping.append(True)
    assert next(stream) == b"2"
    now[0] += STOP_SECONDS - 0.01
    assert next(stream) == b"3"
    now[0] += 0.01
    with pytest.raises(ConnectionResetError, match="is stopping"):
        next(stream)
