"""Times from a device far away: the kit that goes there, and the times that come back."""

from factorize.measure.kit.kit_writer import Group, KitWriter, net_id
from factorize.measure.kit.recorded import Recorded, RecordedTimes, load_times, shape_of_net
from factorize.measure.kit.wanted import Wanted

__all__ = [
    "Group",
    "KitWriter",
    "Recorded",
    "RecordedTimes",
    "Wanted",
    "load_times",
    "net_id",
    "shape_of_net",
]
