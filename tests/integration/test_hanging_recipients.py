"""benchmarks/hanging_recipients.py plays the engine as it is: what it prints is what a service would do."""

from pathlib import Path

import pytest

from benchmarks.hanging_recipients import Played

pytestmark = pytest.mark.slow


def test_who_hangs_gets_three_copies_at_most_and_the_others_their_mail(tmp_path: Path) -> None:
    played = Played(tmp_path, 0, "message")
    try:
        for n in range(3):
            played.place(f"hangs-{n}")
        for n in range(20):
            played.at(15.0 * n, lambda n=n: played.place(f"ordinary-{n}"))  # type: ignore[misc]
        played.play(1800.0)
    finally:
        played.database.close()
    assert played.sent.keys() == {f"ordinary-{n}" for n in range(20)}
    copies = [played.server.copies[f"hangs-{n}@example.com"] for n in range(3)]
    assert all(2 <= each <= 3 for each in copies), copies
