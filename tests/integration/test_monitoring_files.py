"""The alerts and the dashboard in deploy/ ask only for what /metrics has, and each alert fires."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from app.errors import Unreachable
from config import CHECKOUT
from tests.support.shop import Shop

ALERTS = CHECKOUT / "deploy" / "prometheus-alerts.yaml"
DASHBOARD = CHECKOUT / "deploy" / "grafana-dashboard.json"
DOCUMENT = CHECKOUT / "docs" / "observability.md"
PROMTOOL = shutil.which("promtool")
BY_PROMETHEUS = {"job", "instance"}
"""Labels that a scrape adds."""

needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason="promtool is not here: install Debian's prometheus")


@pytest.fixture
def database_url(sqlite_url: str) -> str:
    return sqlite_url


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]


def panels() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(DASHBOARD.read_text())["panels"]
    return found


def queries() -> dict[str, str]:
    """Every expression, by the alert's or the panel's name."""
    shown = {f"{panel['title']} {target['refId']}": target["expr"] for panel in panels() for target in panel["targets"]}
    return {rule["alert"]: rule["expr"] for rule in rules()} | shown


@pytest.fixture
def exposed(shop: Shop) -> dict[str, set[str]]:
    """The series that /metrics has after one mail and one that failed, with the names of their labels."""
    deliver, failed = shop.mailer.backend.deliver, []

    def fail_once(mail: Any) -> None:
        if not failed:
            failed.append(mail)
            raise Unreachable("down")
        deliver(mail)

    shop.mailer.backend.deliver = fail_once
    shop.post(order_id="1")
    shop.post(order_id="2")
    shop.dispatcher.heartbeat()
    shop.dispatch_all()
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(shop.client.get("/metrics").text):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


def test_every_expression_asks_for_series_and_labels_that_are_there(exposed: dict[str, set[str]]) -> None:
    assert len(queries()) > 20
    for name, expression in queries().items():
        asked = re.findall(r"\b(orders_\w+|up)\b(?:\{([^}]*)\})?", expression)
        assert asked, name
        known = set()
        for series, matchers in asked:
            labels = exposed.get(series, set()) | BY_PROMETHEUS
            assert series == "up" or series in exposed, f"{name} asks for {series}"
            assert set(re.findall(r"(\w+)\s*[=!]", matchers)) <= labels, name
            known |= labels
        grouped = {
            label.strip() for words in re.findall(r"\b(?:by|on) \(([^)]*)\)", expression) for label in words.split(",")
        }
        assert grouped <= known, name


def test_every_route_and_state_that_an_expression_names_exists(shop: Shop) -> None:
    routes = {rule.rule for rule in shop.app.url_map.iter_rules()}
    text = "\n".join(queries().values())
    assert set(re.findall(r'route="([^"]+)"', text)) <= routes
    assert set(re.findall(r'(?:type|event)="([^"]+)"', text)) == {"OrderCreated"}


def test_every_metric_is_documented_and_nothing_else_is(exposed: dict[str, set[str]]) -> None:
    families = {re.sub("_(bucket|sum|count)$", "", name) for name in exposed}
    assert set(re.findall(r"^\| `(orders_\w+)`", DOCUMENT.read_text(), re.MULTILINE)) == families


def test_every_alert_says_what_is_wrong_and_is_documented() -> None:
    for rule in rules():
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert rule["annotations"].keys() == {"summary", "description"}
        assert f"| `{rule['alert']}`" in DOCUMENT.read_text()


def test_commands_that_an_alert_names_exist(shop: Shop) -> None:
    runner = shop.app.test_cli_runner()
    named = re.findall(r"'flask ([^']+)'", ALERTS.read_text())
    assert named
    for command in named:
        words = [word for word in command.split() if not word.startswith("-")][:2]
        assert runner.invoke(args=[*words, "--help"]).exit_code == 0, command


def test_the_dashboard_s_panels_do_not_overlap() -> None:
    cells: set[tuple[int, int]] = set()
    for panel in panels():
        place = panel["gridPos"]
        mine = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not mine & cells, panel["title"]
        assert place["x"] + place["w"] <= 24
        cells |= mine
    assert len({panel["id"] for panel in panels()}) == len(panels())


# By promtool


def promtool(*words: str | Path) -> None:
    done = subprocess.run([str(PROMTOOL), *map(str, words)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_prometheus_takes_the_alerts() -> None:
    promtool("check", "rules", ALERTS)


@needs_promtool
def test_prometheus_takes_the_dashboard_s_expressions(tmp_path: Path) -> None:
    recorded = [
        {"record": f"panel:{number}", "expr": expression.replace("$__rate_interval", "1m").replace("$job", "orders")}
        for number, expression in enumerate(queries().values())
    ]
    file = tmp_path / "rules.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": recorded}]}))
    promtool("check", "rules", file)


@needs_promtool
def test_prometheus_finds_nothing_to_lint_in_the_exposition(shop: Shop, exposed: dict[str, set[str]]) -> None:
    text = shop.client.get("/metrics").text
    done = subprocess.run([str(PROMTOOL), "check", "metrics"], input=text, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


FIRING = {
    "OrdersUnreachable": {'up{job="orders", instance="a"}': "0x60"},
    "OrdersDatabaseUnreachable": {'orders_database_up{instance="a"}': "0x60"},
    "OrdersRefusedByService": {
        'orders_http_requests_total{route="/api/create_order", status="201"}': "0+90x60",
        'orders_http_requests_total{route="/api/create_order", status="503"}': "0+10x60",
    },
    "OrdersNoDispatcher": {'orders_dispatchers{instance="a"}': "0x60"},
    "OrdersDeliveriesOverdue": {'orders_oldest_due_age_seconds{receiver="r"}': "0+60x60"},
    "OrdersBreakerOpen": {'orders_breaker_open{receiver="r"}': "1x60"},
    "OrdersDeliveriesDead": {'orders_deliveries_dead{receiver="r"}': "3x60"},
    "OrdersReceiverFails": {'orders_deliveries_total{receiver="r", state="ready", outcome="bug"}': "0+1x60"},
    "OrdersMailLate": {
        'orders_event_to_mail_seconds_bucket{event="OrderCreated", le="60"}': "0+90x60",
        'orders_event_to_mail_seconds_bucket{event="OrderCreated", le="300"}': "0+100x60",
        'orders_event_to_mail_seconds_bucket{event="OrderCreated", le="+Inf"}': "0+100x60",
    },
    "OrdersReceiverPaused": {'orders_receiver_paused{receiver="r"}': "1x300"},
}
"""Series, a value a minute, in which the alert fires in the end."""

QUIET = {
    "OrdersDeliveriesOverdue": {
        'orders_oldest_due_age_seconds{receiver="r"}': "0+60x60",
        'orders_receiver_paused{receiver="r"}': "1x60",
    },
    "OrdersRefusedByService": {'orders_http_requests_total{route="/api/create_order", status="409"}': "0+90x60"},
    "OrdersNoDispatcher": {'orders_dispatchers{instance="a"}': "0x60", 'orders_dispatchers{instance="b"}': "1x60"},
}
"""Series in which it doesn't, though it might seem so."""


def test_every_alert_has_a_case() -> None:
    assert FIRING.keys() == {rule["alert"] for rule in rules()}


def cases() -> Iterator[Any]:
    for name, series in FIRING.items():
        yield pytest.param(name, series, True, id=f"{name}-fires")
    for name, series in QUIET.items():
        yield pytest.param(name, series, False, id=f"{name}-is-quiet")


@needs_promtool
@pytest.mark.parametrize("name, series, fires", list(cases()))
def test_an_alert_fires_when_it_should(tmp_path: Path, name: str, series: dict[str, str], fires: bool) -> None:
    (rule,) = [each for each in rules() if each["alert"] == name]
    bare = {key: value for key, value in rule.items() if key != "annotations"}
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": [{"name": "one", "rules": [bare]}]}))
    labels = {
        "OrdersUnreachable": {"job": "orders", "instance": "a"},
        "OrdersDatabaseUnreachable": {"instance": "a"},
    }.get(name, {"receiver": "r"} if "receiver=" in str(series) else {})
    expected = [{"exp_labels": labels | rule["labels"]}] if fires else []
    minutes = 290 if name == "OrdersReceiverPaused" else 50
    test = {
        "rule_files": ["rules.yaml"],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": [{"series": each, "values": values} for each, values in series.items()],
                "alert_rule_test": [{"eval_time": f"{minutes}m", "alertname": name, "exp_alerts": expected}],
            }
        ],
    }
    (tmp_path / "test.yaml").write_text(yaml.safe_dump(test))
    promtool("test", "rules", tmp_path / "test.yaml")
