"""The watchdog's watch, by a clock that is moved by hand."""

from app.engine.inprocess.stopwatch import LOOK_SECONDS, WARN_SECONDS, Stopwatch


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_each_is_watched_from_the_first_look_until_it_is_missing() -> None:
    clock = Clock()
    watch: Stopwatch[str] = Stopwatch(clock)
    assert watch.look(["a"]) == {"a": 0}
    clock.now += 1
    assert watch.look(["a", "b"]) == {"a": 1, "b": 0}
    clock.now += 1
    assert watch.look(["b"]) == {"b": 1}
    clock.now += 1
    assert watch.look(["a", "b"]) == {"a": 0, "b": 2}


def test_while_the_process_is_stopped_no_time_passes() -> None:
    """Else everything that ran when it was stopped would be found to hang."""
    clock = Clock()
    watch: Stopwatch[str] = Stopwatch(clock)
    watch.look(["a"])
    clock.now += 3600
    assert watch.look(["a"]) == {"a": 2 * LOOK_SECONDS}


def test_a_warning_is_due_after_a_while_and_then_after_twice_as_long() -> None:
    clock = Clock()
    watch: Stopwatch[str] = Stopwatch(clock)
    watch.look(["a"])
    warned = []
    for second in range(1, 101):
        clock.now += 1
        watch.look(["a"])
        if watch.is_worth_a_warning("a"):
            warned.append(second)
    assert warned == [WARN_SECONDS, 2 * WARN_SECONDS, 4 * WARN_SECONDS, 8 * WARN_SECONDS]
