"""What a receiver talks to, without a network."""

from collections.abc import Callable

from app.events import OrderCreated
from tests.support.shop import Shop


class Backend:
    """A receiver and what stands behind it. ``trouble`` says what is wrong with an order now; it counts who comes."""

    __name__ = "server"

    def __init__(self, shop: Shop) -> None:
        self._shop, self._began = shop, shop.clock.monotonic()
        self.trouble: Callable[[str], Exception | None] = lambda order_id: None
        self.asked: list[str] = []
        self.asked_at: list[float] = []
        self.served: list[str] = []

    @property
    def now(self) -> float:
        """Seconds since it was made."""
        return float(self._shop.clock.monotonic()) - self._began

    def fail(self, error: Exception | None) -> None:
        """Everything fails so from now on; with None, nothing."""
        self.trouble = lambda order_id: error

    def __call__(self, sender: str, event: OrderCreated) -> None:
        self.asked.append(event.order_id)
        self.asked_at.append(self.now)
        if error := self.trouble(event.order_id):
            raise error
        self.served.append(event.order_id)
