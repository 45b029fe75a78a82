"""Secrets stand neither in the repr of settings nor in the message about a wrong setting."""

from typing import Any

import pytest

from config import ConfigError, Settings

SECRET = "s3cr3t-Wörd"
SECRETS = {
    "api_token": SECRET,
    "console_password": SECRET,
    "metrics_token": SECRET,
    "mail_password": SECRET,
    "mail_username": "shop",
    "database_url": f"postgresql+psycopg://shop:{SECRET}@db.example/orders",
}


def test_settings_are_shown_without_their_secrets() -> None:
    settings = Settings.of(**SECRETS)
    for shown in (repr(settings), str(settings), f"{settings}", f"{settings!r:>5}", repr([settings])):
        assert SECRET not in shown
        assert "mail_port" in shown


@pytest.mark.parametrize(
    "wrong",
    [
        {"api_token": SECRET.encode() + b"\xff"},
        {"api_token": [SECRET]},
        {"console_password": {SECRET: SECRET}},
        {"mail_password": SECRET, "mail_username": None},
        {"database_url": f"mysql://shop:{SECRET}@db.example/orders"},
        {"database_url": f"{SECRET}://db.example"},
        {"database_url": SECRET},
        {"database_url": f"postgresql+psycopg:shop:{SECRET}@db.example"},
        {"database_url": f"postgresql+psycopg://shop:{SECRET}@db.example:port/orders"},
        {"database_url": f"postgresql+psycopg://shop@db.example:{SECRET}/orders"},
        {"database_url": f"sqlite:////srv/orders.db?timeout={SECRET}"},
        {"mail_port": 0},
        {"web_threads": "many"},
    ],
    ids=lambda wrong: ascii(wrong)[:60],
)
def test_a_wrong_setting_is_named_without_any_secret(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as problem:
        Settings.of(**(SECRETS | wrong))
    assert SECRET not in str(problem.value)
    assert any(name.upper() in str(problem.value) for name in wrong)
    assert problem.value.__cause__ is None, "a traceback would show it"
    assert problem.value.__suppress_context__


def test_every_setting_that_sounds_secret_is_kept_out_of_what_is_shown() -> None:
    """A new one is not forgotten."""
    shown = {name for name, field in Settings.model_fields.items() if field.repr}
    assert not [name for name in shown if any(word in name for word in ("password", "secret", "token", "key", "url"))]
