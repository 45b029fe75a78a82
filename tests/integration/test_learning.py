"""The retry policy's table: fitted by one process of all, read by every other, kept over restarts."""

import json
import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import select

from app.bus import lifecycle
from app.bus.learning import FIRST_ENDS, KEPT_TABLES, REFIT, Learning
from app.bus.tables import RetryTable, RetryTransition
from app.retry import Costs, LearnedPolicy, Obstacle, Scope, classify
from app.retry.ages import BUCKETS, LEVELS
from app.retry.table import FORMAT
from config import Settings
from tests.support.shop import Shop

RECEIVER = "send_email_notification"
GREYLISTED = classify("deferred", 450, "4.7.1")
WHO = "host:1:abc"


@pytest.fixture
def shop(settings: Settings) -> Iterator[Shop]:
    made = Shop(settings, policy=LearnedPolicy(rng=random.Random(1)))
    yield made
    made.close()


def learn(
    shop: Shop, age_from: float | None, age_to: float, count: int = 200, *, gone: bool = True, **where: str
) -> None:
    """So many transitions, of greylisting unless another ``kind`` is said."""
    which = {"receiver": RECEIVER, "scope": "message", "kind": "greylisted"} | where
    row = which | {"age_from": age_from, "age_to": age_to, "gone": gone, "at": shop.clock.now()}
    shop.database.transact(lambda t: t.session.add_all(RetryTransition(**row) for _ in range(count)))


def first_wait(policy: LearnedPolicy) -> float:
    """At a message's first failure, without the earlier looks that only learn."""
    entry_waits = []
    for _ in range(40):
        decision = policy.decide(Obstacle(RECEIVER, Scope.MESSAGE, GREYLISTED, 0.0))
        if not decision.explored:
            entry_waits.append(decision.wait or 0.0)
    return max(entry_waits)


def other_process(shop: Shop) -> Learning:
    return Learning(shop.database, LearnedPolicy(), sender=shop.bus)


def tables(shop: Shop) -> list[RetryTable]:
    with shop.database.read() as session:
        return list(session.scalars(select(RetryTable).order_by(RetryTable.version)))


def test_a_table_is_fitted_to_what_was_seen_and_every_process_reads_it(shop: Shop) -> None:
    learning = shop.bus.learning
    learn(shop, 0, 270, gone=False)
    learn(shop, 270, 300)
    before = first_wait(shop.policy)
    fitted = learning.fit_if_due(WHO)
    assert fitted is not None
    assert fitted.version == shop.policy.table.version == 1
    assert before < 60 < 250 < first_wait(shop.policy) < 320

    other = other_process(shop)
    other.look()
    assert other.policy.table == shop.policy.table
    (row,) = tables(shop)
    assert (row.version, row.fitted_by, row.transition_id) == (1, WHO, 400)


def test_one_process_of_all_fits(shop: Shop) -> None:
    """At one moment, and within REFIT."""
    learn(shop, 270, 300, FIRST_ENDS)
    done: list[Any] = []
    racers = [threading.Thread(target=lambda: done.append(other_process(shop).fit_if_due(WHO))) for _ in range(4)]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join(60)
    assert sum(each is not None for each in done) == 1
    assert len(tables(shop)) == 1


def test_it_is_fitted_again_when_something_was_learned_and_not_otherwise(shop: Shop) -> None:
    learning = shop.bus.learning
    assert learning.fit_if_due(WHO) is None, "nothing has failed"
    learn(shop, 0, 30, 1)
    assert learning.fit_if_due(WHO) is None, "there is hardly anything to fit to"
    shop.clock.advance(REFIT.total_seconds())
    assert learning.fit_if_due(WHO) is not None
    shop.clock.advance(REFIT.total_seconds())
    assert learning.fit_if_due(WHO) is None
    learn(shop, 0, 30, 1)
    shop.clock.advance(-1)
    assert learning.fit_if_due(WHO) is None
    shop.clock.advance(1)
    assert learning.fit_if_due(WHO) is not None
    shop.clock.advance(86_401)
    assert learning.fit_if_due(WHO) is not None, "old data has faded"


def test_the_first_table_waits_until_there_is_something_to_fit_to(shop: Shop) -> None:
    """Neither a first failure tells how long such failures last, nor a second."""
    learning = shop.bus.learning
    learn(shop, None, 0, 2 * FIRST_ENDS, gone=False)
    learn(shop, 0, 30, 2 * FIRST_ENDS, gone=False)
    learn(shop, 0, 30, FIRST_ENDS - 1)
    assert learning.fit_if_due(WHO) is None
    learn(shop, 0, 30, 1)
    assert learning.fit_if_due(WHO) is not None


def test_a_fit_whose_process_died_is_made_by_another(shop: Shop) -> None:
    shop.database.transact(
        lambda t: t.session.add(RetryTable(version=1, begun_at=t.now, fitted_by="dead", transition_id=0))
    )
    assert shop.bus.learning.fit_if_due(WHO) is None
    shop.clock.advance(REFIT.total_seconds())
    assert shop.bus.learning.fit_if_due(WHO) is not None
    assert [(row.version, row.content is None) for row in tables(shop)] == [(1, True), (2, False)]


def test_a_restart_keeps_the_table(shop: Shop) -> None:
    learn(shop, 270, 300)
    shop.bus.learning.fit_if_due(WHO)
    restarted = Shop(shop.settings, shop.clock, LearnedPolicy())
    restarted.bus.learning.look()
    assert restarted.policy.table == shop.policy.table
    restarted.close()


GARBAGE = [
    "{",
    "[]",
    "null",
    '{"format": 99}',
    json.dumps({"format": FORMAT, "levels": len(LEVELS), "buckets": BUCKETS, "version": 3}),
]


@pytest.mark.parametrize("content", [*GARBAGE, "short", "floats"])
def test_garbage_in_the_table_is_ignored_with_a_log_line(
    shop: Shop, content: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The table before it serves, and the next fit puts a good one in its place."""
    shop.bus.learning.fit(WHO)
    before = shop.policy.table
    if content in ("short", "floats"):
        told = json.loads(before.to_json())
        entry = next(iter(told["entries"].values()))
        entry["plan"][0] = entry["plan"][0][:-1] if content == "short" else [0.5] * len(entry["plan"][0])
        content = json.dumps(told)
    told_of: list[Any] = []

    def listen(_: object, **facts: Any) -> None:
        told_of.append(facts)

    row = RetryTable(
        version=2,
        begun_at=shop.clock.now(),
        fitted_by="x",
        fitted_at=shop.clock.now(),
        content=content,
        transition_id=0,
    )
    shop.database.transact(lambda t: t.session.add(row))
    with lifecycle.policy_ignored.connected_to(listen, shop.bus):
        for _ in range(3):
            shop.bus.learning.look()
    assert [each["version"] for each in told_of] == [2], "told once"
    assert shop.policy.table == before
    learn(shop, 270, 300, 5)
    shop.clock.advance(REFIT.total_seconds())
    assert shop.bus.learning.fit_if_due(WHO) is not None
    assert shop.policy.table.version == 3


def test_a_fit_that_fails_is_told_and_the_table_stays(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    shop.bus.learning.fit(WHO)
    before = shop.policy.table
    told: list[Any] = []

    def listen(_: object, **facts: Any) -> None:
        told.append(facts["reason"])

    monkeypatch.setattr("app.retry.fitting.PROGRAM", "raise SystemExit('no numpy')")
    with lifecycle.policy_unfitted.connected_to(listen, shop.bus):
        assert shop.bus.learning.fit(WHO) is None
    assert told == ["no numpy"]
    assert shop.policy.table == before


def test_other_costs_are_another_policy(shop: Shop) -> None:
    """With the settings changed, the next process to start has it fitted to them."""
    learn(shop, 0, 30, FIRST_ENDS)
    shop.bus.learning.fit_if_due(WHO)
    cheap = LearnedPolicy(costs=Costs(attempt=0.002))
    learning = Learning(shop.database, cheap, sender=shop.bus)
    learning.look()
    before = first_wait(cheap)
    assert learning.fit_if_due(WHO) is None, "not sooner than REFIT after the last: two processes may differ for long"
    shop.clock.advance(REFIT.total_seconds())
    learning.fit_if_due(WHO)
    assert first_wait(cheap) < before


def test_what_is_refuted_is_forgotten_and_told(shop: Shop) -> None:
    """A greylist that took 300 seconds, and since today takes 30: the table goes back towards the prior."""
    learning = shop.bus.learning
    learn(shop, 270, 300, 200)
    learn(shop, 0, 270, 200, gone=False)
    learning.fit_if_due(WHO)
    learned = first_wait(shop.policy)
    for _ in range(40):
        shop.clock.advance(60)
        learn(shop, 0, 20, 1)
    told: list[Any] = []

    def listen(_: object, **facts: Any) -> None:
        told.extend(facts["refuted"])

    with lifecycle.policy_fitted.connected_to(listen, shop.bus):
        learning.fit_if_due(WHO)
    assert told == [f"message/greylisted/{RECEIVER}"]
    assert first_wait(shop.policy) < learned / 4
    assert json.loads(str(tables(shop)[-1].refuted)) == told
    for words in (["bus", "status"], ["doctor"]):
        told_here = shop.app.test_cli_runner().invoke(args=words).output
        assert "the retry policy's predictions of how long greylisted lasts" in told_here, words
    shop.clock.advance(86_400)
    assert not any("retry policy" in str(trouble) for trouble in shop.bus.watch.look().warnings)


def test_the_log_tells_of_fits_and_of_what_they_refuted(settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    shop = Shop(settings.model_copy(update={"log_level": "INFO"}), policy=LearnedPolicy())
    learn(shop, 270, 300, 200)
    learn(shop, 0, 270, 200, gone=False)
    shop.bus.learning.fit(WHO)
    for _ in range(40):
        shop.clock.advance(60)
        learn(shop, 0, 20, 1)
    shop.bus.learning.fit(WHO)
    shop.execute("UPDATE retry_tables SET content = 'x', version = 9 WHERE version = 2")
    shop.bus.learning.look()
    told = [message for message in caplog.messages if message.startswith("retry policy")]
    fitted = "retry policy fitted"
    assert told == [fitted, fitted, "retry policy refuted", "retry policy table ignored"]
    shop.close()


def test_old_tables_and_transitions_are_forgotten(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.bus.learning.KEPT_TRANSITIONS", 50)
    learn(shop, 0, 30, 120)
    learn(shop, 0, 30, 20, kind="mailbox full")
    for _ in range(KEPT_TABLES + 2):
        assert shop.bus.learning.fit(WHO) is not None
    assert len(tables(shop)) == KEPT_TABLES
    assert shop.count("retry_transitions") == 70


def test_how_often_a_kind_comes_alone_is_counted_among_the_deliveries(shop: Shop) -> None:
    shop.place_orders(20)
    shop.dispatch_all()
    row = {"receiver": RECEIVER, "scope": "message", "kind": "450", "age_to": 0.0, "gone": False}
    shop.database.transact(
        lambda t: t.session.add_all(RetryTransition(**row, at=t.now + timedelta(seconds=1)) for _ in range(7))
    )
    learn(shop, 0, 30, 1, kind="450")
    fitted = shop.bus.learning.fit(WHO)
    assert fitted.lone[RECEIVER] == {"450": (7.0, 20.0)}


def test_only_the_process_that_fits_imports_numpy(settings: Settings) -> None:
    """Serving, dispatching, reading a table and having one fitted do without."""
    code = f"""
import sys
from app import create_app
from config import Settings
app = create_app(Settings.of(instance_path={str(settings.instance_path)!r}, database_url={settings.database_url!r},
                             mail_backend="memory", log_level="ERROR"))
bus = app.extensions["bus"]
order = {{"order_id": 1, "user_id": 2, "total_price": "3"}}
assert app.test_client().post("/api/create_order", json=order).status_code == 201
assert bus.learning.fit("me") is not None
while bus.dispatcher().run_once():
    pass
assert bus.policy.table.version >= 1
print(sorted({{name.partition(".")[0] for name in sys.modules}} & {{"numpy", "scipy"}}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip().splitlines()[-1:] == ["[]"], done.stderr[-2000:]
