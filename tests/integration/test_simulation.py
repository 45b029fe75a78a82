"""What is promised, held against hundreds of scripts of what can go wrong. tests/support/simulation.py plays them.

SIMULATION_SEEDS=5000 plays more of them, SIMULATION_SEEDS=5000-6000 others, and SIMULATION_SEED=17 that one alone.
"""

import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, select, update

from app.bus import LeaseEnd, claim, leases
from app.bus.held_leases import HeldLeases
from app.bus.tables import Delivery
from app.orders import Order
from app.receivers import notification
from app.states import DeliveryState
from tests.support import simulation
from tests.support.simulation import FAULTS, TABLES, Actor, Process, Violation, World

DEFAULT = "1000"

PARTS = 4
"""The scripts are divided, so that several processes can play them at once."""


def seeds() -> range:
    if chosen := os.environ.get("SIMULATION_SEED"):
        return range(int(chosen), int(chosen) + 1)
    first, _, last = os.environ.get("SIMULATION_SEEDS", DEFAULT).rpartition("-")
    return range(int(first or 0), int(last))


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """In memory where there is such a place: no promise is about this disk."""
    memory = Path("/dev/shm")  # noqa: S108 - the folder made in it is our own
    made = Path(tempfile.mkdtemp(prefix="simulation-", dir=memory if os.access(memory, os.W_OK) else None))
    yield made
    shutil.rmtree(made)


@pytest.fixture
def world(folder: Path) -> Iterator[World]:
    made = World(simulation.settings(folder))
    yield made
    made.close()


@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.timeout(60 + len(seeds()))
def test_every_promise_holds_in_every_script(world: World, part: int, report: Callable[[str], None]) -> None:
    played = seeds()[part::PARTS]
    for seed in played:
        world.play(seed)
    report(f"seeds {len(played)}, faults that struck {world.struck.total()}, promises broken 0")


def test_every_kind_of_fault_strikes_those_it_is_meant_for(world: World) -> None:
    """A statement or a commit that goes past the faults would make the simulation of them one of nothing."""
    meant = {(fault, Process) for fault in FAULTS}
    meant |= {(fault, Actor) for fault in FAULTS if "mail server" not in fault}
    for seed in range(200):
        world.play(seed)
        if meant <= world.struck.keys():
            return
    raise AssertionError(f"never: {sorted((fault, who.__name__) for fault, who in meant - world.struck.keys())}")


def test_no_statement_and_no_commit_goes_past_the_faults(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLite itself says what it was told to do."""
    told: list[str] = []
    passed: list[str] = []
    before_statement, commit = world.before_statement, world.commit
    monkeypatch.setattr(world, "before_statement", lambda: (passed.append("a statement"), before_statement())[1])
    monkeypatch.setattr(world, "commit", lambda *how: (passed.append("a commit"), commit(*how))[1])
    world.database.close()

    @event.listens_for(world.database.engine, "connect")
    def listen(connection: Any, _: Any) -> None:
        connection.set_trace_callback(told.append)

    world.play(11)

    verbs = Counter(statement.partition(" ")[0] for statement in told)
    assert passed.count("a commit") >= verbs["COMMIT"] > 10
    assert passed.count("a statement") >= verbs.total() - verbs["COMMIT"] - verbs["ROLLBACK"] > 100


def test_a_seed_plays_the_same_script_each_time(world: World) -> None:
    """Down to every id and every time in the tables."""
    world.play(11)  # what is made once in a process, the mail's frame, takes from the same source of chance
    played = []
    for seed in (11, 12, 11):
        script = world.play(seed)
        played.append((script, [world.look(f"SELECT * FROM {table}") for table in TABLES]))
    first, another, again = played
    assert again == first
    assert again != another


# A simulation that can't fail proves nothing: without any one of these mechanisms, some script must show it.


def unfenced(end_leases: Callable[..., None]) -> Callable[..., None]:
    """Ends of leases that do not ask whose they are."""

    def end_anyway(transaction: Any, ends: list[Any]) -> None:
        session = transaction.session
        for end in ends:
            held = Delivery.delivery_id == end.lease.delivery_id
            session.execute(update(Delivery).where(held).values(state="leased"))
            token = session.scalar(select(Delivery.lease_token).where(held))
            end_leases(transaction, [replace(end, lease=replace(end.lease, token=token))])

    return end_anyway


def unrecorded(transaction: Any, _: Any, expired: list[Any]) -> list[Any]:
    """Leases that ran out become due again without a word."""
    leases.end(transaction, [LeaseEnd(lease, DeliveryState.READY) for lease in expired])
    return []


def overwritten(transaction: Any, order_id: str, state: str) -> None:
    """A notification that does not look at what is known already."""
    transaction.session.execute(update(Order).where(Order.order_id == order_id).values(notification=state))


@pytest.mark.parametrize(
    "where, name, instead",
    [
        pytest.param(leases, "end", unfenced(leases.end), id="the fencing token"),
        pytest.param(claim, "settle_expired", unrecorded, id="the record of unknown outcomes"),
        pytest.param(HeldLeases, "holds", lambda *_: True, id="the look whether the lease is held"),
        pytest.param(notification, "mark_notification", overwritten, id="the order of notifications"),
    ],
)
@pytest.mark.timeout(240)
def test_what_is_taken_out_is_missed(
    world: World, monkeypatch: pytest.MonkeyPatch, where: Any, name: str, instead: Any
) -> None:
    monkeypatch.setattr(where, name, instead)
    found = ((seed, violation) for seed in range(1000) if (violation := violation_of(world, seed)))
    seed, violation = next(found)
    assert f"SIMULATION_SEED={seed} plays it again" in violation
    assert violation_of(world, seed) == violation


def violation_of(world: World, seed: int) -> str | None:
    try:
        world.play(seed)
    except Violation as violation:
        return str(violation)
    return None
