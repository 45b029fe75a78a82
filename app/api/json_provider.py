"""Flask's JSON provider, exact: numbers keep their digits, text stays UTF-8, and bad input raises only ValueError."""

import json
from decimal import Decimal, InvalidOperation
from typing import Any

from flask.json.provider import DefaultJSONProvider

from app.text import shortened

MAX_INTEGER_DIGITS = 100
"""Python refuses to read integers of more than 4300 digits. A longer one than this becomes a Decimal."""


class ExactJSONProvider(DefaultJSONProvider):
    """JSON provider that never reads a number as a binary float.

    A number with a point or an exponent becomes a Decimal. NaN, Infinity and exponents too large for a Decimal become
    Decimals that are not finite, so that the field can name what it takes.
    """

    def loads(self, s: str | bytes, **_: Any) -> Any:
        """Parse a JSON text. Raises ValueError for bad JSON, bad UTF-8, deep nesting and duplicate names."""
        try:
            return _decoder.decode(s.decode("utf-8-sig") if isinstance(s, bytes) else s)
        except UnicodeDecodeError as error:
            raise ValueError(f"it is not UTF-8 at byte {error.start}") from None
        except RecursionError:
            raise ValueError("it is nested too deeply") from None

    def dumps(self, obj: Any, **_: Any) -> str:
        """Write JSON. A lone surrogate, which UTF-8 cannot encode, is written as its escape."""
        return _encoder.encode(obj).encode("utf-8", "backslashreplace").decode()


def _number(text: str) -> Decimal:
    try:
        return Decimal(text)
    except InvalidOperation:  # an exponent of twenty digits
        return Decimal("Infinity")


def _integer(text: str) -> int | Decimal:
    return int(text) if len(text) <= MAX_INTEGER_DIGITS else Decimal(text)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        _refuse_duplicate(pairs)
    return found


def _refuse_duplicate(pairs: list[tuple[str, Any]]) -> None:
    seen: set[str] = set()
    for name, _ in pairs:
        if name in seen:
            raise ValueError(f"it names {shortened(name)!r} twice in one object")
        seen.add(name)


_encoder = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), default=DefaultJSONProvider.default)
_decoder = json.JSONDecoder(parse_float=_number, parse_int=_integer, parse_constant=Decimal, object_pairs_hook=_object)
