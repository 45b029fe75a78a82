"""Failure injection: on the machine where the service was just tried out, a visitor may see what an outage does."""

import os
import signal
import socket
import subprocess
from datetime import timedelta

from app.bus.tables import DispatcherHeartbeat
from app.current import database, settings
from app.mail.maildir import begin_outage

OUTAGE_SECONDS = 60


def is_allowed() -> bool:
    chosen = settings()
    return chosen.mail_backend == "file" and chosen.mail_server is None and chosen.console_password is None


def break_mail() -> None:
    """The file backend takes no mail for OUTAGE_SECONDS, in whichever process it runs."""
    begin_outage(settings().instance_path, database().clock.now() + timedelta(seconds=OUTAGE_SECONDS))


def replaceable(dispatchers: list[DispatcherHeartbeat]) -> int | None:
    """The process id of a dispatcher that gunicorn started beside this process, and so starts again; None without."""
    for each in dispatchers:
        pid = each.told.get("pid")
        if not isinstance(pid, int) or pid == os.getpid() or each.told.get("host") != socket.gethostname():
            continue
        if _parent(pid) == os.getppid() > 1:
            return pid
    return None


def kill(pid: int) -> None:
    """As a crash does: it gets no chance to put anything in order. Raises ProcessLookupError."""
    os.kill(pid, signal.SIGKILL)


def _parent(pid: int) -> int | None:
    try:
        asked = subprocess.run(
            ["ps", "-o", "ppid=", "-p", f"{pid}"],  # noqa: S607 - wherever this system has it
            capture_output=True,
            text=True,
            timeout=2,
            check=False,
        )
        return int(asked.stdout)
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return None
