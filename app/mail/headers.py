"""Texts and mailboxes in headers, in ASCII: encoded words where need be (RFC 2047), no line longer than 76 columns."""

import binascii
import re

_PHRASE = re.compile(r"[\w!#$%&'*+/=?^`{|}~-]+(?: [\w!#$%&'*+/=?^`{|}~-]+)*", re.ASCII)
"""Words that may stand in front of an address as they are (RFC 5322, section 3.2.5)."""

_QUOTABLE = re.compile(r"[!#-?A-\[\]-~]+(?: [!#-?A-\[\]-~]+)*")
"""Words that may stand there in quotes, and need no backslash."""

_LONGEST_PLAIN = 64
_LONGEST_IN_ONE_WORD = 39
"""Bytes. In base64 they make an encoded word of 64 to 67 characters, which leaves room for the header's name."""


def encoded_text(text: str) -> bytes:
    """A subject, say."""
    if text.isascii() and len(text) <= _LONGEST_PLAIN and "=?" not in text:
        return text.encode()
    pieces = (text[start : start + 9].encode() for start in range(0, len(text), 9))
    return b"\r\n ".join(_word(b"utf-8", piece) for piece in pieces)


def encoded_mailbox(name: str, address: str) -> bytes:
    """A name, which may be empty, and its address, which is ASCII."""
    if not name:
        return address.encode()
    encoded = _encoded_name(name)
    last_line = len(encoded.rpartition(b"\r\n")[2]) + len("Reply-To:  <>") + len(address)
    return encoded + (b" " if last_line <= 76 else b"\r\n ") + b"<%b>" % address.encode()


def _encoded_name(name: str) -> bytes:
    """In one encoded word where it fits into one: some readers, such as Python's email package before 3.12.9, show a
    blank between two. Chinese is a third shorter in GB 18030 than in UTF-8."""
    if len(name) <= _LONGEST_PLAIN and "=?" not in name and _QUOTABLE.fullmatch(name):
        return name.encode() if _PHRASE.fullmatch(name) else b'"%b"' % name.encode()
    for charset in ("utf-8", "gb18030"):
        if len(whole := name.encode(charset)) <= _LONGEST_IN_ONE_WORD:
            return _word(charset.encode(), whole)
    return encoded_text(name)


def _word(charset: bytes, text: bytes) -> bytes:
    return b"=?%b?b?%b?=" % (charset, binascii.b2a_base64(text, newline=False))
