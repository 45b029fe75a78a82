"""E-mail addresses: syntax check and normal form."""

from email_validator import validate_email


def checked_email(address: str) -> str:
    """The address in its normal form. No name server is asked. Raises ValueError, which says what is wrong with it."""
    return validate_email(address, check_deliverability=False, allow_smtputf8=False, test_environment=True).normalized
