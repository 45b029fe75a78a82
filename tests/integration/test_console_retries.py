"""The page of the retry policy, and why a delivery is tried then and not before, on its page and on its order's."""

import random
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import event

from app.bus import learning
from app.bus.tables import RetryTransition
from app.console import policy_pictures
from app.console.policy_pictures import AGES, STATES, TONES, chain, curve, heat_map, tone_of
from app.errors import Deferred, Unreachable
from app.events import OrderCreated
from app.retry import ExponentialBackoff, LearnedPolicy, Obstacle, Scope
from app.retry.ages import EDGES, LEVELS
from app.retry.causes import named
from app.retry.shown import Shown
from app.retry.why import seconds_told
from config import Settings
from tests.integration.test_console_deliveries import table
from tests.support.console import Visitor, untranslated
from tests.support.shop import Shop

MAIL = "send_email_notification"
GREYLIST = {"receiver": MAIL, "scope": "message", "kind": "greylisted"}
MAXIMUM = 600.0
"""RETRY_MAX_SECONDS."""
OUTAGE = {"receiver": MAIL, "scope": "backend", "kind": "unreachable"}


@pytest.fixture
def shop(settings: Settings) -> Iterator[Shop]:
    made = Shop(settings, policy=LearnedPolicy(rng=random.Random(1), maximum=MAXIMUM))
    yield made
    made.close()


@pytest.fixture
def plain_shop(settings: Settings) -> Iterator[Shop]:
    made = Shop(settings, policy=ExponentialBackoff(rng=random.Random(1)))
    yield made
    made.close()


def measure(shop: Shop, of: dict[str, str], *transitions: tuple[float | None, float, bool], times: int = 1) -> None:
    at = shop.clock.now()
    rows = [
        RetryTransition(**of, age_from=age_from, age_to=age_to, gone=gone, at=at)
        for age_from, age_to, gone in transitions
        for _ in range(times)
    ]
    shop.database.transact(lambda transaction: transaction.session.add_all(rows))


def learn(shop: Shop) -> None:
    """A greylist of 300 s, and an outage of 90 s."""
    measure(shop, GREYLIST, (None, 0.0, False), (0.0, 270.0, False), (270.0, 300.0, True), times=40)
    measure(shop, OUTAGE, (0.0, 20.0, False), (20.0, 60.0, False), (60.0, 90.0, True), times=3)
    assert shop.bus.learning.fit("test") is not None


def failing(shop: Shop, error: Exception | None) -> None:
    def server(sender: str, event: OrderCreated) -> None:
        if error:
            raise error

    shop.only(server)


def test_the_heat_map_is_what_the_policy_answers(shop: Shop) -> None:
    """Each cell of the table and of the picture, with a backend and with a message, whose wait is bounded."""
    learn(shop)
    for of, levels in ((OUTAGE, LEVELS), (GREYLIST, (1,))):
        page = Visitor(shop).get("/retries", **of)
        rows = table(page, "waits")
        assert len(rows) == len(AGES)
        policy = LearnedPolicy(shop.policy.table, explores=False)
        for age, row in zip(AGES, rows, strict=True):
            for waiting, cell in zip(levels, row, strict=True):
                told = policy.decide(Obstacle(MAIL, Scope(of["scope"]), named(of["kind"]), float(age), waiting)).wait
                assert told is not None
                wait = told if of is OUTAGE else min(told, MAXIMUM)
                assert cell == seconds_told(wait)
        drawn = heat_map(Shown(shop.policy, Scope(of["scope"]), of["kind"], MAIL))
        assert [tone_of(cell.wait or 0) for cell in drawn.cells] == [cell.tone for cell in drawn.cells]
        paths = "".join(re.findall(r'<path class="t\d" d="([^"]+)"', page.html))
        assert paths.count("M") == len(drawn.cells) == len(AGES) * len(levels)
    assert ["10 min"] in table(page, "waits"), "RETRY_MAX_SECONDS bounds some"


def test_a_tone_begins_at_its_wait() -> None:
    assert [tone_of(0.999), tone_of(1), tone_of(4.9), tone_of(5), tone_of(1e6)] == [0, 1, 1, 2, len(TONES)]


def test_the_curve_is_the_tables_survival_and_its_band(shop: Shop) -> None:
    learn(shop)
    shown = Shown(shop.policy, Scope.MESSAGE, "greylisted", MAIL)
    entry = shown.entry
    assert entry is not None
    for number, point in enumerate(shown.survival()):
        assert point.share == pytest.approx(1 - entry.gone_between(0, EDGES[number]))
        assert point.low <= point.share <= point.high <= 1
    found = {each.age: each for each in shown.survival()}
    before, after = (max(age for age in found if age < 270), min(age for age in found if age > 300))
    assert found[before].share > 0.7 > 0.2 > found[after].share
    assert found[before].high - found[before].low > 0.01
    assert shown.median() is not None
    assert 270 < (shown.median() or 0) <= after
    assert found[after].prior == pytest.approx((1 + after / 60) ** -0.7)
    drawn = curve(shown, [])
    assert drawn.line.count("L") == len([age for age in EDGES if age >= 0.5]) - 1


def test_the_chains_counts_are_the_databases(shop: Shop) -> None:
    """The shares of a state are 1 together; transitions of a clock that jumped are in none."""
    learn(shop)
    measure(shop, GREYLIST, (-5.0, 10.0, True), (50.0, 20.0, False), (100_000.0, 200_000.0, True))
    page = Visitor(shop).get("/retries", **GREYLIST)
    rows = table(page, "chain")
    assert [(row[0], row[1], row[2], row[3]) for row in rows] == [
        ("0 – 10 s", "still there: 60 s – 10 min", "40", "100.0%"),
        ("60 s – 10 min", "gone: it comes through", "40", "100.0%"),
        ("over 24 h", "gone: it comes through", "1", "100.0%"),
    ]
    assert [row[4] for row in rows] == ["4.5 min", "30 s", "27.8 h"]


def test_transitions_are_counted_by_their_ages_as_python_counts_them(shop: Shop) -> None:
    rng = random.Random(3)
    drawn = [(10 ** rng.uniform(-1, 5), 10 ** rng.uniform(-1, 6), rng.random() < 0.5) for _ in range(300)]
    drawn += [(float(age), float(age) + 1, True) for age in AGES]  # on each edge
    measure(shop, OUTAGE, *drawn)
    measure(shop, GREYLIST, (1.0, 2.0, True))
    with shop.database.read() as session:
        found = learning.measured(session, *OUTAGE.values(), AGES, shop.clock.now() - timedelta(1))
        later = learning.measured(session, *OUTAGE.values(), AGES, shop.clock.now() + timedelta(1))

    def step(age: float) -> int:
        return max(each for each in AGES if each <= age)

    counted = Counter((step(a), step(b), gone) for a, b, gone in drawn if b > a)
    assert {(each.age_from, each.age_to, each.gone): each.attempts for each in found} == counted
    assert sum(each.waited for each in found) == pytest.approx(sum(b - a for a, b, _ in drawn if b > a))
    assert later == []
    states = chain(found).states
    assert {state.age for state in states} <= set(STATES)
    assert [sum(move.share for move in state.moves) for state in states] == pytest.approx([1] * len(states))
    assert sum(state.attempts for state in states) == counted.total()


def test_only_the_newest_are_counted(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as a fit looks at: the page's cost is bounded."""
    measure(shop, OUTAGE, (0.0, 5.0, True), times=30)
    monkeypatch.setattr(learning, "KEPT_TRANSITIONS", 10)
    with shop.database.read() as session:
        (found,) = learning.measured(session, *OUTAGE.values(), AGES, shop.clock.now() - timedelta(1))
    assert found.attempts == 10


def test_what_was_learned_is_listed_and_chosen(shop: Shop) -> None:
    learn(shop)
    visitor = Visitor(shop)
    page = visitor.get("/retries")
    assert [row[:5] for row in table(page, "learned")] == [
        ["greylisting", MAIL, "one message", "80", "40"],
        ["unreachable", MAIL, "the backend", "9", "3"],
    ]
    assert "Table 1, fitted" in page.text
    assert "greylisting, one message" in page.text
    (link,) = [each for each in page.links if "kind=unreachable" in each]
    assert "unreachable, the backend" in visitor.get(link.replace("&amp;", "&")).text
    assert visitor.get("/retries", receiver=MAIL, scope="message", kind="no such").status == 404
    assert visitor.get("/retries", receiver=MAIL, scope="nobody", kind="450").status == 422
    assert "/retries" in visitor.get("/system").links


def test_nothing_learned_yet_shows_the_prior(shop: Shop) -> None:
    """Before any table, and with one of which nobody has attempts."""
    for _ in range(2):
        page = Visitor(shop).get("/retries")
        assert page.status == 200
        assert "Nothing is learned yet" in page.text
        assert "No transition yet" in page.text
        assert "By the prior alone" in page.text
        assert len(table(page, "waits")) == len(AGES)
        shop.bus.learning.fit("test")
    assert "No table is fitted yet" not in page.text


def test_the_plain_rule_has_nothing_to_learn(plain_shop: Shop) -> None:
    page = Visitor(plain_shop).get("/retries")
    assert page.status == 200
    assert "RETRY_POLICY=exponential: up to 20 attempts" in page.text
    assert "5 s, 10 s, 20 s, 40 s, 80 s" in page.text
    assert "Nothing is learned" in page.text


def test_a_fallback_of_the_guard_is_said(shop: Shop) -> None:
    """Learned that all ends at 300 s, and then it lasts for hours."""
    for _ in range(3):
        shop.clock.advance(10)
        learn(shop)
    page = Visitor(shop).get("/retries", **GREYLIST)
    assert "holds" in page.text
    assert "should have come through" in page.text
    shop.clock.advance(3600)
    measure(shop, GREYLIST, (0.0, 400.0, False), (400.0, 5000.0, False), times=20)
    shop.clock.advance(10)
    assert shop.bus.learning.fit("test") is not None
    page = Visitor(shop).get("/retries", **GREYLIST)
    assert "fell back" in page.text
    assert "what happened refuted the table" in page.text
    assert "fell back" in table(page, "learned")[-1][6] + table(page, "learned")[0][6]
    shop.clock.advance(3601)
    page = Visitor(shop).get("/retries", **GREYLIST)
    assert "fell back" not in page.text
    assert "what happened refuted the table" in page.text


def test_an_outage_of_now_is_marked(shop: Shop) -> None:
    """The page opens with it; its cell is where the gate stands, and its next probe the gate's own."""
    failing(shop, Unreachable("no route"))
    shop.place_orders(5)
    for _ in range(12):
        shop.dispatch()
        shop.clock.advance(4)
    shop.dispatch()
    page = Visitor(shop).get("/retries")
    assert "The backend is down" in page.text
    assert "unreachable, the backend · server" in page.text
    assert "5 deliveries wait." in page.text
    assert page.html.count('<rect class="now"') == 1
    probes, _ = shop.database.query(lambda reader: shop.bus.retries().held_back(reader, shop.clock.now()))
    assert probes["server"] > shop.clock.now()
    assert f"Next probe: Nov 23, 2026, {probes['server']:%-H:%M:%S}" in page.text


def test_the_marked_cell_is_the_obstacles(shop: Shop) -> None:
    shown = Shown(shop.policy, Scope.BACKEND, "unreachable", MAIL)
    now = heat_map(shown, (75.0, 5)).now
    assert now is not None
    assert (now.age, now.waiting) == (60, 8)
    assert heat_map(shown).now is None


@pytest.mark.parametrize("query", [{}, GREYLIST, OUTAGE])
def test_the_page_is_chinese(shop: Shop, query: dict[str, str]) -> None:
    visitor = Visitor(shop)
    visitor.language = "zh-CN"
    assert untranslated(visitor.get("/retries", **query).own_words) == []
    learn(shop)
    page = visitor.get("/retries", **query)
    assert untranslated(page.own_words) == []
    assert "马尔可夫" in page.text


def test_the_page_asks_the_database_a_handful_of_times(shop: Shop) -> None:
    """However much was learned; and it reads a table only once."""
    learn(shop)
    visitor = Visitor(shop)
    visitor.get("/retries")
    told: list[str] = []
    given: list[Any] = []

    def note(_: Any, __: Any, statement: str, parameters: Any, *___: Any) -> None:
        told.append(statement)
        given.append(parameters)

    event.listen(shop.database.engine, "before_cursor_execute", note)
    visitor.get("/retries")
    event.remove(shop.database.engine, "before_cursor_execute", note)
    if shop.database.is_sqlite:
        ((statement, parameters),) = [each for each in zip(told, given, strict=True) if "retry_transitions" in each[0]]
        with shop.database.read() as session:
            connection: Any = session.connection().connection.dbapi_connection
            plan = [row[3] for row in connection.cursor().execute(f"EXPLAIN QUERY PLAN {statement}", parameters)]
        assert any("USING INDEX retry_transitions_of_a_kind" in step for step in plan), plan
        assert not [step for step in plan if "SCAN retry_transitions" in step or "TEMP B-TREE FOR ORDER BY" in step]
    assert len([each for each in told if "retry_transitions" in each]) == 1
    assert not [each for each in told if each.startswith("SELECT retry_tables.content")]
    assert len([each for each in told if each.startswith("SELECT")]) <= 5


def test_the_page_imports_no_numpy(settings: Settings) -> None:
    code = f"""
import sys
from app import create_app
from config import Settings
app = create_app(Settings.of(instance_path={str(settings.instance_path)!r}, database_url={settings.database_url!r},
                             mail_backend="memory", log_level="ERROR"))
assert app.extensions["bus"].learning.fit("me") is not None
answer = app.test_client().get("/retries", environ_overrides={{"REMOTE_ADDR": "127.0.0.1"}})
assert answer.status_code == 200, answer.text
print("numpy" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip().splitlines()[-1:] == ["False"], done.stderr[-2000:]


# Why then, and not before


def explained(page: Any, delivery_id: int) -> str:
    found = re.search(rf'<dl class="headers" data-explained="{delivery_id}">(.*?)</dl>', page.html, re.DOTALL)
    assert found
    return " ".join(re.sub(r"<[^>]+>", " ", found[1]).split())


def test_a_page_says_why_as_the_command_does(shop: Shop, run: Any) -> None:
    """One sentence for each attempt and for the next try, the same on both pages and from the command."""
    failing(shop, Deferred("450 4.7.1 later", code=450, enhanced="4.7.1"))
    shop.place_order()
    shop.dispatch()
    (delivery,) = shop.deliveries("server")
    shop.clock.advance((delivery.due_at - shop.clock.now()).total_seconds())
    shop.dispatch()
    lines = run("bus", "policy", "explain", f"{delivery.delivery_id}").splitlines()
    sentences = [lines[1].partition("deferred: ")[2], lines[2].partition("deferred: ")[2]]
    sentences.append(lines[3].partition("next try: ")[2])
    assert sentences[0] == "It was due, and nothing held it back."
    assert sentences[1].startswith("Tried again after")
    for path in ("/orders/1001", f"/deliveries?delivery_id={delivery.delivery_id}"):
        told = explained(Visitor(shop).get(path), delivery.delivery_id)
        assert [told.count(sentence) for sentence in sentences] == [1, 1, 1]

    visitor = Visitor(shop)
    visitor.language = "zh-CN"
    for path in ("/orders/1001", f"/deliveries?delivery_id={delivery.delivery_id}"):
        told = explained(visitor.get(path), delivery.delivery_id)
        assert told.count("后重试，因为没有价值更高的时刻：该投递首次出现“灰名单”") == 1
        assert "它已到期，没有什么拦住它。" in told


def test_an_order_that_went_at_once_needs_no_reasons(shop: Shop) -> None:
    shop.place_order()
    shop.dispatch_all()
    assert "data-explained" not in Visitor(shop).get("/orders/1001").html


def test_the_plain_rule_says_why_too(plain_shop: Shop, run: Any) -> None:
    """A drawn wait; then an outage, whose breaker lets one probe through at a time, and whose end hurries the rest."""
    shop, errors = plain_shop, [Deferred("450 later", code=450)]

    def server(sender: str, event: OrderCreated) -> None:
        if errors:
            raise errors[0]

    shop.only(server)
    shop.place_order()
    shop.dispatch()
    (delivery,) = shop.deliveries("server")
    wait = (delivery.due_at - shop.clock.now()).total_seconds()
    assert delivery.due_because is not None
    assert delivery.due_because.startswith(f"Tried again after {seconds_told(wait)}: by the plain rule")
    assert delivery.due_because.endswith("and this was failure 1.")

    errors[0] = Unreachable("no route")
    shop.clock.advance(wait)
    shop.dispatch()
    for _ in range(3):
        shop.clock.advance(40)
        shop.dispatch()
    told = run("bus", "policy", "explain", f"{delivery.delivery_id}")
    assert delivery.due_because in told
    assert "The circuit breaker is open: one delivery at a time is tried" in told
    assert "its backend is down; the next probe is due at" in told
    assert "this was failure 5." in told

    errors.clear()
    shop.clock.advance(40)
    shop.dispatch_all()
    visitor = Visitor(shop)
    visitor.language = "zh-CN"
    told = explained(visitor.get("/orders/1001"), delivery.delivery_id)
    assert told.count("断路器打开：每次只尝试一个投递") >= 3
    assert "按普通规则，等待时间随机抽取" in told
    assert untranslated(told) == []


def test_what_an_outages_end_hurries_says_so(plain_shop: Shop) -> None:
    shop, errors = plain_shop, [Unreachable("no route")]

    def server(sender: str, event: OrderCreated) -> None:
        if errors:
            raise errors[0]

    shop.only(server, concurrency=4)
    shop.place_orders(4)
    for _ in range(4):
        shop.dispatch()
        shop.clock.advance(1)
    failed = [each for each in shop.deliveries("server") if each.outcome]
    errors.clear()
    for _ in range(60):
        shop.clock.advance(0.5)
        shop.dispatch()
    assert {each.state for each in shop.deliveries("server")} == {"done"}
    reasons = {
        attempt["why"]
        for n in range(4)
        for each in shop.timeline(f"{n}")[0]["deliveries"]
        for attempt in each["attempts"]
        if attempt["outcome"] == "ok" and each["delivery_id"] in {one.delivery_id for one in failed}
    }
    assert any(reason and reason.startswith("The circuit breaker has closed") for reason in reasons)


def test_a_first_attempt_that_came_late_says_what_may_have_held_it_up(shop: Shop, run: Any) -> None:
    failing(shop, None)
    shop.place_order()
    shop.clock.advance(180)
    shop.dispatch_all()
    (delivery,) = shop.deliveries("server")
    assert "ok: It was due 3 min before: its circuit breaker was open" in run(
        "bus", "policy", "explain", f"{delivery.delivery_id}"
    )


def test_a_sentence_of_an_earlier_version_stays_english(shop: Shop) -> None:
    failing(shop, Deferred("450 later", code=450))
    shop.place_order()
    shop.dispatch()
    shop.execute("UPDATE deliveries SET due_because = 'an older reason' WHERE due_because IS NOT NULL")
    visitor = Visitor(shop)
    visitor.language = "zh-CN"
    assert '<span lang="en">an older reason</span>' in visitor.get("/orders/1001").html


def test_pictures_are_not_drawn_for_what_was_not_measured() -> None:
    drawn = policy_pictures.chain([])
    assert (list(drawn.states), list(drawn.targets)) == ([], [])
