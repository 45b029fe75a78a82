"""Answers of receivers. Nothing returned means done; an exception means that the attempt failed."""

from dataclasses import dataclass

from app.signal import Event


class Done:
    """Done, and these events happened: they are stored in the transaction that ends the delivery."""

    def __init__(self, *publish: Event) -> None:
        self.publish = publish


class Discard:
    """Not needed, because of ``reason``; the delivery ends as ``discarded``. A person can retry it."""

    def __init__(self, reason: str, *publish: Event) -> None:
        self.reason = reason
        self.publish = publish


@dataclass(frozen=True)
class RetryAfter:
    """Not yet: try again in ``seconds``, and count no attempt.

    The retry policy's longest wait, RETRY_MAX_SECONDS, bounds it: a receiver that wants to wait for longer is asked
    again then, and may give the same answer.
    """

    seconds: float
    reason: str
