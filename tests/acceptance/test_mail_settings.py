"""No process delivers mail by other settings than those before it unless a person says so; all processes of a checkout
read the same .env; and the status is shown live."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from config import CHECKOUT
from tests.acceptance.conftest import Serve
from tests.support.service import DISPATCHER, FLASK, GRANIAN, GUNICORN, LIMIT, Service, environment, wait_until
from tests.support.smtp import SmtpServer

pytestmark = [pytest.mark.inprocess("how each command refuses"), pytest.mark.timeout(180)]

ORDER = {"user_id": "42", "total_price": 19.99, "email": "ann@example.com"}


def orders(service: Service, count: int) -> None:
    for n in range(count):
        assert service.post(order_id=str(n), **ORDER).status == 201


def six_wait(serve: Serve, sink: SmtpServer, **settings: Any) -> Service:
    """The service, stopped: while it ran, its mail server was down and six orders came."""
    service = serve(**sink.settings, **settings).start()
    sink.stop()
    orders(service, 6)
    service.stop()
    sink.start()
    return service


def kept(folder: Path) -> list[Path]:
    """Mails of the file backend."""
    return list((folder / "instance" / "mail" / "new").glob("*"))


def test_a_shell_without_the_mail_server_delivers_nothing(
    serve: Serve, sink: SmtpServer, folder: Path, database: dict[str, str]
) -> None:
    service = six_wait(serve, sink, **database)
    where = f"127.0.0.1:{sink.settings['mail_port']}"
    bare = serve(*DISPATCHER, **database)
    told = bare.run("flask", "bus", "status").stdout
    assert f"it delivered mail by smtp, to {where}" in told
    assert "'flask bus run' would refuse here" in told

    done = bare.run(*DISPATCHER)
    assert done.returncode == 1
    assert not kept(folder)
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "this dispatcher would deliver mail by file, into " in line
    assert f"delivered it by smtp, to {where} until " in line
    assert ", and 6 deliveries wait: " in line
    assert f"set MAIL_INSTEAD_OF={where}, or add --anyway to 'flask bus run'" in line
    assert bare.run("flask", "doctor").stdout.count("MAIL_BACKEND smtp there, file here") == 1

    service.start()
    assert {mail.recipients[0] for mail in sink.wait_for(6)} == {"ann@example.com"}
    assert not kept(folder)


def test_anyway_is_taken_at_its_word(serve: Serve, sink: SmtpServer, folder: Path) -> None:
    six_wait(serve, sink)
    serve(*DISPATCHER, "--anyway").start()
    wait_until(lambda: len(kept(folder)) == 6, "the mails in the folder")


@pytest.mark.parametrize("command", [GUNICORN, FLASK], ids=["gunicorn", "flask run"])
def test_a_service_that_refuses_to_dispatch_serves_and_tells_why(
    serve: Serve, sink: SmtpServer, folder: Path, command: tuple[str, ...]
) -> None:
    """The change that is meant takes one setting and a restart."""
    six_wait(serve, sink)
    changed = serve(*command).start(ready="/healthz")
    changed.wait_for_log("dispatcher refuses to start")
    answer = changed.wait_for_answer("/readyz", 503)
    assert answer.body["causes"] == ["dispatcher_refuses"]
    assert "127.0.0.1" not in answer.body["reasons"][0], "anybody may ask"
    assert changed.post(order_id="6", **ORDER).status == 201
    assert changed.log.count("would deliver mail by file") == 1, "one line for one fault"
    assert answer.body["reasons"][0] in changed.run("flask", "bus", "status").stdout
    changed.stop()
    assert not kept(folder)

    where = f"127.0.0.1:{sink.settings['mail_port']}"
    serve(*command, mail_instead_of=where).start()
    wait_until(lambda: len(kept(folder)) == 7, "the mails in the folder")


def test_a_checkout_that_kept_its_mails_gets_a_mail_server(serve: Serve, sink: SmtpServer, folder: Path) -> None:
    """Without a further step: nothing waits."""
    before = serve().start()
    orders(before, 1)
    wait_until(lambda: kept(folder), "the mail in the folder")
    before.stop()
    service = serve(**sink.settings).start()
    service.post(order_id="2", **ORDER)
    assert len(sink.wait_for(1)) == 1
    service.wait_for_log("dispatcher started")
    assert "differs=" in service.log


def test_one_that_refuses_starts_once_nothing_speaks_against_it(serve: Serve, sink: SmtpServer) -> None:
    """The old service is stopped only after the new one was started, and has sent all before."""
    old = serve(**sink.settings).start()
    with SmtpServer() as other:
        new = serve(**other.settings).start(ready="/healthz")
        new.wait_for_log("dispatcher refuses to start")
        assert "settings_differ" not in new.get("/readyz").body.get("causes", []), "a warning"
        old.stop()
        new.wait_for_log("dispatcher started")
        new.post(order_id="1", **ORDER)
        assert len(other.wait_for(1)) == 1


@pytest.mark.parametrize("form", ["text", "json"])
@pytest.mark.parametrize("command", [GUNICORN, FLASK, DISPATCHER], ids=" ".join)
def test_the_start_says_where_orders_are_kept_and_how_mail_leaves(
    serve: Serve, sink: SmtpServer, folder: Path, command: tuple[str, ...], form: str
) -> None:
    service = serve(*command, **sink.settings, log_format=form).start()
    lines = service.log.splitlines()
    (kept_in,) = [line for line in lines if "orders are kept" in line]
    (leaves,) = [line for line in lines if "mail leaves" in line]
    assert f"sqlite:///{folder}/instance/orders.db" in kept_in
    assert f"127.0.0.1:{sink.settings['mail_port']}" in leaves
    if form == "json":
        assert json.loads(kept_in)["in"] == f"sqlite:///{folder}/instance/orders.db"
        assert json.loads(leaves)["by"] == "smtp"


# .env


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of what the service is."""
    copy = tmp_path / "checkout"
    copy.mkdir()
    for name in ("config.py", "wsgi.py", "gunicorn.conf.py"):
        shutil.copy(CHECKOUT / name, copy)
    for name in ("app", "migrations"):
        shutil.copytree(CHECKOUT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    return copy


def ran(checkout: Path, *command: str, cwd: Path | None = None, **settings: str) -> "subprocess.CompletedProcess[str]":
    given = environment(port="1") | {"PYTHONPATH": str(checkout)} | settings
    for name in ("PORT", "FLASK_SKIP_DOTENV"):
        given.pop(name, None)
    return subprocess.run(
        [sys.executable, "-m", *command],
        cwd=cwd or checkout,
        env=given,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )


@pytest.mark.parametrize("command", [GUNICORN, FLASK, GRANIAN, DISPATCHER], ids=" ".join)
def test_every_process_reads_the_same_file(
    serve: Serve, checkout: Path, tmp_path: Path, command: tuple[str, ...]
) -> None:
    (checkout / ".env").write_text("MAIL_DEFAULT_SENDER=shop@example.com\nMAIL_LOCALE=en\n")
    service = serve(*command)
    service.cwd = checkout
    service.read_env_file = True
    service.start(ready="/healthz")

    def dispatchers() -> Any:
        return json.loads(service.run("flask", "bus", "status", "--json").stdout)["dispatchers"]

    (dispatcher,) = wait_until(dispatchers, "the dispatcher")
    assert (dispatcher["settings"]["mail_default_sender"], dispatcher["settings"]["mail_locale"]) == (
        "shop@example.com",
        "en",
    )


def test_commands_read_it_wherever_they_are_started(checkout: Path, tmp_path: Path) -> None:
    (checkout / ".env").write_text("MAIL_SERVER=127.0.0.1\nMAIL_PORT=1\n")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for cwd in (checkout, elsewhere):
        told = ran(checkout, "flask", "--app", "wsgi", "doctor", cwd=cwd).stdout
        assert "127.0.0.1:1 refused the connection" in told
    assert "mail: file backend answers" in ran(checkout, "flask", "--app", "wsgi", "doctor", MAIL_SERVER="").stdout


def test_a_file_of_another_folder_stops_a_command(checkout: Path, tmp_path: Path) -> None:
    """Flask has read it; gunicorn would not."""
    (tmp_path / ".env").write_text("MAIL_SERVER=127.0.0.1\n")
    done = ran(checkout, "flask", "--app", "wsgi", "doctor")
    assert done.returncode == 1
    assert f"MAIL_SERVER comes from {tmp_path}/.env, which only 'flask' reads" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("command", [GUNICORN, ("flask", "--app", "wsgi", "doctor")], ids=["gunicorn", "flask"])
def test_a_malformed_file_is_one_line(checkout: Path, command: tuple[str, ...]) -> None:
    (checkout / ".env").write_text("MAIL_SERVER=mail.example\nMAIL PORT\n")
    done = ran(checkout, *command)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert done.stderr.count(f"error: {checkout}/.env, line 2, is not NAME=value; correct it, or begin it with #") == 1


# The live view


def test_the_status_is_shown_again_until_ctrl_c(serve: Serve) -> None:
    service = serve().start()
    command = [sys.executable, "-m", "flask", "bus", "status", "--watch", "--interval", "0.1"]
    env = environment(**service.settings)
    with subprocess.Popen(command, cwd=CHECKOUT, env=env, stdout=subprocess.PIPE, text=True) as shown:
        assert shown.stdout is not None
        pictures = 0
        while pictures < 3:
            pictures += shown.stdout.readline().startswith("send_email_notification: nothing waits")
        shown.send_signal(signal.SIGINT)
        rest = shown.stdout.read()
    assert shown.returncode == 0
    assert "Aborted" not in rest
    assert "\x1b" not in rest, "no terminal"
