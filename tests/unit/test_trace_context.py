"""The header ``traceparent`` (W3C Trace Context): what is taken, and what counts as not sent."""

import pytest

from app.trace_context import parse, trace_id

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
SPAN = "00f067aa0ba902b7"
GOOD = f"00-{TRACE}-{SPAN}-01"


@pytest.mark.parametrize(
    "header, taken",
    [
        (GOOD, GOOD),
        (f"00-{TRACE}-{SPAN}-00", f"00-{TRACE}-{SPAN}-00"),  # not sampled: still the same trace
        (f" {GOOD}\t", GOOD),  # optional white space around a header's value
        (f"cc-{TRACE}-{SPAN}-01", GOOD),  # a later version has the same four fields
        (f"cc-{TRACE}-{SPAN}-01-what-the-future-is-like", GOOD),
        (None, None),
        ("", None),
        (f"ff-{TRACE}-{SPAN}-01", None),  # ff is no version
        (f"{GOOD}-more", None),  # version 00 ends after the flags
        (f"cc-{TRACE}-{SPAN}-01.more", None),
        (f"00-{'0' * 32}-{SPAN}-01", None),  # all zero is no id
        (f"00-{TRACE}-{'0' * 16}-01", None),
        (f"00-{TRACE.upper()}-{SPAN}-01", None),
        (f"00-{TRACE[:-1]}-{SPAN}-01", None),
        (f"00-{TRACE}-{SPAN}-1", None),
        (f"00-{TRACE}-{SPAN}", None),
        (f"0x-{TRACE}-{SPAN}-01", None),
        (f"{GOOD},{GOOD}", None),  # sent twice
        (f"{GOOD}\r\nBcc: all@example.com", None),
        (f"{GOOD}\n", None),
        ("00-" + "\N{FULLWIDTH DIGIT ONE}" * 32 + f"-{SPAN}-01", None),
    ],
)
def test_a_wrong_header_counts_as_not_sent(header: str | None, taken: str | None) -> None:
    assert parse(header) == taken


def test_the_trace_is_the_second_field() -> None:
    assert trace_id(GOOD) == TRACE
