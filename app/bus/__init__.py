"""EVENT BUS: remember an event together with the change that it reports, then deliver it to each of its receivers."""

from app.bus.bus import Bus
from app.bus.dispatcher import Dispatcher
from app.bus.leases import Lease, LeaseEnd
from app.bus.operate import Filter

__all__ = ["Bus", "Dispatcher", "Filter", "Lease", "LeaseEnd"]
