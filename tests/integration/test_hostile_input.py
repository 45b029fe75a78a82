"""Hostile requests: each is answered with a 4xx, in little processor time, and stores nothing.

test_api_refusals.py tests the words of the refusals.
"""

import gc
import json
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from werkzeug.test import TestResponse

from config import Settings
from tests.support.api import CREATE, ORDER, Api, parse
from tests.support.shop import Shop

KIB_64 = 64 * 1024
WHOLE = json.dumps(ORDER).encode()

MAX_CPU_SECONDS = 1.0
"""For one answer. The usual is some milliseconds."""


@pytest.fixture(scope="module")
def database_url(sqlite_template: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("hostile") / "orders.db"
    file.write_bytes(sqlite_template.read_bytes())
    return f"sqlite:///{file}"


@pytest.fixture(scope="module")
def shared(database_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """One service for all requests: a request that damages it fails the tests after it."""
    shop = Shop(
        Settings.of(
            instance_path=tmp_path_factory.mktemp("instance"),
            database_url=database_url,
            mail_backend="memory",
            log_level="ERROR",
        )
    )
    yield Api(shop)
    shop.close()


@pytest.fixture
def api(shared: Api) -> Iterator[Api]:
    before = shared.stored()
    yield shared
    assert shared.stored() == before, "something was stored"


def hurried(answer: Any) -> TestResponse:
    """The answer, which must cost less than MAX_CPU_SECONDS. Not counted is a look at all that other tests left."""
    gc.disable()
    began = time.thread_time()
    response: TestResponse = answer()
    spent = time.thread_time() - began
    gc.enable()
    assert spent < MAX_CPU_SECONDS
    return response


def refused(api: Api, body: bytes, **how: Any) -> int:
    response = hurried(lambda: api.post(body, **how))
    assert response.status_code in (400, 413, 415, 422), response.text
    assert response.content_type == "application/problem+json"
    assert len(response.data) < KIB_64, "the answer is larger than what was asked"
    return response.status_code


def with_price(price: str) -> bytes:
    return f'{{"order_id": 1001, "user_id": 42, "total_price": {price}}}'.encode()


def with_id(text: str) -> bytes:
    return json.dumps(ORDER | {"order_id": text}).encode()


# Bodies


ENCODINGS = {
    f"{encoding} of {name}": text.encode(encoding)
    for encoding in ("utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be", "cp037")
    for name, text in (("an order", WHOLE.decode()), ("nothing", " "), ("a number", "7"))
} | {
    "two byte order marks": b"\xef\xbb\xbf" * 2 + WHOLE,
    "a byte order mark at the end": WHOLE + b"\xef\xbb\xbf",
    "only a byte order mark": b"\xef\xbb\xbf",
    "UTF-16's mark before UTF-8": b"\xff\xfe" + WHOLE,
    "overlong slash": WHOLE.replace(b"1001", b"1\xc0\xaf1"),
    "overlong quote": WHOLE.replace(b'"1001"', b"\xc0\xa21001\xc0\xa2"),
    "overlong NUL": WHOLE.replace(b"1001", b"1\xc0\x801"),
    "overlong in three bytes": WHOLE.replace(b"1001", b"1\xe0\x80\xaf1"),
    "overlong in four bytes": WHOLE.replace(b"1001", b"1\xf0\x80\x80\xaf1"),
    "a surrogate in UTF-8": WHOLE.replace(b"1001", b"\xed\xa0\x80"),
    "a pair of surrogates in UTF-8 (CESU-8)": WHOLE.replace(b"1001", b"\xed\xa0\xbd\xed\xb8\x80"),
    "beyond Unicode": WHOLE.replace(b"1001", b"\xf4\x90\x80\x80"),
    "five bytes": WHOLE.replace(b"1001", b"\xf8\x88\x80\x80\x80"),
    "cut in a character": b'{"order_id": "\xe8\xae',
    "only continuation bytes": b"\x80" * 1000,
    "Latin-1": '{"order_id": "é"}'.encode("latin-1"),
    "gzip": b"\x1f\x8b\x08\x00\x00\x00\x00\x00",
}

SHAPES = {
    "nothing": b"",
    "blanks": b" " * KIB_64,
    "NULs": b"\0" * KIB_64,
    "a NUL behind": WHOLE + b"\0",
    "a NUL in a name": WHOLE.replace(b"order_id", b"order\\u0000id"),
    "a NUL in an id": WHOLE.replace(b"1001", b"1\\u0000"),
    "a form feed between": WHOLE.replace(b", ", b",\f"),
    "a no-break space between": WHOLE.replace(b", ", ",\u00a0".encode()),
    "a line separator between": WHOLE.replace(b", ", ",\u2028".encode()),
    "two orders": WHOLE + WHOLE,
    "two orders in lines": WHOLE + b"\n" + WHOLE,
    "an array of orders": b"[" + b",".join([WHOLE] * 100) + b"]",
    "JSON in a string": json.dumps(WHOLE.decode()).encode(),
    "JSON5": b"{order_id: 1001, user_id: 42, total_price: 19.99,}",
    "a comma too many": WHOLE[:-1] + b",}",
    "a comment": b"/* an order */" + WHOLE,
    "a prefix against hijacking": b")]}',\n" + WHOLE,
    "a callback": b"f(" + WHOLE + b")",
    "a record separator": b"\x1e" + WHOLE,
    "XML": b'<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><a>&b;</a>',
    "YAML": b"order_id: !!python/object/apply:os.system [id]",
    "a pickle": b"cos\nsystem\n(S'id'\ntR.",
    "a form": b"order_id=1001&user_id=42&total_price=19.99",
    "a template": WHOLE.replace(b"1001", b"{{7*7}}"),
    "SQL": WHOLE.replace(b"1001", b"1'; DROP TABLE orders; --"),
    "a path": WHOLE.replace(b"1001", b"../../../etc/passwd"),
    "a lone surrogate in a name": WHOLE[:-1] + b', "\\ud800": 1}',
    "surrogates the wrong way round": WHOLE.replace(b"1001", b"\\ude00\\ud83d"),
    "a bad escape": WHOLE.replace(b"1001", b"\\x41"),
    "a cut escape": b'{"order_id": "\\u12',
    "prototype": WHOLE[:-1] + b', "__proto__": {"admin": true}}',
    "dunder": WHOLE[:-1] + b', "__class__": {"__init__": {}}}',
    "a name twice": WHOLE[:-1] + b', "total_price": 1}',
    "a name twice, once escaped": WHOLE[:-1] + b', "total\\u005fprice": 1}',
    "a name twice in another case": WHOLE[:-1] + b', "Total_Price": 1}',
    "a name with a blank": WHOLE[:-1] + b', "total_price ": 1}',
    "a name in look-alikes": WHOLE.replace(b"user_id", "uѕer_id".encode()),
    "a name wide": WHOLE.replace(b"user_id", "ｕｓｅｒ＿ｉｄ".encode()),
    "null for all": b'{"order_id": null, "user_id": null, "total_price": null, "email": null}',
    "objects for all": b'{"order_id": {}, "user_id": {}, "total_price": {}, "email": {}}',
    "Mongo's": WHOLE.replace(b'"1001"', b'{"$gt": ""}'),
}

DEEP = {
    f"{depth:,} deep {kind}": (opening * depth + middle + closing * depth)[:KIB_64]
    for depth in (1000, 10_000, 65_000)
    for kind, opening, middle, closing in (
        ("arrays", b"[", b"", b"]"),
        ("objects", b'{"a":', b"1", b"}"),
        ("arrays in an order", b"[", b"", b"]"),
        ("both", b'[{"a":', b"1", b"}]"),
        ("arrays never closed", b"[", b"", b""),
        ("objects never closed", b'{"":', b"", b""),
    )
} | {
    "deep in a field": WHOLE.replace(b"19.99", b"[" * 20_000 + b"]" * 20_000),
    "deep in an unknown field": WHOLE[:-1] + b', "a": ' + b"[" * 20_000 + b"]" * 20_000 + b"}",
    "quotes in quotes": b'"' * 65_000,
    "backslashes": b'"' + b"\\" * 65_000,
}

WIDE = {
    "64 KiB of names": json.dumps({f"{number:x}": 0 for number in range(6000)}).encode(),
    "64 KiB of one-letter names": ("{" + ",".join(f'"{chr(0x4E00 + n)}":0' for n in range(8000)) + "}").encode(),
    "64 KiB of one name": b"{" + b'"a":0,' * 10_000 + b'"a":0}',
    "64 KiB of two names": b"{" + b'"a":0,"b":0,' * 5000 + b'"c":0}',
    "names that hash alike by number": json.dumps({str(n * (2**61 - 1)): 0 for n in range(2500)}).encode(),
    "names that hash alike in Java and PHP": json.dumps(
        {"".join("Ez" if n >> i & 1 else "FY" for i in range(12)): 0 for n in range(2000)}
    ).encode(),
    "a name of 64 KiB": json.dumps({"a" * 65_000: 1}).encode(),
    "a name of 64 KiB of surrogates": b'{"' + b"\\ud800" * 10_000 + b'": 1}',
    "an id of 64 KiB": json.dumps(ORDER | {"order_id": "1" * 65_000}).encode(),
    "an id of 64 KiB of escapes": WHOLE.replace(b"1001", b"\\u0031" * 10_000),
    "an address of 64 KiB": json.dumps(ORDER | {"email": "a" * 60_000 + "@example.com"}).encode(),
    "an address of @": json.dumps(ORDER | {"email": "@" * 60_000}).encode(),
    "an address of dots": json.dumps(ORDER | {"email": "a" + "." * 60_000 + "@example.com"}).encode(),
    "an address of labels": json.dumps(ORDER | {"email": "a@" + "a." * 30_000 + "com"}).encode(),
    "an address of brackets": json.dumps(ORDER | {"email": "(" * 60_000}).encode(),
    "an array of 64 KiB": b"[" + b"0," * 32_000 + b"0]",
    "an array of empty objects": b"[" + b"{}," * 20_000 + b"{}]",
}  # fmt: skip

NUMBERS = {
    text: with_price(text)
    for text in (
        "+5", "5.", ".5", "-.5", "05", "0x10", "0o17", "0b1", "1_000", "1,000", "1 000", "1e", "1e+", "--1", "1-1",
        "5f", "5L", "5n",
        "٣", "٣.٥", "५", "５", "²", "½", "Ⅴ", "nan", "-NaN", "Inf", "+Infinity", "infinity", "1e400", "1E+400",
        "1e-400", "1e309",
        "1e9999999999999999999", "-1e9999999999999999999", "1e-9999999999999999999", "9" * 5000, "9" * 60_000,
        "-" + "9" * 60_000,
        "0." + "0" * 60_000 + "1", "1e" + "9" * 60_000, "0" * 60_000 + "1", "0e1000000000000000000000000",
        "10000000000", "9999999999.995",
        "-0.01", "-1", "0.001", "1.000", "1e-3", "19.990",
        *(json.dumps(quoted) for quoted in (
            " 5", "5 ", "5\n", "\t5", "+5", "-5", "5.", ".5", "1_000", "1,000.00", "0x10", "1e2", "٣", "५", "５",
            "1٫5", "NaN", "Infinity",
            "1e400", "9" * 60_000, "", " ", "\u200b5", "5\u200b", "\u202e5", "5\x00", "$5", "5€", "five", "19.990",
            "--5", "0-5", "−5", "5%",
            "1/2", "1;2", "5\u0301", "5\ufe0f\u20e3",
        )),
    )
}  # fmt: skip

IDS = {
    ascii(text)[:40]: with_id(text)
    for text in (
        "a\r\nBcc: b@example.com", "a\rb", "a\nb", "a\r\n\r\n.\r\nMAIL FROM:<x>", "a%0d%0ab", "a%00b", "%0a",
        "a\x00b", "a\x0bb", "a\x1b[2J",
        "a\x7fb", "a\x85b", "a\u2028b", "a\u2029b", "a\u00adb", "a\u200bb", "a\ufeffb", "\u202ea", "a b", " a", "a ",
        "\ta", "a/b", "a\\b",
        ".", "..", "../a", "a/../b", "..%2fa", "~root", "a;b", "a|b", "a&b", "a$(id)", "`id`", "a'b", 'a"b', "a<b>", "<script>",
        "a?b", "a#b", "a,b",
        "a@b", "a+b", "a=b", "=1+1", "a*b", "a(b)", "a{b}", "a[b]", "a^b", "a!b", "١", "１", "१", "²", "①", "а", "ɑ",
        "ａ", "é", "e\u0301", "ß",
        "İ", "ﬀ", "订单", "\U0001f600", "\U000e0041", "a" * 65, "a" * 60_000, "", "\ud800", "\udfff", "a\ud83d",
        "\uffff", "\U0010ffff",
    )
}  # fmt: skip

CORPUS = ENCODINGS | SHAPES | DEEP | WIDE | NUMBERS | IDS


@pytest.mark.parametrize("name", CORPUS, ids=lambda name: ascii(name)[:40])
def test_a_hostile_body_is_refused_with_the_reason_soon_and_leaves_nothing(api: Api, name: str) -> None:
    refused(api, CORPUS[name])


@pytest.mark.parametrize("field", ["order_id", "user_id", "total_price", "email"])
@pytest.mark.parametrize(
    "value", [True, False, [], {}, ["1"], {"a": "1"}, -1.5, -1, 10**70, "\x00", "\ud800"], ids=ascii
)
def test_a_field_of_another_kind_is_named(api: Api, field: str, value: Any) -> None:
    response = api.post(ORDER | {field: value})
    assert [error["field"] for error in parse(response)["errors"]] == [field]


CONTENT_TYPES = [
    "application/jsonp", "application/json-seq", "application/x-json", "application/ld+json",
    "application/problem+json", "text/plain",
    "text/plain; application/json", "text/plain, application/json",
    "application/x-www-form-urlencoded; application/json", "text/html",
    "multipart/form-data; boundary=application/json", "application", "application/", "/json", "/", ";",
    "application/json\x00",
    "application/json/json", "application /json", "application/ json", "*/*", "application/*", "json", "\xff",
    "a" * 8000,
    "application/json; charset=utf-16", "application/json; charset=utf-7", "application/json; charset=ascii",
    "application/json; charset=utf-8; charset=utf-16", "application/json; charset*=utf-8''utf-16",
]  # fmt: skip


@pytest.mark.parametrize("content_type", CONTENT_TYPES, ids=lambda text: ascii(text)[:40])
def test_another_content_type_is_415(api: Api, content_type: str) -> None:
    assert refused(api, WHOLE, content_type=content_type) == 415


@pytest.mark.parametrize(
    "encoding", ["gzip", "deflate", "br", "zstd", "x-gzip", "compress", "gzip, identity", "chunked", "*", ""]
)
def test_a_compressed_body_is_415(api: Api, encoding: str) -> None:
    assert refused(api, WHOLE, headers={"Content-Encoding": encoding}) == 415


# Addresses, queries, headers


SEGMENTS = [
    "%00", "%0d%0aSet-Cookie:%20a=b", "%0A", "%ff", "%c0%af", "%ed%a0%80", "%2e%2e", "..%2f..%2fetc%2fpasswd",
    "%25%30%30", "%", "%zz",
    quote("\u202e"), quote("订单"), quote("٣"), "a%20b", "a;b=c", "a'b", "%3Cscript%3E", "a" * 3000, "%F0%9F%98%80",
    "a%2Fb", "*", "'--",
]  # fmt: skip


@pytest.mark.parametrize("place", ["/api/orders/", "/api/users/", "/operator/deliveries/", "/api/", "/"])
@pytest.mark.parametrize("segment", SEGMENTS, ids=lambda text: text[:30])
def test_a_hostile_address_is_404(api: Api, place: str, segment: str) -> None:
    response = hurried(lambda: api.shop.client.get(place + segment))
    assert response.status_code == 404
    assert "Set-Cookie" not in response.headers


QUERIES = [
    "limit=0", "limit=-1", "limit=1e3", "limit=0x10", "limit=%D9%A3", "limit=1_0", "limit=+1", "limit=%201",
    "limit=999999999999999999999",
    "limit=1&limit=2", "limit[]=1", "limit=", "limit=%00", "limit", "cursor=%00", "cursor=" + "9" * 5000, "cursor=-1",
    "cursor='--",
    "user_id=%0d%0a", "user_id=a%00", "user_id=" + "a" * 3000, "user_id[$gt]=", "status=created%00", "unknown=1",
    "=1", "&&=&", "%ff=1",
    "user_id=%ff", "a=1;b=2", "limit=%EF%BC%91",
]  # fmt: skip


@pytest.mark.parametrize("path", ["/api/orders", "/api/events", "/operator/deliveries"])
@pytest.mark.parametrize("query", QUERIES, ids=lambda text: text[:30])
def test_a_hostile_query_is_400_or_422_or_means_nothing(api: Api, path: str, query: str) -> None:
    response = hurried(lambda: api.client.get(f"{path}?{query}"))
    assert response.status_code in (200, 400, 422), response.text
    assert response.status_code != 200 or query in ("", "&&=&", "cursor=-1")


HEADERS = {
    "Authorization": ["", "Basic", "Basic ", "Basic !!!", "Basic \xff", "Basic " + "A" * 7000, "Basic OjpAOg==",
    "Bearer \x00", "Digest a=\"", "Basic /w=="],
    "Host": ["", "a b", "\x00", "[", "[::1", "]", "a:b:c", ":80", "127.0.0.1:99999999", "localhost\x00.example",
    "\xff", "@", "a@localhost"],
    "Accept": ["text/html", "*/*;q=\xff", "a" * 7000, ";;;,,,"],
    "Cookie": ["session=\xff", "=;=", "a" * 7000, 'a="\\777"'],
    "Content-Length": ["-1", "a", "1e3", "٣", "9" * 30, "5, 5", "+5"],
    "Range": ["bytes=0-", "bytes=-1", "bytes=" + ",".join("0-1" for _ in range(1000))],
    "If-Modified-Since": ["\x00", "yesterday", "9" * 1000],
    "If-None-Match": ["*", '"', "W/" * 1000],
    "X-Http-Method-Override": ["DELETE", "POST"],
    "Forwarded": ["for=127.0.0.1", "for=\"_\xff\"", ";" * 1000],
    "Referer": ["javascript:alert(1)", "\xff"],
}  # fmt: skip


@pytest.mark.parametrize("path", ["/api/orders", "/operator/deliveries", "/healthz"])
@pytest.mark.parametrize(
    "name, value",
    [
        pytest.param(name, value, id=f"{name}: {ascii(value)[:30]}")
        for name, values in HEADERS.items()
        for value in values
    ],
)
def test_a_hostile_header_is_no_500(api: Api, path: str, name: str, value: str) -> None:
    headers = {name: value.encode().decode("latin-1")}
    assert hurried(lambda: api.shop.client.get(path, headers=headers)).status_code < 500


@pytest.mark.parametrize("method", ["TRACE", "CONNECT", "PROPFIND", "get", "G\xcbT", "A" * 1000, "PURGE", "DEBUG"])
def test_a_hostile_method_is_405(api: Api, method: str) -> None:
    response = api.shop.client.open(CREATE, method=method, data=WHOLE, content_type="application/json")
    assert response.status_code == 405


# Operators are not trusted with the database either


@pytest.mark.parametrize(
    "body",
    [*(CORPUS[name] for name in (*SHAPES, *DEEP, *ENCODINGS) if name != "two orders"),
     b'{"filter": []}', b'{"filter": {"reason": "%"}}x', b'{"filter": {"older_than": 1e400}}',
     b'{"filter": {"older_than": "9999-99-99"}}',
     b'{"filter": {"delivery_id": 1e400}}', b'{"filter": {"delivery_id": true}}', b'{"filter": {"delivery_id": 1.0}}',
     b'{"filter": {"delivery_id": 9223372036854775808}}', b'{"filter": {"receiver": "\\u0000"}}',
     b'{"filter": {"reason": "\\u0000"}}',
     b'{"filter": {"older_than": 1}}', b'{"filter": {"older_than": "0001-01-01T00:00:00+14:00"}}',
     b'{"filter": {}, "dry_run": 0}',
     b'{"filter": {"delivery_id": 9223372036854775808, "state": 1}}', b'{"filter": {"reason": 1}}',
     b'{"filter": {"order_id": "\\ud800"}}', b'{"filter": {}, "dry_run": "perhaps"}',
     b'{"filter": {"filter": {"filter": {}}}}'],
    ids=lambda body: ascii(body)[:40],
)  # fmt: skip
def test_a_hostile_filter_is_refused(api: Api, body: bytes) -> None:
    how = {"data": body, "content_type": "application/json"}
    response = hurried(lambda: api.client.post("/operator/deliveries/retry", **how))
    assert response.status_code in (400, 413, 422), response.text


@pytest.mark.parametrize(
    "query",
    [f"delivery_id={2**63}", f"delivery_id={10**40}", "delivery_id=-1", "delivery_id=true", f"cursor={2**63}",
    "cursor=1e3", "reason=%00", "receiver=%00",
     "event_type=%00", "older_than=1", "older_than=0001-01-01T00:00:00%2B14:00", "older_than=9999-12-31T23:59:59-14:00",
     "older_than=2026-11-23T08:00:00", "older_than=%D9%A3"],
)  # fmt: skip
def test_a_condition_that_no_column_can_hold_is_named(api: Api, query: str) -> None:
    response = api.client.get(f"/operator/deliveries?{query}")
    assert response.status_code in (400, 422)
    if response.status_code == 422:
        assert [error["field"] for error in parse(response)["errors"]] == [query.partition("=")[0]]


@pytest.mark.parametrize("number", [0, 2**63 - 1, 2**63, 10**40, 10**3000])
def test_a_delivery_that_no_column_can_number_is_404(api: Api, number: int) -> None:
    assert api.client.post(f"/operator/deliveries/{number}/retry", json={}).status_code == 404


# Whatever


HOSTILE_TEXT = st.text(st.characters(exclude_categories=()), max_size=30)
JSON_TEXT = st.recursive(
    st.sampled_from(["null", "true", "NaN", "-0", "1e400", "9" * 400, '"', "\\", "\x00", "{", "[", ",", ":", "}", "]"])
    | st.floats().map(repr)
    | HOSTILE_TEXT.map(json.dumps),
    lambda inner: (
        st.lists(inner, max_size=4).map(lambda values: f"[{','.join(values)}]")
        | st.lists(st.tuples(HOSTILE_TEXT.map(json.dumps), inner), max_size=4).map(
            lambda pairs: "{" + ",".join(f"{name}:{value}" for name, value in pairs) + "}"
        )
    ),
    max_leaves=8,
)


@settings(max_examples=300, deadline=None)
@given(
    fields=st.dictionaries(st.sampled_from([*ORDER, "email", "total_price "]), JSON_TEXT, max_size=5),
    cut=st.integers(0, 200),
    path=st.sampled_from([CREATE, "/operator/deliveries/retry", "/operator/deliveries/1/discard"]),
)
def test_whatever_is_nearly_an_order_is_answered_as_described(
    shared: Api, fields: dict[str, str], cut: int, path: str
) -> None:
    order = {name: json.dumps(value) for name, value in ORDER.items()} | fields
    body = ("{" + ",".join(f'"{name}":{value}' for name, value in order.items()) + "}").encode(errors="surrogatepass")
    body = body[: len(body) - cut] if cut < 50 else body
    answer = shared.client.post(path, data=body, content_type="application/json")
    assert answer.status_code in (200, 201, 400, 404, 409, 422)
