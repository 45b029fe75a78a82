"""Why a delivery is tried when it is: each sentence can be taken apart again, whatever stands in it."""

import itertools
import random

import pytest

from app.retry import Costs, LearnedPolicy, Obstacle, Scope
from app.retry.ages import BUCKETS, HORIZON, LEVELS
from app.retry.causes import BY_CODE, BY_DETAIL, BY_OUTCOME, BY_SUBJECT, Cause
from app.retry.table import Entry, Table, entry_key
from app.retry.why import CLAUSES, DUE, ENDS, GIVEN_UP, OWN, OWN_FIRST, SENTENCES, WAITED, Parts, parts

CAUSES = [cause for known in (BY_OUTCOME, BY_CODE, BY_DETAIL, BY_SUBJECT) for cause in known.values()]
PLAIN = {
    **dict.fromkeys(("wait", "age", "late", "lasted"), "4.27 min"),
    "chance": "7%",
    "kind": "mailbox full",
    "rate": "2.5e+03",
    "waiting": "4096",
    "version": "12",
    "ends": "345",
    "count": "6",
    "behind": "17",
    "by": "user_id",
}


def said(told: Parts) -> str:
    template, values = told
    return template % {name: value if isinstance(value, str) else said(value) for name, value in values.items()}


@pytest.mark.parametrize("template", SENTENCES)
def test_a_sentence_is_taken_apart_and_put_together(template: str) -> None:
    for what, source in itertools.product(CLAUSES["what"], CLAUSES["source"]):
        sentence = template % (PLAIN | {"what": what % PLAIN, "source": source % PLAIN})
        found = parts(sentence)
        assert found is not None
        assert found[0] == template
        assert said(found) == sentence
        for name, clause in (("what", what), ("source", source)):
            if name in found[1]:
                assert found[1][name][0] == clause


@pytest.mark.parametrize("cause", CAUSES, ids=lambda cause: cause.kind)
def test_whatever_the_policy_says_can_be_taken_apart(cause: Cause) -> None:
    """At any age, for any number that waits; also what it says without a table."""
    rng = random.Random(1)
    table = Table(7, 0.0, Costs(), {entry_key("r", scope, cause.kind): entry(rng) for scope in Scope})
    for policy in (LearnedPolicy(rng=rng), LearnedPolicy(table, rng=rng)):
        for scope, age in itertools.product(Scope, (-1.0, 0.0, 0.3, 119.9, 7000.0, 1e5, HORIZON)):
            for waiting in (1, 2, 5000):
                sentence = policy.decide(Obstacle("r", scope, cause, age, waiting)).sentence()
                found = parts(sentence)
                assert found is not None, sentence
                assert said(found) == sentence


def entry(rng: random.Random) -> Entry:
    plan = tuple(tuple(rng.choice((1, 5, -4, 0)) for _ in range(BUCKETS)) for _ in LEVELS)
    return Entry((0.01,) * BUCKETS, (0.0,) * (BUCKETS + 1), plan, (1.0,) * BUCKETS, transitions=40, ends=30)


def test_a_sentence_says_what_it_is_about() -> None:
    found = parts(
        "Given up: this delivery has failed with greylisted for 3 days, and another attempt would cost more than its "
        "chance is worth (30 such ends seen, table 7)."
    )
    assert found == (
        GIVEN_UP,
        {"what": (OWN, {"kind": "greylisted", "age": "3 days"}), "source": (ENDS, {"ends": "30", "version": "7"})},
    )
    assert OWN_FIRST % {"kind": "bug"} == "this delivery has failed with bug for the first time"


@pytest.mark.parametrize(
    "sentence",
    [
        "",
        "an older reason",
        DUE + " ",
        "a person asked for it",
        WAITED % (PLAIN | {"what": "so it was", "source": "x"}),
    ],
)
def test_what_is_none_of_ours_is_left_alone(sentence: str) -> None:
    assert parts(sentence) is None
