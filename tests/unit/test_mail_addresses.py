"""What the API takes as an address, an envelope carries."""

import contextlib

import idna
import pytest
from email_validator import validate_email
from hypothesis import example, given
from hypothesis.strategies import DrawFn, composite, emails, from_regex, sampled_from, text

from app.addresses import ascii_email, checked_email
from app.errors import Refused
from app.mail.envelope import envelope_address
from config import ConfigError, Settings

LOCAL_PARTS = from_regex(r"[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]{1,66}", fullmatch=True) | text(max_size=8)
DOMAINS = [
    "users.example",
    "Users.EXAMPLE",
    "bücher.example",
    "xn--bcher-kva.example",
    "straße.de",
    "x." * 90 + "example",
]


@composite
def addresses(draw: DrawFn) -> str:
    return f"{draw(LOCAL_PARTS)}@{draw(sampled_from(DOMAINS) | text(max_size=8))}"


@given(addresses() | emails() | text(max_size=20))
@example("user@example.com")
@example("Postmaster@users.example")
@example("a" * 64 + "@users.example")
@example("a" * 65 + "@users.example")
@example("user@xn--bcher-kva.example")
@example("user@Users.EXAMPLE")
@example("a" * 64 + "@" + "long-name-of-a-domain." * 8 + "example.shops")
@example("a" * 64 + "@" + "long-name-of-a-domain." * 8 + "example.shopss")
@example("user@localhost")
def test_an_address_that_is_plain_at_sight_is_what_the_thorough_check_says(address: str) -> None:
    def thorough() -> str | None:
        with contextlib.suppress(ValueError):
            return validate_email(
                address, strict=True, allow_smtputf8=False, check_deliverability=False, test_environment=True
            ).normalized
        return None

    def quick() -> str | None:
        with contextlib.suppress(ValueError):
            return checked_email(address)
        return None

    assert quick() == thorough()


@given(addresses() | emails() | text(max_size=20))
@example("Postmaster@Users.EXAMPLE")
@example("a" * 64 + "@bücher.example")
@example("a" * 65 + "@example.com")
@example("user@localhost")
@example("Name <user@example.com>")
@example("a@x.example, b@x.example")
def test_what_the_api_takes_an_envelope_carries_unchanged_but_for_idna(address: str) -> None:
    with contextlib.suppress(ValueError):
        taken = checked_email(address)
        carried = envelope_address(taken)
        assert carried.isascii()
        local, _, domain = carried.rpartition("@")
        assert f"{local}@{idna.decode(domain)}" == taken


@given(addresses())
@example("orders@localhost")
@example("a" * 65 + "@localhost")
def test_what_the_settings_take_as_the_sender_an_envelope_carries(address: str) -> None:
    with contextlib.suppress(ConfigError):
        envelope_address(Settings.of(mail_default_sender=address).mail_default_sender)


def test_a_local_part_has_at_most_64_characters() -> None:
    """RFC 5321, section 4.5.3.1.1. The API says so, before an order is stored."""
    assert checked_email("a" * 64 + "@example.com")
    for check in (checked_email, ascii_email):
        with pytest.raises(ValueError, match=r"too long before the @-sign \(1 character too many\)"):
            check("a" * 65 + "@example.com")
    with pytest.raises(Refused, match="too long before the @-sign"):
        envelope_address("a" * 65 + "@example.com")
