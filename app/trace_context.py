"""W3C Trace Context: the header ``traceparent``, by which one trace goes through several systems.

https://www.w3.org/TR/trace-context/, level 1. ``tracestate`` is not kept.
"""

import re

_TRACEPARENT = re.compile(
    r"(?!ff)[0-9a-f]{2}-(?!0{32})(?P<trace_id>[0-9a-f]{32})-(?!0{16})(?P<parent_id>[0-9a-f]{16})-[0-9a-f]{2}"
)


def parse(header: str | None) -> str | None:
    """The header as version 00 writes it; None where there is none, or a wrong one: then it counts as not sent.

    A later version may have more behind these fields, which is left out; version 00 may not.
    """
    if header is None:
        return None
    found = _TRACEPARENT.match(header.strip(" \t"))
    if found is None:
        return None
    rest = found.string[found.end() :]
    if rest and (header.strip(" \t").startswith("00") or not rest.startswith("-")):
        return None
    return f"00{found[0][2:]}"


def trace_id(traceparent: str) -> str:
    return traceparent[3:35]
