"""nginx and Caddy with the files of deploy/, in a folder of the test's own and with a certificate of its own."""

import os
import shutil
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import trustme

from config import CHECKOUT
from tests.support.service import WITH_US, free_port, wait_until
from tests.support.wire import Wire

NGINX = """
daemon off;
pid {folder}/nginx.pid;
error_log {folder}/nginx.log;
worker_processes 2;
{user}
events {{ worker_connections 768; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    include {folder}/orders.conf;
}}
"""


class Proxy:
    def __init__(self, port: int, tls: ssl.SSLContext) -> None:
        self.port, self.tls = port, tls

    def wire(self, source: str = "127.0.0.1") -> Wire:
        """A connection from the address ``source``."""
        return Wire(self.port, tls=self.tls, source=source)

    def listens(self) -> bool:
        with suppress(OSError), self.wire():
            return True
        return False


@contextmanager
def nginx(folder: Path, service_port: int, prefix: str = "") -> Iterator[Proxy]:
    """Debian's, with what is its own in nginx.conf; deploy/nginx.conf is included as it would be there.

    With a ``prefix`` such as /shop it is changed as its own comment says.
    """
    under_prefix = {
        "    location / {\n        proxy_pass http://orders;": f"location {prefix}/ {{\nproxy_pass http://orders/;",
        'X-Forwarded-Prefix ""': f"X-Forwarded-Prefix {prefix}",
    }
    port = free_port()
    certificate, key, tls = _certificate(folder)
    (folder / "orders.conf").write_text(
        _with(
            "nginx.conf",
            {
                "listen 443 ssl": f"listen 127.0.0.1:{port} ssl",
                "127.0.0.1:8000": f"127.0.0.1:{service_port}",
                "/etc/ssl/orders.example.pem": str(certificate),
                "/etc/ssl/orders.example.key": str(key),
            }
            | (under_prefix if prefix else {}),
        )
    )
    (folder / "nginx.conf").write_text(NGINX.format(folder=folder, user="user root;" if os.getuid() == 0 else ""))
    command = [*WITH_US, _program("nginx"), "-p", str(folder), "-c", str(folder / "nginx.conf")]
    with _running(folder, command, Proxy(port, tls)) as proxy:
        yield proxy


@contextmanager
def caddy(folder: Path, service_port: int, prefix: str = "") -> Iterator[Proxy]:
    """With a ``prefix`` such as /shop deploy/Caddyfile is changed as its own comment says."""
    under_prefix = {
        "\treverse_proxy": f"\thandle_path {prefix}/* {{\n\treverse_proxy",
        "closing\n\t\t}\n\t}\n": "closing\n\t\t}\n\t}\n\t}\n",
        "header_up -X-Forwarded-Prefix": f"header_up X-Forwarded-Prefix {prefix}",
    }
    port = free_port()
    certificate, key, tls = _certificate(folder)
    (folder / "Caddyfile").write_text(
        _with(
            "Caddyfile",
            _caddy_buffers()
            | {
                "orders.example {": f"https://orders.example:{port} {{\n\ttls {certificate} {key}",
                "127.0.0.1:8000": f"127.0.0.1:{service_port}",
                "{\n\tservers": "{\n\tadmin off\n\tauto_https disable_redirects\n\tservers",
            }
            | (under_prefix if prefix else {}),
        )
    )
    command = [*WITH_US, _program("caddy"), "run", "--adapter", "caddyfile", "--config", str(folder / "Caddyfile")]
    with _running(folder, command, Proxy(port, tls)) as proxy:
        yield proxy


def _caddy_buffers() -> dict[str, str]:
    """As the comment in deploy/Caddyfile says."""
    version = subprocess.check_output([_program("caddy"), "version"], text=True).split()[0].removeprefix("v")
    if [int(number) for number in version.split(".")[:2]] < [2, 7]:
        return {}
    return {"buffer_requests\n\t\tmax_buffer_size 65KiB": "request_buffers 65KiB"}


PROXIES = {"nginx": nginx, "caddy": caddy}


def is_installed(name: str) -> bool:
    return _program(name) != name


def _program(name: str) -> str:
    return shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin") or name


def _with(name: str, changes: dict[str, str]) -> str:
    """A file of deploy/ with the test's own addresses and paths; each must be there to be changed."""
    text = (CHECKOUT / "deploy" / name).read_text()
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    return text


def _certificate(folder: Path) -> tuple[Path, Path, ssl.SSLContext]:
    authority = trustme.CA()
    issued = authority.issue_cert("orders.example")
    certificate, key = folder / "orders.pem", folder / "orders.key"
    key.write_bytes(issued.private_key_pem.bytes())
    certificate.write_bytes(b"".join(pem.bytes() for pem in issued.cert_chain_pems))
    tls = ssl.create_default_context()
    authority.configure_trust(tls)
    return certificate, key, tls


@contextmanager
def _running(folder: Path, command: list[str], proxy: Proxy) -> Iterator[Proxy]:
    environment = os.environ | {"HOME": str(folder), "XDG_DATA_HOME": str(folder), "XDG_CONFIG_HOME": str(folder)}
    log = folder / "proxy.log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment)
        try:
            wait_until(lambda: proxy.listens() or process.poll() is not None, "the proxy")
            assert process.poll() is None, log.read_text()
            yield proxy
        finally:
            process.terminate()
            process.wait(30)
