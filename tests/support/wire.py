"""HTTP as bytes on a connection, and clients that are slow on purpose."""

import contextlib
import http.client
import io
import itertools
import json
import socket
import ssl
import threading
from typing import Any, Self

HEAD = b"POST /api/create_order HTTP/1.1\r\nHost: orders.example\r\nContent-Type: application/json\r\n"
LARGE = b"GET /openapi.json HTTP/1.1\r\nHost: orders.example\r\n\r\n"

numbers = iter(range(10**9))


def order(**fields: Any) -> dict[str, Any]:
    return {"order_id": f"o{next(numbers)}", "user_id": "42", "total_price": "19.99"} | fields


def body(**fields: Any) -> bytes:
    return json.dumps(order(**fields)).encode()


def posting(content: bytes, *more: bytes) -> bytes:
    fields = [b"Content-Length: %d" % len(content), *more]
    return HEAD + b"\r\n".join(fields) + b"\r\n\r\n" + content


class Wire:
    """A connection, as bytes; encrypted with ``tls``."""

    def __init__(
        self, port: int, window: int | None = None, tls: ssl.SSLContext | None = None, source: str = "127.0.0.1"
    ) -> None:
        self.file: io.BufferedReader | None = None
        self.socket = socket.socket()
        self.socket.settimeout(10)
        if window is not None:  # small segments too: loopback's are so large that every answer would fit into one
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window)
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 536)
        try:
            self.socket.bind((source, 0))
            self.socket.connect(("127.0.0.1", port))
            if tls is not None:
                self.socket = tls.wrap_socket(self.socket, server_hostname="orders.example")
        except OSError:
            self.socket.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.file is not None:
            self.file.close()
        self.socket.close()

    def send(self, data: bytes) -> Self:
        self.socket.sendall(data)
        return self

    def all(self) -> bytes:
        """Everything until the server closes."""
        received = b""
        with contextlib.suppress(ConnectionResetError):
            while data := self.socket.recv(65536):
                received += data
        return received

    def receive_until(self, mark: bytes) -> bytes:
        """What comes until ``mark`` is there."""
        received = b""
        while mark not in received:
            data = self.socket.recv(65536)
            assert data, f"the end came before {mark!r}: {received!r}"
            received += data
        return received

    def answer(self, method: str = "POST") -> http.client.HTTPResponse:
        """The next answer. What has come behind it waits for the next call."""
        response = http.client.HTTPResponse(self, method=method)  # type: ignore[arg-type]
        response.begin()
        response.content = response.read()  # type: ignore[attr-defined]
        return response

    def makefile(self, _: str) -> Self:
        self.file = self.file or self.socket.makefile("rb")
        return self

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def close(self) -> None:
        """HTTPResponse closes what it has read from; this goes on."""


SLOW: dict[str, dict[str, Any]] = {
    "says nothing": {"first": b"", "drip": b""},
    "sends its request line byte by byte": {"first": b"G", "drip": b"E"},
    "sends its header byte by byte": {"first": HEAD + b"X-Long: ", "drip": b"x"},
    "sends header after header": {"first": HEAD, "drip": b"X: y\r\n"},
    "sends its body byte by byte": {"first": HEAD + b"Content-Length: 60000\r\n\r\n{", "drip": b" "},
    "sends its body chunk by chunk": {"first": HEAD + b"Transfer-Encoding: chunked\r\n\r\n", "drip": b"1\r\n \r\n"},
    "sends a chunk's size byte by byte": {"first": HEAD + b"Transfer-Encoding: chunked\r\n\r\n", "drip": b"0"},
    "never sends its body": {"first": HEAD + b"Content-Length: 600\r\n\r\n", "drip": b""},
    "never sends the body it was asked for": {
        "first": HEAD + b"Content-Length: 600\r\nExpect: 100-continue\r\n\r\n",
        "drip": b"",
    },
    "never sends a body that is too large": {"first": HEAD + b"Content-Length: 600000\r\n\r\n", "drip": b""},
    "sends a body where none belongs": {"first": LARGE[:-2] + b"Content-Length: 60000\r\n\r\n", "drip": b"x"},
    "never closes": {"first": b"GET /healthz HTTP/1.0\r\n\r\n", "drip": b"x"},
    "never reads": {"first": LARGE * 8, "drip": b"", "window": 1024},
    "asks again and again and never reads": {"first": LARGE, "drip": LARGE, "window": 1024},
}


class SlowClients:
    """``count`` clients of all kinds: each sends its ``first`` and then its ``drip`` again and again. A client whose
    connection is closed connects again."""

    def __init__(self, port: int, count: int, tls: ssl.SSLContext | None = None) -> None:
        self.port, self.tls = port, tls
        self.kinds = [kind for _, kind in zip(range(count), itertools.cycle(SLOW.values()), strict=False)]
        self.wires: list[Wire | None] = [None] * count
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._round()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        for wire in self.wires:
            if wire is not None:
                wire.socket.close()

    def _run(self) -> None:
        while not self._over.wait(0.1):
            self._round()

    def _round(self) -> None:
        for place, (wire, kind) in enumerate(zip(self.wires, self.kinds, strict=True)):
            try:
                if wire is None:
                    wire = self.wires[place] = Wire(self.port, kind.get("window"), self.tls).send(kind["first"])
                    wire.socket.setblocking(False)
                elif kind["drip"]:
                    wire.socket.send(kind["drip"])
            except (BlockingIOError, ssl.SSLWantWriteError, ssl.SSLWantReadError):
                pass
            except OSError:
                if wire is not None:
                    wire.socket.close()
                self.wires[place] = None
