"""What an entry point sets up for its process. Each test is a process of its own, for these settings are a process'."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]

SET_UP = """
import gc, logging, logging.config, sys, threading, warnings
from app.observe import logs
from config import Settings
logs.configure(Settings.for_logs())
"""


def run(script: str, before: str = "", **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", before + SET_UP + script],
        env={"PYTHONPATH": str(ROOT), "LOG_FORMAT": "json"} | environment,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )


def told(script: str, before: str = "", **environment: str) -> list[dict[str, Any]]:
    """The log's lines, each of which is a JSON object."""
    return [json.loads(line) for line in run(script, before, **environment).stderr.splitlines()]


@pytest.mark.parametrize(
    "script, logger, level, message, exception",
    [
        ("logging.getLogger('elsewhere').error('it failed')", "elsewhere", "error", "it failed", None),
        ("logging.getLogger('app.sales').info('a big order')", "app.sales", "info", "a big order", None),
        ("logging.warning('it is odd')", "root", "warning", "it is odd", None),
        ("warnings.warn('old')", "py.warnings", "warning", "<string>:6: UserWarning: old", None),
        (
            "threading.Thread(target=lambda: 1 / 0).start()",
            "app.process",
            "critical",
            "thread died",
            "ZeroDivisionError",
        ),
        ("1 / 0", "app.process", "critical", "uncaught exception", "ZeroDivisionError"),
        (
            "class Odd:\n    def __del__(self): 1 / 0\nOdd(); gc.collect()",
            *("app.process", "error", "exception ignored", "ZeroDivisionError"),
        ),
        ("logs.fail('MAIL_PORT is wrong')", "app.process", "critical", "MAIL_PORT is wrong", None),
    ],
)
def test_every_line_is_a_json_object(script: str, logger: str, level: str, message: str, exception: str | None) -> None:
    (line,) = told(script)
    assert (line["logger"], line["level"], line["message"]) == (logger, level, message)
    assert exception is None or exception in line["exception"]


def test_text_is_a_line_for_people_and_an_error_of_the_start_is_told_as_commands_do() -> None:
    ended = run("logging.getLogger('elsewhere').error('it failed'); logs.fail('MAIL_PORT is wrong')", LOG_FORMAT="")
    line, error = ended.stderr.splitlines()
    assert line.endswith("Z [error   ] it failed")
    assert error == "error: MAIL_PORT is wrong"
    assert ended.returncode == 1


def test_a_thread_that_ends_itself_is_no_error() -> None:
    assert told("threading.Thread(target=sys.exit).start()") == []


def test_a_broken_connection_of_the_pool_is_not_told_of() -> None:
    assert told("logging.getLogger('sqlalchemy.pool.impl.QueuePool').error('a traceback')") == []


@pytest.mark.parametrize(
    "level, lines",
    [("ERROR", ["e"]), ("WARNING", ["w", "e"]), ("DEBUG", ["d", "i", "w", "e"]), ("no", ["i", "w", "e"])],
)
def test_the_process_tells_from_its_level_on(level: str, lines: list[str]) -> None:
    """A wrong one is INFO, until the settings are read and stop the start."""
    script = "log = logging.getLogger('app.sales'); log.debug('d'); log.info('i'); log.warning('w'); log.error('e')"
    assert [line["message"] for line in told(script, LOG_LEVEL=level)] == lines


def test_setting_up_twice_changes_nothing() -> None:
    lines = told("logs.configure(Settings.of(log_format='text')); logging.getLogger('app').error('once')")
    assert [line["message"] for line in lines] == ["once"]


def test_a_configuration_that_was_there_before_is_kept() -> None:
    """A root handler takes the place of ours, a level the place of LOG_LEVEL."""
    before = (
        "import logging\n"
        "logging.basicConfig(format='theirs: %(message)s')\n"
        "logging.getLogger('app').setLevel('ERROR')\n"
    )
    ended = run("log = logging.getLogger('app'); log.warning('low'); log.error('high'); warnings.warn('old')", before)
    assert ended.stderr.splitlines()[0] == "theirs: high"
    assert ended.stderr.splitlines()[1].startswith("theirs: <string>:")


def test_a_configuration_that_comes_later_takes_over() -> None:
    script = """
logging.config.dictConfig({
    "version": 1,
    "formatters": {"theirs": {"format": "theirs: %(message)s"}},
    "handlers": {"err": {"class": "logging.StreamHandler", "formatter": "theirs"}},
    "loggers": {"app": {"handlers": ["err"], "propagate": False}},
})
logging.getLogger("app.bus").error("delivery dead")
logging.getLogger("elsewhere").error("ours")
"""
    first, second = run(script).stderr.splitlines()
    assert first == "theirs: delivery dead"
    assert json.loads(second)["message"] == "ours"


GUNICORN = """
from gunicorn.config import Config
cfg = Config()
for name, value in {options!r}.items():
    cfg.set(name, value)
log = logs.GunicornLogger(cfg)
log.error("it failed for ann@example.com")
log.access_log.info("GET ann@example.com")
"""


def test_gunicorn_and_its_access_log_look_the_same(tmp_path: Path) -> None:
    """Also where its own options send them to a file, and after it was set up again, as SIGHUP does."""
    access = tmp_path / "access.log"
    script = GUNICORN.format(options={"accesslog": str(access)}) + "log.setup(cfg)\nlog.error('again')"

    errors = told(script)

    assert [(line["logger"], line["message"]) for line in errors] == [
        ("gunicorn.error", "it failed for ***@example.com"),
        ("gunicorn.error", "again"),
    ]
    (line,) = [json.loads(line) for line in access.read_text().splitlines()]
    assert (line["logger"], line["message"]) == ("gunicorn.access", "GET ***@example.com")


def test_gunicorns_own_logging_configuration_is_kept() -> None:
    theirs = {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"generic": {"format": "theirs: %(message)s"}},
    }
    ended = run(GUNICORN.format(options={"logconfig_dict": theirs}))
    assert "theirs: it failed for ann@example.com" in ended.stderr


def test_a_start_tells_what_was_set_in_vain() -> None:
    announce = "from config import Settings\nlogs.announce(Settings.load())"
    *facts, warning = told(announce, MAIL_SUPPRESS_SEND="true")
    assert {line["level"] for line in facts} == {"info"}
    assert (warning["level"], warning["logger"]) == ("warning", "app.process")
    assert warning["message"].startswith("MAIL_SUPPRESS_SEND has no effect here: mail goes out all the same")
    messages = [line["message"] for line in told(announce)]
    assert messages == ["starting", "orders are kept", "mail stays here"]
