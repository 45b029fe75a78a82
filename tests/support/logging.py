"""Handlers of other people's, for the length of a block."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def handling(handler: logging.Handler, logger: str = "") -> Iterator[None]:
    """The handler is the root logger's, or that of the logger of that name."""
    logging.getLogger(logger).addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger(logger).removeHandler(handler)
