"""Clients: secrets are compared, and requests from this machine recognised. The API and the console share it."""

import hashlib
import hmac
import ipaddress
import re

from flask import Request

FORWARDING_HEADERS = re.compile(
    r"Via|Forwarded|X-(Forwarded|Original|Real|Client|Cluster|Envoy)\b.*|(Cf|True|Fastly)-.*", re.IGNORECASE
)
"""Headers that proxies add. A proxy on this machine says nothing about where its client is."""

LOCAL_NAMES = ("localhost", "127.0.0.1", "[::1]")


def is_secret(given: bytes, secret: bytes) -> bool:
    """Compare in constant time. Digests have one length, so that the time tells nothing about the secret's."""
    return hmac.compare_digest(hashlib.sha256(given).digest(), hashlib.sha256(secret).digest())


def is_local(asked: Request) -> bool:
    """Whether the client is on this machine, and asks for it by its own name."""
    return _has_loopback_address(asked) and has_local_host_name(asked) and not _is_forwarded(asked)


def has_local_host_name(asked: Request) -> bool:
    """DNS rebinding: a foreign page whose domain points to 127.0.0.1 sends its own name as the Host."""
    host = asked.host
    name = host if host.endswith("]") else host.rpartition(":")[0] or host
    return name in LOCAL_NAMES


def _has_loopback_address(asked: Request) -> bool:
    try:
        return ipaddress.ip_address(asked.remote_addr or "").is_loopback
    except ValueError:
        return asked.remote_addr == ""  # a Unix socket


def _is_forwarded(asked: Request) -> bool:
    return any(FORWARDING_HEADERS.fullmatch(header) for header, _ in asked.headers)
