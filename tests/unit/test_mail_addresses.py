"""The address that is made of a user's id."""

import pytest
from hypothesis import given
from hypothesis.strategies import from_regex, sampled_from, text

from app.orders import checked_email
from app.receivers.notification import _made_address

DOMAINS = ["users.example", "Users.EXAMPLE", "bücher.example", "xn--bcher-kva.example", "x." * 90 + "example", "bad_"]


def thorough(user_id: str, domain: str) -> str | None:
    try:
        return checked_email(f"{user_id}@{domain}")
    except ValueError:
        return None


def quick(user_id: str, domain: str) -> str | None:
    try:
        return _made_address(user_id, domain)
    except ValueError:
        return None


@given(from_regex(r"[A-Za-z0-9._:-]{1,64}", fullmatch=True) | text(max_size=70), sampled_from(DOMAINS))
def test_an_address_made_quickly_is_what_the_thorough_check_says(user_id: str, domain: str) -> None:
    assert quick(user_id, domain) == thorough(user_id, domain)


@pytest.mark.parametrize(
    "user_id", ["Postmaster", "postmaster", "INFO", "a" * 64, "a" * 65, "a..b", ".a", "a:b", "a@b"]
)
@pytest.mark.parametrize("domain", DOMAINS)
def test_odd_ids_are_no_exception(user_id: str, domain: str) -> None:
    assert quick(user_id, domain) == thorough(user_id, domain)
