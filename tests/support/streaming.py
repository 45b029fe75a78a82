"""The service with routes that stream: ``gunicorn "tests.support.streaming:create()"``."""

import itertools
import time
from collections.abc import Iterator

from flask import Flask, Response

PART = "id,price\n"
PAUSE_SECONDS = 0.05
SECOND_PART_SECONDS = 1.0


def create() -> Flask:
    from wsgi import app

    @app.get("/raises")
    def raises() -> Response:
        def parts() -> Iterator[str]:
            yield PART
            raise ValueError("on purpose")

        return Response(parts(), mimetype="text/csv")

    @app.get("/raises-at-once")
    def raises_at_once() -> Response:
        def parts() -> Iterator[str]:
            raise ValueError("on purpose")
            yield PART

        return Response(parts(), mimetype="text/csv")

    @app.get("/slow")
    def slow() -> Response:
        """Its second part comes far later than the first."""

        def parts() -> Iterator[str]:
            yield PART
            time.sleep(SECOND_PART_SECONDS)
            yield PART

        return Response(parts(), mimetype="text/csv")

    @app.get("/endless")
    def endless() -> Response:
        def parts() -> Iterator[str]:
            try:
                for number in itertools.count():
                    yield f"data: {number}\n\n"
                    time.sleep(PAUSE_SECONDS)
            finally:
                app.logger.warning("stream closed")

        return Response(parts(), mimetype="text/event-stream")

    return app
