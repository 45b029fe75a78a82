"""What a receiver may answer. Nothing returned means done; an exception means that the attempt failed."""

from dataclasses import dataclass

from app.events import Event


@dataclass(frozen=True, init=False)
class Done:
    """Done, and these events happened: they are stored in the transaction that ends the delivery."""

    publish: tuple[Event, ...]

    def __init__(self, *publish: Event) -> None:
        object.__setattr__(self, "publish", publish)


@dataclass(frozen=True, init=False)
class Discard:
    """Not needed, because of ``reason``; the delivery ends as ``discarded``. It can be retried by a person."""

    reason: str
    publish: tuple[Event, ...]

    def __init__(self, reason: str, *publish: Event) -> None:
        object.__setattr__(self, "reason", reason)
        object.__setattr__(self, "publish", publish)


@dataclass(frozen=True)
class RetryAfter:
    """Not yet: try again in ``seconds``, and count no attempt."""

    seconds: float
    reason: str
