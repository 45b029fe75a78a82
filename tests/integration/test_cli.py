"""Commands for people."""

import json
import os
import re
import shlex
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from alembic import command as alembic
from sqlalchemy import Column, String, Table, select, text

from app import doctor
from app.bus import Filter
from app.bus.tables import OperatorAct
from app.cli.extension import COMMANDS
from app.db import SCHEMA_REVISION, Base, Database, Money, UtcTime, schema
from app.errors import Refused, Unreachable
from app.events import OrderCreated, order_created
from config import Settings
from tests.support.shop import Shop
from tests.support.waiting import until


@pytest.fixture
def database_url(sqlite_url: str) -> str:
    return sqlite_url


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
    shop.place_orders(3)
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
        assert "flask users set-email 42 ADDRESS', or set USER_EMAIL_DOMAIN; then run 'flask orders send-skipped'" in (
            shop.delivery("send_email_notification").reason or ""
        )

        told = run("users", "set-email", "42", "ann@Example.COM")
        assert "ann@example.com" in run("users", "show", "42")
        cure = shlex.split(told.splitlines()[-1].partition("flask ")[2])
        assert "(1): flask orders send-skipped" in told
        assert "retried 1 " in run(*cure, "--yes")
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
        assert "(2): flask orders send-skipped" in told
        assert "retried 2 " in run(*shlex.split(told.partition("flask ")[2]), "--yes")
        shop.dispatch_all()

        states = [shop.order(order_id).notification for order_id in ("1", "2", "3", "4")]
        assert states == ["sent", "sent", "pending", "skipped"]
        assert run("users", "set-email", "42", "bob@example.com") == "user 42: bob@example.com\n"

    def test_all_that_was_skipped_is_one_group(self, shop: Shop, run: Any) -> None:
        for user_id in ("ann", "bob", "7"):
            shop.place_order(f"of-{user_id}", user_id=user_id)
        shop.dispatch_all()
        (group,) = json.loads(run("bus", "list", "--by", "reason", "--json"))["reasons"]
        assert (group["deliveries"], group["state"]) == (3, "discarded")
        assert group["reason"].startswith("there is no address for user '…': send one with an order")


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
    assert "refuse: nothing waits; 2 dead" in shown
    dead.dispatcher.heartbeat()
    assert f"dispatcher {dead.dispatcher.name}" in run("bus", "status")


def test_a_status_that_could_not_look_says_so_to_programs_too(elsewhere: Any) -> None:
    code, told = elsewhere("postgresql+psycopg://me@127.0.0.1:1/orders", "bus", "status", "--json")
    (reason,) = json.loads(told)["reasons"]
    assert (code, reason["cause"]) == (1, "database_unreachable")


def test_a_question_that_a_pipe_answers_ends_its_line(dead: Shop) -> None:
    """What is logged next does not begin in the middle of it. The runner shows the answer, and its line's end, as a
    terminal does."""
    runner = dead.app.test_cli_runner()
    asked = runner.invoke(args=["bus", "retry"], input="y\n")
    assert (asked.stdout.splitlines()[0], asked.stderr) == ("retried 2 (act 1)", "retry 2 deliveries? [y/N]: y\n\n")
    declined = runner.invoke(args=["bus", "acts", "1", "--abort"], input="n\n")
    assert declined.stderr == "abort act 1, and take 2 deliveries back? [y/N]: n\n\nAborted!\n"


def test_a_retry_says_how_many_and_asks(dead: Shop, run: Any) -> None:
    assert "retry 2 deliveries?" in run("bus", "retry", "--outcome", "refused", typed="n\n", code=1)
    assert {delivery.state for delivery in dead.deliveries()} == {"dead"}
    assert "retried 2 (act 1)" in run("bus", "retry", "--outcome", "refused", typed="y\n")
    assert run("bus", "retry", "--outcome", "refused") == "no delivery matches\n"


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
        (["--reason-group", "550 no such user"], 2),
        (["--reason-group", "550 no such"], 0),
        (["--tried", "true"], 2),
        (["--tried", "false"], 0),
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
        assert f"{'retried' if act[0] == 'retry' else 'discarded'} {count} (act 1)" in told
    else:
        assert told == "no delivery matches\n"
    assert len([delivery for delivery in dead.deliveries() if delivery.state != "dead"]) == count


# Acts: seen, watched, aborted


def test_what_waits_or_is_dead_is_listed_with_its_reason(dead: Shop, run: Any) -> None:
    dead.place_order("3")
    run("bus", "discard", "--order", "2", "--because", "closed", "--yes")
    header, *rows = run("bus", "list").splitlines()
    assert header.split("  ")[0] == "delivery"
    assert [row.split() for row in rows] == [
        ["1", "1", "refuse", "dead", "1", "refused", "–", "550", "no", "such", "user"],
        ["2", "2", "refuse", "discarded", "1", "refused", "–", "closed"],
        ["3", "3", "refuse", "ready", "0", "–", "2026-11-23T08:00:00.000000Z", "–"],
    ]
    assert "and more; --limit 2 shows them" in run("bus", "list", "--limit", "1")
    assert run("bus", "list", "--outcome", "timeout") == "no delivery matches\n"
    assert len(run("bus", "list", "--user", "7").splitlines()) == 2


def test_what_is_done_is_not_listed(shop: Shop, run: Any) -> None:
    shop.place_order()
    shop.dispatch_all()
    assert run("bus", "list") == run("bus", "list", "--by", "reason") == "no delivery matches\n"


def test_lists_are_printed_for_programs(dead: Shop, run: Any) -> None:
    page = json.loads(run("bus", "list", "--limit", "1", "--json"))
    assert page["next_cursor"] == 1
    (row,) = page["deliveries"]
    assert (row["order_id"], row["state"], row["reason"], row["next_try"]) == ("1", "dead", "550 no such user", None)
    groups = json.loads(run("bus", "list", "--by", "reason", "--json"))
    assert groups == {
        "reasons": [
            {
                "deliveries": 2,
                "receiver": "refuse",
                "state": "dead",
                "outcome": "refused",
                "reason": "550 no such user",
                "example_delivery_id": 2,
                "example_order_id": "2",
                "first_delivery_id": 1,
                "first_order_id": "1",
            }
        ],
        "complete": True,
    }


def test_reasons_are_grouped_with_an_example(dead: Shop, run: Any) -> None:
    dead.execute("UPDATE deliveries SET reason = '550 no user ' || delivery_id")
    _, row = run("bus", "list", "--by", "reason").splitlines()
    assert row.split() == ["2", "refuse", "dead", "refused", "550", "no", "user", "<n>", "delivery", "2,", "order", "2"]
    dead.place_order("3")
    assert "and 1 groups more; --limit 2 shows them" in run("bus", "list", "--by", "reason", "--limit", "1")


def test_what_was_discarded_is_retried_only_when_asked_for(dead: Shop, run: Any) -> None:
    run("bus", "discard", "--because", "closed", "--yes")
    nothing, hint = run("bus", "retry", "--user", "7").splitlines()
    assert nothing == "no delivery matches"
    assert hint == "to retry what was discarded (1): flask bus retry --state discarded --user 7"
    assert "retried 1 (act 2)" in run(*shlex.split(hint.partition("flask ")[2]), "--yes")


def test_who_did_what_is_shown(dead: Shop, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("bus", "history") == "nobody has done anything yet\n"
    monkeypatch.setattr("getpass.getuser", lambda: "ann")
    run("bus", "discard", "--user", "7", "--because", "closed", "--yes")
    run("bus", "retry", "--outcome", "refused", "--yes", "--no-wait")
    dead.dispatch()
    _, retried, discarded = run("bus", "history").splitlines()
    when = "2026-11-23T08:00:00.000000Z"
    assert (
        retried.split()
        == f'2 {when} cli:ann retry {{"outcome": "refused"}} 1 1 – 0 done, 1 refused again, 0 left'.split()
    )
    assert discarded.split() == f'1 {when} cli:ann discard {{"user_id": "7"}} 1 1 closed 1 discarded'.split()
    assert run("bus", "acts").splitlines()[1:] == [retried, discarded]
    assert "'flask bus history --limit 2' shows them" in run("bus", "history", "--limit", "1")
    document = json.loads(run("bus", "history", "--json"))
    assert [act["act_id"] for act in document["acts"]] == [2, 1]
    assert document["acts"][0]["progress"]["failed"] == {"refused": 1}


def test_an_act_is_looked_at_again(dead: Shop, run: Any) -> None:
    run("bus", "retry", "--over", "10m", "--yes", "--no-wait")
    dead.dispatch()
    told = run("bus", "acts", "1").splitlines()
    assert told[-1] == "0 done, 1 refused again, 1 left"
    assert "over      600 s" in told
    assert json.loads(run("bus", "acts", "1", "--json"))["progress"]["left"] == 1
    assert "there is no act 7" in run("bus", "acts", "7", code=1)
    assert "say which act" in run("bus", "acts", "--abort", code=2)


def test_an_act_is_aborted(dead: Shop, run: Any) -> None:
    run("bus", "retry", "--over", "10m", "--yes", "--no-wait")
    dead.dispatch()
    assert "abort act 1, and take 1 deliveries back?" in run("bus", "acts", "1", "--abort", typed="n\n", code=1)
    told = run("bus", "acts", "1", "--abort", typed="y\n").splitlines()[-1]
    assert told.startswith("took 1 deliveries back; aborted by cli:")
    assert told.endswith(": 0 done, 1 refused again, 1 taken back, 0 left")
    assert {delivery.state for delivery in dead.deliveries()} == {"dead"}
    run("bus", "discard", "--because", "closed", "--yes")
    assert run("bus", "acts", "2", "--abort") == "nothing of act 2 is left to take back\n"


def test_a_command_goes_on_with_an_act_that_was_left(dead: Shop, run: Any) -> None:
    run("bus", "retry", "--yes", "--no-wait")
    dead.execute("UPDATE operator_acts SET ended_at = NULL, deliveries = 1")
    dead.execute("DELETE FROM operator_act_deliveries WHERE delivery_id = 2")
    dead.clock.advance(61)
    assert "left after 1 of 2, repeat the command to go on: 0 done, 1 left" in run("bus", "acts", "1")
    told = run("bus", "retry", "--no-wait", typed="y\n")
    assert "act 1 goes on, which has touched 1\nretry 1 deliveries?" in told
    assert "retried 1 (act 1)" in told


def test_a_spread_that_is_no_time_or_too_long_is_refused(dead: Shop, run: Any) -> None:
    assert "'soon' is no time; write 90s, 10m or 1h" in run("bus", "retry", "--over", "soon", code=2)
    assert "spread it over 3600 s at most" in run("bus", "retry", "--over", "2h", code=1)
    assert "retry 2 deliveries over 90 s?" in run("bus", "retry", "--over", "90", typed="n\n", code=1)


def test_a_retry_is_watched_to_its_end(shop: Shop, run: Any) -> None:
    """The last line says what became of it. Whoever dispatches is another process."""
    for number in range(3):
        shop.place_order(f"{number}")
    shop.execute("DELETE FROM deliveries WHERE receiver <> 'send_email_notification'")
    shop.dispatcher.heartbeat()
    dispatching = threading.Thread(target=dispatch_when_acted, args=[shop])
    dispatching.start()
    told = run("bus", "retry", "--yes").splitlines()
    dispatching.join(20)
    assert told == ["retried 3 (act 1)", "3 sent, 0 left"]


def dispatch_when_acted(shop: Shop) -> None:
    until(lambda: shop.count("operator_acts"))
    until(lambda: shop.execute_scalar("SELECT ended_at FROM operator_acts"))
    shop.dispatch()


def test_nobody_waits_for_what_nobody_tries(dead: Shop, run: Any) -> None:
    *_, why, last = run("bus", "retry", "--yes").splitlines()
    assert why == "no dispatcher is alive; start the service as before, or 'flask bus run' with its settings"
    assert last == "0 done, 2 left; 'flask bus acts 1' shows how far it is"


def test_a_script_that_watches_is_told_that_the_breaker_is_open(shop: Shop, run: Any) -> None:
    def away(sender: str, event: OrderCreated) -> None:
        raise Unreachable("no route")

    shop.only(away)
    shop.place_order()
    shop.dispatch()
    shop.clock.advance(60)
    shop.dispatch()
    shop.dispatcher.heartbeat()
    *_, why, last = run("bus", "retry", "--yes").splitlines()
    assert re.fullmatch(r"the circuit breaker of away is open; its next probe is due in \d s", why)
    assert last == "0 done, 1 left; 'flask bus acts 1' shows how far it is"


def test_a_script_that_watches_is_told_that_the_receiver_is_paused(dead: Shop, run: Any) -> None:
    dead.execute(
        "INSERT INTO paused_receivers (receiver, paused_at, paused_by, reason) "
        "VALUES ('refuse', :now, 'ann', 'moving')",
        now=dead.clock.now(),
    )
    dead.dispatcher.heartbeat()
    assert "refuse is paused: moving" in run("bus", "retry", "--yes").splitlines()


def test_an_act_is_printed_for_programs(dead: Shop, run: Any) -> None:
    act = json.loads(run("bus", "retry", "--yes", "--json"))
    assert (act["act_id"], act["counted"], act["deliveries"], act["progress"]["left"]) == (1, 2, 2, 2)
    nothing = json.loads(run("bus", "retry", "--order", "9", "--json"))
    assert nothing == {"act_id": None, "counted": 0, "deliveries": 0}
    assert json.loads(run("bus", "discard", "--because", "closed", "--yes", "--json"))["progress"]["discarded"] == 2


def test_a_notification_is_sent_again(shop: Shop, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("getpass.getuser", lambda: "ann")
    shop.place_order()
    shop.dispatch_all()
    told = run("bus", "resend", "--order", "1001", typed="n\n", code=1)
    assert "the notification of order 1001 is sent; send it again?" in told
    assert len(shop.mailer.outbox) == 1
    told = run("bus", "resend", "--order", "1001", "--because", "lost", "--yes", "--no-wait")
    assert told == "asked for the notification of order 1001 again (act 1)\n"
    shop.dispatch_all()
    assert len(shop.mailer.outbox) == 2
    shown = run("orders", "show", "1001")
    assert "NotificationRequested" in shown
    assert "from cli:ann" in shown
    assert run("bus", "acts", "1").splitlines()[-1] == "1 sent, 0 left"
    assert "there is no order 7" in run("bus", "resend", "--order", "7", "--yes", code=1)


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
    assert f"the schema is at {SCHEMA_REVISION}; there was nothing to do" in run("db", "upgrade")
    assert "agree" in run("db", "check")


def test_an_upgrade_says_what_to_do_next(shop: Shop, run: Any) -> None:
    with schema.migrating(shop.database) as config:
        alembic.downgrade(config, "0001")
    assert run("db", "upgrade").startswith(f"the schema is at {SCHEMA_REVISION}; now start the service")


@pytest.fixture
def versions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of migrations/versions to write to."""
    monkeypatch.setattr(schema, "MIGRATIONS", shutil.copytree(schema.MIGRATIONS, tmp_path / "migrations"))
    return tmp_path / "migrations" / "versions"


NEXT = f"{int(SCHEMA_REVISION) + 1:04}"


def test_a_revision_is_written_from_the_models(run: Any, versions: Path, tmp_path: Path) -> None:
    columns = Column("order_id", String(64), primary_key=True), Column("price", Money), Column("placed_at", UtcTime)
    model = Table("big_orders", Base.metadata, *columns)
    try:
        told = run("db", "revision", "-m", "Big orders, and when")
        assert told == (
            f"wrote migrations/versions/{NEXT}_big_orders_and_when.py; read it, then run 'flask db upgrade'\n"
        )
        (file,) = versions.glob(f"{NEXT}_*.py")
        written = file.read_text()
        assert written.startswith('"""Big orders, and when"""\n')
        assert f"revision = '{NEXT}'\ndown_revision = '{SCHEMA_REVISION}'\n" in written
        assert "\n\nfrom app.db import Money\nfrom app.db import UtcTime\n\n" in written
        database = Database(f"sqlite:///{tmp_path}/another.db")
        schema.upgrade(database)
        schema.check(database)
        assert database.schema_revision() == NEXT
        database.close()
    finally:
        Base.metadata.remove(model)


def test_a_revision_without_a_change_is_not_written(run: Any, versions: Path) -> None:
    told = run("db", "revision", "-m", "Nothing", code=1)
    assert "models and migrations agree, so nothing was written; change a model first" in told
    assert list(versions.glob(f"{NEXT}_*.py")) == []


def test_a_revisions_file_is_printed_for_programs(run: Any, versions: Path) -> None:
    told = json.loads(run("db", "revision", "--empty", "-m", "Rows", "--json"))
    assert told == {"file": f"migrations/versions/{NEXT}_rows.py"}


def test_a_revision_may_be_left_to_be_written_by_hand(run: Any, versions: Path) -> None:
    assert f"wrote migrations/versions/{NEXT}_" in run("db", "revision", "--empty", "-m", "Rows: each user's language")
    (file,) = versions.glob(f"{NEXT}_*.py")
    assert "def upgrade() -> None:\n    pass\n" in file.read_text()


@pytest.mark.parametrize("message", ["", " ", "...", "two\nlines", 'a "quoted" word', "a\\b"])
def test_a_revision_needs_words_that_fit_its_docstring(run: Any, versions: Path, message: str) -> None:
    assert "write one line, without double quotes and backslashes" in run("db", "revision", "-m", message, code=2)
    assert list(versions.glob(f"{NEXT}_*.py")) == []


# A database that can't serve

READS = [["orders", "list"], ["users", "show", "42"], ["bus", "status"], ["bus", "prune"]]


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Any]:
    """Run 'flask ...' on another database and return its exit code with what it prints."""
    shops = []

    def command(url: str, *words: str, timeout: float = 0.2) -> tuple[int, str]:
        settings = Settings.of(
            instance_path=tmp_path / "instance",
            database_url=url,
            database_timeout=timeout,
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
    code, told = elsewhere(bare_postgres_url, *words, timeout=15)
    assert code == (2 if words == ["doctor"] else 1)
    assert "flask db upgrade" in told


@pytest.mark.parametrize("words", [*READS, ["db", "upgrade"], ["db", "check"], ["doctor"]], ids=" ".join)
def test_a_database_that_is_away_is_told_in_its_own_words(elsewhere: Any, words: Any) -> None:
    code, told = elsewhere("postgresql+psycopg://me:s3cret@127.0.0.1:1/orders", *words)
    assert code == (2 if words == ["doctor"] else 1)
    assert "port 1 failed" in told
    assert "s3cret" not in told


# The doctor


def test_a_healthy_service_has_nothing_wrong(shop: Shop, run: Any) -> None:
    shown = run("doctor")
    assert "wrong" not in shown
    assert "no dispatcher is alive" in shown


def test_the_doctor_reads_back_what_is_relied_on_in_a_session(shop: Shop, run: Any) -> None:
    shown = run("doctor")
    if shop.database.is_sqlite:
        assert "busy_timeout=1000, journal_mode=wal, synchronous=2, foreign_keys=1" in shown
        return
    assert "client_encoding=UTF8, DateStyle=ISO, MDY, TimeZone=UTC, lock_timeout=2s" in shown
    assert "idle_in_transaction_session_timeout=1min, synchronous_commit=" in shown
    is_off = shop.execute_scalar("SHOW fsync") == "off"
    assert ("the server's fsync is off: a power loss can lose acknowledged orders" in shown) == is_off


def test_the_doctor_names_what_is_dead_and_what_has_no_receiver(dead: Shop, run: Any) -> None:
    (told,) = [line for line in run("doctor").splitlines() if "flask bus retry" in line]
    assert "what is dead of refuse waits for a person" in told
    assert "'flask bus list --state dead --receiver refuse --by reason'" in told
    shown = run(*shlex.split(told.partition("'flask ")[2].partition("'")[0]))
    assert shown.splitlines()[1].startswith("2 ")
    command = shlex.split(told.rpartition("'flask ")[2].partition("'")[0])
    assert "retry 2 deliveries?" in run(*command, typed="n\n", code=1)
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


def test_the_doctor_sees_a_wal_that_a_forgotten_reader_holds(tmp_path: Path) -> None:
    settings = Settings.of(instance_path=tmp_path, log_level="ERROR")
    shop = Shop(settings)
    file = shop.database.dialect.file
    with shop.database.read() as session:  # it keeps SQLite from putting the WAL away
        session.execute(text("SELECT 1 FROM orders")).all()
        shop.place_order()
        os.truncate(f"{file}-wal", doctor.LARGE_WAL_BYTES + 1)  # SQLite ignores what lies beyond
        shown = [str(finding) for finding in doctor.examine(shop.app).findings]
    shop.close()
    assert [line for line in shown if "orders.db-wal has grown to 268 MB" in line and line.startswith("note")]


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
    shown = "\n".join(str(finding) for finding in doctor.examine(shop.app).findings)
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


@pytest.mark.parametrize("command", [pytest.param(command, id=words) for words, command in commands()])
def test_every_command_that_ends_prints_json(command: click.Command) -> None:
    is_endless = command.name == "run"
    prints = any(option.name == "as_json" for option in command.params)
    assert prints != (is_endless or isinstance(command, click.Group))


@pytest.mark.parametrize(
    "words, printed",
    [
        ("bus pause send_email_notification --because x", {"receiver": "send_email_notification", "changed": True}),
        ("bus resume send_email_notification", {"receiver": "send_email_notification", "changed": False}),
        ("bus prune", {"events": 0}),
        (
            "orders set-email 1001 bob@example.com",
            {"order_id": "1001", "email": "bob@example.com", "changed": True, "given_up": 0, "skipped": 0},
        ),
        (
            "users set-email 42 bob@example.com",
            {"user_id": "42", "email": "bob@example.com", "changed": True, "skipped": 0},
        ),
        ("db upgrade", {"revision": SCHEMA_REVISION, "before": SCHEMA_REVISION}),
        ("db current", {"revision": SCHEMA_REVISION, "needed": SCHEMA_REVISION}),
        ("db check", {"agree": True}),
    ],
)
def test_what_was_changed_is_printed_for_programs(shop: Shop, words: str, printed: Any) -> None:
    shop.place_order("1001", email="ann@example.com")
    result = shop.app.test_cli_runner().invoke(args=[*words.split(), "--json"])
    assert json.loads(result.stdout) == printed


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
    "words",
    [
        *("orders show 1", "orders show 2", "orders list", "bus status", "doctor"),
        *("bus list", "bus list --by reason", "bus history", "bus acts", "bus acts 1"),
    ],
    ids=lambda words: words,
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
        ["bus", "retry", "--over", ESCAPES],
        ["bus", "resend", "--order", ESCAPES],
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
