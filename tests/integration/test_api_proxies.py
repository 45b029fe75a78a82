"""Names that the service answers to, and what it takes from proxies that it was told to trust."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from config import Settings
from tests.support.api import ORDER, Api, parse
from tests.support.shop import Shop

DELIVERIES = "/operator/deliveries"
FORWARDED = {
    "X-Forwarded-For": "203.0.113.9",
    "X-Forwarded-Proto": "https",
    "X-Forwarded-Host": "orders.example",
    "X-Forwarded-Prefix": "/shop",
}
EVERY_HEADER = "for, proto, host, prefix"

Serve = Callable[..., Api]


@pytest.fixture
def serve(sqlite_url: str, tmp_path: Path) -> Iterator[Serve]:
    """An API with these settings."""
    shops: list[Shop] = []

    def make(**settings: Any) -> Api:
        given = {"instance_path": tmp_path / "instance", "mail_backend": "memory", "log_level": "ERROR"} | settings
        shops.append(Shop(Settings.of(**given)))
        return Api(shops[-1])

    yield make
    for shop in shops:
        shop.close()


def status(api: Api, host: str, path: str = "/api/orders") -> int:
    return api.client.get(path, headers={"Host": host}).status_code


# Names


@pytest.mark.parametrize("web_host", ["127.0.0.1", "::1", "localhost", "127.0.0.5"])
def test_what_listens_on_this_machine_only_answers_to_its_names_only(serve: Serve, web_host: str) -> None:
    """A page whose name is made to point here (DNS rebinding) reads nothing."""
    api = serve(web_host=web_host)
    for path in ("/api/orders", "/api/nothing", "/openapi.json", "/readyz", "/operator/deliveries"):
        assert status(api, "rebound.example:8000", path) == 421
    assert api.client.post("/api/create_order", json=ORDER, headers={"Host": "rebound.example"}).status_code == 421
    assert api.stored() == (0, 0, 0)
    for name in ("localhost", "localhost:8000", "127.0.0.1:8000", "[::1]:8000"):
        assert status(api, name) == 200


def test_it_answers_to_its_own_address(serve: Serve) -> None:
    assert status(serve(web_host="127.0.0.5"), "127.0.0.5:8000") == 200


def test_the_refusal_names_the_cure(serve: Serve) -> None:
    answer = serve().client.get("/api/orders", headers={"Host": "rebound.example"})
    assert "TRUSTED_HOSTS" in parse(answer)["detail"]


@pytest.mark.parametrize("settings", [{"web_host": "0.0.0.0"}, {"web_host": "::"}, {"api_token": "x"}])  # noqa: S104
def test_what_others_may_reach_or_asks_for_a_token_answers_to_every_name(
    serve: Serve, settings: dict[str, str]
) -> None:
    assert status(serve(**settings), "anything.example", "/healthz") == 200


@pytest.mark.parametrize("web_host", ["127.0.0.1", "0.0.0.0"])  # noqa: S104 - nothing is bound
def test_listed_names_are_answered_and_no_others(serve: Serve, web_host: str) -> None:
    api = serve(web_host=web_host, trusted_hosts="orders.example, .shop.example")
    for name in ("orders.example", "orders.example:443", "a.shop.example", "shop.example", "localhost", "[::1]"):
        assert status(api, name) == 200
    for name in ("x.orders.example", "example", "shop.example.evil", "203.0.113.9"):
        assert status(api, name) == 421


def test_a_request_without_a_host_comes_from_no_page(serve: Serve) -> None:
    """A balancer's check by HTTP/1.0, for example."""
    app = serve().shop.app
    environ = app.test_request_context("/healthz").request.environ
    del environ["HTTP_HOST"]
    with app.request_context(environ):
        assert app.full_dispatch_request().status_code == 200


# Trusted proxies


def addresses(api: Api, **headers: str) -> tuple[str, str, str]:
    """Location, Link and the document's server, as a client with these headers is told."""
    location = api.client.post("/api/create_order", json=ORDER, headers=headers).headers["Location"]
    api.place(order_id="1002")
    link = api.client.get("/api/orders?limit=1", headers=headers).headers["Link"]
    server = parse(api.client.get("/openapi.json", headers=headers))["servers"][0]["url"]
    return location, link.partition("?")[0], server


def test_without_the_setting_no_header_is_believed(serve: Serve) -> None:
    api = serve(web_host="0.0.0.0")  # noqa: S104 - nothing is bound
    assert addresses(api, **FORWARDED) == ("/api/orders/1001", "</api/orders", "http://localhost")


def test_prefix_scheme_and_host_are_a_trusted_proxys(serve: Serve) -> None:
    api = serve(trusted_proxies=1, trusted_proxy_headers=EVERY_HEADER, trusted_hosts="orders.example")
    assert addresses(api, **FORWARDED) == (
        "/shop/api/orders/1001",
        "</shop/api/orders",
        "https://orders.example/shop",
    )


def test_by_default_only_the_address_and_the_scheme_are(serve: Serve) -> None:
    """A proxy that does not set the others hands on what a client says in them."""
    api = serve(trusted_proxies=1)
    assert addresses(api, **FORWARDED) == ("/api/orders/1001", "</api/orders", "https://localhost")


def test_a_header_that_is_not_listed_is_not_believed(serve: Serve) -> None:
    api = serve(trusted_proxies=1, trusted_proxy_headers="prefix")
    assert addresses(api, **FORWARDED) == ("/shop/api/orders/1001", "</shop/api/orders", "http://localhost/shop")


def test_what_a_client_adds_before_the_proxies_own_words_is_not_believed(serve: Serve) -> None:
    api = serve(trusted_proxies=2, trusted_proxy_headers=EVERY_HEADER, trusted_hosts="orders.example")
    forged = {name: f"forged, {value}, {value}" for name, value in FORWARDED.items()}
    assert addresses(api, **forged)[2] == "https://orders.example/shop"


@pytest.mark.parametrize("prefix", ["/shop/", "/商店".encode().decode("latin-1")])
def test_a_prefix_may_end_with_a_slash_and_is_sent_in_ascii(serve: Serve, prefix: str) -> None:
    location, link, server = addresses(
        serve(trusted_proxies=1, trusted_proxy_headers="prefix"), **{"X-Forwarded-Prefix": prefix}
    )
    expected = "/shop" if prefix == "/shop/" else "/%E5%95%86%E5%BA%97"
    assert (location, link) == (f"{expected}/api/orders/1001", f"<{expected}/api/orders")
    assert not server.endswith("/")


def test_health_is_asked_for_without_the_prefix(serve: Serve) -> None:
    """By whatever restarts the process, which does not come through the proxy."""
    api = serve(trusted_proxies=1, trusted_proxy_headers=EVERY_HEADER)
    assert status(api, "localhost", "/healthz") == 200
    assert status(api, "127.0.0.1:8000", "/healthz") == 200


@pytest.mark.parametrize("header", [*FORWARDED, "Forwarded", "Via"])
@pytest.mark.parametrize("trusted_proxies", [0, 1, 2])
def test_a_request_that_came_through_a_proxy_is_never_local(serve: Serve, header: str, trusted_proxies: int) -> None:
    """Though its last word is that its client is on this machine, under this machine's name."""
    local = {"X-Forwarded-For": "127.0.0.1", "X-Forwarded-Host": "localhost"}
    api = serve(trusted_proxies=trusted_proxies, trusted_proxy_headers=EVERY_HEADER)
    assert api.client.get(DELIVERIES, headers={header: local.get(header, "x")}).status_code == 403
    assert api.client.get(DELIVERIES).status_code == 200
