"""Fixtures of the integration tests."""

import pytest

from tests.support.api import Api
from tests.support.shop import Shop


@pytest.fixture
def api(shop: Shop) -> Api:
    """A client of the shop's API, which holds every answer against /openapi.json."""
    return Api(shop)
