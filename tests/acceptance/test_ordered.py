"""An ordered receiver under kill -9: dispatchers die in the middle of it, and the order holds all the same."""

import os
import signal
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from app.events import OrderCreated
from config import CHECKOUT, Settings
from tests.support.service import wait_until
from tests.support.shop import Shop

USERS, EACH = 5, 8
LEASE_SECONDS = 2

QUICK = {"RETRY_POLICY": "exponential", "RETRY_BASE_SECONDS": "0.1", "RETRY_MAX_SECONDS": "0.5"}
"""Where a delivery's process dies twice, the learned policy waits for minutes, and all of its user's wait behind it."""

DISPATCHER = """
import os, sys, time
from app import create_app
from app.events import order_created
from config import Settings

diary = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND)

def ordered(sender, event):
    os.write(diary, f"begin {event.user_id} {event.order_id} {os.getpid()}\\n".encode())
    time.sleep(0.02)
    os.write(diary, f"end {event.user_id} {event.order_id} {os.getpid()}\\n".encode())

order_created.connect(ordered, ordered_by="user_id")
engine = create_app(Settings.load()).extensions["engine"]
engine.start(anyway=True)
while True:
    time.sleep(60)
"""


@pytest.fixture
def diary(tmp_path: Path) -> Path:
    (tmp_path / "diary").touch()
    return tmp_path / "diary"


@pytest.fixture
def start(settings: Settings, diary: Path, tmp_path: Path) -> Iterator[Callable[[], subprocess.Popen[bytes]]]:
    """Start a process that dispatches, with the receiver connected."""
    environment = os.environ | {
        "DATABASE_URL": settings.database_url,
        "INSTANCE_PATH": str(settings.instance_path),
        "LEASE_SECONDS": str(LEASE_SECONDS),
        **QUICK,
        "MAIL_BACKEND": "memory",
        "FLASK_SKIP_DOTENV": "1",
        "PYTHONPATH": str(CHECKOUT),
    }
    made: list[subprocess.Popen[bytes]] = []

    def new() -> subprocess.Popen[bytes]:
        with (tmp_path / f"log-{len(made)}").open("wb") as log:
            words = [sys.executable, "-c", DISPATCHER, str(diary)]
            made.append(subprocess.Popen(words, cwd=CHECKOUT, env=environment, stdout=log, stderr=log))
        return made[-1]

    yield new
    for process in made:
        process.kill()
        process.wait()


def entries(diary: Path) -> list[list[str]]:
    return [line.split() for line in diary.read_text().splitlines()]


def test_the_order_outlives_dispatchers_that_are_killed_in_the_middle(
    shop: Shop, start: Callable[[], subprocess.Popen[bytes]], diary: Path
) -> None:
    def ordered(sender: str, event: OrderCreated) -> None:
        """Here only for the deliveries: the processes have one of this name."""

    shop.receive(ordered, ordered_by="user_id")
    for number in range(EACH):
        for user in range(USERS):
            shop.place_order(f"{user}-{number}", f"{user}")
    processes = [start() for _ in range(2)]
    for killed in range(4):
        seen = len(entries(diary))
        wait_until(lambda seen=seen: len(entries(diary)) > seen + 6, "some deliveries", limit=120)  # type: ignore[misc]
        victim = next(int(entry[3]) for entry in reversed(entries(diary)) if entry[0] == "begin")
        place = [process.pid for process in processes].index(victim)
        os.kill(victim, signal.SIGKILL)
        processes[place].wait()
        processes[place] = start()
        assert len(shop.deliveries("ordered")) == USERS * EACH, killed

    def is_done() -> bool:
        return all(each.state == "done" for each in shop.deliveries("ordered"))

    wait_until(is_done, "all deliveries", limit=180)

    begun, under_way = defaultdict(list), dict[str, list[str]]()
    for what, user, order, process in entries(diary):
        if what == "begin":
            alive = {str(each.pid) for each in processes}
            other = under_way.get(user)
            assert other is None or other[1] not in alive or other[1] == process, "two of one user at once"
            under_way[user] = [order, process]
            begun[user].append(int(order.partition("-")[2]))
        else:
            under_way.pop(user)
    for user, numbers in begun.items():
        assert numbers == sorted(numbers), user
        assert set(numbers) == set(range(EACH)), user
