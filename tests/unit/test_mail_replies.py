"""What a server's reply means for a mail."""

import pytest

from app.errors import AttemptFailed, Deferred, Refused, Throttled, Unreachable
from app.mail.replies import meaning
from app.text import one_line


@pytest.mark.parametrize(
    ("code", "text", "kind"),
    [
        (550, "5.1.1 No such user", Refused),
        (550, "No such user", Refused),  # servers without enhanced codes exist
        (554, "5.7.1 Spam", Refused),
        (552, "5.3.4 Message too big", Refused),
        (599, "", Refused),
        (451, "4.3.0 Local error", Deferred),
        (450, "4.2.1 Mailbox disabled", Deferred),
        (450, "4.7.1 Greylisted", Deferred),
        (451, "4.4.1 No answer from host", Deferred),
        (400, "", Deferred),
        (499, "", Deferred),
        (421, "4.3.2 Shutting down", Throttled),
        (421, "", Throttled),
        (452, "4.3.1 Insufficient system storage", Throttled),
        (452, "4.5.3 Too many recipients", Throttled),
        (452, "4.2.2 Mailbox full", Deferred),  # one user's mailbox says nothing about how fast we send
        (450, "4.7.0 Too much mail from your address", Throttled),
        (451, "4.7.500 Server busy", Throttled),
        (450, "4.7.28 Unusual rate", Throttled),
        (451, "4.3.2 Please slow down", Throttled),
        (451, "4.4.5 Congestion", Throttled),
        (451, "14.7.0 isn't an enhanced code", Deferred),
        (530, "5.7.0 Authentication required", Unreachable),  # somebody must correct a setting, not the mail
        (535, "5.7.8 Bad credentials", Unreachable),
    ],
)
def test_a_reply_means_what_the_rfcs_say(code: int, text: str, kind: type[AttemptFailed]) -> None:
    assert meaning(code, text) is kind


def test_a_servers_words_come_on_one_line_without_control_characters() -> None:
    assert (
        one_line(b"5.1.1 no\x1b[31m such\r\n5.1.1\x00 user\t\xff ")
        == "5.1.1 no [31m such 5.1.1 user \N{REPLACEMENT CHARACTER}"
    )
    assert one_line("right\u202eto left") == "right to left"


def test_a_servers_words_are_trimmed() -> None:
    assert len(one_line(b"x" * 5000)) == 300
