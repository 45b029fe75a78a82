"""Why requests are answered 503 is logged, and not once for each of them."""

from types import SimpleNamespace

import pytest

from app.api import error_handlers
from app.api.error_handlers import SAY_AGAIN_SECONDS, OutageLog


def test_a_reason_is_told_once_and_again_while_it_lasts(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = 100.0
    monkeypatch.setattr(error_handlers, "time", SimpleNamespace(monotonic=lambda: now))
    log = OutageLog()
    for after, reason in [(0, "full"), (1, "full"), (1, "gone"), (SAY_AGAIN_SECONDS - 0.1, "gone"), (0.1, "gone")]:
        now += after
        log.tell(reason)
    assert caplog.messages == [f"answering 503: {reason}" for reason in ("full", "gone", "gone")]
