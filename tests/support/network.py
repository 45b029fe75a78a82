"""Hosts of a test's own: network namespaces, joined by a switch. Each has an address, and can be cut off.

    with Network() as network:
        web = network.host()
        service.within, service.host = web.within, web.address
        web.cut_off()    # packets vanish, and nobody is told
        web.join()

The test's process is in the network too, at ``network.address``. Needs root, ``ip`` of iproute2, and a kernel that
makes namespaces. All is gone when the ``with`` block ends.
"""

import contextlib
import fcntl
import os
import select
import shutil
import struct
import subprocess
import threading
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from tests.support.service import LIMIT


def is_possible() -> bool:
    if os.getuid() or shutil.which("ip") is None:
        return False
    try:
        with Network() as network:
            host = network.host()
            return subprocess.run([*host.within, "true"], capture_output=True, timeout=LIMIT).returncode == 0
    except subprocess.CalledProcessError:
        return False


def ip(*arguments: str) -> None:
    """Raises CalledProcessError."""
    subprocess.run(["ip", *arguments], check=True, capture_output=True, timeout=LIMIT)


class Network:
    """A switch, in a namespace of its own. The addresses are of 198.18.0.0/15, which is for tests (RFC 2544)."""

    def __init__(self) -> None:
        self._name = f"t{os.getpid():x}"
        number = os.getpid() % 512  # tests run side by side
        self._net = f"198.{18 + number // 256}.{number % 256}"
        self._switch = f"{self._name}-s"
        self._hosts: list[Host] = []
        self._lines: list[_DelayLine] = []

    def __enter__(self) -> Self:
        ip("netns", "add", self._switch)
        try:
            ip("-n", self._switch, "link", "add", "name", "br0", "type", "bridge")
            ip("-n", self._switch, "link", "set", "br0", "up")
            self._wire(f"{self._name}-0", None, f"{self._net}.1")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for line in self._lines:
            line.close()
        with contextlib.suppress(subprocess.CalledProcessError):
            ip("link", "del", f"{self._name}-0e")  # at once; the namespaces follow when the kernel has time
        for namespace in (*[host.namespace for host in self._hosts], self._switch):
            with contextlib.suppress(subprocess.CalledProcessError):
                ip("netns", "del", namespace)  # with the links in it, and their other ends

    @property
    def address(self) -> str:
        """Of the test's own process."""
        return f"{self._net}.1"

    def host(self, delay_seconds: float = 0) -> "Host":
        """One more host, which is joined to all others. Whatever it sends or is sent takes ``delay_seconds``."""
        number = len(self._hosts) + 2
        made = Host(f"{self._name}-{number}", self._switch, f"{self._net}.{number}")
        self._hosts.append(made)
        ip("netns", "add", made.namespace)
        ip("-n", made.namespace, "link", "set", "lo", "up")
        self._wire(made.namespace, made.namespace, made.address, delay_seconds)
        return made

    def _wire(self, name: str, namespace: str | None, address: str, delay_seconds: float = 0) -> None:
        """A cable from the switch's port of that name to the namespace; None for the test's own."""
        within = ["-n", namespace] if namespace else []
        if delay_seconds and namespace:
            self._lines.append(_DelayLine(name, f"{name}e", delay_seconds))
            ip("link", "set", name, "netns", self._switch)
            ip("link", "set", f"{name}e", "netns", namespace)
        else:
            inside = ["netns", namespace or str(os.getpid())]
            ip("-n", self._switch, "link", "add", name, "type", "veth", "peer", "name", f"{name}e", *inside)
        ip("-n", self._switch, "link", "set", name, "master", "br0", "up")
        ip(*within, "address", "add", f"{address}/24", "dev", f"{name}e")
        ip(*within, "link", "set", f"{name}e", "up")


class _DelayLine:
    """A cable on which each frame is under way for a time: two TAP devices, and a thread that carries between them.

    Many kernels have no ``netem`` (its module is ``sch_netem``), which would do it.
    """

    TUNSETIFF, IFF_TAP, IFF_NO_PI = 0x400454CA, 0x2, 0x1000

    def __init__(self, one: str, other: str, seconds: float) -> None:
        self._seconds = seconds
        self._ends = [self._open(name) for name in (one, other)]
        self._stopped, self._stop = os.pipe()
        self._thread = threading.Thread(target=self._carry, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """The devices are gone then."""
        os.close(self._stop)
        self._thread.join(LIMIT)
        for descriptor in (self._stopped, *self._ends):
            os.close(descriptor)

    def _open(self, name: str) -> int:
        descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        flags = self.IFF_TAP | self.IFF_NO_PI
        fcntl.ioctl(descriptor, self.TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))
        return descriptor

    def _carry(self) -> None:
        under_way: deque[tuple[float, int, bytes]] = deque()
        other = dict(zip(self._ends, reversed(self._ends), strict=True))
        while True:
            pause = max(0.0, under_way[0][0] - time.monotonic()) if under_way else None
            ready, _, _ = select.select([*self._ends, self._stopped], [], [], pause)
            if self._stopped in ready:
                return
            for end in ready:
                with contextlib.suppress(OSError):
                    under_way.append((time.monotonic() + self._seconds, other[end], os.read(end, 65536)))
            while under_way and under_way[0][0] <= time.monotonic():
                _, end, frame = under_way.popleft()
                with contextlib.suppress(OSError):  # it is not up, or full: frames may get lost
                    os.write(end, frame)


class Host:
    """A namespace with an address."""

    def __init__(self, namespace: str, switch: str, address: str) -> None:
        self.namespace, self._switch, self.address = namespace, switch, address

    @property
    def within(self) -> list[str]:
        """The beginning of a command line: what follows runs on this host."""
        return ["ip", "netns", "exec", self.namespace]

    def with_folder(self, folder: Path) -> list[str]:
        """As ``within``, with a temporary folder of the host's own: no socket in it is shared with other hosts."""
        folder.mkdir(exist_ok=True)
        return [*self.within, "env", f"TMPDIR={folder}"]

    def cut_off(self) -> None:
        """Whatever comes and goes vanishes, as behind a firewall that drops: nobody hears of it."""
        ip("-n", self._switch, "link", "set", self.namespace, "nomaster")

    def join(self) -> None:
        ip("-n", self._switch, "link", "set", self.namespace, "master", "br0")

    def forget(self, port: int) -> int:
        """Let the answers vanish on all connections that are open to this host's port; new ones pass.

        As a firewall does that has forgotten them. Returns how many there were.
        """
        peers = list(self._peers(port))
        for peer in peers:
            tcp = ["ipproto", "tcp", "sport", str(port), "dport", str(peer)]
            ip("-n", self.namespace, "rule", "add", "priority", "10", *tcp, "blackhole")
        return len(peers)

    def _peers(self, port: int) -> Iterator[int]:
        """The other ends' ports, of established connections."""
        table = subprocess.run(
            [*self.within, "cat", "/proc/net/tcp"], check=True, capture_output=True, text=True
        ).stdout
        for line in table.splitlines()[1:]:
            _, local, remote, state, *_ = line.split()
            if state == "01" and int(local.rpartition(":")[2], 16) == port:
                yield int(remote.rpartition(":")[2], 16)
