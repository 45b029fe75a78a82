"""Commands for people."""

import os
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from sqlalchemy import select

from app import doctor
from app.bus import Filter
from app.bus.tables import OperatorAct
from app.cli.extension import COMMANDS
from app.db import SCHEMA_REVISION
from app.errors import Refused
from app.events import OrderCreated, order_created
from config import Settings
from tests.support.shop import Shop


@pytest.fixture
def database_url(sqlite_url: str) -> str:
    return sqlite_url


@pytest.fixture
def run(shop: Shop) -> Any:
    """Run 'flask ...' and return what it prints; an exit code other than ``code`` is a failure."""
    runner = shop.app.test_cli_runner()

    def command(*words: str, code: int = 0, typed: str | None = None) -> str:
        result = runner.invoke(args=list(words), input=typed)
        assert result.exit_code == code, (result.output, result.exception)
        assert "Traceback" not in result.output
        return str(result.output)

    return command


@pytest.fixture
def dead(shop: Shop) -> Shop:
    """Two orders whose receiver refuses them."""

    def refuse(sender: str, event: OrderCreated) -> None:
        raise Refused("550 no such user")

    shop.only(refuse)
    shop.place_order("1", user_id="7")
    shop.place_order("2", user_id="8")
    shop.dispatch()
    return shop


def test_an_order_is_shown_with_all_that_happened(shop: Shop, run: Any) -> None:
    event_id = shop.place_order()
    shop.dispatch_all()
    shown = run("orders", "show", "1001")
    for words in (
        "total_price    19.99",
        "notification   sent",
        event_id,
        "→ send_email_notification  done",
        "caused by",
    ):
        assert words in shown
    assert "there is no order 5" in run("orders", "show", "5", code=1)


def test_orders_are_listed(shop: Shop, run: Any) -> None:
    assert "no orders" in run("orders", "list")
    for n in range(3):
        shop.place_order(f"{n}")
    assert [line.split()[0] for line in run("orders", "list", "--user", "42").splitlines()] == [
        "order_id",
        "2",
        "1",
        "0",
    ]
    assert "--limit 4 shows them" in run("orders", "list", "--limit", "2")
    assert "no orders" in run("orders", "list", "--status", "confirmed")


class TestWithoutAnEmailDomain:
    @pytest.fixture
    def settings(self, settings: Settings) -> Settings:
        return settings.model_copy(update={"user_email_domain": None})

    def test_a_skipped_mail_is_sent_once_there_is_an_address(self, shop: Shop, run: Any) -> None:
        shop.place_order()
        shop.dispatch_all()
        assert (shop.order().notification, shop.states()["send_email_notification"]) == ("skipped", "discarded")
        assert "flask users set-email 42 ADDRESS', or set USER_EMAIL_DOMAIN; then retry this" in (
            shop.delivery("send_email_notification").reason or ""
        )

        told = run("users", "set-email", "42", "ann@Example.COM")
        assert "ann@example.com" in run("users", "show", "42")
        cure = shlex.split(told.splitlines()[-1].partition("flask ")[2])
        assert "retried 1" in run(*cure, "--yes")
        shop.dispatch_all()
        assert shop.order().notification == "sent"
        assert [message.recipients for message in shop.mailer.outbox] == [["ann@example.com"]]

    def test_one_command_sends_all_that_was_skipped_and_nothing_discarded(self, shop: Shop, run: Any) -> None:
        for order_id in ("1", "2", "3"):
            shop.place_order(order_id)
        run("bus", "discard", "--order", "3", "--receiver", "send_email_notification", "--because", "a test", "--yes")
        shop.place_order("4", user_id="43")
        shop.dispatch_all()

        (_, told) = run("users", "set-email", "42", "ann@example.com").splitlines()
        run(*shlex.split(told.partition("flask ")[2]), "--yes")
        shop.dispatch_all()

        states = [shop.order(order_id).notification for order_id in ("1", "2", "3", "4")]
        assert states == ["sent", "sent", "pending", "skipped"]
        assert run("users", "set-email", "42", "bob@example.com") == "user 42: bob@example.com\n"


def test_an_id_that_makes_no_address_is_skipped_with_a_reason_that_helps(shop: Shop) -> None:
    """USER_EMAIL_DOMAIN is set already: to set it is no cure."""
    shop.place_order(user_id="a:b")
    shop.dispatch_all()
    assert shop.order().notification == "skipped"
    reason = shop.delivery("send_email_notification").reason or ""
    assert "a:b@users.example can't be one" in reason
    assert "flask users set-email a:b ADDRESS" in reason
    assert "or set USER_EMAIL_DOMAIN" not in reason


def test_a_wrong_address_is_refused(run: Any) -> None:
    assert "ADDRESS:" in run("users", "set-email", "42", "nonsense", code=1)
    assert "there is no user 42" in run("users", "show", "42", code=1)


@pytest.mark.parametrize("user_id", ["", ".", "..", "a b", "a\nb", "x" * 65])
def test_an_id_that_no_order_can_have_gets_no_record(shop: Shop, run: Any, user_id: str) -> None:
    assert "is no id" in run("users", "set-email", user_id, "ann@example.com", code=1)
    assert shop.execute_scalar("SELECT count(*) FROM users") == 0


def test_the_status_names_live_dispatchers_and_dead_deliveries(dead: Shop, run: Any) -> None:
    shown = run("bus", "status")
    assert "no dispatcher is alive" in shown
    assert shown.splitlines()[-1].split()[:3] == ["refuse", "dead", "2"]
    dead.dispatcher.heartbeat()
    assert f"dispatcher {dead.dispatcher.name}" in run("bus", "status")


def test_a_retry_says_how_many_and_asks(dead: Shop, run: Any) -> None:
    assert "retry 2 deliveries?" in run("bus", "retry", "--outcome", "refused", typed="n\n", code=1)
    assert {delivery.state for delivery in dead.deliveries()} == {"dead"}
    assert "retried 2" in run("bus", "retry", "--outcome", "refused", typed="y\n")
    assert "no delivery matches" in run("bus", "retry", "--outcome", "refused")


def test_a_discard_keeps_its_reason(dead: Shop, run: Any) -> None:
    assert "discarded 1" in run("bus", "discard", "--user", "7", "--because", "closed", "--yes")
    assert [(d.state, d.reason) for d in dead.deliveries()] == [("discarded", "closed"), ("dead", "550 no such user")]
    assert "Missing option '--because'" in run("bus", "discard", "--user", "8", code=2)
    assert "say why" in run("bus", "discard", "--user", "8", "--because", " ", code=2)


def test_a_user_without_a_name_is_kept_as_a_number(dead: Shop, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A container may run as a user that no passwd file knows."""
    monkeypatch.setattr("getpass.getuser", lambda: {}["getpwuid(): uid not found"])
    run("bus", "discard", "--because", "closed", "--yes")
    assert dead.execute_scalar("SELECT acted_by FROM operator_acts") == f"cli:{os.getuid()}"


def test_a_number_that_no_delivery_can_have_is_refused(run: Any) -> None:
    assert "is not in the range" in run("bus", "retry", "--delivery", "9" * 20, code=2)


@pytest.mark.parametrize(
    "option, count",
    [
        (["--delivery", "2"], 1),
        (["--state", "dead"], 2),
        (["--state", "discarded"], 0),
        (["--receiver", "refuse"], 2),
        (["--receiver", "refus"], 0),
        (["--type", "OrderCreated"], 2),
        (["--type", "NotificationSent"], 0),
        (["--order", "1"], 1),
        (["--user", "8"], 1),
        (["--older-than", "2026-11-23 08:00:01"], 2),
        (["--older-than", "2026-11-23T08:00:00"], 0),
        (["--outcome", "refused"], 2),
        (["--outcome", "timeout"], 0),
        (["--reason", "no such"], 2),
        (["--reason", "NO%"], 0),
        (["--user", "8", "--order", "1"], 0),
        ([], 2),
    ],
    ids=str,
)
@pytest.mark.parametrize("act", [["retry"], ["discard", "--because", "closed"]], ids=lambda act: act[0])
def test_every_condition_is_said_counted_and_kept(
    dead: Shop, run: Any, act: list[str], option: list[str], count: int
) -> None:
    """Times are UTC."""
    told = run("bus", *act, *option, typed="y\n")
    if count:
        assert f"{act[0]} {count} deliveries?" in told
        assert told.splitlines()[-1] == f"{'retried' if act[0] == 'retry' else 'discarded'} {count}"
    else:
        assert told == "no delivery matches\n"
    assert len([delivery for delivery in dead.deliveries() if delivery.state != "dead"]) == count


def test_an_act_is_kept_with_its_time_and_its_author(dead: Shop, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("getpass.getuser", lambda: "ann")
    dead.clock.advance(5)
    run("bus", "retry", "--yes")
    with dead.database.read() as session:
        act = session.scalars(select(OperatorAct)).one()
    assert (act.acted_at, act.acted_by) == (dead.clock.now(), "cli:ann")


def test_old_events_are_forgotten_on_demand(shop: Shop, run: Any) -> None:
    shop.place_order()
    shop.dispatch_all()
    assert "forgot 0 events" in run("bus", "prune")
    shop.clock.advance(91 * 86400)
    assert "forgot 2 events" in run("bus", "prune")


def test_the_schema_is_upgraded_and_checked(run: Any) -> None:
    assert SCHEMA_REVISION in run("db", "current")
    assert f"the schema is at {SCHEMA_REVISION}" in run("db", "upgrade")
    assert "agree" in run("db", "check")


# A database that can't serve

READS = [["orders", "list"], ["users", "show", "42"], ["bus", "status"], ["bus", "prune"]]


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Any]:
    """Run 'flask ...' on another database and return its exit code with what it prints."""
    shops = []

    def command(url: str, *words: str) -> tuple[int, str]:
        settings = Settings.of(
            instance_path=tmp_path / "instance",
            database_url=url,
            database_timeout=0.2,
            mail_backend="memory",
            log_level="ERROR",
        )
        shops.append(Shop(settings))
        result = shops[-1].app.test_cli_runner().invoke(args=list(words))
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result.exit_code, str(result.output)

    yield command
    for shop in shops:
        shop.close()


@pytest.mark.postgres
@pytest.mark.parametrize("words", [*READS, ["bus", "run"], ["doctor"]], ids=" ".join)
def test_a_database_without_its_schema_says_what_to_run(elsewhere: Any, bare_postgres_url: str, words: Any) -> None:
    code, told = elsewhere(bare_postgres_url, *words)
    assert code == 1
    assert "flask db upgrade" in told


@pytest.mark.parametrize("words", [*READS, ["db", "upgrade"], ["db", "check"], ["doctor"]], ids=" ".join)
def test_a_database_that_is_away_is_told_in_its_own_words(elsewhere: Any, words: Any) -> None:
    code, told = elsewhere("postgresql+psycopg://me:s3cret@127.0.0.1:1/orders", *words)
    assert code == 1
    assert "port 1 failed" in told
    assert "s3cret" not in told


# The doctor


def test_a_healthy_service_has_nothing_wrong(shop: Shop, run: Any) -> None:
    shown = run("doctor")
    assert "wrong" not in shown
    assert "no dispatcher is alive" in shown


def test_the_doctor_names_what_is_dead_and_what_has_no_receiver(dead: Shop, run: Any) -> None:
    assert "flask bus retry --receiver refuse" in run("doctor")
    order_created.disconnect(order_created.subscriptions["refuse"].receiver)
    assert "deliveries to 'refuse', which is not connected" in run("doctor", code=1)


def test_the_doctor_sees_a_mail_server_that_does_not_answer(tmp_path: Path, sqlite_url: str) -> None:
    settings = Settings.of(
        instance_path=tmp_path / "instance", mail_server="127.0.0.1", mail_port=1, mail_timeout=1, log_level="ERROR"
    )
    shop = Shop(settings)
    result = shop.app.test_cli_runner().invoke(args=["doctor"])
    shop.close()
    assert result.exit_code == 1
    assert "wrong  mail:" in result.output
    assert "MAIL_DEFAULT_SENDER" in result.output


def test_the_doctor_sees_the_disks_of_folders_that_are_not_made_yet(tmp_path: Path, sqlite_url: str) -> None:
    settings = Settings.of(instance_path=tmp_path / "not" / "yet" / "made", database_url=sqlite_url, log_level="ERROR")
    shop = Shop(settings)
    shown = shop.app.test_cli_runner().invoke(args=["doctor"]).output
    shop.close()
    assert f"free at {tmp_path}\n" in shown
    assert f"free at {tmp_path}/instance\n" in shown


def test_the_doctor_shows_no_password(tmp_path: Path) -> None:
    settings = Settings.of(
        instance_path=tmp_path,
        database_url="postgresql+psycopg://me:s3cret@127.0.0.1:1/orders",
        database_timeout=0.2,
        mail_backend="memory",
        api_token="t0ken",
        log_level="ERROR",
    )
    shop = Shop(settings)
    shown = "\n".join(str(finding) for finding in doctor.examine(shop.app))
    shop.close()
    assert "wrong  database:" in shown
    assert "s3cret" not in shown
    assert "t0ken" not in shown


def commands() -> Iterator[tuple[str, click.Command]]:
    """Every command by the words that call it."""
    for command in COMMANDS:
        yield command.name or "", command
        if isinstance(command, click.Group):
            yield from ((f"{command.name} {name}", inner) for name, inner in command.commands.items())


@pytest.mark.parametrize("command", [pytest.param(command, id=words) for words, command in commands()])
def test_every_command_has_a_help_text(command: click.Command) -> None:
    assert command.help


# Foreign text on its way to a terminal

ESCAPES = "\x1b[31mred\x1b]0;title\x07 \x1b[2Jgone \x9b5m \r\n\u202ereversed"


def only_seen(told: str) -> bool:
    """Whether every character of the output is seen rather than acted on by a terminal."""
    return all(character.isprintable() or character == "\n" for character in told)


@pytest.fixture
def hostile(shop: Shop) -> Shop:
    """Two orders with escape sequences in every text that comes from outside."""

    def fail(sender: str, event: OrderCreated) -> None:
        raise Refused(ESCAPES)

    shop.only(fail)
    shop.place_order("1")
    shop.dispatch()
    shop.place_order("2")
    shop.bus.discard(Filter(order_id="2"), ESCAPES, by="test")
    shop.execute("UPDATE events SET source = :words", words=ESCAPES)
    shop.execute("UPDATE orders SET email = :words", words=ESCAPES)
    shop.execute("UPDATE deliveries SET receiver = :words", words=ESCAPES)
    shop.dispatcher.heartbeat()
    shop.execute("UPDATE dispatchers SET name = :words", words=ESCAPES)
    return shop


@pytest.mark.parametrize(
    "words", ["orders show 1", "orders show 2", "orders list", "bus status", "doctor"], ids=lambda words: words
)
def test_no_command_prints_an_escape_sequence(hostile: Shop, words: str) -> None:
    told = hostile.app.test_cli_runner().invoke(args=words.split()).output
    assert "reversed" in told
    assert only_seen(told)


@pytest.mark.parametrize(
    "words",
    [
        ["orders", "show", ESCAPES],
        ["orders", "show", "1", ESCAPES],
        ["orders", "list", f"--{ESCAPES}"],
        ["orders", "list", "--status", ESCAPES],
        ["orders", "list", "--limit", ESCAPES],
        ["orders", ESCAPES],
        ["orders", f"--{ESCAPES}"],
        ["users", "show", ESCAPES],
        ["users", "set-email", ESCAPES, "ann@example.com"],
        ["users", "set-email", "42", ESCAPES],
        ["bus", "retry", "--delivery", ESCAPES],
        ["bus", "retry", "--older-than", ESCAPES],
    ],
    ids=ascii,
)
def test_no_error_repeats_an_escape_sequence(shop: Shop, words: list[str]) -> None:
    result = shop.app.test_cli_runner().invoke(args=words)
    assert result.exit_code in (1, 2)
    assert only_seen(result.output)


@pytest.mark.parametrize(
    "words",
    [["orders", "show"], ["orders", "list", "--user"], ["bus", "retry", "--yes", "--reason"], ["users", "show"],
     ["bus", "discard", "--yes", "--because"]],
    ids=" ".join,
)  # fmt: skip
def test_bytes_that_are_no_text_are_refused_in_one_line(run: Any, words: list[str]) -> None:
    """No database takes them."""
    told = run(*words, "a\udcffb", code=2)
    assert told.splitlines()[-1].startswith("Error: 'a\\udcffb' is not UTF-8; ")
