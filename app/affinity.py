"""CPU affinity: each process that serves or dispatches keeps to one core.

Its threads take turns with one interpreter lock. On one core the next goes on at once. Else another core is woken
for it, whose caches hold nothing of the process: a fifth fewer POSTs, and a fifth fewer deliveries.
"""

import fcntl
import os
from collections import Counter
from contextlib import suppress
from pathlib import Path


def keep_to_a_core(serving: int) -> None:
    """Bind this process, with the threads that it will start, to the core that the fewest of its siblings are bound to.

    ``serving`` processes serve (WEB_CONCURRENCY). Only where each core gets as many of them is anything bound. Where
    there are more cores, the kernel chooses: several services on a large machine would all be bound to its first ones.
    """
    if not hasattr(os, "sched_getaffinity"):  # macOS
        return
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) == 1 or serving % len(cores):
        return
    # One after another: siblings start together. Not told the siblings by the kernel, leave the choice to it.
    with suppress(OSError), Path(__file__).open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        bound = Counter(_cores_of_siblings())
        os.sched_setaffinity(0, {min(cores, key=lambda core: (bound[core], core))})


def _cores_of_siblings() -> list[int]:
    """The cores to which processes of the same parent are bound. Raises FileNotFoundError where there is no /proc."""
    found = []
    parent = os.getppid()
    for pid in map(int, Path(f"/proc/{parent}/task/{parent}/children").read_text().split()):
        with suppress(ProcessLookupError):  # it has just ended
            found.append(os.sched_getaffinity(pid))
    return [next(iter(cores)) for cores in found if len(cores) == 1]
