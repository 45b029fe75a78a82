"""Which queries are executed, to look at their plans."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any
from unittest.mock import patch

from sqlalchemy import event

from app.db import Prepared, Runner
from tests.support.shop import Shop


@contextlib.contextmanager
def queries_noted(shop: Shop) -> Iterator[dict[str, Any]]:
    """The SELECTs of the block, SQLAlchemy's and prepared ones, each with its parameters."""
    found: dict[str, Any] = {}

    def note(_: Any, __: Any, statement: str, parameters: Any, *___: Any) -> None:
        if statement.startswith("SELECT"):
            found[statement] = parameters

    call = Prepared.__call__

    def noted_call(self: Prepared, runner: Runner, values: Mapping[str, Any]) -> Any:
        compiled = self.compiled(runner.dialect)
        note(None, None, compiled.sql, tuple(compiled.bind(values)))
        return call(self, runner, values)

    event.listen(shop.database.engine, "before_cursor_execute", note)
    with patch.object(Prepared, "__call__", noted_call):
        yield found
    event.remove(shop.database.engine, "before_cursor_execute", note)
