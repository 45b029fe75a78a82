"""W3C Trace Context: the header ``traceparent``, by which one trace goes through several systems.

https://www.w3.org/TR/trace-context/, level 1. ``tracestate`` is not kept.
"""

import re

_TRACEPARENT = re.compile(
    r"(?!ff)(?P<version>[0-9a-f]{2})"
    r"(?P<fields>-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2})"
    r"(?P<more>-.*)?",
    re.DOTALL,
)
"""The fields are the trace's id, the parent's id, and flags."""


def parse(header: str | None) -> str | None:
    """The header as version 00 writes it; None where there is none, or a wrong one: then it counts as not sent.

    A later version may have more behind these fields, which is left out; version 00 may not.
    """
    found = _TRACEPARENT.fullmatch((header or "").strip(" \t"))
    if found is None or (found["version"] == "00" and found["more"]):
        return None
    return f"00{found['fields']}"


def trace_id(traceparent: str) -> str:
    return traceparent[3:35]
