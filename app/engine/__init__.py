"""ENGINE: what brings leased deliveries to where receivers run. There are two, and ``BUS_ENGINE`` chooses one.

| | ``inprocess`` | ``celery`` |
|---|---|---|
| ``start()`` | claims due deliveries for threads of its own | claims them as *dispatched*, and publishes messages |
| receivers run in | these threads | Celery's workers, which take over a message's delivery by compare-and-set |
| ``wake()`` | the loop looks for due deliveries now | the same |
| ``stop()`` | waits for running receivers | waits for messages that are being published |

Both use the same steps of the bus: ``Dispatcher`` claims, takes, invokes and settles. The bus knows no engine: it
reports ``lifecycle.deliveries_due``, and engines listen.
"""

from app.engine.choice import make_engine
from app.engine.inprocess.engine import Engine

__all__ = ["Engine", "make_engine"]
