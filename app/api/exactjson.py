"""JSON to the digit: numbers as they were written, text as it is, and no input that ends as a 500."""

import json
from decimal import Decimal, InvalidOperation
from typing import Any

from flask.json.provider import DefaultJSONProvider

from app.text import shortened

LONGEST_INTEGER = 100
"""Digits. Python refuses to read integers beyond 4300; one so long is a Decimal here, and no field takes it."""


class ExactJSON(DefaultJSONProvider):
    """Reads every number with a point or an exponent as a Decimal, and NaN, Infinity and what is beyond a Decimal
    as a Decimal that is not finite: whether a number fits is the field's to say. Writes UTF-8 as it is."""

    def loads(self, s: str | bytes, **_: Any) -> Any:
        """The value of a JSON text. Raises ValueError, saying where, for anything else, and for duplicate names."""
        try:
            return _decoder.decode(s.decode("utf-8-sig") if isinstance(s, bytes) else s)
        except UnicodeDecodeError as error:
            raise ValueError(f"it is not UTF-8 at byte {error.start}") from None
        except RecursionError:
            raise ValueError("it is nested too deeply") from None

    def dumps(self, obj: Any, **_: Any) -> str:
        """A lone surrogate, which UTF-8 can't carry, leaves as the escape that it came as."""
        return _encoder.encode(obj).encode("utf-8", "backslashreplace").decode()


def _number(text: str) -> Decimal:
    try:
        return Decimal(text)
    except InvalidOperation:  # an exponent of twenty digits
        return Decimal("Infinity")


def _integer(text: str) -> int | Decimal:
    return int(text) if len(text) <= LONGEST_INTEGER else Decimal(text)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        for name, _ in pairs:
            if found.pop(name, pairs) is pairs:  # taken out already
                raise ValueError(f"it names {shortened(name)!r} twice in one object")
    return found


_encoder = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), default=DefaultJSONProvider.default)
_decoder = json.JSONDecoder(parse_float=_number, parse_int=_integer, parse_constant=Decimal, object_pairs_hook=_object)
