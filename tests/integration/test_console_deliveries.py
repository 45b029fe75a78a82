"""Deliveries and acts in the console: groups, acts on what was counted, progress, abort; numbers that agree."""

import threading
from typing import Any

import pytest

from app.bus import Act, Filter, acts, operate
from app.console import background
from app.errors import DatabaseUnavailable, Deferred, Refused, Unreachable
from app.events import OrderCreated
from tests.support.console import Page, Visitor
from tests.support.shop import Shop


class Backend:
    """A receiver that fails by the order's id: odd ones for good, others for a while; it works once it is mended."""

    def __init__(self) -> None:
        self.works = False
        self.error: Exception | None = None

    def __call__(self, sender: str, event: OrderCreated) -> None:
        if self.works:
            return
        if self.error:
            raise self.error
        if int(event.order_id) % 2:
            raise Refused(f"550 <{event.user_id}@x.example>: no such user")
        raise Deferred("450 busy")


@pytest.fixture
def backend(shop: Shop) -> Backend:
    made = Backend()
    made.__name__ = "deliver"  # type: ignore[attr-defined]
    shop.only(made, name="deliver")
    return made


@pytest.fixture
def failed(shop: Shop, backend: Backend) -> Visitor:
    """Of orders 0 to 5, three are dead and three wait for their next try."""
    for n in range(6):
        shop.place_order(f"{n}", user_id=f"u{n}")
    for _ in range(6):
        shop.dispatch()
    shop.clock.advance(1)
    return Visitor(shop)


def table(page: Page, name: str) -> list[list[str]]:
    """The cells of the table with this ``data-table``."""
    start = page.html.index(f'data-table="{name}"')
    part = page.html[start : page.html.index("</table>", start)]
    return [row for row in Page(FakeResponse(f"<table {part}</table>")).rows if row]


class FakeResponse:
    status_code = 200

    def __init__(self, html: str) -> None:
        self.html = html

    def get_data(self, as_text: bool) -> str:
        return self.html

    def close(self) -> None: ...


def act(visitor: Visitor, question: str, **answers: Any) -> Page:
    """Confirm what the page ``question`` counted."""
    return visitor.submit(question, "/deliveries/act", **answers)


def states(shop: Shop) -> list[str]:
    return [each.state for each in shop.deliveries()]


# What is shown


def test_the_numbers_of_each_receiver_agree_with_the_database(shop: Shop, failed: Visitor) -> None:
    shop.place_order("6")
    shop.place_order("7")
    shop.dispatcher.claim({"deliver": 1})
    rows = {row[0]: row[2:] for row in table(failed.get("/deliveries"), "receivers")}
    expected = [
        "state = 'ready' AND outcome IS NULL",
        "state = 'leased'",
        "state = 'ready' AND outcome IS NOT NULL",
        "state = 'dead'",
    ]
    counts = [
        shop.execute_scalar(f"SELECT count(*) FROM deliveries WHERE receiver = 'deliver' AND {each}")
        for each in expected
    ]
    assert [int(number) for number in rows["deliver"]] == counts == [1, 1, 3, 3]


def test_what_failed_is_grouped_by_its_reason(shop: Shop, failed: Visitor) -> None:
    page = failed.get("/deliveries")
    groups = table(page, "groups")
    assert sorted(row[:4] for row in groups) == [
        ["3", "deliver", "↻ retrying", "↻ deferred 450 busy"],
        ["3", "deliver", "✕ dead", "✕ refused 550 <address>: no such user"],
    ]
    assert sorted(row[4] for row in groups) == ["0 … 4", "1 … 5"]
    grouped = shop.execute_scalar("SELECT count(*) FROM deliveries WHERE state = 'dead' AND outcome = 'refused'")
    assert grouped == 3
    one_by_one = next(link for link in page.links if "reason_group=550" in link and "view=list" in link)
    assert [row[1].split()[0] for row in table(failed.get(one_by_one), "deliveries")] == ["1", "3", "5"]


def test_a_group_of_more_than_is_looked_at_says_so(
    shop: Shop, failed: Visitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.console.deliveries.MOST_GROUPED", 2)
    page = failed.get("/deliveries")
    assert sorted(row[0] for row in table(page, "groups")) == ["2+", "2+"]
    assert "the latest" in page.text
    counted = failed.get(next(link for link in page.links if "all=1" in link))
    assert sorted(row[0] for row in table(counted, "groups")) == ["3", "3"]


@pytest.mark.parametrize("state", ["dead", "retrying", "discarded", "waiting", "leased"])
def test_a_long_list_is_paged_and_misses_none(shop: Shop, failed: Visitor, state: str) -> None:
    shop.execute("UPDATE deliveries SET state = 'dead', outcome = 'refused', settled_at = created_at")
    for n in range(6, 60):
        shop.place_order(f"{n}")
        shop.clock.advance(1 if n % 2 else 0)
    values = {
        "dead": "state = 'dead', settled_at = created_at",
        "discarded": "state = 'discarded', settled_at = created_at",
        "retrying": "outcome = 'deferred', attempts = 1",
        "leased": "state = 'leased', lease_token = 1",
        "waiting": "attempts = 0",
    }
    shop.execute(f"UPDATE deliveries SET {values[state]} WHERE state = 'ready'")
    seen, link = [], f"/deliveries?state={state}&view=list"
    while link:
        page = failed.get(link)
        seen += [row[1].split()[0] for row in table(page, "deliveries")]
        link = next((each for each in page.links if "cursor=" in each), "")
    assert sorted(map(int, seen)) == list(range(0 if state == "dead" else 6, 60))


@pytest.mark.parametrize(
    "query",
    [{"state": "done"}, {"cursor": "x", "view": "list"}, {"cursor": "x_1", "state": "waiting"}, {"outcome": "no"}],
    ids=str,
)
def test_a_wrong_filter_is_refused_with_its_field(shop: Shop, query: dict[str, str]) -> None:
    page = Visitor(shop).get("/deliveries", **query)
    assert page.status == 422
    assert next(iter(query)) in page.text


def test_foreign_reasons_are_shown_as_text(shop: Shop, backend: Backend) -> None:
    backend.error = Refused("550 <script>alert(1)</script>\x1b[31m\r\n")
    shop.place_order()
    shop.dispatch()
    for path in ("/deliveries", "/deliveries?view=list"):
        page = Visitor(shop).get(path)
        assert "␛" in page.text
        assert "<script>alert" not in page.html


def test_nothing_failed_is_said(shop: Shop) -> None:
    assert "Nothing failed" in Visitor(shop).get("/deliveries").text
    assert "No such delivery" in Visitor(shop).get("/deliveries", receiver="x").text


# Acts


def test_all_of_one_reason_are_retried(shop: Shop, backend: Backend, failed: Visitor) -> None:
    backend.works = True
    question = next(
        link for link in failed.get("/deliveries").links if "action=retry" in link and "reason_group=550" in link
    )
    asked = failed.get(question)
    assert asked.heading == "Retry 3 deliveries?"
    done = failed.follow(act(failed, question, because="their server is mended"))
    assert "3 deliveries are due now." in done.text
    assert states(shop).count("ready") == 6
    shop.dispatch_all()
    assert sorted(states(shop)) == ["done"] * 3 + ["ready"] * 3
    page = failed.get("/acts/1")
    assert "3 done" in page.text
    assert "their server is mended" in page.text
    assert shop.execute_scalar("SELECT acted_by || ' ' || reason FROM operator_acts") == (
        "console:local their server is mended"
    )


def test_one_delivery_is_discarded_with_a_reason(shop: Shop, failed: Visitor) -> None:
    number = next(each.delivery_id for each in shop.deliveries() if each.state == "dead")
    question = f"/deliveries/act?action=discard&delivery_id={number}"
    refused = act(failed, question, because=" ")
    assert refused.status == 422
    assert "Say why" in refused.text
    assert shop.count("operator_acts") == 0
    failed.follow(act(failed, question, because="a duplicate"))
    (discarded,) = [each for each in shop.deliveries() if each.state == "discarded"]
    assert (discarded.delivery_id, discarded.reason) == (number, "a duplicate")


def test_what_failed_since_it_was_counted_is_not_touched(shop: Shop, backend: Backend, failed: Visitor) -> None:
    """Order 1 is tried and refused again between the question and the answer; orders 6 and 7 are new."""
    question = "/deliveries/act?action=retry&state=dead"
    form = failed.get(question).forms["/deliveries/act"]
    assert form["counted"] == "3"
    shop.clock.advance(1)
    shop.bus.retry(Filter(order_id="1"), by="another")
    shop.dispatch()
    shop.place_order("7", user_id="u7")
    shop.dispatch()
    assert states(shop).count("dead") == 4
    failed.follow(failed.post("/deliveries/act", **form))
    touched = shop.execute_scalar("SELECT group_concat(order_id) FROM (SELECT order_id FROM deliveries "
                                  "JOIN events USING (event_id) WHERE state = 'ready' AND outcome IS NULL "
                                  "ORDER BY order_id)") if shop.database.is_sqlite else "3,5"  # fmt: skip
    assert touched == "3,5"
    assert shop.execute_scalar("SELECT counted FROM operator_acts ORDER BY act_id DESC LIMIT 1") == 2


def test_where_more_matches_than_was_counted_it_is_asked_again(shop: Shop, failed: Visitor) -> None:
    form = failed.get("/deliveries/act?action=retry&state=dead").forms["/deliveries/act"]
    page = failed.post("/deliveries/act", **(form | {"counted": "2"}))
    assert page.status == 200
    assert "There are more than were counted" in page.text
    assert page.forms["/deliveries/act"]["counted"] == "3"
    assert shop.count("operator_acts") == 0


def test_without_a_filter_it_is_asked_twice(shop: Shop, failed: Visitor) -> None:
    first = act(failed, "/deliveries/act?action=discard", because="all of them are tests")
    assert first.status == 200
    assert "You gave no filter" in first.text
    assert shop.count("operator_acts") == 0
    failed.follow(failed.post("/deliveries/act", **first.forms["/deliveries/act"]))
    assert states(shop) == ["discarded"] * 6


def test_the_tries_are_spread_over_a_time(shop: Shop, failed: Visitor) -> None:
    act(failed, "/deliveries/act?action=retry&state=dead", over="60")
    now = shop.clock.now()
    due = sorted((each.due_at - now).total_seconds() for each in shop.deliveries() if each.outcome is None)
    assert due == [0, 20, 40]


def test_too_long_a_time_is_refused(shop: Shop, failed: Visitor) -> None:
    page = act(failed, "/deliveries/act?action=retry&state=dead", over="100000000")
    assert page.status == 422
    assert shop.count("operator_acts") == 0


def test_an_open_breaker_is_probed_where_that_is_wanted(shop: Shop, backend: Backend) -> None:
    backend.error = Unreachable("no route")
    shop.place_order("1")
    for _ in range(4):
        shop.dispatch()
        shop.clock.advance(2)
    visitor = Visitor(shop)
    shop.execute("UPDATE circuit_breakers SET probe_at = :at", at=shop.clock.now().replace(hour=20))
    act(visitor, "/deliveries/act?action=retry&order_id=1", probe="1")
    backend.works = True
    shop.dispatch_all()
    assert states(shop) == ["done"]


def test_nothing_is_left_where_all_was_tried_meanwhile(shop: Shop, backend: Backend, failed: Visitor) -> None:
    form = failed.get("/deliveries/act?action=retry&state=dead").forms["/deliveries/act"]
    shop.bus.discard(Filter(), "closed", by="another")
    page = failed.follow(failed.post("/deliveries/act", **form))
    assert "Nothing of it is left" in page.text
    assert shop.count("operator_acts") == 1


def test_what_is_done_or_under_way_can_not_be_acted_on(shop: Shop, backend: Backend) -> None:
    backend.works = True
    shop.place_order("1")
    shop.dispatch_all()
    page = Visitor(shop).get("/deliveries/act", action="retry", delivery_id="1")
    assert "Nothing to touch" in page.text
    assert page.forms.keys() == set()


# In the background


def join(name: str) -> None:
    for thread in threading.enumerate():
        if thread.name.startswith(name):
            thread.join(20)
            assert not thread.is_alive()


def test_a_large_act_goes_on_without_its_page(shop: Shop, failed: Visitor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operate, "BATCH", 2)
    act(failed, "/deliveries/act?action=retry&state=dead")
    join("act 1")
    assert states(shop).count("ready") == 6
    with shop.database.read() as session:
        found = acts.find_act(session, 1, shop.clock.now())
    assert (found.state, found.counted, found.deliveries) == ("ended", 3, 3)


def test_a_large_act_waits_for_the_database_and_goes_on(
    shop: Shop, failed: Visitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first batch is touched; what was counted stays what it was."""
    monkeypatch.setattr(operate, "BATCH", 2)
    monkeypatch.setattr(background, "AGAIN_SECONDS", 0.01)
    chosen = shop.bus.choose(Act("retry", Filter(state="dead"), "ann"))
    transact, left = shop.database.transact, [1, 1, 1, 0, 0]  # it is recorded, begins, and touches a batch

    def sometimes(work: Any) -> Any:
        if left and not left.pop(0):
            raise DatabaseUnavailable
        return transact(work)

    monkeypatch.setattr(shop.database, "transact", sometimes)
    background.carry_out(shop.bus, chosen)
    join("act 1")
    with shop.database.read() as session:
        found = acts.find_act(session, 1, shop.clock.now())
    assert (found.state, found.counted, found.deliveries) == ("ended", 3, 3)


def test_an_act_that_was_left_is_gone_on_with(shop: Shop, failed: Visitor) -> None:
    """By who began it, and what was counted then."""
    chosen = shop.bus.choose(Act("retry", Filter(state="dead", receiver="deliver"), "console:local", "why not"))
    shop.bus.start(chosen)
    shop.clock.advance(acts.LEFT_AFTER.total_seconds() + 1)
    page = failed.get("/acts/1")
    assert "left in the middle" in page.text
    shop.place_order("7")
    shop.dispatch()
    failed.follow(failed.submit("/acts/1", "/acts/1/go-on"))
    with shop.database.read() as session:
        found = acts.find_act(session, 1, shop.clock.now())
    assert (found.state, found.counted, found.deliveries) == ("ended", 3, 3)
    assert (
        "Only who began it"
        in failed.follow(failed.post("/acts/1/go-on", token=page.forms["/acts/1/go-on"]["token"])).text
    )


def test_nobody_else_goes_on_with_it(shop: Shop, failed: Visitor) -> None:
    shop.bus.start(shop.bus.choose(Act("retry", Filter(state="dead"), "cli:ann")))
    shop.clock.advance(acts.LEFT_AFTER.total_seconds() + 1)
    page = failed.get("/acts/1")
    assert set(page.forms) == {"/acts/1/abort"}
    assert "Only who began it" in failed.follow(failed.post("/acts/1/go-on", **page.forms["/acts/1/abort"])).text
    assert states(shop).count("dead") == 3


# Acts, looked at


def test_who_did_what_is_listed_newest_first(shop: Shop, failed: Visitor) -> None:
    assert "Nobody has done anything yet" in failed.get("/acts").text
    act(failed, "/deliveries/act?action=retry&state=dead&user_id=u1", because="asked by phone")
    shop.bus.discard(Filter(order_id="2"), "a duplicate", by="cli:bob")
    rows = [row for row in failed.get("/acts").rows if row]
    assert [row[:1] + row[2:7] for row in rows] == [
        ["2", "cli:bob", "discard", "Order 2", "a duplicate", "1 / 1"],
        ["1", "console:local", "retry", "State dead, User u1", "asked by phone", "1 / 1"],
    ]
    assert shop.count("operator_acts") == len(rows)


def test_acts_are_paged(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.console.acts.PAGE_SIZE", 2)
    shop.place_order()
    for _ in range(3):
        shop.bus.retry(Filter(), by="ann")
    page = Visitor(shop).get("/acts")
    assert page.column(0) == ["3", "2"]
    assert Visitor(shop).get(next(link for link in page.links if "cursor=" in link)).column(0) == ["1"]


def test_what_an_act_brought_agrees_with_the_database(shop: Shop, backend: Backend, failed: Visitor) -> None:
    act(failed, "/deliveries/act?action=retry&receiver=deliver", over="600")
    backend.works = True
    shop.dispatch()
    shop.dispatch()
    page = failed.get("/acts/1")
    done = shop.execute_scalar("SELECT count(*) FROM deliveries JOIN operator_act_deliveries USING (delivery_id) "
                               "WHERE state = 'done'")  # fmt: skip
    assert f"{done} done" in page.text
    assert f"{6 - done} not tried yet" in page.text
    assert 0 < done < 6


def test_an_act_is_aborted(shop: Shop, failed: Visitor) -> None:
    act(failed, "/deliveries/act?action=retry&state=dead", over="600")
    page = failed.follow(failed.submit("/acts/1", "/acts/1/abort"))
    assert "3 deliveries are again what they were before." in page.text
    assert "aborted" in page.text
    assert states(shop).count("dead") == 3
    assert "/acts/1/abort" not in page.forms


def test_a_large_act_is_aborted_in_the_background(shop: Shop, failed: Visitor, monkeypatch: pytest.MonkeyPatch) -> None:
    act(failed, "/deliveries/act?action=retry&state=dead", over="600")
    monkeypatch.setattr(operate, "BATCH", 2)
    assert "is being aborted" in failed.follow(failed.submit("/acts/1", "/acts/1/abort")).text
    join("abort of act 1")
    assert states(shop).count("dead") == 3


def test_live_acts_are_told_once(shop: Shop, failed: Visitor) -> None:
    act(failed, "/deliveries/act?action=retry&state=dead", over="600")
    for path in ("/acts/live", "/acts/1/live"):
        first = failed.get(path)
        tag = first.response.headers["ETag"]
        assert failed.get(path, {"If-None-Match": tag}).status == 304
    shop.dispatch()
    assert failed.get("/acts/1/live", {"If-None-Match": tag}).status == 200


@pytest.mark.parametrize("path", ["/acts/7", f"/acts/{2**70}", "/acts/7/live"])
def test_an_act_that_is_not_there_is_said(shop: Shop, path: str) -> None:
    assert Visitor(shop).get(path).status == 404


# The commands' own functions


@pytest.mark.parametrize(
    "which, count",
    [
        (Filter(tried=True), 6),
        (Filter(state="ready", tried=True), 3),
        (Filter(state="ready", tried=False), 0),
        (Filter(reason_group="550 <address>: no such user"), 3),
        (Filter(reason_group="550 <address>"), 0),
        (Filter(reason_group="450 busy", state="dead"), 0),
    ],
    ids=str,
)
def test_a_filter_means_the_same_for_finding_counting_and_acting(
    shop: Shop, failed: Visitor, which: Filter, count: int
) -> None:
    with shop.database.read() as session:
        found, _ = operate.find(session, which, states=operate.NOT_DONE)
        assert len(found) == operate.count(session, "retry", which) == count
        groups, _ = operate.group_by_reason(session, which, operate.NOT_DONE)
        assert sum(group.deliveries for group in groups) == count
    assert shop.bus.discard(which, "a test", by="test") == count


def test_a_long_reason_has_a_group_too(shop: Shop, backend: Backend) -> None:
    backend.error = Refused("550 订单 " * 250)
    shop.place_order()
    shop.dispatch()
    with shop.database.read() as session:
        (group,), _ = operate.group_by_reason(session, Filter())
        assert group.reason is not None
        assert len(group.reason) == operate.KIND_CHARACTERS
        assert operate.count(session, "retry", Filter(reason_group=group.reason)) == 1
    links = [link for link in Visitor(shop).get("/deliveries").links if "reason_group" in link]
    assert links
    assert max(map(len, links)) < 4094  # of a request line
