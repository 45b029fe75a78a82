"""Ids made from the time: they sort in the order in which they were made."""

import os
import threading
import time
from uuid import RFC_4122, UUID

from app.clock import DRAWN_AT_ONCE, TimeOrderedIds, uuid7


def test_an_id_is_a_uuid_of_version_7_that_tells_when_it_was_made() -> None:
    before = time.time_ns() // 1_000_000
    made = uuid7()
    after = time.time_ns() // 1_000_000
    assert str(UUID(made)) == made
    assert (UUID(made).version, UUID(made).variant) == (7, RFC_4122)
    assert before <= UUID(made).int >> 80 <= after + 1


def test_ids_sort_in_the_order_they_were_made() -> None:
    made = [uuid7() for _ in range(10_000)]
    assert made == sorted(set(made))


def test_a_clock_that_is_set_back_makes_no_id_that_sorts_before_an_earlier_one() -> None:
    times = [time.time_ns(), 0, 0]
    ids = TimeOrderedIds(lambda: times.pop(0))
    assert ids.make() < ids.make() < ids.make()


def test_threads_never_make_the_same_id_and_each_makes_its_own_in_order() -> None:
    made: list[list[str]] = [[] for _ in range(4)]

    def make(own: list[str]) -> None:
        own.extend(uuid7() for _ in range(2_000))

    threads = [threading.Thread(target=make, args=[own]) for own in made]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({each for own in made for each in own}) == 8_000
    assert all(own == sorted(own) for own in made)


def test_a_child_process_makes_no_id_of_what_its_parent_drew() -> None:
    """Both have the same random bytes in memory, and the same time."""
    uuid7()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writer, " ".join(uuid7()[-17:] for _ in range(DRAWN_AT_ONCE)).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        theirs = pipe.read().split()
    os.waitpid(child, 0)
    assert len(theirs) == DRAWN_AT_ONCE
    assert not {uuid7()[-17:] for _ in range(DRAWN_AT_ONCE)} & set(theirs)
