"""E-mail addresses: one check decides what the API takes and what a mail's envelope carries.

Imports nothing of the application.
"""

import functools

from email_validator import ValidatedEmail, validate_email

CACHED_ADDRESSES = 1024


def checked_email(address: str) -> str:
    """The address, normalised. Raises ValueError that says what is wrong with it. Asks no name server."""
    return _validated(address).normalized


def ascii_email(address: str) -> str:
    """The address as SMTP without SMTPUTF8 carries it: an international domain as IDNA (RFC 5891). Raises ValueError.

    Takes whatever checked_email() takes, and besides ``user@localhost``, from which a fresh checkout sends.
    """
    if address.endswith("@localhost"):
        return ascii_email(f"{address}.example").removesuffix(".example")
    return str(_validated(address).ascii_email)


@functools.lru_cache(CACHED_ADDRESSES)
def _validated(address: str) -> ValidatedEmail:
    return validate_email(address, strict=True, allow_smtputf8=False, check_deliverability=False, test_environment=True)
