"""The status by HTTP is what 'flask bus status --json' prints, and the findings what 'flask doctor --json' prints."""

import json
from typing import Any

import pytest

from app.errors import DatabaseUnavailable, Unreachable
from app.events import OrderCreated
from tests.support.api import Api, parse


def test_the_status_is_the_commands(api: Api, run: Any) -> None:
    """With an open circuit breaker, a pause, a dispatcher, and something that is wrong."""
    shop = api.shop

    def ill(sender: str, event: OrderCreated) -> None:
        raise Unreachable("mail.example:25 refused the connection")

    shop.only(ill)
    shop.dispatcher.sign_on()
    for number in range(3):
        shop.place_order(f"{number}")
    shop.dispatch()
    shop.bus.pause("ill", "a test", by="ann")
    answer = parse(api.get("/operator/status"))
    assert answer == json.loads(run("bus", "status", "--json"))
    (found,) = [each for each in answer["receivers"] if each["receiver"] == "ill"]
    assert (found["waiting"], found["pause"]["reason"]) == (3, "a test")
    assert found["breaker"]["reason"] == "mail.example:25 refused the connection"
    assert answer["dispatchers"][0]["settings"]["mail_backend"] == "memory"
    assert [each["cause"] for each in answer["warnings"]] == ["receiver_paused"]


def test_the_last_dispatcher_is_told(api: Api) -> None:
    api.shop.dispatcher.sign_on()
    api.shop.dispatcher.sign_off()
    answer = parse(api.get("/operator/status"))
    assert (answer["dispatchers"], answer["last_dispatcher"]["name"]) == ([], api.shop.dispatcher.name)


def test_of_a_database_that_is_away_the_reason_is_known(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    def away() -> None:
        raise DatabaseUnavailable("it is away")

    monkeypatch.setattr(api.shop.database, "check_schema", away)
    answer = parse(api.get("/operator/status"))
    assert (answer["ready"], answer["receivers"]) == (False, [])
    assert [each["cause"] for each in answer["reasons"]] == ["database_unreachable"]


def test_the_findings_are_the_commands(api: Api, run: Any) -> None:
    answer = parse(api.get("/operator/doctor"))
    printed = json.loads(run("doctor", "--json", code=answer["exit_code"]))
    found = [(each["level"], each["check"]) for each in answer["findings"]]
    assert found == [(each["level"], each["check"]) for each in printed["findings"]]
    assert ("fine", "mail") in found


@pytest.mark.parametrize("path", ["/operator/status", "/operator/doctor"])
def test_strangers_are_told_nothing(api: Api, path: str) -> None:
    assert api.client.get(path, environ_base={"REMOTE_ADDR": "192.0.2.1"}).status_code == 403
