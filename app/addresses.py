"""E-mail addresses: one check decides what the API takes and what a mail's envelope carries.

Imports nothing of the application.
"""

import functools
import re

from email_validator import ValidatedEmail, validate_email

CACHED_DOMAINS = 1024

_PLAIN_LOCAL_PART = re.compile(r"[a-z0-9_-]+(?:\.[a-z0-9_-]+)*")
"""Small letters only: of some names, such as Postmaster, the thorough check changes the capitals (RFC 2142)."""


def checked_email(address: str) -> str:
    """The address, normalised. Raises ValueError that says what is wrong with it. Asks no name server."""
    return address if _is_plain(address) else _validated(address).normalized


def ascii_email(address: str) -> str:
    """The address as SMTP without SMTPUTF8 carries it: an international domain as IDNA (RFC 5891). Raises ValueError.

    Takes whatever checked_email() takes, and besides ``user@localhost``, from which a fresh checkout sends.
    """
    if _is_plain(address):
        return address
    if address.endswith("@localhost"):
        return ascii_email(f"{address}.example").removesuffix(".example")
    return str(_validated(address).ascii_email)


def _validated(address: str) -> ValidatedEmail:
    return validate_email(address, strict=True, allow_smtputf8=False, check_deliverability=False, test_environment=True)


def _is_plain(address: str) -> bool:
    """Whether the thorough check would take the address as it stands. That check costs half as much as a mail."""
    local, _, domain = address.rpartition("@")
    short = len(local) <= 64 and len(address) <= 254
    return short and _PLAIN_LOCAL_PART.fullmatch(local) is not None and _is_plain_domain(domain)


@functools.lru_cache(CACHED_DOMAINS)
def _is_plain_domain(domain: str) -> bool:
    try:
        return domain.isascii() and _validated(f"user@{domain}").normalized == f"user@{domain}"
    except ValueError:
        return False
