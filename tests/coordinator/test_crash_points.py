"""Power lost at every point of a round: the next coordinator goes on, and nothing is counted twice (§9.3)."""

from __future__ import annotations

from pathlib import Path

import pytest
from simulators.federation import Federation

from coordinator.settings import SharingSettings
from coordinator.store import RoundStore
from fedpruneshare.crash_points import POINTS
from fedpruneshare.link.memory import Weather

pytestmark = [pytest.mark.timeout(300)]
#: With every run of the tests; the others with `make faults`, which also kills real processes at all of them.
ALWAYS = {"round-persisted.after", "freeze-persisted.after", "round-closed.before", "round-closed.after"}


@pytest.mark.parametrize(
    "point",
    [
        pytest.param(point, marks=[] if point.partition(".")[2] in ALWAYS else pytest.mark.faults)
        for point in POINTS["coordinator"]
    ],
)
def test_a_coordinator_that_loses_power_goes_on_where_it_stood(tmp_path: Path, point: str) -> None:
    federation = Federation(tmp_path, 3, Weather(), rounds=2, sharing=SharingSettings(checksum=True))
    assert federation.run(crash_at=point) == 0
    lines = federation.outcomes()
    assert [(line["round"], line["phase"], line["contributors"]) for line in lines] == [
        (1, "APPLIED", 10),
        (2, "APPLIED", 10),
    ]
    assert all(line["verified_by"] == "consistency+checksum" for line in lines)
    federation.check_sums()
    store = RoundStore(tmp_path / "coordinator", federation.bundle)
    assert store.open_round() is None
    state = store.model()
    assert state is not None
    assert state.applied == 2
    assert store._rows("SELECT COUNT(*) FROM rounds WHERE seed IS NOT NULL") == [(0,)]
    assert (tmp_path / "coordinator" / "model.onnx").read_bytes() == federation.rendered(state)
    store.close()
