"""The log as other people's tools see it: handlers, ``dictConfig``, and two applications in one process."""

import logging
import logging.config
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest

from app.answers import RetryAfter
from app.errors import Refused
from config import Settings
from tests.support.logging import handling
from tests.support.shop import Shop


class Kept(logging.Handler):
    """As Sentry's or syslog's: gets records, and keeps them."""

    def __init__(self, level: int = logging.NOTSET) -> None:
        super().__init__(level)
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    @property
    def messages(self) -> list[str]:
        return [record.getMessage() for record in self.records]

    def find(self, message: str) -> logging.LogRecord:
        (found,) = [record for record in self.records if record.getMessage().startswith(message)]
        return found


@pytest.fixture
def kept() -> Iterator[Kept]:
    handler = Kept()
    with handling(handler):
        yield handler


@pytest.fixture
def reset() -> Iterator[None]:
    """What ``dictConfig`` did to the logger ``app`` is taken back."""
    logger = logging.getLogger("app")
    yield
    logger.handlers, logger.level, logger.propagate = [], logging.NOTSET, True


def refuse(sender: str, event: Any) -> None:
    raise Refused("550 no such user")


def raise_bug(sender: str, event: Any) -> None:
    raise ZeroDivisionError("a bug")


def test_a_handler_of_the_root_logger_gets_dead_deliveries_with_their_facts(shop: Shop, kept: Kept) -> None:
    shop.only(refuse)
    event_id = shop.place_order()
    shop.dispatch_all()

    record = kept.find("delivery dead")

    assert (record.name, record.levelname) == ("app.bus", "ERROR")
    assert vars(record)["facts"] == {
        "receiver": "refuse",
        "order_id": "1001",
        "event_id": event_id,
        "delivery_id": shop.delivery("refuse").delivery_id,
        "attempt": 1,
        "outcome": "refused",
        "reason": "550 no such user",
    }


def test_a_handler_of_the_root_logger_gets_exceptions_of_receivers_and_of_views(shop: Shop, kept: Kept) -> None:
    def fail() -> None:
        raise ZeroDivisionError("in a view")

    shop.app.add_url_rule("/fail", view_func=fail)
    assert shop.client.get("/fail").status_code == 500
    shop.only(raise_bug)
    shop.place_order()
    shop.dispatch()

    for message in ("Exception on /fail", "receiver raised"):
        error = kept.find(message).exc_info
        assert error
        assert error[0] is ZeroDivisionError


def test_caplog_sees_the_bus(shop: Shop, caplog: pytest.LogCaptureFixture) -> None:
    shop.only(refuse)
    shop.place_order()
    shop.dispatch_all()
    assert "delivery dead" in caplog.messages


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.usefixtures("reset")
def test_a_configuration_of_the_logger_is_respected(settings: Settings, when: str) -> None:
    """Its handlers, its level and its ``propagate``, whether it comes before ``create_app()`` or after."""
    handler, outside = Kept(), Kept()

    def configure() -> None:
        logging.config.dictConfig(
            {
                "version": 1,
                "disable_existing_loggers": False,
                "handlers": {"kept": {"()": lambda: handler}},
                "loggers": {"app": {"handlers": ["kept"], "level": "WARNING", "propagate": False}},
            }
        )

    if when == "before":
        configure()
    with closing(Shop(settings.model_copy(update={"log_level": "DEBUG"}))) as shop, handling(outside):
        if when == "after":
            configure()
        shop.only(refuse)
        shop.place_order()
        shop.dispatch_all()

    assert handler.messages == ["delivery dead"], "INFO is below its level"
    assert outside.messages == []


def test_making_an_application_changes_nothing_of_the_process(settings: Settings) -> None:
    def state() -> list[Any]:
        loggers = [logging.getLogger(name) for name in ("", "app", "app.bus", "sqlalchemy.pool", "py.warnings")]
        return [(logger.level, list(logger.handlers), logger.propagate, logger.disabled) for logger in loggers]

    before = state()
    with closing(Shop(settings)):
        assert state() == before


def test_two_applications_in_one_process_keep_their_own_level(
    settings: Settings, kept: Kept, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Whichever was made last; and each has its lines once."""
    other = {"instance_path": tmp_path_factory.mktemp("other"), "database_url": ""}
    with (
        closing(Shop(settings.model_copy(update={"log_level": "INFO"}))) as talkative,
        closing(Shop(Settings.of(**settings.model_dump() | other | {"log_level": "ERROR"}))) as quiet,
    ):
        quiet.only(refuse)
        quiet.place_order()
        assert kept.messages == []
        talkative.place_order()
        assert kept.messages == ["event recorded"]
        quiet.dispatch_all()
        assert kept.messages == ["event recorded", "delivery dead"]


def postpone(sender: str, event: Any) -> RetryAfter:
    return RetryAfter(60, "not yet")


@pytest.mark.parametrize("level, told", [("INFO", True), ("WARNING", False)])
def test_the_applications_level_decides_where_nobody_chose_one(
    settings: Settings, kept: Kept, level: str, told: bool
) -> None:
    with closing(Shop(settings.model_copy(update={"log_level": level}))) as shop:
        shop.only(postpone)
        shop.place_order()
        shop.dispatch()
    assert ("delivery postponed" in kept.messages) is told


def test_logging_that_is_disabled_stays_so(shop: Shop, kept: Kept) -> None:
    logging.disable(logging.CRITICAL)
    try:
        shop.only(refuse)
        shop.place_order()
        shop.dispatch_all()
    finally:
        logging.disable(logging.NOTSET)
    assert kept.messages == []


@pytest.mark.parametrize("wrong", [ValueError, RecursionError])
def test_a_handler_that_raises_harms_no_delivery(shop: Shop, wrong: Callable[[], Exception]) -> None:
    class Raising(logging.Handler):
        def emit(self, _: logging.LogRecord) -> None:
            raise wrong()

    with handling(Raising()):
        shop.only(refuse)
        shop.place_order()
        shop.dispatch_all()
    assert shop.delivery("refuse").state == "dead"
