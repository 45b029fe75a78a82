"""Identifiers: the syntax that an order_id and a user_id share."""

import re

ID_PATTERN = r"(?!\.{1,2}$)[A-Za-z0-9._:-]{1,64}"
"""Not ``.`` or ``..``: clients remove such a segment from a URL (RFC 3986, 5.2.4), so that no URL names the record."""

UUID_PATTERN = "[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"
"""Of an event's id."""

_IDENTIFIER = re.compile(ID_PATTERN)


def is_identifier(value: str) -> bool:
    return _IDENTIFIER.fullmatch(value) is not None
