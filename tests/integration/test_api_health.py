"""Liveness at /healthz and readiness at /readyz: the one asks nothing of the database, the other names every reason."""

import shutil
from typing import Any

import pytest

from app.version import VERSION
from tests.support.api import Api, parse


def reasons(api: Api) -> Any:
    response = api.get("/readyz")
    assert response.status_code == 503
    return parse(response)["reasons"]


def test_a_service_that_dispatches_is_ready(api: Api) -> None:
    api.shop.dispatcher.heartbeat()
    response = api.get("/readyz")
    assert response.status_code == 200
    assert parse(response) == {"status": "ready", "dispatchers": 1, "overdue_seconds": 0.0, "warnings": []}


def test_without_a_dispatcher_it_is_not_ready(api: Api) -> None:
    assert reasons(api) == ["no dispatcher is alive; start the service as before, or 'flask bus run' with its settings"]


def test_a_dispatcher_unseen_for_thirty_seconds_is_none(api: Api) -> None:
    api.shop.dispatcher.heartbeat()
    api.shop.clock.advance(29.9)
    assert api.get("/readyz").status_code == 200
    api.shop.clock.advance(0.1)
    assert "no dispatcher is alive" in reasons(api)[0]


def test_a_delivery_overdue_for_too_long_makes_it_not_ready(api: Api) -> None:
    """READY_LAG_SECONDS, 60 by default; not a second less."""
    api.place()
    api.shop.clock.advance(60)
    api.shop.dispatcher.heartbeat()
    assert parse(api.get("/readyz"))["overdue_seconds"] == 60.0

    api.shop.clock.advance(1)
    (reason,) = reasons(api)
    assert "61 s" in reason
    assert "READY_LAG_SECONDS" in reason

    api.shop.dispatch_all()
    assert api.get("/readyz").status_code == 200


def test_every_reason_is_told_at_once(api: Api) -> None:
    api.place()
    api.shop.clock.advance(3600)
    assert len(reasons(api)) == 2


def test_many_deliveries_that_are_not_overdue_are_no_reason(api: Api) -> None:
    api.shop.dispatcher.heartbeat()
    for number in range(10):
        api.place(order_id=number)
    assert api.get("/readyz").status_code == 200


class TestOnADatabaseOfItsOwn:
    @pytest.fixture
    def database_url(self, sqlite_url: str) -> str:
        return sqlite_url

    @pytest.fixture
    def without_database(self, api: Api) -> Api:
        folder = api.shop.settings.instance_path
        api.shop.database.close()
        shutil.move(folder, folder.with_name("elsewhere"))
        return api

    def test_a_schema_that_is_behind_makes_it_not_ready(self, api: Api) -> None:
        api.shop.execute("UPDATE alembic_version SET version_num = '0000'")
        (reason,) = reasons(api)
        assert "did you forget to run 'flask db upgrade'?" in reason

    def test_without_the_database_it_is_not_ready(self, without_database: Api) -> None:
        (reason,) = reasons(without_database)
        assert reason.startswith("the database can't be read: unable to open database file; the folder of ")

    def test_without_the_database_it_is_still_alive(self, without_database: Api) -> None:
        assert parse(without_database.get("/healthz")) == {"status": "ok", "version": VERSION}

    @pytest.mark.parametrize("path", ["/api/orders", "/api/orders/1001", "/api/users/42", "/api/events"])
    def test_without_the_database_reading_is_answered_503(self, without_database: Api, path: str) -> None:
        response = without_database.get(path)
        assert response.status_code == 503
        assert response.headers["Retry-After"] == "2"
