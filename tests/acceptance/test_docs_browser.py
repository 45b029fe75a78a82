"""GET /docs in a real browser: nothing against its policy, no error, nothing from elsewhere, and "try it" works."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.console import CHROMIUM, browser
from tests.support.service import Service, wait_until

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed")
TOKEN = "s3cret-token"
CREATE = "#operations-orders-create_order"

pytestmark = [
    pytest.mark.skipif(not CHROMIUM.exists(), reason=f"no Chromium here: {CHROMIUM} is not there"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # playwright's own loop
    pytest.mark.timeout(180),
]


class Tab:
    """A page of the browser, with what it complained of and all that it asked for."""

    def __init__(self, page: Any, port: int) -> None:
        self.page, self.address = page, f"http://127.0.0.1:{port}"
        self.complaints: list[str] = []
        self.asked: list[str] = []
        page.on(
            "console", lambda said: self.complaints.append(said.text) if said.type in ("error", "warning") else None
        )
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", lambda request: self.asked.append(request.url))

    def open(self) -> Any:
        self.page.goto(f"{self.address}/docs")
        self.page.wait_for_selector(".opblock")
        return self.page

    def execute(self, fields: str) -> str:
        """Send the body of create_order. Returns the answer's status."""
        page = self.page
        page.click(f"{CREATE} .opblock-summary-control")
        page.fill(f"{CREATE} textarea", fields)
        page.click(f"{CREATE} button.execute")
        return str(page.text_content(f"{CREATE} .live-responses-table tbody .response-col_status")).strip()

    def assert_faultless(self) -> None:
        assert self.complaints == []
        assert [url for url in self.asked if not url.startswith((f"{self.address}/", "data:"))] == []


@contextlib.contextmanager
def opened(service: Service) -> Iterator[Tab]:
    with browser() as chromium:
        yield Tab(chromium.new_page(viewport={"width": 1280, "height": 900}), service.port)


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Any]:
    services = []

    def start(**settings: Any) -> Service:
        services.append(Service(tmp_path, mail_backend="file", **settings))
        return services[-1].start()

    yield start
    for service in services:
        service.close()


def test_an_order_is_placed_on_the_page(run: Any) -> None:
    service = run()
    with opened(service) as tab:
        tab.open()
        assert tab.execute('{"order_id": "7001", "user_id": "42", "total_price": 19.99}').startswith("201")
        tab.assert_faultless()
    order = wait_until(lambda: service.get("/api/orders/7001").body, "the order")
    assert order["total_price"] == "19.99"


def test_where_a_token_is_set_the_page_takes_it(run: Any) -> None:
    with opened(run(api_token=TOKEN)) as tab:
        page = tab.open()
        page.click("button.authorize")
        page.locator(".auth-container", has_text="token (http, Bearer)").first.locator("input").fill(TOKEN)
        page.locator(".auth-container", has_text="token (http, Bearer)").first.locator("button.authorize").click()
        page.locator("button.btn-done").first.click()
        assert tab.execute('{"order_id": "7002", "user_id": "42", "total_price": 1}').startswith("201")
        tab.assert_faultless()


def test_every_operation_shows_samples_for_three_clients_and_its_errors_with_examples(run: Any) -> None:
    with opened(run()) as tab:
        page = tab.open()
        page.click(f"{CREATE} .opblock-summary-control")
        samples = page.locator(f"{CREATE} .code-samples")
        samples.wait_for()
        shown = {}
        for label in ("curl", "HTTPie", "Python"):
            samples.get_by_role("tab", name=label).click()
            shown[label] = samples.locator("pre").inner_text()
        assert shown["curl"].startswith(f"curl -i -X POST {tab.address}/api/create_order")
        assert shown["HTTPie"].startswith(f"http POST {tab.address}/api/create_order")
        assert shown["Python"].startswith("import json")
        assert "order 1001 exists with other content" in page.inner_text(f"{CREATE} .responses-wrapper")
        tab.assert_faultless()


def test_a_phone_shows_the_page_in_its_width(run: Any) -> None:
    with opened(run()) as tab:
        tab.page.set_viewport_size({"width": 390, "height": 844})
        page = tab.open()
        page.click(f"{CREATE} .opblock-summary-control")
        page.locator(f"{CREATE} .code-samples").wait_for()
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        tab.assert_faultless()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_of_the_page_keeps_people_out(run: Any, scheme: str) -> None:
    """As axe-core sees it; in the reader's scheme."""
    with opened(run()) as tab:
        tab.page.emulate_media(color_scheme=scheme)
        page = tab.open()
        found = axe.Axe().run(page).response["violations"]
        assert [(each["id"], each["nodes"][0]["html"], each["nodes"][0]["failureSummary"]) for each in found] == []
        assert page.evaluate("document.documentElement.classList.contains('dark-mode')") is (scheme == "dark")
        page.click(f"{CREATE} .opblock-summary-control")
        page.wait_for_url("**/docs#/orders/create_order")
        page.get_by_role("link", name="Orders: what happens").click()
        page.wait_for_selector("svg.flow.wide")
        tab.assert_faultless()
