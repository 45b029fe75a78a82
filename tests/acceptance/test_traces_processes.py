"""One trace over real processes: the span of the request in one, those of the attempts in another."""

import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.observe import traces
from tests.support.collector import Collector
from tests.support.service import Service, free_port, wait_until

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
pytestmark = pytest.mark.skipif(
    not all(map(traces._is_there, traces.PACKAGES)), reason="OpenTelemetry is not here: requirements-traces.txt"
)


@pytest.fixture
def collector() -> Iterator[Collector]:
    made = Collector()
    yield made
    made.close()


def post(service: Service) -> None:
    request = urllib.request.Request(
        f"http://127.0.0.1:{service.port}/api/create_order",
        data=json.dumps({"order_id": "1", "user_id": "2", "total_price": 1}).encode(),
        headers={"Content-Type": "application/json", "traceparent": f"00-{TRACE}-00f067aa0ba902b7-01"},
    )
    with urllib.request.urlopen(request, timeout=20) as answer:  # noqa: S310 - of our own
        assert answer.status == 201


def test_the_request_and_the_mail_are_spans_of_one_trace(tmp_path: Path, collector: Collector) -> None:
    asked = {"otel_exporter_otlp_endpoint": collector.url, "otel_bsp_schedule_delay": 100}
    service = Service(tmp_path, mail_backend="file", **asked).start()
    try:
        post(service)
        wanted = {"POST /api/create_order", "send_email_notification", "update_user_order_record"}
        wait_until(lambda: wanted <= collector.spans().keys(), "the spans")
    finally:
        service.close()
    found = collector.spans()
    assert {found[name].trace_id.hex() for name in wanted} == {TRACE}
    assert found["send_email_notification"].parent_span_id == found["POST /api/create_order"].span_id
    (mail,) = (tmp_path / "instance" / "mail" / "new").iterdir()
    assert f"Traceparent: 00-{TRACE}-{found['POST /api/create_order'].span_id.hex()}-01" in mail.read_text()


def test_a_collector_that_is_away_holds_up_neither_orders_nor_a_stop(tmp_path: Path) -> None:
    service = Service(tmp_path, mail_backend="file", otel_exporter_otlp_endpoint=f"http://127.0.0.1:{free_port()}")
    service.start()
    try:
        post(service)
        wait_until(lambda: service.get("/api/orders/1").body["notification"] == "sent", "the mail")
        assert service.stop() < 15
    finally:
        service.close()
