"""Receivers that raise anything, end their process, are killed, or never return: one order among two hundred each."""

import random
import time
from collections.abc import Callable
from contextlib import closing

import pytest

from tests.acceptance.conftest import Serve
from tests.support.ledger import Findings, Ledger, Order
from tests.support.service import Client, Service, wait_until
from tests.support.smtp import SmtpServer

GIVEN_UP = "given up: tried alone, its attempts end without a result, as if the receiver killed its process"
NOT_RETURNED = "the receiver has not returned "

KINDS = {
    "sys.exit": ("SystemExit: 1",),
    "cancelled": ("CancelledError: raised without a word",),
    "interrupt": ("KeyboardInterrupt: raised without a word",),
    "generator": ("GeneratorExit: raised without a word",),
    "os._exit": (GIVEN_UP,),
    "segfault": (GIVEN_UP,),
    "oom-kill": (GIVEN_UP,),
    "sleep": (NOT_RETURNED, GIVEN_UP),
    "spin": (NOT_RETURNED, GIVEN_UP),
}
"""What tests/support/misbehaving.py does for an order of that name, and the reasons that a person may read then. What
hangs may be ended by another one's death before it is told that it hangs."""

RECEIVERS = ("with_session", "without")
ORDERS = 200
LEASE_SECONDS = 1
ATTEMPTS = 2
SECONDS_FOR_EACH_DEATH = 8
"""Until a process is there again, on a busy machine; on a quiet one it is one or two."""

SETTINGS = {
    "web_concurrency": 2,
    "lease_seconds": LEASE_SECONDS,
    "poll_seconds": 1,
    "receiver_timeout": 1,
    "retry_base_seconds": 0.01,
    "retry_max_seconds": 0.1,
    "retry_policy": "exponential",
    "retry_max_attempts": ATTEMPTS,
    "log_level": "WARNING",
}

GUNICORN = ("gunicorn", "tests.support.misbehaving:app")
DISPATCHER = ("flask", "--app", "tests.support.misbehaving", "bus", "run")


@pytest.mark.timeout(300)
def test_a_receiver_takes_no_other_with_it(
    serve: Serve, database: dict[str, str], sink: SmtpServer, report: Callable[[str], None]
) -> None:
    """All others are confirmed and mailed within seconds for each death; the one is dead, with a reason."""
    web = serve(*GUNICORN, **SETTINGS | sink.settings | database).start()
    report(play(web, None, [f"{kind}-{receiver}" for kind in KINDS for receiver in RECEIVERS], sink))


@pytest.mark.inprocess("the process that its receiver ends is not started again")
@pytest.mark.timeout(300)
def test_a_receiver_takes_no_other_with_it_where_a_dispatcher_runs_by_itself(
    serve: Serve, sink: SmtpServer, report: Callable[[str], None]
) -> None:
    """It ends with an exit code that says so, for systemd or whoever else to start it again."""
    web = serve(*GUNICORN, **SETTINGS | sink.settings | {"dispatch_in_web": False}).start(ready="/healthz")
    dispatcher = serve(*DISPATCHER, **SETTINGS | sink.settings).launch()
    report(play(web, dispatcher, ["sys.exit-without", "os._exit-without", "sleep-with_session"], sink))
    assert (
        "ending this process      reason='with_session has not returned for order sleep-with_session" in dispatcher.log
    )


def play(web: Service, dispatcher: Service | None, bad_orders: list[str], sink: SmtpServer) -> str:
    """Place the orders, wait until all is dealt with, and check it. Returns the figures."""
    bad = {name: KINDS[name.partition("-with")[0]] for name in bad_orders}
    ledger, rng = Ledger(), random.Random(7)
    names = [*bad, *(f"order-{n}" for n in range(ORDERS - len(bad)))]
    rng.shuffle(names)
    codes: set[int] = set()
    begun = time.monotonic()
    with closing(Client(web.port)) as client:
        for name in names:
            ledger.place(client, Order(name, f"user-{rng.randrange(5)}", "19.99"))
    assert len(ledger.acknowledged) == ORDERS

    def findings() -> Findings:
        if dispatcher is not None and dispatcher.ended:
            codes.add(dispatcher.exit_code())
            dispatcher.launch()  # as systemd does with Restart=on-failure
        return Findings(web.database_url, sink.received)

    def others_are_through() -> bool:
        found = findings()
        return all(row["state"] == "done" or is_bad(row, bad) for row in found.deliveries) and all(
            (row["status"], row["notification"]) == ("confirmed", "sent") for row in found.orders.values()
        )

    deaths = sum(GIVEN_UP in reasons for reasons in bad.values()) * (ATTEMPTS + 1)
    limit = LEASE_SECONDS + deaths * SECONDS_FOR_EACH_DEATH
    wait_until(others_are_through, "all other deliveries", limit, pause=0.2)
    through = time.monotonic() - begun
    wait_until(
        lambda: all(row["state"] in ("done", "dead") for row in findings().deliveries), "the bad ones", limit, pause=0.2
    )
    check(Findings(web.database_url, sink.received), ledger, bad)
    assert 0 not in codes
    return (
        f"{ORDERS} orders, {len(bad)} bad, up to {deaths} deaths: "
        f"the others through after {through:.1f} s, all after {time.monotonic() - begun:.1f} s"
    )


def is_bad(row: dict[str, object], bad: dict[str, tuple[str, ...]]) -> bool:
    """Whether this delivery is the one that its order is bad for."""
    return row["order_id"] in bad and str(row["order_id"]).endswith(f"-{row['receiver']}")


def check(found: Findings, ledger: Ledger, bad: dict[str, tuple[str, ...]]) -> None:
    assert found.orders.keys() == ledger.acknowledged.keys()
    problems = [*found.of_users(), *found.of_mails(), *found.damage]
    for row in found.deliveries:
        outcomes = found.outcomes[row["delivery_id"]]
        if is_bad(row, bad):
            fine = row["state"] == "dead" and row["reason"].startswith(bad[row["order_id"]]) and "ok" not in outcomes
        else:
            fine = row["state"] == "done" and outcomes.count("ok") == 1 and set(outcomes) <= {"ok", "unknown"}
        if not fine:
            problems.append(f"{row['receiver']} of {row['order_id']}: {row['state']} {outcomes} {row['reason']}")
    assert not problems, "\n".join(problems)
