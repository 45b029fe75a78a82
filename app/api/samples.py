"""Code samples of each operation, for curl, HTTPie and Python: members ``x-codeSamples`` of /openapi.json.

They are complete: pasted into a terminal, they run. A secret is taken from the environment.
"""

import json
import pprint
import shlex
from collections.abc import Mapping
from typing import Any

Json = dict[str, Any]

BODIES: Mapping[str, Json] = {
    "NewOrder": {"order_id": "1001", "user_id": "42", "total_price": 19.99},
    "RetryRequest": {"filter": {"state": "dead"}, "dry_run": True},
    "DiscardRequest": {"filter": {"state": "dead"}, "reason": "nobody waits for these any more", "dry_run": True},
    "DiscardReason": {"reason": "the customer has the mail"},
    "ResendRequest": {"reason": "the customer lost the mail"},
    "PauseRequest": {"reason": "the mail server is moved"},
    "ReplayRequest": {"event_type": "OrderCreated", "order_id": "1001", "dry_run": True},
    "EmailRequest": {"email": "ann@example.com"},
    "SendSkippedRequest": {"dry_run": True},
    "EmptyBody": {},
}
"""A body of each request schema."""

PATH_VALUES: Mapping[str, str | int] = {
    "order_id": "1001",
    "user_id": "42",
    "receiver": "send_email_notification",
    "act_id": 1,
    "delivery_id": 1,
}

SECRETS = {"token": "API_TOKEN", "metrics_token": "METRICS_TOKEN", "password": "CONSOLE_PASSWORD"}
"""The environment variable of each security scheme."""


def with_samples(paths: Mapping[str, Json], server: str) -> Json:
    """The document's paths, each operation with its samples."""
    return {
        path: {
            method: operation | {"x-codeSamples": _samples(server, path, method, operation)}
            for method, operation in operations.items()
        }
        for path, operations in paths.items()
    }


def _samples(server: str, path: str, method: str, operation: Json) -> list[Json]:
    url = server.rstrip("/") + path.format_map(PATH_VALUES)
    body = operation["requestBody"]["content"]["application/json"]["example"] if "requestBody" in operation else None
    demanded = operation.get("security", [{}])
    scheme = None if {} in demanded else next(iter(demanded[0]))
    return [
        {"lang": language, "label": label, "source": sample(method, url, body, scheme)}
        for language, label, sample in (
            ("Shell", "curl", _curl),
            ("Shell", "HTTPie", _httpie),
            ("Python", "Python", _python),
        )
    ]


def _curl(method: str, url: str, body: Json | None, scheme: str | None) -> str:
    words = ["curl -i" if method == "get" else f"curl -i -X {method.upper()}", shlex.quote(url)]
    if scheme == "password":
        words.append(f'-u you:"${SECRETS[scheme]}"')
    elif scheme:
        words.append(f'-H "Authorization: Bearer ${SECRETS[scheme]}"')
    if body is not None:
        words += ["-H 'Content-Type: application/json'", f"-d {shlex.quote(_compact(body))}"]
    return " \\\n  ".join([" ".join(words[:2]), *words[2:]])


def _httpie(method: str, url: str, body: Json | None, scheme: str | None) -> str:
    """Its options stand before the address: between that and the fields it refuses them."""
    options = ["http"]
    if scheme == "password":
        options.append(f'-a you:"${SECRETS[scheme]}"')
    elif scheme:
        options.append(f'-A bearer -a "${SECRETS[scheme]}"')
    if body == {}:
        options.append("--raw '{}'")
    fields = [
        shlex.quote(f"{name}={value}" if isinstance(value, str) else f"{name}:={_compact(value)}")
        for name, value in (body or {}).items()
    ]
    call = " ".join([*options, method.upper(), shlex.quote(url)])
    return " \\\n  ".join([call, " ".join(fields)] if fields else [call])


def _python(method: str, url: str, body: Json | None, scheme: str | None) -> str:
    headers: list[str] = []
    imports = {"urllib.request"}
    if scheme == "password":
        imports |= {"base64", "os"}
        credentials = f"base64.b64encode(('you:' + os.environ['{SECRETS[scheme]}']).encode()).decode()"
        headers.append(f'"Authorization": "Basic " + {credentials},')
    elif scheme:
        imports |= {"os"}
        headers.append(f'"Authorization": "Bearer " + os.environ[\'{SECRETS[scheme]}\'],')
    if body is not None:
        imports |= {"json"}
        headers.append('"Content-Type": "application/json",')
    lines = [f"import {name}" for name in sorted(imports)]
    lines += ["", "request = urllib.request.Request(", f'    "{url}",', f'    method="{method.upper()}",']
    if headers:
        lines += ["    headers={", *(f"        {header}" for header in headers), "    },"]
    if body is not None:
        lines.append(f"    data=json.dumps({pprint.pformat(body, sort_dicts=False, width=200)}).encode(),")
    lines += [")", "with urllib.request.urlopen(request) as response:"]
    lines += ["    print(response.status, response.read().decode())"]
    return "\n".join(lines)


def _compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
