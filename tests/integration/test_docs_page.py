"""GET /docs, its files and the document's examples: complete, strict, and true."""

import hashlib
import http.client
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import pytest
from werkzeug.serving import make_server

from app import request_models
from app.api.samples import BODIES, PATH_VALUES
from app.docs import POLICY
from app.errors import DatabaseUnavailable
from config import Settings
from tests.support.api import CREATE, ORDER, Api, parse
from tests.support.shop import Shop

VENDORED = {
    "swagger-ui-bundle.js": "e6a898692f2d768e807c3ba4626068a69a2c5dd960dd6c76f3e4d3a3de180af2",
    "swagger-ui.css": "5ed08757e53da3e026d6cbecc61fe5d43585c9560b302d534ad56692519a273d",
}
"""As npm's swagger-ui-dist 5.35.0 has them."""

FOLDER = Path(request_models.__file__).parent / "docs" / "static"


@pytest.fixture
def database_url(sqlite_url: str) -> str:
    return sqlite_url


@pytest.fixture
def document(api: Api) -> Any:
    return parse(api.get("/openapi.json"))


def get(shop: Shop, name: str, **headers: str) -> Any:
    """The answer, whose file is closed."""
    with shop.client.get(name, headers={key.replace("_", "-"): value for key, value in headers.items()}) as answer:
        answer.get_data()
        return answer


def test_the_page_and_what_it_names_are_there(shop: Shop) -> None:
    page = get(shop, "/docs")
    assert (page.status_code, page.mimetype) == (200, "text/html")
    names = {word.split('"')[1] for word in page.text.split() if word.startswith(("src=", "href="))}
    assert len(names) == 7
    for name in names:
        found = get(shop, urljoin("/docs", name))
        assert found.status_code == 200, name
        assert found.headers["X-Content-Type-Options"] == "nosniff"


def test_the_page_s_policy_is_strict(shop: Shop) -> None:
    """Nothing inline, nothing from elsewhere, no eval."""
    page = get(shop, "/docs")
    assert page.headers.getlist("Content-Security-Policy") == [POLICY]
    assert "unsafe" not in POLICY
    assert "http" not in POLICY
    for word in ("<style", "style=", "onclick", "<script>", "//"):
        assert word not in page.text.lower()


def test_a_file_that_is_known_already_is_not_sent_again(shop: Shop) -> None:
    name = "/docs/swagger-ui/swagger-ui-bundle.js"
    first = get(shop, name)
    again = get(shop, name, If_None_Match=first.headers["ETag"])
    assert (again.status_code, again.data) == (304, b"")


@pytest.mark.parametrize("name", ["/docs/../__init__.py", "/docs/%2e%2e/__init__.py", "/docs/nothing.js", "/docs/"])
def test_no_other_file_is_sent(shop: Shop, name: str) -> None:
    assert shop.client.get(name).status_code == 404


def test_what_is_vendored_is_unchanged_and_has_its_licence() -> None:
    folder = FOLDER / "swagger-ui"
    assert {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in VENDORED} == VENDORED
    assert "Apache License" in (folder / "LICENSE").read_text()
    assert "SmartBear" in (folder / "NOTICE").read_text()
    assert sum(file.stat().st_size for file in folder.iterdir()) < 2_000_000


# Examples of errors


def operations(document: Any) -> Iterator[tuple[str, str, Any]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield path, method, operation


def problems(operation: Any) -> dict[str, Any]:
    """The example of each error, by its status."""
    return {
        status: response["content"]["application/problem+json"]["example"]
        for status, response in operation["responses"].items()
        if "application/problem+json" in response["content"]
    }


def test_every_error_has_an_example(document: Any) -> None:
    for path, method, operation in operations(document):
        for status, example in problems(operation).items():
            assert example["status"] == int(status), (path, method)
            assert example["detail"], (path, method, status)
            assert example.get("errors") if status == "422" else True


def test_the_examples_are_what_the_service_answers(
    api: Api, document: Any, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each error of POST /api/create_order, provoked."""
    guarded = Shop(settings.model_copy(update={"api_token": "t", "trusted_hosts": ("orders.example",)}))
    api.place()

    def away(*_: Any, **__: Any) -> Any:
        raise DatabaseUnavailable

    def broken(*_: Any, **__: Any) -> Any:
        raise ZeroDivisionError

    def fails(how: Any) -> Any:
        with monkeypatch.context() as patched:
            patched.setattr(api.shop.database, "transact", how)
            return api.place(order_id="2")

    answers = [
        api.post(""),
        guarded.client.post(CREATE, json=ORDER),
        api.place(total_price=1),
        api.post(" " * 70_000),
        api.post("{}", content_type="text/plain"),
        guarded.client.post(CREATE, json=ORDER, headers={"Host": "evil.example"}),
        api.post([]),
        fails(broken),
        fails(away),
    ]
    guarded.close()
    examples = problems(document["paths"][CREATE]["post"])
    assert {str(answer.status_code): parse(answer) for answer in answers} == examples


@pytest.mark.parametrize(
    "method, path, body",
    [
        ("get", "/api/orders/{order_id}", None),
        ("get", "/api/users/{user_id}", None),
        ("get", "/operator/acts/{act_id}", None),
        ("post", "/operator/acts/{act_id}/abort", {}),
        ("post", "/operator/deliveries/{delivery_id}/retry", {}),
        ("post", "/operator/deliveries/{delivery_id}/discard", {"reason": "x"}),
        ("post", "/operator/orders/{order_id}/resend", {}),
        ("post", "/operator/receivers/{receiver}/resume", {}),
    ],
)
def test_a_404_reads_as_its_example(api: Api, document: Any, method: str, path: str, body: Any) -> None:
    filled = path.format_map(PATH_VALUES | {"receiver": "send_sms"})
    answer, example = (
        parse(api.client.open(filled, method=method.upper(), json=body)),
        problems(document["paths"][path][method])["404"],
    )
    if "{receiver}" in path:
        answer["detail"] = answer["detail"].partition(",")[0]  # it names all that there are
    assert answer == example


def test_a_403_reads_as_its_example(api: Api, document: Any) -> None:
    for path in ("/operator/deliveries", "/metrics"):
        answer = api.client.get(path, environ_base={"REMOTE_ADDR": "192.0.2.7"})
        assert parse(answer) == problems(document["paths"][path]["get"])["403"]


# Samples


def test_every_request_schema_has_a_body_that_it_takes() -> None:
    models = {name for name in dir(request_models) if name in BODIES}
    assert models == set(BODIES)
    for name, body in BODIES.items():
        getattr(request_models, name).model_validate(json.loads(json.dumps(body), parse_float=Decimal))


def test_every_operation_has_samples_for_three_clients(document: Any) -> None:
    for path, _, operation in operations(document):
        labels = [sample["label"] for sample in operation["x-codeSamples"]]
        assert labels == ["curl", "HTTPie", "Python"], path


class Server:
    """The application behind a real port, in a thread."""

    def __init__(self, shop: Shop) -> None:
        self.server = make_server("127.0.0.1", 0, shop.app, threaded=True)
        self.thread = threading.Thread(target=self.server.serve_forever)
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()

    def document(self) -> Any:
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port)
        connection.request("GET", "/openapi.json")
        found = json.loads(connection.getresponse().read())
        connection.close()
        return found


@pytest.fixture(
    params=[{}, {"api_token": "t'ok en", "console_password": "p w", "metrics_token": "m"}], ids=["open", "guarded"]
)
def served(request: pytest.FixtureRequest, settings: Settings) -> Iterator[tuple[Shop, Server]]:
    shop = Shop(settings.model_copy(update=request.param))
    server = Server(shop)
    yield shop, server
    server.close()
    shop.close()


COMMANDS = {"curl": "curl", "HTTPie": "http", "Python": sys.executable}


@pytest.fixture
def terminal() -> Iterator[int]:
    """HTTPie takes what is no terminal for the request's body."""
    master, slave = os.openpty()
    yield slave
    os.close(master)
    os.close(slave)


@pytest.mark.parametrize("label", COMMANDS)
def test_samples_run_as_they_are(served: tuple[Shop, Server], label: str, terminal: int) -> None:
    """Pasted into a terminal. What they ask for exists, so none of them is refused."""
    if shutil.which(COMMANDS[label]) is None:
        pytest.skip(f"no {label} here")
    shop, server = served
    shop.place_order()
    chosen = shop.settings
    secrets = {
        "API_TOKEN": chosen.api_token,
        "CONSOLE_PASSWORD": chosen.console_password,
        "METRICS_TOKEN": chosen.metrics_token,
    }
    environment = {"PATH": os.environ["PATH"], "HOME": "/nonexistent"}
    environment |= {name: secret for name, secret in secrets.items() if secret}
    paths = server.document()["paths"]
    chosen_operations = [
        (CREATE, "post"),
        ("/api/orders/{order_id}", "get"),
        ("/operator/deliveries/retry", "post"),
        ("/operator/receivers/{receiver}/pause", "post"),
        ("/operator/receivers/{receiver}/resume", "post"),
        ("/metrics", "get"),
        ("/healthz", "get"),
    ]
    for path, method in chosen_operations:
        (source,) = [each["source"] for each in paths[path][method]["x-codeSamples"] if each["label"] == label]
        words = [sys.executable, "-c", source] if label == "Python" else ["bash", "-c", source]
        done = subprocess.run(words, capture_output=True, text=True, env=environment, stdin=terminal, check=False)
        assert done.returncode == 0, (source, done.stderr)
        assert "200" in done.stdout or "409" in done.stdout or label == "HTTPie", (source, done.stdout)
    assert shop.count("operator_acts") == 2
