"""What one order costs in processor instructions, which callgrind counts: the same on a busy machine as on a quiet one.

    benchmarks/instructions.py           prints the counts, and fails where one is above its ceiling

Counted are a POST and all deliveries of an order, in one process, as multiples of a POST to a Flask route that stores
nothing. So neither the machine nor Python's version matter much. What the kernel does is not counted, and mails are
written as a server would get them, and not sent. Run it with the Python that has the service's requirements; it needs
valgrind.
"""

import gc
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

CEILINGS = {"post": 2.53, "delivery": 3.08}
"""Of an empty route's instructions: 5 % above what is reached."""

ORDERS = 100
WARM_UP = 20
MARK = "getppid"
"""A function of the C library that nothing else calls meanwhile: callgrind writes its counts so far at each call."""


def main() -> int:
    counts = measured()
    failed = False
    print(f"empty route: {counts['empty']:,.0f} instructions")
    for name, ceiling in CEILINGS.items():
        ratio = counts[name] / counts["empty"]
        failed |= ratio > ceiling
        print(f"{name}: {counts[name]:,.0f}, {ratio:.2f} of that; the ceiling is {ceiling}")
    return int(failed)


def measured() -> dict[str, float]:
    """Instructions for each order."""
    with TemporaryDirectory(prefix="instructions-") as folder:
        command = ["valgrind", "--tool=callgrind", f"--dump-before={MARK}", f"--callgrind-out-file={folder}/counts"]
        environment = os.environ | {"PYTHONHASHSEED": "0", "PYTHONPATH": str(Path(__file__).parents[1])}
        done = subprocess.run(
            [*command, sys.executable, __file__, folder], env=environment, capture_output=True, text=True, check=False
        )
        if done.returncode:
            sys.exit(done.stderr[-2000:])
        dumps = sorted(Path(folder).glob("counts.*"), key=lambda path: int(path.suffix[1:]))
        totals = [int(found[1]) for dump in dumps if (found := re.search(r"(?m)^totals: (\d+)", dump.read_text()))]
    names = ("empty", "post", "delivery")
    return {name: total / ORDERS for name, total in zip(names, totals[1 : 1 + len(names)], strict=True)}


def play(folder: Path) -> None:
    """What is counted, between marks."""
    empty, service, deliver = shop(instance_path=folder, mail_backend="memory")
    service.extensions["mailer"].backend.deliver = lambda mail: mail.content()
    post(empty, "warm", WARM_UP)
    post(service, "warm", WARM_UP)
    deliver()
    gc.collect()
    gc.disable()  # when it runs depends on what was made before
    for work in (
        lambda: post(empty, "order", ORDERS),
        lambda: post(service, "order", ORDERS),
        deliver,
    ):
        os.getppid()
        work()
    os.getppid()


def shop(**options: Any) -> tuple[Any, Any, Callable[[], None]]:
    """An empty route, the service with these settings, and what delivers all that is due, in this one thread."""
    from flask import Flask, request

    from app import create_app
    from app.bus.dispatcher import BATCH
    from app.bus.invoke import is_transactional
    from app.observe import logs
    from app.signal import subscriptions
    from config import Settings

    empty = Flask("empty")

    @empty.post("/api/create_order")
    def create_order() -> Any:
        given = request.get_json()
        return {"status": "success", "message": "订单创建成功", "order_id": str(given["order_id"])}, 201

    os.environ["TZ"] = "UTC"
    sys.stderr = io.StringIO()  # the log
    settings = Settings.of(**options)
    logs.configure(settings)
    service = create_app(settings)
    dispatcher = service.extensions["bus"].dispatcher()
    capacity = dict.fromkeys(subscriptions(), BATCH)

    def deliver() -> None:
        """As the engine does it."""
        answers: list[Any] = []
        while True:
            _, claimed, _ = dispatcher.settle_and_claim(answers, capacity)
            if not claimed:
                return
            answers = []
            for batch in dispatcher.batches(claimed):
                if is_transactional(batch[0]):
                    dispatcher.deliver_transactional(batch)
                else:
                    answers += [(lease, dispatcher.invoke(lease)) for lease in batch]

    return empty, service, deliver


def post(app: Any, prefix: str, count: int) -> None:
    for number in range(count):
        body = json.dumps(
            {"order_id": f"{prefix}-{number}", "user_id": str(number % 50), "total_price": 19.99}
        ).encode()
        chunks = app(environ(body), expect_created)
        b"".join(chunks)


def expect_created(status: str, *_: Any) -> Callable[[bytes], object]:
    assert status.startswith("201"), status
    return lambda _: None


def environ(body: bytes) -> dict[str, Any]:
    return {
        "REQUEST_METHOD": "POST",
        "SCRIPT_NAME": "",
        "PATH_INFO": "/api/create_order",
        "QUERY_STRING": "",
        "SERVER_NAME": "127.0.0.1",
        "SERVER_PORT": "8000",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "REMOTE_ADDR": "127.0.0.1",
        "HTTP_HOST": "127.0.0.1:8000",
        "CONTENT_TYPE": "application/json",
        "CONTENT_LENGTH": str(len(body)),
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(body),
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": True,
        "wsgi.multiprocess": True,
        "wsgi.run_once": False,
    }


if __name__ == "__main__":
    sys.exit(play(Path(sys.argv[1])) if len(sys.argv) > 1 else main())
