"""Text from outside, made safe for a column, a log line, a header or a terminal.

Mail servers, clients, operators and exceptions send anything: line breaks that forge a log line, escape sequences that
move a terminal's cursor, NUL bytes that no column takes. Each function here makes one destination safe. Imports nothing
of the application.
"""

import re

STORED_CHARACTERS = 2000
"""How much of a foreign text a column keeps."""

KIND_CHARACTERS = 300
"""How much of a reason, once it is made comparable, tells its kind: a kind has its place in a page's address."""

SHOWN_CHARACTERS = 64
"""How much of a name from outside is shown."""

_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_LOCAL_PART = re.compile(r"""(?<![^\s@<>()\[\]\\,:;"])[^\s@<>()\[\]\\,:;"]++@(?=\w)""")


def storable(text: str) -> str:
    """As a database column takes it: at most STORED_CHARACTERS, no NUL, no lone surrogates."""
    return text[:STORED_CHARACTERS].replace("\0", "").encode(errors="replace").decode()


def words_of(error: BaseException) -> str:
    """The text of an exception. Raises nothing, even if the exception's own ``__str__`` does."""
    try:
        return str(error).strip()
    except BaseException as failure:  # foreign code
        return f"its words can't be shown, because that raises {type(failure).__name__}"


def described(error: BaseException) -> str:
    """An exception's type, and what it says."""
    return f"{type(error).__name__}: {words_of(error) or 'raised without a word'}"


def printable(text: str) -> str:
    """Each character that does something rather than being seen, such as a line break, as U+FFFD."""
    if text.isprintable():
        return text
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)


def shortened(name: str) -> str:
    """A name from outside, printable and at most SHOWN_CHARACTERS long."""
    return printable(name if len(name) <= SHOWN_CHARACTERS else name[: SHOWN_CHARACTERS - 1] + "…")


def one_line(text: bytes | str, limit: int = 300) -> str:
    """Words on one line: white space folded, control characters as blanks, trimmed to ``limit`` characters."""
    decoded = text.decode(errors="replace") if isinstance(text, bytes) else text
    seen = "".join(character if character.isprintable() else " " for character in decoded)
    return " ".join(seen.split())[:limit]


def masked(text: str) -> str:
    """Printable, with ``***`` for what stands before the @ of an address, and for a password in a URL."""
    text = printable(text)
    return _LOCAL_PART.sub("***@", text) if "@" in text else text


def control_character(text: str) -> str | None:
    """The first character that could end a header's line or is no text at all, as ``U+000A``; None without one."""
    found = _CONTROL.search(text)
    return f"U+{ord(found[0]):04X}" if found else None
