"""The console as a visitor uses it: pages are fetched, forms are filled in and sent, and a browser where one is wanted.

visitor = Visitor(shop)
page = visitor.get("/orders", q="42")
assert page.cells("table")[0][0] == "1001"
visitor.submit("/", "/flow/place", order_id="1001")      # the form of "/" whose action is "/flow/place"
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from werkzeug.test import TestResponse

from tests.support.service import Service
from tests.support.shop import Shop

CHROMIUM = Path("/usr/bin/chromium")
VOID = {"meta", "link", "input", "br", "path", "rect", "circle", "img", "hr"}


class Page(HTMLParser):
    """An answer, its text, its links, its forms and the cells of its tables."""

    def __init__(self, response: TestResponse) -> None:
        super().__init__()
        self.response = response
        self.status = response.status_code
        self.html = response.get_data(as_text=True)
        response.close()  # as a server does
        self.links: list[str] = []
        self.forms: dict[str, dict[str, str]] = {}
        self.rows: list[list[str]] = []
        self.numbers: dict[str, str] = {}
        """The picture's numbers, by their ``data-number``; of its wide layout."""
        self.heading = ""
        self.own_words = ""
        """The text without what is marked as another language than the page's."""
        self._open: list[str] = []
        self._own: list[str] = []
        self._foreign: list[str] = []
        """What is open within an element of another language."""
        self._words: list[str] = []
        self._number: str | None = None
        self._form: dict[str, str] = {}
        self.feed(self.html)
        self.text = " ".join(" ".join(self._words).split())
        self.own_words = " ".join(" ".join(self._own).split())

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attributes}
        if tag not in VOID:
            self._open.append(tag)
            if self._foreign or ("lang" in given and tag != "html"):
                self._foreign.append(tag)
        match tag:
            case "a" if "href" in given:
                self.links.append(given["href"])
            case "form":
                self._form = self.forms.setdefault(given["action"], {}) if "action" in given else {}
            case "input" if given.get("name"):
                self._form[given["name"]] = given.get("value", "")
            case "tr":
                self.rows.append([])
            case "td":
                self.rows[-1].append("")
        self._number = given.get("data-number")

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        if tag in self._open:
            while self._open.pop() != tag:
                pass
            while self._foreign and self._foreign.pop() != tag:
                pass
        self._number = None

    def handle_data(self, data: str) -> None:
        if not data.strip() or "script" in self._open:
            return
        self._words.append(data.strip())
        if not self._foreign:
            self._own.append(data.strip())
        if "td" in self._open and self.rows and self.rows[-1]:
            self.rows[-1][-1] = f"{self.rows[-1][-1]} {data.strip()}".strip()
        if "h1" in self._open:
            self.heading = data.strip()
        if self._number:
            self.numbers.setdefault(self._number, data.strip())

    def column(self, number: int) -> list[str]:
        """Of the rows that have cells."""
        return [row[number] for row in self.rows if len(row) > number]


class Visitor:
    """A browser without a script. Its headers are those of this service's own pages unless a test says otherwise."""

    def __init__(self, shop: Shop, **environ: Any) -> None:
        self.shop = shop
        self.client = shop.app.test_client()
        self.environ = {"REMOTE_ADDR": "127.0.0.1"} | environ
        self.language = "en"

    def get(self, path: str, headers: dict[str, str] | None = None, **query: Any) -> Page:
        given = {"Accept-Language": self.language} | (headers or {})
        return Page(self.client.get(path, query_string=query or None, headers=given, environ_overrides=self.environ))

    def post(self, path: str, headers: dict[str, str] | None = None, **form: Any) -> Page:
        """As it stands: without a token, unless one is given."""
        given = {"Accept-Language": self.language, "Sec-Fetch-Site": "same-origin"} | (headers or {})
        return Page(self.client.post(path, data=form, headers=given, environ_overrides=self.environ))

    def submit(self, page: str, action: str, headers: dict[str, str] | None = None, **filled: Any) -> Page:
        """Fill in and send a form of a page; its hidden fields are sent as they are."""
        form = self.get(page).forms[action]
        return self.post(action, headers, **(form | filled))

    def follow(self, page: Page) -> Page:
        """Where a 303 leads."""
        assert page.status == 303, (page.status, page.text)
        return self.get(page.response.headers["Location"])

    def sign_in(self, password: str, name: str = "ann") -> Page:
        return self.submit("/sign-in", "/sign-in", name=name, password=password)


def untranslated(text: str) -> list[str]:
    """Words of English sentences in a page that should be Chinese: three or more in a row, but for commands."""
    return re.findall(r"(?:\b[a-z]{2,}\b[ ,]+){2,}[a-z]{2,}", re.sub(r"'flask [^']*'", "", text))


@contextmanager
def browser() -> Iterator[Any]:
    """Debian's Chromium. Import playwright first, so that a test is skipped where it is not."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        try:
            yield opened
        finally:
            opened.close()


class Tab:
    """A page of the browser, with what it complained of."""

    def __init__(self, chromium: Any, service: Service, **how: Any) -> None:
        self.context = chromium.new_context(**({"locale": "en-GB", "viewport": {"width": 1280, "height": 900}} | how))
        self.page = self.context.new_page()
        self.complaints: list[str] = []
        self.page.on("console", lambda said: self.complaints.append(said.text) if said.type != "log" else None)
        self.page.on("pageerror", lambda error: self.complaints.append(f"{error}"))
        self.address = f"http://127.0.0.1:{service.port}"

    def open(self, path: str) -> Any:
        self.page.goto(self.address + path)
        return self.page
