"""A dispatcher that would deliver mail otherwise than those before it refuses to start."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from app.bus import Dispatcher
from app.bus.tables import DispatcherHeartbeat
from app.bus.troubles import Cause
from config import Settings
from tests.support.shop import Shop

SMTP: dict[str, Any] = {"mail_backend": "smtp", "mail_server": "mail.example", "mail_port": 25}
FILE: dict[str, Any] = {"mail_backend": "file", "mail_server": None}


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update=SMTP | {"mail_username": "robot", "mail_password": "s3cret"})


@pytest.fixture
def beside(shop: Shop) -> Iterator[Callable[..., Dispatcher]]:
    """A dispatcher of another process, with other settings, on the same database and by the same clock."""
    others: list[Shop] = []

    def start(**settings: Any) -> Dispatcher:
        others.append(Shop(shop.settings.model_copy(update=settings), shop.clock))
        return others[-1].dispatcher

    yield start
    for other in others:
        other.close()


def refusal(dispatcher: Dispatcher, **how: bool) -> str | None:
    return dispatcher.sign_on(**how)[0]


def rows(shop: Shop) -> dict[str, DispatcherHeartbeat]:
    with shop.database.read() as session:
        return {row.name: row for row in session.query(DispatcherHeartbeat)}


def test_it_records_what_it_delivers_by_and_no_secret(shop: Shop) -> None:
    assert refusal(shop.dispatcher) is None
    told = rows(shop)[shop.dispatcher.name].settings or ""
    assert (
        json.loads(told).items() >= {**SMTP, "engine": "inprocess", "mail_default_sender": "orders@localhost"}.items()
    )
    assert "s3cret" not in told
    assert "robot" not in told


def test_mails_that_wait_are_not_delivered_otherwise(shop: Shop, beside: Callable[..., Dispatcher]) -> None:
    """The service is stopped, and six wait: a shell without MAIL_SERVER would write them to a folder."""
    refusal(shop.dispatcher)
    for n in range(6):
        shop.place_order(str(n))
    shop.dispatcher.sign_off()

    told = refusal(beside(**FILE))
    assert told == (
        f"this dispatcher would deliver mail by file, into {shop.settings.instance_path}/mail, but the last one, "
        f"{shop.dispatcher.name}, delivered it by smtp, to mail.example:25 until 08:00:00 UTC, and 6 deliveries wait: "
        "give it the same MAIL_BACKEND, MAIL_SERVER and MAIL_PORT; or, if the change is meant, set "
        "MAIL_INSTEAD_OF=mail.example:25, or add --anyway to 'flask bus run'"
    )
    assert refusal(beside(mail_server="other.example")) is not None, "another server"
    assert refusal(beside(mail_port=2525)) is not None, "another port"
    assert refusal(beside(mail_default_sender="shop@example.com", mail_threads=9)) is None, "the same server"


def test_a_change_that_is_meant_takes_one_step(shop: Shop, beside: Callable[..., Dispatcher]) -> None:
    refusal(shop.dispatcher)
    shop.place_order()
    shop.dispatcher.sign_off()
    assert refusal(beside(**FILE, mail_instead_of="another.example:25")) is not None
    changed = beside(**FILE, mail_instead_of="Mail.example:25")
    assert refusal(changed) is None
    changed.sign_off()
    assert refusal(beside(**FILE)) is None, "these are the last known settings now"
    assert refusal(shop.bus.dispatcher()) is not None, "and so it is on the way back"


def test_anyway(shop: Shop, beside: Callable[..., Dispatcher]) -> None:
    refusal(shop.dispatcher)
    shop.place_order()
    assert refusal(beside(**FILE), anyway=True) is None


def test_a_checkout_that_kept_its_mails_is_no_trap(shop: Shop, beside: Callable[..., Dispatcher]) -> None:
    """Nothing waits, nobody else delivers, and mail goes to a server from now on."""
    before = beside(**FILE)
    refusal(before)
    assert refusal(shop.dispatcher) is not None, "beside one that is alive"
    before.sign_off()
    assert refusal(shop.dispatcher) is None


def test_from_a_server_to_a_folder_is_a_step_to_be_meant(shop: Shop, beside: Callable[..., Dispatcher]) -> None:
    """Though nothing waits now: the next orders' mails would reach nobody."""
    refusal(shop.dispatcher)
    shop.dispatcher.sign_off()
    assert refusal(beside(mail_server="other.example")) is None
    assert refusal(beside(**FILE)) is not None


def test_one_that_died_counts_as_alive_for_as_long_as_its_silence(
    shop: Shop, beside: Callable[..., Dispatcher]
) -> None:
    refusal(shop.dispatcher)
    other = beside(mail_server="other.example")
    shop.clock.advance(29)
    assert "which is alive" in (refusal(other) or "")
    shop.clock.advance(1)
    assert refusal(other) is None


def test_beside_one_that_delivers_likewise_it_starts_whatever_the_others_do(
    shop: Shop, beside: Callable[..., Dispatcher]
) -> None:
    """A shell with --anyway keeps no process of the service from coming back."""
    refusal(shop.dispatcher)
    refusal(beside(**FILE), anyway=True)
    assert refusal(shop.bus.dispatcher()) is None


def test_the_last_settings_outlive_a_stop_and_a_long_time(shop: Shop, beside: Callable[..., Dispatcher]) -> None:
    refusal(shop.dispatcher)
    second = shop.bus.dispatcher()
    refusal(second)
    shop.dispatcher.sign_off()
    second.sign_off()
    assert list(rows(shop)) == [second.name], "one row, however many dispatchers there were"
    shop.clock.advance(7 * 86400)
    assert refusal(beside(**FILE)) is not None


def test_one_that_refuses_leaves_nothing_behind(shop: Shop, beside: Callable[..., Dispatcher]) -> None:
    refusal(shop.dispatcher)
    refused = beside(**FILE)
    refusal(refused)
    assert rows(shop)[refused.name].told["refused"] == refusal(refused)
    refused.sign_off()
    assert list(rows(shop)) == [shop.dispatcher.name]


def test_where_nobody_has_recorded_anything_it_starts(shop: Shop) -> None:
    """After an upgrade: the dispatchers before told nothing."""
    before = shop.bus.dispatcher()
    before.heartbeat()
    shop.execute("UPDATE dispatchers SET settings = NULL")
    assert refusal(shop.dispatcher) is None
    before.sign_off()
    assert list(rows(shop)) == [shop.dispatcher.name]


@pytest.mark.parametrize("damaged", ["", "no JSON", "[]", '{"mail_backend": "smtp"}'])
def test_settings_that_nobody_can_read_are_none(shop: Shop, damaged: str) -> None:
    shop.bus.dispatcher().heartbeat()
    shop.execute("UPDATE dispatchers SET settings = :damaged", damaged=damaged)
    assert refusal(shop.dispatcher) is None
    assert shop.bus.watch.look().troubles == ()


def test_differences_are_recorded_with_both_values(shop: Shop, beside: Callable[..., Dispatcher]) -> None:
    refusal(shop.dispatcher)
    other = beside(mail_default_sender="shop@example.com")
    assert other.sign_on() == (None, {"mail_default_sender": ["orders@localhost", "shop@example.com"]})
    assert rows(shop)[other.name].told["differs"] == {"mail_default_sender": ["orders@localhost", "shop@example.com"]}


# What readiness says of it


def test_a_service_whose_only_dispatcher_refuses_is_not_ready(shop: Shop, beside: Callable[..., Dispatcher]) -> None:
    refusal(shop.dispatcher)
    shop.place_order()
    shop.dispatcher.sign_off()
    refused = beside(**FILE)
    told = refusal(refused)
    (trouble,) = shop.bus.watch.look().reasons
    assert trouble.cause == Cause.DISPATCHER_REFUSES
    assert "mail.example" not in trouble.text, "anybody may ask"
    assert trouble.detail == f"{refused.name}: {told}"


def test_beside_others_that_deliver_it_is_a_warning(shop: Shop, beside: Callable[..., Dispatcher]) -> None:
    refusal(shop.dispatcher)
    refusal(beside(**FILE))
    found = shop.bus.watch.look()
    assert (found.reasons, [warning.cause for warning in found.warnings]) == ([], [Cause.SETTINGS_DIFFER])
    assert "refuses to start beside those that are alive" in found.warnings[0].text


def test_two_ways_at_once_are_a_warning(shop: Shop, beside: Callable[..., Dispatcher]) -> None:
    refusal(shop.dispatcher)
    refusal(beside(**FILE), anyway=True)
    (warning,) = shop.bus.watch.look().warnings
    assert (warning.cause, "mail.example" in warning.text) == (Cause.SETTINGS_DIFFER, False)
    assert "by smtp, to mail.example:25" in warning.detail
    assert "by file, into " in warning.detail


def test_that_none_is_alive_is_told_with_what_the_last_one_used(shop: Shop) -> None:
    refusal(shop.dispatcher)
    shop.clock.advance(5)
    shop.dispatcher.sign_off()
    shop.clock.advance(7)
    (trouble,) = shop.bus.watch.look().reasons
    assert trouble.cause == Cause.NO_DISPATCHER
    assert trouble.detail == f"{shop.dispatcher.name} stopped 7 s ago; it delivered mail by smtp, to mail.example:25"
