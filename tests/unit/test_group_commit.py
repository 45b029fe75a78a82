"""Group commit without a database: ``run_batch`` is injected, and one thread plays all."""

from collections.abc import Callable
from typing import Any

import pytest

from app.db.dialect import Trouble, Unanswered
from app.db.group_commit import LARGEST_BATCH, GroupCommit, Work
from app.errors import DatabaseUnavailable


class Busy(Exception):
    """Passes."""


class DiskFull(Exception):
    """Passes, but not soon."""


class Late(Unanswered):
    """Passes, and nobody knows what it was."""


class OneWriter:
    one_writer = True

    def trouble(self, error: BaseException) -> Trouble | None:
        return {Busy: Trouble.MOMENT, DiskFull: Trouble.LASTING, Late: Trouble.SERVER}.get(type(error))

    def is_transient(self, error: BaseException) -> bool:
        return self.trouble(error) is not None

    def cure(self, error: BaseException) -> None:
        pass


class EndlessAdmission:
    """Admission control: works that began before ``allowed_since`` may wait no longer; those that began before
    ``in_time_since`` are overdue."""

    allowed_since = in_time_since = 0.0

    def may_wait(self, began: float, seconds: float = 0) -> bool:
        return began >= self.allowed_since

    def is_overdue(self, began: float, seconds: float = 0) -> bool:
        return began < self.in_time_since

    def transaction_ended(self) -> None:
        pass


class Commits:
    """Runs batches by name. ``faults`` are what the next ones raise."""

    def __init__(self) -> None:
        self.admission = EndlessAdmission()
        self.group: Any = GroupCommit(self.run_batch, OneWriter(), self.admission)  # type: ignore[arg-type]
        self.batches: list[str] = []
        self.fault: Callable[[str], BaseException | None] = lambda _: None

    def submit(self, names: str) -> list[Work]:
        """A work for each letter; they begin to wait at 1, 2, 3 and so on."""
        works = [Work(lambda _: None, name, began) for began, name in enumerate(names, 1)]
        for work in works:
            self.group.submit(work)
        return works

    def run_batch(self, take_works: Callable[[], list[Work]]) -> None:
        names = "".join(work.lock_order for work in take_works())
        self.batches.append(names)
        if (fault := self.fault(names)) is not None:
            raise fault


@pytest.fixture
def commits() -> Commits:
    return Commits()


def test_the_first_leads_and_runs_the_works_of_all(commits: Commits) -> None:
    a, b, c = works = commits.submit("abc")
    commits.group.wait(a)
    assert all(work.done for work in works)
    for follower in (b, c):
        commits.group.wait(follower)
    assert commits.batches == ["abc"]
    assert commits.group.leaders == 0


def test_a_batch_has_a_limit_and_the_next_in_the_queue_leads(commits: Commits) -> None:
    works = commits.submit("x" * LARGEST_BATCH + "y")
    commits.group.wait(works[0])
    assert commits.group.waiting == 0, "the next one leads"
    assert not works[-1].done
    commits.group.wait(works[-1])
    assert commits.batches == ["x" * LARGEST_BATCH, "y"]


def test_after_a_failure_each_work_runs_alone_and_late_ones_do_not_join(commits: Commits) -> None:
    commits.fault = lambda names: ValueError("no") if "b" in names else None
    a, b, c = commits.submit("abc")
    commits.group.wait(a)
    (late,) = commits.submit("d")
    for work in (b, c, late):
        commits.group.wait(work)
    assert commits.batches == ["abc", "a", "b", "c", "d"]
    with pytest.raises(ValueError, match="no"):
        b.outcome()


def test_each_work_waits_for_a_busy_database_until_its_own_time_is_up(commits: Commits) -> None:
    """Even a leader is told when its own time is up, though others share its commit."""
    a, b = commits.submit("ab")
    commits.admission.allowed_since = b.began
    commits.fault = lambda _: None if a.done else Busy()
    commits.group.wait(a)
    commits.group.wait(b)
    with pytest.raises(DatabaseUnavailable):
        a.outcome()
    assert b.outcome() is None
    assert commits.batches == ["ab", "a", "b"]


def test_works_in_the_queue_are_told_too_when_their_time_is_up(commits: Commits) -> None:
    a, b, c = commits.submit("abc")
    commits.admission.allowed_since = c.began
    commits.fault = lambda _: None if b.done else Busy()
    commits.group.wait(a)
    commits.group.wait(b)
    with pytest.raises(DatabaseUnavailable):
        b.outcome()
    commits.group.wait(c)
    assert c.outcome() is None


def test_works_whose_time_was_up_when_their_commit_failed_are_not_tried_again(commits: Commits) -> None:
    """The answer of a server that is dead is waited for once."""
    a, b, c = commits.submit("abc")
    commits.admission.in_time_since = c.began
    commits.fault = lambda names: Busy() if names == "abc" else None
    for work in (a, b, c):
        commits.group.wait(work)
    for work in (a, b):
        with pytest.raises(DatabaseUnavailable):
            work.outcome()
    assert c.outcome() is None
    assert commits.batches == ["abc", "c"]


def test_a_work_that_is_wrong_is_no_reason_to_give_others_up(commits: Commits) -> None:
    a, b = commits.submit("ab")
    commits.admission.in_time_since = b.began + 1
    commits.fault = lambda names: ValueError("no") if "b" in names else None
    for work in (a, b):
        commits.group.wait(work)
    assert a.outcome() is None
    with pytest.raises(ValueError, match="no"):
        b.outcome()


def test_a_full_disk_is_not_waited_for(commits: Commits) -> None:
    commits.fault = lambda _: DiskFull()
    a, b = commits.submit("ab")
    commits.group.wait(a)
    commits.group.wait(b)
    for work in (a, b):
        with pytest.raises(DatabaseUnavailable):
            work.outcome()
    assert commits.batches == ["ab", "a"], "once together, once alone"


@pytest.mark.parametrize("whose", ["a", "b"])
def test_a_work_that_ends_its_thread_harms_neither_its_leader_nor_its_followers(commits: Commits, whose: str) -> None:
    """A work runs in whichever thread leads; what it raises is its own caller's, SystemExit too."""
    commits.fault = lambda names: SystemExit(1) if whose in names else None
    works = commits.submit("abc")
    for work in works:
        commits.group.wait(work)
    assert commits.batches == ["abc", "a", "b", "c"]
    for name, work in zip("abc", works, strict=True):
        if name == whose:
            with pytest.raises(SystemExit):
                work.outcome()
        else:
            assert work.outcome() is None


def test_a_leader_that_is_stopped_between_its_tries_leaves_the_others_works_to_them(
    commits: Commits, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C while it waits for a busy database."""

    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    commits.fault = lambda names: Busy() if names == "a" else None
    a, b, c = commits.submit("abc")
    monkeypatch.setattr("time.sleep", interrupt)
    commits.fault = lambda names: Busy() if "a" in names else None
    with pytest.raises(KeyboardInterrupt):
        commits.group.wait(a)
    for work in (b, c):
        commits.group.wait(work)
    assert commits.batches == ["abc", "a", "b", "c"]


def test_a_work_without_a_commit_and_without_an_error_is_no_success() -> None:
    with pytest.raises(RuntimeError, match="without a commit"):
        Work(lambda _: None, "", 0).outcome()


@pytest.mark.parametrize(("faults", "told"), [([Busy, Late], Busy), ([Late], Late), ([Late, Busy], Busy)])
def test_an_answer_that_did_not_come_hides_no_trouble_that_was_told_before(
    commits: Commits, faults: list[type[Exception]], told: type[Exception]
) -> None:
    (a,) = commits.submit("a")
    left = iter(faults)

    def fault(_: str) -> BaseException:
        found = next(left)()
        commits.admission.allowed_since = a.began + 1 if type(found) is faults[-1] else 0
        return found

    commits.fault = fault
    commits.group.wait(a)
    with pytest.raises(DatabaseUnavailable) as raised:
        a.outcome()
    assert isinstance(raised.value.__cause__, told)
