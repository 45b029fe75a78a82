"""POST /api/create_order: the answer, the stored rows, repeats, conflicts and an unavailable database."""

import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import text
from werkzeug.test import TestResponse

from app.events import order_created
from config import Settings
from tests.support.api import CREATE, ORDER, Api, ConformingClient, listening, parse
from tests.support.shop import Shop

# What is answered


def test_an_order_is_stored_with_its_event_and_answered_201(api: Api) -> None:
    response = api.place()

    assert response.status_code == 201
    answer = parse(response)
    assert list(answer) == ["status", "message", "order_id", "event_id"]
    assert (answer["status"], answer["message"], answer["order_id"]) == ("success", "订单创建成功", "1001")
    assert UUID(answer["event_id"]).version == 7
    assert response.headers["Location"] == "/api/orders/1001"
    assert "Idempotent-Replayed" not in response.headers
    ((kind, data),) = api.shop.events()
    assert (kind, data) == (
        "OrderCreated",
        {"order_id": "1001", "user_id": "42", "total_price": "19.99", "email": None},
    )
    assert api.shop.order().event_id == answer["event_id"]


def test_the_event_names_the_route_as_its_source(api: Api) -> None:
    api.place()
    (event,) = api.shop.timeline()
    assert event["source"] == "/api/create_order"


def test_the_answer_is_utf_8_as_it_is_read(api: Api) -> None:
    assert "订单创建成功".encode() in api.place().data


def test_what_followed_is_found_where_location_points(api: Api) -> None:
    location = api.place().headers["Location"]
    api.shop.dispatch_all()
    assert parse(api.get(location))["status"] == "confirmed"


def test_the_same_order_again_is_answered_200_and_nothing_happens_twice(api: Api) -> None:
    first = api.place()
    again = api.place()

    assert again.status_code == 200
    assert again.headers["Idempotent-Replayed"] == "true"
    assert parse(again) == parse(first)
    assert api.stored()[:2] == (1, 1)


@pytest.mark.parametrize(
    "written",
    [
        '{"order_id": "7", "user_id": "42", "total_price": "100.00"}',
        '{"total_price": 1e2, "user_id": 42, "order_id": "7", "email": null}',
    ],
)
def test_the_same_order_is_the_same_however_it_is_written(api: Api, written: str) -> None:
    first = api.post('{"order_id": 7, "user_id": 42, "total_price": 100}')
    again = api.post(written)
    assert again.status_code == 200
    assert parse(again) == parse(first)
    assert parse(first)["order_id"] == "7"


def test_the_same_address_in_another_case_of_its_domain_is_the_same_order(api: Api) -> None:
    api.place(email="Ann@EXAMPLE.com")
    assert api.place(email="Ann@example.com").status_code == 200
    assert api.shop.order().email == "Ann@example.com"


def test_the_same_order_is_found_again_after_it_was_confirmed(api: Api) -> None:
    api.place()
    api.shop.dispatch_all()
    assert api.place().status_code == 200


@pytest.mark.parametrize("change", [{"user_id": "43"}, {"total_price": 19.98}, {"email": "ann@example.com"}])
def test_another_order_with_the_same_id_is_refused_and_leaves_nothing(api: Api, change: dict[str, Any]) -> None:
    api.place()
    before = api.stored()

    response = api.place(**change)

    assert response.status_code == 409
    assert "1001" in parse(response)["detail"]
    assert api.stored() == before
    assert str(api.shop.order().total_price) == "19.99"


def test_fifty_identical_requests_at_once_make_one_order_one_event_and_one_mail(api: Api) -> None:
    responses = at_once(api, [ORDER] * 50)

    assert Counter(response.status_code for response in responses) == {201: 1, 200: 49}
    assert len({response.data for response in responses}) == 1
    assert api.stored()[:2] == (1, 1)
    api.shop.dispatch_all()
    assert len(api.shop.mailer.outbox) == 1
    assert api.shop.user().orders_count == 1


def test_of_many_orders_with_one_id_at_once_one_is_stored_and_the_others_are_told(api: Api) -> None:
    responses = at_once(api, [ORDER | {"total_price": price} for price in range(20)])

    assert Counter(response.status_code for response in responses) == {201: 1, 409: 19}
    assert api.stored()[:2] == (1, 1)


def at_once(api: Api, bodies: list[dict[str, Any]]) -> list[TestResponse]:
    start = threading.Barrier(len(bodies))

    def post(body: dict[str, Any]) -> TestResponse:
        client = ConformingClient(api.shop.app)
        start.wait()
        return client.post(CREATE, json=body)

    with ThreadPoolExecutor(len(bodies)) as threads:
        return list(threads.map(post, bodies))


# What is kept


@pytest.mark.parametrize(
    "written, kept",
    [
        ("19.99", "19.99"),
        ("20", "20.00"),
        ("0.3", "0.30"),
        ("1e2", "100.00"),
        ("0", "0.00"),
        ("-0", "0.00"),
        ("-0.0", "0.00"),
        ("9999999999.99", "9999999999.99"),
        ('"19.99"', "19.99"),
        ('"5"', "5.00"),
        ('"0000000000005.5"', "5.50"),
        ('"9999999999.99"', "9999999999.99"),
    ],
)
def test_a_price_is_kept_exactly(api: Api, written: str, kept: str) -> None:
    assert api.post(f'{{"order_id": 1001, "user_id": 42, "total_price": {written}}}').status_code == 201
    assert str(api.shop.order().total_price) == kept
    assert api.shop.events()[0][1]["total_price"] == kept


def test_a_price_reads_well_in_a_plain_select(api: Api) -> None:
    api.place(total_price=19.9)
    with api.shop.database.read() as session:
        assert session.execute(text("SELECT CAST(total_price AS TEXT) FROM orders")).scalar_one() == "19.90"
        if api.shop.database.is_sqlite:
            assert session.execute(text("SELECT typeof(total_price) FROM orders")).scalar_one() == "text"


def test_an_address_is_kept_as_the_users(api: Api) -> None:
    api.place(email="ann@example.com")
    assert api.shop.order().email == api.shop.user().email == "ann@example.com"


@pytest.mark.parametrize("dots", ["...", ".a", "a.", "..a", ".:", "1.", ".1", "." * 64])
def test_an_id_with_dots_is_found_where_location_points(api: Api, dots: str) -> None:
    """Only a segment that is '.' or '..' is removed from a URL."""
    location = api.place(order_id=dots, user_id=dots).headers["Location"]
    api.shop.dispatch_all()
    assert parse(api.get(location))["order_id"] == dots
    assert parse(api.get(f"/api/users/{dots}"))["user_id"] == dots


def test_an_id_may_be_as_long_as_64_characters(api: Api) -> None:
    longest = "aZ09._:-" * 8
    assert parse(api.place(order_id=longest, user_id=longest))["order_id"] == longest
    assert api.place(order_id=10**63, user_id=0).status_code == 201


# When the database can't take it


@contextmanager
def write_locked(shop: Shop) -> Iterator[None]:
    """Another connection holds the write lock."""
    with shop.database.engine.connect() as connection:
        connection.execute(text("SELECT 1" if shop.database.is_sqlite else "LOCK TABLE orders"))
        yield


@pytest.fixture
def short_timeout(settings: Settings) -> Iterator[Api]:
    shop = Shop(settings.model_copy(update={"database_timeout": 0.2}))
    yield Api(shop)
    shop.close()


def test_an_order_that_the_database_cannot_take_is_answered_503_and_leaves_nothing(short_timeout: Api) -> None:
    with write_locked(short_timeout.shop):
        response = short_timeout.place()

    assert response.status_code == 503
    assert response.headers["Retry-After"] == "2"
    assert "nothing was stored" in parse(response)["detail"]
    assert short_timeout.stored() == (0, 0, 0)
    assert short_timeout.place().status_code == 201


def test_the_reason_for_a_503_is_logged_without_the_order(short_timeout: Api, caplog: pytest.LogCaptureFixture) -> None:
    with write_locked(short_timeout.shop), listening(caplog) as log:
        short_timeout.place(email="ann@example.com")
    assert "lock" in log.text or "PostgreSQL did not answer in time" in log.text
    assert "ann@example.com" not in log.text


def test_what_fails_after_the_order_was_written_takes_it_back(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError

    with monkeypatch.context() as broken:
        broken.setattr(order_created, "send", fail)
        assert api.place(email="ann@example.com").status_code == 500

    assert api.stored() == (0, 0, 0)
    assert api.place().status_code == 201
