"""Load: as much as there can be, by wrk, and a calm stream with a fixed pace."""

import http.client
import json
import threading
import time

from processes import HERE, program, run


def full(port: int, seconds: float, prefix: str) -> dict[str, float]:
    """Orders from 16 connections, each placing its next as soon as the last is answered."""
    began = time.monotonic()
    address = f"http://127.0.0.1:{port}"
    script = ("-s", str(HERE / "orders.lua"), address, "--", prefix)
    spent = f"{max(1, round(seconds))}s"
    printed = run(program("wrk"), "-t", "1", "-c", "16", "-d", spent, "--timeout", "30s", "--latency", *script)
    found = json.loads(printed.partition("JSON ")[2])
    return found | {"per_second": found["requests"] / found["seconds"], "began": began}


def paced(port: int, per_second: float, seconds: float, prefix: str) -> tuple[dict[str, float], float, int]:
    """Orders at an even pace, each for a user named like the order, from four connections that stay open.

    Returns when each was sent, by how much the latest was late, and how many were not answered with 201.
    """
    connections, total = 4, round(per_second * seconds)
    sent: dict[str, float] = {}
    late: list[float] = [0.0]
    failed: list[str] = []
    begin = time.monotonic() + 0.1

    def client(first: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        for number in range(first, total, connections):
            order_id = f"{prefix}-{number}"
            body = json.dumps({"order_id": order_id, "user_id": order_id, "total_price": 19.99})
            due = begin + number / per_second
            time.sleep(max(0.0, due - time.monotonic()))
            sent[order_id] = time.monotonic()
            late.append(sent[order_id] - due)
            try:
                connection.request("POST", "/api/create_order", body, {"Content-Type": "application/json"})
                response = connection.getresponse()
                response.read()
                if response.status != 201:
                    failed.append(order_id)
            except (OSError, http.client.HTTPException):
                failed.append(order_id)
                connection.close()
        connection.close()

    threads = [threading.Thread(target=client, args=(first,)) for first in range(connections)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sent, max(late), len(failed)
