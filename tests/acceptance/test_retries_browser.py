"""The retry policy's page in a real browser, with what was learned: no fault in either scheme, width or language, and
nothing of it needs a script."""

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.test_console_browser import axe, pytestmark
from tests.support.service import Service

__all__ = ["pytestmark"]

MAIL = "send_email_notification"
GREYLIST = f"/retries?receiver={MAIL}&scope=message&kind=greylisted"
OUTAGE = f"/retries?receiver={MAIL}&scope=backend&kind=unreachable"
TRANSITIONS = [
    *[("message", "greylisted", 0.0, 270.0, 0), ("message", "greylisted", 270.0, 300.0, 1)] * 50,
    *[("backend", "unreachable", 0.0, 20.0, 0), ("backend", "unreachable", 20.0, 700.0, 0)] * 9,
    *[("backend", "unreachable", 700.0, 5000.0, 1), ("backend", "unreachable", 5000.0, 100_000.0, 1)] * 9,
]
INSERT = """
INSERT INTO retry_transitions (receiver, scope, kind, age_from, age_to, gone, at)
VALUES (?, ?, ?, ?, ?, ?, strftime('%Y-%m-%dT%H:%M:%S.000000Z'))
"""


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Fitted to attempts at a greylist and at outages."""
    made = Service(tmp_path_factory.mktemp("retries"), mail_backend="file")
    made.start()
    with contextlib.closing(sqlite3.connect(Path(str(made.settings["instance_path"])) / "orders.db")) as database:
        database.executemany(INSERT, [(MAIL, *each) for each in TRANSITIONS])
        database.commit()
    assert made.run("flask", "bus", "policy", "fit").returncode == 0
    yield made
    made.close()


@pytest.mark.parametrize("path", [GREYLIST, OUTAGE])
@pytest.mark.parametrize(
    "width, scheme, locale",
    [(1280, "light", "en-GB"), (390, "dark", "zh-CN"), (1920, "dark", "en-GB"), (390, "light", "en-GB")],
)
def test_the_page_has_no_fault(open_tab: Any, path: str, width: int, scheme: str, locale: str) -> None:
    """No violation of its policy, no error, nothing that axe-core reports, and it is no wider than the screen."""
    tab = open_tab(viewport={"width": width, "height": 844}, color_scheme=scheme, locale=locale)
    page = tab.open(path)
    assert page.locator("svg.policy").count() == 3
    for summary in page.locator("summary").all():
        summary.click()
    found = axe.Axe().run(page).response["violations"]
    assert [(each["id"], each["nodes"][0]["html"], each["nodes"][0]["failureSummary"]) for each in found] == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert tab.complaints == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_cells_number_stands_out_from_its_colour(open_tab: Any, scheme: str) -> None:
    """4.5 to 1 at least, for every tone: axe-core doesn't see a path behind a text."""
    page = open_tab(color_scheme=scheme).open(OUTAGE)
    ratios = page.evaluate(
        """() => {
        const drawn = document.createElement('canvas').getContext('2d');
        const light = (colour) => {
          drawn.fillStyle = colour; drawn.fillRect(0, 0, 1, 1);
          const [red, green, blue] = [...drawn.getImageData(0, 0, 1, 1).data].slice(0, 3).map((part) => {
            const share = part / 255;
            return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
          });
          return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
        };
        const svg = document.querySelector('svg.heat');
        const add = (name, kind) => {
          const made = document.createElementNS('http://www.w3.org/2000/svg', name);
          made.setAttribute('class', kind); svg.append(made); return getComputedStyle(made).fill;
        };
        return [0, 1, 2, 3, 4, 5, 6, 7, 8].map((tone) => {
          const pair = [light(add('rect', 't' + tone)), light(add('text', tone > 4 ? 'm o' : 'm'))];
          return (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05);
        });
      }"""
    )
    assert min(ratios) >= 4.5, ratios


def test_the_page_needs_no_script_nor_a_mouse(open_tab: Any, service: Service) -> None:
    """From the system page by its link, to another kind of failures, and to the numbers, by the keyboard."""
    tab = open_tab(java_script_enabled=False)
    page = tab.open("/system")
    page.locator("main").get_by_role("link", name="Retries").focus()
    page.keyboard.press("Enter")
    page.wait_for_url("**/retries")
    page.get_by_role("link", name="unreachable").focus()
    page.keyboard.press("Enter")
    page.wait_for_url("**kind=unreachable")
    page.locator("summary").first.focus()
    page.keyboard.press("Enter")
    row = page.locator("[data-table=waits] tbody tr").first
    row.wait_for()
    shown = service.run("flask", "bus", "policy", "show").stdout
    assert f"with 1 waiting: 0 s: {row.locator('td').first.inner_text()}," in shown.partition("unreachable of the")[2]
    assert "came through" in page.locator("figcaption").inner_text()
