"""Runs the tests on the engine that ``--engine`` names; on Celery only those that go through an engine.

A test that is not for Celery has ``@pytest.mark.inprocess("why")``. All others that go through an engine are run: those
that take the fixture ``serve``, and those of which a function says ``engine.start()``. Whatever starts none is the same
on both engines.
"""

import inspect
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import FunctionType
from typing import Any

import pytest

from tests.support.brokers import Rabbit, VirtualHosts

STARTS = "engine.start("
SERVES = "serve: Serve"

SAME = "go through no engine"


class OnCelery:
    """The plugin of a run with ``--engine celery``. With pytest-xdist the controlling process has the broker, and
    prints what each of its processes has left out."""

    def __init__(self, config: pytest.Config) -> None:
        self._given: dict[str, Any] | None = getattr(config, "workerinput", None)
        self._rabbit = None if self._given else Rabbit(manages=True)
        self.left_out: Counter[str] = Counter()
        if self._rabbit is not None:
            self._rabbit.launch()  # meanwhile tests are collected

    @property
    def virtual_hosts(self) -> VirtualHosts:
        return VirtualHosts(*self._given["broker"]) if self._rabbit is None else self._rabbit.virtual_hosts

    def pytest_ignore_collect(self, collection_path: Path) -> bool | None:
        """Files that say neither word hold nothing to select."""
        is_file = collection_path.name.startswith("test_")
        return True if is_file and not any(word in _text(collection_path) for word in (STARTS, SERVES)) else None

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        left_out = {item: why for item in items if (why := why_not(item))}
        self.left_out = Counter(left_out.values())
        config.hook.pytest_deselected(items=list(left_out))
        items[:] = [item for item in items if item not in left_out]

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        assert self._rabbit is not None
        hosts = self._rabbit.virtual_hosts
        node.workerinput["broker"] = (hosts.host, hosts.port, hosts.management_port)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        self.left_out = Counter(getattr(node, "workeroutput", {}).get("left_out"))

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self._given is not None:
            session.config.workeroutput["left_out"] = dict(self.left_out)  # type: ignore[attr-defined]

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        terminalreporter.section("not run on Celery")
        for why, count in self.left_out.most_common():
            terminalreporter.write_line(f"{count:5} {why}")

    def pytest_unconfigure(self) -> None:
        if self._rabbit is not None:
            self._rabbit.close()


def why_not(item: pytest.Item) -> str | None:
    """Why the test is not for Celery; None where it is."""
    if mark := item.get_closest_marker("inprocess"):
        (reason,) = mark.args
        return str(reason)
    assert isinstance(item, pytest.Function)
    serves = "serve" in item.fixturenames and item.module.__name__.startswith("tests.acceptance")
    return None if serves or any(STARTS in _source(each) for each in _functions(item)) else SAME


def _functions(item: pytest.Function) -> Iterator[FunctionType]:
    """The test, its fixtures, and what of its own module these name."""
    if STARTS not in _text(item.path):
        return
    fixtures = [each.func for found in item._fixtureinfo.name2fixturedefs.values() for each in found]
    waiting, seen = [item.function, *fixtures], set[Any]()
    while waiting:
        function = waiting.pop()
        if not isinstance(function, FunctionType) or function in seen:
            continue
        seen.add(function)
        yield function
        if function.__module__ == item.module.__name__:
            waiting += [function.__globals__.get(name) for name in function.__code__.co_names]


@cache
def _text(path: Path) -> str:
    return path.read_text()


@cache
def _source(function: FunctionType) -> str:
    return inspect.getsource(function)
