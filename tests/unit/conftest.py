"""Fixtures of the unit tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from flask import Flask

from app import mail
from config import Settings


@pytest.fixture
def mail_app(tmp_path: Path) -> Iterator[Flask]:
    """An application that has mail and nothing else, with its context."""
    app = Flask("mail-test")
    mail.init_app(app, Settings.of(mail_backend="memory", instance_path=tmp_path))
    with app.app_context():
        yield app
