"""Schedules that once broke an invariant, as small as they could be made; each is run by every `make test`."""

from __future__ import annotations

from simulators.schedules import Operation, Schedule
from simulators.world import Setup

FOUND: dict[str, Schedule] = {
    # An aggregator that accepted a Freeze before its own attendance forgot that when it was restarted.
    "collecting again after the burn": Schedule(
        Setup(53, n=5, k=3, devices=12, field="F61", reveal="each", freeze_quorum=4),
        (
            Operation("crash_at_a_point", 1.1882341720105396, 3626576311),
            Operation("wrong_clock", 0.15604895210467867, 544273890),
            Operation("crash", 1.0929381925469257, 3642014082),
            Operation("equivocate", 0.6468203232944959, 496066115),
            Operation("replay", 0.07703708088782658, 3498447713),
        ),
    ),
    # A frozen round that failed, and then nobody could ever freeze another set on the same model.
    "a round that failed once it was frozen": Schedule(
        Setup(8, devices=5, field="F61", freeze_quorum=3),
        (Operation("bad_weather", 57.4385911169152, 3739288517),),
    ),
    # The judge took a receipt that was said again, while the attendance was still on its way, for a late acceptance.
    "a receipt said again after the burn": Schedule(
        Setup(30399, devices=3),
        (
            Operation("broker_restart", 2.6180771865250456, 3126198868),
            Operation("equivocate", 3.1285278296691317, 2188042123),
            Operation("replay", 0.2065229325201058, 2825473807),
        ),
    ),
}
