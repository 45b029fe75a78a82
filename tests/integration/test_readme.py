"""What the README shows works as it is written there."""

import re
import sys
import types
from typing import Any

import pytest

from app.events import order_created
from config import CHECKOUT
from tests.support.shop import Shop

READMES = ("README.md", "README.zh.md")


@pytest.fixture
def database_url(sqlite_url: str) -> str:
    return sqlite_url


@pytest.mark.parametrize("readme", READMES)
def test_the_receiver_can_be_added_as_written(shop: Shop, readme: str) -> None:
    example = re.findall(r"```python\n(.*?)```", (CHECKOUT / readme).read_text(), re.DOTALL)[0]
    assert len([line for line in example.splitlines() if line.strip() and not line.startswith("#")]) <= 10
    module: Any = types.ModuleType("app.receivers.big_order")
    exec(compile(example, readme, "exec"), module.__dict__)  # noqa: S102 - the README's own words
    sys.modules.pop("app.receivers.big_order", None)
    shop.receive(module.tell_sales)
    shop.place_order("small", price="999.99")
    shop.place_order("big", price="1000.00")
    shop.dispatch_all()
    assert [delivery.state for delivery in shop.deliveries("tell_sales")] == ["discarded", "done"]
    assert "order_created.connect(tell_sales)" in (CHECKOUT / readme).read_text()
    assert module.tell_sales in order_created.receivers_for("anyone")


@pytest.mark.parametrize("readme", READMES)
def test_the_curl_is_answered_as_shown(shop: Shop, readme: str) -> None:
    text = (CHECKOUT / readme).read_text()
    body = re.findall(r"-d '(\{.*?\})'", text)[0]
    answer = shop.client.post("/api/create_order", data=body, content_type="application/json")
    assert answer.status_code == 201
    shown = re.search(r'^\{"status":"success".*$', text, re.MULTILINE)
    assert shown is not None
    event_id = re.compile(r'"event_id":"[^"]+"')
    assert event_id.sub("", answer.text.strip()) == event_id.sub("", shown.group())
    assert f"Location: {answer.headers['Location']}" in text


@pytest.mark.parametrize("readme", READMES)
def test_every_flask_command_that_is_shown_exists(shop: Shop, readme: str) -> None:
    runner = shop.app.test_cli_runner()
    shown = re.findall(r"^\$ flask ([a-z]+)(?: ([a-z-]+))?", (CHECKOUT / readme).read_text(), re.MULTILINE)
    assert ("db", "revision") in shown
    for words in set(shown):
        command = [word for word in words if word]
        assert runner.invoke(args=[*command, "--help"]).exit_code == 0, command
