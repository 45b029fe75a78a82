"""SMTP replies and their meaning: RFC 5321 for the codes, RFC 3463 for the enhanced ones such as 4.7.0."""

import re

from app.errors import AttemptFailed, Deferred, Refused, Throttled, Unreachable

CLOSING = 421
"""The one code after which the server closes the connection (RFC 5321, section 3.8)."""

LOGIN_WANTED = frozenset({530, 534, 535, 538})
"""RFC 4954: the server turns us down, not this mail, until somebody corrects the settings."""

_ENHANCED = re.compile(r"\s*([245]\.(\d{1,3})\.(\d{1,3}))\b")
_CONGESTION = frozenset({(3, 2), (4, 5), (5, 3)})  # not accepting messages, congested, too many recipients
_ADDRESS, _MAILBOX, _POLICY = 1, 2, 7
_GREYLISTED = (_POLICY, 1)


def meaning(code: int, text: str) -> type[AttemptFailed]:
    """The kind of failure that a 4xx or 5xx reply to a mail means."""
    if code in LOGIN_WANTED:
        return Unreachable
    if code >= 500:
        return Refused
    return Throttled if _is_about_rate(code, text) else Deferred


def enhanced_code(text: str) -> str | None:
    """The enhanced code that a reply's text begins with."""
    found = _ENHANCED.match(text)
    return found[1] if found else None


def _is_about_rate(code: int, text: str) -> bool:
    """A reply about one address or mailbox never is; 4.7.1 is how greylisting says "the first time"."""
    found = _ENHANCED.match(text)
    subject, detail = (int(found[2]), int(found[3])) if found else (0, 0)
    if subject in (_ADDRESS, _MAILBOX) or (subject, detail) == _GREYLISTED:
        return False
    return code in (CLOSING, 452) or subject == _POLICY or (subject, detail) in _CONGESTION
