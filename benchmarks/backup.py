"""Backup and restore of a SQLite database with many orders, while orders come in.

    python -m benchmarks.backup FOLDER [ORDERS]      a million, without a number; the folder is made, and stays

Prints the size, how long 'flask db backup' and 'flask db restore' take, and how long POSTs from four connections take
without a backup, during one, and without one again.
"""

import itertools
import os
import statistics
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

from tests.support.service import CHECKOUT, Client, Service, environment

CLIENTS = 4
SECONDS = 20
"""Of posting without a backup."""


def main() -> None:
    folder, orders = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 1_000_000
    folder.mkdir()
    service = Service(folder)
    fill(folder / "instance", orders)
    file, backup = folder / "instance" / "orders.db", folder / "backup.db"
    print(f"{orders:,} orders: {file.stat().st_size / 1e6:,.0f} MB")
    service.start("/healthz")
    posts = Posts(service.port)
    print("without a backup:", posts.during(lambda: time.sleep(SECONDS)))
    print("during a backup: ", posts.during(lambda: timed(service, "backup", backup)))
    print("without a backup:", posts.during(lambda: time.sleep(SECONDS)))
    service.stop()
    timed(service, "restore", backup, "--yes")


def fill(instance: Path, orders: int) -> None:
    """Every order has three deliveries, which are done."""
    words = [sys.executable, "benchmarks/backlog.py", instance, str(3 * orders), "0", "0"]
    subprocess.run(
        words, cwd=CHECKOUT, env=os.environ | {"PYTHONPATH": str(CHECKOUT)}, stdin=subprocess.DEVNULL, check=True
    )


def timed(service: Service, *words: object) -> None:
    began = time.monotonic()
    command = [sys.executable, "-m", "flask", "db", *map(str, words)]
    subprocess.run(command, cwd=CHECKOUT, env=environment(**service.settings), stdin=subprocess.DEVNULL, check=True)
    print(f"flask db {words[0]}: {time.monotonic() - began:.1f} s")


class Posts:
    def __init__(self, port: int) -> None:
        self._port = port
        self._numbers = itertools.count()

    def during(self, action) -> str:  # type: ignore[no-untyped-def]
        """Post while the action runs. Returns how long it took."""
        seconds: list[float] = []
        stopping = threading.Event()
        clients = [threading.Thread(target=self._post, args=[stopping, seconds]) for _ in range(CLIENTS)]
        for client in clients:
            client.start()
        action()
        stopping.set()
        for client in clients:
            client.join()
        cuts = statistics.quantiles(seconds, n=1000)
        return (
            f"{len(seconds):,} POSTs; median {1000 * cuts[499]:.1f} ms, 99 % within {1000 * cuts[989]:.1f} ms, "
            f"the slowest {1000 * max(seconds):.0f} ms"
        )

    def _post(self, stopping: threading.Event, seconds: list[float]) -> None:
        with closing(Client(self._port)) as client:
            while not stopping.is_set():
                began = time.monotonic()
                answer = client.post(order_id=f"new-{next(self._numbers)}", user_id="42", total_price="19.99")
                assert answer.status == 201, answer
                seconds.append(time.monotonic() - began)


if __name__ == "__main__":
    main()
