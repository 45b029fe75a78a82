"""Costs: what a delivery's delay, an attempt and a lost delivery are worth, in one unit. Reward and discount follow."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Costs:
    """In minutes that one delivery is late.

    The decision process counts in deliveries' values: a success earns 1, an attempt costs ``c``, and a delay of d
    seconds leaves exp(-β d) of what is earned.
    """

    attempt: float = 0.2
    """One attempt: as much as 12 s of one delivery's delay."""
    loss: float = 3000.0
    """One delivery given up: as much as 50 hours of delay."""
    copy: float = 10.0
    """One attempt after another that may have had its effect: the copy annoys its recipient."""

    def __post_init__(self) -> None:
        if not 0 < self.attempt <= self.copy < self.loss:
            raise ValueError("of the costs of a retry, this must hold: 0 < attempt <= copy < loss")

    @property
    def beta(self) -> float:
        """The share of a delivery's value that is lost in each second of delay."""
        return 1 / 60 / self.loss

    def of_attempt(self, *, copies: bool) -> float:
        """``c``: the cost of an attempt as a share of a delivery's value."""
        return (self.copy if copies else self.attempt) / self.loss
