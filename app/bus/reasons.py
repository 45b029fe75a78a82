"""Reasons made comparable: parts that differ from one delivery to the next are taken out. Pure, and imports nothing."""

import re

_VARIABLE = re.compile(
    r"""
      (?P<reply> (?<![\w.]) [245]\d\d [ -] [245] \. \d{1,3} \. \d{1,3} (?![\w.])
               | (?: ^ | (?<=with[ ]) ) [245]\d\d (?= [ -] | $ ) )
    | (?P<quoted> (?<!\w) (?: '[^']*+' | "[^"]*+" | `[^`]*+` ) (?!\w) )
    | (?P<address> (?<![^\s<>()\[\]{},;:="'|/]) [^\s@<>()\[\]{},;:="'|/]++ @ \w (?: [\w.-]*\w )?
                 | (?<![\w.]) \d{1,3} (?: \.\d{1,3} ){3} (?![\w.]*\w)
                 | (?<![\w:]) (?: (?: [\da-fA-F]{1,4} : ){7} | (?: [\da-fA-F]{1,4} : ){1,6} : | :: )
                   (?: [\da-fA-F]{1,4} : ){0,5} [\da-fA-F]{1,4} (?![\w:]) )
    | (?P<word> \w (?: [\w.-]*\w )?+ )
    """,
    re.VERBOSE,
)


def generalised(reason: str) -> str:
    """The reason with ``…`` for quoted words, ``<address>`` for mail and IP addresses, ``<id>`` for words with digits
    in them, and ``<n>`` for numbers. Reasons of one kind become equal.

    The code of an SMTP reply stays, a word of the protocol: it says what kind of failure this is.
    """
    return _VARIABLE.sub(_placeholder, reason).replace("<<address>>", "<address>")


def _placeholder(found: re.Match[str]) -> str:
    text = found[0]
    match found.lastgroup:
        case "reply":
            return text
        case "quoted":
            return f"{text[0]}…{text[0]}"
        case "address":
            return "<address>"
    if not any(character.isdigit() for character in text):
        return text
    return "<n>" if all(character.isdigit() or character in ".," for character in text) else "<id>"
