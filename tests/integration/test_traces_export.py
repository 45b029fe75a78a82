"""Spans leave by OTLP where OTEL_* asks for it, and nothing of OpenTelemetry is loaded where not."""

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from app import create_app
from app.errors import Refused
from app.observe import traces
from config import CHECKOUT, Settings, exports_traces
from tests.support.collector import Collector
from tests.support.shop import Shop

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
SPAN = "00f067aa0ba902b7"
ORDER = {"order_id": "1001", "user_id": "42", "total_price": "19.99"}
installed = all(map(traces._is_there, traces.PACKAGES))
needs_packages = pytest.mark.skipif(not installed, reason="OpenTelemetry is not here: requirements-traces.txt")


@pytest.fixture
def collector() -> Iterator[Collector]:
    made = Collector()
    yield made
    made.close()


@pytest.fixture
def traced(settings: Settings, collector: Collector, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shop]:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
    shop = Shop(settings)
    yield shop
    shop.app.extensions["traces"].provider.shutdown()
    shop.close()


def value(span: Any, name: str) -> Any:
    (found,) = [each.value for each in span.attributes if each.key == name]
    return found.string_value or found.int_value


@needs_packages
def test_one_trace_covers_post_to_mail(traced: Shop, collector: Collector) -> None:
    headers = {"traceparent": f"00-{TRACE}-{SPAN}-01"}
    event_id = traced.client.post("/api/create_order", json=ORDER, headers=headers).json["event_id"]
    traced.clock.advance(2)
    traced.dispatch_all()
    traced.app.extensions["traces"].provider.force_flush()
    spans = collector.spans()
    post, mail = spans["POST /api/create_order"], spans["send_email_notification"]
    assert set(spans) == {
        "POST /api/create_order",
        "send_email_notification",
        "update_user_order_record",
        "update_order_notification",
    }
    assert {span.trace_id.hex() for span in spans.values()} == {TRACE}
    assert post.parent_span_id.hex() == SPAN
    assert mail.parent_span_id == post.span_id
    assert (value(post, "http.response.status_code"), value(post, "http.route")) == (201, "/api/create_order")
    assert (value(mail, "orders.order_id"), value(mail, "orders.event_id")) == ("1001", event_id)
    assert (value(mail, "orders.outcome"), value(mail, "orders.attempt")) == ("ok", 1)
    (sent,) = traced.mailer.outbox
    assert sent.extra_headers["Traceparent"] == f"00-{TRACE}-{post.span_id.hex()}-01"


@needs_packages
def test_a_failed_attempt_s_span_says_why_without_the_address(traced: Shop, collector: Collector) -> None:
    def refuse(sender: str, event: Any) -> None:
        raise Refused("550 no such user ann@example.com")

    traced.only(refuse)
    traced.client.post("/api/create_order", json=ORDER)
    traced.dispatch_all()
    traced.app.extensions["traces"].provider.force_flush()
    span = collector.spans()["refuse"]
    assert span.status.code == 2
    assert "550 no such user" in span.status.message
    assert "ann@example.com" not in span.status.message


@needs_packages
def test_what_is_not_sampled_is_not_exported_and_keeps_its_trace(traced: Shop, collector: Collector) -> None:
    traced.client.post("/api/create_order", json=ORDER, headers={"traceparent": f"00-{TRACE}-{SPAN}-00"})
    traced.dispatch_all()
    traced.app.extensions["traces"].provider.force_flush()
    assert collector.spans() == {}
    assert {event["traceparent"][3:35] for event in traced.timeline()} == {TRACE}


@pytest.mark.parametrize(
    "environ, asks",
    [
        ({}, False),
        ({"OTEL_SERVICE_NAME": "orders"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c:4318/v1/traces"}, True),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, True),
        ({"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, False),
        ({"OTEL_TRACES_EXPORTER": "otlp", "OTEL_SDK_DISABLED": "true"}, False),
    ],
)
def test_opentelemetry_s_own_variables_ask_for_traces(environ: dict[str, str], asks: bool) -> None:
    assert exports_traces(environ) is asks


def test_where_the_packages_are_missing_the_start_says_so_and_goes_on(
    sqlite_url: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "otlp")
    monkeypatch.setattr(traces, "PACKAGES", ("opentelemetry.there_is_none.such",))
    with caplog.at_level(logging.WARNING):
        app = create_app(Settings.of(instance_path=tmp_path / "instance", database_url=sqlite_url))
    app.extensions["database"].close()
    assert "pip install -r requirements-traces.txt" in caplog.text
    assert "traces" not in app.extensions


def test_a_start_loads_neither_opentelemetry_nor_prometheus_client(tmp_path: Any) -> None:
    """Nor does a dispatcher that counts: they cost memory and time."""
    code = (
        "import sys; from app import create_app; from config import Settings; import pathlib\n"
        "app = create_app(Settings.of(instance_path=pathlib.Path(sys.argv[1])))\n"
        "order = {'order_id': '1', 'user_id': '2', 'total_price': 1}\n"
        "assert app.test_client().post('/api/create_order', json=order).status_code == 201\n"
        "assert len(app.extensions['bus'].dispatcher().run_once()) == 3\n"
        "print([name for name in sys.modules if name.startswith(('opentelemetry', 'prometheus_client'))])"
    )
    environment = {name: text for name, text in os.environ.items() if not name.startswith("OTEL_")}
    words = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(words, cwd=CHECKOUT, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout == "[]\n", done.stderr
