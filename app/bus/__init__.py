"""EVENT BUS: store an event together with the change that it reports, then deliver it to each of its receivers."""

from app.bus.bus import Bus
from app.bus.dispatcher import Dispatcher
from app.bus.leases import Lease, LeaseEnd
from app.bus.operate import Act, Filter
from app.bus.replay import Replay
from app.bus.tables import Role

__all__ = ["Act", "Bus", "Dispatcher", "Filter", "Lease", "LeaseEnd", "Replay", "Role"]
