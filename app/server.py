"""gunicorn's threads for requests that are here: whoever sends or reads slowly holds none of them.

gunicorn's own gthread worker reads a request in the thread that answers it, so as many slow clients as there are
threads stop a process for as long as they like. Here the loop that accepts connections also receives, and a thread is
given a request once all of it has arrived. The loop bounds everything that a client could make others wait for, and
answers for itself, as problem+json, what never comes to the application.

The names without an underscore below that nothing here calls are gunicorn's: it calls them. Its minor version is
pinned, and tests/acceptance/test_hostile_clients.py notices when another one differs.
"""

import contextlib
import errno
import json
import mmap
import queue
import re
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from http import HTTPStatus
from selectors import EVENT_READ as READABLE
from selectors import EVENT_WRITE as WRITABLE
from typing import Any

from gunicorn.http import errors  # type: ignore[import-untyped]
from gunicorn.http.unreader import Unreader  # type: ignore[import-untyped]
from gunicorn.workers.gthread import STOP_KEEPALIVE_LINGER, TConn, ThreadWorker  # type: ignore[import-untyped]

from config import Settings

LARGEST_HEAD = 32 * 1024
"""Bytes of a request line with its header fields; gunicorn.conf.py bounds each of them."""

LARGEST_REQUEST = 128 * 1024
"""Bytes, as they come over the wire. The application's own bound on a body is half of it."""

KEPT_BYTES = 1024 * 1024
"""How much of an answer that its client hasn't read is taken off a thread's hands; as good as every answer fits."""

SEND_SECONDS = 60
"""How long a client may take to read that. Of a stream that is longer, a thread waits so long for each next part."""

LINGER_SECONDS = 2
"""How long a connection that is done with is kept half open, so that its client can read the answer."""

QUEUE_SECONDS = 5
"""How long a request may wait for a thread. What comes later is answered 503: by then its client has other worries."""

RETRY_AFTER_SECONDS = 2

NOTICE_SECONDS = 0.1
"""How often a process tells the master that it is alive. After a silence of ``timeout``, gunicorn's, it is killed."""

YIELD_SECONDS = 0.002
"""How long a process that has more connections than another leaves the next one to that."""

DETAILS = {
    HTTPStatus.BAD_REQUEST: "This is no HTTP/1.1 request, or it broke off.",
    HTTPStatus.REQUEST_TIMEOUT: "The request did not arrive in time.",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: f"The request is larger than {LARGEST_REQUEST} bytes.",
    HTTPStatus.REQUEST_URI_TOO_LONG: "The request line is too long.",
    HTTPStatus.EXPECTATION_FAILED: "Only 100-continue can be expected.",
    HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE: "The header fields are too many or too large.",
    HTTPStatus.INTERNAL_SERVER_ERROR: "Something is wrong on our side, and has been logged.",
    HTTPStatus.SERVICE_UNAVAILABLE: "There is too much to do; nothing was done. Try again in a moment.",
}

CAUSES: tuple[tuple[type[Exception], HTTPStatus], ...] = (
    (errors.InvalidResponseHeader, HTTPStatus.INTERNAL_SERVER_ERROR),
    (errors.InvalidResponseHeaderName, HTTPStatus.INTERNAL_SERVER_ERROR),
    (errors.LimitRequestLine, HTTPStatus.REQUEST_URI_TOO_LONG),
    (errors.LimitRequestHeaders, HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE),
    (errors.ExpectationFailed, HTTPStatus.EXPECTATION_FAILED),
    (errors.ParseException, HTTPStatus.BAD_REQUEST),
    (Exception, HTTPStatus.INTERNAL_SERVER_ERROR),
)
"""What gunicorn's exceptions mean to the client; the first that fits."""

_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*([0-9]+)[ \t]*\r\n")
_CHUNKED = re.compile(rb"\r\ntransfer-encoding:[^\r]*chunked[ \t]*\r\n")
_CONTINUE = re.compile(rb"\r\nexpect:[ \t]*100-continue[ \t]*\r\n")
_CHUNK_SIZE = re.compile(rb"0*([0-9a-f]{1,8})[ \t]*(?:;|$)", re.IGNORECASE)


class Incoming:
    """The bytes of a request, until all of them are here.

    It only finds the end. What the bytes mean, and whether they are a request at all, is gunicorn's to say.
    """

    def __init__(self) -> None:
        self.content = bytearray()
        self.expects_continue = False
        self._head = 0
        self._chunk: int | None = None
        """Where the next chunk begins, in a body of chunks."""
        self._end: int | None = None

    def feed(self, data: bytes) -> HTTPStatus | None:
        """Take in what came. Returns OK once the request is complete, None while it is not, else why it can't be."""
        self.content += data
        if not self._head:
            self._find_head(len(data))
        if self._chunk is not None and self._end is None and not self._follow_chunks(self._chunk):
            return HTTPStatus.BAD_REQUEST
        reaches = max(len(self.content), self._end or 0, self._chunk or 0)
        if not self._head and reaches > LARGEST_HEAD:
            return HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
        if self._end is not None and self._end <= len(self.content):
            return HTTPStatus.OK
        return HTTPStatus.REQUEST_ENTITY_TOO_LARGE if reaches > LARGEST_REQUEST else None

    def _find_head(self, new: int) -> None:
        found = self.content.find(b"\r\n\r\n", max(0, len(self.content) - new - 3))
        if found < 0:
            return
        self._head = found + 4
        head = bytes(self.content[: self._head]).lower()
        if _CHUNKED.search(head):
            self._chunk = self._head
        else:
            length = _LENGTH.search(head)
            self._end = self._head + (int(length[1][:19]) if length else 0)
        self.expects_continue = bool(_CONTINUE.search(head))

    def _follow_chunks(self, at: int) -> bool:
        """Go from chunk to chunk as far as they are here. Returns whether they are chunks."""
        while (line_end := self.content.find(b"\r\n", at)) >= 0:
            size = _CHUNK_SIZE.match(self.content[at:line_end])
            if size is None:
                return False
            if int(size[1], 16) == 0:
                trailers_end = self.content.find(b"\r\n\r\n", line_end)
                self._end = trailers_end + 4 if trailers_end >= 0 else None
                break
            at = line_end + 2 + int(size[1], 16) + 2
        self._chunk = at
        return True


class AllThereIs(Unreader):  # type: ignore[misc]
    """What gunicorn's parser reads from in a thread: the bytes that were received, and then the end. It can't wait."""

    def chunk(self, size_hint: int | None = None) -> bytes:
        return b""


class Outlet:
    """The socket that gunicorn writes an answer to. It leaves as a whole; what its client isn't ready for, the loop
    sends."""

    def __init__(self, client: socket.socket) -> None:
        self.client = client
        self.rest = bytearray()
        client.setblocking(False)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.client, name)

    def fileno(self) -> int:
        return self.client.fileno()

    def setblocking(self, _: bool) -> None:
        """It never blocks, whatever gunicorn wishes."""

    def sendall(self, data: bytes) -> None:
        self.rest += data
        if len(self.rest) <= KEPT_BYTES:
            return
        deadline = time.monotonic() + SEND_SECONDS
        self.flush()
        while len(self.rest) > KEPT_BYTES:
            readiness = select.poll()
            readiness.register(self.client, select.POLLOUT)
            if not readiness.poll(max(0.0, deadline - time.monotonic()) * 1000):
                raise ConnectionResetError(errno.ECONNRESET, "the answer was not read in time")
            self.flush()

    def send(self, data: bytes) -> int:
        self.sendall(data)
        return len(data)

    def flush(self) -> None:
        """Send what can be sent at once. Raises OSError when the client has gone."""
        with contextlib.suppress(BlockingIOError):
            while self.rest:
                del self.rest[: self.client.send(self.rest)]


class Connection(TConn):  # type: ignore[misc]
    """A client, and what has arrived of its next request."""

    taken: threading.Lock
    """Of the request that was handed over: held once a thread has it, or nobody is to answer it any more."""

    def __init__(self, cfg: Any, client: socket.socket, *addresses: Any) -> None:
        super().__init__(cfg, Outlet(client), *addresses)
        self.data_ready = True
        self.incoming = Incoming()
        self.begun = b""
        """What came of the request after the one that is being answered."""
        self.place: deque[Connection] | None = None
        self.event = 0
        """What the loop watches for."""
        self.handed_over = 0.0
        self.is_early = False
        """Whether the client sent more before it was answered."""
        self.keeps = False
        """Whether it is to be kept after the answer."""

    def init(self) -> None:
        """In a thread, before each request: all that it may read is here."""
        if not self.initialized:
            super().init()
            self.parser.unreader = AllThereIs()
        self.parser.unreader.unread(bytes(self.incoming.content))


class Threads:
    """At most ``count`` threads that call ``answer`` for each connection that the loop gives them.

    One more begins with each, until all are there: a process that only dispatches has none.
    """

    def __init__(self, count: int, answer: Callable[[Connection], None]) -> None:
        self._answer, self._count = answer, count
        self._begun = 0
        self._waiting: queue.SimpleQueue[Connection | None] = queue.SimpleQueue()

    def give(self, conn: Connection) -> None:
        self._waiting.put(conn)
        if self._begun < self._count:
            threading.Thread(target=self._run, name=f"request-{self._begun}", daemon=True).start()
            self._begun += 1

    def _run(self) -> None:
        while (conn := self._waiting.get()) is not None:
            self._answer(conn)

    def shutdown(self, wait: bool = False) -> None:
        """Let them end after what was given to them."""
        for _ in range(self._begun):
            self._waiting.put(None)


crowds = memoryview(mmap.mmap(-1, 4 * 256)).cast("i")
"""How many connections each process has, and one more; 0 where none accepts any. All that are forked share it."""


class PatientWorker(ThreadWorker):  # type: ignore[misc]
    """gthread, but for when a request goes to a thread, and for who waits for a client.

    A connection is in one of five places: ``pending_conns`` while a request arrives, ``handed_over`` until a thread has
    answered it, ``sending`` until the client has read that, ``keepalived_conns`` until the next request begins, or
    ``leaving`` when it is done with.

    Most clients send, wait, read, and send again. For them the loop does nothing but receive: their sockets stay
    watched while they are answered, and what was answered is put back when something next comes, of whomever.
    """

    _nr_conns = 0
    _accepting = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.receive_seconds: float = Settings.load().request_read_seconds
        self.handed_over: deque[Connection] = deque()
        self.answered: deque[Connection] = deque()
        """Which threads are done with."""
        self.sending: deque[Connection] = deque()
        self.leaving: deque[Connection] = deque()
        self.crowded = False
        self.next_notice = 0.0
        self.serves = True
        """Set by gunicorn.conf.py: false in the process that only dispatches."""

    @property
    def nr_conns(self) -> int:
        return self._nr_conns

    @nr_conns.setter
    def nr_conns(self, number: int) -> None:
        self._nr_conns = number
        self._tell_others()

    def _tell_others(self) -> None:
        crowds[self.age % len(crowds)] = self._nr_conns + 1 if self._accepting else 0

    def is_gone(self) -> None:
        """Called by gunicorn.conf.py in the master, when the process has ended."""
        crowds[self.age % len(crowds)] = 0

    @classmethod
    def check_config(cls, cfg: Any, log: Any) -> None:
        super().check_config(cfg, log)
        if cfg.is_ssl or cfg.proxy_protocol != "off" or cfg.protocol != "http" or cfg.http2_cleartext != "off":
            raise SystemExit("error: this service speaks plain HTTP/1.1; let TLS and the like end in a proxy before it")

    def init_process(self) -> None:
        # What never changes any more needs no search through gunicorn's settings, which it makes for every use.
        self.cfg.__dict__.update({name: setting.get() for name, setting in self.cfg.settings.items()})
        super().init_process()

    def get_thread_pool(self) -> Threads:
        return Threads(self.cfg.threads, self._answer_in_thread)

    def notify(self) -> None:
        """Tell the master that the loop turns, which it wants to know only now and then."""
        if (now := time.monotonic()) >= self.next_notice:
            self.next_notice = now + NOTICE_SECONDS
            super().notify()

    # Receiving, in the main loop

    def wait_for_and_dispatch_events(self, timeout: float) -> None:
        super().wait_for_and_dispatch_events(timeout)
        self._take_back()

    def set_accept_enabled(self, enabled: bool) -> None:
        super().set_accept_enabled(enabled and self.serves)
        self._tell_others()

    def accept(self, listener: Any) -> None:
        if self._nr_conns > min(filter(None, crowds)):  # by two: each place holds one more than there are
            time.sleep(YIELD_SECONDS)
        try:
            client, address = listener.accept()
        except OSError as error:
            self.crowded = error.errno in (errno.EMFILE, errno.ENFILE)
            return  # the client has gone again, or another worker was faster
        self.nr_conns += 1
        self._expect(Connection(self.cfg, client, address, listener.getsockname()))

    def _on_readable(self, conn: Connection, client: Any) -> None:
        """Something has come, or the end."""
        self._take_back()
        if conn.place is self.keepalived_conns:
            self._withdraw(conn)
            self._expect(conn)
        elif conn.place is self.pending_conns:
            self._receive(conn)
        elif conn.place is self.leaving:
            self._drain(conn)
        elif conn.place is None:
            self._watch_for(conn, 0)  # until it is answered
            conn.is_early = True
            self._take_back()  # should that have been a moment ago

    def _expect(self, conn: Connection, begun: bytes = b"") -> None:
        conn.incoming = Incoming()
        if begun:
            self._take_in(conn, begun)
        else:
            self._receive(conn)

    def _receive(self, conn: Connection) -> None:
        try:
            data = conn.sock.client.recv(LARGEST_REQUEST)
        except BlockingIOError:
            self._await_more(conn)
        except OSError:
            self._forget(conn)
        else:
            if data:
                self._take_in(conn, data)
            elif conn.incoming.content:
                self._refuse(conn, HTTPStatus.BAD_REQUEST)  # half a request is none, even where its JSON happens to end
            else:
                self._forget(conn)

    def _take_in(self, conn: Connection, data: bytes) -> None:
        status = conn.incoming.feed(data)
        if status == HTTPStatus.OK:
            self._withdraw(conn)
            self.enqueue_req(conn)
        elif status is not None:
            self._refuse(conn, status)
        else:
            if conn.incoming.expects_continue:
                conn.incoming.expects_continue = False
                with contextlib.suppress(OSError):
                    conn.sock.client.send(b"HTTP/1.1 100 Continue\r\n\r\n")
            self._await_more(conn)

    def _await_more(self, conn: Connection) -> None:
        if conn.place is not self.pending_conns:
            self._put(conn, self.pending_conns, self.receive_seconds if self.alive else STOP_KEEPALIVE_LINGER)

    # Handing over, and what comes back

    def enqueue_req(self, conn: Connection) -> None:
        conn.handed_over = time.monotonic()
        conn.taken = threading.Lock()
        self.handed_over.append(conn)
        self._watch_for(conn, READABLE)
        self.tpool.give(conn)

    def _answer_in_thread(self, conn: Connection) -> None:
        if not conn.taken.acquire(blocking=False):
            return
        conn.keeps = False
        try:
            keeps = self.handle(conn)
            conn.begun = conn.parser.unreader.take_buffered() if conn.parser else b""
            conn.sock.flush()
            conn.keeps = keeps
        except OSError:
            pass  # the client has gone
        except BaseException as error:
            self.log.error("a request failed", exc_info=error)
        self.answered.append(conn)
        in_a_hurry = not conn.keeps or conn.sock.rest or conn.begun or conn.is_early or not self.alive
        if in_a_hurry or not self._accepting:
            self.method_queue.defer(self._take_back)  # now, not when something next comes

    def handle_error(self, req: Any, client: Any, addr: Any, exc: Exception) -> None:
        """gunicorn's would answer with an HTML page."""
        status = next(status for kind, status in CAUSES if isinstance(exc, kind))
        if status == HTTPStatus.INTERNAL_SERVER_ERROR:
            self.log.error("a request failed", exc_info=exc)
        else:
            self.log.warning("refused a request of %s: %s", addr[0] if addr else "a client", type(exc).__name__)
        with contextlib.suppress(OSError):
            client.sendall(refusal(status))

    def _take_back(self) -> None:
        """Go on with what threads have answered."""
        while self.answered:
            conn = self.answered.popleft()
            conn.is_early = False
            if conn.sock.rest:
                self._put(conn, self.sending, SEND_SECONDS, WRITABLE)
            else:
                self._go_on(conn)

    def _on_writable(self, conn: Connection, client: Any) -> None:
        try:
            client.flush()
        except OSError:
            self._forget(conn)
        else:
            if not client.rest:
                self._withdraw(conn)
                self._go_on(conn)

    def _go_on(self, conn: Connection) -> None:
        """The client has its answer."""
        if not conn.keeps:
            self._leave(conn)
        elif conn.begun:
            self._expect(conn, conn.begun)
        else:
            self._put(conn, self.keepalived_conns, self.cfg.keepalive if self.alive else STOP_KEEPALIVE_LINGER)

    # Being done with a client

    def _refuse(self, conn: Connection, status: HTTPStatus) -> None:
        self._withdraw(conn)
        self._answer(conn, status)

    def _answer(self, conn: Connection, status: HTTPStatus) -> None:
        with contextlib.suppress(OSError):
            conn.sock.client.send(refusal(status))
        self._leave(conn)

    def _leave(self, conn: Connection) -> None:
        """Say that nothing more comes, and close when the client does (RFC 9112, section 9.6)."""
        try:
            conn.sock.shutdown(socket.SHUT_WR)
        except OSError:
            self._forget(conn)
        else:
            self._put(conn, self.leaving, LINGER_SECONDS)

    def _drain(self, conn: Connection) -> None:
        try:
            more = conn.sock.client.recv(LARGEST_REQUEST)
        except BlockingIOError:
            return
        except OSError:
            more = b""
        if not more:
            self._forget(conn)

    def murder_pending(self) -> None:
        """Called after every round of the loop, and at least once a second: nobody waits for ever."""
        now = time.monotonic()
        while self.pending_conns and self.pending_conns[0].timeout <= now:
            late = self.pending_conns[0]
            if late.incoming.content:
                self._refuse(late, HTTPStatus.REQUEST_TIMEOUT)
            else:
                self._forget(late)
        for place in (self.sending, self.leaving):
            while place and place[0].timeout <= now:
                self._forget(place[0])
        self._shed(now)
        if self.crowded or self.nr_conns >= self.worker_connections:
            self.crowded = False
            # Who has been idle the longest goes first, then whose request is arriving for the longest.
            if place := self.leaving or self.keepalived_conns or self.pending_conns or self.sending:
                self._forget(place[0])

    def _shed(self, now: float) -> None:
        """Answer what waits for a thread for too long."""
        waiting = self.handed_over
        while waiting and waiting[0].taken.locked():
            waiting.popleft()
        while waiting and now - waiting[0].handed_over > QUEUE_SECONDS:
            if (late := waiting.popleft()).taken.acquire(blocking=False):
                self._answer(late, HTTPStatus.SERVICE_UNAVAILABLE)

    def _cap_keepalive(self, deadline: float) -> None:
        """The worker is stopping: who is at sending or reading may finish it, but soon."""
        super()._cap_keepalive(deadline)
        for conn in (*self.pending_conns, *self.sending):
            conn.timeout = min(conn.timeout, deadline)

    # The loop's books

    def _put(self, conn: Connection, place: "deque[Connection]", seconds: float, event: int = READABLE) -> None:
        conn.timeout = time.monotonic() + seconds
        conn.place = place
        place.append(conn)
        self._watch_for(conn, event)

    def _withdraw(self, conn: Connection) -> None:
        if conn.place is not None:
            conn.place.remove(conn)
            conn.place = None

    def _watch_for(self, conn: Connection, event: int) -> None:
        if event == conn.event:
            return
        if conn.event:
            self.poller.unregister(conn.sock)
        if event:
            then = self._on_readable if event == READABLE else self._on_writable
            self.poller.register(conn.sock, event, partial(then, conn))
        conn.event = event

    def _forget(self, conn: Connection) -> None:
        self._withdraw(conn)
        self._watch_for(conn, 0)
        self.nr_conns -= 1
        conn.close()


def refusal(status: HTTPStatus) -> bytes:
    """A whole answer, as the application would give it."""
    problem = {"type": "about:blank", "title": status.phrase, "status": status, "detail": DETAILS[status]}
    body = json.dumps(problem)
    fields = {
        "Connection": "close",
        "Content-Type": "application/problem+json",
        "Content-Length": len(body),
        "X-Content-Type-Options": "nosniff",
        "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-store",
    }
    if status == HTTPStatus.SERVICE_UNAVAILABLE:
        fields["Retry-After"] = RETRY_AFTER_SECONDS
    lines = [f"HTTP/1.1 {status} {status.phrase}", *(f"{name}: {value}" for name, value in fields.items())]
    return "\r\n".join([*lines, "", body]).encode()
