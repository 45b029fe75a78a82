"""What an application chooses for a receiver."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ReceiverOptions:
    concurrency: int = 1
    """How many deliveries to it one process tries at once. A transactional receiver has one thread whatever it says."""
    hold_unknown: bool = False
    """An attempt whose process died may or may not have had its effect: repeat it, or leave it to a person."""
