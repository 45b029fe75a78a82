"""Pictures of every page of the console, of a real run: orders, failures, an outage, and what people did about it.

    python -m tests.pictures                       those of docs/console.md, in some four minutes
    python -m tests.pictures FOLDER --whole        pages from top to bottom, as PNG, to look at
    python -m tests.pictures FOLDER --only order   some of them; the run is the same
    python -m tests.pictures --minutes 30          a longer run: fuller charts

Two services are started: one whose mail goes to a server that refuses, greylists and is down for a while, and the
checkout's default set-up, whose mail goes to files. Each page is photographed in the middle of what it is for, by
Debian's Chromium: 1,280 and 390 pixels wide, light and dark, some of them in Chinese. A page that is added gets a line
in one of the tables below, and its section in docs/console.md.
"""

import argparse
import base64
import contextlib
import itertools
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.console import browser
from tests.support.service import CHECKOUT, Client, Service, wait_until
from tests.support.smtp import SmtpServer

WIDTHS = {"wide": (1280, 860), "narrow": (390, 844)}
ALL = ("wide-light", "wide-dark", "narrow-light", "narrow-dark")
TWO = ("wide-light", "narrow-dark")
MOST_HEIGHT = 820
"""Of a picture for the documentation, in pixels of the page."""

SCALE = {"wide": 0.8, "narrow": 1}
"""A wide one is as wide as the place where it is shown."""

QUALITY = 30
"""Of WebP: small type stays sharp."""

PASSWORD = "three-in-the-morning"
PACE_SECONDS = 1.0
"""Between two orders."""

NO_SUCH_USER = "550 5.1.1 <{}>: recipient address rejected: no such user"
GREYLISTED = "450 4.7.1 <{}>: greylisted, come back in five minutes"

USERS = ("ann", "bo", "chen", "dara", "eve", "femi", "gao", "hana", "ivo", "jun", "kim", "lea")
REFUSED, GREY, UNKNOWN = ("eve", "ivo"), ("femi",), ("hana",)
"""Users whose address is wrong, whose server greylists for longer than this run, and whose address nobody knows."""

PRICES = ("19.99", "5.00", "1204.50", "64.20", "8.00", "310.00", "42.42")


@dataclass(frozen=True)
class Picture:
    """A page in the middle of what it is for. ``path`` may name what the run made, as ``{corrected}``."""

    name: str
    path: str
    variants: tuple[str, ...] = ALL
    language: str = "en-GB"
    ready: str = "main, .opblock"
    """What is waited for: a selector."""


DURING_THE_OUTAGE = (
    Picture("flow-outage", "/"),
    Picture("flow-explained", "/?explain=1", TWO, "zh-CN"),
    Picture("deliveries-waiting", "/deliveries?state=waiting&receiver=send_email_notification", TWO),
    Picture("system", "/system"),
    Picture("findings", "/system/doctor", TWO, "zh-CN"),
)
AFTER_IT = (
    Picture("orders", "/orders"),
    Picture("order", "/orders/{corrected}"),
    Picture("order-retrying", "/orders/{greylisted}", TWO),
    Picture("users", "/users", TWO),
    Picture("user", "/users/hana"),
    Picture("events", "/events"),
    Picture("event", "/events/{event}", TWO),
    Picture("catalogue", "/events/types", TWO),
    Picture("deliveries", "/deliveries"),
    Picture("act-ask", "/deliveries/act?action=retry&state=dead&receiver=send_email_notification", TWO),
    Picture("acts", "/acts"),
    Picture("act", "/acts/1", TWO),
    Picture("retries", "/retries?receiver=send_email_notification&scope=backend&kind=unreachable"),
    Picture("docs", "/docs", ready=".opblock"),
)
SIGNED_OUT = (Picture("sign-in", "/sign-in", TWO),)
BY_DEFAULT = (
    Picture("flow-break", "/", TWO),
    Picture("mail", "/orders/{mailed}/mail/{sent}", TWO),
    Picture("mailbox", "/mailbox"),
)


class Customers:
    """Orders at an even pace, until they have gone."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._order, daemon=True)
        self.numbers = itertools.count(1001)

    def __enter__(self) -> "Customers":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _order(self) -> None:
        with contextlib.closing(Client(self._port)) as client:
            for number in self.numbers:
                client.post(**order(number))
                if self._ended.wait(PACE_SECONDS):
                    return


def order(number: int) -> dict[str, str]:
    user = USERS[number * 7 % len(USERS)]
    made = {"order_id": f"{number}", "user_id": user, "total_price": PRICES[number % len(PRICES)]}
    return made if user in UNKNOWN else made | {"email": f"{user}@example.com"}


class Camera:
    """Takes pictures of a service's pages into a folder."""

    def __init__(self, chromium: Any, service: Service, folder: Path, *, whole: bool, only: list[str]) -> None:
        self.chromium, self.folder, self.whole, self.only = chromium, folder, whole, only
        self.address = f"http://127.0.0.1:{service.port}"
        self.state: Any = None

    def take(self, pictures: tuple[Picture, ...], **names: str) -> None:
        for picture in pictures:
            if not self.only or picture.name in self.only:
                for variant in picture.variants:
                    self._take(picture, variant, names)
                print(picture.name, flush=True)

    def _take(self, picture: Picture, variant: str, names: dict[str, str]) -> None:
        width, scheme = variant.split("-")
        how = {"locale": picture.language, "color_scheme": scheme, "viewport": size(*WIDTHS[width])}
        with self.tab(**how, device_scale_factor=1 if self.whole else SCALE[width]) as page:
            page.goto(self.address + picture.path.format(**names))
            page.wait_for_selector(picture.ready)
            page.wait_for_timeout(1500)  # what moves does so meanwhile
            self._keep(page, f"{picture.name}-{variant}")

    def _keep(self, page: Any, name: str) -> None:
        if self.whole:
            page.screenshot(path=self.folder / f"{name}.png", full_page=True)
            return
        height = page.evaluate("document.querySelector('main').getBoundingClientRect().bottom")
        page.set_viewport_size(size(page.viewport_size["width"], min(max(int(height), 300), MOST_HEIGHT)))
        page.wait_for_timeout(300)
        asked = {"format": "webp", "quality": QUALITY}
        found = page.context.new_cdp_session(page).send("Page.captureScreenshot", asked)
        (self.folder / f"{name}.webp").write_bytes(base64.b64decode(found["data"]))

    @contextlib.contextmanager
    def tab(self, **how: Any) -> Iterator[Any]:
        context = self.chromium.new_context(**({"locale": "en-GB", "storage_state": self.state} | how))
        try:
            yield context.new_page()
        finally:
            context.close()

    @contextlib.contextmanager
    def operator(self) -> Iterator[Any]:
        """A page that somebody clicks on; it stands at the first page. The session is kept for the pictures."""
        with self.tab() as page:
            page.goto(self.address)
            if "/sign-in" in page.url:
                page.get_by_label("Your name").fill("lin")
                page.get_by_label("Password").fill(PASSWORD)
                page.get_by_role("button", name="Sign in").click()
            yield page
            self.state = page.context.storage_state()


def size(width: int, height: int) -> dict[str, int]:
    return {"width": width, "height": height}


# What happens in the shop


def play_outage(camera: Camera, service: Service, server: SmtpServer, minutes: float) -> None:
    """Orders; some mails are refused; people put that right; the mail server is down for a while, and comes back."""
    for each in REFUSED:
        server.on("RCPT", lambda line: NO_SUCH_USER.format(address(line)), when=f"{each}@")
    for each in GREY:
        server.on("RCPT", lambda line: GREYLISTED.format(address(line)), when=f"{each}@")
    camera.take(SIGNED_OUT)
    with Customers(service.port):
        time.sleep(minutes * 60 * 0.6)
        wait_until(lambda: failed(service), "the refusals")
        corrected = failed(service)[-1]
        with camera.operator() as page:
            put_right(page, camera.address, corrected)
            server.stop()
            time.sleep(minutes * 60 * 0.15)
            page.goto(camera.address)
            page.locator("svg.wide").get_by_text("its circuit breaker is open").wait_for()
        camera.take(DURING_THE_OUTAGE)
        server.start()
        time.sleep(minutes * 60 * 0.25)
        greylisted = next(n for n in itertools.count(1001) if order(n)["user_id"] in GREY)
        event = service.get(f"/api/orders/{corrected}").body["timeline"][0]["event_id"]
        service.run("flask", "bus", "policy", "fit").check_returncode()  # so that there is something learned to show
        camera.take(AFTER_IT, corrected=corrected, greylisted=f"{greylisted}", event=event)


def address(line: str) -> str:
    return line.partition("<")[2].partition(">")[0]


def failed(service: Service) -> list[str]:
    """Orders whose mail was refused, the newest first."""
    return [each["order_id"] for each in service.get("/api/orders?notification=failed").body["orders"]]


def put_right(page: Any, at: str, corrected: str) -> None:
    """By clicks: retry all that was refused, give one up, correct an address and send the mail again."""
    page.get_by_role("link", name="Deliveries").first.click()
    page.get_by_role("link", name="Retry these").first.click()
    page.get_by_label("Why, if you like").fill("the address book was mended")
    page.locator("button.main").last.click()
    page.wait_for_url("**/acts/**")
    page.goto(f"{at}/orders/{corrected}")
    page.get_by_label("Where this order's mails go").fill("eve.new@example.org")
    page.get_by_role("button", name="Set it").click()
    page.get_by_label("Why, if you like").last.fill("she called: the address had a slip")
    page.get_by_role("button", name="Send it again").click()
    page.goto(f"{at}/deliveries?state=dead&view=list")
    page.get_by_role("link", name="Discard delivery").last.click()
    page.get_by_label("Why").fill("a test order")
    page.locator("button.main").last.click()
    page.goto(f"{at}/system")
    page.get_by_label("Why update_order_notification is paused").fill("looking into order 1005")
    row = page.locator("tr", has_text="update_order_notification")
    row.get_by_role("button", name="Pause").click()
    row.get_by_role("button", name="Resume").click()


def play_default(camera: Camera, service: Service) -> None:
    """The checkout's default set-up: mails are files, and a visitor may break it."""
    for number in range(1001, 1013):
        service.post(**order(number))
    wait_until(lambda: service.get("/api/orders/1012").body["notification"] == "sent", "the mails")
    sent = next(each for each in service.get("/api/orders/1012").body["timeline"] if each["type"] == "NotificationSent")
    with Customers(service.port) as customers:
        customers.numbers = itertools.count(1013)
        camera.take(BY_DEFAULT, mailed="1012", sent=sent["event_id"])


def main() -> int:
    options = argparse.ArgumentParser()
    options.add_argument("folder", type=Path, nargs="?", default=CHECKOUT / "docs" / "console")
    options.add_argument("--whole", action="store_true", help="PNGs of whole pages")
    options.add_argument("--only", nargs="+", default=[], metavar="NAME")
    options.add_argument("--minutes", type=float, default=3, help="how long orders come in")
    given = options.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, SmtpServer() as server, browser() as chromium:
        Path(folder, "mail").mkdir()
        sending = Service(Path(folder), **server.settings, console_password=PASSWORD)
        keeping = Service(Path(folder, "mail"), mail_backend="file")
        try:
            for service, play in (
                (sending, lambda camera: play_outage(camera, sending, server, given.minutes)),
                (keeping, lambda camera: play_default(camera, keeping)),
            ):
                service.start()
                play(Camera(chromium, service, given.folder, whole=given.whole, only=given.only))
                service.stop()
        finally:
            sending.close()
            keeping.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
