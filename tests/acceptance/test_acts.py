"""A person at a terminal retries what is dead: watches, leaves, looks again, aborts. Real processes and a real pty."""

import contextlib
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Iterator

from tests.acceptance.conftest import Serve
from tests.support.service import CHECKOUT, LIMIT, WITH_US, Service, environment, wait_until
from tests.support.smtp import SmtpServer

ORDERS = 6


class Terminal:
    """A command at a terminal of its own, and what it has printed."""

    def __init__(self, service: Service, *words: str) -> None:
        self._ours, theirs = pty.openpty()
        self.process = subprocess.Popen(
            [*WITH_US, sys.executable, "-m", "flask", *words],
            cwd=CHECKOUT,
            env=environment(**service.settings),
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
        )
        os.close(theirs)
        os.set_blocking(self._ours, False)
        self.printed = ""

    def read(self) -> str:
        with contextlib.suppress(OSError):  # there is nothing yet, or nothing more
            self.printed += os.read(self._ours, 65536).decode(errors="replace")
        return self.printed

    def shows(self, pattern: str) -> None:
        wait_until(lambda: re.search(pattern, self.read()), f"{pattern!r} in {self.printed!r}")

    def ends(self) -> str:
        code = self.process.wait(LIMIT)
        self.read()
        assert code == 0, self.printed
        return self.printed.replace("\r\n", "\n")

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._ours)


@contextlib.contextmanager
def terminal(service: Service, *words: str) -> Iterator[Terminal]:
    made = Terminal(service, *words)
    try:
        yield made
    finally:
        made.close()


def test_a_bulk_retry_is_watched_left_looked_at_again_and_aborted(serve: Serve, sink: SmtpServer) -> None:
    sink.on("RCPT", "550 5.1.1 no such user")
    service = serve(**sink.settings).start()
    for number in range(ORDERS):
        service.post(order_id=f"{number}", user_id=f"u{number}", total_price=1, email=f"u{number}@example.com")

    def dead() -> bool:
        return len(service.get("/operator/deliveries?state=dead").body["deliveries"]) == ORDERS

    wait_until(dead, "the end of all mails")
    listed = service.run("flask", "bus", "list", "--by", "reason").stdout
    assert re.search(
        r"^6 +send_email_notification +dead +refused +.*<n> answered RCPT with 550 5.1.1", listed, re.MULTILINE
    )

    sink.heal()
    with terminal(service, "bus", "retry", "--state", "dead", "--over", "50m", "--yes") as first:
        first.shows(r"retried 6 \(act 1\)")
        first.shows(r"act 1 .*1/6")
        os.kill(first.process.pid, signal.SIGINT)
        told = first.ends()
    assert told.endswith("1 sent, 5 left; the act goes on; 'flask bus acts 1' shows how far it is\n")
    assert service.run("flask", "bus", "acts", "1").stdout.splitlines()[-1] == "1 sent, 5 left"

    told = service.run("flask", "bus", "acts", "1", "--abort", "--yes").stdout
    assert re.fullmatch(r"took 5 deliveries back; aborted by cli:.*: 1 sent, 5 taken back, 0 left\n", told)

    sink.on("RCPT", "550 5.1.1 no such user", when="u3@")
    with terminal(service, "bus", "retry", "--receiver", "send_email_notification", "--yes") as second:
        told = second.ends()
    assert "5/5" in told
    assert told.endswith("4 sent, 1 refused again, 0 left\n")
    assert len(sink.wait_for(ORDERS - 1)) == ORDERS - 1
