"""strace as a saboteur: it attaches to a running process, and kills it or fails its calls, at the call that we name.

    with Strace(pid, "inject=pwrite64:signal=KILL:when=3") as strace:
        ...
    assert strace.saw_death

Every thread is watched, and each counts its calls for itself. Never with --seccomp-bpf, which drops signals silently.
"""

import functools
import re
import shutil
import signal
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

LIMIT = 10.0
"""Seconds that strace itself is waited for at most."""

CALL = re.compile(r"(?P<thread>\d+) +(?P<name>\w+)\((?:\d+<(?P<file>[^>]*)>)?(?P<rest>.*)")


@dataclass(frozen=True)
class Call:
    thread: int
    name: str
    file: str
    """The path behind its first argument, or ``socket:[number]``; "" where that is no descriptor."""
    rest: str


class Strace:
    """Attached within the ``with`` block, or until the process is dead. After it, the process runs on unharmed.

    ``expressions`` are strace's own (``trace=``, ``inject=``); with ``files``, only calls on these are meant.
    """

    def __init__(self, pid: int, *expressions: str, files: tuple[Path, ...] = ()) -> None:
        self.pid = pid
        names = {name for each in expressions for name in each.partition("=")[2].partition(":")[0].split(",")}
        self._options = [word for each in [f"trace={','.join(sorted(names))}", *expressions] for word in ("-e", each)]
        self._options += [word for file in files for word in ("-P", str(file))]

    def __enter__(self) -> Self:
        self._log = tempfile.NamedTemporaryFile("r", prefix="strace-")
        self._process = subprocess.Popen(
            ["strace", "-f", "-y", "-s", "16", "-o", self._log.name, *self._options, "-p", str(self.pid)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self._process.stderr is not None
        said = self._process.stderr.readline()
        if "attached" not in said:
            self._end()
            raise NotAllowed(said.strip())
        return self

    def __exit__(self, *_: Any) -> None:
        self.detach()
        self._last_words = self._read()
        self._end()

    def detach(self) -> None:
        """Let go of the process; from here on its calls are its own."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
            self._process.wait(LIMIT)

    @property
    def text(self) -> str:
        """What strace has written so far."""
        return self._last_words if self._log.closed else self._read()

    @property
    def calls(self) -> list[Call]:
        found = (CALL.match(line) for line in self.text.splitlines())
        return [Call(int(each["thread"]), each["name"], each["file"] or "", each["rest"]) for each in found if each]

    @property
    def faults(self) -> int:
        """How many calls failed because we said so."""
        return self.text.count("(INJECTED)")

    @property
    def saw_death(self) -> bool:
        """Whether the process died of SIGKILL under strace's eyes."""
        return bool(re.search(rf"^{self.pid} +\+\+\+ killed by SIGKILL", self.text, re.MULTILINE))

    def _read(self) -> str:
        self._log.seek(0)
        return self._log.read()

    def _end(self) -> None:
        self._process.kill()
        self._process.wait(LIMIT)
        assert self._process.stderr is not None
        self._process.stderr.close()
        self._log.close()


class NotAllowed(Exception):
    """strace can't attach to the process."""


@functools.cache
def why_not() -> str | None:
    """Why there can be no injection here: found out by killing a process that writes; None when there can be."""
    if shutil.which("strace") is None:
        return "there is no strace here"
    victim = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    try:
        with Strace(victim.pid, "inject=write:signal=KILL"):
            victim.communicate(b"!", timeout=LIMIT)
    except NotAllowed as error:
        return f"strace can't attach to a process here: {error}"
    except subprocess.TimeoutExpired:
        return "strace attaches, but nothing happens"
    finally:
        victim.kill()
        victim.communicate()
    return None if victim.returncode == -signal.SIGKILL else "strace attaches, but its injected signals don't arrive"
