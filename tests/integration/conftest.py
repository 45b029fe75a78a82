"""Fixtures of the integration tests."""

from pathlib import Path

import pytest

from tests.support.api import Api
from tests.support.shop import Shop


@pytest.fixture
def file(sqlite_url: str) -> Path:
    """The SQLite database's."""
    return Path(sqlite_url.removeprefix("sqlite:///"))


@pytest.fixture
def api(shop: Shop) -> Api:
    """A client of the shop's API, which holds every answer against /openapi.json."""
    return Api(shop)
